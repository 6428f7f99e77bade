//! What a server does before it listens, and now and then while it runs: it settles what the last
//! life left half done, and lets go of what is overdue or too old.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::{Coordinator, attempt_of, ignore_late};
use crate::{
    ids::{AttemptId, TransferId, UnixMs},
    limits,
    server::{error::Error, landing::Landing, store::TransferFilter},
    transfer::{Cause, Content, Moment, State, Step, Transfer},
};

/// What a start found, and settled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Published, but not recorded: now COMPLETE.
    pub adopted: u64,
    /// Attempts that ended with the process.
    pub interrupted: u64,
    /// Partial files that the next attempts go on with.
    pub kept: u64,
    /// Partial files that cannot be believed, or that nobody wants any more.
    pub dropped: u64,
    /// Landed files that no record wants.
    pub removed: u64,
}

impl Coordinator {
    /// Brings records and disk in line after a start: nothing runs yet.
    pub async fn repair(self: &Arc<Self>) -> Result<Repaired, Error> {
        let states = vec![State::Offered, State::Receiving, State::Verifying];
        let filter = TransferFilter { client: None, states };
        let mut done = Repaired::default();
        let mut before = None;
        loop {
            let page = self.store.transfers(&filter, before, limits::PAGE_SIZE_MAX).await?;
            for transfer in &page {
                if self.repair_attempt(transfer).await? {
                    done.adopted += 1;
                } else {
                    done.interrupted += 1;
                }
            }
            before = page.last().map(|transfer| transfer.id);
            if before.is_none() {
                break;
            }
        }
        self.settle_partials(&mut done).await?;
        done.removed = self.remove_unwanted().await?;
        if done != Repaired::default() {
            tracing::info!(
                adopted = done.adopted,
                interrupted = done.interrupted,
                kept = done.kept,
                dropped = done.dropped,
                removed = done.removed,
                "settled what the last run left"
            );
        }
        Ok(done)
    }

    /// Brings the partial files that an earlier process or mount left in line with their journals
    /// and their records.
    pub(super) async fn settle_partials(
        self: &Arc<Self>,
        done: &mut Repaired,
    ) -> Result<(), Error> {
        for id in self.on_disk(Landing::partials).await? {
            // What is being written is its upload's business.
            let Some(_held) = self.uploads.hold(id) else { continue };
            let transfer = self.store.transfer(id).await?;
            // What was cancelled, or has landed, needs none; what failed may be retried.
            let wanted =
                transfer.filter(|t| !matches!(t.state, State::Cancelled | State::Complete));
            let Some(transfer) = wanted else {
                match self.on_disk(move |landing| landing.discard(id)).await {
                    Ok(()) => done.dropped += 1,
                    Err(err) => err.log(),
                }
                continue;
            };
            let kept_bytes = self.kept_now(&transfer).await;
            if kept_bytes > 0 {
                self.landing.inherit(id);
                done.kept += 1;
            } else {
                done.dropped += 1;
            }
            let step = Step::Kept { epoch: transfer.epoch, kept_bytes };
            ignore_late(self.apply(id, step).await)?;
        }
        Ok(())
    }

    /// Ends an attempt that nobody works on; returns whether its file had landed.
    async fn repair_attempt(self: &Arc<Self>, transfer: &Transfer) -> Result<bool, Error> {
        let attempt = attempt_of(transfer);
        let epoch = transfer.epoch;
        let cause = Cause::ServerStopped;
        if transfer.state != State::Verifying {
            return self.repair_upload(transfer, cause).await.map(|()| false);
        }
        if !self.on_disk(move |landing| landing.is_published(attempt)).await? {
            ignore_late(self.apply(transfer.id, Step::Unpublished { epoch, cause }).await)?;
            return self.note_kept(transfer).await.map(|()| false);
        }
        // Only a verified, synced file gets this name; the name itself may not have been synced.
        self.on_disk(move |landing| landing.settle(attempt)).await?;
        ignore_late(self.apply(transfer.id, Step::Published { epoch }).await)?;
        Ok(true)
    }

    /// Ends an attempt whose upload ended with an earlier process. What it received beyond what it
    /// kept is not known any more.
    async fn repair_upload(
        self: &Arc<Self>,
        transfer: &Transfer,
        cause: Cause,
    ) -> Result<(), Error> {
        let (id, epoch) = (transfer.id, transfer.epoch);
        let kept_bytes = self.kept_now(transfer).await;
        let received_bytes = kept_bytes.saturating_sub(transfer.kept_bytes);
        let kept = Step::Kept { epoch, kept_bytes };
        let kept = (kept_bytes != transfer.kept_bytes).then_some(kept);
        let broken = Step::Broken { epoch, cause, received_bytes };
        let steps = kept.into_iter().chain([broken]).map(|step| (step, Moment::now())).collect();
        ignore_late(self.apply_all(id, steps).await)
    }

