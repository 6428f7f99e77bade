//! A server for the client's tests: it speaks the protocol over pipes in memory, and leaves every
//! decision to the test.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::DuplexStream,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::{
    allowance::Allowance,
    audit::Audit,
    board::{Board, Facts},
    config::Shared,
    data_connection::DataConnections,
    day_counts::DayCounts,
    dial::Dialer,
    fake_enrolment::FakeEnrolment,
    jobs::Jobs,
    link::Link,
    policy::Policy,
    renewal::Standing,
    shares::Shares,
    source::Source,
    state_dir::StateDir,
    terms::Clock,
    upload::Uploader,
};
use crate::{
    ids::{InstanceId, SessionEpoch},
    limits,
    route::Io,
    shutdown::Shutdown,
    wire::{
        proto::{
            ClientMessage, ServerMessage, UploadFileRequest, UploadFileResponse,
            enrolment_server::EnrolmentServer,
            file_transfer_server::{FileTransfer, FileTransferServer},
        },
        session::{FromClient, FromServer, Hello, Report, Upload},
    },
};

pub(super) struct FakeServer {
    pub(super) dialer: Dialer,
    /// How often it was dialled.
    pub(super) dials: Arc<AtomicUsize>,
    sessions: mpsc::Receiver<FakeSession>,
    uploads: mpsc::Receiver<FakeUpload>,
    _tasks: JoinSet<()>,
}

/// One `Connect`, on which nothing has been answered but what the test said.
pub(super) struct FakeSession {
    pub(super) hello: Hello,
    inbound: Streaming<ClientMessage>,
    outbound: mpsc::Sender<Result<ServerMessage, Status>>,
}

/// One `UploadFile`.
pub(super) struct FakeUpload {
    inbound: Streaming<UploadFileRequest>,
    answer: oneshot::Sender<Result<UploadFileResponse, Status>>,
}

struct Service {
    sessions: mpsc::Sender<FakeSession>,
    uploads: mpsc::Sender<FakeUpload>,
}

#[tonic::async_trait]
impl FileTransfer for Service {
    type ConnectStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn connect(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.expect("a first message");
        let FromClient::Hello(hello) = first.try_into().expect("well-formed") else {
            panic!("the first message is no Hello");
        };
        let (outbound, messages) = mpsc::channel(64);
        let session = FakeSession { hello, inbound, outbound };
        // A test that has ended needs no session.
        let _ = self.sessions.send(session).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<UploadFileRequest>>,
    ) -> Result<Response<UploadFileResponse>, Status> {
        let (answer, answered) = oneshot::channel();
        let upload = FakeUpload { inbound: request.into_inner(), answer };
        let _ = self.uploads.send(upload).await;
        let gone = |_| Err(Status::unavailable("the test dropped the upload"));
        answered.await.unwrap_or_else(gone).map(Response::new)
    }
}

impl FakeServer {
    pub(super) fn start() -> Self {
        Self::start_with(None).0
    }

    /// Starts one that makes certificates as well; returns how to have it take a connection.
    pub(super) fn start_with(
        enrolment: Option<EnrolmentServer<FakeEnrolment>>,
    ) -> (Self, mpsc::Sender<io::Result<DuplexStream>>) {
        let (dials, dialled) = mpsc::channel::<io::Result<DuplexStream>>(16);
        let door = dials.clone();
        let (session, sessions) = mpsc::channel(16);
        let (upload, uploads) = mpsc::channel(16);
        let service = Service { sessions: session, uploads: upload };
        let service = FileTransferServer::new(service)
            .max_decoding_message_size(limits::UPLOAD_MESSAGE_BYTES_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            tonic::transport::Server::builder()
                // As the real server has it: an upload that the test does not read leaves room
                // for another.
                .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW_BYTES)
                .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW_BYTES)
                .add_service(service)
                .add_optional_service(enrolment)
                .serve_with_incoming(ReceiverStream::new(dialled))
                .await
                .expect("served");
        });
        let counted = Arc::new(AtomicUsize::new(0));
        let count = counted.clone();
        let dialer = Dialer::new("http://fake".parse().expect("a URI"), move || {
            count.fetch_add(1, Ordering::Relaxed);
            let dials = dials.clone();
            Box::pin(async move {
                let (here, there) = tokio::io::duplex(1 << 20);
                let gone = |_| io::Error::from(io::ErrorKind::ConnectionRefused);
                dials.send(Ok(there)).await.map_err(gone)?;
                Ok(Box::new(here) as Box<dyn Io>)
            })
        });
        (Self { dialer, dials: counted, sessions, uploads, _tasks: tasks }, door)
    }

    /// Returns the next `Connect`, without a Welcome.
    pub(super) async fn hello(&mut self) -> FakeSession {
        self.sessions.recv().await.expect("the server runs")
    }

    /// Returns the next `Connect`, welcome, with the usual heartbeat.
    pub(super) async fn session(&mut self) -> FakeSession {
        self.hello().await.welcome().await
    }

    /// Whether an upload has come that nobody has taken.
    pub(super) fn has_upload(&self) -> bool {
        !self.uploads.is_empty()
    }

    pub(super) async fn upload(&mut self) -> FakeUpload {
        self.uploads.recv().await.expect("the server runs")
    }
}

