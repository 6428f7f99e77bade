//! Callers who stall before they have shown who they are: two thousand at a time, and an honest
//! caller is answered all the same.

use std::{net::SocketAddr, sync::Arc};

use fts::{
    limits,
    tls::{ALPN_HTTP2, Trust},
};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Duration, Instant, interval, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    caller::{self, HEALTHZ, PREFACE},
    child::{Child, raise_own_limit},
    common::{raw::register, secured::Identity, server::PATIENCE},
};

/// Where a caller stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Tcp,
    HalfHello,
    Handshake,
    Preface,
    Headers,
    HalfHead,
    Healthz,
}

const PHASES: [Phase; 7] = [
    Phase::Tcp,
    Phase::HalfHello,
    Phase::Handshake,
    Phase::Preface,
    Phase::Headers,
    Phase::HalfHead,
    Phase::Healthz,
];

/// A HEADERS frame that another one must follow: `:method: GET`.
const HEADERS: &[u8] = b"\0\0\x01\x01\0\0\0\0\x01\x82";

/// What a server holds open for itself may still grow by its readers of the store.
const OWN_FILES: usize = 24;

/// Of one phase: the server, and the callers who stall there.
struct Siege {
    phase: Phase,
    child: Child,
    base: usize,
    /// How long each lasted.
    stalled: JoinSet<Duration>,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Phase {
    /// Comes as far as this phase; `None`, if it was cut on the way.
    async fn come(self, config: Arc<ClientConfig>, address: SocketAddr) -> Option<Box<dyn Io>> {
        let mut stream = TcpStream::connect(address).await.ok()?;
        let said = match self {
            Self::Tcp => return Some(Box::new(stream)),
            Self::HalfHello => {
                stream.write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3, 7, 7]).await.ok()?;
                return Some(Box::new(stream));
            }
            Self::Handshake => b"",
            Self::Preface => PREFACE,
            Self::Headers => &[PREFACE, HEADERS].concat(),
            Self::HalfHead => b"GET /healthz HTTP/1.1\r\nHost: local",
            Self::Healthz => HEALTHZ,
        };
        let name = "localhost".try_into().expect("a name");
        let mut stream = TlsConnector::from(config).connect(name, stream).await.ok()?;
        stream.write_all(said).await.ok()?;
        Some(Box::new(stream))
    }

    /// Stays there, and returns how long it could.
    async fn stay(self, mut stream: Box<dyn Io>) -> Duration {
        let began = Instant::now();
        let mut tick = interval(Duration::from_secs(2));
        let mut piece = vec![0; 1024];
        loop {
            tokio::select! {
                read = stream.read(&mut piece) => {
                    if !matches!(read, Ok(1..)) {
                        return began.elapsed();
                    }
                }
                _ = tick.tick(), if self == Self::Healthz => {
                    drop(stream.write_all(HEALTHZ).await);
                }
            }
        }
    }
}

impl Siege {
    /// Lets so many come, and asks as somebody honest while they stand.
    async fn lay(phase: Phase, count: usize) -> Self {
        let child = Child::start();
        let client = child.join("web-1").await;
        let trust = Trust::Pinned(child.authority().root());
        for _ in 0..3 {
            honest(&child, &trust, &client).await;
        }
        let base = child.descriptors();
        let alpn: &[u8] = match phase {
            Phase::HalfHead | Phase::Healthz => b"http/1.1",
            _ => ALPN_HTTP2,
        };
        let config = caller::config(&child.authority(), None, &[alpn]);
        let mut stalled = JoinSet::new();
        let mut coming = JoinSet::new();
        let mut enter = |come: Option<Box<dyn Io>>| {
            if let Some(stream) = come {
                stalled.spawn(phase.stay(stream));
            }
        };
        let began = Instant::now();
        for _ in 0..count {
            coming.spawn(phase.come(Arc::clone(&config), child.server.address));
            if coming.len() >= 64 {
                enter(coming.join_next().await.expect("some").expect("no panic"));
            }
        }
        while let Some(come) = coming.join_next().await {
            enter(come.expect("no panic"));
        }
        let took = began.elapsed();
        let (operator, connect) = honest(&child, &trust, &client).await;
        // Counted only now: who came first is accepted first, so all of them were.
        let standing = child.descriptors() - base;
        eprintln!(
            "{phase:?}: {count} came in {took:.1?}, {standing} stand; an operator is answered in \
             {operator:.0?}, a client connects in {connect:.0?}"
        );
        // As many as the server lets stand; some are over already where coming takes long.
        let expected = limits::UNKNOWN_CONNECTIONS_MAX.min(count) / 2;
        assert!(standing >= expected, "{phase:?}: only {standing} stand");
        Self { phase, child, base, stalled }
    }

