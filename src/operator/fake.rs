//! A Control service that does as a test says, and a way to run the tool against it.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use clap::Parser as _;
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, transport::Server};

#[allow(clippy::wildcard_imports)] // Half of the protocol is named below.
use crate::wire::proto::{
    WhoAmIRequest, WhoAmIResponse,
    control_server::{Control, ControlServer},
    watch_transfers_response::Kind,
    *,
};
use crate::{
    chunk::crc32c,
    operator::{Args, Io, Settings, config::Timing, output::Written},
    status::{self, Reason},
};

pub(super) const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// What one streaming call answers: these, and then it ends, unless the last is `Hang`.
#[derive(Debug)]
pub(super) enum Say<T> {
    Item(T),
    Fail(Status),
    Hang,
}

/// What the server will answer, and what it was asked.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) triggers: VecDeque<Result<Transfer, Status>>,
    pub(super) watches: VecDeque<Vec<Say<WatchTransfersResponse>>>,
    pub(super) reads: VecDeque<Vec<Say<ReadFileResponse>>>,
    pub(super) transfers: Vec<Transfer>,
    pub(super) clients: Vec<Client>,
    pub(super) asked_triggers: Vec<TriggerDownloadRequest>,
    pub(super) asked_watches: Vec<WatchTransfersRequest>,
    pub(super) asked_reads: Vec<ReadFileRequest>,
    pub(super) asked_lists: Vec<ListTransfersRequest>,
    pub(super) verbs: Vec<&'static str>,
}

/// A server on a port of its own; ends when it is dropped.
pub(super) struct Fake {
    script: Arc<Mutex<Script>>,
    /// Rings when a stream has nothing more to say.
    hangs: Arc<Notify>,
    pub(super) address: String,
    _server: JoinSet<()>,
}

/// What a run of the tool came to.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) code: u8,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: String,
}

impl Ran {
    pub(super) fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    pub(super) fn json(&self) -> Vec<serde_json::Value> {
        self.out().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

impl Fake {
    pub(super) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let script = Arc::new(Mutex::new(script));
        let hangs = Arc::new(Notify::new());
        let service = Service { script: script.clone(), hangs: hangs.clone() };
        let mut server = JoinSet::new();
        server.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let router = Server::builder().add_service(ControlServer::new(service));
            router.serve_with_incoming(incoming).await.expect("served");
        });
        Self { script, hangs, address, _server: server }
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no other test panicked")
    }

    /// Runs the tool to its end.
    pub(super) async fn run(&self, line: &[&str]) -> Ran {
        run_at(&self.address, line, std::future::pending()).await
    }

    /// Runs the tool, and interrupts it once a stream has nothing more to say.
    pub(super) async fn run_until_it_hangs(&self, line: &[&str]) -> Ran {
        run_at(&self.address, line, self.hangs.notified()).await
    }

    /// Runs the tool, and interrupts it once it has printed `text`.
    pub(super) async fn run_until_it_says(&self, line: &[&str], text: &str) -> Ran {
        let (out, err) = (Written::default(), Written::default());
        let interrupt = async {
            tokio::select! {
                () = out.says(text) => {}
                () = err.says(text) => {}
            }
        };
        run_into(&self.address, line, interrupt, &out, &err).await
    }
}

/// Runs the tool against the server at `address`.
pub(super) async fn run_at(
    address: &str,
    line: &[&str],
    interrupt: impl Future<Output = ()>,
) -> Ran {
    run_into(address, line, interrupt, &Written::default(), &Written::default()).await
}

async fn run_into(
    address: &str,
    line: &[&str],
    interrupt: impl Future<Output = ()>,
    out: &Written,
    err: &Written,
) -> Ran {
    let head = ["fts", "--server", address];
    let args = Args::try_parse_from([&head[..], line].concat()).expect("a command line");
    let mut settings = Settings::resolve(&args).expect("settings");
    settings.timing = Timing {
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(1),
        ..Timing::default()
    };
    let io = Io {
        stdout: Box::new(out.clone()),
        stderr: Box::new(err.clone()),
        stderr_is_terminal: false,
    };
    let code = super::run(args.command, settings, io, interrupt).await;
    Ran { code, stdout: out.bytes(), stderr: err.text() }
}

