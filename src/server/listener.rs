//! Accepted connections: as many as the server holds, TLS where it is spoken, and nobody for longer
//! than it takes to show who he is. Accept errors (such as too many open files) pause the loop
//! instead of spinning it.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    audit::{Action, Actor, Audit, Detail, Entry, Outcome},
    authority::{ClientCertificate, IdentityError},
    clients::Clients,
    connection::{Connection, Held, KnownBy, Peer, Stream, Surface},
    preauth::PreAuth,
    tls::Tls,
};
use crate::{limits, shutdown::Shutdown, status::Reason, tls::ReadAhead};

/// Listens on `address`, with a queue for a fleet that comes at once.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is back must not wait for the connections of its last life to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::LISTEN_QUEUE_MAX)
}

/// Listens on a socket that only its owner may open. What an earlier life left there is replaced:
/// the lock of the data directory says that nobody else is there.
pub fn listen_socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    // Others may open it until its mode is set: so long it is where nobody else can enter,
    // whatever the mode of the directory. The name is short, as paths of sockets must be.
    let private = path.with_file_name(".sock");
    make_private(&private)?;
    let bound = private.join("s");
    let listener = UnixListener::bind(&bound)?;
    std::fs::set_permissions(&bound, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&bound, path)?;
    std::fs::remove_dir(&private)?;
    Ok(listener)
}

/// Makes an empty directory of ours alone, in place of what an earlier life left there.
fn make_private(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

/// What the listeners of one server share.
pub(super) struct Reception {
    tls: Option<Arc<Tls>>,
    audit: Option<Audit>,
    places: Arc<Semaphore>,
    preauth: Arc<PreAuth>,
    clients: Arc<Clients>,
    shutdown: Shutdown,
}

impl Reception {
    pub(super) fn new(
        tls: Option<Arc<Tls>>,
        audit: Option<Audit>,
        clients: Arc<Clients>,
        shutdown: &Shutdown,
    ) -> Arc<Self> {
        let places = places();
        Arc::new(Self {
            tls,
            audit,
            places: Arc::new(Semaphore::new(places)),
            preauth: PreAuth::new(limits::UNKNOWN_CONNECTIONS_MAX.min(places / 4)),
            clients,
            shutdown: shutdown.clone(),
        })
    }

    /// Accepts connections until the server drains.
    pub(super) fn accept(
        self: &Arc<Self>,
        listener: TcpListener,
        surface: Surface,
    ) -> ReceiverStream<io::Result<Connection>> {
        let (accepted, stream) = mpsc::channel(1);
        let this = Arc::clone(self);
        let run = async move {
            let draining = this.shutdown.draining().clone();
            tokio::select! {
                () = draining.cancelled() => {}
                () = this.accept_all(&listener, surface, accepted) => {}
            }
        };
        // It ends with the drain, and the shutdown waits for it.
        drop(self.shutdown.spawn(run));
        ReceiverStream::new(stream)
    }

    async fn accept_all(
        &self,
        listener: &TcpListener,
        surface: Surface,
        accepted: mpsc::Sender<io::Result<Connection>>,
    ) {
        // Ended with this future.
        let mut greeted = JoinSet::new();
        loop {
            // Never closed, so there is always a place in the end.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            let (stream, address) = next(listener).await;
            let greeting = self.greeting(stream, address, surface, place);
            let accepted = accepted.clone();
            greeted.spawn(async move {
                if let Some(connection) = greeting.await {
                    // Without a receiver the server is ending.
                    drop(accepted.send(Ok(connection)).await);
                }
            });
            while greeted.try_join_next().is_some() {}
        }
    }

    /// Returns what makes a connection of a socket: at once in clear, after a handshake in TLS.
    fn greeting(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        surface: Surface,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = Option<Connection>> + Send + 'static {
        let cut = self.shutdown.aborting().child_token();
        let entry = self.preauth.enter(address.ip(), cut.clone());
        let mut peer = Peer::unknown(surface, address.to_string(), entry);
        let until = Instant::now() + limits::KNOWN_WITHIN;
        let tls = self.tls.clone();
        let clients = Arc::clone(&self.clients);
        let audit = self.audit.clone();
        async move {
            let mut held = Held { _place: Some(place), of_client: None };
            let aborted = cut.clone().cancelled_owned();
            let Some(tls) = tls else {
                let deadline = Some(sleep_until(until));
                let by = KnownBy::FirstByte;
                return Some(Connection::new(
                    Stream::Clear(stream),
                    peer,
                    by,
                    deadline,
                    aborted,
                    held,
                ));
            };
            let handshake = TlsAcceptor::from(tls.config()).accept(ReadAhead::new(stream));
            let shaken = tokio::select! {
                shaken = timeout_at(until, handshake) => shaken,
                () = cut.cancelled() => return None,
            };
            let stream = match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(err)) => {
                    tracing::debug!(%address, error = %err, "a TLS handshake failed");
                    note_refused_certificate(audit.as_ref(), address, &err);
                    return None;
                }
                Err(_) => return None,
            };
            let certificate = match certificate(&tls, &stream) {
                Ok(certificate) => certificate,
                Err(err) => {
                    tracing::info!(%address, error = %err, "refused a certificate");
                    note_refusal(audit.as_ref(), address, err.to_string());
                    return None;
                }
            };
            if let Some(certificate) = certificate {
                held.of_client = Some(clients.enter(&certificate, cut)?);
                peer.certificate = Some(Arc::new(certificate));
            }
            let (deadline, by) = (Some(sleep_until(until)), KnownBy::Credentials);
            let stream = Stream::Tls(Box::new(stream));
            Some(Connection::new(stream, peer, by, deadline, aborted, held))
        }
    }

    /// Accepts connections to the server's own socket until it drains.
    pub(super) fn accept_socket(
        self: &Arc<Self>,
        listener: UnixListener,
    ) -> ReceiverStream<io::Result<Connection>> {
        let (accepted, stream) = mpsc::channel(1);
        let (draining, abort) =
            (self.shutdown.draining().clone(), self.shutdown.aborting().clone());
        let run = async move {
            let accept = async {
                loop {
                    let stream = match listener.accept().await {
                        Ok((stream, _)) => stream,
                        Err(err) => {
                            tracing::warn!(error = %err, "could not accept a local connection");
                            sleep(ACCEPT_PAUSE).await;
                            continue;
                        }
                    };
                    let peer = Peer::new(Surface::Socket, "socket".to_owned());
                    let cut = abort.clone().cancelled_owned();
                    let held = Held { _place: None, of_client: None };
                    let (stream, by) = (Stream::Socket(stream), KnownBy::FirstByte);
                    let connection = Connection::new(stream, peer, by, None, cut, held);
                    if accepted.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = draining.cancelled() => {}
                () = accept => {}
            }
        };
        drop(self.shutdown.spawn(run));
        ReceiverStream::new(stream)
    }
}

