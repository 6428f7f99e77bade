//! The operator of a run: asks, and asks again until there is an answer; and watches. It speaks
//! with the server directly, and outlives it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fts::wire::proto::{
    self, State, Transfer, control_client::ControlClient, watch_transfers_response::Kind,
};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, Response, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    history::{Answer, Shown},
    plan::Op,
    tcp_relay::Target,
};

/// Clones share what they have seen.
#[derive(Clone)]
pub struct Operator {
    target: Target,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
pub struct Seen {
    /// What happens from now on is seen.
    pub is_watching: bool,
    pub events: Vec<Transfer>,
    pub looks: Vec<Vec<Shown>>,
    pub rates: HashMap<String, u64>,
    pub complaints: Vec<String>,
    token: String,
}

impl Operator {
    pub fn new(target: Target) -> Self {
        Self { target, seen: Arc::default() }
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> ControlClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.target.get()));
        let endpoint = endpoint.expect("an address").connect_timeout(Duration::from_secs(2));
        ControlClient::new(endpoint.connect_lazy()).max_decoding_message_size(64 << 20)
    }

    /// Calls until there is an answer that is one: an error that does not pass is returned.
    async fn call<T, F>(&self, call: impl Fn(ControlClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            match timeout(CALL_WAIT, call(self.control())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if !is_passing(&status) => return Err(status),
                _ => sleep(PAUSE).await,
            }
        }
    }

    /// Asks for a file, and returns the transfer's id.
    pub async fn ask(&self, request: &proto::TriggerDownloadRequest) -> Option<String> {
        let ask = |mut control: ControlClient<Channel>| {
            let request = request.clone();
            async move { control.trigger_download(request).await }
        };
        let asked = self.call(ask).await;
        match asked {
            Ok(answer) => Some(answer.transfer.expect("a transfer").id),
            Err(status) => {
                self.complain(format!("{}: asked, and refused: {status}", request.request_id));
                None
            }
        }
    }

    pub async fn act(&self, op: Op, id: &str) -> Option<Answer> {
        let act = |mut control: ControlClient<Channel>| {
            let transfer_id = id.to_owned();
            async move {
                match op {
                    Op::AskAgain => unreachable!("the story asks again itself"),
                    Op::Cancel => {
                        let request = proto::CancelTransferRequest { transfer_id };
                        control.cancel_transfer(request).await.map(|_| Response::new(()))
                    }
                    Op::Retry => {
                        let request = proto::RetryTransferRequest { transfer_id };
                        control.retry_transfer(request).await.map(|_| Response::new(()))
                    }
                    Op::Pause => {
                        let request = proto::PauseTransferRequest { transfer_id };
                        control.pause_transfer(request).await.map(|_| Response::new(()))
                    }
                    Op::Resume => {
                        let request = proto::ResumeTransferRequest { transfer_id };
                        control.resume_transfer(request).await.map(|_| Response::new(()))
                    }
                }
            }
        };
        let done = self.call(act).await;
        match done {
            Ok(()) => Some(Answer::Taken),
            Err(status) if status.code() == Code::FailedPrecondition => Some(Answer::WrongState),
            Err(status) => {
                self.complain(format!("{id}: {op:?} was refused: {status}"));
                None
            }
        }
    }

    /// Returns all transfers.
    pub async fn list(&self) -> Vec<Transfer> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = proto::ListTransfersRequest {
                page_size: 1000,
                page_token: page_token.clone(),
                ..Default::default()
            };
            let list = |mut control: ControlClient<Channel>| {
                let request = request.clone();
                async move { control.list_transfers(request).await }
            };
            match self.call(list).await {
                Ok(page) => {
                    all.extend(page.transfers);
                    page_token = page.next_page_token;
                }
                Err(status) => self.complain(format!("listing was refused: {status}")),
            }
            if page_token.is_empty() {
                return all;
            }
        }
    }

    /// Looks at everything, again and again. Never ends.
    pub async fn look(&self) {
        loop {
            let all = self.list().await;
            let look = all.iter().filter(|each| !is_final(each.state())).map(shown).collect();
            self.seen().looks.push(look);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Follows every change, over all lives of the server. Never ends.
    pub async fn watch(&self) {
        loop {
            let resume_token = self.seen().token.clone();
            let request = proto::WatchTransfersRequest { resume_token, ..Default::default() };
            if let Ok(watch) = self.control().watch_transfers(request).await {
                self.seen().is_watching = true;
                let mut watch = watch.into_inner();
                while let Ok(Some(item)) = watch.message().await {
                    self.note(item);
                }
            }
            sleep(PAUSE).await;
        }
    }

    fn note(&self, item: proto::WatchTransfersResponse) {
        let mut seen = self.seen();
        let kind = item.kind();
        seen.token = item.resume_token;
        let transfer = item.transfer.expect("a transfer");
        let rate = seen.rates.entry(transfer.id.clone()).or_default();
        *rate = transfer.rate.max(*rate);
        if kind == Kind::Changed {
            seen.events.push(transfer);
        }
    }

    pub fn complain(&self, text: String) {
        self.seen().complaints.push(text);
    }
}

pub fn is_final(state: State) -> bool {
    matches!(state, State::Complete | State::Failed | State::Cancelled)
}

fn shown(transfer: &Transfer) -> Shown {
    let waits = transfer.waiting.is_some_and(|w| w.reason() != proto::WaitingReason::Unspecified);
    Shown { id: transfer.id.clone(), revision: transfer.revision, state: transfer.state(), waits }
}

/// The server is not there, or ends, or was not there to the end.
fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
}

const CALL_WAIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_millis(250);
