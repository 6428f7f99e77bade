//! The way to a server: TCP, straight or through an HTTP proxy's CONNECT, and then TLS if the
//! server's address says so. One deadline holds for all of it.

use std::{error::Error, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Uri, uri::Authority};
use hyper_util::{
    client::{
        legacy::connect::proxy::Tunnel,
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use rustls::{client::ResolvesClientCert, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;
use tower::Service as _;

use crate::{
    limits,
    server_url::{ServerUrl, is_loopback, port},
    tls::{self, ALPN_HTTP2, HandshakeError, ReadAhead, TlsError, Trust},
};

/// What carries HTTP/2.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    #[error(transparent)]
    Tcp(#[from] io::Error),
    #[error("no connection within {} seconds", .0.as_secs())]
    TimedOut(Duration),
    #[error("cannot connect to the proxy {proxy}: {source}")]
    NoProxy { proxy: String, source: io::Error },
    #[error(
        "the proxy {0} wants a name and a password, or other ones: put them into its URL, in \
         FTS_PROXY or the configuration file"
    )]
    ProxyAuth(String),
    #[error("the proxy {proxy} did not connect to {server}: {why}")]
    ProxyRefused { proxy: String, server: String, why: String },
    // Not transparent: then it would not be in the chain of sources.
    #[error("no TLS with the server")]
    Tls(#[from] HandshakeError),
    #[error("the server agreed on no HTTP/2: is it an fts-server?")]
    NoHttp2,
}

/// The way to one server. Clones are the same.
#[derive(Debug, Clone)]
pub struct Route {
    server: ServerUrl,
    proxy: Option<Intercept>,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
    /// In words.
    trusted: String,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Route {
    /// Returns the way to `server`. In clear text neither trust, nor identity, nor a proxy counts.
    pub fn new(
        server: &ServerUrl,
        trust: &Trust,
        identity: Option<Arc<dyn ResolvesClientCert>>,
        proxies: &Proxies,
    ) -> Result<Self, TlsError> {
        let tls = if server.is_tls() {
            let bad = |_| TlsError::Name(server.host().to_owned());
            let name = ServerName::try_from(server.host().to_owned()).map_err(bad)?;
            let connector = TlsConnector::from(tls::client_config(trust, identity)?);
            Some(Tls { connector, name, trusted: trust.to_string() })
        } else {
            None
        };
        Ok(Self { server: server.clone(), proxy: proxies.to_server(server), tls })
    }

    pub fn server(&self) -> &ServerUrl {
        &self.server
    }

    /// Dials, to the end of the TLS handshake.
    pub async fn connect(&self) -> Result<Box<dyn Io>, RouteError> {
        let dialling = timeout(limits::CONNECT_WAIT, self.dial());
        dialling.await.unwrap_or(Err(RouteError::TimedOut(limits::CONNECT_WAIT)))
    }

    async fn dial(&self) -> Result<Box<dyn Io>, RouteError> {
        let socket = match &self.proxy {
            Some(proxy) => tunnel(proxy, &self.server).await?,
            None => connect(self.server.host(), self.server.port()).await?,
        };
        let Some(tls) = &self.tls else { return Ok(Box::new(socket)) };
        let handshake = tls.connector.connect(tls.name.clone(), ReadAhead::new(socket));
        let failed = |source| HandshakeError::new(tls.trusted.clone(), source);
        let mut stream = handshake.await.map_err(failed)?;
        stream.get_mut().1.set_buffer_limit(Some(limits::TLS_WRITE_AHEAD_BYTES));
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_HTTP2) {
            return Err(RouteError::NoHttp2);
        }
        Ok(Box::new(stream))
    }

    /// Returns the endpoint that goes with [`Self::connector`].
    pub fn endpoint(&self) -> Endpoint {
        endpoint(self.server.uri())
    }

    /// Returns what dials for a channel.
    pub fn connector(
        &self,
    ) -> impl tower::Service<Uri, Response = TokioIo<Box<dyn Io>>, Error = RouteError, Future: Send>
    + Clone
    + Send
    + 'static {
        let route = self.clone();
        tower::service_fn(move |_: Uri| {
            let route = route.clone();
            async move { Ok(TokioIo::new(route.connect().await?)) }
        })
    }
}

/// Returns an endpoint for a connector that does TLS itself. tonic refuses `https://` where it has
/// none of its own; so the scheme that the server sees is told apart.
pub fn endpoint(server: &Uri) -> Endpoint {
    let mut parts = server.clone().into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    let plain = Uri::from_parts(parts).expect("the parts of a URI");
    Endpoint::from(plain)
        .origin(server.clone())
        .http2_max_header_list_size(limits::HTTP2_HEADER_BYTES_MAX)
}

/// The variables that say which servers have a proxy.
pub const PROXY_VARIABLES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"];

/// Which proxy to use for a server, if any. Only for `https://`, and never to this machine. Its
/// name and password are in no text of it.
#[derive(Debug, Clone)]
pub struct Proxies(Option<Arc<Matcher>>);

impl Proxies {
    /// None at all.
    pub fn off() -> Self {
        Self(None)
    }

    /// Parses `off`, or the URL of a proxy, which is then the one for every server.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::off());
        }
        check_proxy(text)?;
        Ok(Self(Some(Arc::new(Matcher::builder().https(text).build()))))
    }

    /// Reads what [`PROXY_VARIABLES`] say.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let first = |names: [&'static str; 2]| {
            let found = names.into_iter().find_map(|name| Some((name, variable(name)?)));
            found.filter(|(_, text)| !text.is_empty())
        };
        let proxy = first(["HTTPS_PROXY", "https_proxy"]);
        let Some((name, proxy)) = proxy.or_else(|| first(["ALL_PROXY", "all_proxy"])) else {
            return Ok(Self::off());
        };
        check_proxy(&proxy)
            .map_err(|problem| format!("{name}: {problem}; --proxy off dials without one"))?;
        let no = first(["NO_PROXY", "no_proxy"]).map_or_else(String::new, |(_, text)| text);
        Ok(Self(Some(Arc::new(Matcher::builder().https(proxy).no(no).build()))))
    }

    fn to_server(&self, server: &ServerUrl) -> Option<Intercept> {
        if !server.is_tls() || server.is_loopback() {
            return None;
        }
        self.0.as_ref()?.intercept(server.uri())
    }

    /// Returns the port of the proxy to `server`, if there is one.
    pub fn port_to(&self, server: &ServerUrl) -> Option<u16> {
        let proxy = self.to_server(server)?;
        let default = if proxy.uri().scheme_str() == Some("https") { 443 } else { 80 };
        port(proxy.uri().authority()?, default)
    }

    /// Returns the proxy to `server` as it may be shown.
    pub fn shown(&self, server: &ServerUrl) -> Option<String> {
        self.to_server(server).map(|proxy| shown(&proxy))
    }
}