/// Returns whom the certificate of a connection names: nobody if it showed none. It is an error to
/// show one that is of our authority, and names no client; such a connection is let go.
fn certificate(
    tls: &Tls,
    stream: &tokio_rustls::server::TlsStream<ReadAhead<TcpStream>>,
) -> Result<Option<ClientCertificate>, IdentityError> {
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    leaf.map(|leaf| tls.authority().identify(leaf)).transpose()
}

/// Puts on record that a certificate was refused. A handshake that failed otherwise says nothing of
/// anybody: such are of scanners, and of whoever went away.
fn note_refused_certificate(audit: Option<&Audit>, address: SocketAddr, err: &io::Error) {
    let reason = err.get_ref().and_then(|err| err.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(reason)) = reason {
        note_refusal(audit, address, reason.to_string());
    }
}

fn note_refusal(audit: Option<&Audit>, address: SocketAddr, why: String) {
    let Some(audit) = audit else { return };
    let outcome = Outcome::from(Reason::Unauthenticated);
    let entry = Entry::new(Actor::Unknown, address.to_string(), Action::Refused, outcome);
    let entry = entry.with(Detail::Method("TLS handshake".to_owned()));
    audit.refused(entry.with(Detail::Text(why)));
}

/// Returns how many connections are held: the rest of the files that may be open is for the disk.
fn places() -> usize {
    let files = raise_file_limit();
    files
        .saturating_sub(limits::FILES_RESERVED_MAX.min(files / 2))
        .clamp(1, limits::CONNECTIONS_MAX)
}

/// Raises the soft limit of open files to the hard one, as far as it is of use, and returns what it
/// is then.
fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = (limits::CONNECTIONS_MAX + limits::FILES_RESERVED_MAX) as u64;
    let reachable = limit.maximum.unwrap_or(u64::MAX).min(wanted);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= reachable {
        return usize::try_from(current).unwrap_or(usize::MAX);
    }
    let raised = Rlimit { current: Some(reachable), maximum: limit.maximum };
    let now = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => reachable,
        Err(err) => {
            tracing::warn!(error = %err, current, "could not raise the limit of open files");
            current
        }
    };
    usize::try_from(now).unwrap_or(usize::MAX)
}

