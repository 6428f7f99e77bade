//! Callers who hoard: connections, streams, headers, bodies.

use std::{net::SocketAddr, sync::Arc};

use fts::{limits, tls::ALPN_HTTP2};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Duration, Instant, timeout},
};
use tokio_rustls::client::TlsStream;
use uuid::Uuid;

use crate::{
    caller::{self, HEALTHZ, PREFACE},
    child::Child,
    common::{
        secured::{Identity, Secured},
        server::PATIENCE,
    },
    forge::{Forge, Leaf, uri, uri_of},
};

async fn dial(secured: &Secured, identity: &Identity) -> TlsStream<TcpStream> {
    let config = caller::config(&secured.tls.authority(), Some(identity), &[b"http/1.1"]);
    caller::shake(&config, secured.server.address).await.expect("TLS")
}

/// Asks what anybody is answered.
async fn is_answered(stream: &mut TlsStream<TcpStream>) -> bool {
    drop(stream.write_all(HEALTHZ).await);
    caller::first_bytes(stream).await.starts_with("HTTP/1.1 200")
}

async fn fill(secured: &Secured, identity: &Identity) -> Vec<TlsStream<TcpStream>> {
    let mut held = Vec::new();
    for _ in 0..limits::CONNECTIONS_PER_CLIENT_MAX {
        let mut stream = dial(secured, identity).await;
        assert!(is_answered(&mut stream).await, "{} are let in", held.len());
        held.push(stream);
    }
    held
}

#[tokio::test]
async fn one_client_has_so_many_connections_and_others_have_theirs() {
    let secured = Secured::start().await;
    let (hoarder, other) = (secured.identity("web-1").await, secured.identity("web-2").await);

    let mut held = fill(&secured, &hoarder).await;

    assert!(!is_answered(&mut dial(&secured, &hoarder).await).await, "one too many");
    assert!(is_answered(&mut dial(&secured, &other).await).await, "another client");
    drop(held.pop());
    let freed = async { while !is_answered(&mut dial(&secured, &hoarder).await).await {} };
    timeout(PATIENCE, freed).await.expect("a place that was given back is free");
    drop(held);
    secured.server.stop().await;
}

#[tokio::test]
async fn a_replaced_certificate_takes_no_place_of_who_has_the_id_now() {
    let secured = Secured::start().await;
    let forge = Forge::new(&secured, "web-1").await;
    let now = forge.sign(&forge.leaf(), &forge.intermediate());
    let uid = Uuid::new_v4().simple().to_string();
    let names = vec![uri(&uri_of("localhost", "web-1", &uid))];
    let replaced = forge.sign(&Leaf { names, ..forge.leaf() }, &forge.intermediate());

    let held = fill(&secured, &replaced).await;

    assert!(is_answered(&mut dial(&secured, &now).await).await);
    drop(held);
    secured.server.stop().await;
}

