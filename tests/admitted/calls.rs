//! Calls as no library would make them: any method, any path, with any credentials.

use bytes::{Buf, BufMut as _, Bytes};
use fts::{
    route::{Proxies, Route},
    server_url::ServerUrl,
    status::{Reason, reason},
    tls::Trust,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};

use super::{
    callers::shown,
    common::{
        http::{Answer, Connection},
        secured::{Identity, Secured},
    },
};

/// Messages as bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

/// Calls a method with one empty message; how the answer begins is all that is told.
pub async fn call(channel: &Channel, headers: &[String], path: &str) -> Result<(), Status> {
    // What changes the authority under everybody's feet is asked for with what is no message.
    let authority = ["RotateAuthority", "FinishRotation", "RenewIntermediate"];
    let is_left_alone = authority.iter().any(|method| path.ends_with(method));
    let message = if is_left_alone { Bytes::from_static(b"\xff") } else { Bytes::new() };
    let mut request = Request::new(tokio_stream::once(message));
    for header in headers {
        let value = header.parse().expect("a header value");
        request.metadata_mut().append("authorization", value);
    }
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|err| Status::from_error(Box::new(err)))?;
    let path = path.parse().expect("a path");
    grpc.streaming(request, path, Raw).await.map(drop)
}

/// Whether somebody has been kept out, and how.
pub fn kept_out(answer: &Result<(), Status>) -> Option<Reason> {
    let reason = reason(answer.as_ref().err()?)?;
    is_refusal(reason.as_str()).then_some(reason)
}

pub fn is_refusal(code: &str) -> bool {
    ["UNAUTHENTICATED", "PERMISSION_DENIED", "CERTIFICATE_EXPIRED", "REVOKED", "PENDING_APPROVAL"]
        .contains(&code)
}

/// Returns the way to one of a server's ports.
pub fn route_to(secured: &Secured, port: u16, identity: Option<&Identity>) -> Route {
    let server = ServerUrl::parse(&format!("https://localhost:{port}")).expect("a URL");
    let trust = Trust::Pinned(secured.root());
    Route::new(&server, &trust, shown(identity), &Proxies::off()).expect("a way")
}

pub async fn channel_to(secured: &Secured, port: u16, identity: Option<&Identity>) -> Channel {
    let route = route_to(secured, port, identity);
    let dialled = route.endpoint().connect_with_connector(route.connector()).await;
    dialled.expect("connected")
}

/// HTTP/1.1 in TLS.
pub type Http1 = Connection<TlsStream<TcpStream>>;

pub async fn http1(secured: &Secured, port: u16, identity: Option<&Identity>) -> Http1 {
    let trust = Trust::Pinned(secured.root());
    let config = fts::tls::client_config(&trust, shown(identity)).expect("a configuration");
    let mut config = config.as_ref().clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let name = "localhost".try_into().expect("a name");
    let stream = TlsConnector::from(std::sync::Arc::new(config)).connect(name, socket).await;
    Connection::over(stream.expect("TLS"))
}

/// Returns a request as [`http1`] speaks it.
pub fn request(method: &str, target: &str, authorization: &[String]) -> String {
    let host = "localhost";
    let headers = authorization
        .iter()
        .fold(String::new(), |headers, value| headers + "Authorization: " + value + "\r\n");
    format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 0\r\n\r\n")
}

/// Asks once, on a connection that lives on.
pub async fn ask(
    connection: &mut Http1,
    method: &str,
    target: &str,
    authorization: &[String],
) -> Answer {
    connection.send(&request(method, target, authorization)).await;
    connection.answer(method).await
}

/// HTTP/2 by hand.
pub struct Http2 {
    sender: h2::client::SendRequest<Bytes>,
    connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    pub async fn open(secured: &Secured, identity: Option<&Identity>) -> Self {
        let io = secured.route(identity).connect().await.expect("connected");
        let (sender, connection) = h2::client::handshake(io).await.expect("HTTP/2");
        #[allow(clippy::disallowed_methods)] // aborted when this is dropped
        let connection = tokio::spawn(connection);
        Self { sender, connection }
    }

    /// Returns the status and the body.
    pub async fn ask(
        &mut self,
        method: &str,
        target: &str,
        authorization: &[String],
    ) -> (u16, Vec<u8>) {
        let mut request =
            http::Request::builder().method(method).uri(format!("https://localhost{target}"));
        for value in authorization {
            request = request.header("authorization", value);
        }
        let request = request.body(()).expect("a request");
        let (answer, _) = self.sender.send_request(request, true).expect("sent");
        let answer = answer.await.expect("an answer");
        let status = answer.status().as_u16();
        if method == "HEAD" {
            return (status, Vec::new());
        }
        let (mut stream, mut body) = (answer.into_body(), Vec::new());
        while let Some(part) = stream.data().await {
            let part = part.expect("the body");
            stream.flow_control().release_capacity(part.len()).expect("held");
            body.extend_from_slice(&part);
        }
        (status, body)
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
