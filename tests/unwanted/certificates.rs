//! Bad certificates: none of them gets one byte of an answer.

use std::sync::Arc;

use fts::{
    ids::InstanceId,
    server::{
        access::{Role, Scope},
        audit::read_dir,
        store::credentials::{Changed, Renewing},
    },
    status::{self, Reason},
    wire::{
        proto::{
            ListClientsRequest, RenewRequest, control_client::ControlClient,
            enrolment_client::EnrolmentClient, file_transfer_client::FileTransferClient,
        },
        session::FromClient,
    },
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::sign::CertifiedKey;
use tonic::transport::Channel;

use crate::{
    caller::{self, HEALTHZ},
    common::{
        raw::hello,
        secured::{Identity, Secured, bearing},
    },
    forge::{DAY, Forge, Leaf, Signer, uri, uri_of},
};

/// The bad ones by what is wrong with them.
fn bad(forge: &Forge) -> Vec<(&'static str, Identity)> {
    let mut all = by_signer(forge);
    all.extend(by_what_they_say(forge));
    all
}

fn by_signer(forge: &Forge) -> Vec<(&'static str, Identity)> {
    let good = || forge.leaf();
    vec![
        ("signed by itself", forge.self_signed()),
        ("of another authority", forge.of_another_authority()),
        ("of a signer with the right name and another key", forge.sign(&good(), &forge.impostor())),
        ("signed by the root", forge.sign(&good(), &forge.root())),
        ("signed by a client", forge.sign(&good(), &forge.client_that_signs())),
        ("signed beneath the intermediate", forge.sign(&good(), &forge.beneath_intermediate())),
        ("of a signer that has expired", {
            let leaf = Leaf { begins: -2 * DAY, ..good() };
            forge.sign(&leaf, &forge.expired_intermediate())
        }),
        ("without its intermediate", {
            let signer = Signer { chain: Vec::new(), ..forge.intermediate() };
            forge.sign(&good(), &signer)
        }),
        ("of the server", forge.of_the_server()),
        (
            "with a key that the caller does not hold",
            stolen(&forge.sign(&good(), &forge.intermediate())),
        ),
    ]
}

fn by_what_they_say(forge: &Forge) -> Vec<(&'static str, Identity)> {
    use ExtendedKeyUsagePurpose::{Any, ServerAuth};

    let uid = forge.uid.simple().to_string();
    let long = "a".repeat(200);
    let lives = |begins, ends| Leaf { begins, ends, ..forge.leaf() };
    let used = |usages| Leaf { usages, ..forge.leaf() };
    let named = |names: Vec<SanType>| Leaf { names, ..forge.leaf() };
    let says = |text: &str| named(vec![uri(text)]);
    let called = |client: &str, uid: &str| says(&uri_of("localhost", client, uid));
    let dns = || SanType::DnsName("web-1".try_into().expect("ASCII"));
    let leaves = [
        ("expired 181 days ago", lives(-300 * DAY, -181 * DAY)),
        ("good from tomorrow on", lives(DAY, 2 * DAY)),
        ("for servers", used(vec![ServerAuth])),
        ("for no use", used(Vec::new())),
        ("for any use", used(vec![Any])),
        ("with no name", named(Vec::new())),
        ("with a host name", named(vec![dns()])),
        ("with a host name as well", named(vec![uri(&forge.uri()), dns()])),
        ("with two names", named(vec![uri(&forge.uri()), uri(&forge.uri())])),
        ("of a foreign domain", says(&uri_of("evil.example.com", "web-1", &uid))),
        ("of a longer domain", says(&uri_of("localhost.evil.example.com", "web-1", &uid))),
        ("of no client", says("spiffe://localhost/server/web-1")),
        ("without a uid", says("spiffe://localhost/client/web-1")),
        ("with an empty uid", called("web-1", "")),
        ("with a garbled uid", called("web-1", "not-a-uid")),
        ("with more behind the uid", called("web-1", &format!("{uid}/admin"))),
        ("with a way out in its id", called("..", &uid)),
        ("with a path in its id", called("../web-1", &uid)),
        ("with a long id", called(&long, &uid)),
        ("with an empty id", called("", &uid)),
    ];
    let signer = forge.old_intermediate();
    leaves.into_iter().map(|(what, leaf)| (what, forge.sign(&leaf, &signer))).collect()
}

/// The chain of somebody, and a key of our own.
fn stolen(identity: &Identity) -> Identity {
    let own = KeyPair::generate().expect("a key");
    let own = rustls::pki_types::PrivateKeyDer::try_from(own.serialize_der()).expect("a key");
    let own = fts::tls::provider().key_provider.load_private_key(own).expect("a key");
    // Not checked to fit, unlike `from_der`.
    let key = Arc::new(CertifiedKey::new(identity.key.cert.clone(), own));
    Identity { key, ..identity.clone() }
}

/// Says Hello, as the client that the certificate would be of.
async fn connect(channel: Channel, client: &str) -> Result<(), tonic::Status> {
    let hello = FromClient::Hello(hello(client, InstanceId::generate()));
    let mut client = FileTransferClient::new(channel);
    let mut inbound = client.connect(tokio_stream::once(hello.into())).await?.into_inner();
    inbound.message().await?.ok_or_else(|| tonic::Status::unknown("no welcome"))?;
    Ok(())
}

/// Tries to connect, as far as that goes.
async fn try_connect(secured: &Secured, identity: &Identity) -> Result<(), String> {
    let route = secured.route(Some(identity));
    let dialled = route.endpoint().connect_with_connector(route.connector()).await;
    let channel = dialled.map_err(|err| err.to_string())?;
    connect(channel, "web-1").await.map_err(|err| err.to_string())
}

#[tokio::test]
async fn a_bad_certificate_is_answered_with_no_byte_and_has_no_effect() {
    let secured = Secured::start().await;
    let forge = Forge::new(&secured, "web-1").await;
    let authority = secured.tls.authority();
    let token = secured.operator("alice", Role::Viewer, Scope::default()).await;

    let mut let_in = Vec::new();
    for (what, identity) in bad(&forge) {
        let config = caller::config(&authority, Some(&identity), &[b"http/1.1"]);
        if let Ok(stream) = caller::shake(&config, secured.server.address).await {
            let answer = caller::tell(stream, HEALTHZ).await;
            if !answer.is_empty() {
                let_in.push((what, String::from_utf8_lossy(&answer).into_owned()));
            }
        }
        if try_connect(&secured, &identity).await.is_ok() {
            let_in.push((what, "a session".to_owned()));
        }
    }

    assert!(let_in.is_empty(), "let in: {let_in:#?}");
    let mut control = ControlClient::new(secured.channel(None).await);
    let clients = control.list_clients(bearing(&token, ListClientsRequest::default())).await;
    assert!(clients.expect("answered").into_inner().clients.is_empty(), "no client has connected");
    // What the bad ones were made of is good: only what is wrong with them kept them out.
    for signer in [forge.intermediate(), forge.old_intermediate()] {
        let good = forge.sign(&forge.leaf(), &signer);
        try_connect(&secured, &good).await.expect("a good certificate is let in");
    }
    secured.server.stop().await;
}

#[tokio::test]
async fn a_refused_certificate_is_on_record_with_what_is_wrong_and_garbage_is_not() {
    let secured = Secured::start().await;
    let forge = Forge::new(&secured, "web-1").await;
    let all = bad(&forge);
    for (_, identity) in &all {
        let config = caller::config(&secured.tls.authority(), Some(identity), &[b"http/1.1"]);
        if let Ok(stream) = caller::shake(&config, secured.server.address).await {
            caller::tell(stream, HEALTHZ).await;
        }
        let stream = tokio::net::TcpStream::connect(secured.server.address).await;
        caller::tell(stream.expect("connected"), HEALTHZ).await;
    }

    let dir = secured.server.stop().await;
    let lines = read_dir(dir.path(), None).expect("an audit").map(|line| line.expect("a line"));
    let refused: Vec<_> = lines.filter(|line| line.contains("TLS handshake")).collect();
    assert_eq!(refused.len(), all.len(), "{refused:#?}");
    for line in &refused {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&line["actor"], &line["log"]), (&"unknown".into(), &"refused".into()));
        let what = line["target"]["text"].as_str();
        assert!(what.is_some_and(|what| !what.is_empty()), "{line}");
    }
}