    /// Waits until all of them are gone.
    async fn lift(mut self) {
        let mut longest = Duration::ZERO;
        let all_gone = async {
            while let Some(lasted) = self.stalled.join_next().await {
                longest = longest.max(lasted.expect("no panic"));
            }
        };
        timeout(PATIENCE, all_gone).await.expect("all of them go");
        eprintln!("{:?}: the last one went after {longest:.1?}", self.phase);
        assert!(longest < limits::KNOWN_WITHIN + Duration::from_secs(5), "{longest:?}");
        self.child.back_to(self.base + OWN_FILES).await;
    }
}

/// Returns how long a new operator, and a new session, wait for their answers.
async fn honest(child: &Child, trust: &Trust, client: &Identity) -> (Duration, Duration) {
    let began = Instant::now();
    let asked = async { child.ask(child.channel_by(trust, None).await).await };
    timeout(PATIENCE, asked).await.expect("an honest operator is answered");
    let (operator, began) = (began.elapsed(), Instant::now());
    let connected = async {
        register(child.channel_by(trust, Some(client)).await, client.client.as_str()).await;
    };
    timeout(PATIENCE, connected).await.expect("an honest client is let in");
    (operator, began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "test-all: ten thousand handshakes, half a minute"]
async fn two_thousand_who_stall_in_any_phase_keep_nobody_out_and_are_gone_in_time() {
    let files = usize::try_from(raise_own_limit()).unwrap_or(usize::MAX);
    let count = 2000.min((files - 500) / PHASES.len());
    eprintln!("{count} callers in each phase");

    let mut lifting = JoinSet::new();
    for phase in PHASES {
        let siege = Siege::lay(phase, count).await;
        // The next phase begins meanwhile, on a server of its own.
        lifting.spawn(siege.lift());
    }

    while let Some(lifted) = lifting.join_next().await {
        lifted.expect("no panic");
    }
}

/// Asks and asks, and never reads, so that the server can neither write nor, in the end, read.
async fn ask_and_never_read(child: &Child, alpn: &[u8], hello: &[u8], ask: &[u8]) -> Box<dyn Io> {
    let config = caller::config(&child.authority(), None, &[alpn]);
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("small");
    let stream = socket.connect(child.server.address).await.expect("connected");
    let name = "localhost".try_into().expect("a name");
    let mut stream = TlsConnector::from(config).connect(name, stream).await.expect("TLS");
    stream.write_all(hello).await.expect("sent");
    let many = ask.repeat(500);
    // Until nothing more is taken.
    while let Ok(Ok(())) = timeout(Duration::from_secs(1), stream.write_all(&many)).await {}
    Box::new(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_and_never_reads_is_gone_in_time() {
    let child = Child::start();
    child.ask(child.channel(None).await).await;
    let base = child.descriptors();
    let ping = b"\0\0\x08\x06\0\0\0\0\0fts-ping";

    let began = Instant::now();
    let (_http1, _http2) = tokio::join!(
        ask_and_never_read(&child, b"http/1.1", b"", HEALTHZ),
        ask_and_never_read(&child, ALPN_HTTP2, PREFACE, ping),
    );

    eprintln!("all has been said after {:.1?}", began.elapsed());
    child.back_to(base).await;
    eprintln!("gone after {:.1?}", began.elapsed());
    assert!(began.elapsed() < limits::KNOWN_WITHIN + Duration::from_secs(10));
}
