//! Other languages on the port than the one that is spoken there.

use fts::tls::ALPN_HTTP2;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    caller::{self, HEALTHZ, PREFACE},
    common::{secured::Secured, server::TestServer},
};

/// A hello of a client that offers TLS 1.2 at most.
fn hello_of_tls_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.push(0); // no session
    // ECDHE with ECDSA or RSA, and AES-GCM.
    body.extend([0, 8, 0xc0, 0x2b, 0xc0, 0x2c, 0xc0, 0x2f, 0xc0, 0x30]);
    body.extend([1, 0]); // no compression
    let groups = [0, 10, 0, 6, 0, 4, 0, 29, 0, 23];
    let formats = [0, 11, 0, 2, 1, 0];
    let signatures = [0, 13, 0, 6, 0, 4, 4, 3, 8, 4];
    let extensions = [&groups[..], &formats, &signatures].concat();
    body.extend(u16::try_from(extensions.len()).expect("short").to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).expect("short").to_be_bytes());
    record.extend(message);
    record
}

/// Whether bytes are nothing, or one fatal alert of TLS.
fn is_alert(bytes: &[u8]) -> bool {
    matches!(bytes, [] | [21, 3, _, 0, 2, 2, _])
}

#[tokio::test]
async fn clear_text_on_the_port_of_tls_is_answered_with_an_alert_at_most() {
    let secured = Secured::start().await;
    let address = secured.server.address;
    let request = b"POST /fts.v1.Control/ListClients HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for said in [HEALTHZ, request, PREFACE, b"\r\n\r\n\r\n\r\n", &[0; 64]] {
        let stream = TcpStream::connect(address).await.expect("connected");
        let answer = caller::tell(stream, said).await;
        assert!(is_alert(&answer), "{said:?}: {answer:?}");
    }
    secured.server.stop().await;
}

#[tokio::test]
async fn tls_1_2_is_refused_by_name() {
    let secured = Secured::start().await;
    let stream = TcpStream::connect(secured.server.address).await.expect("connected");

    let answer = caller::tell(stream, &hello_of_tls_1_2()).await;

    // 70 is protocol_version: the rest of the hello was understood.
    assert!(matches!(answer[..], [21, 3, _, 0, 2, 2, 70]), "{answer:?}");
    secured.server.stop().await;
}

#[tokio::test]
async fn an_unknown_protocol_is_refused_and_both_known_ones_are_spoken() {
    let secured = Secured::start().await;
    let (address, authority) = (secured.server.address, secured.tls.authority());

    let unknown = caller::config(&authority, None, &[b"imap", b"spdy/3"]);
    let refused = caller::shake(&unknown, address).await.expect_err("refused").to_string();
    let mut http1 = caller::shake(&caller::config(&authority, None, &[b"http/1.1"]), address)
        .await
        .expect("TLS");
    http1.write_all(HEALTHZ).await.expect("sent");
    let answer = caller::first_bytes(&mut http1).await;
    let http2 = caller::config(&authority, None, &[ALPN_HTTP2]);
    let http2 = caller::shake(&http2, address).await.expect("TLS");

    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(http2.get_ref().1.alpn_protocol(), Some(ALPN_HTTP2));
    let (mut ask, connection) = h2::client::handshake(http2).await.expect("HTTP/2");
    let ask = async {
        let request = http::Request::get("https://localhost/healthz").body(()).expect("valid");
        let (answer, _) = ask.send_request(request, true).expect("sent");
        answer.await.expect("answered").status()
    };
    let status = tokio::select! {
        status = ask => status,
        ended = connection => panic!("it ended first: {ended:?}"),
    };
    assert_eq!(status, 200);
    secured.server.stop().await;
}

#[tokio::test]
async fn who_names_no_protocol_needs_credentials_as_everyone() {
    let secured = Secured::start().await;
    let none = caller::config(&secured.tls.authority(), None, &[]);
    let mut stream = caller::shake(&none, secured.server.address).await.expect("TLS");
    stream.write_all(b"GET /clients HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let answer = caller::first_bytes(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    secured.server.stop().await;
}

#[tokio::test]
async fn tls_on_a_port_in_clear_fails_cleanly_and_the_port_is_served_on() {
    let secured = Secured::start().await;
    let clear = TestServer::start().await;
    let config = caller::config(&secured.tls.authority(), None, &[b"http/1.1"]);

    let shaken = caller::shake(&config, clear.address).await;

    shaken.expect_err("it speaks no TLS");
    let mut stream = TcpStream::connect(clear.address).await.expect("connected");
    stream.write_all(HEALTHZ).await.expect("sent");
    assert!(caller::first_bytes(&mut stream).await.starts_with("HTTP/1.1 200"));
    clear.stop().await;
    secured.server.stop().await;
}
