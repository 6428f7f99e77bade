//! A server by hand, on raw HTTP/2: it says whatever bytes a test wants, and notes what comes.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use fts::{
    ids::AttemptId,
    wire::{
        proto::{
            Attempt, ClientMessage, DownloadCommand, ReportAck, ServerMessage, UploadFileRequest,
            Welcome, server_message::Body,
        },
        session::{FromClient, Report, Upload, Verdict},
    },
};
use h2::{RecvStream, SendStream, server::SendResponse};
use prost::Message as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use crate::common::server::PATIENCE;

/// What becomes of uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploads {
    /// Read to their end, and answered with an error.
    Read,
    /// Not one byte is read.
    Hold,
    /// The client may send one byte at a time.
    ByByte,
}

/// Everything that the client sent on uploads.
#[derive(Debug, Default)]
pub struct Taken {
    pub headers: Vec<AttemptId>,
    /// The chunks, one after another.
    pub bytes: Vec<u8>,
}

pub struct Peer {
    pub address: SocketAddr,
    pub taken: Arc<Mutex<Taken>>,
    sessions: mpsc::Receiver<Session>,
    _tasks: JoinSet<()>,
}

/// One `Connect`. Nothing is said on it but what the test says.
pub struct Session {
    talker: Talker,
    listener: Listener,
}

pub struct Talker {
    reply: SendStream<Bytes>,
}

pub struct Listener {
    body: RecvStream,
    buffer: BytesMut,
}

impl Peer {
    pub async fn start(uploads: Uploads) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let taken = Arc::<Mutex<Taken>>::default();
        let (tell, sessions) = mpsc::channel(16);
        let keep = taken.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut each = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let is_first = each.is_empty();
                each.spawn(serve(stream, is_first, uploads, tell.clone(), keep.clone()));
            }
        });
        Self { address, taken, sessions, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the next `Connect`, on which nothing was said.
    pub async fn silent(&mut self) -> Session {
        self.silent_within(PATIENCE).await.expect("a session in time")
    }

    pub async fn silent_within(&mut self, wait: Duration) -> Option<Session> {
        timeout(wait, self.sessions.recv()).await.ok().map(|session| session.expect("it runs"))
    }

    /// Returns the next `Connect`, welcome.
    pub async fn session(&mut self) -> Session {
        let mut session = self.silent().await;
        session.welcome(25_000, 55_000).await;
        session
    }

    /// How often an upload of this attempt was begun.
    pub fn uploads_of(&self, attempt: &Attempt) -> usize {
        let attempt: AttemptId = Some(attempt.clone()).try_into().expect("an attempt");
        let taken = self.taken.lock().expect("no panic");
        taken.headers.iter().filter(|header| **header == attempt).count()
    }
}

async fn serve(
    stream: TcpStream,
    is_first: bool,
    uploads: Uploads,
    tell: mpsc::Sender<Session>,
    taken: Arc<Mutex<Taken>>,
) {
    let window = match uploads {
        Uploads::Hold => 16 << 10,
        // On `Connect` it would be stuck: h2 gives back nothing of what was sent before the client
        // knew of it.
        Uploads::ByByte if !is_first => 1,
        Uploads::Read | Uploads::ByByte => 1 << 20,
    };
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(window).max_frame_size(1 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let mut calls = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        let body = request.into_body();
        if path.ends_with("/Connect") {
            let reply = respond.send_response(head(), false).expect("sent");
            let listener = Listener { body, buffer: BytesMut::new() };
            let session = Session { talker: Talker { reply }, listener };
            // A test that has ended needs no session.
            let _ = tell.send(session).await;
        } else {
            calls.spawn(take(body, respond, uploads, taken.clone()));
        }
    }
}

fn head() -> http::Response<()> {
    http::Response::builder().header("content-type", "application/grpc").body(()).expect("good")
}

