//! What is asked for arrives, equal, whatever its size and name, from the real client.

mod common;

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{bytes, client::TestClient, edge_sizes, server::TestServer};
use fts::wire::proto::{Consistency, Delivered, FailReason, State, TriggerDownloadRequest};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[tokio::test]
async fn files_of_every_size_around_a_chunk() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    for size in edge_sizes() {
        let data = bytes(size, 1);
        let path = dir.path().join(format!("{size}"));
        fs::write(&path, &data).expect("written");

        let id = server.trigger("client-1", text(&path)).await.id;

        let (transfer, landed) = server.landed(&id).await;
        assert!(landed == data, "{size} bytes");
        assert_eq!(transfer.digest, blake3::hash(&data).to_hex().to_string());
        assert_eq!(transfer.delivered(), Delivered::Unchanged);
        assert_eq!(transfer.source_path, text(&path));
    }
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_hundred_megabytes() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let data = bytes(100_000_000, 2);
    let path = dir.path().join("big");
    fs::write(&path, &data).expect("written");

    let id = server.trigger("client-1", text(&path)).await.id;

    let (transfer, landed) = server.landed(&id).await;
    assert!(landed == data);
    assert_eq!(transfer.bytes_received, data.len() as u64, "no byte was sent twice");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn names_of_every_kind() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let names = [
        "with space",
        "ünïcödé-文件",
        "new\nline",
        "quote'\"`$(x)",
        "\u{202e}txt.exe",
        "-rf",
        "..x",
        "%2e%2e",
        "\\",
        &"n".repeat(255),
    ];
    for name in names {
        let path = dir.path().join(name);
        fs::write(&path, name).expect("written");

        let id = server.trigger("client-1", text(&path)).await.id;

        assert_eq!(server.landed(&id).await.1, name.as_bytes(), "{name:?}");
    }
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_name_that_is_not_unicode_is_out_of_reach_and_harms_nothing() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join(OsStr::from_bytes(b"\xff")), "x").expect("written");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let path = dir.path().join("\u{fffd}");

    let id = server.trigger("client-1", text(&path)).await.id;

    let failure = server.ended(&id).await.failure.expect("a reason");
    assert_eq!(failure.reason(), FailReason::SourceNotFound);
    client.stop().await;
    server.stop().await;
}

/// Three GiB of holes: what is read are zeros, and memory does not grow with it.
#[tokio::test]
#[ignore = "test-all: a large file"]
async fn three_gibibytes_sparse() {
    const SIZE: u64 = 3 << 30;
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let path = dir.path().join("sparse");
    let file = File::create(&path).expect("made");
    file.set_len(SIZE).expect("grown");
    file.write_all_at(b"end", SIZE - 3).expect("written");

    let id = server.trigger("client-1", text(&path)).await.id;

    let transfer = server.ended_within(&id, std::time::Duration::from_secs(300)).await;
    assert_eq!(transfer.state(), State::Complete, "{transfer:?}");
    assert_eq!(transfer.size, Some(SIZE));
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(&path).expect("there")).expect("read");
    assert_eq!(transfer.digest, hasher.finalize().to_hex().to_string());
    let mut landed = blake3::Hasher::new();
    landed.update_reader(File::open(&transfer.location).expect("there")).expect("read");
    assert_eq!(landed.finalize(), hasher.finalize());
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_log_that_grows_meanwhile_is_delivered_as_a_prefix() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let path = dir.path().join("log");
    let before = bytes(40_000_000, 3);
    fs::write(&path, &before).expect("written");
    let growing = Growing::start(&path);

    let id = server.trigger("client-1", text(&path)).await.id;
    let (transfer, landed) = server.landed(&id).await;
    growing.stop();

    assert_eq!(transfer.delivered(), Delivered::Prefix);
    let now = fs::read(&path).expect("read");
    assert!(landed.len() >= before.len() && now[..landed.len()] == landed[..]);
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn strict_refuses_a_log_that_grows() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let path = dir.path().join("log");
    fs::write(&path, bytes(40_000_000, 4)).expect("written");
    let growing = Growing::start(&path);
    let mut request = TriggerDownloadRequest {
        client_id: "client-1".to_owned(),
        path: text(&path).to_owned(),
        ..Default::default()
    };
    request.set_consistency(Consistency::Strict);

    let answer = server.control().await.trigger_download(request).await.expect("triggered");
    let id = answer.into_inner().transfer.expect("a transfer").id;
    let changed = |t: &fts::wire::proto::Transfer| {
        t.failure.as_ref().is_some_and(|f| f.reason() == FailReason::SourceChanged)
    };
    let transfer = server.follow(&id, changed).await;
    growing.stop();

    assert_ne!(transfer.state(), State::Complete);
    client.abort().await;
    server.stop().await;
}

/// Something that appends to a file until it is stopped.
struct Growing {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Growing {
    fn start(path: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut file = OpenOptions::new().append(true).open(path).expect("there");
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                file.write_all(b"one more line\n").expect("appended");
                std::thread::yield_now();
            }
        });
        Self { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic");
    }
}

#[tokio::test]
async fn two_clients_at_once() {
    let server = TestServer::start().await;
    let dirs = [TempDir::new().expect("a directory"), TempDir::new().expect("a directory")];
    let mut clients = Vec::new();
    let mut ids = Vec::new();
    for (i, dir) in dirs.iter().enumerate() {
        let name = format!("client-{i}");
        fs::write(dir.path().join("f"), bytes(5_000_000, i as u64)).expect("written");
        clients.push(TestClient::start(&server, &name, &[dir.path()]).await);
    }
    for (i, dir) in dirs.iter().enumerate() {
        let path = dir.path().join("f");
        ids.push(server.trigger(&format!("client-{i}"), text(&path)).await.id);
    }
    for (i, id) in ids.iter().enumerate() {
        let (transfer, landed) = server.landed(id).await;
        assert!(landed == bytes(5_000_000, i as u64));
        assert_eq!(transfer.client_id, format!("client-{i}"));
    }
    for client in clients {
        client.stop().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn twenty_transfers_of_one_client() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let mut ids = Vec::new();
    for i in 0..20 {
        let path = dir.path().join(i.to_string());
        fs::write(&path, bytes(300_000, i)).expect("written");
        ids.push(server.trigger("client-1", text(&path)).await.id);
    }
    for (i, id) in ids.iter().enumerate() {
        assert!(server.landed(id).await.1 == bytes(300_000, i as u64), "transfer {i}");
    }
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_finds_its_server_again_after_a_restart() {
    let server = TestServer::start().await;
    let port = server.address.port();
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let path = dir.path().join("f");
    fs::write(&path, b"after the restart").expect("written");

    let data = server.stop().await;
    let server = TestServer::start_in(data, common::server::Setup::default(), port).await;
    let id = server.trigger("client-1", text(&path)).await.id;

    assert_eq!(server.landed(&id).await.1, b"after the restart");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_ends_in_the_middle_is_no_failure() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let data = bytes(60_000_000, 5);
    let path = dir.path().join("f");
    fs::write(&path, &data).expect("written");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let id = server.trigger("client-1", text(&path)).await.id;
    server.follow(&id, |t| t.state() == State::Receiving).await;

    client.abort().await;
    let client = TestClient::start_at(&server.url(), "client-1", &[dir.path()]);

    assert!(server.landed(&id).await.1 == data);
    client.stop().await;
    server.stop().await;
}
