use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use super::{
    fake_enrolment::{Machine, TlsServer},
    join::JoinError,
    *,
};
use crate::{
    ids::{AttemptId, Epoch, TransferId},
    server_url::ServerUrl,
    status::{Reason, status},
    tls::test_authority::{Authority, Clients, HOUR},
    token::{Token, TokenKind},
    transfer::Consistency,
    wire::session::{Command, FromServer, Upload},
};

/// Long enough for anything that happens at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("in time")
}

fn stored_leaf(machine: &Machine) -> CertificateDer<'static> {
    let stored = crate::tls::read_pem_certificates(&machine.state_dir().join("identity.pem"));
    stored.expect("good").remove(0)
}

#[tokio::test]
async fn a_machine_joins_once_and_from_then_on_it_is_just_started() {
    let mut server = TlsServer::start().await;
    let (machine, token) = (Machine::new(), server.token());
    // While an authority changes there are two.
    let roots = vec![Authority::new().root, server.authority.root.clone()];
    server.desk(|desk| desk.roots.clone_from(&roots));
    let joined = machine.join(&server.url, &token).await.expect("joined");
    assert!(!joined.is_pending && joined.warnings.is_empty(), "{joined:?}");

    let (bearer, request) = server.desk(|desk| desk.joins.pop()).expect("a Join");
    assert_eq!(bearer, format!("Bearer {}", token.reveal().reveal()));
    assert_eq!((request.client_id.as_str(), request.host_name.as_str()), ("web-1", "web-1"));
    let (_, csr) =
        X509CertificationRequest::from_der(&request.certificate_request).expect("PKCS #10");
    let key = &csr.certification_request_info.subject_pki.subject_public_key.data;
    assert_eq!(key.len(), 65, "a point of P-256");
    for name in ["identity.pem", "server-roots.pem"] {
        let mode = fs::metadata(machine.state_dir().join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let stored = crate::tls::read_pem_certificates(&machine.state_dir().join("server-roots.pem"));
    assert_eq!(stored.expect("good"), roots);
    let joined =
        fs::read_to_string(machine.home.path().join(".local/state/fts-client/joined.toml"));
    let joined = joined.expect("there");
    assert!(!joined.contains("fts_join"), "{joined}");

    let client = machine.start();
    let session = soon(server.fake.session()).await;
    assert_eq!(session.hello.client.as_str(), "web-1");
    let shown = server.desk(|desk| desk.shown.pop()).flatten();
    assert_eq!(shown, Some(stored_leaf(&machine)), "it shows what it was given");
    let page = serde_json::to_value(client.board.page()).expect("JSON");
    assert!(page["identity"]["renews_at"].as_str() < page["identity"]["expires"].as_str());
    drop(session);
    client.stop().await;
}

#[tokio::test]
async fn a_join_that_is_refused_is_told_in_words_and_leaves_nothing() {
    let server = TlsServer::start().await;
    let machine = Machine::new();
    let refusals = [
        (Reason::JoinRefused, 77, "fts-server token create"),
        (Reason::Unauthenticated, 77, "no such token"),
        (Reason::Unavailable, 69, "cannot reach"),
    ];
    for (reason, code, word) in refusals {
        server.desk(|desk| desk.refuses = Some(reason));
        let token = server.token();
        let err = machine.join(&server.url, &token).await.expect_err("refused");
        assert_eq!(err.exit_code(), code, "{err}");
        assert!(std::error::Error::source(&err).is_none(), "its cause would be told twice");
        let told = format!("{err} {err:?}");
        assert!(told.contains(word), "{told}");
        assert!(!told.contains(&token.reveal().reveal()[30..60]), "{told}");
        assert!(!machine.state_dir().join("identity.pem").exists());
        assert!(!machine.state_dir().join("../joined.toml").exists());
    }
}

#[tokio::test]
async fn a_token_is_told_to_no_server_but_the_one_that_it_names() {
    let (ours, theirs) = (TlsServer::start().await, TlsServer::start().await);
    let machine = Machine::new();
    let err = machine.join(&theirs.url, &ours.token()).await.expect_err("refused");
    assert_eq!(err.exit_code(), 69, "{err}");
    assert!(err.to_string().contains("does not lead to what is trusted"), "{err}");
    assert!(theirs.desk(|desk| desk.joins.is_empty()));

    // Without a root in the token, --ca says it.
    let ca = machine.home.path().join("ca.pem");
    let root = pem::Pem::new("CERTIFICATE", Authority::new().root.to_vec());
    fs::write(&ca, pem::encode(&root)).expect("written");
    let token = Token::generate(TokenKind::Join, None).expect("random");
    let with_ca = |flags: &mut config::JoinFlags| {
        flags.ca = Some(ca.to_str().expect("text").to_owned());
    };
    let err = machine.join_with(&ours.url, &token, with_ca).await.expect_err("refused");
    assert_eq!(err.exit_code(), 69, "{err}");
    assert!(ours.desk(|desk| desk.joins.is_empty()));
    let root = pem::Pem::new("CERTIFICATE", ours.authority.root.to_vec());
    fs::write(&ca, pem::encode(&root)).expect("written");
    machine.join_with(&ours.url, &token, with_ca).await.expect("joined");
}

#[tokio::test]
async fn an_identity_is_replaced_only_by_force() {
    let server = TlsServer::start().await;
    let machine = Machine::new();
    server.desk(|desk| desk.is_pending = true);
    let joined = machine.join(&server.url, &server.token()).await.expect("joined");
    assert!(joined.is_pending);
    let before = machine.identity();
    let again = machine.join(&server.url, &server.token()).await.expect_err("refused");
    assert!(matches!(again, JoinError::HasJoined(_)), "{again}");
    assert_eq!((again.exit_code(), machine.identity()), (78, before));
    assert_eq!(server.desk(|desk| desk.joins.len()), 1, "the token was not used");

    // One whose certificate is of a public authority names no root.
    server.desk(|desk| desk.roots.clear());
    let force = |flags: &mut config::JoinFlags| flags.force = true;
    machine.join_with(&server.url, &server.token(), force).await.expect("joined");
    assert_ne!(machine.identity(), before);
    assert!(!machine.state_dir().join("server-roots.pem").exists());
}

#[tokio::test]
async fn a_client_that_never_joined_is_told_to() {
    let machine = Machine::new();
    let mut config = machine.config();
    config.server = ServerUrl::parse("https://localhost:1").expect("a URL");
    let problems = Client::new(config).expect_err("no identity").problems;
    assert!(problems[0].contains("fts-client join"), "{problems:?}");
}

#[tokio::test]
async fn a_certificate_that_is_due_is_renewed_with_a_new_key() {
    let mut server = TlsServer::start().await;
    let machine = Machine::new();
    // Due as soon as it is made.
    server.desk(|desk| (desk.began, desk.lasts) = (100 * HOUR, HOUR));
    machine.join(&server.url, &server.token()).await.expect("joined");
    let before = stored_leaf(&machine);
    server.desk(|desk| (desk.began, desk.lasts) = (HOUR, 100 * HOUR));

    let client = machine.start();
    let renewed = async {
        // One that came before the renewal is followed by another.
        loop {
            let session = server.fake.session().await;
            let last = server.desk(|desk| desk.shown.last().cloned().flatten());
            if last.as_ref() != Some(&before) {
                return (session, last);
            }
        }
    };
    let (session, shown) = soon(renewed).await;
    assert_eq!(shown, Some(stored_leaf(&machine)));
    assert_eq!(server.desk(|desk| desk.renewals), 1);
    let key = |leaf: &CertificateDer<'_>| {
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).expect("a certificate");
        parsed.public_key().subject_public_key.data.to_vec()
    };
    assert_ne!(key(&before), key(&stored_leaf(&machine)));
    drop(session);
    client.stop().await;
}

