//! How operators see transfers and clients: records completed by what runs here, waits and watches.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};

use super::{Coordinator, attempt_of};
use crate::{
    ids::{ClientId, TransferId, UnixMs},
    limits,
    server::{
        access::Scope,
        error::Error,
        store::{ClientRecord, Events, TransferFilter},
        view::{ClientView, Presence, TransferView, WatchItem, WatchKind},
    },
    status::Reason,
    transfer::{State, Transfer, Waiting, WaitingReason},
};

/// What a watch is about.
#[derive(Debug, Clone, Default)]
pub struct WatchQuery {
    pub transfer: Option<TransferId>,
    pub client: Option<ClientId>,
    pub resume_token: Option<String>,
    /// What is not in it is not told.
    pub scope: Option<Scope>,
}

impl WatchQuery {
    fn wants(&self, transfer: &Transfer) -> bool {
        self.transfer.is_none_or(|id| id == transfer.id)
            && self.client.as_ref().is_none_or(|client| *client == transfer.client)
            && self.scope.as_ref().is_none_or(|scope| {
                scope.has_client(&transfer.client) && scope.has_path(transfer.path.as_ref())
            })
    }
}

pub type Watch = Pin<Box<dyn Stream<Item = Result<WatchItem, Error>> + Send>>;

impl Coordinator {
    pub(in crate::server) fn view(&self, transfer: Transfer) -> TransferView {
        let upload = self.uploads.find(transfer.id).filter(|u| u.attempt.epoch == transfer.epoch);
        let is_moving = matches!(transfer.state, State::Receiving);
        let running = upload.filter(|_| is_moving);
        let size = transfer.file.as_ref().map_or(0, |file| file.size_bytes);
        let done_bytes = match transfer.state {
            State::Verifying | State::Complete => size,
            _ => running.as_ref().map_or(transfer.kept_bytes, |upload| upload.done_bytes()),
        };
        let rate = match transfer.state {
            State::Complete => mean_rate(&transfer, size),
            _ => running.as_ref().and_then(|upload| upload.rate()),
        };
        let now_received = running.map_or(0, |upload| upload.received_bytes());
        TransferView {
            waiting: self.waiting(&transfer),
            done_bytes,
            received_bytes: transfer.received_bytes.saturating_add(now_received),
            rate,
            location: self.location(&transfer),
            transfer,
        }
    }

    /// Says why a transfer does not move. The record knows of pauses; who is there is known only
    /// here.
    fn waiting(&self, transfer: &Transfer) -> Option<Waiting> {
        if transfer.state.is_outstanding() {
            return self.held_back(transfer);
        }
        if !transfer.state.is_waiting() {
            return None;
        }
        let now = UnixMs::now();
        let noted = transfer.waiting;
        let because = |reason| {
            let since = noted.filter(|w| w.reason == reason).map_or(transfer.updated, |w| w.since);
            let next_attempt = noted.and_then(|w| w.next_attempt).filter(|next| *next > now);
            Some(Waiting { reason, since, next_attempt })
        };
        if transfer.is_paused() {
            return noted;
        }
        if self.shutdown.draining().is_cancelled() {
            return because(WaitingReason::Draining);
        }
        let Some(session) = self.sessions.find(&transfer.client) else {
            return because(WaitingReason::ClientOffline);
        };
        match noted {
            Some(w) if w.next_attempt.is_some_and(|next| next > now) => because(w.reason),
            _ if let Some(low) = self.disk_low_since() => {
                let waiting = because(WaitingReason::ServerDiskLow)?;
                Some(Waiting { since: waiting.since.max(low), ..waiting })
            }
            _ if let Some(until) = self.quotas.client_held_until(&transfer.client) => {
                let waiting = because(WaitingReason::Quota)?;
                Some(Waiting { next_attempt: Some(until), ..waiting })
            }
            _ if session.is_server_full() => because(WaitingReason::ServerBusy),
            _ if session.is_full() => because(WaitingReason::ClientBusy),
            _ => because(WaitingReason::Due),
        }
    }

    /// Says why an upload that runs does not move as it could.
    fn held_back(&self, transfer: &Transfer) -> Option<Waiting> {
        let upload =
            self.uploads.find(transfer.id).filter(|u| u.attempt == attempt_of(transfer))?;
        let because = |reason, since| Some(Waiting { reason, since, next_attempt: None });
        let is_here = self.sessions.find(&transfer.client).is_some();
        // A client that has left is given no time: it may send on, or not.
        let (reason, after) = if is_here {
            (WaitingReason::Stalled, limits::STALLED_AFTER)
        } else {
            (WaitingReason::ClientOffline, limits::SILENT_AFTER)
        };
        if transfer.state == State::Receiving
            && let Some(since) = upload.silent_since(UnixMs::now(), after)
        {
            return because(reason, since);
        }
        because(WaitingReason::Throttled, self.throttled_since(transfer)?)
    }

