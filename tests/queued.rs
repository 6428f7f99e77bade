//! A transfer is on disk before its trigger is answered, and from then on it cannot be lost or
//! doubled.

mod common;

use std::sync::Arc;

use common::{
    bytes,
    process::ServerProcess,
    raw::{RawSession, RawUpload, receipt, upload},
    server::{Setup, TestServer},
};
use fts::{
    status::Reason,
    wire::{
        proto::{self, State, control_client::ControlClient, receipt::Status},
        session::Upload,
    },
};
use tokio::task::JoinSet;

fn request(path: &str, request_id: &str) -> proto::TriggerDownloadRequest {
    proto::TriggerDownloadRequest {
        client_id: "client-1".to_owned(),
        path: path.to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_same_request_twenty_times_at_once_is_one_transfer() {
    let server = Arc::new(TestServer::start().await);
    drop(RawSession::open(&server, "client-1").await);
    let mut calls = JoinSet::new();
    for _ in 0..20 {
        let server = Arc::clone(&server);
        calls.spawn(async move {
            let answer = server.control().await.trigger_download(request("/a", "r-1")).await;
            answer.expect("triggered").into_inner().transfer.expect("a transfer").id
        });
    }
    let mut ids = calls.join_all().await;
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");

    let other = server.control().await.trigger_download(request("/b", "r-1")).await;
    let refused = other.expect_err("another body");
    assert_eq!(fts::status::reason(&refused), Some(Reason::RequestIdConflict));
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
    Arc::into_inner(server).expect("ours alone").stop().await;
}

#[tokio::test]
async fn a_server_killed_after_the_answer_still_delivers() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = ServerProcess::start(dir.path(), 0, &[]);
    let port = server.address.port();
    let connect = || async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
        endpoint.expect("an address").connect().await.expect("connected")
    };
    common::raw::register(connect().await, "client-1").await;
    let mut control = ControlClient::new(connect().await);
    let answer = control.trigger_download(request("/raw", "")).await.expect("triggered");
    let id = answer.into_inner().transfer.expect("a transfer").id;

    server.process.kill();

    let data_dir = tempfile::TempDir::new().expect("a directory");
    copy(&dir.path().join("data"), data_dir.path());
    let server = TestServer::start_in(Arc::new(data_dir), Setup::default(), 0).await;
    assert_eq!(server.transfer(&id).await.state(), State::Queued);
    let data = bytes(100_000, 1);
    let mut session = RawSession::open(&server, "client-1").await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, &data)).await;
    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    assert!(server.landed(&id).await.1 == data);
    server.stop().await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            std::fs::create_dir(&target).expect("made");
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("copied");
        }
    }
}

#[tokio::test]
async fn a_server_stopped_in_the_middle_of_an_upload_offers_it_again() {
    let server = TestServer::start().await;
    let data = bytes(100_000, 2);
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header)).await;
    server.follow(&transfer.id, |t| t.state() == State::Receiving).await;

    let dir = server.abort().await;
    let server = TestServer::start_in(dir, Setup::default(), 0).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let again = session.command().await.attempt;

    assert_eq!(again.transfer.to_string(), transfer.id);
    assert!(again.epoch > attempt.epoch);
    assert!(common::files_beneath(&server.dir().join("files")).is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_watch_resumes_by_its_token_without_missing_a_change() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let watch = |token: String| proto::WatchTransfersRequest {
        transfer_id: transfer.id.clone(),
        client_id: String::new(),
        resume_token: token,
    };
    let mut control = server.control().await;
    let mut first =
        control.watch_transfers(watch(String::new())).await.expect("watched").into_inner();
    let current = first.message().await.expect("no error").expect("an event");
    let revision = current.transfer.expect("a transfer").revision;
    drop(first);

    let data = bytes(10, 3);
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, &data)).await;
    raw.answer().await.expect("taken");
    let again = control.watch_transfers(watch(current.resume_token)).await;
    let mut events = again.expect("watched").into_inner();
    let mut seen = Vec::new();
    while let Some(event) = events.message().await.expect("no error") {
        seen.push(event.transfer.expect("a transfer"));
    }

    let revisions: Vec<_> = seen.iter().map(|t| t.revision).filter(|r| *r > revision).collect();
    let last = seen.last().expect("events");
    assert_eq!(last.state(), State::Complete);
    let all: Vec<_> = (revision + 1..=last.revision).collect();
    assert_eq!(revisions, all, "every revision once, in order");
    server.stop().await;
}
