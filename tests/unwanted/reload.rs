//! The server's certificate changes while it serves: whoever is connected notices nothing, whoever
//! comes is shown the new one, and a broken one is never shown.

use std::{fs, path::Path, sync::Arc};

use fts::{
    limits,
    server::{audit::read_dir, authority::Authority},
    tls::Trust,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::{ClientConfig, pki_types::CertificateDer};
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::{
    caller,
    child::{Child, wait_until},
    common::{
        raw::register,
        secured::{Secured, bearing},
        server::PATIENCE,
    },
};

/// Returns the certificate that a server shows now.
async fn shown(config: &Arc<ClientConfig>, address: std::net::SocketAddr) -> Vec<u8> {
    let stream = caller::shake(config, address).await.expect("TLS");
    let chain = stream.get_ref().1.peer_certificates().expect("a certificate");
    chain[0].to_vec()
}

/// Gives the server another certificate, of a new root: what knew the old one knows it no more.
fn change(pki: &Path) -> Authority {
    let authority = Authority::open(pki).expect("opened").expect("an authority");
    authority.rotate().expect("rotated").finish().expect("finished")
}

/// Tells a server to look at its files, and waits until it says so once more.
fn hang_up(child: &Child, says: &str) {
    let said = || child.server.process.read_log().matches(says).count();
    let before = said();
    child.server.process.signal(Signal::HUP);
    wait_until(says, || said() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_hang_up_new_callers_see_the_new_certificate_and_connections_stay() {
    let child = Child::start();
    let address = child.server.address;
    let old = caller::config(&child.authority(), None, &[b"h2"]);
    let before = shown(&old, address).await;
    let standing = child.channel(None).await;
    child.ask(standing.clone()).await;

    let new = caller::config(&change(&child.pki()), None, &[b"h2"]);
    let told = Instant::now();
    hang_up(&child, "took new certificates");

    // Long before it would have looked by itself.
    assert!(told.elapsed() < limits::CERTIFICATE_LOOK / 2, "{:?}", told.elapsed());
    wait_until("it is on record", || {
        let mut lines = read_dir(&child.dir.path().join("data"), None).expect("an audit");
        lines
            .any(|line| line.expect("a line").contains(r#""actor":"server","action":"tls.reload""#))
    });
    assert_ne!(shown(&new, address).await, before);
    caller::shake(&old, address).await.expect_err("it is of the new root");
    child.ask(standing).await;
    child.ask(child.channel(None).await).await;
}

#[tokio::test]
async fn without_a_hang_up_it_sees_the_new_certificate_by_itself() {
    use fts::{
        server::access::{Role, Scope},
        wire::proto::{ListClientsRequest, control_client::ControlClient},
    };

    let secured = Secured::start().await;
    let token = secured.operator("alice", Role::Viewer, Scope::default()).await;
    let mut standing = ControlClient::new(secured.channel(None).await);
    let mut ask = async || {
        let asked = bearing(&token, ListClientsRequest::default());
        standing.list_clients(asked).await.expect("the connection stands");
    };
    // Who has not shown who he is does not stand for long.
    ask().await;

    let new = caller::config(&change(&secured.pki()), None, &[b"h2"]);
    let seen = async {
        while caller::shake(&new, secured.server.address).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, seen).await.expect("the new certificate is shown");

    ask().await;
    secured.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_certificate_is_never_shown() {
    let child = Child::start();
    let (address, pki) = (child.server.address, child.pki());
    let config = caller::config(&child.authority(), None, &[b"h2"]);
    let before = shown(&config, address).await;
    let another = KeyPair::generate().expect("a key").serialize_pem();

    for (name, broken) in [
        ("server.pem", ""),
        ("server.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ("server.key", "nonsense"),
        ("server.key", another.as_str()),
        ("roots.pem", "nonsense"),
    ] {
        let path = pki.join(name);
        let good = fs::read(&path).expect("there");
        fs::write(&path, broken).expect("written");

        hang_up(&child, "kept the old certificates");

        assert_eq!(shown(&config, address).await, before, "{name}");
        child.ask(child.channel_by(&Trust::Roots(roots(&good, &pki)), None).await).await;
        fs::write(&path, good).expect("mended");
    }
    let log = child.server.process.read_log();
    assert!(!log.contains("PRIVATE KEY"), "no key is in the log");
}

/// What a caller trusts: of the files as they were.
fn roots(good: &[u8], pki: &Path) -> Vec<CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject as _;

    let now = fs::read(pki.join("roots.pem")).expect("there");
    let read = |text: &[u8]| CertificateDer::from_pem_slice(text).ok();
    // The damaged file may be this one.
    vec![read(&now).or_else(|| read(good)).expect("a root")]
}

/// A certificate authority of the operator's own, and a certificate for this server.
struct Own {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Own {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("signed").der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    fn write(&self, cert: &Path, key: &Path) {
        let secret = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        let leaf = params.signed_by(&secret, &self.issuer).expect("signed");
        fs::write(cert, leaf.pem()).expect("written");
        fs::write(key, secret.serialize_pem()).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_certificate_is_shown_and_read_again_and_clients_are_known_by_the_authority() {
    let files = tempfile::tempdir().expect("a directory");
    let (cert, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    let own = Own::new();
    own.write(&cert, &key);
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let child = Child::start_with(&["--tls-cert", &text(&cert), "--tls-key", &text(&key)]);
    let trust = Trust::Roots(vec![own.root.clone()]);
    let ask = async || child.ask(child.channel_by(&trust, None).await).await;
    let client = child.join_by(&trust, "web-1").await;

    ask().await;
    register(child.channel_by(&trust, Some(&client)).await, "web-1").await;
    own.write(&cert, &key);
    hang_up(&child, "took new certificates");
    ask().await;
    fs::write(&key, KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    hang_up(&child, "kept the old certificates");
    ask().await;

    let pinned = caller::config(&child.authority(), None, &[b"h2"]);
    caller::shake(&pinned, child.server.address).await.expect_err("not of its authority");
}
