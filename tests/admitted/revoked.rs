//! Who is put out has nothing left: sessions, uploads and streams end, and nothing begins.

use std::time::Duration;

use fts::{
    ids::{InstanceId, TransferId},
    limits::{self, CHUNK_BYTES},
    server::access::{Role, Scope},
    status::{Reason, reason},
    transfer::State,
    wire::{
        proto::{
            self, admin_client::AdminClient, control_client::ControlClient,
            enrolment_client::EnrolmentClient,
        },
        session::{FromClient, Upload},
    },
};
use rcgen::{CertificateParams, KeyPair};
use tokio::{
    io::AsyncReadExt as _,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    callers,
    calls::{Http1, call, http1, kept_out, request},
    common::{
        bytes,
        raw::{self, RawSession, chunks, hello},
        secured::{Identity, Secured, bearing, identity},
    },
    machine::{Machine, record, trigger, until},
};

/// What is at once. The promise is ten seconds.
const AT_ONCE: Duration = Duration::from_secs(3);
const PROMISED: Duration = Duration::from_secs(10);

/// Nothing is left of a machine that was put out while it sent.
async fn expelled(secured: &Secured, mut machine: Machine, transfer: TransferId) {
    let refused = timeout(AT_ONCE, machine.session.end()).await.expect("at once");
    assert_eq!(reason(&refused.expect("a reason")), Some(Reason::Revoked));
    for path in [
        "/fts.v1.FileTransfer/Connect",
        "/fts.v1.FileTransfer/UploadFile",
        "/fts.v1.Enrolment/Renew",
    ] {
        let answer = call(&machine.channel, &[], path).await;
        assert_eq!(kept_out(&answer), Some(Reason::Revoked), "{path}, on the old connection");
        let fresh = secured.channel(Some(&machine.identity)).await;
        let answer = call(&fresh, &[], path).await;
        assert_eq!(kept_out(&answer), Some(Reason::Revoked), "{path}, on a new one");
    }
    // The upload notes its own end.
    let ended = async {
        while record(secured, transfer).await.state == State::Receiving {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_ONCE, ended).await.expect("at once");
    let state = record(secured, transfer).await.state;
    assert!(!matches!(state, State::Complete | State::Verifying), "{state:?}");
}

#[tokio::test]
async fn revoking_a_client_ends_its_session_and_its_uploads_at_once() {
    let secured = Secured::start().await;
    let mut machine = Machine::start(&secured, "web-1").await;
    let mut other = Machine::start(&secured, "web-2").await;
    let data = bytes(2 * CHUNK_BYTES, 1);
    let transfer = trigger(&secured, "web-1", "/raw").await;
    let (upload, header) = machine.begin(&secured, transfer, &data).await;
    let others = trigger(&secured, "web-2", "/raw").await;
    until(&secured, transfer, State::Receiving).await;

    secured.administration.revoke(&machine.identity.client).await.expect("revoked");

    // It would have sent on.
    let mut upload = upload;
    let sent = async {
        upload.send(chunks(&data).swap_remove(1)).await;
        upload.send(raw::finish(&header, &data)).await;
        upload.answer().await
    };
    timeout(AT_ONCE, sent).await.expect("at once").expect_err("refused");
    expelled(&secured, machine, transfer).await;
    // What others have goes on.
    other.deliver(&secured, others, &data).await;
    secured.server.stop().await;
}

#[tokio::test]
async fn what_was_let_in_before_a_revocation_does_not_begin_after_it() {
    let secured = Secured::start().await;
    let mut machine = Machine::start(&secured, "web-1").await;
    let transfer = trigger(&secured, "web-1", "/raw").await;
    let attempt = machine.command(transfer).await;
    let data = bytes(2 * CHUNK_BYTES, 2);
    // Both have passed the gate, and said nothing yet.
    let channel = secured.channel(Some(&machine.identity)).await;
    let instance = InstanceId::generate();
    let mut silent = RawSession::silent(channel, instance).await.expect("let in");
    let mut upload = machine.upload(&secured).await;

    secured.administration.revoke(&machine.identity.client).await.expect("revoked");
    silent.say(FromClient::Hello(hello("web-1", instance))).await;
    upload.send(Upload::Header(machine.session.header(attempt, &data))).await;

    let refused = silent.end().await.expect("a reason");
    assert_eq!(reason(&refused), Some(Reason::Revoked));
    let refused = upload.answer().await.expect_err("refused");
    assert_eq!(reason(&refused), Some(Reason::Revoked));
    assert_eq!(record(&secured, transfer).await.received_bytes, 0);
    secured.server.stop().await;
}

#[tokio::test]
async fn deleting_a_client_cancels_its_transfers_and_spends_its_id_for_ever() {
    let secured = Secured::start().await;
    let mut machine = Machine::start(&secured, "web-1").await;
    let client = machine.identity.client.clone();
    let data = bytes(2 * CHUNK_BYTES, 3);
    let delivered = trigger(&secured, "web-1", "/delivered").await;
    machine.deliver(&secured, delivered, &data).await;
    let moving = trigger(&secured, "web-1", "/moving").await;
    let _upload = machine.begin(&secured, moving, &data).await;
    until(&secured, moving, State::Receiving).await;
    let offered = trigger(&secured, "web-1", "/offered").await;
    machine.command(offered).await;
    let paused = trigger(&secured, "web-1", "/paused").await;
    secured.server.coordinator.pause(paused).await.expect("paused");

    secured.administration.delete(&client).await.expect("deleted");

    for transfer in [moving, offered, paused] {
        assert_eq!(record(&secured, transfer).await.state, State::Cancelled);
    }
    until(&secured, delivered, State::Complete).await;
    expelled(&secured, machine, moving).await;
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("signed");
    let ask = proto::JoinRequest {
        client_id: "web-1".to_owned(),
        certificate_request: csr.der().to_vec().into(),
        host_name: String::new(),
    };
    let mut enrolment = EnrolmentClient::new(secured.channel(None).await);
    for replaces in [false, true] {
        let token = join_token(&secured, "web-1", replaces).await;
        let refused = enrolment.join(bearing(&token, ask.clone())).await.expect_err("refused");
        assert_eq!(reason(&refused), Some(Reason::JoinRefused), "replaces: {replaces}");
    }
    secured.server.stop().await;
}

async fn join_token(secured: &Secured, client: &str, replaces: bool) -> fts::token::Secret {
    let wanted = fts::server::administration::Wanted {
        patterns: vec![client.parse().expect("a pattern")],
        uses_max: 1,
        ttl: Duration::from_secs(600),
        needs_approval: false,
        replaces,
    };
    let made = secured.administration.create_join_tokens(wanted, "test").await.expect("made");
    made.into_iter().next().expect("one").1
}

#[tokio::test]
async fn a_machine_that_is_replaced_loses_its_session_and_its_uploads_at_once() {
    let secured = Secured::start().await;
    let mut old = Machine::start(&secured, "web-1").await;
    let data = bytes(2 * CHUNK_BYTES, 4);
    let transfer = trigger(&secured, "web-1", "/raw").await;
    let _upload = old.begin(&secured, transfer, &data).await;
    until(&secured, transfer, State::Receiving).await;

    replace(&secured, "web-1").await;

    expelled(&secured, old, transfer).await;
    secured.server.stop().await;
}

/// A connection of a client on which nothing runs any more.
struct Idle {
    /// Without it, the connection would be given up.
    _ask: h2::client::SendRequest<bytes::Bytes>,
    connection: JoinHandle<()>,
}

impl Idle {
    async fn open(secured: &Secured, identity: &Identity) -> Self {
        let io = secured.route(Some(identity)).connect().await.expect("connected");
        let (mut ask, connection) = h2::client::handshake(io).await.expect("HTTP/2");
        #[allow(clippy::disallowed_methods)] // ends with the server, at the latest
        let connection = tokio::spawn(async { drop(connection.await) });
        // Without a certificate request: so the server knows who it is, and nothing changes.
        let request = http::Request::post(format!("{}/fts.v1.Enrolment/Renew", secured.url()))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let (answer, _) = ask.send_request(request.body(()).expect("valid"), true).expect("sent");
        answer.await.expect("answered");
        Self { _ask: ask, connection }
    }

    /// Waits until the server ends it.
    async fn end(self) {
        timeout(PROMISED, self.connection).await.expect("in time").expect("no panic");
    }
}

/// Joins by asking the server, in the place of whoever has this id.
async fn replace(secured: &Secured, client: &str) -> Identity {
    let token = join_token(secured, client, true).await;
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("signed");
    let ask = proto::JoinRequest {
        client_id: client.to_owned(),
        certificate_request: csr.der().to_vec().into(),
        host_name: "new-host".to_owned(),
    };
    let mut enrolment = EnrolmentClient::new(secured.channel(None).await);
    let joined = enrolment.join(bearing(&token, ask)).await.expect("joined");
    let certificate = joined.into_inner().certificate.expect("one");
    let chain = certificate.chain.iter().map(|der| der.to_vec().into()).collect();
    identity(client.parse().expect("an id"), &key, chain)
}

#[tokio::test]
async fn idle_connections_of_who_is_put_out_end_and_no_others() {
    let secured = Secured::start().await;
    let (revoked, other) = (secured.identity("web-1").await, secured.identity("web-2").await);
    let replaced = secured.identity("web-3").await;
    let of_revoked = Idle::open(&secured, &revoked).await;
    let of_other = Idle::open(&secured, &other).await;
    let of_replaced = Idle::open(&secured, &replaced).await;

    secured.administration.revoke(&revoked.client).await.expect("revoked");
    let now = replace(&secured, "web-3").await;
    let of_now = Idle::open(&secured, &now).await;

    of_revoked.end().await;
    of_replaced.end().await;
    assert!(!of_other.connection.is_finished() && !of_now.connection.is_finished());
    secured.server.stop().await;
}

#[tokio::test]
async fn a_client_that_waits_for_approval_works_once_it_is_approved() {
    let secured = Secured::start().await;
    let identity = callers::join(&secured, "web-1", |wanted| wanted.needs_approval = true).await;
    let channel = secured.channel(Some(&identity)).await;
    let hello = || hello("web-1", InstanceId::generate());

    let before = RawSession::try_over(channel.clone(), hello()).await.map(|_| ());
    secured.administration.approve(&identity.client).await.expect("approved");
    let after = RawSession::try_over(channel, hello()).await.map(|_| ());

    assert_eq!(reason(&before.expect_err("refused")), Some(Reason::PendingApproval));
    after.expect("on the same connection");
    secured.server.stop().await;
}

#[tokio::test]
async fn what_a_revoked_operator_has_open_ends() {
    let secured = Secured::start().await;
    let mut machine = Machine::start(&secured, "web-1").await;
    // Longer than what can be under way to a slow reader.
    let data = bytes(24 * CHUNK_BYTES, 5);
    let landed = trigger(&secured, "web-1", "/landed").await;
    machine.deliver(&secured, landed, &data).await;
    let alice = secured.operator("alice", Role::Operator, Scope::default()).await;
    let headers = [format!("Bearer {}", alice.reveal())];
    let mut control = ControlClient::new(secured.channel(None).await);
    let ask = proto::WatchTransfersRequest::default();
    let mut watch = control.watch_transfers(bearing(&alice, ask)).await.expect("ok").into_inner();
    let ask = proto::ReadFileRequest { transfer_id: landed.to_string(), ..Default::default() };
    let mut read = control.read_file(bearing(&alice, ask)).await.expect("ok").into_inner();
    let port = secured.server.address.port();
    let mut content = http1(&secured, port, None).await;
    let mut waiting = http1(&secured, port, None).await;
    let target = format!("/transfers/{landed}/content");
    content.send(&request("GET", &target, &headers)).await;
    content.begun().await;
    waiting.send(&request("POST", "/download/web-1?path=/x&wait=300", &headers)).await;
    machine.session.command().await;
    watch.message().await.expect("no error").expect("an event");
    read.message().await.expect("no error").expect("a message");

    let name = "alice".parse().expect("a name");
    secured.administration.revoke_operator(&name).await.expect("revoked");
    let revoked = Instant::now();

    let ((), read, content, waited) = tokio::join!(
        async {
            let status = until_error(&mut watch, Duration::ZERO).await;
            assert_eq!(reason(&status), Some(Reason::Unauthenticated));
            assert!(revoked.elapsed() < PROMISED, "the watch");
        },
        // Slowly: it must not come to the end first.
        until_error(&mut read, Duration::from_millis(500)),
        bytes_until_end(content, revoked),
        async {
            let answer = waiting.answer("POST").await;
            assert!(revoked.elapsed() < PROMISED, "the wait");
            answer
        },
    );
    assert_eq!(reason(&read), Some(Reason::Unauthenticated));
    assert!(content < data.len(), "{content} bytes came");
    assert_eq!((waited.status, waited.problem().as_str()), (401, "UNAUTHENTICATED"));
    secured.server.stop().await;
}

#[tokio::test]
async fn what_a_revoked_administrator_reads_of_the_audit_ends() {
    let secured = Secured::start().await;
    let alice = secured.operator("alice", Role::Admin, Scope::default()).await;
    // Longer than what can be under way to a slow reader.
    let long = format!("{}\n", "x".repeat(limits::AUDIT_LINE_BYTES_MAX / 2)).repeat(72);
    let name = "audit/audit-20200101T000000Z-0.jsonl";
    std::fs::write(secured.server.dir().join(name), long).expect("written");
    let mut admin = AdminClient::new(secured.channel(None).await);
    let ask = proto::ReadAuditRequest::default();
    let mut read = admin.read_audit(bearing(&alice, ask)).await.expect("read").into_inner();
    read.message().await.expect("no error").expect("a line");

    let name = "alice".parse().expect("a name");
    secured.administration.revoke_operator(&name).await.expect("revoked");

    let status = until_error(&mut read, Duration::from_millis(250)).await;
    assert_eq!(reason(&status), Some(Reason::Unauthenticated));
    secured.server.stop().await;
}

/// Reads a stream to its error, with a pause after each message.
async fn until_error<T>(stream: &mut tonic::Streaming<T>, pause: Duration) -> tonic::Status {
    loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "it ended as if all were well"),
            Err(status) => return status,
        }
        sleep(pause).await;
    }
}

/// Reads an answer so slowly that it lasts until it should have been cut, and returns how much came.
async fn bytes_until_end(content: Http1, revoked: Instant) -> usize {
    let mut stream = content.into_inner();
    let mut bytes = vec![0; 1 << 20];
    let mut all = 0;
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return all,
            Ok(count) => all += count,
        }
        if revoked.elapsed() < limits::RECHECK + Duration::from_secs(2) {
            sleep(Duration::from_millis(900)).await;
        }
    }
}
