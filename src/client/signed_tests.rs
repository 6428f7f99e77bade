//! A server that was stolen, with all that it ever passed on, asks a client that wants requests
//! signed.

use std::{fs, time::Duration};

use super::{
    config::Shared,
    fake_server::{Client, FakeServer, FakeSession, FakeUpload},
    policy::Policy,
    terms::Clock,
};
use crate::{
    ids::{AttemptId, Epoch, RemotePath, TransferId, UnixMs},
    rate::Rate,
    signature::SigningKey,
    transfer::{Consistency, FailReason},
    wire::{
        proto::{Receipt, UploadFileResponse, receipt},
        session::{Command, FromServer, Outcome, Report, Upload},
        signed::SignedRequest,
    },
};

const HOUR: Duration = Duration::from_secs(3600);

type Change<'a, T> = &'a dyn Fn(&mut T);

struct Stolen {
    server: FakeServer,
    session: FakeSession,
    client: Client,
    alice: SigningKey,
}

/// One that wants requests signed by this key.
fn policy(root: &str, key: &SigningKey) -> String {
    let key = key.public();
    format!(
        "[[root]]\nname = 'root'\npath = '{root}'\nrequire_signature = true\n\
         [[signer]]\nname = 'alice'\nkey = '{key}'\n"
    )
}

impl Stolen {
    /// A client with the files `a` and `b`, in a session.
    async fn start() -> Self {
        let (alice, _) = SigningKey::generate().expect("random");
        let mut server = FakeServer::start();
        let client = Client::start_by(&server, Clock::of_machine(), |root| policy(root, &alice));
        for name in ["a", "b"] {
            fs::write(client.temp.path().join("root").join(name), "bytes").expect("written");
        }
        let session = server.session().await;
        Self { server, session, client, alice }
    }

    fn path(&self, name: &str) -> RemotePath {
        let path = self.client.temp.path().join("root").join(name);
        path.to_str().expect("text").parse().expect("a path")
    }

    /// What alice signs.
    fn request(&self) -> SignedRequest {
        SignedRequest {
            transfer: TransferId::generate(),
            client: "client-1".parse().expect("an id"),
            path: Some(self.path("a")),
            consistency: Consistency::Auto,
            rate_max: None,
            expires: UnixMs::now().plus(HOUR),
        }
    }

    /// The command for it.
    fn command(&self, request: &SignedRequest) -> Command {
        Command {
            attempt: AttemptId { transfer: request.transfer, epoch: Epoch(1) },
            path: Ok(request.path.clone()),
            consistency: request.consistency,
            size_max: 1 << 30,
            rate_max: request.rate_max,
            signature: self.alice.sign(&request.encode()),
            resume: None,
            operator: None,
        }
    }

    /// Sends a command, and expects what every denial looks like.
    async fn is_denied(&mut self, what: &str, command: Command) {
        let attempt = command.attempt;
        self.session.say(FromServer::Download(command)).await;
        let report = tokio::select! {
            report = report_of(&mut self.session, attempt) => report,
            _ = self.server.upload() => panic!("{what}: it is delivered"),
        };
        assert_eq!(report.outcome, Outcome::Failed(FailReason::DeniedByPolicy), "{what}");
        assert_eq!(report.detail, "not allowed by the client's policy", "{what}");
        self.session.say(FromServer::ReportAck(attempt)).await;
    }

    /// Sends a command, and returns its upload.
    async fn upload(&mut self, command: &Command) -> FakeUpload {
        self.session.say(FromServer::Download(command.clone())).await;
        let mut upload = self.server.upload().await;
        let Some(Upload::Header(header)) = upload.next().await else { panic!("no header") };
        assert_eq!(header.attempt, command.attempt);
        upload
    }

    /// Takes all of an upload, and sends the receipt, if there shall be one.
    async fn take(&mut self, mut upload: FakeUpload, attempt: AttemptId, is_told: bool) {
        let mut end = None;
        while let Some(message) = upload.next().await {
            end = Some(message);
        }
        let Some(Upload::Finish { size, finish, .. }) = end else { panic!("{end:?}") };
        let receipt = Receipt {
            attempt: Some(attempt.into()),
            status: receipt::Status::Complete.into(),
            size,
            digest: finish.digest.as_bytes().to_vec().into(),
            ..Default::default()
        };
        if is_told {
            upload.answer(Ok(UploadFileResponse { receipts: vec![receipt] }));
        } else {
            drop(upload);
        }
        let outcome = if is_told { Outcome::Delivered } else { Outcome::Broken };
        assert_eq!(report_of(&mut self.session, attempt).await.outcome, outcome);
        self.session.say(FromServer::ReportAck(attempt)).await;
    }

    async fn stop(self) {
        drop(self.session);
        self.client.stop().await;
    }
}

/// Others are told again in a new session.
async fn report_of(session: &mut FakeSession, attempt: AttemptId) -> Report {
    loop {
        let report = session.report().await;
        if report.attempt == attempt {
            return report;
        }
    }
}

