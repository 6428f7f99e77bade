//! Where a site wants requests signed, a server can ask for nothing that no listed key has signed,
//! and for nothing twice.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use common::{
    bytes,
    client::TestClient,
    server::{Setup, TestServer},
};
use fts::{
    client::{config::Shared, policy::Policy},
    ids::{TransferId, UnixMs},
    limits::CHUNK_BYTES,
    rate::Rate,
    signature::SigningKey,
    transfer::Consistency,
    wire::{
        proto::{self, FailReason, State, Transfer, TriggerDownloadRequest},
        signed::SignedRequest,
    },
};
use tempfile::TempDir;

type Change = fn(&mut TriggerDownloadRequest);

const HOUR: Duration = Duration::from_secs(3600);

fn key() -> SigningKey {
    SigningKey::generate().expect("random").0
}

/// A site whose directory `vault` wants requests signed; what is beside it is free.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        fs::create_dir_all(dir.path().join("all/vault")).expect("made");
        fs::write(dir.path().join("all/vault/f"), "secret").expect("written");
        fs::write(dir.path().join("all/free"), "free").expect("written");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("all").join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    /// The client, with what it knew when it last ran.
    async fn start(&self, server: &TestServer, signer: &SigningKey) -> TestClient {
        self.start_with(server, signer, None).await
    }

    async fn start_with(
        &self,
        server: &TestServer,
        signer: &SigningKey,
        rate_max: Option<u64>,
    ) -> TestClient {
        let (all, vault, key) = (self.text(""), self.text("vault"), signer.public());
        let policy = format!(
            "[[root]]\nname = 'all'\npath = '{all}'\n\
             [[root]]\nname = 'vault'\npath = '{vault}'\nrequire_signature = true\n\
             [[signer]]\nname = 'alice'\nkey = '{key}'\n"
        );
        let policy = Policy::parse(&policy).expect("a policy");
        let client = TestClient::start_with(&server.url(), "client-1", &[], |config| {
            config.shared = Shared::Policy(policy);
            config.state_dir = self.dir.path().join("state");
            config.rate_max = rate_max.map(|rate| Rate::try_from(rate).expect("a rate"));
        });
        server.online("client-1").await;
        client
    }

    /// What is signed to have a file of it.
    fn request(&self, name: &str) -> SignedRequest {
        SignedRequest {
            transfer: TransferId::generate(),
            client: "client-1".parse().expect("an id"),
            path: Some(self.text(name).parse().expect("a path")),
            consistency: Consistency::Auto,
            rate_max: None,
            expires: UnixMs::now().plus(HOUR),
        }
    }
}

/// What asks for it.
fn message(request: &SignedRequest, key: &SigningKey) -> TriggerDownloadRequest {
    let signature = key.sign(&request.encode()).expect("short");
    TriggerDownloadRequest {
        client_id: request.client.to_string(),
        path: request.path.clone().map(String::from).unwrap_or_default(),
        transfer_id: request.transfer.to_string(),
        signature: Some((&signature).into()),
        ..Default::default()
    }
}

async fn ask(
    server: &TestServer,
    message: TriggerDownloadRequest,
) -> Result<Transfer, tonic::Status> {
    let answer = server.control().await.trigger_download(message).await?;
    Ok(answer.into_inner().transfer.expect("a transfer"))
}

/// Asks for it, and returns how that ended.
async fn ended(server: &TestServer, message: TriggerDownloadRequest) -> Transfer {
    let id = ask(server, message).await.expect("triggered").id;
    server.ended(&id).await
}

fn assert_denied(transfer: &Transfer) {
    let failure = transfer.failure.as_ref().expect("a failure");
    assert_eq!(failure.reason(), FailReason::DeniedByPolicy, "{transfer:?}");
    assert_eq!(failure.detail, "not allowed by the client's policy");
    assert_eq!((transfer.size, transfer.bytes_received), (None, 0));
}