/// Returns a transfer in a state.
pub(super) fn transfer(state: State, revision: u64) -> Transfer {
    Transfer {
        id: ID.to_owned(),
        client_id: "web-1".to_owned(),
        path: "/var/log/a.log".to_owned(),
        state: state.into(),
        revision,
        ..Default::default()
    }
}

/// Returns a transfer that delivered `data`.
pub(super) fn complete(data: &[u8]) -> Transfer {
    Transfer {
        size: Some(data.len() as u64),
        digest: blake3::hash(data).to_string(),
        location: "/srv/fts/files/1".to_owned(),
        duration: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        rate: 1_000_000,
        delivered: Delivered::Unchanged.into(),
        ..transfer(State::Complete, 9)
    }
}

pub(super) fn failed(reason: FailReason, last: FailReason, detail: &str) -> Transfer {
    Transfer {
        failure: Some(Failure {
            reason: reason.into(),
            last_reason: last.into(),
            detail: detail.to_owned(),
        }),
        ..transfer(State::Failed, 9)
    }
}

/// Returns an event of a watch; its token is the revision.
pub(super) fn event(kind: Kind, transfer: Transfer) -> Say<WatchTransfersResponse> {
    Say::Item(WatchTransfersResponse {
        kind: kind.into(),
        resume_token: transfer.revision.to_string(),
        transfer: Some(transfer),
    })
}

/// Returns a part of a file as a message.
pub(super) fn piece(whole: &[u8], offset: usize, bytes: usize) -> ReadFileResponse {
    let data = whole[offset..offset + bytes].to_vec();
    ReadFileResponse {
        size: whole.len() as u64,
        digest: blake3::hash(whole).to_string(),
        offset: offset as u64,
        crc32c: crc32c(&data),
        data: data.into(),
    }
}

struct Service {
    script: Arc<Mutex<Script>>,
    hangs: Arc<Notify>,
}

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no other test panicked")
    }

    fn stream<T: Send + 'static>(&self, says: Option<Vec<Say<T>>>) -> Response<Items<T>> {
        let hangs = self.hangs.clone();
        let says = says.unwrap_or_else(|| vec![Say::Hang]);
        let items = tokio_stream::iter(says).then(move |say| {
            let hangs = hangs.clone();
            async move {
                match say {
                    Say::Item(item) => Ok(item),
                    Say::Fail(status) => Err(status),
                    Say::Hang => {
                        hangs.notify_one();
                        std::future::pending().await
                    }
                }
            }
        });
        Response::new(Box::pin(items))
    }

    fn find(&self, id: &str) -> Result<Option<Transfer>, Status> {
        let found = self.script().transfers.iter().find(|t| t.id == id).cloned();
        let unknown = || status::status(Reason::UnknownTransfer, "no such transfer");
        found.ok_or_else(unknown).map(Some)
    }

    fn verb(&self, verb: &'static str, id: &str) -> Result<Option<Transfer>, Status> {
        self.script().verbs.push(verb);
        self.find(id)
    }
}

#[tonic::async_trait]
impl Control for Service {
    type WatchTransfersStream = Items<WatchTransfersResponse>;
    type ReadFileStream = Items<ReadFileResponse>;

    async fn who_am_i(
        &self,
        _request: Request<WhoAmIRequest>,
    ) -> Result<Response<WhoAmIResponse>, Status> {
        Ok(Response::new(WhoAmIResponse::default()))
    }

    async fn trigger_download(
        &self,
        request: Request<TriggerDownloadRequest>,
    ) -> Result<Response<TriggerDownloadResponse>, Status> {
        let mut script = self.script();
        script.asked_triggers.push(request.into_inner());
        let answer = script.triggers.pop_front().expect("a trigger was scripted");
        answer.map(|t| Response::new(TriggerDownloadResponse { transfer: Some(t) }))
    }

    async fn get_transfer(
        &self,
        request: Request<GetTransferRequest>,
    ) -> Result<Response<GetTransferResponse>, Status> {
        let transfer = self.find(&request.into_inner().transfer_id)?;
        Ok(Response::new(GetTransferResponse { transfer }))
    }