/// A HEADERS frame of a stream that goes on: `POST /` to `localhost`.
fn open_stream(id: u32) -> Vec<u8> {
    let block = [&[0x83, 0x84, 0x87, 0x41, 9][..], b"localhost"].concat();
    let length = u8::try_from(block.len()).expect("short");
    [&[0, 0, length, 1, 4][..], &id.to_be_bytes(), &block].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_streams_of_nobody_take_little_memory_and_end_in_time() {
    let child = Child::start();
    child.ask(child.channel(None).await).await;
    let before = child.memory();
    let config = caller::config(&child.authority(), None, &[ALPN_HTTP2]);
    let stream = caller::shake(&config, child.server.address).await.expect("TLS");
    let began = Instant::now();

    let (mut read, mut write) = tokio::io::split(stream);
    let flood = async {
        write.write_all(PREFACE).await?;
        for number in 0..10_000 {
            write.write_all(&open_stream(2 * number + 1)).await?;
        }
        write.flush().await
    };
    let (flooded, _) = tokio::join!(flood, caller::until_end(&mut read, PATIENCE));

    let took = began.elapsed();
    let grown = child.memory().saturating_sub(before);
    eprintln!("gone after {took:.1?} ({flooded:?}), and {} KiB more", grown >> 10);
    assert!(took < limits::KNOWN_WITHIN + Duration::from_secs(5), "{took:?}");
    assert!(grown < 64 << 20, "{grown} bytes");
    child.ask(child.channel(None).await).await;
}

/// Connections that send all that they can.
const SENDERS: u64 = 256;
/// What each would like to send.
const WOULD_SEND: usize = 2 << 20;

/// A health check that never ends: frames of a message that says it is long.
async fn send_all_it_can(config: Arc<ClientConfig>, address: SocketAddr) -> TlsStream<TcpStream> {
    let mut stream = caller::shake(&config, address).await.expect("TLS");
    let path = b"/grpc.health.v1.Health/Check";
    let kind = b"application/grpc";
    let block = [
        &[0x83, 0x87, 0x04, u8::try_from(path.len()).expect("short")][..],
        path,
        &[0x41, 9],
        b"localhost",
        &[0x0f, 0x10, u8::try_from(kind.len()).expect("short")],
        kind,
    ]
    .concat();
    let length = u8::try_from(block.len()).expect("short");
    let head = [PREFACE, &[0, 0, length, 1, 4, 0, 0, 0, 1], &block].concat();
    drop(stream.write_all(&head).await);
    // Only who has taken the server's settings has its windows.
    caller::first_bytes(&mut stream).await;
    drop(stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0]).await);
    let mut message = vec![0; 16 << 10];
    message[1..5].copy_from_slice(&(3_u32 << 20).to_be_bytes());
    let frame = [0, 0x40, 0, 0, 0, 0, 0, 0, 1];
    for _ in 0..WOULD_SEND / message.len() {
        let send = async {
            stream.write_all(&frame).await?;
            stream.write_all(&message).await?;
            stream.flush().await
        };
        // Nothing more is taken.
        let Ok(Ok(())) = timeout(Duration::from_secs(1), send).await else { break };
        message.fill(0);
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_who_are_nobody_and_send_all_they_can_take_little_memory() {
    let child = Child::start();
    child.ask(child.channel(None).await).await;
    let before = child.memory();
    let config = caller::config(&child.authority(), None, &[ALPN_HTTP2]);

    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        senders.spawn(send_all_it_can(Arc::clone(&config), child.server.address));
    }
    let held = senders.join_all().await;
    let grown = child.most_memory().saturating_sub(before);

    eprintln!("{SENDERS} took {} KiB each", (grown / SENDERS) >> 10);
    assert!(grown < SENDERS * (384 << 10), "{grown} bytes");
    child.ask(child.channel(None).await).await;
    drop(held);
}

#[tokio::test]
async fn header_lists_over_the_limit_are_refused() {
    let secured = Secured::start().await;
    let (address, authority) = (secured.server.address, secured.tls.authority());
    let long = "a".repeat(limits::HTTP2_HEADER_BYTES_MAX as usize);

    let http2 = caller::config(&authority, None, &[ALPN_HTTP2]);
    let http2 = caller::shake(&http2, address).await.expect("TLS");
    let (mut ask, connection) = h2::client::handshake(http2).await.expect("HTTP/2");
    let ask = async {
        let request = http::Request::get("https://localhost/healthz").header("x-long", &long);
        let (answer, _) = ask.send_request(request.body(()).expect("valid"), true).expect("sent");
        answer.await.map(|answer| answer.status().as_u16())
    };
    let status = tokio::select! {
        status = ask => status,
        ended = connection => panic!("it ended first: {ended:?}"),
    };
    let http1 = caller::config(&authority, None, &[b"http/1.1"]);
    let mut http1 = caller::shake(&http1, address).await.expect("TLS");
    let head =
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nx-long: {}", "a".repeat(1 << 20));
    drop(http1.write_all(head.as_bytes()).await);
    let answer = caller::first_bytes(&mut http1).await;

    assert!(matches!(status, Ok(431) | Err(_)), "{status:?}");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    secured.server.stop().await;
}

#[tokio::test]
async fn a_long_body_of_nobody_is_refused_unread() {
    let secured = Secured::start().await;
    let http1 = caller::config(&secured.tls.authority(), None, &[b"http/1.1"]);
    let mut stream = caller::shake(&http1, secured.server.address).await.expect("TLS");
    let head = format!(
        "POST /downloads HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        1 << 30
    );

    let began = Instant::now();
    stream.write_all(head.as_bytes()).await.expect("sent");
    let answer = caller::first_bytes(&mut stream).await;
    assert!(began.elapsed() < limits::KNOWN_WITHIN / 2, "it waits for the body");
    let (mut read, mut write) = tokio::io::split(stream);
    let mut taken = 0;
    let body = vec![b' '; 64 << 10];
    let send = async {
        while write.write_all(&body).await.is_ok() {
            taken += body.len();
        }
    };
    let hung_up = async { while let Ok(1..) = read.read(&mut [0; 1024]).await {} };
    timeout(PATIENCE, async { tokio::join!(send, hung_up) }).await.expect("it hangs up");

    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    eprintln!("{taken} bytes were taken");
    // What the kernel takes on both ends.
    assert!(taken < 16 << 20, "{taken} bytes were taken");
    secured.server.stop().await;
}
