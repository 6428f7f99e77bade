//! The client's program, as a site runs it: killed in the middle, started twice, cloned. The server
//! needs a thread of its own, because waiting for another process blocks.

mod common;

use std::{fs, path::Path, time::Duration};

use common::{bytes, process::Process, server::TestServer};
use fts::wire::proto::{Presence, State};
use tempfile::TempDir;

struct Site {
    dir: TempDir,
    url: String,
}

impl Site {
    fn new(server: &TestServer) -> Self {
        let dir = TempDir::new().expect("a directory");
        fs::create_dir(dir.path().join("shared")).expect("made");
        Self { dir, url: server.url() }
    }

    fn file(&self, name: &str, data: &[u8]) -> String {
        let path = self.dir.path().join("shared").join(name);
        fs::write(&path, data).expect("written");
        path.to_str().expect("text").to_owned()
    }

    /// Starts the client's program, with its state in `state`.
    fn client(&self, state: &str, log: &str) -> Process {
        let text = |name: &str| self.dir.path().join(name).to_str().expect("text").to_owned();
        let (shared, state) = (text("shared"), text(state));
        let args = [
            "--server",
            &self.url,
            "--client-id",
            "client-1",
            "--allow",
            &shared,
            "--state-dir",
            &state,
            "--status-port",
            "0",
        ];
        Process::start(env!("CARGO_BIN_EXE_fts-client"), &self.dir.path().join(log), &args, &[])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_killed_in_the_middle_is_never_complete_and_delivers_when_it_is_back() {
    let server = TestServer::start().await;
    let site = Site::new(&server);
    // Mostly a hole, so that it is long to send and cheap to make.
    let path = site.file("big", &bytes(5_000_000, 1));
    fs::File::options()
        .write(true)
        .open(&path)
        .expect("there")
        .set_len(600_000_000)
        .expect("grown");
    let client = site.client("state", "1.log");
    server.online("client-1").await;
    let id = server.trigger("client-1", &path).await.id;
    server.follow(&id, |t| t.state() == State::Receiving).await;

    client.kill();

    let after = server.follow(&id, |t| t.state() != State::Receiving).await;
    assert_ne!(after.state(), State::Complete, "{after:?}");
    let _client = site.client("state", "2.log");
    let transfer = server.ended(&id).await;
    assert_eq!(transfer.state(), State::Complete, "{transfer:?}");
    assert_eq!(blake3_of(&path), blake3_of(&transfer.location));
    assert_eq!(blake3_of(&path), transfer.digest);
    server.stop().await;
}

fn blake3_of(path: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path).expect("there")).expect("read");
    hasher.finalize().to_hex().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_state_is_refused_in_words() {
    let server = TestServer::start().await;
    let site = Site::new(&server);
    let _first = site.client("state", "1.log");
    server.online("client-1").await;

    let second = site.client("state", "2.log");

    let (status, _) = second.wait();
    assert_eq!(status.code(), Some(78));
    let said = fs::read_to_string(site.dir.path().join("2.log")).expect("a log");
    assert!(said.contains("fts-client"), "{said}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_takes_over_once_and_the_older_one_stays_away() {
    let server = TestServer::start().await;
    let site = Site::new(&server);
    let path = site.file("f", b"once");
    let mut first = site.client("state-1", "1.log");
    server.online("client-1").await;

    let _second = site.client("state-2", "2.log");
    first.logged("share this client id");

    // The older one stays away, so the epoch does not grow any more.
    let epoch = server.online("client-1").await.session_epoch;
    let id = server.trigger("client-1", &path).await.id;
    let (transfer, landed) = server.landed(&id).await;
    assert_eq!(landed, b"once");
    assert_eq!((transfer.attempts, transfer.epoch), (1, 1), "no transfer runs twice");
    let client = server.online("client-1").await;
    assert_eq!((client.session_epoch, client.presence()), (epoch, Presence::Online));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_told_to_stop_ends_cleanly_and_says_goodbye() {
    let server = TestServer::start().await;
    let site = Site::new(&server);
    let client = site.client("state", "1.log");
    server.online("client-1").await;

    client.signal(rustix::process::Signal::TERM);
    let (status, took) = client.wait();

    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(45));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_file_is_made_once_and_delivered() {
    let server = TestServer::start().await;
    let home = TempDir::new().expect("a directory");
    let home_text = home.path().to_str().expect("text");
    let env = [("HOME", home_text), ("SERVER_URL", server.url().leak()), ("CLIENT_PORT", "0")];
    let start = |id: &str| {
        let log = home.path().join(format!("{id}.log"));
        let args = ["--client-id", id];
        Process::start(env!("CARGO_BIN_EXE_fts-client"), &log, &args, &env)
    };
    let _both = (start("client-1"), start("client-2"));
    server.online("client-1").await;
    server.online("client-2").await;

    for client in ["client-1", "client-2"] {
        let id = server.trigger(client, "").await.id;
        let (transfer, landed) = server.landed(&id).await;
        let source = fs::read(Path::new(&transfer.source_path)).expect("there");
        assert_eq!(landed.len(), 100_000_000);
        assert!(landed == source);
        assert!(transfer.source_path.ends_with("/file_to_download.txt"));
    }
    server.stop().await;
}