/// As if the client had got this certificate at its last renewal.
async fn put_on_record(secured: &Secured, identity: &Identity) {
    let named = secured.tls.authority().identify(&identity.key.cert[0]).expect("a client");
    let held = secured.credentials().identity(&identity.client).await.expect("read");
    let held = held.expect("known");
    let renewing = Renewing {
        client: named.client,
        uid: named.uid,
        shown: held.key,
        shown_begins: held.begins,
        key: named.key,
        begins: named.begins,
        expires: named.expires,
    };
    let renewed = secured.credentials().renew(&renewing).await.expect("written");
    assert!(matches!(renewed, Changed::Done(_)), "{renewed:?}");
}

#[tokio::test]
async fn a_certificate_that_expired_within_180_days_renews_and_does_nothing_else() {
    let secured = Secured::start().await;
    let forge = Forge::new(&secured, "web-1").await;
    let signer = forge.old_intermediate();

    for (begins, ends) in [(-60, -1), (-300 * DAY, -179 * DAY)] {
        let leaf = Leaf { begins, ends, ..forge.leaf() };
        let expired = forge.sign(&leaf, &signer);
        put_on_record(&secured, &expired).await;
        let channel = secured.channel(Some(&expired)).await;

        let connected = connect(channel.clone(), "web-1").await.expect_err("refused");
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("signed");
        let ask = RenewRequest { certificate_request: request.der().to_vec().into() };
        let renewed = EnrolmentClient::new(channel).renew(ask).await.expect("renewed");

        assert_eq!(status::reason(&connected), Some(Reason::CertificateExpired), "{connected}");
        let chain = renewed.into_inner().certificate.expect("a certificate").chain;
        let chain = chain.iter().map(|der| der.to_vec().into()).collect();
        let fresh = crate::common::secured::identity("web-1".parse().expect("an id"), &key, chain);
        try_connect(&secured, &fresh).await.expect("the renewed one is let in");
    }
    secured.server.stop().await;
}
