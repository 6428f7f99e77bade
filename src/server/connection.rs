//! A connection as the server holds it: in clear, in TLS, or of the server's own socket; cut when
//! it does not show in time who it is, when others press, or when the server aborts.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{authority::ClientCertificate, preauth::Entry};
use crate::{limits, tls::ReadAhead};

/// What may be asked for on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// Everything but administration by the socket's own right.
    All,
    /// What clients speak.
    Transfers,
    /// What operators speak.
    Control,
    /// The server's own socket: whoever can open it owns the server.
    Socket,
}

/// Who is at the other end, as far as the connection tells. Clones are of the same connection.
#[derive(Clone)]
pub struct Peer {
    pub surface: Surface,
    /// For people, and the audit.
    pub address: String,
    /// Of a client; what it says is true, but the identity may have been revoked.
    pub certificate: Option<Arc<ClientCertificate>>,
    known: Arc<Known>,
}

/// Whether the peer has shown who it is.
struct Known {
    entry: Option<Entry>,
    /// Fires once it has.
    shown: CancellationToken,
}

impl Peer {
    pub(super) fn new(surface: Surface, address: String) -> Self {
        let known = Known { entry: None, shown: CancellationToken::new() };
        known.shown.cancel();
        Self { surface, address, certificate: None, known: Arc::new(known) }
    }

    /// Of a connection that has yet to show who it is.
    pub(super) fn unknown(surface: Surface, address: String, entry: Entry) -> Self {
        let known = Known { entry: Some(entry), shown: CancellationToken::new() };
        Self { surface, address, certificate: None, known: Arc::new(known) }
    }

    /// The peer has shown who it is, or nobody asks here.
    pub fn note_known(&self) {
        if self.is_known() {
            return;
        }
        if let Some(entry) = &self.known.entry {
            entry.leave();
        }
        self.known.shown.cancel();
    }

    fn is_known(&self) -> bool {
        self.known.shown.is_cancelled()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("surface", &self.surface)
            .field("address", &self.address)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// What carries the bytes.
#[derive(Debug)]
pub(super) enum Stream {
    Clear(TcpStream),
    Tls(Box<TlsStream<ReadAhead<TcpStream>>>),
    Socket(UnixStream),
}

/// When a connection must have shown who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KnownBy {
    /// The first byte will do: nobody asks for credentials.
    FirstByte,
    /// A request with good credentials.
    Credentials,
}

/// A connection of a client or an operator.
pub struct Connection {
    stream: Stream,
    peer: Peer,
    known_by: KnownBy,
    /// Until the peer is known.
    unknown: Option<Unknown>,
    /// Fires when the server aborts, or others press: then reads and writes fail, so nothing that
    /// holds this can go on for ever.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _held: Held,
}

/// What holds for a peer until it is known.
struct Unknown {
    deadline: Pin<Box<Sleep>>,
    /// Fires once it is known.
    shown: Pin<Box<WaitForCancellationFutureOwned>>,
    received_bytes: usize,
}

/// What a connection takes up for as long as it is.
pub(super) struct Held {
    pub(super) _place: Option<OwnedSemaphorePermit>,
    /// Among those of its client.
    pub(super) of_client: Option<super::clients::OfClient>,
}

impl Connection {
    pub(super) fn new(
        stream: Stream,
        peer: Peer,
        known_by: KnownBy,
        deadline: Option<Sleep>,
        cut: WaitForCancellationFutureOwned,
        held: Held,
    ) -> Self {
        let unknown = deadline.map(|deadline| Unknown {
            deadline: Box::pin(deadline),
            shown: Box::pin(peer.known.shown.clone().cancelled_owned()),
            received_bytes: 0,
        });
        Self { stream, peer, known_by, unknown, cut: Box::pin(cut), _held: held }
    }

    /// Fails once the connection is cut.
    fn check_cut(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// Fails once the time is over in which the peer must have shown who it is.
    fn check_deadline(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.peer.is_known() {
            self.unknown = None;
        }
        match self.unknown.as_mut().map(|unknown| unknown.deadline.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    /// Returns whether the peer has sent as much as it may before it is known. Then the task is
    /// woken once it is.
    fn is_overdrawn(&mut self, cx: &mut Context<'_>) -> bool {
        self.unknown.as_mut().is_some_and(|unknown| {
            unknown.received_bytes >= limits::UNKNOWN_BYTES_MAX
                && unknown.shown.as_mut().poll(cx).is_pending()
        })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check_cut(cx)?;
        if this.is_overdrawn(cx) {
            this.check_deadline(cx)?;
            return Poll::Pending;
        }
        let filled = buf.filled().len();
        let read = match &mut this.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Stream::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
        }?;
        let received = buf.filled().len() - filled;
        if this.known_by == KnownBy::FirstByte && received > 0 {
            this.peer.note_known();
        }
        if let Some(unknown) = &mut this.unknown {
            unknown.received_bytes = unknown.received_bytes.saturating_add(received);
        }
        this.check_deadline(cx)?;
        read.map(Ok)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_cut(cx)?;
        self.check_deadline(cx)?;
        match &mut self.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_write(cx, data),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, data),
            Stream::Socket(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_cut(cx)?;
        self.check_deadline(cx)?;
        match &mut self.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, data),
            Stream::Socket(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Clear(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Socket(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        self.check_deadline(cx)?;
        match &mut self.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Stream::Socket(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_cut(cx)?;
        self.check_deadline(cx)?;
        match &mut self.stream {
            Stream::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Stream::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
