//! A client by hand: a session on the generated stub, and uploads as raw HTTP/2, so that a test can
//! end them in every way that there is.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use fts::{
    audit_head::AuditHead,
    chunk::{RootBuilder, crc32c},
    ids::InstanceId,
    limits::CHUNK_BYTES,
    transfer::{Delivered, Fingerprint, Finish},
    wire::{
        proto::{
            self, ClientMessage, ServerMessage, UploadFileRequest, UploadFileResponse,
            file_transfer_client::FileTransferClient,
        },
        session::{FromClient, FromServer, Header, Hello, Upload, UploadProgress},
    },
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::server::{PATIENCE, TestServer};

/// A session of a client that answers nothing by itself.
pub struct RawSession {
    pub instance: InstanceId,
    pub to_server: mpsc::Sender<ClientMessage>,
    pub from_server: Streaming<ServerMessage>,
}

pub fn hello(client: &str, instance: InstanceId) -> Hello {
    Hello {
        client: client.parse().expect("an id"),
        instance,
        jobs_max: 4,
        version: "test".to_owned(),
        host_name: "test-host".to_owned(),
        os: "test".to_owned(),
        allowed_roots: Vec::new(),
        policy_digest: None,
        audit_head: None,
        running: Vec::new(),
    }
}

/// Says Hello once, so that the client is known.
pub async fn register(channel: Channel, client: &str) {
    let (to_server, outbound) = mpsc::channel(1);
    let hello = hello(client, InstanceId::generate());
    to_server.send(FromClient::Hello(hello).into()).await.expect("room");
    let mut client = FileTransferClient::new(channel);
    let outbound = ReceiverStream::new(outbound);
    let mut inbound = client.connect(outbound).await.expect("a stream").into_inner();
    inbound.message().await.expect("no error").expect("a welcome");
}

impl RawSession {
    pub async fn open(server: &TestServer, client: &str) -> Self {
        Self::open_as(server, hello(client, InstanceId::generate())).await
    }

    pub async fn open_as(server: &TestServer, hello: Hello) -> Self {
        Self::open_over(server.channel().await, hello).await
    }

    /// Opens one on a channel that may show a certificate.
    pub async fn open_over(channel: Channel, hello: Hello) -> Self {
        Self::try_over(channel, hello).await.expect("a session")
    }

    /// Returns the session, or with what the server refused it.
    pub async fn try_over(channel: Channel, hello: Hello) -> Result<Self, tonic::Status> {
        let mut session = Self::silent(channel, hello.instance).await?;
        session.say(FromClient::Hello(hello)).await;
        let welcome = timeout(PATIENCE, session.from_server.message()).await.expect("in time")?;
        let welcome: FromServer = welcome.expect("a welcome").try_into().expect("a message");
        assert!(matches!(welcome, FromServer::Welcome { .. }), "{welcome:?}");
        Ok(session)
    }

    /// Opens the stream, and says nothing.
    pub async fn silent(channel: Channel, instance: InstanceId) -> Result<Self, tonic::Status> {
        let (to_server, outbound) = mpsc::channel(16);
        let mut client = FileTransferClient::new(channel);
        let from_server = client.connect(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Self { instance, to_server, from_server })
    }

    /// Says a heartbeat, and waits for its answer: all that was said before has been heard.
    pub async fn heard(&mut self, progress: Vec<UploadProgress>) {
        self.beat(progress, None).await;
    }

    /// Tells where the client's own audit stands, and waits until that was noted.
    pub async fn told(&mut self, head: AuditHead) {
        self.beat(Vec::new(), Some(head)).await;
        // A heartbeat is answered before it is noted.
        self.heard(Vec::new()).await;
    }

    async fn beat(&mut self, progress: Vec<UploadProgress>, audit_head: Option<AuditHead>) {
        let seq = fastrand::u64(..);
        self.say(FromClient::Heartbeat { seq, progress, jobs_max: None, audit_head }).await;
        while self.next().await != (FromServer::HeartbeatAck { seq }) {}
    }