impl FakeSession {
    pub(super) async fn welcome(self) -> Self {
        let welcome = FromServer::Welcome {
            session: SessionEpoch(1),
            heartbeat: Duration::from_secs(25),
            silence: Duration::from_secs(55),
        };
        self.say(welcome).await;
        self
    }

    pub(super) async fn say(&self, message: FromServer) {
        self.outbound.send(Ok(message.into())).await.expect("the stream is open");
    }

    /// Ends the stream with `status`.
    pub(super) async fn refuse(self, status: Status) {
        self.outbound.send(Err(status)).await.expect("the stream is open");
    }

    pub(super) fn say_raw(&self, message: ServerMessage) {
        self.outbound.try_send(Ok(message)).expect("the stream is open, and has room");
    }

    /// Returns the next message; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<FromClient> {
        let message = self.inbound.next().await?.ok()?;
        Some(message.try_into().expect("well-formed"))
    }

    /// Returns the next report; other messages are skipped.
    pub(super) async fn report(&mut self) -> Report {
        loop {
            if let FromClient::Report(report) = self.next().await.expect("a report comes") {
                return report;
            }
        }
    }
}

impl FakeUpload {
    /// Returns the next message; `None` at the end of the stream.
    pub(super) async fn next(&mut self) -> Option<Upload> {
        let message = self.inbound.next().await?.ok()?;
        Some(message.try_into().expect("well-formed"))
    }

    pub(super) fn answer(self, answer: Result<UploadFileResponse, Status>) {
        self.answer.send(answer).expect("the client waits");
    }
}

fn all_of(root: &str) -> String {
    format!("[[root]]\nname = \"root\"\npath = {root:?}\n")
}

/// A client's link with a directory of its own, `root`, which alone it may read.
pub(super) struct Client {
    pub(super) temp: TempDir,
    pub(super) shares: Arc<Shares>,
    pub(super) allowance: Arc<Allowance>,
    pub(super) audit: Audit,
    pub(super) shutdown: Shutdown,
}

impl Client {
    /// Everything in `root` may be read.
    pub(super) fn start(server: &FakeServer) -> Self {
        Self::start_by(server, Clock::of_machine(), all_of)
    }

    /// The same; but nothing is written to its audit before that is started.
    pub(super) fn start_without_audit(server: &FakeServer) -> Self {
        Self::make(server, Clock::of_machine(), all_of)
    }

    /// The policy, which is told the path of `root`, says what may be read.
    pub(super) fn start_by(
        server: &FakeServer,
        clock: Clock,
        policy: impl FnOnce(&str) -> String,
    ) -> Self {
        let client = Self::make(server, clock, policy);
        client.audit.start();
        client
    }

    fn make(server: &FakeServer, clock: Clock, policy: impl FnOnce(&str) -> String) -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        let root = temp.path().join("root");
        std::fs::create_dir(&root).expect("made");
        let state = Arc::new(StateDir::open(&temp.path().join("state")).expect("free"));
        let audit = Audit::open(&state).expect("opened");
        let policy = Policy::parse(&policy(root.to_str().expect("text"))).expect("a policy");
        let counts = Arc::new(DayCounts::new(Arc::clone(&state)));
        let source = Source::by(&Shared::Policy(policy), state, clock, counts);
        let shares = Arc::new(Shares::of(source));
        let instance = InstanceId::generate();
        let data = DataConnections::new(&server.dialer);
        let allowance = Allowance::new(None, 2);
        let pace = allowance.pace.clone();
        let uploader = Uploader::new(shares.changes(), data, instance, pace, audit.clone())
            .of_client("client-1".parse().expect("an id"));
        let facts = Facts {
            id: "client-1".into(),
            instance: instance.short(),
            version: "1",
            server: "fake".into(),
        };
        let board = Arc::new(Board::new(facts, &shares, allowance.clone(), audit.clone()));
        let hello = Hello {
            client: "client-1".parse().expect("an id"),
            instance,
            jobs_max: 2,
            version: String::new(),
            host_name: String::new(),
            os: String::new(),
            allowed_roots: vec![],
            policy_digest: None,
            audit_head: None,
            running: vec![],
        };
        let shutdown = Shutdown::new();
        let link = Link {
            dialer: server.dialer.clone(),
            hello,
            jobs: Jobs::new(uploader, allowance.clone(), board.clone()),
            shares: shares.changes(),
            standing: Standing::without(),
            audit: audit.clone(),
            board,
            shutdown: shutdown.clone(),
        };
        shutdown.spawn(link.run());
        Self { temp, shares, allowance, audit, shutdown }
    }

    /// Ends it as a signal does.
    pub(super) async fn stop(self) {
        assert!(self.shutdown.run_down(limits::DRAIN_WAIT, limits::ABORT_WAIT).await);
    }
}
