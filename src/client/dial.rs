//! Dials the server: where the sockets of both connections come from, and how they are set.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint, Error as TransportError};

use super::server_url::ServerUrl;
use crate::limits;

/// What carries HTTP/2.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Makes connections to one server. Clones dial the same.
#[derive(Clone)]
pub(super) struct Dialer {
    uri: Uri,
    dial: Arc<dyn Fn() -> Dialling + Send + Sync>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl fmt::Display for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.to_string().trim_end_matches('/'))
    }
}

impl Dialer {
    pub(super) fn tcp(server: &ServerUrl) -> Self {
        let target = server.clone();
        Self::new(server.uri().clone(), move || {
            let target = target.clone();
            Box::pin(async move { Ok(Box::new(connect(&target).await?) as Box<dyn Io>) })
        })
    }

    pub(super) fn new(uri: Uri, dial: impl Fn() -> Dialling + Send + Sync + 'static) -> Self {
        Self { uri, dial: Arc::new(dial) }
    }

    /// Dials for `Connect`. Its heartbeats are messages, so it needs no pings.
    pub(super) async fn control(&self) -> Result<Channel, TransportError> {
        self.endpoint().connect_with_connector(self.connector()).await
    }

    /// Returns a channel for uploads, which dials when it is first used and again when it broke.
    pub(super) fn data(&self) -> Channel {
        self.endpoint()
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .connect_with_connector_lazy(self.connector())
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::from(self.uri.clone())
            .connect_timeout(limits::CONNECT_WAIT)
            .http2_max_header_list_size(limits::HTTP2_HEADER_BYTES_MAX)
    }

    fn connector(
        &self,
    ) -> impl tower::Service<Uri, Response = TokioIo<Box<dyn Io>>, Error = io::Error, Future: Send>
    + Send
    + 'static {
        let dial = self.dial.clone();
        tower::service_fn(move |_: Uri| {
            let dialling = dial();
            async move { Ok(TokioIo::new(dialling.await?)) }
        })
    }
}

/// Pings of the data connection, while an upload runs. More often, and some servers take it for an
/// attack.
const PING: Duration = Duration::from_secs(20);

async fn connect(server: &ServerUrl) -> io::Result<TcpStream> {
    let found: Vec<SocketAddr> = lookup_host((server.host(), server.port())).await?.collect();
    // Whoever says localhost means it, whatever a resolver thinks.
    let meant =
        |address: &SocketAddr| !server.is_loopback() || address.ip().to_canonical().is_loopback();
    let addresses: Vec<SocketAddr> = found.into_iter().filter(meant).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    // So that one address that does not answer leaves time for the others.
    let each = limits::CONNECT_WAIT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for address in addresses {
        match timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                set_up(&socket)?;
                return Ok(socket);
            }
            Ok(Err(err)) => last = err,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "no answer"),
        }
    }
    Err(last)
}

fn set_up(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let wait = u32::try_from(limits::TCP_USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(socket, wait)?;
    Ok(())
}
