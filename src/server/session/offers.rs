//! What a session offers its client: transfers that it claims from the queue, as many as the client
//! takes and the server has places for, with what need not be sent again of each.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    task::JoinError,
    time::{Instant, timeout},
};

use super::{End, Link, quota};
use crate::{
    ids::UnixMs,
    limits,
    server::{coordinator::attempt_of, error::Error, places::Place, store::Claim},
    transfer::{Cause, Transfer},
    wire::session::{Command, FromServer, Resume},
};

impl Link {
    /// Returns a place of the server for one more upload. If there is none, and the client has
    /// something to send, it is waited for.
    async fn place(&mut self) -> Option<Place> {
        let place = self.coordinator.uploads.places.try_take();
        if place.is_some() {
            self.next_place = None;
        } else if self.next_place.is_none() {
            self.session.note_full(false);
            match self.coordinator.has_waiting(&self.session.client).await {
                Ok(true) => {
                    self.next_place = Some(Box::pin(self.coordinator.uploads.places.take()));
                }
                Ok(false) => {}
                Err(err) => self.look_again(&err),
            }
        }
        self.session.note_server_full(self.next_place.is_some());
        place
    }

    /// Returns places for more uploads, at most `room`, beginning with the one that was `given`.
    async fn places(&mut self, given: Option<Place>, room: usize) -> Option<Vec<Place>> {
        let first = match given {
            Some(place) => place,
            None => self.place().await?,
        };
        let more = std::iter::from_fn(|| self.coordinator.uploads.places.try_take());
        Some(std::iter::once(first).chain(more.take(room - 1)).collect())
    }

    /// Sends what is to be stopped and what is asked, then commands.
    pub(super) async fn act(&mut self, place: Option<Place>) -> Result<(), End> {
        self.claim_at = None;
        loop {
            let Ok(slot) = self.outbox.try_reserve() else {
                // The rest waits for room.
                self.claim_at = Some(Instant::now() + CLAIM_PAUSE_MIN);
                return Ok(());
            };
            let message = if let Some(attempt) = self.session.next_stop() {
                FromServer::Stop(attempt)
            } else if let Some((question, asked)) = self.session.questions.next() {
                self.quota.grant(1);
                FromServer::Explain { question, path: Ok(asked.path), operator: asked.operator }
            } else {
                break;
            };
            slot.send(Ok(message.into()));
        }
        self.offer(place).await
    }

    /// Sends commands, as many as the client takes, the server has places for and the outbox holds;
    /// if there may be more, it rings for the next look.
    async fn offer(&mut self, place: Option<Place>) -> Result<(), End> {
        if !self.coordinator.takes_files() {
            // It rings when the disk does.
            return Ok(());
        }
        // Never claim what cannot be sent.
        let slots = std::iter::from_fn(|| self.outbox.try_reserve().ok());
        let slots: Vec<_> = slots.take(limits::OFFERS_PER_CLAIM_MAX as usize).collect();
        if slots.is_empty() {
            self.claim_at = Some(Instant::now() + CLAIM_PAUSE_MIN);
            return Ok(());
        }
        let Some(places) = self.places(place, slots.len()).await else { return Ok(()) };
        let jobs_max = self.session.jobs_max();
        let offers_max = u32::try_from(places.len()).unwrap_or(limits::OFFERS_PER_CLAIM_MAX);
        let claim = self.coordinator.claim(&self.session, jobs_max, offers_max).await;
        self.session.note_full(matches!(claim, Ok(Claim::Full)));
        self.session.note_server_full(false);
        match claim {
            Ok(Claim::Offered(offers)) => {
                for ((transfer, slot), place) in offers.iter().zip(slots).zip(places) {
                    let attempt = attempt_of(transfer);
                    tracing::debug!(%attempt, "offered");
                    self.coordinator.uploads.places.keep(attempt, place);
                    self.quota.grant(quota::MESSAGES_PER_OFFER);
                    // The disk knows what is kept: an upload that still ends has not noted it.
                    if transfer.attempts == 0 {
                        slot.send(Ok(FromServer::Download(command(transfer, None)).into()));
                    } else {
                        self.prepare(transfer.clone());
                    }
                }
                self.session.bell.notify_one();
            }
            Ok(Claim::Full) => {}
            Ok(Claim::Nothing { next_due }) => {
                if let Some(due) = next_due {
                    let wait = due.since(UnixMs::now()).max(CLAIM_PAUSE_MIN);
                    self.claim_at = Some(Instant::now() + wait);
                }
            }
            Ok(Claim::Fenced) => {
                drop(places);
                // The newer session is in the store, and about to be here: it has this one told by
                // whom.
                let told = timeout(SUPERSEDED_WAIT, self.session.superseded.cancelled()).await;
                tracing::debug!(told = told.is_ok(), "a newer session was opened");
                return Err(End::Superseded);
            }
            Err(err) => self.look_again(&err),
        }
        Ok(())
    }

    /// The store failed: what waits has nobody else who looks for it before the sweeper does.
    fn look_again(&mut self, err: &Error) {
        err.log();
        self.claim_at = Some(Instant::now() + limits::RETRY_PAUSE_MIN);
    }

    /// Finds out what need not be sent again of a transfer. Not here, because a disk may hang.
    fn prepare(&mut self, transfer: Transfer) {
        let coordinator = Arc::clone(&self.coordinator);
        self.preparing.spawn(async move {
            let resume = coordinator.resume_point(&transfer).await;
            (transfer, resume)
        });
    }

    pub(super) async fn offer_prepared(
        &mut self,
        prepared: Result<Prepared, JoinError>,
    ) -> Result<(), End> {
        let (transfer, resume) = match prepared {
            Ok(prepared) => prepared,
            Err(err) => {
                // The offer will expire.
                tracing::error!(error = %err, "an offer could not be prepared");
                return Ok(());
            }
        };
        match resume {
            Ok(resume) => self.answer(FromServer::Download(command(&transfer, resume))).await,
            Err(err) => {
                let cause = match &err {
                    Error::Landing(err) => Cause::ServerDisk { is_full: err.is_unwritable() },
                    _ => Cause::ServerBusy,
                };
                err.log();
                let done = self.coordinator.broken(attempt_of(&transfer), cause, 0).await;
                self.note(done);
                Ok(())
            }
        }
    }
}

/// Waits for a place, if one is waited for at all.
pub(super) async fn next_place(
    place: &mut Option<Pin<Box<dyn Future<Output = Place> + Send>>>,
) -> Place {
    let Some(waiting) = place else { return std::future::pending().await };
    let free = waiting.await;
    *place = None;
    free
}

/// An offer, and what need not be sent again.
pub(super) type Prepared = (Transfer, Result<Option<Resume>, Error>);

fn command(transfer: &Transfer, resume: Option<Resume>) -> Command {
    Command {
        attempt: attempt_of(transfer),
        path: Ok(transfer.path.clone()),
        consistency: transfer.consistency,
        size_max: limits::FILE_BYTES_MAX,
        rate_max: transfer.rate_max,
        signature: transfer.signature.clone(),
        resume,
        operator: transfer.operator.clone(),
    }
}

/// Between a newer session's record and its arrival here.
const SUPERSEDED_WAIT: Duration = Duration::from_secs(2);
/// A transfer that is due is not asked for more often than this.
const CLAIM_PAUSE_MIN: Duration = Duration::from_millis(20);
