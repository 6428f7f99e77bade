//! A client with a good certificate of its own tries to be another one. Afterwards nothing about
//! the other has changed: its session lives, its transfers stand as they stood, and complete.

use std::time::Duration;

use fts::{
    ids::{AttemptId, Epoch, InstanceId, TransferId},
    limits::CHUNK_BYTES,
    status::{Reason, reason},
    transfer::{FailReason, Hold, State},
    wire::{
        proto::{self, enrolment_client::EnrolmentClient},
        session::{FromClient, Header, Outcome, Report, UploadProgress, Verdict},
    },
};
use rcgen::{CertificateParams, KeyPair, SanType};

use super::{
    common::{
        bytes,
        raw::{self, RawSession, RawUpload, chunks, finish, hello},
        secured::{Secured, bearing},
    },
    machine::{Machine, record, trigger, until},
};

/// Two clients, of which one has a transfer in each state that somebody could want to meddle with.
struct World {
    secured: Secured,
    victim: Machine,
    mallory: Machine,
    data: Vec<u8>,
    /// Its command has gone out.
    offered: AttemptId,
    receiving: AttemptId,
    upload: RawUpload,
    header: Header,
    /// Of another client, which is not there.
    queued: TransferId,
}

async fn world() -> World {
    let secured = Secured::start().await;
    let mut victim = Machine::start(&secured, "victim").await;
    let mallory = Machine::start(&secured, "mallory").await;
    let away = Machine::start(&secured, "away").await;
    drop(away.session);
    let data = bytes(2 * CHUNK_BYTES, 7);
    let receiving = trigger(&secured, "victim", "/receiving").await;
    let (upload, header) = victim.begin(&secured, receiving, &data).await;
    until(&secured, receiving, State::Receiving).await;
    let receiving = header.attempt;
    let offered = trigger(&secured, "victim", "/offered").await;
    let offered = victim.command(offered).await;
    let queued = trigger(&secured, "away", "/queued").await;
    until(&secured, queued, State::Queued).await;
    World { secured, victim, mallory, data, offered, receiving, upload, header, queued }
}

impl World {
    /// Every transfer of others, as on record.
    async fn records(&self) -> Vec<fts::transfer::Transfer> {
        let mut all = Vec::new();
        for id in [self.receiving.transfer, self.offered.transfer, self.queued] {
            all.push(record(&self.secured, id).await);
        }
        all
    }

    /// Every attempt of others that there is, and those around it.
    fn attempts(&self) -> Vec<AttemptId> {
        let queued = AttemptId { transfer: self.queued, epoch: Epoch(0) };
        let real = [self.receiving, self.offered, queued];
        let around = |attempt: &AttemptId| {
            let epochs = [attempt.epoch.0, attempt.epoch.0 + 1, attempt.epoch.0.saturating_sub(1)];
            epochs.map(|epoch| AttemptId { epoch: Epoch(epoch), ..*attempt })
        };
        real.iter().flat_map(around).collect()
    }

    /// The other's session lives, and what it has to deliver it delivers.
    async fn completes(mut self) {
        self.victim.session.heard(Vec::new()).await;
        let rest = [chunks(&self.data).swap_remove(1), finish(&self.header, &self.data)];
        assert!(self.upload.send_all(rest).await, "the upload lives");
        self.upload.answer().await.expect("taken");
        until(&self.secured, self.receiving.transfer, State::Complete).await;
        let header = self.victim.session.header(self.offered, &self.data);
        let mut second = self.victim.upload(&self.secured).await;
        second.send_all(raw::upload(&header, &self.data)).await;
        second.answer().await.expect("taken");
        until(&self.secured, self.offered.transfer, State::Complete).await;
        self.secured.server.stop().await;
    }
}

#[tokio::test]
async fn nobody_says_hello_in_anothers_name() {
    let world = world().await;
    let before = world.records().await;
    for instance in [world.victim.session.instance, InstanceId::generate()] {
        for client in ["victim", "away", "nobody"] {
            let channel = world.secured.channel(Some(&world.mallory.identity)).await;
            let mut hello = hello(client, instance);
            hello.running = world.attempts();
            let refused = RawSession::try_over(channel, hello).await.map(|_| ()).expect_err("not");
            assert_eq!(reason(&refused), Some(Reason::WrongClient), "{client}");
        }
    }
    assert_eq!(world.records().await, before);
    world.completes().await;
}

