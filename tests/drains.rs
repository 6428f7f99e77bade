//! A server told to stop ends in bounded time, whatever its peers do; running transfers resume.

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{
    bytes,
    client::TestClient,
    process::ServerProcess,
    raw::{RawSession, RawUpload, receipt, upload},
    server::{Setup, TestServer},
};
use fts::{
    limits::CHUNK_BYTES,
    rate::Rate,
    wire::{
        proto::{State, receipt::Status},
        session::FromServer,
    },
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

fn hasty() -> Setup {
    Setup { drain_wait: Duration::from_millis(300), ..Setup::default() }
}

#[tokio::test]
async fn an_idle_session_is_told_and_does_not_hold_the_server() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    server.shutdown.drain();
    assert!(matches!(session.next().await, FromServer::Drain { .. }));
    assert!(matches!(session.from_server.message().await, Ok(None)));
    let since = Instant::now();
    drop(session);
    server.stop().await;
    assert!(since.elapsed() < fts::limits::DRAIN_WAIT, "it did not wait for a time-out");
}

#[tokio::test]
async fn an_upload_that_runs_may_finish() {
    let server = TestServer::start().await;
    let data = bytes(2 * CHUNK_BYTES, 1);
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let header = session.command().await.attempt;
    let header = session.header(header, &data);
    let mut raw = RawUpload::open(server.address).await;
    let mut messages = upload(&header, &data);
    let rest = messages.split_off(2);
    raw.send_all(messages).await;
    server.follow(&transfer.id, |t| t.state() == State::Receiving).await;

    server.shutdown.drain();
    raw.send_all(rest).await;
    let answer = raw.answer().await.expect("taken");
    let dir = server.stop().await;

    assert_eq!(receipt(&answer), Status::Complete);
    let server = TestServer::start_in(dir, Setup::default(), 0).await;
    assert!(server.landed(&transfer.id).await.1 == data);
    server.stop().await;
}

#[tokio::test]
async fn an_upload_that_stalls_is_cut_and_resumes_on_the_next_server() {
    let server = TestServer::start_with(hasty()).await;
    let data = bytes(2 * CHUNK_BYTES, 2);
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, &data).into_iter().take(2)).await;
    server.follow(&transfer.id, |t| t.state() == State::Receiving).await;

    let dir = server.stop().await;
    assert!(raw.answer().await.is_err());

    let server = TestServer::start_in(dir, Setup::default(), 0).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let next = session.command().await.attempt;
    assert!(next.epoch > attempt.epoch);
    let header = session.header(next, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, &data)).await;
    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    assert!(server.landed(&transfer.id).await.1 == data);
    server.stop().await;
}

#[tokio::test]
async fn a_restart_under_fifty_running_transfers_fails_none() {
    let (transfers, size) = (50, 3 * CHUNK_BYTES + 1);
    let server = TestServer::start_with(hasty()).await;
    let port = server.address.port();
    let root = tempfile::TempDir::new().expect("a directory");
    let client = TestClient::start_with(&server.url(), "client-1", &[root.path()], |config| {
        config.uploads_max = 64;
        config.rate_max = Some(Rate::try_from(12_000_000).expect("enough"));
    });
    server.online("client-1").await;
    let mut asked = Vec::new();
    for i in 0..transfers {
        let (path, data) = (root.path().join(i.to_string()), bytes(size, i));
        std::fs::write(&path, &data).expect("written");
        let id = server.trigger("client-1", path.to_str().expect("text")).await.id;
        asked.push((id, data));
    }
    for (id, _) in &asked {
        server.shown(id, |t| t.bytes_done >= CHUNK_BYTES as u64).await;
    }

    let dir = server.stop().await;
    let server = TestServer::start_in(dir, Setup::default(), port).await;

    let mut went_on = 0;
    for (id, data) in asked {
        let (transfer, landed) = server.landed(&id).await;
        assert!(landed == data);
        let waste = transfer.bytes_received - size as u64;
        assert!(waste <= CHUNK_BYTES as u64, "{waste} bytes were sent twice");
        went_on += u32::from(transfer.attempts > 1);
    }
    assert!(went_on > 0, "the restart met none of them");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_peer_that_never_finishes_its_preface_does_not_hold_the_server() {
    let server = TestServer::start_with(hasty()).await;
    let mut silent = Vec::new();
    for said in
        [&b""[..], b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\nHo"]
    {
        let mut stream = TcpStream::connect(server.address).await.expect("connected");
        stream.write_all(said).await.expect("sent");
        silent.push(stream);
    }
    // Until the server has accepted them: they are before this one in the queue.
    server.control().await;

    let stopped = tokio::time::timeout(Duration::from_secs(20), server.stop());

    assert!(stopped.await.is_ok(), "it ended although they did not");
}

#[tokio::test]
async fn a_draining_server_takes_no_new_transfer() {
    let server = TestServer::start().await;
    drop(RawSession::open(&server, "client-1").await);
    server.shutdown.drain();
    let request = fts::transfer::Request {
        client: "client-1".parse().expect("an id"),
        operator: None,
        path: None,
        request_id: None,
        consistency: fts::transfer::Consistency::Auto,
        rate_max: None,
        signed: None,
        deadline: fts::limits::DEADLINE,
    };
    let refused = Arc::clone(&server.coordinator).trigger(request).await.expect_err("refused");
    assert_eq!(refused.reason(), fts::status::Reason::Draining);
    server.stop().await;
}

#[test]
fn sigterm_ends_the_program_cleanly() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = ServerProcess::start(dir.path(), 0, &[]);
    let _held = std::net::TcpStream::connect(server.address).expect("connected");

    server.process.signal(rustix::process::Signal::TERM);
    let (status, took) = server.process.wait();

    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(45));
}

#[test]
fn a_second_server_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let _server = ServerProcess::start(dir.path(), 0, &[]);
    let data = dir.path().join("data");
    let args = ["--listen", "127.0.0.1:0", "--data-dir", data.to_str().expect("text")];
    let log = dir.path().join("second.log");

    let second =
        common::process::Process::start(env!("CARGO_BIN_EXE_fts-server"), &log, &args, &[]);

    let (status, _) = second.wait();
    assert_eq!(status.code(), Some(78));
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("in use by another server"), "{said}");
}