#[tokio::test]
async fn only_what_a_listed_key_signed_leaves() {
    let (site, alice) = (Site::new(), key());
    let server = TestServer::start().await;
    let client = site.start(&server, &alice).await;
    let unsigned = |name: &str| TriggerDownloadRequest {
        client_id: "client-1".to_owned(),
        path: site.text(name),
        ..Default::default()
    };
    for name in ["vault/f", "vault/absent", "vault"] {
        assert_denied(&ended(&server, unsigned(name)).await);
    }
    let by_nobody = message(&site.request("vault/f"), &key());
    let old = SignedRequest { expires: UnixMs::now(), ..site.request("vault/f") };
    let for_ever = UnixMs::now().plus(31 * 24 * HOUR);
    let for_ever = SignedRequest { expires: for_ever, ..site.request("vault/f") };
    for denied in [by_nobody, message(&old, &alice), message(&for_ever, &alice)] {
        assert_denied(&ended(&server, denied).await);
    }

    let request = site.request("vault/f");
    let id = ask(&server, message(&request, &alice)).await.expect("triggered").id;
    assert_eq!(id, request.transfer.to_string());
    assert_eq!(server.landed(&id).await.1, b"secret");
    // Where nothing needs to be signed, nothing is different.
    let free = ended(&server, unsigned("free")).await;
    assert_eq!(free.state(), State::Complete);
    let signed = ended(&server, message(&site.request("free"), &alice)).await;
    assert_eq!(signed.state(), State::Complete);
    client.stop().await;
}

#[tokio::test]
async fn a_link_is_no_way_around() {
    let (site, alice) = (Site::new(), key());
    std::os::unix::fs::symlink("vault/f", site.path("link")).expect("linked");
    std::os::unix::fs::symlink("vault", site.path("directory")).expect("linked");
    let server = TestServer::start().await;
    let client = site.start(&server, &alice).await;
    for name in ["link", "directory", "directory/f", "directory/absent"] {
        let unsigned = server.trigger("client-1", &site.text(name)).await;
        assert_denied(&server.ended(&unsigned.id).await);
    }
    let request = site.request("link");
    let id = ask(&server, message(&request, &alice)).await.expect("triggered").id;
    assert_eq!(server.landed(&id).await.1, b"secret");
    client.stop().await;
}

#[tokio::test]
async fn a_server_refuses_at_once_what_the_client_would() {
    let (site, alice) = (Site::new(), key());
    let server = TestServer::start().await;
    let client = site.start(&server, &alice).await;
    let good = message(&site.request("vault/f"), &alice);
    let changes: [(&str, Change); 9] = [
        ("path", |m| m.path += "/x"),
        ("consistency", |m| m.consistency = proto::Consistency::Strict.into()),
        ("max_rate", |m| m.max_rate = 64_000),
        ("transfer_id", |m| m.transfer_id = TransferId::generate().to_string()),
        ("UUIDv7", |m| m.transfer_id = "6fa459ea-ee8a-4ca4-894e-db77e160355e".into()),
        ("transfer_id is missing", |m| m.transfer_id.clear()),
        ("signature is missing", |m| m.signature = None),
        ("signature", |m| m.signature.as_mut().expect("one").signature = vec![0; 63].into()),
        ("signature", |m| m.signature.as_mut().expect("one").request = vec![0; 9999].into()),
    ];
    for (what, change) in changes {
        let mut message = good.clone();
        change(&mut message);
        let refused = ask(&server, message).await.expect_err(what);
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{what}: {refused}");
        assert!(refused.message().contains(what), "{what}: {refused}");
    }
    let other = TriggerDownloadRequest { client_id: "client-2".into(), ..good.clone() };
    let refused = ask(&server, other).await.expect_err("another client");
    assert!(refused.message().contains("another client_id"), "{refused}");

    let named = TriggerDownloadRequest { request_id: "once".into(), ..good.clone() };
    let first = ask(&server, named.clone()).await.expect("triggered");
    assert_eq!(ask(&server, named).await.expect("the same").id, first.id);
    let taken = ask(&server, good).await.expect_err("taken");
    assert_eq!(taken.code(), tonic::Code::AlreadyExists, "{taken}");
    assert_eq!(fts::status::reason(&taken), Some(fts::status::Reason::AlreadyExists));
    client.stop().await;
}