#[tokio::test]
async fn nobody_uploads_for_another() {
    let world = world().await;
    let before = world.records().await;
    let absent = AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) };
    let mut answers = Vec::new();
    for attempt in world.attempts().into_iter().chain([absent]) {
        for instance in [world.victim.session.instance, world.mallory.session.instance] {
            let header = Header { attempt, instance, ..world.header.clone() };
            let mut upload = world.mallory.upload(&world.secured).await;
            upload.send_all(raw::upload(&header, &world.data)).await;
            let status = upload.answer().await.expect_err("refused");
            answers.push(status.message().replace(&attempt.transfer.to_string(), "ID"));
            assert_eq!(reason(&status), Some(Reason::UnknownTransfer), "{attempt}");
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "all as if it were not there: {answers:?}");
    assert_eq!(world.records().await, before);
    world.completes().await;
}

#[tokio::test]
async fn nobody_reports_for_another() {
    let mut world = world().await;
    let before = world.records().await;
    let outcomes = [
        Outcome::Delivered,
        Outcome::Failed(FailReason::SourceChanged),
        Outcome::Broken,
        Outcome::Stopped,
        Outcome::Held(Hold::PolicyWindow, Duration::from_secs(1)),
    ];
    let verdicts = [Verdict::Accepted, Verdict::Busy, Verdict::StaleEpoch, Verdict::Conflict];
    // With its own instance, and with the other's.
    let mut borrowed = hello("mallory", world.victim.session.instance);
    borrowed.running = world.attempts();
    for hello in [hello("mallory", InstanceId::generate()), borrowed] {
        let channel = world.secured.channel(Some(&world.mallory.identity)).await;
        world.mallory.session = RawSession::open_over(channel, hello).await;
        for attempt in world.attempts() {
            let session = &mut world.mallory.session;
            for verdict in verdicts {
                session.say(FromClient::Reply { attempt, verdict }).await;
            }
            for outcome in outcomes {
                let detail = "spoofed".to_owned();
                session.say(FromClient::Report(Report { attempt, outcome, detail })).await;
            }
            let progress =
                UploadProgress { attempt, sent_bytes: CHUNK_BYTES as u64, throttled: true };
            session.heard(vec![progress]).await;
        }
        assert_eq!(world.records().await, before);
    }
    let view = world.secured.server.coordinator.transfer(world.receiving.transfer).await;
    assert_eq!(view.expect("known").waiting, None, "nobody holds it back");
    // Nor is the other told to stop.
    world.victim.session.heard(Vec::new()).await;
    world.completes().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_of_who_renewed_it_whatever_the_request_says() {
    let world = world().await;
    let uid = async |client: &str| {
        let client = client.parse().expect("an id");
        world.secured.credentials().identity(&client).await.expect("read").expect("known")
    };
    let before = uid("victim").await;
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["victim".to_owned()]).expect("names");
    let uri = format!("spiffe://localhost/client/victim/{}", before.uid.simple());
    params.subject_alt_names.push(SanType::URI(uri.try_into().expect("ASCII")));
    params.distinguished_name.push(rcgen::DnType::CommonName, "victim");
    let request = params.serialize_request(&key).expect("signed");
    let request = request.der().to_vec();

    let mut enrolment = EnrolmentClient::new(world.mallory.channel.clone());
    let ask = proto::RenewRequest { certificate_request: request.clone().into() };
    let renewed = enrolment.renew(ask).await.expect("renewed").into_inner();

    let chain = renewed.certificate.expect("a certificate").chain;
    let leaf = rustls::pki_types::CertificateDer::from(chain[0].to_vec());
    let named = world.secured.tls.authority().identify(&leaf).expect("a client");
    assert_eq!(named.client.as_str(), "mallory");
    assert_eq!(named.uid, uid("mallory").await.uid);
    assert_eq!(uid("victim").await, before);

    // Nor does a certificate join, or a join token for its own id, or for any but the other's.
    let ask = proto::JoinRequest {
        client_id: "victim".to_owned(),
        certificate_request: request.into(),
        host_name: String::new(),
    };
    let refused = enrolment.join(ask.clone()).await.expect_err("refused");
    assert_eq!(reason(&refused), Some(Reason::Unauthenticated));
    for pattern in ["mallory", "vic*", "*"] {
        let token = world.secured.join_token(pattern).await;
        let refused = enrolment.join(bearing(&token, ask.clone())).await.expect_err("refused");
        assert_eq!(reason(&refused), Some(Reason::JoinRefused), "{pattern}");
    }
    assert_eq!(uid("victim").await, before);
    world.completes().await;
}