#[tokio::test]
async fn a_renewal_replaces_the_session_and_an_upload_goes_on_through_it() {
    let mut server = TlsServer::start().await;
    let machine = Machine::new();
    let file = machine.home.path().join("file");
    fs::write(&file, vec![7; 64 << 20]).expect("written");
    machine.join(&server.url, &server.token()).await.expect("joined");
    let client = machine.start();
    let mut session = soon(server.fake.session()).await;
    let command = Command {
        attempt: AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) },
        path: Ok(Some(file.to_str().expect("text").parse().expect("a path"))),
        consistency: Consistency::Auto,
        size_max: 1 << 30,
        rate_max: None,
        signature: None,
        resume: None,
        operator: None,
    };
    let attempt = command.attempt;
    session.say(FromServer::Download(command)).await;
    let mut upload = soon(server.fake.upload()).await;
    assert!(soon(upload.next()).await.is_some());

    let begun = tokio::time::Instant::now();
    client.standing.renew();
    let next = soon(server.fake.session()).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(
        server.desk(|desk| desk.shown.last().cloned().flatten()),
        Some(stored_leaf(&machine))
    );
    assert_eq!(next.hello.running, [attempt]);
    // The old session has ended, and the upload has not: all of it comes.
    let rest = async { while session.next().await.is_some() {} };
    soon(rest).await;
    let mut bytes = 0;
    while bytes < 64 << 20 {
        if let Upload::Chunk { data, .. } = soon(upload.next()).await.expect("more") {
            bytes += data.len();
        }
    }
    drop((upload, next));
    client.stop().await;
}

