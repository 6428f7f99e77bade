//! An operator asks a client whether its own policy lets a file be read.

mod common;

use std::fs;

use common::{client::TestClient, raw::RawSession, server::TestServer};
use fts::{
    status::{Reason, reason},
    wire::{
        proto::{ExplainPathRequest, ExplainPathResponse, PathVerdict},
        session::FromServer,
    },
};
use tempfile::TempDir;

async fn explain(
    server: &TestServer,
    client: &str,
    path: &str,
) -> Result<ExplainPathResponse, Option<Reason>> {
    let request = ExplainPathRequest { client_id: client.to_owned(), path: path.to_owned() };
    let answer = server.control().await.explain_path(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| reason(&status))
}

#[tokio::test]
async fn the_client_says_what_its_policy_does_and_nothing_of_what_is_outside() {
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    fs::create_dir(path("root")).expect("made");
    fs::write(path("root/file"), "x").expect("written");
    fs::write(path("secret"), "a canary").expect("written");
    std::os::unix::fs::symlink(path("secret"), path("root/out")).expect("linked");
    let client = TestClient::start(&server, "client-1", &[&dir.path().join("root")]).await;
    let ask = async |name: &str| explain(&server, "client-1", &path(name)).await.expect("answered");

    let allowed = ask("root/file").await;
    assert_eq!((allowed.verdict(), allowed.rule), (PathVerdict::Allowed, path("root")));
    let missing = ask("root/none").await;
    assert_eq!((missing.verdict(), &*missing.detail), (PathVerdict::Failed, "no such file"));
    let denied = ask("secret").await;
    assert_eq!((denied.verdict(), &*denied.rule), (PathVerdict::Denied, ""));
    for other in ["nothing", "root/out", "secret/x"] {
        assert_eq!(ask(other).await, denied, "{other}");
    }
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn who_is_not_there_is_not_waited_for() {
    let server = TestServer::start().await;
    assert_eq!(explain(&server, "client-1", "/a").await, Err(Some(Reason::UnknownClient)));
    assert_eq!(explain(&server, "client-1", "a").await, Err(Some(Reason::InvalidArgument)));

    let mut session = RawSession::open(&server, "client-1").await;
    let asked = explain(&server, "client-1", "/a");
    let leave = async {
        // Once it was asked it leaves, without a word.
        while !matches!(session.next().await, FromServer::Explain { .. }) {}
        drop(session);
    };
    let (answer, ()) = tokio::join!(asked, leave);
    assert_eq!(answer, Err(Some(Reason::ClientOffline)));
    assert_eq!(explain(&server, "client-1", "/a").await, Err(Some(Reason::ClientOffline)));
    server.stop().await;
}