fn again(command: &Command, epoch: u64) -> Command {
    let attempt = AttemptId { epoch: Epoch(epoch), ..command.attempt };
    Command { attempt, ..command.clone() }
}

#[tokio::test]
async fn a_captured_signature_is_good_for_nothing_else() {
    let mut stolen = Stolen::start().await;
    let captured = stolen.command(&stolen.request());
    let (there, absent) = (stolen.path("b"), stolen.path("absent"));
    let rate = Rate::from_number(64_000).expect("a rate");
    let changes: [(&str, Change<'_, Command>); 7] = [
        ("another file", &|c| c.path = Ok(Some(there.clone()))),
        ("a file that is not there", &|c| c.path = Ok(Some(absent.clone()))),
        ("another transfer", &|c| c.attempt.transfer = TransferId::generate()),
        ("strict", &|c| c.consistency = Consistency::Strict),
        ("a cap", &|c| c.rate_max = rate),
        ("no signature", &|c| c.signature = None),
        ("nothing but a path", &|c| (c.signature, c.path) = (None, Ok(Some(absent.clone())))),
    ];
    for (epoch, (what, change)) in (1..).zip(changes) {
        let mut command = again(&captured, epoch);
        change(&mut command);
        stolen.is_denied(what, command).await;
    }
    // What it was signed for is delivered all the same.
    let command = again(&captured, 20);
    let upload = stolen.upload(&command).await;
    stolen.take(upload, command.attempt, true).await;
    stolen.stop().await;
}

#[tokio::test]
async fn what_was_signed_for_another_client_or_by_another_key_or_for_too_long_is_denied() {
    let mut stolen = Stolen::start().await;
    let changes: [(&str, Change<'_, SignedRequest>); 3] = [
        ("another client", &|r| r.client = "client-2".parse().expect("an id")),
        ("expired", &|r| r.expires = UnixMs(UnixMs::now().0 - 1)),
        ("too long", &|r| r.expires = UnixMs::now().plus(31 * 24 * HOUR)),
    ];
    for (what, change) in changes {
        let mut request = stolen.request();
        change(&mut request);
        let command = stolen.command(&request);
        stolen.is_denied(what, command).await;
    }
    let (mallory, _) = SigningKey::generate().expect("random");
    let request = stolen.request();
    let signature = mallory.sign(&request.encode());
    let command = Command { signature, ..stolen.command(&request) };
    stolen.is_denied("another key", command).await;
    stolen.stop().await;
}

#[tokio::test]
async fn a_transfer_is_served_again_until_it_is_delivered_and_never_after() {
    let mut stolen = Stolen::start().await;
    let first = stolen.command(&stolen.request());
    for epoch in 1..=2 {
        let command = again(&first, epoch);
        let upload = stolen.upload(&command).await;
        stolen.take(upload, command.attempt, false).await;
    }
    let last = again(&first, 3);
    let upload = stolen.upload(&last).await;
    stolen.take(upload, last.attempt, true).await;

    stolen.is_denied("once more", again(&first, 4)).await;
    stolen.stop().await;
}

#[tokio::test]
async fn one_transfer_has_one_signature() {
    let mut stolen = Stolen::start().await;
    let request = stolen.request();
    let first = stolen.command(&request);
    let upload = stolen.upload(&first).await;
    stolen.take(upload, first.attempt, false).await;
    // Both are signed by alice.
    let other = SignedRequest { path: Some(stolen.path("b")), ..request };
    let other = again(&stolen.command(&other), 2);
    stolen.is_denied("another request", other).await;
    stolen.stop().await;
}

#[tokio::test]
async fn a_policy_with_another_key_holds_at_once_and_what_was_delivered_stays_spent() {
    let mut stolen = Stolen::start().await;
    let before = stolen.command(&stolen.request());
    let upload = stolen.upload(&before).await;
    stolen.take(upload, before.attempt, true).await;
    let (bob, _) = SigningKey::generate().expect("random");
    let root = stolen.client.temp.path().join("root");
    let shares = stolen.client.shares.clone();
    let replace = |key: &SigningKey| {
        let policy = policy(root.to_str().expect("text"), key);
        let policy = Policy::parse(&policy).expect("a policy");
        assert!(shares.replace(&Shared::Policy(policy)));
    };

    replace(&bob);
    stolen.session = stolen.server.session().await;
    let by_alice = stolen.command(&stolen.request());
    let request = stolen.request();
    let by_bob = Command { signature: bob.sign(&request.encode()), ..stolen.command(&request) };
    stolen.is_denied("a key that is listed no more", by_alice).await;
    let upload = stolen.upload(&by_bob).await;
    stolen.take(upload, by_bob.attempt, true).await;

    replace(&stolen.alice);
    stolen.session = stolen.server.session().await;
    stolen.is_denied("delivered under the first policy", again(&before, 2)).await;
    stolen.stop().await;
}
