//! Accepted connections: as many as the server holds, cut when they say nothing or when it aborts.
//! Accept errors (such as too many open files) pause the loop instead of spinning it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{limits, shutdown::Shutdown};

/// Listens on `address`, with a queue for a fleet that comes at once.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that is back must not wait for the connections of its last life to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(limits::LISTEN_QUEUE_MAX)
}

/// Accepts connections until the server drains.
pub fn accept(
    listener: TcpListener,
    shutdown: &Shutdown,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, stream) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(places()));
    let (draining, abort) = (shutdown.draining().clone(), shutdown.aborting().clone());
    let run = async move {
        let accept = async {
            loop {
                // Never closed, so there is always a place in the end.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let connection = next(&listener, place, &abort).await;
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
    // It ends with the drain, and the shutdown waits for it.
    drop(shutdown.spawn(run));
    ReceiverStream::new(stream)
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

async fn next(
    listener: &TcpListener,
    place: OwnedSemaphorePermit,
    abort: &CancellationToken,
) -> Connection {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small messages must not wait for an acknowledgement.
                if let Err(err) = stream.set_nodelay(true) {
                    tracing::debug!(error = %err, "a connection was gone before it was served");
                    continue;
                }
                let aborted = Box::pin(abort.clone().cancelled_owned());
                let first_byte = Some(Box::pin(sleep(limits::FIRST_BYTE_WAIT)));
                return Connection { stream, first_byte, aborted, _place: place };
            }
            Err(err) => {
                tracing::warn!(error = %err, "could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection of a client or an operator.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Runs until the first byte has come: who says nothing holds a place for no longer.
    first_byte: Option<Pin<Box<Sleep>>>,
    /// Fires when the server aborts: then reads and writes fail, so nothing that holds this can go
    /// on for ever.
    aborted: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.aborted.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let filled = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf)?;
        if buf.filled().len() > filled {
            self.first_byte = None;
        }
        if read.is_pending()
            && let Some(first_byte) = &mut self.first_byte
            && first_byte.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read.map(Ok)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_stream::StreamExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn connected(shutdown: &Shutdown) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut accepted = accept(listener, shutdown);
        let peer = TcpStream::connect(address).await.expect("connected");
        let connection = accepted.next().await.expect("accepted").expect("no error");
        (peer, connection)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_let_go() {
        let (_silent, mut connection) = connected(&Shutdown::new()).await;
        let began = tokio::time::Instant::now();

        let err = connection.read_u8().await.expect_err("let go");

        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= limits::FIRST_BYTE_WAIT);
    }

    #[tokio::test]
    async fn a_peer_that_has_spoken_may_be_silent() {
        let (mut peer, mut connection) = connected(&Shutdown::new()).await;
        peer.write_u8(7).await.expect("sent");

        assert_eq!(connection.read_u8().await.expect("read"), 7);

        assert!(connection.first_byte.is_none(), "nothing runs against it any more");
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

    #[tokio::test]
    async fn an_abort_ends_every_read() {
        let shutdown = Shutdown::new();
        let (_peer, mut connection) = connected(&shutdown).await;

        shutdown.abort();

        let err = connection.read_u8().await.expect_err("cut");
        assert_eq!(err.kind(), io::ErrorKind::ConnectionAborted);
    }
}
