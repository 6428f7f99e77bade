//! The client's own audit, of the real programs: what it says, how it is verified, and that the
//! server sees it go back.

mod common;

use std::{
    fs,
    process::{Command, Output},
    time::Duration,
};

use common::{
    process::Process,
    raw::{RawSession, hello},
    server::{Setup, TestServer},
};
use fts::{
    audit_head::AuditHead,
    ids::InstanceId,
    wire::{
        proto::{Client, ExplainPathRequest, GetClientRequest, State},
        session::Hello,
    },
};
use tempfile::TempDir;

/// A machine with a file to share and a file that is none of the server's business.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        fs::create_dir(dir.path().join("root")).expect("made");
        fs::write(dir.path().join("root/file"), "some bytes").expect("written");
        fs::write(dir.path().join("secret"), "a canary").expect("written");
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("text").to_owned()
    }

    fn start(&self, server: &TestServer) -> Process {
        let (url, state, root) = (server.url(), self.path("state"), self.path("root"));
        let args = ["--server", &url, "--client-id", "client-1", "--allow", &root];
        let args = [&args[..], &["--state-dir", &state, "--status-port", "0"]].concat();
        let log = self.dir.path().join("client.log");
        Process::start(env!("CARGO_BIN_EXE_fts-client"), &log, &args, &[])
    }

    fn audit(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fts-client"));
        command.arg("audit").args(words).args(["--state-dir", &self.path("state")]);
        command.env_clear().output().expect("it runs")
    }

    fn said(&self, words: &[&str]) -> String {
        let output = self.audit(words);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        format!("{}: {text}", output.status.code().expect("a code"))
    }
}

async fn client(server: &TestServer) -> Client {
    let request = GetClientRequest { client_id: "client-1".to_owned() };
    let answer = server.control().await.get_client(request).await.expect("known").into_inner();
    answer.client.expect("a client")
}

fn head(client: &Client) -> Option<AuditHead> {
    client.audit_head.parse().ok()
}

/// Waits until the server has noted this of the client.
async fn noted(server: &TestServer, wanted: impl Fn(&Client) -> bool) -> Client {
    let look = async {
        loop {
            let client = client(server).await;
            if wanted(&client) {
                return client;
            }
            common::process::pause();
        }
    };
    tokio::time::timeout(common::server::PATIENCE, look).await.expect("noted in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_site_sees_what_was_asked_and_served_and_proves_that_it_is_all() {
    let server = TestServer::start().await;
    let site = Site::new();
    let process = site.start(&server);
    server.online("client-1").await;
    let whole = server.trigger("client-1", &site.path("root/file")).await.id;
    server.follow(&whole, |t| t.state() == State::Complete).await;
    let refused = server.trigger("client-1", &site.path("secret")).await.id;
    server.follow(&refused, |t| t.state() == State::Failed).await;
    let (client_id, path) = ("client-1".to_owned(), site.path("secret"));
    let ask = ExplainPathRequest { client_id, path };
    server.control().await.explain_path(ask).await.expect("answered");

    process.signal(rustix::process::Signal::TERM);
    assert_eq!(process.wait().0.code(), Some(0));

    let shown = site.said(&["show"]);
    for (event, about) in
        [("start", "client-1"), ("serve", &*whole), ("end", &*whole), ("refuse", &*refused)]
    {
        let is_it = |line: &str| line.contains(&format!("Z {event} ")) && line.contains(about);
        assert!(shown.lines().any(is_it), "{event}: {shown}");
    }
    assert!(shown.contains("beneath no root"), "{shown}");
    let explained = format!("explain {}; denied: \"it is beneath no root", site.path("secret"));
    assert!(shown.contains(&explained), "{shown}");
    let json = site.said(&["show", "--json"]);
    assert_eq!(json.lines().count(), shown.lines().count());
    let told = client(&server).await.audit_head;
    let verified = site.said(&["verify", "--head", &told]);
    assert!(verified.starts_with("0: whole: lines 1 to "), "{told}: {verified}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_sees_an_audit_that_goes_back() {
    let heartbeat = Duration::from_secs(1);
    let server = TestServer::start_with(Setup { heartbeat, ..Setup::default() }).await;
    let site = Site::new();
    let process = site.start(&server);
    server.online("client-1").await;
    let whole = server.trigger("client-1", &site.path("root/file")).await.id;
    server.follow(&whole, |t| t.state() == State::Complete).await;
    process.kill();
    let again = site.start(&server);
    let is_grown = |c: &Client| head(c).is_some_and(|head| head.seq > 1);
    let before = noted(&server, is_grown).await;
    again.kill();
    assert_eq!(before.audit_back_time, None);

    // Somebody takes a line away.
    let current = site.dir.path().join("state/audit/audit.jsonl");
    let text = fs::read_to_string(&current).expect("text");
    let lines: Vec<_> = text.lines().collect();
    fs::write(&current, format!("{}\n", lines[0])).expect("written");
    let verified = site.said(&["verify"]);
    assert!(verified.starts_with("0: whole"), "by itself it is: {verified}");
    let verified = site.said(&["verify", "--head", &before.audit_head]);
    assert!(verified.starts_with("1: PROBLEM"), "{verified}");

    let third = site.start(&server);
    let after = noted(&server, |c| c.audit_back_time.is_some()).await;
    assert_ne!(after.audit_head, before.audit_head);
    third.kill();
    server.stop().await;
}

#[tokio::test]
async fn a_hello_that_comes_late_is_no_audit_that_goes_back() {
    let server = TestServer::start().await;
    let at = |seq| AuditHead { seq, hash: blake3::hash(b"a line").into() };
    let mut session = RawSession::open(&server, "client-1").await;
    session.told(at(7)).await;

    // Of a dial that the client gave up before it wrote more.
    let late = Hello { audit_head: Some(at(5)), ..hello("client-1", InstanceId::generate()) };
    let mut late = RawSession::open_as(&server, late).await;

    late.heard(Vec::new()).await;
    let before = client(&server).await;
    assert_eq!((head(&before), before.audit_back_time), (Some(at(7)), None));
    // Who lives there tells it with its first heartbeat.
    late.told(at(5)).await;
    let after = client(&server).await;
    assert_eq!(head(&after), Some(at(5)));
    assert!(after.audit_back_time.is_some());
    server.stop().await;
}

#[test]
fn without_an_audit_there_is_nothing_to_verify() {
    let site = Site::new();
    let said = site.said(&["verify"]);
    assert!(said.starts_with("1: ") && said.contains("there is none"), "{said}");
    let bad = site.audit(&["verify", "--head", "12"]);
    assert_eq!(bad.status.code(), Some(2));
}
