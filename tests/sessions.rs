//! One identity has one live instance; commands wait for it, and run once.

mod common;

use std::time::Duration;

use common::{
    bytes,
    raw::{RawSession, RawUpload, chunks, hello, reason, receipt, upload},
    server::{Setup, TestServer},
};
use fts::{
    ids::InstanceId,
    limits::{self, CHUNK_BYTES},
    status::Reason,
    transfer::FailReason,
    wire::{
        proto::{Presence, State, WaitingReason, receipt::Status},
        session::{FromClient, FromServer, Outcome, Report, Upload, Verdict},
    },
};

#[tokio::test]
async fn a_transfer_of_an_offline_client_waits_and_goes_out_when_it_comes() {
    let server = TestServer::start().await;
    drop(RawSession::open(&server, "client-1").await);
    let gone = |t: &fts::wire::proto::Transfer| waits(t) == Some(WaitingReason::ClientOffline);
    let transfer = server.trigger("client-1", "/raw").await;
    // The server may still be noticing that the client has gone.
    server.shown(&transfer.id, gone).await;

    let mut session = RawSession::open(&server, "client-1").await;
    let command = session.command().await;

    assert_eq!(command.attempt.transfer.to_string(), transfer.id);
    server.stop().await;
}

fn waits(transfer: &fts::wire::proto::Transfer) -> Option<WaitingReason> {
    transfer.waiting.as_ref().map(fts::wire::proto::Waiting::reason)
}

#[tokio::test]
async fn a_client_that_never_came_is_unknown() {
    let server = TestServer::start().await;
    let request = fts::wire::proto::TriggerDownloadRequest {
        client_id: "nobody".to_owned(),
        ..Default::default()
    };
    let refused = server.control().await.trigger_download(request).await.expect_err("refused");
    assert_eq!(fts::status::reason(&refused), Some(Reason::UnknownClient));
    server.stop().await;
}

#[tokio::test]
async fn another_instance_takes_over_and_the_older_one_can_do_nothing() {
    let server = TestServer::start().await;
    let data = bytes(2 * CHUNK_BYTES, 1);
    let mut older = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let old_attempt = older.command().await.attempt;
    let old_header = older.header(old_attempt, &data);
    let mut old_upload = RawUpload::open(server.address).await;
    old_upload.send(Upload::Header(old_header.clone())).await;
    old_upload.send(chunks(&data).swap_remove(0)).await;
    server.follow(&transfer.id, |t| t.state() == State::Receiving).await;

    let mut newer = RawSession::open(&server, "client-1").await;
    let attempt = newer.command().await.attempt;

    assert!(attempt.epoch > old_attempt.epoch);
    let told = older.next().await;
    assert!(matches!(told, FromServer::Superseded { .. }), "{told:?}");
    old_upload.send(chunks(&data).swap_remove(1)).await;
    let refused = reason(old_upload.answer().await);
    assert!(matches!(refused, Some(Reason::StaleEpoch)), "{refused:?}");
    let mut again = RawUpload::open(server.address).await;
    again.send(Upload::Header(old_header)).await;
    assert_eq!(reason(again.answer().await), Some(Reason::OtherInstance));

    let header = newer.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, &data)).await;
    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    assert!(server.landed(&transfer.id).await.1 == data);
    server.stop().await;
}