    /// Returns how the server ends the session.
    pub async fn end(&mut self) -> Option<tonic::Status> {
        let end = async {
            loop {
                match self.from_server.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        timeout(PATIENCE, end).await.expect("an end in time")
    }

    pub async fn say(&self, message: FromClient) {
        self.to_server.send(message.into()).await.expect("the session is open");
    }

    /// Returns the next message.
    pub async fn next(&mut self) -> FromServer {
        let next = timeout(PATIENCE, self.from_server.message()).await.expect("in time");
        next.expect("no error").expect("the session is open").try_into().expect("a message")
    }

    /// Returns the next command.
    pub async fn command(&mut self) -> fts::wire::session::Command {
        loop {
            if let FromServer::Download(command) = self.next().await {
                return command;
            }
        }
    }

    pub fn header(&self, attempt: fts::ids::AttemptId, data: &[u8]) -> Header {
        let size = data.len() as u64;
        let fingerprint =
            Fingerprint { device: 1, inode: 2, size_bytes: size, mtime_ns: 3, ctime_ns: 4 };
        Header {
            attempt,
            instance: self.instance,
            offset: 0,
            size,
            fingerprint,
            path: "/raw".to_owned(),
            restart_detail: String::new(),
        }
    }
}

/// Returns the chunks of `data`.
pub fn chunks(data: &[u8]) -> Vec<Upload> {
    let each = data.chunks(CHUNK_BYTES).enumerate();
    each.map(|(i, chunk)| Upload::Chunk {
        offset: (i * CHUNK_BYTES) as u64,
        crc32c: crc32c(chunk),
        data: Bytes::copy_from_slice(chunk),
    })
    .collect()
}

/// Returns the honest end of `data`.
pub fn finish(header: &Header, data: &[u8]) -> Upload {
    let mut root = RootBuilder::new(data.len() as u64);
    for chunk in data.chunks(CHUNK_BYTES) {
        root.push(chunk);
    }
    let finish =
        Finish { digest: root.finish(), delivered: Delivered::Unchanged, trusted_bytes: 0 };
    Upload::Finish { size: header.size, finish, fingerprint: header.fingerprint }
}

/// Returns a whole honest upload.
pub fn upload(header: &Header, data: &[u8]) -> Vec<Upload> {
    let mut all = vec![Upload::Header(header.clone())];
    all.extend(chunks(data));
    all.push(finish(header, data));
    all
}

/// How an upload ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    EndStream,
    Reset(h2::Reason),
    /// Half of the next message, then the reset.
    HalfMessage(h2::Reason),
    /// The TCP connection is closed.
    Close,
}

/// An upload on a connection of its own.
pub struct RawUpload {
    /// Bytes that flow control has let through.
    pub pushed: watch::Sender<usize>,
    stream: h2::SendStream<Bytes>,
    response: Option<h2::client::ResponseFuture>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl RawUpload {
    pub async fn open(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("connected");
        Self::over(tcp, &format!("http://{address}")).await
    }

    /// Opens one on a stream that leads to `origin`.
    pub async fn over(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        origin: &str,
    ) -> Self {
        let (client, connection) = h2::client::handshake(io).await.expect("HTTP/2");
        #[allow(clippy::disallowed_methods)] // aborted when the upload ends
        let connection = tokio::spawn(connection);
        let request = http::Request::post(format!("{origin}/fts.v1.FileTransfer/UploadFile"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let mut client = client.ready().await.expect("ready");
        let (response, stream) = client.send_request(request, false).expect("sent");
        Self { pushed: watch::Sender::new(0), stream, response: Some(response), connection }
    }

    /// Sends a message; false when the server has ended the call.
    pub async fn send(&mut self, message: Upload) -> bool {
        self.send_bytes(frame(message)).await
    }

    pub async fn send_all(&mut self, messages: impl IntoIterator<Item = Upload>) -> bool {
        for message in messages {
            if !self.send(message).await {
                return false;
            }
        }
        true
    }

    async fn send_bytes(&mut self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            self.stream.reserve_capacity(bytes.len());
            let capacity = std::future::poll_fn(|cx| self.stream.poll_capacity(cx)).await;
            let Some(Ok(capacity)) = capacity else { return false };
            let part = bytes.split_to(capacity.min(bytes.len()));
            self.pushed.send_modify(|pushed| *pushed += part.len());
            if self.stream.send_data(part, false).is_err() {
                return false;
            }
        }
        true
    }

    /// Ends the upload in some way, without waiting for an answer.
    pub async fn end(mut self, ending: Ending, next: Upload) {
        match ending {
            Ending::EndStream => drop(self.stream.send_data(Bytes::new(), true)),
            Ending::Reset(reason) => self.stream.send_reset(reason),
            Ending::HalfMessage(reason) => {
                let mut bytes = frame(next);
                bytes.truncate(bytes.len() / 2);
                self.send_bytes(bytes).await;
                self.stream.send_reset(reason);
            }
            Ending::Close => {
                self.connection.abort();
                return;
            }
        }
        // What was said still has to reach the wire.
        let flushed = async {
            if let Some(response) = self.response.take() {
                drop(response.await);
            }
        };
        drop(timeout(std::time::Duration::from_millis(500), flushed).await);
        self.connection.abort();
    }

    /// Ends the stream and returns the answer.
    pub async fn answer(mut self) -> Result<UploadFileResponse, tonic::Status> {
        drop(self.stream.send_data(Bytes::new(), true));
        let response = self.response.take().expect("asked once");
        let answer = timeout(PATIENCE, read_answer(response)).await.expect("an answer in time");
        self.connection.abort();
        answer
    }
}

async fn read_answer(
    response: h2::client::ResponseFuture,
) -> Result<UploadFileResponse, tonic::Status> {
    let response = response.await.map_err(|err| tonic::Status::unknown(err.to_string()))?;
    if let Some(status) = tonic::Status::from_header_map(response.headers())
        && status.code() != tonic::Code::Ok
    {
        return Err(status);
    }
    let mut body = response.into_body();
    let mut bytes = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part.map_err(|err| tonic::Status::unknown(err.to_string()))?;
        body.flow_control().release_capacity(part.len()).expect("held");
        bytes.put(part);
    }
    let trailers = body.trailers().await.map_err(|err| tonic::Status::unknown(err.to_string()))?;
    let status = trailers.and_then(|trailers| tonic::Status::from_header_map(&trailers));
    match status {
        Some(status) if status.code() != tonic::Code::Ok => Err(status),
        _ => Ok(UploadFileResponse::decode(&bytes[5..]).expect("a response")),
    }
}

/// Returns a message as gRPC frames it.
pub fn frame(message: Upload) -> Bytes {
    let message = UploadFileRequest::from(message).encode_to_vec();
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("a small message"));
    framed.put_slice(&message);
    framed.freeze()
}

/// Returns the reason of a refusal.
pub fn reason(answer: Result<UploadFileResponse, tonic::Status>) -> Option<fts::status::Reason> {
    fts::status::reason(&answer.expect_err("refused"))
}

/// Returns the status of the only receipt.
pub fn receipt(answer: &UploadFileResponse) -> proto::receipt::Status {
    answer.receipts.first().expect("a receipt").status()
}
