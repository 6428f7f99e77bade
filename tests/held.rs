//! What the terms of a client's policy hold back: the server says why it waits, and until when; and
//! a hang-up puts another policy in force.

mod common;

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use common::{bytes, client::TestClient, process::Process, server::TestServer};
use fts::{
    client::{config::Shared, policy::Policy},
    wire::proto::{FailReason, State, Transfer, WaitingReason},
};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A directory with a file that may be read on some terms.
struct Site {
    dir: TempDir,
    data: Vec<u8>,
}

impl Site {
    fn new(size: u64) -> Self {
        let dir = TempDir::new().expect("a directory");
        let data = bytes(usize::try_from(size).expect("small"), 7);
        for name in ["root", "etc"] {
            fs::create_dir(dir.path().join(name)).expect("made");
        }
        fs::write(dir.path().join("root/file"), &data).expect("written");
        Self { dir, data }
    }

    fn file(&self) -> String {
        self.dir.path().join("root/file").to_str().expect("text").to_owned()
    }

    fn policy(&self, terms: &str) -> String {
        let root = self.dir.path().join("root");
        format!("[[root]]\nname = 'root'\npath = '{}'\n{terms}\n", root.display())
    }

    fn client(&self, server: &TestServer, id: &str, terms: &str) -> TestClient {
        let policy = Policy::parse(&self.policy(terms)).expect("a policy");
        TestClient::start_with(&server.url(), id, &[], |config| {
            config.shared = Shared::Policy(policy);
        })
    }

    fn write_policy(&self, terms: &str) -> PathBuf {
        self.replace_policy(&self.policy(terms))
    }

    /// As editors do it.
    fn replace_policy(&self, policy: &str) -> PathBuf {
        let path = self.dir.path().join("etc/policy.toml");
        let new = path.with_extension("new");
        fs::write(&new, policy).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::rename(&new, &path).expect("renamed");
        path
    }

    /// Starts the program with its policy in a file.
    fn program(&self, server: &TestServer, terms: &str) -> Process {
        let policy = self.write_policy(terms);
        let policy = policy.to_str().expect("text");
        let home = self.dir.path().to_str().expect("text");
        let url = server.url();
        let args = ["--server", &url, "--policy", policy, "--status-port", "0"];
        let log = self.dir.path().join("client.log");
        Process::start(env!("CARGO_BIN_EXE_fts-client"), &log, &args, &[("HOME", home)])
    }
}

/// Returns what the clock on the wall shows so many hours from now.
fn hour(from_now: i64) -> String {
    let then = jiff::Zoned::now().saturating_add(jiff::SignedDuration::from_hours(from_now));
    format!("{:02}:{:02}", then.hour(), then.minute())
}

fn waits_for(transfer: &Transfer, reason: WaitingReason) -> bool {
    transfer.waiting.as_ref().is_some_and(|waiting| waiting.reason() == reason)
}