async fn next(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Small messages must not wait for an acknowledgement.
                match stream.set_nodelay(true) {
                    Ok(()) => return (stream, address),
                    Err(err) => {
                        tracing::debug!(error = %err, "a connection was gone before it was served");
                    }
                }
            }
            Err(err) => {
                tracing::warn!(error = %err, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;
    use tokio_util::sync::CancellationToken;
    use tonic::transport::server::Connected as _;

    use super::*;
    use crate::server::authority::Authority;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn connected(shutdown: &Shutdown) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut accepted =
            Reception::new(None, None, Arc::default(), shutdown).accept(listener, Surface::All);
        let peer = TcpStream::connect(address).await.expect("connected");
        let connection = accepted.next().await.expect("accepted").expect("no error");
        (peer, connection)
    }

    #[tokio::test]
    async fn its_own_socket_is_never_where_others_could_open_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let mode =
            |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open.clone()).expect("set");
        let (path, private) = (dir.path().join("admin.sock"), dir.path().join(".sock"));
        // As a crash leaves them.
        std::fs::write(&path, "").expect("written");
        std::fs::create_dir(&private).expect("made");
        std::fs::write(private.join("s"), "").expect("written");
        std::fs::set_permissions(&private, open).expect("set");

        make_private(&private).expect("made");
        assert_eq!(mode(&private), 0o700);
        let listener = listen_socket(&path).expect("listens");

        let bound = listener.local_addr().expect("an address");
        assert_eq!(bound.as_pathname(), Some(private.join("s").as_path()));
        assert_eq!(mode(&path), 0o600);
        assert!(!private.exists());
        tokio::net::UnixStream::connect(&path).await.expect("connected");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_let_go() {
        let (_silent, mut connection) = connected(&Shutdown::new()).await;
        let began = Instant::now();

        let read = tokio::time::timeout(2 * limits::KNOWN_WITHIN, connection.read_u8()).await;
        let err = read.expect("not for ever").expect_err("let go");

        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= limits::KNOWN_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_has_spoken_may_be_silent() {
        let (mut peer, mut connection) = connected(&Shutdown::new()).await;
        peer.write_u8(7).await.expect("sent");

        assert_eq!(connection.read_u8().await.expect("read"), 7);

        let silent = tokio::time::timeout(2 * limits::KNOWN_WITHIN, connection.read_u8()).await;
        assert!(silent.is_err(), "nothing runs against it any more");
    }

    #[tokio::test]
    async fn a_fleet_that_comes_at_once_finds_room_to_wait() {
        // More than the 1024 of the standard library and of tokio.
        let kernel = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux");
        let count = kernel.trim().parse::<usize>().expect("a number").min(1500);
        assert!(raise_file_limit() > count, "this machine allows too few open files");
        let listener = listen((std::net::Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        let address = listener.local_addr().expect("an address");

        // Nobody accepts them.
        let mut waiting = Vec::new();
        for number in 0..count {
            let dialled = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await;
            let dialled = dialled.unwrap_or_else(|_| panic!("no room after {number}"));
            waiting.push(dialled.expect("connected"));
        }
    }

    /// The two ends of a connection in TLS whose caller has shown nothing of who it is, at a server
    /// that has so many places for these.
    async fn in_tls(
        places: usize,
    ) -> (Reception, tokio_rustls::client::TlsStream<TcpStream>, Connection) {
        let dir = tempfile::TempDir::new().expect("a directory");
        let authority = Authority::init(dir.path(), &["localhost".to_owned()]).expect("made");
        let mut roots = rustls::RootCertStore::empty();
        authority.roots().iter().for_each(|root| roots.add(root.clone()).expect("a root"));
        let tls = Tls::open(dir.path().to_owned(), authority, None).expect("TLS");
        let reception = Reception {
            audit: None,
            tls: Some(Arc::new(tls)),
            places: Arc::new(Semaphore::new(8)),
            preauth: PreAuth::new(places),
            clients: Arc::default(),
            shutdown: Shutdown::new(),
        };
        let config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("small");
        let dialled = socket.connect(listener.local_addr().expect("an address"));
        let (dialled, accepted) = tokio::join!(dialled, listener.accept());
        let (stream, address) = accepted.expect("accepted");
        let place = Arc::clone(&reception.places).acquire_owned().await.expect("free");
        let greeting = reception.greeting(stream, address, Surface::All, place);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = "localhost".try_into().expect("a name");
        let shaking = connector.connect(name, dialled.expect("connected"));
        let (caller, connection) = tokio::join!(shaking, greeting);
        (reception, caller.expect("shaken"), connection.expect("greeted"))
    }

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Write,
        WriteVectored,
        Flush,
        Shutdown,
    }

    const OPS: [Op; 4] = [Op::Write, Op::WriteVectored, Op::Flush, Op::Shutdown];

    impl Op {
        fn poll(
            self,
            connection: &mut Connection,
            cx: &mut Context<'_>,
        ) -> Poll<io::Result<usize>> {
            let connection = Pin::new(connection);
            match self {
                Self::Write => connection.poll_write(cx, &[0; 4096]),
                Self::WriteVectored => {
                    connection.poll_write_vectored(cx, &[io::IoSlice::new(&[0; 4096])])
                }
                Self::Flush => connection.poll_flush(cx).map_ok(|()| 0),
                Self::Shutdown => connection.poll_shutdown(cx).map_ok(|()| 0),
            }
        }

        /// Does this, and nothing else, to a caller who never reads, and returns how it ends.
        async fn stuck(self, connection: &mut Connection) -> io::ErrorKind {
            let stuck = std::future::poll_fn(|cx| {
                loop {
                    // What fills the buffers must not be what wakes this.
                    let mut nobody = Context::from_waker(Waker::noop());
                    while let Poll::Ready(Ok(_)) = Self::Write.poll(connection, &mut nobody) {}
                    match self.poll(connection, cx) {
                        Poll::Ready(Ok(_)) => {}
                        Poll::Ready(Err(err)) => return Poll::Ready(err.kind()),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            });
            let stuck = tokio::time::timeout(2 * limits::KNOWN_WITHIN, stuck).await;
            stuck.unwrap_or_else(|_| panic!("{self:?} hangs for ever"))
        }
    }

    #[tokio::test]
    async fn who_never_reads_is_gone_in_time_whatever_the_server_does() {
        for op in OPS {
            let (_reception, _caller, mut connection) = in_tls(8).await;
            tokio::time::pause();
            assert_eq!(op.stuck(&mut connection).await, io::ErrorKind::TimedOut, "{op:?}");
            tokio::time::resume();
        }
    }

    #[tokio::test]
    async fn who_never_reads_makes_room_for_others_whatever_the_server_does() {
        for op in OPS {
            let (reception, _caller, mut connection) = in_tls(1).await;
            let mut stuck = Box::pin(op.stuck(&mut connection));
            assert!(stuck.as_mut().now_or_never().is_none(), "{op:?} is stuck");

            let other = "127.0.0.2".parse().expect("an address");
            let _other = reception.preauth.enter(other, CancellationToken::new());

            let ended = tokio::time::timeout(limits::KNOWN_WITHIN / 2, stuck).await;
            let ended = ended.unwrap_or_else(|_| panic!("{op:?} goes on"));
            assert_eq!(ended, io::ErrorKind::ConnectionAborted, "{op:?}");
        }
    }

    #[tokio::test]
    async fn who_is_unknown_is_read_so_far_and_the_rest_once_it_is_known() {
        let (_reception, caller, mut connection) = in_tls(8).await;
        let total = 8 * limits::UNKNOWN_BYTES_MAX;
        let (_read, mut write) = tokio::io::split(caller);
        let mut sending = JoinSet::new();
        sending.spawn(async move { write.write_all(&vec![7; total]).await });
        let peer = connection.connect_info();
        let mut piece = vec![0; 4096];
        let mut received = 0;
        let read_until_it_waits = async {
            while let Ok(len) = connection.read(&mut piece).await {
                received += len;
            }
        };
        tokio::time::timeout(Duration::from_millis(500), read_until_it_waits)
            .await
            .expect_err("it waits");
        assert!(received >= limits::UNKNOWN_BYTES_MAX, "{received}");
        assert!(received < limits::UNKNOWN_BYTES_MAX + piece.len(), "{received}");

        let known = async {
            tokio::task::yield_now().await;
            peer.note_known();
        };
        let rest = async {
            while received < total {
                received += connection.read(&mut piece).await.expect("read");
            }
        };
        let both = async { tokio::join!(rest, known) };
        tokio::time::timeout(PATIENCE, both).await.expect("read on");
        let written = sending.join_next().await.expect("one");
        written.expect("no panic").expect("sent");
    }

    #[tokio::test]
    async fn an_abort_ends_every_read() {
        let shutdown = Shutdown::new();
        let (_peer, mut connection) = connected(&shutdown).await;

        shutdown.abort();

        let err = connection.read_u8().await.expect_err("cut");
        assert_eq!(err.kind(), io::ErrorKind::ConnectionAborted);
    }
}
