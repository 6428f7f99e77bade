//! `--keep` and `--keep-bytes`: bytes go, records stay. Without them nothing goes.

use std::{path::Path, time::Duration};

use fts::{server::coordinator::Retention, wire::proto::Transfer};
use tokio::time::timeout;

use crate::{
    common::{
        http::get,
        raw::RawSession,
        server::{PATIENCE, Setup, TestServer},
    },
    fixture::land,
};

async fn keeping(keep: Option<Duration>, keep_bytes: Option<u64>) -> TestServer {
    let retention = Retention { keep, keep_bytes };
    TestServer::start_with(Setup { retention, ..Setup::default() }).await
}

async fn sweep(server: &TestServer) {
    server.coordinator.retain().await.expect("swept");
}

async fn is_kept(server: &TestServer, landed: &Transfer) -> bool {
    let content = get(server.address, &format!("/transfers/{}/content", landed.id)).await;
    let record = get(server.address, &format!("/transfers/{}", landed.id)).await.json();
    assert_eq!(record["state"], "COMPLETE");
    assert_eq!(record["blake3"], landed.digest);
    let kept = content.status == 200;
    if !kept {
        assert_eq!((content.status, &*content.problem()), (409, "NO_CONTENT"));
    }
    assert_eq!(record["content_deleted"], !kept);
    assert_eq!(record.get("location").is_some(), kept);
    assert_eq!(Path::new(&landed.location).exists(), kept);
    kept
}

#[tokio::test]
async fn what_is_too_old_goes_and_its_record_stays() {
    let server = keeping(Some(Duration::ZERO), None).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let landed = land(&server, &mut session, "/raw", b"data").await;

    // It is older than nothing as soon as a millisecond has passed.
    let gone = async {
        while !server.transfer(&landed.id).await.content_deleted {
            sweep(&server).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("it went");

    assert!(!is_kept(&server, &landed).await);
    server.stop().await;
}

#[tokio::test]
async fn what_is_young_stays() {
    let server = keeping(Some(Duration::from_secs(3600)), None).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let landed = land(&server, &mut session, "/raw", b"data").await;
    sweep(&server).await;
    assert!(is_kept(&server, &landed).await);
    server.stop().await;
}

#[tokio::test]
async fn the_oldest_go_when_there_are_too_many_bytes() {
    let server = keeping(None, Some(25)).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let mut landed = Vec::new();
    for _ in 0..4 {
        landed.push(land(&server, &mut session, "/raw", b"0123456789").await);
    }

    sweep(&server).await;

    let mut kept = Vec::new();
    for each in &landed {
        kept.push(is_kept(&server, each).await);
    }
    assert_eq!(kept, [false, false, true, true]);
    server.stop().await;
}

#[tokio::test]
async fn as_many_bytes_as_are_kept_stay() {
    let server = keeping(None, Some(20)).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let older = land(&server, &mut session, "/raw", b"0123456789").await;
    let newer = land(&server, &mut session, "/raw", b"0123456789").await;

    sweep(&server).await;

    assert!(is_kept(&server, &older).await && is_kept(&server, &newer).await);
    server.stop().await;
}

#[tokio::test]
async fn by_default_everything_stays() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let landed = land(&server, &mut session, "/raw", b"data").await;
    sweep(&server).await;
    assert!(is_kept(&server, &landed).await);
    server.stop().await;
}
