//! A caller by hand: bytes over TCP, or over TLS with whatever certificate.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use fts::server::authority::Authority;
use rustls::{ClientConfig, RootCertStore, client::ResolvesClientCert, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::common::{secured::Identity, server::PATIENCE};

/// What anybody is answered, if anybody is: so no answer to it is no answer to anything.
pub const HEALTHZ: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How HTTP/2 begins: the preface, and empty settings.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Returns TLS as a caller speaks it who trusts this authority.
pub fn config(
    authority: &Authority,
    identity: Option<&Identity>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    authority.roots().iter().for_each(|root| roots.add(root.clone()).expect("a root"));
    let provider = fts::tls::provider();
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder
            .with_client_cert_resolver(Arc::new(identity.clone()) as Arc<dyn ResolvesClientCert>),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

pub async fn shake(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let shaking = TlsConnector::from(Arc::clone(config)).connect(name, stream);
    timeout(PATIENCE, shaking).await.expect("a handshake in time")
}

/// Says something, and returns all that comes until the other end hangs up.
pub async fn tell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> Vec<u8> {
    // Who is refused may find the connection gone.
    drop(stream.write_all(bytes).await);
    drop(stream.flush().await);
    until_end(&mut stream, PATIENCE).await
}

/// Reads until the other end hangs up, in whatever way.
pub async fn until_end<S: AsyncRead + Unpin>(stream: &mut S, patience: Duration) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = vec![0; 16 << 10];
    let read = async {
        while let Ok(len @ 1..) = stream.read(&mut piece).await {
            all.extend_from_slice(&piece[..len]);
        }
    };
    timeout(patience, read).await.expect("it hangs up in time");
    all
}

/// Reads an answer of HTTP/1.1 as far as it is there at once.
pub async fn first_bytes<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut piece = vec![0; 16 << 10];
    let read = timeout(PATIENCE, stream.read(&mut piece)).await.expect("an answer in time");
    String::from_utf8_lossy(&piece[..read.unwrap_or(0)]).into_owned()
}