    async fn list_transfers(
        &self,
        request: Request<ListTransfersRequest>,
    ) -> Result<Response<ListTransfersResponse>, Status> {
        let request = request.into_inner();
        let mut script = self.script();
        let start: usize = request.page_token.parse().unwrap_or(0);
        let end = (start + request.page_size as usize).min(script.transfers.len());
        let transfers = script.transfers[start..end].to_vec();
        let is_last = end == script.transfers.len();
        let next_page_token = if is_last { String::new() } else { end.to_string() };
        script.asked_lists.push(request);
        Ok(Response::new(ListTransfersResponse { transfers, next_page_token }))
    }

    async fn watch_transfers(
        &self,
        request: Request<WatchTransfersRequest>,
    ) -> Result<Response<Self::WatchTransfersStream>, Status> {
        let says = {
            let mut script = self.script();
            script.asked_watches.push(request.into_inner());
            script.watches.pop_front()
        };
        Ok(self.stream(says))
    }

    async fn cancel_transfer(
        &self,
        request: Request<CancelTransferRequest>,
    ) -> Result<Response<CancelTransferResponse>, Status> {
        let transfer = self.verb("cancel", &request.into_inner().transfer_id)?;
        Ok(Response::new(CancelTransferResponse { transfer }))
    }

    async fn retry_transfer(
        &self,
        request: Request<RetryTransferRequest>,
    ) -> Result<Response<RetryTransferResponse>, Status> {
        let transfer = self.verb("retry", &request.into_inner().transfer_id)?;
        Ok(Response::new(RetryTransferResponse { transfer }))
    }

    async fn pause_transfer(
        &self,
        request: Request<PauseTransferRequest>,
    ) -> Result<Response<PauseTransferResponse>, Status> {
        let transfer = self.verb("pause", &request.into_inner().transfer_id)?;
        Ok(Response::new(PauseTransferResponse { transfer }))
    }

    async fn resume_transfer(
        &self,
        request: Request<ResumeTransferRequest>,
    ) -> Result<Response<ResumeTransferResponse>, Status> {
        let transfer = self.verb("resume", &request.into_inner().transfer_id)?;
        Ok(Response::new(ResumeTransferResponse { transfer }))
    }

    async fn delete_transfer(
        &self,
        request: Request<DeleteTransferRequest>,
    ) -> Result<Response<DeleteTransferResponse>, Status> {
        let transfer = self.verb("rm", &request.into_inner().transfer_id)?;
        Ok(Response::new(DeleteTransferResponse { transfer }))
    }

    async fn list_clients(
        &self,
        _: Request<ListClientsRequest>,
    ) -> Result<Response<ListClientsResponse>, Status> {
        let clients = self.script().clients.clone();
        Ok(Response::new(ListClientsResponse { clients, next_page_token: String::new() }))
    }

    async fn get_client(
        &self,
        request: Request<GetClientRequest>,
    ) -> Result<Response<GetClientResponse>, Status> {
        let id = request.into_inner().client_id;
        let client = self.script().clients.iter().find(|client| client.id == id).cloned();
        let unknown = || status::status(Reason::UnknownClient, "no such client");
        Ok(Response::new(GetClientResponse { client: Some(client.ok_or_else(unknown)?) }))
    }

    async fn explain_path(
        &self,
        request: Request<ExplainPathRequest>,
    ) -> Result<Response<ExplainPathResponse>, Status> {
        let path = request.into_inner().path;
        let (verdict, rule, detail) = match path.as_str() {
            "/allowed" => (PathVerdict::Allowed, "logs", ""),
            "/missing" => (PathVerdict::Failed, "", "no such file"),
            _ => (PathVerdict::Denied, "", "not allowed by the client's policy"),
        };
        let (rule, detail) = (rule.to_owned(), detail.to_owned());
        Ok(Response::new(ExplainPathResponse { verdict: verdict.into(), rule, detail }))
    }

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let says = {
            let mut script = self.script();
            script.asked_reads.push(request.into_inner());
            script.reads.pop_front()
        };
        Ok(self.stream(says))
    }
}