#[tokio::test]
async fn a_certificate_that_the_server_calls_expired_is_renewed_at_once() {
    let mut server = TlsServer::start().await;
    let machine = Machine::new();
    machine.join(&server.url, &server.token()).await.expect("joined");
    let before = stored_leaf(&machine);
    let client = machine.start();
    let session = soon(server.fake.session()).await;
    session.refuse(status(Reason::CertificateExpired, "expired")).await;
    let renewed = async {
        while server.desk(|desk| desk.shown.last().cloned().flatten()) == Some(before.clone()) {
            drop(server.fake.session().await);
        }
    };
    soon(renewed).await;
    assert!(server.desk(|desk| desk.renewals) >= 1);
    client.stop().await;
}

#[tokio::test]
async fn one_that_has_expired_is_renewed_before_it_is_shown_to_connect() {
    let mut server = TlsServer::start().await;
    let machine = Machine::new();
    server.desk(|desk| desk.has_expired = true);
    machine.join(&server.url, &server.token()).await.expect("joined");
    // The first tries are in vain; the client goes on.
    server.desk(|desk| (desk.has_expired, desk.refuses) = (false, Some(Reason::Unavailable)));
    let client = machine.start();
    let tried = async {
        while server.desk(|desk| desk.renewals) < 2 {
            tokio::task::yield_now().await;
        }
    };
    soon(tried).await;
    let page = serde_json::to_value(client.board.page()).expect("JSON");
    let told = page["last_error"].as_str().expect("an error");
    assert!(told.starts_with("cannot renew the certificate"), "{told}");
    server.desk(|desk| desk.refuses = None);
    let _session = soon(server.fake.session()).await;
    let shown = server.desk(|desk| desk.shown.clone());
    // Connections: the join, the renewals with the expired one, and then Connect with the new one.
    let old = shown[1].clone();
    assert!(shown[0].is_none() && old.is_some());
    assert_ne!(shown.last(), Some(&old));
    let renewals = server.desk(|desk| desk.renewals);
    assert_eq!(shown.iter().filter(|leaf| **leaf == old).count(), renewals);
    client.stop().await;
}

#[tokio::test]
async fn whoever_is_not_let_in_is_told_what_to_do_and_tries_again() {
    let reasons = [
        (Reason::Revoked, "join --force"),
        (Reason::PendingApproval, "approve"),
        (Reason::Unauthenticated, "join --force"),
        (Reason::WrongClient, "another client"),
    ];
    for (reason, word) in reasons {
        let mut server = TlsServer::start().await;
        let machine = Machine::new();
        machine.join(&server.url, &server.token()).await.expect("joined");
        let client = machine.start();
        soon(server.fake.hello()).await.refuse(status(reason, "no")).await;
        let _session = soon(server.fake.session()).await;
        let page = serde_json::to_value(client.board.page()).expect("JSON");
        let told = page["last_error"].as_str().expect("an error").to_owned();
        assert!(told.contains(reason.as_str()) && told.contains(word), "{told}");
        assert_eq!(server.desk(|desk| desk.renewals), 0);
        client.stop().await;
    }
}

#[tokio::test]
async fn a_clock_that_differs_from_the_servers_is_told_with_both() {
    let server = TlsServer::start().await;
    server.desk(|desk| desk.clock_ahead = 2 * HOUR);
    let joined = Machine::new().join(&server.url, &server.token()).await.expect("joined");
    assert_eq!(joined.warnings.len(), 1, "{joined:?}");
    assert_eq!(joined.warnings[0].matches('Z').count(), 2, "{joined:?}");
}

#[tokio::test]
async fn an_alert_after_the_handshake_is_explained() {
    let server = TlsServer::start_for(Clients::Ours).await;
    let err = Machine::new().join(&server.url, &server.token()).await.expect_err("refused");
    assert!(err.to_string().contains("wants a certificate of this machine"), "{err}");
    assert_eq!(err.exit_code(), 69);
}
