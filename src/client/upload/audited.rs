//! What is sent is in the client's own audit first; and so is what was refused, in time.

use std::{collections::HashSet, fs, time::Duration};

use serde_json::Value;
use tonic::Status;

use super::*;
use crate::{
    client::fake_server::{Client, FakeServer, FakeSession},
    ids::{Epoch, SessionEpoch, TransferId},
    transfer::Consistency,
    wire::session::{FromClient, FromServer},
};

/// With heartbeats as often as there can be.
async fn begin(server: &mut FakeServer, client: &Client) -> FakeSession {
    fs::write(client.temp.path().join("root/file"), "some bytes").expect("written");
    let session = server.hello().await;
    let (heartbeat, silence) = (limits::HEARTBEAT_MIN, Duration::from_secs(60));
    session.say(FromServer::Welcome { session: SessionEpoch(1), heartbeat, silence }).await;
    session
}

fn command(client: &Client, name: &str) -> Command {
    let path = client.temp.path().join(name);
    Command {
        attempt: AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) },
        path: Ok(Some(path.to_str().expect("text").parse().expect("a path"))),
        consistency: Consistency::Auto,
        size_max: 1 << 30,
        resume: None,
        operator: Some("alice".parse().expect("a name")),
        rate_max: None,
        signature: None,
    }
}

/// Returns what the audit says of a transfer.
fn lines(client: &Client, command: &Command) -> Vec<Value> {
    let path = client.temp.path().join("state/audit/audit.jsonl");
    let text = fs::read_to_string(path).expect("there");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let transfer = command.attempt.transfer.to_string();
    lines.filter(|line| line["transfer"] == transfer.as_str()).collect()
}

#[tokio::test]
async fn no_byte_leaves_before_its_line_is_in_the_audit() {
    let mut server = FakeServer::start();
    let client = Client::start_without_audit(&server);
    let mut session = begin(&mut server, &client).await;
    let command = command(&client, "root/file");
    session.say(FromServer::Download(command.clone())).await;

    let mut beats = 0;
    while beats < 5 {
        let message = session.next().await.expect("the session goes on");
        beats += u32::from(matches!(message, FromClient::Heartbeat { .. }));
    }
    assert!(!server.has_upload());
    assert_eq!(lines(&client, &command), Vec::<Value>::new());
    client.audit.start();
    let mut upload = server.upload().await;

    let noted = lines(&client, &command);
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert_eq!((&noted[0]["event"], &noted[0]["size"]), (&"serve".into(), &10.into()));
    while upload.next().await.is_some() {}
    upload.answer(Err(Status::aborted("enough")));
    session.report().await;
    drop(session);
    client.stop().await;
}

#[tokio::test]
async fn what_cannot_be_put_on_record_is_not_sent() {
    let mut server = FakeServer::start();
    let client = Client::start(&server);
    let mut session = begin(&mut server, &client).await;
    let current = client.temp.path().join("state/audit/audit.jsonl");
    fs::remove_file(&current).expect("removed");
    fs::create_dir(&current).expect("made");

    session.say(FromServer::Download(command(&client, "root/file"))).await;

    let report = tokio::select! {
        report = session.report() => report,
        _ = server.upload() => panic!("it was sent"),
    };
    assert_eq!(report.outcome, Outcome::Failed(FailReason::Io));
    assert!(report.detail.starts_with("the client cannot write its audit"), "{report:?}");
    assert!(!server.has_upload());
    drop(session);
    client.stop().await;
}

#[tokio::test]
async fn what_was_served_and_refused_is_on_record_with_how_it_ended() {
    let mut server = FakeServer::start();
    let client = Client::start(&server);
    fs::write(client.temp.path().join("secret"), "a canary").expect("written");
    let mut session = begin(&mut server, &client).await;
    let root = client.temp.path().join("root");
    fs::rename(root.join("file"), root.join("target")).expect("renamed");
    std::os::unix::fs::symlink("target", root.join("file")).expect("linked");
    let commands = ["root/file", "root/none", "secret"].map(|name| command(&client, name));
    for command in &commands {
        session.say(FromServer::Download(command.clone())).await;
    }
    let mut upload = server.upload().await;
    while upload.next().await.is_some() {}
    upload.answer(Err(Status::aborted("enough")));
    // Each is told again until it is acknowledged.
    let mut ended = HashSet::new();
    while ended.len() < commands.len() {
        ended.insert(session.report().await.attempt);
    }

    client.audit.close().await;

    let events = |command| {
        let lines = lines(&client, command).into_iter();
        lines.map(|line| line["event"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    let [whole, missing, denied] = &commands;
    // What a link led to.
    let opened = client.temp.path().join("root/target").canonicalize().expect("a path");
    assert_eq!(lines(&client, whole)[0]["file"], opened.to_str().expect("text"));
    assert_eq!(events(whole), ["serve", "end"]);
    assert_eq!((events(missing), events(denied)), (vec!["refuse".into()], vec!["refuse".into()]));
    let end = &lines(&client, whole)[1];
    assert_eq!((&end["outcome"], &end["sent"]), (&"broken".into(), &10.into()));
    // Here, and only here, it says why.
    let why = lines(&client, denied)[0]["why"].clone();
    assert!(why.as_str().is_some_and(|why| why.contains("beneath no root")), "{why}");
    assert_eq!(lines(&client, missing)[0]["why"], "no such file");
    for line in commands.iter().flat_map(|command| lines(&client, command)) {
        assert_eq!(line["operator"], "alice", "{line}");
    }
    drop(session);
    client.stop().await;
}
