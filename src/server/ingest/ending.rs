//! How an upload ends that delivers nothing: what is noted of it, what of it is kept, and what the
//! client is answered.

use super::{End, Ingest, Received, sink::Written};
use crate::{
    chunk::ChunkError,
    server::{coordinator::ignore_late, error::Error, landing::Landing},
    status::Reason,
    transfer::{Cause, FailReason, Moment, State, Step},
};

impl Ingest {
    /// Notes that there is nothing to write to.
    pub(super) async fn not_opened(&mut self, err: Error) -> Result<Received, Error> {
        let cause = match &err {
            Error::WrongOffset { .. } => failed_with(FailReason::Io, err.peer_text()),
            _ => disk_cause(&err),
        };
        let id = self.transfer.id;
        let kept = self.coordinator.on_disk(move |landing| landing.settle_partial(id)).await;
        let keep = kept.map_or_else(
            |err| {
                err.log();
                Keep::AsBefore
            },
            Keep::Bytes,
        );
        self.broken(keep, cause, err).await
    }

    /// Notes an end that delivers nothing, and returns what the client is answered.
    pub(super) async fn end(&mut self, end: End, written: Written) -> Result<Received, Error> {
        let (cause, err) = match end {
            End::Abort { reason, detail } if !reason.is_worth_retrying() => {
                let epoch = self.transfer.epoch;
                self.abandon(written).await;
                self.ended(Step::Refused { epoch, reason, detail }, Keep::Nothing).await?;
                return Ok(Received::Aborted);
            }
            End::Abort { reason, detail } => (failed_with(reason, detail), None),
            End::Held(hold, pause) => (Cause::ClientHolds { hold, pause }, None),
            End::Stopped => {
                let err = Error::refused(Reason::StaleEpoch, "this attempt is over");
                if self.entered.is_replaced() {
                    // The newer call goes on with what is kept, and notes it.
                    self.keep(written).await;
                    return Err(err);
                }
                (self.entered.cause().unwrap_or(Cause::ClientLost), Some(err))
            }
            End::Drained => {
                let err = Error::refused(Reason::Draining, "the server is shutting down");
                (Cause::ServerStopped, Some(err))
            }
            End::Cut => {
                // First what is there is made durable.
                let keep = self.keep(written).await;
                let cause = tokio::select! {
                    cause = self.coordinator.cause_of_cut(&self.transfer) => cause,
                    // Its client says more.
                    () = self.entered.stop.cancelled() => {
                        self.entered.cause().unwrap_or(Cause::ClientLost)
                    }
                };
                let text = "the upload ended before its Finish";
                return self.broken(keep, cause, Error::refused(Reason::NotWhole, text)).await;
            }
            End::Damaged => {
                let text = "what was kept has changed on the server's disk";
                tracing::error!(text, "a partial file is dropped");
                let err = Error::refused(Reason::ServerIo, text);
                self.abandon(written).await;
                return self.broken(Keep::Nothing, Cause::ServerDisk { is_full: false }, err).await;
            }
            End::Refused(err) => {
                let cause = match err.reason() {
                    Reason::Stalled => self.coordinator.cause_of_cut(&self.transfer).await,
                    Reason::ChunkCorrupt => failed_with(FailReason::Integrity, err.peer_text()),
                    _ => failed_with(FailReason::Io, err.peer_text()),
                };
                (cause, Some(err))
            }
            End::Finish { .. } => unreachable!("a Finish is taken by `finish`"),
        };
        let keep = if is_of_the_source(&cause, err.as_ref()) {
            self.abandon(written).await;
            Keep::Nothing
        } else {
            self.keep(written).await
        };
        let step = self.step(cause);
        self.ended(step, keep).await?;
        err.map_or(Ok(Received::Aborted), Err)
    }

    fn step(&self, cause: Cause) -> Step {
        let received_bytes = self.entered.received_bytes();
        Step::Broken { epoch: self.transfer.epoch, cause, received_bytes }
    }

    /// Notes that the attempt broke, and answers `err`.
    pub(super) async fn broken(
        &mut self,
        keep: Keep,
        cause: Cause,
        err: Error,
    ) -> Result<Received, Error> {
        let step = self.step(cause);
        self.ended(step, keep).await?;
        Err(err)
    }