#[tokio::test]
async fn outside_its_hours_a_transfer_says_so_and_until_when() {
    let server = TestServer::start().await;
    let site = Site::new(1000);
    // Begin and end are hours away, whatever time it is.
    let open = site.client(&server, "open", &format!("hours = '{}-{}'", hour(-6), hour(6)));
    let shut = site.client(&server, "shut", &format!("hours = '{}-{}'", hour(6), hour(-6)));
    let mut ids = Vec::new();
    for client in ["open", "shut"] {
        server.online(client).await;
        ids.push(server.trigger(client, &site.file()).await.id);
    }

    let settled = |t: &Transfer| {
        t.state() == State::Complete || waits_for(t, WaitingReason::ClientPolicyWindow)
    };
    let delivered = server.follow(&ids[0], settled).await;
    let held = server.follow(&ids[1], settled).await;

    assert_eq!((delivered.state(), held.state()), (State::Complete, State::Queued));
    let waiting = held.waiting.expect("it waits");
    let wait =
        waiting.next_attempt_time.expect("known").seconds - waiting.since.expect("known").seconds;
    // A clock may be put forward or back by an hour meanwhile.
    assert!((4 * 3600..=8 * 3600).contains(&wait), "{wait}");
    assert_eq!((held.failure, held.attempts), (None, 0));
    open.stop().await;
    shut.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn after_its_bytes_of_a_day_a_transfer_waits_for_the_next_and_keeps_what_it_has() {
    let server = TestServer::start().await;
    let site = Site::new(5 * MIB);
    let client = site.client(&server, "client-1", "bytes_per_day = '2MiB'");
    server.online("client-1").await;

    let id = server.trigger("client-1", &site.file()).await.id;
    let held = server.follow(&id, |t| waits_for(t, WaitingReason::Quota)).await;

    assert_eq!(held.state(), State::Interrupted);
    assert!(held.bytes_received <= 2 * MIB, "{held:?}");
    assert_eq!(held.failure, None);
    let waiting = held.waiting.expect("it waits");
    let wait =
        waiting.next_attempt_time.expect("known").seconds - waiting.since.expect("known").seconds;
    assert!((1..=25 * 3600).contains(&wait), "{wait}");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_hang_up_ends_what_a_narrower_policy_forbids() {
    let server = TestServer::start().await;
    let site = Site::new(8 * MIB);
    let mut program = site.program(&server, "rate = '100KB/s'");
    let digest = server.online("client-1").await.policy_digest;
    let id = server.trigger("client-1", &site.file()).await.id;
    server.follow(&id, |t| t.state() == State::Receiving).await;

    site.write_policy("exclude = ['file']");
    program.signal(rustix::process::Signal::HUP);

    let failed = server.ended(&id).await;
    assert_eq!(failed.state(), State::Failed);
    assert_eq!(failed.failure.expect("why").reason(), FailReason::DeniedByPolicy);
    assert_ne!(server.online("client-1").await.policy_digest, digest);
    program.logged("replaced");
    program.kill();
    server.stop().await;
}

#[tokio::test]
async fn a_hang_up_lets_what_is_still_allowed_go_on_where_it_was() {
    let server = TestServer::start().await;
    let site = Site::new(8 * MIB);
    let program = site.program(&server, "rate = '2MB/s'");
    server.online("client-1").await;
    let id = server.trigger("client-1", &site.file()).await.id;
    server.shown(&id, |t| t.bytes_done >= 2 * MIB).await;

    site.write_policy("exclude = ['another']");
    program.signal(rustix::process::Signal::HUP);

    let (transfer, landed) = server.landed(&id).await;
    assert_eq!(landed, site.data);
    let again = transfer.bytes_received - transfer.size.expect("known");
    assert!(again <= 2 * MIB, "{again} bytes came twice");
    assert!(transfer.epoch >= 2, "it was asked for again");
    program.kill();
    server.stop().await;
}

#[tokio::test]
async fn a_hang_up_adds_no_root_to_what_the_kernel_holds() {
    let server = TestServer::start().await;
    let site = Site::new(1000);
    let mut program = site.program(&server, "");
    let before = server.online("client-1").await;
    program.logged("the sandbox holds");

    let other = format!("[[root]]\nname = 'etc'\npath = '{}/etc'\n", site.dir.path().display());
    site.replace_policy(&(site.policy("") + &other));
    program.signal(rustix::process::Signal::HUP);
    program.logged("restart to widen");

    let after = server.online("client-1").await;
    assert_eq!(
        (before.policy_digest, before.allowed_roots),
        (after.policy_digest, after.allowed_roots)
    );
    program.kill();
    server.stop().await;
}

#[tokio::test]
async fn a_hang_up_that_takes_away_and_adds_takes_away_at_once() {
    let server = TestServer::start().await;
    let site = Site::new(1000);
    let mut program = site.program(&server, "");
    server.online("client-1").await;
    program.logged("the sandbox holds");

    let other = format!("[[root]]\nname = 'etc'\npath = '{}/etc'\n", site.dir.path().display());
    site.replace_policy(&(site.policy("exclude = ['file']") + &other));
    program.signal(rustix::process::Signal::HUP);
    program.logged("restart to widen");
    program.logged("read the configuration again");

    let id = server.trigger("client-1", &site.file()).await.id;
    let failed = server.ended(&id).await;
    assert_eq!(failed.failure.expect("why").reason(), FailReason::DeniedByPolicy);
    program.kill();
    server.stop().await;
}

#[tokio::test]
async fn a_policy_that_is_wrong_changes_nothing() {
    let server = TestServer::start().await;
    let site = Site::new(1000);
    let mut program = site.program(&server, "");
    let digest = server.online("client-1").await.policy_digest;

    site.write_policy("exlude = ['file']");
    program.signal(rustix::process::Signal::HUP);
    program.logged("nothing was changed");

    assert_eq!(server.online("client-1").await.policy_digest, digest);
    let id = server.trigger("client-1", &site.file()).await.id;
    assert_eq!(server.landed(&id).await.1, site.data);
    program.kill();
    server.stop().await;
}
