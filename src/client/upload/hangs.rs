//! A disk that does not answer, as one of a dead NFS server: it costs its own transfer, and nothing
//! else.

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tonic::Status;

use super::*;
use crate::{
    client::{
        config::Shared,
        fake_server::{Client, FakeServer, FakeSession},
        policy::Policy,
        state_dir::StateDir,
    },
    ids::{Epoch, SessionEpoch, TransferId},
    transfer::Consistency,
    wire::session::{FromClient, FromServer},
};

/// With heartbeats as often as there can be.
async fn begin(hangs: &str) -> (FakeServer, Client, FakeSession) {
    let mut server = FakeServer::start();
    let client = Client::start(&server);
    for name in ["hung", "good"] {
        fs::write(client.temp.path().join("root").join(name), name).expect("written");
    }
    fs::write(client.temp.path().join("root").join(hangs), "").expect("written");
    let session = server.hello().await;
    let (heartbeat, silence) = (limits::HEARTBEAT_MIN, Duration::from_secs(60));
    session.say(FromServer::Welcome { session: SessionEpoch(1), heartbeat, silence }).await;
    (server, client, session)
}

fn command(client: &Client, name: &str) -> Command {
    let path = client.temp.path().join("root").join(name);
    Command {
        attempt: AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) },
        path: Ok(Some(path.to_str().expect("text").parse().expect("a path"))),
        consistency: Consistency::Auto,
        size_max: 1 << 30,
        resume: None,
        operator: None,
        rate_max: None,
        signature: None,
    }
}

/// Returns the report of this attempt, and how many heartbeats came before it.
async fn report(session: &mut FakeSession, attempt: AttemptId) -> (Report, u32) {
    let mut beats = 0;
    loop {
        match session.next().await.expect("the session goes on") {
            FromClient::Report(report) if report.attempt == attempt => return (report, beats),
            FromClient::Heartbeat { .. } => beats += 1,
            _ => {}
        }
    }
}

/// While one file hangs, the other one is sent and heartbeats go on; and then it has failed.
async fn costs_its_own_transfer(hangs: &str) {
    let (mut server, client, mut session) = begin(hangs).await;
    let begun = Instant::now();
    let (hung, good) = (command(&client, "hung"), command(&client, "good"));
    session.say(FromServer::Download(hung.clone())).await;
    session.say(FromServer::Download(good.clone())).await;

    let mut upload = server.upload().await;
    let Some(Upload::Header(mut header)) = upload.next().await else { panic!("no header") };
    // Held, because an upload that is dropped has ended.
    let mut held = None;
    if header.attempt == hung.attempt {
        held = Some(std::mem::replace(&mut upload, server.upload().await));
        let Some(Upload::Header(next)) = upload.next().await else { panic!("no header") };
        header = next;
    }
    assert_eq!(header.attempt, good.attempt);
    while upload.next().await.is_some() {}
    upload.answer(Err(Status::aborted("enough")));
    report(&mut session, good.attempt).await;
    assert!(begun.elapsed() < limits::READ_WAIT, "{:?}", begun.elapsed());

    let (report, beats) = report(&mut session, hung.attempt).await;
    assert_eq!(report.outcome, Outcome::Failed(FailReason::Io));
    assert!(report.detail.ends_with("the client's disk did not answer in time"), "{report:?}");
    assert!(begun.elapsed() >= limits::READ_WAIT && beats > 3, "{beats} heartbeats");
    fs::remove_file(client.temp.path().join("root").join(hangs)).expect("removed");
    drop((session, held));
    client.stop().await;
}

#[tokio::test]
async fn a_read_that_hangs_costs_its_own_transfer() {
    costs_its_own_transfer("hung.read-hangs").await;
}

#[tokio::test]
async fn an_open_that_hangs_costs_its_own_transfer() {
    costs_its_own_transfer("hung.open-hangs").await;
}

#[tokio::test]
async fn questions_about_a_disk_that_hangs_leave_uploads_their_places() {
    let server = FakeServer::start();
    let temp = tempfile::tempdir().expect("a directory");
    let path = temp.path().join("hung");
    let hangs = temp.path().join("hung.open-hangs");
    fs::write(&path, "hung").expect("written");
    fs::write(&hangs, "").expect("written");
    let parse = |path: &std::path::Path| path.to_str().expect("text").parse().expect("a path");
    let state = Arc::new(StateDir::open(&temp.path().join("state")).expect("free"));
    let audit = Audit::open(&state).expect("opened");
    let shared = Shared::Policy(Policy::of_roots(vec![parse(temp.path())]));
    let sources = watch::Sender::new(Arc::new(Source::new(&shared, state)));
    let (data, instance) = (DataConnections::new(&server.dialer), InstanceId::generate());
    let uploader = Uploader::new(sources.subscribe(), data, instance, Limiter::new(None), audit);

    // Whoever asked has gone; the disk has not answered.
    for _ in 0..2 * limits::QUESTIONS_MAX {
        let question = uploader.explain(Ok(parse(&path)), None);
        let _ = timeout(Duration::from_millis(1), question).await;
    }

    assert_eq!(uploader.readers.available_permits(), limits::READERS_MAX);
    let refused = uploader.explain(Ok(parse(&path)), None).await;
    assert_eq!(refused.detail, READS_HANG);
    fs::remove_file(hangs).expect("removed");
}