    /// Notes how the attempt ended, with what is kept of it. If somebody has already said how it
    /// goes on, only the latter is news.
    pub(super) async fn ended(&mut self, step: Step, keep: Keep) -> Result<(), Error> {
        if let Some(kept) = self.news(keep) {
            self.unrecorded.push((kept, Moment::now()));
        }
        match self.record(step).await {
            Ok(_) => Ok(()),
            Err(Error::Step(_)) => {
                self.note_kept(keep).await;
                Ok(())
            }
            Err(err) => Err(err),
        }
    }

    fn news(&self, keep: Keep) -> Option<Step> {
        let kept_bytes = match keep {
            Keep::Bytes(bytes) => bytes,
            Keep::Nothing => 0,
            Keep::AsBefore => return None,
        };
        let epoch = self.transfer.epoch;
        (kept_bytes != self.transfer.kept_bytes).then_some(Step::Kept { epoch, kept_bytes })
    }

    /// Notes what is kept of an attempt that is over. What nobody wants any more is removed.
    pub(super) async fn note_kept(&self, keep: Keep) {
        let id = self.transfer.id;
        if let Some(step) = self.news(keep)
            && let Err(err) = ignore_late(self.coordinator.apply(id, step).await)
        {
            err.log();
        }
        match self.coordinator.store.transfer(id).await {
            Ok(Some(now)) if matches!(now.state, State::Cancelled | State::Complete) => {
                self.discard().await;
            }
            Ok(_) => {}
            // A later sweep looks again.
            Err(err) => Error::from(err).log(),
        }
    }

    /// Puts what was written at rest.
    pub(super) async fn keep(&self, written: Written) -> Keep {
        match self.coordinator.on_disk(move |landing| written.rest(landing)).await {
            Ok(bytes) => Keep::Bytes(bytes),
            Err(err) => {
                err.log();
                // Read-only, or gone: it is looked at when that is over.
                if leaves_kept(&err) { Keep::AsBefore } else { Keep::Nothing }
            }
        }
    }

    /// After a disk that is full, read-only or gone, what was durable before is good; after any
    /// other failure nothing is.
    pub(super) async fn keep_after(&self, err: &Error, written: Written) -> Keep {
        if leaves_kept(err) {
            return self.keep(written).await;
        }
        self.abandon(written).await;
        Keep::Nothing
    }

    /// Removes what was written, once nothing writes any more.
    pub(super) async fn abandon(&self, written: Written) {
        let id = self.transfer.id;
        let abandon = move |landing: &Landing| written.abandon(landing, id);
        if let Err(err) = self.coordinator.on_disk(abandon).await {
            err.log();
        }
    }

    pub(super) async fn keep_after_publish(&self, err: &Error) -> Keep {
        let id = self.transfer.id;
        if leaves_kept(err) {
            let kept = self.coordinator.on_disk(move |landing| landing.settle_partial(id)).await;
            return kept.map_or(Keep::AsBefore, Keep::Bytes);
        }
        self.discard().await;
        Keep::Nothing
    }

    pub(super) async fn discard(&self) {
        let id = self.transfer.id;
        if let Err(err) = self.coordinator.on_disk(move |landing| landing.discard(id)).await {
            err.log();
        }
    }
}

/// What is durably held after an attempt.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keep {
    Bytes(u64),
    Nothing,
    /// It could not be found out.
    AsBefore,
}

/// It was not the way that broke: the source is another one, or what was kept is none of it.
fn is_of_the_source(cause: &Cause, err: Option<&Error>) -> bool {
    // A chunk that was corrupted on the way has not been written.
    let is_chunk = err.is_some_and(|err| err.reason() == Reason::ChunkCorrupt);
    let of_source = [FailReason::SourceChanged, FailReason::Integrity];
    !is_chunk && matches!(cause, Cause::Failed { reason, .. } if of_source.contains(reason))
}

pub(super) fn failed_with(reason: FailReason, detail: String) -> Cause {
    Cause::Failed { reason, detail }
}

pub(super) fn disk_cause(err: &Error) -> Cause {
    let is_full = matches!(err, Error::Landing(err) if err.is_unwritable());
    Cause::ServerDisk { is_full }
}

fn leaves_kept(err: &Error) -> bool {
    matches!(err, Error::Landing(err) if err.leaves_kept())
}

pub(super) fn integrity_cause(err: &ChunkError) -> Cause {
    failed_with(FailReason::Integrity, err.to_string())
}
