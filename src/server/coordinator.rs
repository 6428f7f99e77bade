//! The use cases: what operators ask for, and what sessions and uploads report. The only caller of
//! the store's mutating verbs, so every change of a record passes here, is told to who watches, and
//! rings the right bell.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::broadcast;

use super::{
    clients::Clients,
    error::Error,
    landing::{Landing, LandingError},
    metrics::Metrics,
    quotas::{QuotaLimits, Quotas},
    sessions::Sessions,
    store::{Applied, Created, Store, TransferFilter, credentials::Credentials},
    uploads::Uploads,
    view::{ClientView, TransferView},
};
use crate::{
    ids::{AttemptId, ClientId, Digest, TransferId, UnixMs},
    limits,
    shutdown::Shutdown,
    status::Reason,
    transfer::{Content as Kept, Moment, Request, State, Step, Transfer},
};

mod attempts;
mod begin;
mod disk;
mod log;
mod repair;
mod revoke;
mod standing;
mod watch;

pub(super) use attempts::ignore_late;
pub use begin::Begun;
pub use repair::Repaired;
pub use standing::{Counts, Readiness};
pub use watch::{Watch, WatchQuery};

use disk::DiskWait;

/// How long landed files are kept. Off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    pub keep: Option<Duration>,
    pub keep_bytes: Option<u64>,
}

/// What the coordinator is made of.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub credentials: Arc<dyn Credentials>,
    pub landing: Arc<Landing>,
    pub metrics: Arc<Metrics>,
    pub shutdown: Shutdown,
    pub heartbeat: Duration,
    pub retention: Retention,
    pub quotas: QuotaLimits,
    pub uploads_max: usize,
}

/// Transfers that wait for room on the disk. Nothing is lost with it: each has a time of its own at
/// which it is tried again.
type DiskWaits = HashMap<TransferId, DiskWait>;

pub struct Coordinator {
    pub(super) store: Arc<dyn Store>,
    pub(super) credentials: Arc<dyn Credentials>,
    pub(super) landing: Arc<Landing>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shutdown: Shutdown,
    pub(super) sessions: Sessions,
    pub(super) uploads: Arc<Uploads>,
    pub(super) clients: Arc<Clients>,
    retention: Retention,
    pub(super) quotas: Quotas,
    /// Files that landed, and whose records may not say so.
    doubtful: Mutex<Vec<AttemptId>>,
    disk_waits: Mutex<DiskWaits>,
    /// Every change made by this server, as it is made.
    changes: broadcast::Sender<Arc<Transfer>>,
}

/// The verified bytes of a COMPLETE transfer, opened.
#[derive(Debug)]
pub struct Content {
    pub file: File,
    pub size: u64,
    pub digest: Digest,
}