#[tokio::test]
async fn an_upload_outlives_its_session_when_the_same_instance_comes_back() {
    let server = TestServer::start().await;
    let data = bytes(2 * CHUNK_BYTES, 2);
    let mut session = RawSession::open(&server, "client-1").await;
    let instance = session.instance;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    let mut messages = upload(&header, &data);
    let rest = messages.split_off(2);
    raw.send_all(messages).await;
    server.follow(&transfer.id, |t| t.state() == State::Receiving).await;

    drop(session);
    let mut hello = hello("client-1", instance);
    hello.running = vec![attempt];
    let _session = RawSession::open_as(&server, hello).await;
    raw.send_all(rest).await;

    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    assert_eq!(server.landed(&transfer.id).await.0.attempts, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_newer_call_of_the_same_attempt_fences_the_older_one() {
    let server = TestServer::start().await;
    let data = bytes(2 * CHUNK_BYTES, 3);
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut older = RawUpload::open(server.address).await;
    older.send_all(upload(&header, &data).into_iter().take(2)).await;
    server.follow(&transfer.id, |t| t.state() == State::Receiving).await;

    let mut newer = RawUpload::open(server.address).await;
    newer.send_all(upload(&header, &data)).await;
    let answer = newer.answer().await;

    let refused = reason(older.answer().await);
    assert!(matches!(refused, Some(Reason::StaleEpoch)), "{refused:?}");
    assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
    assert!(server.landed(&transfer.id).await.1 == data);
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_of_the_client_is_final_and_says_why() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/etc/shadow").await;
    let attempt = session.command().await.attempt;

    let outcome = Outcome::Failed(FailReason::DeniedByPolicy);
    let report = Report { attempt, outcome, detail: "not allowed".to_owned() };
    session.say(FromClient::Report(report)).await;

    assert_eq!(session.next().await, FromServer::ReportAck(attempt));
    let after = server.ended(&transfer.id).await;
    assert_eq!(after.state(), State::Failed);
    let failure = after.failure.expect("a reason");
    assert_eq!(failure.reason(), fts::wire::proto::FailReason::DeniedByPolicy);
    assert_eq!(failure.detail, "not allowed");
    server.stop().await;
}

#[tokio::test]
async fn a_client_cannot_report_on_the_transfer_of_another() {
    let server = TestServer::start().await;
    let mut honest = RawSession::open(&server, "client-1").await;
    let mut evil = RawSession::open(&server, "client-2").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = honest.command().await.attempt;

    let outcome = Outcome::Failed(FailReason::SourceNotFound);
    let report = Report { attempt, outcome, detail: String::new() };
    evil.say(FromClient::Report(report)).await;
    evil.say(FromClient::Reply { attempt, verdict: Verdict::Busy }).await;
    assert_eq!(evil.next().await, FromServer::ReportAck(attempt));
    evil.say(FromClient::Heartbeat {
        seq: 1,
        progress: Vec::new(),
        jobs_max: None,
        audit_head: None,
    })
    .await;
    assert_eq!(evil.next().await, FromServer::HeartbeatAck { seq: 1 });

    assert_eq!(server.transfer(&transfer.id).await.state(), State::Offered);
    server.stop().await;
}

#[tokio::test]
async fn commands_go_out_only_as_far_as_the_client_takes_them() {
    let server = TestServer::start().await;
    let mut hello = hello("client-1", InstanceId::generate());
    hello.jobs_max = 2;
    let mut session = RawSession::open_as(&server, hello).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(server.trigger("client-1", "/raw").await.id);
    }
    let first = session.command().await.attempt;
    session.command().await;
    let third = server.shown(&ids[2], |t| waits(t) == Some(WaitingReason::ClientBusy)).await;
    assert_eq!(third.state(), State::Queued);

    // An ended attempt frees a slot at once.
    let outcome = Outcome::Failed(FailReason::SourceNotFound);
    session
        .say(FromClient::Report(Report { attempt: first, outcome, detail: String::new() }))
        .await;

    let next = session.command().await.attempt;
    assert_eq!(next.transfer.to_string(), ids[2]);
    server.stop().await;
}

#[tokio::test]
async fn a_transfer_that_is_due_later_goes_out_when_it_is_due() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let first = session.command().await.attempt;

    // It is tried again after a pause of a second.
    let outcome = Outcome::Failed(FailReason::Io);
    let report = Report { attempt: first, outcome, detail: String::new() };
    session.say(FromClient::Report(report)).await;

    // The session knows when: it does not wait for the look at all queues.
    let again = tokio::time::timeout(limits::CLAIM_POLL * 2 / 3, session.command()).await;
    let again = again.expect("in time").attempt;
    assert_eq!(again.transfer.to_string(), transfer.id);
    assert!(again.epoch > first.epoch);
    server.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_stale_and_then_offline() {
    let heartbeat = Duration::from_millis(200);
    let server = TestServer::start_with(Setup { heartbeat, ..Setup::default() }).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let mut seen = Vec::new();

    // The server ends the stream itself.
    let ended = session.from_server.message();
    tokio::pin!(ended);
    let watch = async {
        loop {
            let request = fts::wire::proto::GetClientRequest { client_id: "client-1".to_owned() };
            let answer = server.control().await.get_client(request).await.expect("known");
            let presence = answer.into_inner().client.expect("a client").presence();
            if seen.last() != Some(&presence) {
                seen.push(presence);
            }
            if presence == Presence::Offline {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(common::server::PATIENCE, watch).await.expect("in time");

    assert_eq!(seen, [Presence::Online, Presence::Stale, Presence::Offline]);
    assert!(matches!(ended.await, Ok(None)));
    server.stop().await;
}

async fn shown(server: &TestServer, client: &str) -> fts::wire::proto::Client {
    let request = fts::wire::proto::GetClientRequest { client_id: client.to_owned() };
    let answer = server.control().await.get_client(request).await.expect("known");
    answer.into_inner().client.expect("a client")
}

fn last_seen(client: &fts::wire::proto::Client) -> (i64, i32) {
    let at = client.last_seen.expect("a time");
    (at.seconds, at.nanos)
}

#[tokio::test]
async fn when_a_client_was_last_seen_outlives_its_session_and_a_restart() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let opened = last_seen(&shown(&server, "client-1").await);
    let mut heard = opened;
    // Until the clock has gone on.
    for seq in 1.. {
        session
            .say(FromClient::Heartbeat {
                seq,
                progress: Vec::new(),
                jobs_max: None,
                audit_head: None,
            })
            .await;
        assert_eq!(session.next().await, FromServer::HeartbeatAck { seq });
        heard = last_seen(&shown(&server, "client-1").await);
        if heard > opened {
            break;
        }
    }

    drop(session);
    let gone = async {
        loop {
            let client = shown(&server, "client-1").await;
            if client.presence() == Presence::Offline {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = tokio::time::timeout(common::server::PATIENCE, gone).await.expect("in time");
    let dir = server.stop().await;
    let server = TestServer::start_in(dir, Setup::default(), 0).await;
    let later = shown(&server, "client-1").await;

    assert_eq!(last_seen(&gone), heard);
    assert_eq!(last_seen(&later), heard);
    server.stop().await;
}

#[tokio::test]
async fn an_attempt_that_the_server_does_not_know_is_stopped() {
    let server = TestServer::start().await;
    let mut hello = hello("client-1", InstanceId::generate());
    let unknown = fts::ids::AttemptId {
        transfer: fts::ids::TransferId::generate(),
        epoch: fts::ids::Epoch(3),
    };
    hello.running = vec![unknown];
    let mut session = RawSession::open_as(&server, hello).await;
    assert_eq!(session.next().await, FromServer::Stop(unknown));
    server.stop().await;
}

#[tokio::test]
async fn cancel_is_final_at_once_and_stops_the_upload() {
    let server = TestServer::start().await;
    let data = bytes(2 * CHUNK_BYTES, 4);
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, &data).into_iter().take(2)).await;
    // The chunk is in, not only on its way.
    server.shown(&transfer.id, |t| t.bytes_done == CHUNK_BYTES as u64).await;

    let request = fts::wire::proto::CancelTransferRequest { transfer_id: transfer.id.clone() };
    let answer = server.control().await.cancel_transfer(request).await.expect("cancelled");

    assert_eq!(answer.into_inner().transfer.expect("a transfer").state(), State::Cancelled);
    assert_eq!(session.next().await, FromServer::Stop(attempt));
    raw.send_all(upload(&header, &data).into_iter().skip(2)).await;
    assert!(raw.answer().await.is_err());
    let after = server.transfer(&transfer.id).await;
    assert_eq!(after.state(), State::Cancelled);
    assert_eq!(after.bytes_received, CHUNK_BYTES as u64, "what was wasted shows");
    assert!(common::files_beneath(&server.dir().join("files")).is_empty());
    server.stop().await;
}

#[tokio::test]
async fn what_waited_for_a_busy_client_is_due_when_it_comes_back() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    session.say(FromClient::Reply { attempt, verdict: Verdict::Busy }).await;
    let busy = server.shown(&transfer.id, |t| waits(t) == Some(WaitingReason::ClientBusy)).await;
    let next = busy.waiting.expect("a reason").next_attempt_time.expect("a time");

    let mut again = RawSession::open(&server, "client-1").await;
    again.command().await;

    let offered = server.transfer(&transfer.id).await.update_time.expect("a time");
    let key = |t: &prost_types::Timestamp| (t.seconds, t.nanos);
    assert!(key(&offered) < key(&next), "it did not wait for its time");
    server.stop().await;
}
