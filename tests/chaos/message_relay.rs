//! A relay that understands the protocol: it stands before the server as a server, and can say
//! things twice, late, or wrong, as a proxy that retries, a client that lost its mind, or a broken
//! memory would.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fts::{
    shutdown::Shutdown,
    wire::proto::{
        Attempt, ClientMessage, ServerMessage, UploadFileRequest, UploadFileResponse,
        client_message,
        file_transfer_client::FileTransferClient,
        file_transfer_server::{FileTransfer, FileTransferServer},
        server_message,
    },
};
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server},
};

use crate::{plan::MessageFault, tcp_relay::Target};

mod upload;

/// Clones are the same relay.
#[derive(Clone)]
pub struct MessageRelay {
    target: Target,
    tasks: Shutdown,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    /// What is to happen to the next messages that fit.
    armed: Vec<MessageFault>,
    /// How often each fault has happened.
    hits: BTreeMap<String, u32>,
    /// What was said of late, oldest first.
    commands: VecDeque<ServerMessage>,
    reports: VecDeque<ClientMessage>,
    /// Both halves of the latest session.
    to_client: Option<mpsc::WeakSender<Result<ServerMessage, Status>>>,
    to_server: Option<mpsc::WeakSender<ClientMessage>>,
    /// Transfers whose bytes have been forged.
    forged: HashSet<String>,
    /// Bytes that were said twice, of which transfers.
    repeated: HashMap<String, u64>,
    /// The epoch that the server offered last, of each transfer.
    offered: HashMap<String, u64>,
    /// What the server must not have done.
    complaints: Vec<String>,
}