    async fn note_kept(self: &Arc<Self>, transfer: &Transfer) -> Result<(), Error> {
        let (id, epoch) = (transfer.id, transfer.epoch);
        let kept_bytes = self.kept_now(transfer).await;
        ignore_late(self.apply(id, Step::Kept { epoch, kept_bytes }).await)
    }

    /// Returns what is kept of a transfer; as before, if the disk does not tell: one file must not
    /// keep a server from starting.
    async fn kept_now(&self, transfer: &Transfer) -> u64 {
        let id = transfer.id;
        match self.on_disk(move |landing| landing.settle_partial(id)).await {
            Ok(kept_bytes) => kept_bytes,
            Err(err) => {
                err.log();
                transfer.kept_bytes
            }
        }
    }

    /// Removes files that no record wants: deleted on request when the server stopped before it was
    /// done, or of an attempt that was never recorded as published. A file without any record is
    /// left alone, and told.
    async fn remove_unwanted(&self) -> Result<u64, Error> {
        let mut removed = 0;
        for attempt in self.on_disk(Landing::published).await? {
            match self.store.transfer(attempt.transfer).await? {
                Some(t) if t.content == Content::Kept && t.epoch == attempt.epoch => {}
                Some(_) => {
                    self.on_disk(move |landing| landing.remove(attempt)).await?;
                    removed += 1;
                }
                None => tracing::warn!(name = %attempt, "a landed file has no record; left alone"),
            }
        }
        Ok(removed)
    }

    /// Lets go of offers that were not taken up, and of transfers whose deadline has passed.
    pub async fn sweep(self: &Arc<Self>) -> Result<(), Error> {
        let now = UnixMs::now();
        let offered_before = now.minus(limits::OFFER_WAIT);
        for transfer in self.store.overdue(now, offered_before, limits::PAGE_SIZE_MAX).await? {
            if transfer.deadline <= now {
                let ended = self
                    .apply(
                        transfer.id,
                        Step::DeadlinePassed { received_bytes: self.received(transfer.id) },
                    )
                    .await;
                if let Ok(ended) = &ended {
                    self.stop_at_client(ended);
                }
                ignore_late(ended)?;
            } else if !self.is_uploading(attempt_of(&transfer)) {
                let step = Step::OfferExpired { epoch: transfer.epoch };
                ignore_late(self.apply(transfer.id, step).await)?;
            }
        }
        Ok(())
    }

    /// Rings for every client that has something due: one look for all sessions, so that an idle one
    /// costs nothing, and a bell that was missed delays a transfer until here.
    pub async fn ring_due(&self) -> Result<(), Error> {
        let now = UnixMs::now();
        let mut after = None;
        loop {
            let due = self.store.due_clients(now, after.as_ref(), limits::PAGE_SIZE_MAX).await?;
            for client in &due {
                self.sessions.wake(client);
            }
            // Most of them may be offline, so the first page is not enough.
            after = match due.last() {
                Some(last) if due.len() >= limits::PAGE_SIZE_MAX as usize => Some(last.clone()),
                _ => return Ok(()),
            };
        }
    }

    /// Settles transfers that say they are being received or verified, and of which nothing runs:
    /// what their upload wanted to note could not be written. Whoever works on one holds its place
    /// in `uploads`.
    pub async fn settle_orphans(self: &Arc<Self>) -> Result<(), Error> {
        self.settle_doubtful().await?;
        let states = vec![State::Receiving, State::Verifying];
        let filter = TransferFilter { client: None, states };
        for transfer in self.store.transfers(&filter, None, limits::PAGE_SIZE_MAX).await? {
            // Held, so that no upload of it begins meanwhile.
            if let Some(_held) = self.uploads.hold(transfer.id) {
                tracing::warn!(transfer_id = %transfer.id, state = ?transfer.state, "settled an orphan");
                if let Err(err) = self.repair_attempt(&transfer).await {
                    err.log();
                }
            }
        }
        Ok(())
    }

    /// Removes what is left of transfers that nobody wants any more.
    pub async fn collect_abandoned(&self) -> Result<(), Error> {
        for id in self.on_disk(Landing::partials).await? {
            // One that fails keeps nobody else's.
            if let Err(err) = self.collect(id).await {
                err.log();
            }
        }
        Ok(())
    }