#[tokio::test]
async fn what_was_delivered_is_spent_for_any_server_after_a_restart_too() {
    let (site, alice) = (Site::new(), key());
    let server = TestServer::start().await;
    let client = site.start(&server, &alice).await;
    let request = message(&site.request("vault/f"), &alice);
    assert_eq!(ended(&server, request.clone()).await.state(), State::Complete);
    let port = server.address.port();
    server.stop().await;

    client.stop().await;

    // It has none of the records, and all that was ever passed on.
    let dir = Arc::new(TempDir::new().expect("a directory"));
    let stolen = TestServer::start_in(dir, Setup::default(), port).await;
    let client = site.start(&stolen, &alice).await;
    let replayed = ended(&stolen, request).await;
    assert_denied(&replayed);

    let again = proto::RetryTransferRequest { transfer_id: replayed.id.clone() };
    stolen.control().await.retry_transfer(again).await.expect("queued");
    assert_denied(&stolen.ended(&replayed.id).await);
    client.stop().await;
}

#[tokio::test]
async fn what_broke_goes_on_with_the_same_signature() {
    let (site, alice) = (Site::new(), key());
    let data = bytes(12 * CHUNK_BYTES, 7);
    fs::write(site.path("vault/large"), &data).expect("written");
    let server = TestServer::start().await;
    let slow = site.start_with(&server, &alice, Some(4 << 20)).await;
    let request = message(&site.request("vault/large"), &alice);
    let id = ask(&server, request).await.expect("triggered").id;
    server.shown(&id, |t| t.bytes_done > 2 * CHUNK_BYTES as u64).await;
    slow.abort().await;
    // And on, from the records of a server that was restarted too.
    let port = server.address.port();
    let dir = server.abort().await;
    let server = TestServer::start_in(dir, Setup::default(), port).await;

    let client = site.start(&server, &alice).await;

    let (transfer, landed) = server.landed(&id).await;
    assert!(landed == data);
    assert!(transfer.attempts > 1, "{transfer:?}");
    client.stop().await;
}

#[tokio::test]
async fn a_key_that_the_site_has_replaced_is_good_for_nothing() {
    let (site, old, new) = (Site::new(), key(), key());
    let server = TestServer::start().await;
    let client = site.start(&server, &old).await;
    let signed = site.request("vault/f");
    assert_eq!(ended(&server, message(&signed, &old)).await.state(), State::Complete);
    client.stop().await;

    let client = site.start(&server, &new).await;
    let [one, two] = [site.request("vault/f"), site.request("vault/f")];
    assert_denied(&ended(&server, message(&one, &old)).await);
    assert_eq!(ended(&server, message(&two, &new)).await.state(), State::Complete);
    client.stop().await;
}

/// Runs `fts`, which knows nothing but what it is told.
fn fts(server: &TestServer, args: &[&str], env: &[(&str, &Path)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fts"))
        .args(args)
        .env_clear()
        .env("SERVER_URL", server.url())
        .envs(env.iter().copied())
        .output()
        .expect("run")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tool_makes_a_key_and_signs_with_it() {
    let site = Site::new();
    let server = TestServer::start().await;
    let file = site.dir.path().join("alice.pem");
    let made = fts(&server, &["key", "generate", file.to_str().expect("text")], &[]);
    let printed = String::from_utf8(made.stdout).expect("text");
    let vault = site.text("vault");
    let policy =
        format!("[[root]]\nname = 'v'\npath = '{vault}'\nrequire_signature = true\n{printed}");
    let policy = Policy::parse(&policy).expect("what it prints is what a policy takes");
    let client = TestClient::start_with(&server.url(), "client-1", &[], |config| {
        config.shared = Shared::Policy(policy);
    });
    server.online("client-1").await;
    let pull = ["pull", "client-1", &site.text("vault/f")];

    let unsigned = fts(&server, &pull, &[]);
    let signed = fts(&server, &pull, &[("FTS_SIGN_KEY", &file)]);
    let mine = site.dir.path().join("mine");
    let source = format!("client-1:{}", site.text("vault/f"));
    let copy = ["cp", &source, mine.to_str().expect("text"), "--sign-key"];
    let copied = fts(&server, &[&copy[..], &[file.to_str().expect("text")]].concat(), &[]);

    let told = String::from_utf8_lossy(&unsigned.stderr);
    assert_eq!(unsigned.status.code(), Some(1), "{told}");
    assert!(told.contains("DENIED_BY_POLICY") && told.contains("--sign-key"), "{told}");
    assert_eq!(signed.status.code(), Some(0), "{signed:?}");
    assert_eq!(copied.status.code(), Some(0), "{copied:?}");
    assert_eq!(fs::read(&mine).expect("copied"), b"secret");
    client.stop().await;
}
