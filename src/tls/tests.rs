use rustls::{HandshakeKind, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{
    test_authority::{Authority, Clients, HOUR, OneShot, Shown, lasted, lasts},
    *,
};
use crate::{
    route::{Proxies, Route, RouteError},
    server_url::ServerUrl,
};

const SECRET: &[u8] = b"a file, or a token";

/// Dials `server` as localhost, and sends the secret if that is possible. Returns what the server
/// heard of it, and why it was not dialled.
async fn send(server: OneShot, trust: &Trust) -> (Vec<u8>, Option<RouteError>) {
    let url = format!("https://localhost:{}", server.address.port());
    let url = ServerUrl::parse(&url).expect("a URL");
    let route = Route::new(&url, trust, None, &Proxies::off()).expect("a route");
    let refused = match route.connect().await {
        Ok(mut stream) => {
            stream.write_all(SECRET).await.expect("sent");
            stream.shutdown().await.expect("closed");
            None
        }
        Err(err) => Some(err),
    };
    (server.heard().await, refused)
}

async fn send_to(shown: &Shown, trust: &Trust) -> (Vec<u8>, Option<RouteError>) {
    let acceptor = Authority::new().acceptor(shown, Clients::Unasked);
    send(OneShot::tls(acceptor).await, trust).await
}

/// Dials a server that shows `shown`, which must not be trusted, nor hear a byte; returns why, in
/// words.
async fn refused(shown: &Shown, trust: &Trust) -> String {
    let (heard, err) = send_to(shown, trust).await;
    assert_eq!(heard, b"", "the server heard something");
    let err = err.expect("refused");
    explain(&err).unwrap_or_else(|| panic!("unexplained: {err:?}"))
}

fn pin(authority: &Authority) -> Trust {
    Trust::Pinned(Sha256::of(&authority.root))
}

fn roots(authority: &Authority) -> Trust {
    Trust::Roots(vec![authority.root.clone()])
}

#[tokio::test]
async fn a_server_of_the_trusted_root_is_dialled() {
    let authority = Authority::new();
    let shown = authority.server("localhost", |_| ());
    for trust in [pin(&authority), roots(&authority)] {
        let (heard, err) = send_to(&shown, &trust).await;
        assert!(err.is_none(), "{err:?}");
        assert_eq!(heard, SECRET);
    }
}

#[tokio::test]
async fn a_server_of_another_root_hears_nothing() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let shown = theirs.server("localhost", |_| ());
    for trust in [pin(&ours), roots(&ours)] {
        let why = refused(&shown, &trust).await;
        assert!(why.contains(&Sha256::of(&ours.root).to_string()), "{why}");
        assert!(why.contains("--ca"), "{why}");
    }
}

#[tokio::test]
async fn a_pinned_root_that_is_only_sent_along_vouches_for_nobody() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let mut shown = theirs.server("localhost", |_| ());
    shown.chain.push(ours.root.clone());
    let why = refused(&shown, &pin(&ours)).await;
    assert!(why.contains("does not lead to"), "{why}");
}

#[tokio::test]
async fn a_leaf_is_no_root_also_if_it_is_the_pinned_one() {
    let mut shown = Shown::self_signed("localhost");
    let pinned = Trust::Pinned(Sha256::of(&shown.chain[0]));
    refused(&shown, &pinned).await;
    shown.chain.push(shown.chain[0].clone());
    refused(&shown, &pinned).await;
    refused(&shown, &roots(&Authority::new())).await;
}