async fn take(
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
    uploads: Uploads,
    taken: Arc<Mutex<Taken>>,
) {
    if uploads == Uploads::Hold {
        return std::future::pending().await;
    }
    let mut buffer = BytesMut::new();
    while let Some(Ok(part)) = body.data().await {
        if uploads == Uploads::ByByte {
            for _ in &part {
                let _ = body.flow_control().release_capacity(1);
                tokio::task::yield_now().await;
            }
            continue;
        }
        let _ = body.flow_control().release_capacity(part.len());
        buffer.put(part);
        while let Some(message) = unframe(&mut buffer) {
            let message = UploadFileRequest::decode(message).expect("a message");
            let mut taken = taken.lock().expect("no panic");
            match Upload::try_from(message).expect("well-formed") {
                Upload::Header(header) => taken.headers.push(header.attempt),
                Upload::Chunk { data, .. } => taken.bytes.extend_from_slice(&data),
                _ => {}
            }
        }
    }
    let refusal = http::Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", "10")
        .body(())
        .expect("good");
    // It may have gone.
    drop(respond.send_response(refusal, true));
}

fn unframe(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = usize::try_from((&buffer.get(1..5)?[..]).get_u32()).expect("64 bits");
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(length).freeze())
}

/// Frames bytes that claim to be a message.
pub fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("small"));
    framed.put_slice(message);
    framed.freeze()
}

/// A command that is as it should be, but for its path.
pub fn download(path: &str, epoch: u64) -> DownloadCommand {
    let transfer_id = fts::ids::TransferId::generate().to_string();
    DownloadCommand {
        attempt: Some(Attempt { transfer_id, epoch }),
        path: path.to_owned(),
        size_max: 1 << 40,
        ..Default::default()
    }
}

impl Talker {
    /// Says these bytes; false when the client has ended the session.
    pub async fn say_bytes(&mut self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            self.reply.reserve_capacity(bytes.len());
            let capacity = std::future::poll_fn(|cx| self.reply.poll_capacity(cx)).await;
            let Some(Ok(capacity)) = capacity else { return false };
            let part = bytes.split_to(capacity.min(bytes.len()));
            if self.reply.send_data(part, false).is_err() {
                return false;
            }
        }
        true
    }
}

impl Listener {
    /// Returns the next message; `None` once the client has ended the session.
    pub async fn next(&mut self) -> Option<FromClient> {
        loop {
            if let Some(message) = unframe(&mut self.buffer) {
                let message = ClientMessage::decode(message).expect("a message");
                return Some(message.try_into().expect("well-formed"));
            }
            let part = timeout(PATIENCE * 2, self.body.data()).await.expect("in time")?.ok()?;
            let _ = self.body.flow_control().release_capacity(part.len());
            self.buffer.put(part);
        }
    }
}

impl Session {
    pub fn split(self) -> (Talker, Listener) {
        (self.talker, self.listener)
    }

    pub fn of(talker: Talker, listener: Listener) -> Self {
        Self { talker, listener }
    }

    pub async fn say_bytes(&mut self, bytes: Bytes) -> bool {
        self.talker.say_bytes(bytes).await
    }

    pub async fn next(&mut self) -> Option<FromClient> {
        self.listener.next().await
    }

    pub async fn say(&mut self, body: Body) -> bool {
        let message = ServerMessage { body: Some(body) };
        self.say_bytes(framed(&message.encode_to_vec())).await
    }

    pub async fn welcome(&mut self, heartbeat_ms: u32, silence_ms: u32) -> bool {
        let welcome = Welcome { session_epoch: 1, heartbeat_ms, silence_ms };
        self.say(Body::Welcome(welcome)).await
    }

    /// Returns the next verdict on a command.
    pub async fn verdict(&mut self) -> Option<Verdict> {
        loop {
            if let FromClient::Reply { verdict, .. } = self.next().await? {
                return Some(verdict);
            }
        }
    }

    /// Returns the next report, and takes it.
    pub async fn report(&mut self) -> Option<Report> {
        loop {
            if let FromClient::Report(report) = self.next().await? {
                let attempt = Some(report.attempt.into());
                self.say(Body::ReportAck(ReportAck { attempt })).await;
                return Some(report);
            }
        }
    }
}