/// Whether a proxy's URL holds a name or a password.
pub fn has_credentials(proxy: &str) -> bool {
    proxy.contains('@')
}

/// Returns a proxy's URL without what is secret in it.
pub fn without_credentials(proxy: &str) -> String {
    match (proxy.rsplit_once('@'), proxy.split_once("://")) {
        (None, _) => proxy.to_owned(),
        (Some((_, host)), Some((scheme, _))) => format!("{scheme}://{host}"),
        (Some((_, host)), None) => host.to_owned(),
    }
}

/// Of a proxy whose URL says none.
const PROXY_PORT: u16 = 80;

/// The problem never holds the text: there may be a password in it.
fn check_proxy(text: &str) -> Result<(), String> {
    let uri: Option<Uri> = text.parse().ok();
    let has_host = |authority: &Authority| {
        !authority.host().is_empty() && port(authority, PROXY_PORT).is_some()
    };
    let uri = uri.filter(|uri| uri.authority().is_some_and(has_host));
    let uri = uri.ok_or("not a proxy's URL like http://proxy:3128")?;
    match uri.scheme_str() {
        None | Some("http") => Ok(()),
        Some(_) => Err("only http:// proxies are supported".to_owned()),
    }
}

fn shown(proxy: &Intercept) -> String {
    proxy.uri().to_string().trim_end_matches('/').to_owned()
}

/// Asks the proxy for a way to the server.
async fn tunnel(proxy: &Intercept, server: &ServerUrl) -> Result<TcpStream, RouteError> {
    let shown = shown(proxy);
    let host = proxy.uri().host().unwrap_or_default().trim_matches(['[', ']']);
    let socket = connect(host, proxy.uri().port_u16().unwrap_or(PROXY_PORT)).await;
    let socket = socket.map_err(|source| RouteError::NoProxy { proxy: shown.clone(), source })?;
    let mut socket = Some(TokioIo::new(socket));
    let once = tower::service_fn(move |_: Uri| {
        let socket = socket.take();
        async move { socket.ok_or_else(|| io::Error::other("a tunnel is dug once")) }
    });
    let mut tunnel = Tunnel::new(proxy.uri().clone(), once);
    if let Some(auth) = proxy.basic_auth() {
        tunnel = tunnel.with_auth(auth.clone());
    }
    match tunnel.call(server.uri().clone()).await {
        Ok(socket) => Ok(socket.into_inner()),
        Err(err) => Err(tunnel_error(&err, shown, server)),
    }
}

/// Its type is not public: only its text tells what happened.
fn tunnel_error(err: &dyn Error, proxy: String, server: &ServerUrl) -> RouteError {
    let text = err.to_string();
    if text.contains("authorization required") {
        return RouteError::ProxyAuth(proxy);
    }
    let why = match text.trim_start_matches("tunnel error: ") {
        // Some answer a wrong password with 401, and not 407: no status is told apart here.
        "unsuccessful" => {
            "it refused: its rules may not allow this server, or it wants another name and password"
        }
        "unexpected end of file" => "it hung up",
        other => other,
    };
    RouteError::ProxyRefused { proxy, server: server.to_string(), why: why.to_owned() }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let found: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
    // Whoever says localhost means it, whatever a resolver thinks.
    let is_here = is_loopback(host);
    let meant = |address: &SocketAddr| !is_here || address.ip().to_canonical().is_loopback();
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

#[cfg(all(test, feature = "client", feature = "server"))]
mod tests;