#[tokio::test]
async fn a_server_with_another_name_hears_nothing_and_its_names_are_told() {
    let authority = Authority::new();
    let shown = authority.server("fts.example.com", |_| ());
    for trust in [pin(&authority), roots(&authority)] {
        let why = refused(&shown, &trust).await;
        assert!(why.contains("\"localhost\", but for fts.example.com"), "{why}");
    }
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_told_with_the_clock() {
    let authority = Authority::new();
    let shown = authority.server("localhost", lasted);
    for trust in [pin(&authority), roots(&authority)] {
        let why = refused(&shown, &trust).await;
        assert!(why.contains("expired at") && why.contains("clock"), "{why}");
        assert_eq!(why.matches('Z').count(), 2, "both times: {why}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_told_with_the_clock() {
    let authority = Authority::new();
    let shown = authority.server("localhost", |params| {
        lasts(params, HOUR, 2 * HOUR);
        params.not_before = (SystemTime::now() + HOUR).into();
    });
    for trust in [pin(&authority), roots(&authority)] {
        let why = refused(&shown, &trust).await;
        assert!(why.contains("not valid before") && why.contains("clock"), "{why}");
        assert_eq!(why.matches('Z').count(), 2, "both times: {why}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_purpose_is_refused() {
    let authority = Authority::new();
    let shown = authority.server("localhost", |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    for trust in [pin(&authority), roots(&authority)] {
        let why = refused(&shown, &trust).await;
        assert!(why.contains("not one of a server"), "{why}");
    }
}

#[tokio::test]
async fn a_server_without_tls_hears_nothing() {
    let trust = roots(&Authority::new());
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"\0\0\0\x04\0\0\0\0\0", b""] {
        let (heard, err) = send(OneShot::plain(answer.to_vec()).await, &trust).await;
        let why = explain(&err.expect("refused")).expect("explained");
        assert!(why.contains("http://"), "{why}");
        assert!(!heard.windows(SECRET.len()).any(|part| part == SECRET));
    }
}

#[tokio::test]
async fn a_server_of_an_older_tls_hears_nothing() {
    // A ServerHello of TLS 1.2, byte by byte: this build has no such server.
    let mut hello = b"\x16\x03\x03\x00\x2a\x02\x00\x00\x26\x03\x03".to_vec();
    hello.extend([7; 32]);
    hello.extend(b"\x00\xc0\x2b\x00");
    let protocol_version = b"\x15\x03\x03\x00\x02\x02\x46".to_vec();
    for answer in [hello, protocol_version] {
        let server = OneShot::plain(answer).await;
        let (heard, err) = send(server, &pin(&Authority::new())).await;
        let why = explain(&err.expect("refused")).expect("explained");
        assert!(why.contains("TLS 1.3"), "{why}");
        assert!(!heard.windows(SECRET.len()).any(|part| part == SECRET));
    }
}

#[tokio::test]
async fn a_server_that_agrees_on_no_http2_hears_nothing() {
    let authority = Authority::new();
    let shown = authority.server("localhost", |_| ());
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(shown.chain.clone(), shown.private())
        .expect("a pair");
    let acceptor = Arc::new(config).into();
    let (heard, err) = send(OneShot::tls(acceptor).await, &pin(&authority)).await;
    assert_eq!(heard, b"");
    assert!(matches!(err, Some(RouteError::NoHttp2)), "{err:?}");
}

#[tokio::test]
async fn no_session_is_resumed_so_certificates_are_looked_at_each_time() {
    let authority = Authority::new();
    let shown = authority.server("localhost", |_| ());
    let acceptor = authority.acceptor(&shown, Clients::Unasked);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let port = listener.local_addr().expect("an address").port();
    let url = ServerUrl::parse(&format!("https://localhost:{port}")).expect("a URL");
    let route = Route::new(&url, &pin(&authority), None, &Proxies::off()).expect("a route");
    for _ in 0..2 {
        let serve = async {
            let (socket, _) = listener.accept().await.expect("accepted");
            let mut stream = acceptor.accept(socket).await.expect("a handshake");
            stream.write_all(b"!").await.expect("sent");
            stream
        };
        // The ticket comes before the byte.
        let dial = async {
            let mut stream = route.connect().await.expect("connected");
            assert_eq!(stream.read_u8().await.expect("a byte"), b'!');
        };
        let (stream, ()) = tokio::join!(serve, dial);
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn an_alert_is_explained_also_where_only_its_text_is_left() {
    let alerts = [
        (AlertDescription::CertificateRequired, "join"),
        (AlertDescription::UnknownCA, "authority"),
        (AlertDescription::CertificateExpired, "expired"),
        (AlertDescription::CertificateRevoked, "revoked"),
    ];
    for (alert, word) in alerts {
        let whole = rustls::Error::AlertReceived(alert);
        let text = io::Error::other(whole.to_string());
        for err in [io::Error::other(whole), io::Error::other(text)] {
            let why = explain(&err).unwrap_or_else(|| panic!("unexplained: {err:?}"));
            assert!(why.contains(word), "{why}");
        }
    }
    assert_eq!(explain(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
}

#[test]
fn what_is_no_file_of_certificates_is_told_with_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("ca.pem");
    let problem = || read_pem_certificates(&path).expect_err("refused").to_string();
    assert!(problem().contains("ca.pem"), "{}", problem());
    for text in ["", "hello", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&path, text).expect("written");
        assert!(problem().contains("ca.pem"), "{}", problem());
    }
    let nonsense = Trust::Roots(vec![vec![1, 2, 3].into()]);
    assert!(matches!(client_config(&nonsense, None), Err(TlsError::Root(_))));
}