    /// Tells of uploads that have come to stand still.
    pub fn look_for_stalls(&self) {
        let now = UnixMs::now();
        for upload in self.uploads.all() {
            let since = upload.stalled_since(now);
            if upload.note_stalled(since.is_some()) {
                tracing::warn!(
                    transfer_id = %upload.attempt.transfer, epoch = upload.attempt.epoch.0,
                    client_id = upload.client().map(ClientId::as_str), done = upload.done_bytes(),
                    "an upload stands still: the client, its disk, the way, or our disk hangs"
                );
            }
        }
    }

    /// Returns since when a cap holds the transfer's upload back, as its own instance says.
    fn throttled_since(&self, transfer: &Transfer) -> Option<UnixMs> {
        let session = self.sessions.find(&transfer.client)?;
        let is_own = transfer.instance == Some(session.instance);
        session.throttled_since(attempt_of(transfer)).filter(|_| is_own)
    }

    pub(in crate::server) fn view_client(&self, mut record: ClientRecord) -> ClientView {
        match self.sessions.find(&record.opening.client) {
            Some(session) => {
                record.opening.jobs_max = session.jobs_max();
                ClientView {
                    presence: self.sessions.presence_of(&session),
                    last_seen: session.last_seen().max(record.last_seen),
                    connected_since: Some(session.since),
                    record,
                }
            }
            None => ClientView {
                presence: Presence::Offline,
                last_seen: self
                    .sessions
                    .left(&record.opening.client)
                    .map_or(record.last_seen, |left| left.max(record.last_seen)),
                connected_since: None,
                record,
            },
        }
    }

    /// Returns the transfer once it has ended, or as it is after `wait`, or when the server drains.
    pub async fn wait(&self, id: TransferId, wait: Duration) -> Result<TransferView, Error> {
        let until = tokio::time::Instant::now() + wait.min(limits::WAIT_MAX);
        // Listened to first, so that no change falls between.
        let mut changes = self.changes.subscribe();
        let mut transfer = self.record(id).await?;
        while !transfer.state.is_final() {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = tokio::time::sleep_until(until) => break,
                () = self.shutdown.draining().cancelled() => break,
            };
            match change {
                Ok(now) if now.id == id => transfer = now.as_ref().clone(),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => transfer = self.record(id).await?,
                Err(RecvError::Closed) => break,
            }
        }
        Ok(self.view(transfer))
    }

    /// Follows transfers. Ends by itself when the server drains, or when the one transfer asked for
    /// has ended.
    pub async fn watch(self: &Arc<Self>, query: WatchQuery) -> Result<Watch, Error> {
        let changes = self.changes.subscribe();
        let (current, seq) = if let Some(token) = &query.resume_token {
            (Vec::new(), self.resume_after(token).await?)
        } else {
            // Read before the transfers: a change between is told twice rather than missed.
            let seq = self.store.last_event().await?;
            (self.current(&query).await?, seq)
        };
        let (items, told) = mpsc::channel(WATCH_BUFFER);
        let watcher =
            Watcher { coordinator: Arc::clone(self), query, items, seq, told: HashMap::new() };
        // The task ends when the stream is dropped.
        drop(self.shutdown.spawn(watcher.run(current, changes)));
        Ok(Box::pin(ReceiverStream::new(told)))
    }

    async fn resume_after(&self, token: &str) -> Result<u64, Error> {
        let text = "this is no resume token of this server";
        let seq =
            token.parse::<u64>().map_err(|_| Error::refused(Reason::InvalidArgument, text))?;
        if seq > self.store.last_event().await? {
            return Err(Error::refused(Reason::InvalidArgument, text));
        }
        match self.store.events_after(seq, 1).await? {
            Events::After(_) => Ok(seq),
            Events::Pruned => Err(token_expired()),
        }
    }

    async fn current(&self, query: &WatchQuery) -> Result<Vec<Transfer>, Error> {
        if let Some(id) = query.transfer {
            return Ok(vec![self.record(id).await?]);
        }
        let states = State::ALL.into_iter().filter(|state| !state.is_final()).collect();
        let filter = TransferFilter { client: query.client.clone(), states };
        let mut all = Vec::new();
        let mut before = None;
        loop {
            let page = self.store.transfers(&filter, before, limits::PAGE_SIZE_MAX).await?;
            let Some(last) = page.last() else { break };
            before = Some(last.id);
            all.extend(page);
        }
        all.retain(|transfer| query.wants(transfer));
        all.reverse();
        Ok(all)
    }
}

/// One watch: reads the stored events in order, and adds progress of what runs.
struct Watcher {
    coordinator: Arc<Coordinator>,
    query: WatchQuery,
    items: mpsc::Sender<Result<WatchItem, Error>>,
    /// Events up to this one have been told.
    seq: u64,
    /// What was last told of each transfer that moves: its bytes, and whether a cap holds it back.
    told: HashMap<TransferId, (u64, bool)>,
}