impl Coordinator {
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            store: parts.store,
            credentials: parts.credentials,
            landing: parts.landing,
            metrics: parts.metrics,
            shutdown: parts.shutdown,
            sessions: Sessions::new(parts.heartbeat),
            uploads: Arc::new(Uploads::new(parts.uploads_max)),
            clients: Arc::default(),
            retention: parts.retention,
            quotas: Quotas::new(parts.quotas),
            doubtful: Mutex::default(),
            disk_waits: Mutex::default(),
            changes: broadcast::channel(limits::WATCH_LAG_MAX).0,
        })
    }

    // === What operators ask for ===

    /// Writes a transfer, and rings for its client. Once this returns, the transfer cannot be lost.
    pub async fn trigger(self: &Arc<Self>, request: Request) -> Result<TransferView, Error> {
        if self.shutdown.draining().is_cancelled() {
            return Err(Error::refused(Reason::Draining, "the server is shutting down"));
        }
        let client = request.client.clone();
        let used = |party, since| async move { Ok(self.store.usage(&party, since).await?) };
        let admitted =
            self.quotas.admit_trigger::<_, _, Error>(request.operator.as_ref(), &client, used);
        admitted.await?;
        let transfer = Transfer::new(TransferId::generate(), request, UnixMs::now());
        let this = Arc::clone(self);
        let created = self
            .owned(async move {
                let created = this.store.create(&transfer).await?;
                if let Created::New(transfer) = &created {
                    this.tell(transfer);
                }
                Ok(created)
            })
            .await?;
        match created {
            Created::New(transfer) | Created::Existing(transfer) => Ok(self.view(transfer)),
            Created::Conflict(other) => {
                let text = format!("this request id stands for another request, transfer {other}");
                Err(Error::refused(Reason::RequestIdConflict, text))
            }
            Created::Taken(id) => {
                let text = format!("there is a transfer {id}: sign a new request");
                Err(Error::refused(Reason::AlreadyExists, text))
            }
            Created::UnknownClient => Err(unknown_client(&client)),
            Created::TooMany(count) => {
                let text =
                    format!("{client} has {count} unfinished transfers, and may have no more");
                Err(Error::refused(Reason::TooMany, text))
            }
        }
    }

    pub async fn transfer(&self, id: TransferId) -> Result<TransferView, Error> {
        Ok(self.view(self.record(id).await?))
    }

    /// Newest first, older than `before`.
    pub async fn transfers(
        &self,
        filter: &TransferFilter,
        before: Option<TransferId>,
        limit: u32,
    ) -> Result<Vec<TransferView>, Error> {
        let transfers = self.store.transfers(filter, before, limit).await?;
        Ok(transfers.into_iter().map(|transfer| self.view(transfer)).collect())
    }

    /// Final at once; the client is told to stop.
    pub async fn cancel(self: &Arc<Self>, id: TransferId) -> Result<TransferView, Error> {
        let transfer =
            self.apply(id, Step::Cancelled { received_bytes: self.received(id) }).await?;
        self.stop_at_client(&transfer);
        let this = Arc::clone(self);
        // Nobody need wait for the disk; an end of the server does.
        drop(self.shutdown.spawn(async move {
            if let Err(err) = this.collect(id).await {
                err.log();
            }
        }));
        Ok(self.view(transfer))
    }

    pub async fn retry(self: &Arc<Self>, id: TransferId) -> Result<TransferView, Error> {
        Ok(self.view(self.apply(id, Step::Retried).await?))
    }

    pub async fn pause(self: &Arc<Self>, id: TransferId) -> Result<TransferView, Error> {
        let transfer = self.apply(id, Step::Paused { received_bytes: self.received(id) }).await?;
        self.stop_at_client(&transfer);
        Ok(self.view(transfer))
    }

    pub async fn resume(self: &Arc<Self>, id: TransferId) -> Result<TransferView, Error> {
        Ok(self.view(self.apply(id, Step::Resumed).await?))
    }

    /// Removes the bytes of an ended transfer. The record says so first, so that no reader finds it
    /// half there.
    pub async fn delete(self: &Arc<Self>, id: TransferId) -> Result<TransferView, Error> {
        let this = Arc::clone(self);
        let deleted = async move {
            let transfer = this.apply_here(id, &[(Step::ContentDeleted, Moment::now())]).await?;
            let attempt = attempt_of(&transfer);
            this.on_disk(move |landing| landing.remove(attempt)).await?;
            Ok(transfer)
        };
        Ok(self.view(self.owned(deleted).await?))
    }

    /// Whether a client has transfers that wait to be claimed, due or not.
    pub(super) async fn has_waiting(&self, client: &ClientId) -> Result<bool, Error> {
        let record = self.store.client(client).await?;
        Ok(record.is_some_and(|record| record.queued_transfers > 0))
    }

    pub async fn client(&self, id: &ClientId) -> Result<ClientView, Error> {
        let record = self.store.client(id).await?.ok_or_else(|| unknown_client(id))?;
        Ok(self.view_client(record))
    }

    /// By id, after `after`.
    pub async fn clients(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientView>, Error> {
        let records = self.store.clients(after, limit).await?;
        Ok(records.into_iter().map(|record| self.view_client(record)).collect())
    }

    /// Opens the bytes of a COMPLETE transfer.
    pub async fn content(&self, id: TransferId) -> Result<Content, Error> {
        let transfer = self.record(id).await?;
        let (Kept::Kept, Some(finish), Some(source)) =
            (transfer.content, transfer.finish, &transfer.file)
        else {
            let text = match transfer.content {
                Kept::Deleted => "the bytes were deleted".to_owned(),
                _ => format!("there are no bytes: the transfer is {}", transfer.state.as_str()),
            };
            return Err(Error::refused(Reason::NoContent, text));
        };
        let attempt = attempt_of(&transfer);
        let file = match self.on_disk(move |landing| landing.read(attempt)).await {
            Err(Error::Landing(err)) if err.is_not_found() => {
                // Somebody else took it: that does not pass.
                tracing::error!(transfer_id = %id, error = %err, "a landed file is gone");
                let text = "the landed file is gone from the server's disk";
                return Err(Error::refused(Reason::ContentLost, text));
            }
            opened => opened?,
        };
        Ok(Content { file, size: source.size_bytes, digest: finish.digest })
    }

    // === What every change has in common ===

    /// Applies a step to a transfer, and tells who wants to know. Whoever drops the returned future
    /// does not undo it.
    pub(super) async fn apply(
        self: &Arc<Self>,
        id: TransferId,
        step: Step,
    ) -> Result<Transfer, Error> {
        self.apply_all(id, vec![(step, Moment::now())]).await
    }

    /// Like `apply`, with steps that follow each other: all of them are taken, or none.
    pub(super) async fn apply_all(
        self: &Arc<Self>,
        id: TransferId,
        steps: Vec<(Step, Moment)>,
    ) -> Result<Transfer, Error> {
        let this = Arc::clone(self);
        self.owned(async move { this.apply_here(id, &steps).await }).await
    }

    async fn apply_here(
        &self,
        id: TransferId,
        steps: &[(Step, Moment)],
    ) -> Result<Transfer, Error> {
        match self.store.apply(id, steps).await? {
            Applied::Done(mut versions) => {
                for version in &versions {
                    self.tell(version);
                }
                versions.pop().ok_or_else(|| Error::Internal("no step to take".to_owned()))
            }
            Applied::Refused(err, _) => Err(err.into()),
            Applied::Unknown => Err(unknown_transfer(id)),
        }
    }

    /// Runs to its end what must not be left half done, even if whoever asked has gone.
    pub(super) async fn owned<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.shutdown.spawn(work).await;
        done.unwrap_or_else(|err| Err(Error::Internal(err.to_string())))
    }

    /// Runs calls of the landing on a blocking thread.
    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Landing) -> Result<T, LandingError> + Send + 'static,
    ) -> Result<T, Error> {
        let landing = Arc::clone(&self.landing);
        let done = tokio::task::spawn_blocking(move || call(&landing)).await;
        done.map_err(|err| Error::Internal(err.to_string()))?.map_err(Error::from)
    }

    fn tell(&self, transfer: &Transfer) {
        if !transfer.state.is_outstanding() {
            // Nobody waits for its bytes any more.
            self.uploads.stop(attempt_of(transfer));
            self.uploads.places.release(attempt_of(transfer));
        }
        if transfer.state.is_waiting() || transfer.state.is_final() {
            // There is something to claim, or a slot is free.
            self.sessions.wake(&transfer.client);
        }
        self.note_disk_wait(transfer);
        if let (State::Interrupted, Some(failure)) = (transfer.state, &transfer.failure) {
            log::broken(transfer, failure);
        }
        if transfer.state.is_final() && transfer.ended == Some(transfer.updated) {
            self.metrics.transfer_ended(transfer.state);
            log::ended(transfer);
        }
        // Without a receiver nobody watches.
        drop(self.changes.send(Arc::new(transfer.clone())));
    }

    async fn record(&self, id: TransferId) -> Result<Transfer, Error> {
        self.store.transfer(id).await?.ok_or_else(|| unknown_transfer(id))
    }

    /// Tells the client of a transfer that its attempt is over.
    fn stop_at_client(&self, transfer: &Transfer) {
        let attempt = attempt_of(transfer);
        if transfer.instance.is_some()
            && let Some(session) = self.sessions.find(&transfer.client)
        {
            session.stop(attempt);
        }
    }

    pub(super) fn location(&self, transfer: &Transfer) -> Option<PathBuf> {
        (transfer.content == Kept::Kept).then(|| self.landing.location(attempt_of(transfer)))
    }
}

/// Returns the latest attempt of a transfer.
pub(super) fn attempt_of(transfer: &Transfer) -> AttemptId {
    AttemptId { transfer: transfer.id, epoch: transfer.epoch }
}

fn unknown_transfer(id: TransferId) -> Error {
    Error::refused(Reason::UnknownTransfer, format!("there is no transfer {id}"))
}

fn unknown_client(id: &ClientId) -> Error {
    Error::refused(Reason::UnknownClient, format!("no client {id} has ever registered"))
}
