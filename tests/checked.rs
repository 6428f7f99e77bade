//! What a crash leaves is settled by `fts-server check` as by every start, and what people must
//! know is told.

mod common;

use std::{fs, path::Path, process::Command};

use common::{
    bytes,
    client::TestClient,
    raw::{RawSession, RawUpload, chunks},
    server::{TestServer, is_final},
};
use fts::{
    limits::CHUNK_BYTES,
    wire::{proto::State, session::Upload},
};

/// Runs the program, and returns its exit code and what it says.
fn check(dir: &Path, scrub: bool) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fts-server"));
    command.args(["check", "--data-dir"]).arg(dir).env("RUST_LOG", "error");
    if scrub {
        command.arg("--scrub");
    }
    let output = command.output().expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("text"))
}

/// A data directory with three landed files, and a transfer that is cut.
async fn left_behind() -> (std::sync::Arc<tempfile::TempDir>, Vec<String>, String) {
    let server = TestServer::start().await;
    let root = tempfile::TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[root.path()]).await;
    let mut landed = Vec::new();
    for size in [0, 10, CHUNK_BYTES + 1] {
        let path = root.path().join(size.to_string());
        fs::write(&path, bytes(size, 1)).expect("written");
        let id = server.trigger("client-1", path.to_str().expect("text")).await.id;
        landed.push(server.landed(&id).await.0.location);
    }
    client.stop().await;
    let mut session = RawSession::open(&server, "client-2").await;
    let id = server.trigger("client-2", "/raw").await.id;
    let data = bytes(4 * CHUNK_BYTES, 2);
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header)).await;
    raw.send_all(chunks(&data).into_iter().take(2)).await;
    server.shown(&id, |t| t.bytes_done == 2 * CHUNK_BYTES as u64).await;
    (server.abort().await, landed, id)
}

#[tokio::test]
async fn a_data_directory_that_is_whole_has_no_problems() {
    let (dir, _, id) = left_behind().await;
    for scrub in [false, true] {
        let (code, text) = check(dir.path(), scrub);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("1 partial files kept"), "{text}");
        assert!(text.contains("3 landed files") && text.contains("0 problems"), "{text}");
    }
    // And a server goes on with it.
    let server = TestServer::start_in(dir, common::server::Setup::default(), 0).await;
    let transfer = server.transfer(&id).await;
    assert_eq!(transfer.bytes_kept, 2 * CHUNK_BYTES as u64);
    assert!(!is_final(transfer.state()));
    assert_ne!(transfer.state(), State::Receiving);
}

#[tokio::test]
async fn what_is_lost_cut_damaged_or_unknown_is_told() {
    let (dir, landed, _) = left_behind().await;
    fs::remove_file(&landed[0]).expect("removed");
    fs::write(&landed[1], b"short").expect("written");
    let big = Path::new(&landed[2]);
    let mut data = fs::read(big).expect("there");
    data[7] ^= 1;
    fs::write(big, data).expect("written");
    let strange = big.with_file_name("01a204d6-f09c-7457-b602-822a83c84fbc.1");
    fs::write(&strange, b"?").expect("written");

    let (code, text) = check(dir.path(), false);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("its file is gone"), "{text}");
    assert!(text.contains("its file has 5 bytes, not 10"), "{text}");
    assert!(text.contains("a landed file without a record"), "{text}");
    assert!(text.contains("3 problems"), "{text}");
    assert!(strange.exists(), "nothing that somebody may want is removed");

    let (code, text) = check(dir.path(), true);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("its file has the BLAKE3") && text.contains("4 problems"), "{text}");
}

#[tokio::test]
async fn a_check_beside_a_running_server_is_refused() {
    let dir = tempfile::TempDir::new().expect("a directory");
    let server = common::process::ServerProcess::start(dir.path(), 0, &[]);
    let (code, text) = check(&dir.path().join("data"), false);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("in use by another server"), "{text}");
    drop(server);

    let (code, text) = check(&dir.path().join("nothing"), false);
    assert_eq!(code, Some(78), "{text}");
    assert!(!dir.path().join("nothing").exists(), "a check makes nothing");
}
