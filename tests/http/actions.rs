//! Cancel, retry, pause, resume: each answers with the transfer as it is then, or says why not.

use fts::wire::session::FromServer;
use serde_json::Value;

use crate::{
    common::{
        http::{Answer, get, post},
        raw::RawSession,
        server::TestServer,
    },
    fixture::{land, offline},
};

async fn act(server: &TestServer, id: &str, action: &str) -> Answer {
    post(server.address, &format!("/transfers/{id}/{action}")).await
}

/// Does it, and returns the transfer, which is the same as is on record.
async fn done(server: &TestServer, id: &str, action: &str) -> Value {
    let answer = act(server, id, action).await;
    assert_eq!(answer.status, 200, "{action}: {}", answer.text());
    let json = answer.json();
    assert_eq!(json["id"], id);
    assert_eq!(get(server.address, &format!("/transfers/{id}")).await.json(), json, "{action}");
    json
}

async fn refused(server: &TestServer, id: &str, action: &str) {
    let before = get(server.address, &format!("/transfers/{id}")).await.json();
    let answer = act(server, id, action).await;
    assert_eq!((answer.status, &*answer.problem()), (409, "WRONG_STATE"), "{action}");
    let after = get(server.address, &format!("/transfers/{id}")).await.json();
    assert_eq!(after, before, "a refused {action} changes nothing");
}

#[tokio::test]
async fn pause_resume_cancel_and_retry_of_what_waits() {
    let server = TestServer::start().await;
    offline(&server, RawSession::open(&server, "client-1").await).await;
    let id = server.trigger("client-1", "/raw").await.id;

    refused(&server, &id, "resume").await;
    refused(&server, &id, "retry").await;
    let paused = done(&server, &id, "pause").await;
    assert_eq!(
        (&paused["state"], &paused["waiting"]["reason"]),
        (&"QUEUED".into(), &"PAUSED".into())
    );
    refused(&server, &id, "pause").await;
    let resumed = done(&server, &id, "resume").await;
    assert_eq!(resumed["waiting"]["reason"], "CLIENT_OFFLINE");
    let cancelled = done(&server, &id, "cancel").await;
    assert_eq!(cancelled["state"], "CANCELLED");
    assert!(cancelled.get("waiting").is_none() && cancelled.get("end_time").is_some());
    for action in ["cancel", "pause", "resume"] {
        refused(&server, &id, action).await;
    }
    let retried = done(&server, &id, "retry").await;
    assert_eq!(retried["state"], "QUEUED");
    assert!(retried.get("end_time").is_none());

    // Of all that, one command is left.
    let mut session = RawSession::open(&server, "client-1").await;
    assert_eq!(session.command().await.attempt.transfer.to_string(), id);
    server.stop().await;
}

#[tokio::test]
async fn what_is_paused_is_not_offered_and_goes_on_when_resumed() {
    let server = TestServer::start().await;
    offline(&server, RawSession::open(&server, "client-1").await).await;
    let paused = server.trigger("client-1", "/paused").await.id;
    let other = server.trigger("client-1", "/other").await.id;
    done(&server, &paused, "pause").await;

    let mut session = RawSession::open(&server, "client-1").await;

    // It is the older one, so without the pause it would be first.
    assert_eq!(session.command().await.attempt.transfer.to_string(), other);
    act(&server, &paused, "resume").await;
    assert_eq!(session.command().await.attempt.transfer.to_string(), paused);
    server.stop().await;
}

#[tokio::test]
async fn the_client_is_told_to_stop_what_is_cancelled_or_paused() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    for (action, state) in [("cancel", "CANCELLED"), ("pause", "QUEUED")] {
        let id = server.trigger("client-1", "/raw").await.id;
        let attempt = session.command().await.attempt;

        let json = done(&server, &id, action).await;

        assert_eq!(json["state"], state);
        let told = loop {
            match session.next().await {
                FromServer::Stop(told) => break told,
                FromServer::Download(other) => assert_ne!(other.attempt, attempt),
                _ => {}
            }
        };
        assert_eq!(told, attempt, "{action}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_complete_transfer_stays_complete() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = land(&server, &mut session, "/raw", b"data").await.id;
    for action in ["cancel", "retry", "pause", "resume"] {
        refused(&server, &id, action).await;
    }
    assert_eq!(server.landed(&id).await.1, b"data");
    server.stop().await;
}