/// The watch is over: its reader has gone, or all has been told.
struct Over;

impl Watcher {
    async fn run(
        mut self,
        current: Vec<Transfer>,
        mut changes: tokio::sync::broadcast::Receiver<Arc<Transfer>>,
    ) {
        let draining = self.coordinator.shutdown.draining().clone();
        let gone = self.items.clone();
        let mut progress = tokio::time::interval(limits::PROGRESS_EVERY);
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut catch_up = tokio::time::interval(limits::WATCH_CATCH_UP);
        catch_up.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut over = self.begin(current).await;
        while over.is_ok() {
            over = tokio::select! {
                () = draining.cancelled() => Err(Over),
                () = gone.closed() => Err(Over),
                change = changes.recv() => match change {
                    Ok(change) if !self.query.wants(&change) => Ok(()),
                    Ok(_) | Err(RecvError::Lagged(_)) => self.tell_events().await,
                    Err(RecvError::Closed) => Err(Over),
                },
                _ = catch_up.tick() => self.tell_events().await,
                _ = progress.tick() => self.tell_progress().await,
            };
        }
    }

    async fn begin(&mut self, current: Vec<Transfer>) -> Result<(), Over> {
        for transfer in current {
            self.tell(WatchKind::Current, transfer).await?;
        }
        let Some(id) = self.query.transfer.filter(|_| self.query.resume_token.is_some()) else {
            return self.tell_events().await;
        };
        // Read before the events, so that an end between is among them.
        let transfer = match self.coordinator.record(id).await {
            Ok(transfer) => transfer,
            Err(err) => return self.fail(err).await,
        };
        // What was missed since the resume token.
        self.tell_events().await?;
        // It had ended before the token: nothing follows.
        if transfer.state.is_final() { Err(Over) } else { Ok(()) }
    }

    async fn tell_events(&mut self) -> Result<(), Over> {
        loop {
            let page = match self.coordinator.store.events_after(self.seq, EVENTS_PAGE).await {
                Ok(Events::After(page)) => page,
                Ok(Events::Pruned) => return self.fail(token_expired()).await,
                Err(err) => return self.fail(err.into()).await,
            };
            let is_last = page.len() < EVENTS_PAGE as usize;
            for event in page {
                self.seq = event.seq;
                if self.query.wants(&event.transfer) {
                    self.tell(WatchKind::Changed, event.transfer).await?;
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    async fn tell_progress(&mut self) -> Result<(), Over> {
        for upload in self.coordinator.uploads.all() {
            let id = upload.attempt.transfer;
            let is_wanted = self.query.transfer.is_none_or(|wanted| wanted == id)
                && self.query.client.as_ref().is_none_or(|client| Some(client) == upload.client());
            let session = upload.client().and_then(|client| self.coordinator.sessions.find(client));
            let held = session.is_some_and(|s| s.throttled_since(upload.attempt).is_some());
            let stalled = upload.stalled_since(UnixMs::now()).is_some();
            let now = (upload.done_bytes(), held || stalled);
            if !is_wanted || self.told.get(&id) == Some(&now) {
                continue;
            }
            let Ok(Some(transfer)) = self.coordinator.store.transfer(id).await else { continue };
            if transfer.state == State::Receiving && self.query.wants(&transfer) {
                self.told.insert(id, now);
                self.tell(WatchKind::Progress, transfer).await?;
            }
        }
        Ok(())
    }

    async fn tell(&mut self, kind: WatchKind, transfer: Transfer) -> Result<(), Over> {
        let is_last = transfer.state.is_final() && self.query.transfer == Some(transfer.id);
        if transfer.state != State::Receiving {
            self.told.remove(&transfer.id);
        }
        let transfer = self.coordinator.view(transfer);
        let item = WatchItem { kind, transfer, token: self.seq.to_string() };
        self.items.send(Ok(item)).await.map_err(|_| Over)?;
        if is_last { Err(Over) } else { Ok(()) }
    }

    async fn fail(&mut self, err: Error) -> Result<(), Over> {
        // A reader that has gone needs no reason.
        drop(self.items.send(Err(err)).await);
        Err(Over)
    }
}

fn token_expired() -> Error {
    let text = "the events after this resume token have been dropped; begin again without it";
    Error::refused(Reason::TokenExpired, text)
}

/// Bytes a second, from the first byte to the end.
fn mean_rate(transfer: &Transfer, size: u64) -> Option<u64> {
    let taken = transfer.ended?.since(transfer.started?).as_millis().max(1);
    u64::try_from(u128::from(size) * 1000 / taken).ok()
}

const WATCH_BUFFER: usize = 64;
const EVENTS_PAGE: u32 = 256;