impl MessageRelay {
    /// Returns it, and where it listens.
    pub async fn start(target: Target, tasks: &Shutdown) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let relay = Self { target, tasks: tasks.clone(), memory: Arc::default() };
        let service = FileTransferServer::new(relay.clone());
        let over = tasks.draining().clone();
        let serving = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        drop(tasks.spawn(async move {
            tokio::select! {
                served = serving => served.expect("the relay serves"),
                () = over.cancelled() => {}
            }
        }));
        Ok((relay, address))
    }

    pub fn arm(&self, fault: MessageFault) {
        let mut memory = self.memory();
        match fault {
            MessageFault::OldCommand => {
                let (old, session) = (memory.commands.front().cloned(), memory.to_client.clone());
                drop(memory);
                if let (Some(old), Some(session)) = (old, session) {
                    self.hit(fault);
                    self.say(session, Ok(old), Duration::ZERO);
                }
            }
            MessageFault::OldReport => {
                let (old, session) = (memory.reports.front().cloned(), memory.to_server.clone());
                drop(memory);
                if let (Some(old), Some(session)) = (old, session) {
                    self.hit(fault);
                    self.say(session, old, Duration::ZERO);
                }
            }
            fault => memory.armed.push(fault),
        }
    }

    /// From now on it says what it hears.
    pub fn calm(&self) {
        self.memory().armed.clear();
    }

    pub fn hits(&self) -> BTreeMap<String, u32> {
        self.memory().hits.clone()
    }

    /// Returns the transfers of which it forged a byte.
    pub fn forged(&self) -> HashSet<String> {
        self.memory().forged.clone()
    }

    /// Returns how many bytes of which transfers it said twice.
    pub fn repeated(&self) -> HashMap<String, u64> {
        self.memory().repeated.clone()
    }

    pub fn complaints(&self) -> Vec<String> {
        self.memory().complaints.clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hit(&self, fault: MessageFault) {
        let text = format!("{fault:?}");
        let name = text.split('(').next().unwrap_or_default().to_owned();
        *self.memory().hits.entry(name).or_default() += 1;
    }

    /// Takes the first armed fault that `fits`.
    fn take(&self, fits: impl Fn(&MessageFault) -> bool) -> Option<MessageFault> {
        let taken = {
            let mut memory = self.memory();
            let at = memory.armed.iter().position(fits)?;
            memory.armed.remove(at)
        };
        self.hit(taken);
        Some(taken)
    }

    /// Says something later, if there is still somebody to say it to.
    fn say<T: Send + 'static>(&self, to: mpsc::WeakSender<T>, message: T, after: Duration) {
        drop(self.tasks.spawn(async move {
            sleep(after).await;
            if let Some(to) = to.upgrade() {
                // It may have gone while there was no room.
                drop(to.send(message).await);
            }
        }));
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.target.get()))
            .expect("an address")
            .connect_timeout(Duration::from_secs(2))
            .connect_lazy()
    }

    /// Carries what the client says, until it has no more to say.
    async fn carry_up(
        self,
        mut from_client: Streaming<ClientMessage>,
        to_server: mpsc::Sender<ClientMessage>,
    ) {
        let later = to_server.downgrade();
        loop {
            let message = tokio::select! {
                message = from_client.message() => message,
                () = to_server.closed() => return,
            };
            let Ok(Some(message)) = message else { return };
            match &message.body {
                Some(client_message::Body::Report(_)) => {
                    remember(&mut self.memory().reports, &message);
                    match self.take(|fault| {
                        matches!(fault, MessageFault::ReportTwice(_) | MessageFault::ReportLate(_))
                    }) {
                        Some(MessageFault::ReportTwice(by)) => {
                            self.say(later.clone(), message.clone(), by);
                        }
                        Some(MessageFault::ReportLate(by)) => {
                            self.say(later.clone(), message, by);
                            continue;
                        }
                        _ => {}
                    }
                }
                Some(client_message::Body::Reply(_))
                    if self.take(|fault| *fault == MessageFault::ReplyTwice).is_some() =>
                {
                    self.say(later.clone(), message.clone(), Duration::ZERO);
                }
                _ => {}
            }
            if to_server.send(message).await.is_err() {
                return;
            }
        }
    }

    /// Carries what the server says, until one of both has gone.
    async fn carry_down(
        self,
        mut from_server: Streaming<ServerMessage>,
        to_client: mpsc::Sender<Result<ServerMessage, Status>>,
    ) {
        let later = to_client.downgrade();
        loop {
            let message = tokio::select! {
                message = from_server.message() => message,
                () = to_client.closed() => return,
            };
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(status) => {
                    drop(to_client.send(Err(status)).await);
                    return;
                }
            };
            if let Some(server_message::Body::Download(command)) = &message.body {
                remember(&mut self.memory().commands, &message);
                let Attempt { transfer_id, epoch } = command.attempt.clone().unwrap_or_default();
                self.memory().offered.insert(transfer_id, epoch);
                match self.take(|fault| {
                    matches!(fault, MessageFault::CommandTwice(_) | MessageFault::CommandLate(_))
                }) {
                    Some(MessageFault::CommandTwice(by)) => {
                        self.say(later.clone(), Ok(message.clone()), by);
                    }
                    Some(MessageFault::CommandLate(by)) => {
                        self.say(later.clone(), Ok(message), by);
                        continue;
                    }
                    _ => {}
                }
            }
            if to_client.send(Ok(message)).await.is_err() {
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl FileTransfer for MessageRelay {
    type ConnectStream = ReceiverStream<Result<ServerMessage, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (to_server, outbound) = mpsc::channel(MESSAGES_MAX);
        let (to_client, inbound) = mpsc::channel(MESSAGES_MAX);
        {
            let mut memory = self.memory();
            memory.to_server = Some(to_server.downgrade());
            memory.to_client = Some(to_client.downgrade());
        }
        let mut server = FileTransferClient::new(self.channel());
        let from_server = server.connect(ReceiverStream::new(outbound)).await?.into_inner();
        drop(self.tasks.spawn(self.clone().carry_up(request.into_inner(), to_server)));
        drop(self.tasks.spawn(self.clone().carry_down(from_server, to_client)));
        Ok(Response::new(ReceiverStream::new(inbound)))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<UploadFileRequest>>,
    ) -> Result<Response<UploadFileResponse>, Status> {
        let (to_server, outbound) = mpsc::channel(4);
        let mut server = FileTransferClient::new(self.channel());
        let call = server.upload_file(ReceiverStream::new(outbound));
        let mut passed = Vec::new();
        let answer = {
            let carry = async {
                passed = self.carry_upload(request.into_inner(), to_server).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                answer = call => answer,
                () = carry => unreachable!("it never ends"),
            }
        };
        if !passed.is_empty()
            && let Some(MessageFault::UploadAgain(after)) =
                self.take(|fault| matches!(fault, MessageFault::UploadAgain(_)))
        {
            self.upload_again(passed, after);
        }
        match self
            .take(|fault| matches!(fault, MessageFault::ReceiptLost | MessageFault::ReceiptLate(_)))
        {
            Some(MessageFault::ReceiptLost) => Err(Status::unavailable("the answer was lost")),
            Some(MessageFault::ReceiptLate(by)) => {
                sleep(by).await;
                answer
            }
            _ => answer,
        }
    }
}

fn remember<T: Clone>(all: &mut VecDeque<T>, message: &T) {
    if all.len() >= REMEMBERED_MAX {
        all.pop_front();
    }
    all.push_back(message.clone());
}

const MESSAGES_MAX: usize = 64;
const REMEMBERED_MAX: usize = 8;