    /// Removes what is left of a transfer that is over: at once if it was cancelled, after a while
    /// if it failed. An upload that has not let go yet does that itself.
    pub(super) async fn collect(&self, id: TransferId) -> Result<(), Error> {
        // Held, so that no newer attempt begins meanwhile.
        let Some(_held) = self.uploads.hold(id) else { return Ok(()) };
        let now = UnixMs::now();
        let is_over = match self.store.transfer(id).await? {
            None => true,
            Some(transfer) => match transfer.state {
                State::Cancelled | State::Complete => true,
                State::Failed => {
                    transfer.ended.is_some_and(|ended| now.since(ended) > limits::PARTIAL_KEEP)
                }
                _ => false,
            },
        };
        if is_over {
            self.on_disk(move |landing| landing.discard(id)).await?;
        }
        Ok(())
    }

    /// Notes that a file has landed, and that it is not known whether its record says so.
    pub(in crate::server) fn doubt(&self, attempt: AttemptId) {
        self.doubtful().push(attempt);
    }

    /// Removes what an older call of an attempt has landed and could not record, before a newer call
    /// goes on in its place: else this file would be taken for what the newer one is about to land.
    pub(super) async fn remove_unrecorded(&self, attempt: AttemptId) -> Result<(), Error> {
        let is_doubtful = self.doubtful().contains(&attempt);
        if is_doubtful && self.record(attempt.transfer).await?.content != Content::Kept {
            self.on_disk(move |landing| landing.remove(attempt)).await?;
        }
        Ok(())
    }

    /// Removes the doubtful files that no record names, and will not name any more.
    pub async fn settle_doubtful(&self) -> Result<(), Error> {
        let mut doubtful = std::mem::take(&mut *self.doubtful());
        let mut settled = Ok(());
        while let Some(attempt) = doubtful.pop() {
            match self.settle(attempt).await {
                Ok(true) => {}
                Ok(false) => self.doubt(attempt),
                Err(err) => {
                    self.doubt(attempt);
                    settled = Err(err);
                    break;
                }
            }
        }
        // What was not looked at stays in doubt.
        self.doubtful().append(&mut doubtful);
        settled
    }

    /// Returns whether it is settled what becomes of a file that has landed.
    async fn settle(&self, attempt: AttemptId) -> Result<bool, Error> {
        let record = self.store.transfer(attempt.transfer).await?;
        let current = record.filter(|transfer| transfer.epoch == attempt.epoch);
        match current {
            Some(transfer) if transfer.content == Content::Kept => {}
            // It may yet be written, or the attempt is settled first.
            Some(transfer) if transfer.state.is_outstanding() => return Ok(false),
            _ => self.on_disk(move |landing| landing.remove(attempt)).await?,
        }
        Ok(true)
    }

    fn doubtful(&self) -> MutexGuard<'_, Vec<AttemptId>> {
        // A list is never half changed.
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes when clients were last heard.
    pub async fn flush_seen(&self) -> Result<(), Error> {
        for part in self.sessions.seen().chunks(limits::SEEN_PER_WRITE) {
            self.store.note_seen(part).await?;
            self.sessions.noted(part);
        }
        Ok(())
    }

    /// Deletes bytes and events beyond what is to be kept.
    pub async fn retain(self: &Arc<Self>) -> Result<(), Error> {
        let now = UnixMs::now();
        let before = self.retention.keep.map(|keep| now.minus(keep));
        if before.is_some() || self.retention.keep_bytes.is_some() {
            let bytes_max = self.retention.keep_bytes;
            let limit = limits::PAGE_SIZE_MAX;
            loop {
                let page = self.store.expired_content(before, bytes_max, limit).await?;
                for transfer in &page {
                    self.expire(transfer.id).await?;
                }
                let is_last = page.len() < limit as usize;
                if is_last || self.shutdown.draining().is_cancelled() {
                    break;
                }
            }
        }
        let dropped = self
            .store
            .prune_events(now.minus(limits::EVENTS_KEEP), limits::EVENTS_KEEP_MAX)
            .await?;
        if dropped > 0 {
            tracing::debug!(dropped, "dropped old events");
        }
        Ok(())
    }

    async fn expire(self: &Arc<Self>, id: TransferId) -> Result<(), Error> {
        let deleted = self.delete(id).await;
        if deleted.is_ok() {
            tracing::info!(transfer_id = %id, "deleted a landed file that is past what is kept");
        }
        ignore_late(deleted)
    }
}
