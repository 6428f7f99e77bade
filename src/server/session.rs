//! One life of a `Connect` stream, on the server: it answers heartbeats, sends commands that it
//! claims from the queue, passes reports on, and knows when the client is gone. The session ends
//! its own stream.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{
    coordinator::{Coordinator, attempt_of},
    error::Error,
    metrics::Ongoing,
    outbox::{NotSent, Outbox},
    places::Place,
    sessions::Session,
    store::Claim,
};
use crate::{
    ids::{UnixMs, bounded},
    limits,
    status::Reason,
    transfer::{Cause, Transfer},
    wire::{
        proto::ClientMessage,
        session::{Command, FromClient, FromServer, Resume, WireError},
    },
};

mod end;
mod quota;

use end::End;
use quota::Quota;

/// Serves one `Connect` stream from its Hello to its end.
pub async fn serve(
    coordinator: Arc<Coordinator>,
    mut inbound: Streaming<ClientMessage>,
    outbox: Outbox,
    address: String,
) {
    match open(&coordinator, &mut inbound, address).await {
        Ok(session) => {
            let span = crate::telemetry::session_span(&session.client, session.epoch);
            let link = Link::new(coordinator, session, inbound, outbox);
            tracing::Instrument::instrument(link.run(), span).await;
        }
        Err(err) => {
            tracing::info!(reason = err.reason().as_str(), text = ?err.peer_text(), "refused a session");
            // A peer that has gone needs no answer.
            drop(outbox.send(Err(err.into_status())).await);
        }
    }
}

async fn open(
    coordinator: &Arc<Coordinator>,
    inbound: &mut Streaming<ClientMessage>,
    address: String,
) -> Result<Arc<Session>, Error> {
    let first = timeout(limits::HELLO_WAIT, inbound.message()).await;
    let refused = |text: &str| Error::refused(Reason::OutOfOrder, text);
    let message = match first {
        Err(_) => return Err(refused("no Hello came in time")),
        Ok(Err(_) | Ok(None)) => return Err(refused("the stream ended before its Hello")),
        Ok(Ok(Some(message))) => message,
    };
    let malformed = |err: WireError| Error::refused(Reason::InvalidArgument, err.to_string());
    let FromClient::Hello(hello) = message.try_into().map_err(malformed)? else {
        return Err(refused("a session begins with its Hello"));
    };
    if coordinator.shutdown.draining().is_cancelled() {
        return Err(Error::refused(Reason::Draining, "the server is shutting down"));
    }
    coordinator.open_session(hello, address).await
}

/// The session's two halves, and what it remembers.
struct Link {
    coordinator: Arc<Coordinator>,
    session: Arc<Session>,
    inbound: Streaming<ClientMessage>,
    outbox: Outbox,
    /// When the queue is looked at without a ring, if that is known: at first, and when the next
    /// transfer will be due. Else the sweeper rings.
    claim_at: Option<Instant>,
    /// While the server is full, and the client has something to send.
    next_place: Option<Pin<Box<dyn Future<Output = Place> + Send>>>,
    /// Offers of which it is being found out what need not be sent again.
    preparing: JoinSet<Prepared>,
    /// When the client counts as gone.
    silent_at: Instant,
    quota: Quota,
    _open: Ongoing,
}

impl Link {
    fn new(
        coordinator: Arc<Coordinator>,
        session: Arc<Session>,
        inbound: Streaming<ClientMessage>,
        outbox: Outbox,
    ) -> Self {
        let now = Instant::now();
        let silent_at = now + coordinator.sessions.silence_max();
        Self {
            _open: coordinator.metrics.session_opened(),
            coordinator,
            session,
            inbound,
            outbox,
            claim_at: Some(now),
            next_place: None,
            preparing: JoinSet::new(),
            silent_at,
            quota: Quota::new(now),
        }
    }

    async fn run(mut self) {
        tracing::info!(
            host = ?self.session.host_name, address = self.session.address,
            instance = self.session.instance.short(), "client connected"
        );
        let end = match self.welcome() {
            Ok(()) => self.serve().await,
            Err(end) => end,
        };
        // Its turn goes to the next one.
        self.next_place = None;
        self.farewell(&end);
        tracing::info!(why = %end, "client disconnected");
        if let Err(err) = self.coordinator.close_session(&self.session).await {
            // The sweeper finds what it left OFFERED.
            err.log();
        }
        if let End::Refused(err) = end {
            drop(self.outbox.try_send(Err(err.into_status())));
        }
    }

    fn welcome(&mut self) -> Result<(), End> {
        let heartbeat = self.coordinator.sessions.heartbeat();
        let silence = heartbeat * limits::SERVER_SILENCE_PERCENT / 100;
        self.send(FromServer::Welcome { session: self.session.epoch, heartbeat, silence })
    }

    async fn serve(&mut self) -> End {
        loop {
            // What is said comes before more work for the client: else a client that delivers many
            // small files would be heard too late.
            let step = tokio::select! {
                biased;
                () = self.coordinator.shutdown.draining().cancelled() => Err(End::Draining),
                () = self.session.superseded.cancelled() => Err(End::Superseded),
                message = self.inbound.message() => self.take(message).await,
                () = sleep_until(self.silent_at) => Err(End::Silent),
                place = next_place(&mut self.next_place) => self.act(Some(place)).await,
                () = self.session.bell.notified() => self.act(None).await,
                () = until(self.claim_at) => self.act(None).await,
                Some(prepared) = self.preparing.join_next() => self.offer_prepared(prepared).await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn take(&mut self, message: Result<Option<ClientMessage>, Status>) -> Result<(), End> {
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Err(End::Closed),
            Err(status) => {
                tracing::debug!(code = ?status.code(), "a session was cut");
                return Err(End::Closed);
            }
        };
        self.session.note_heard();
        self.silent_at = Instant::now() + self.coordinator.sessions.silence_max();
        self.quota.spend().map_err(End::Refused)?;
        let refused =
            |err: WireError| End::Refused(Error::refused(Reason::InvalidArgument, err.to_string()));
        match message.try_into().map_err(refused)? {
            FromClient::Hello(_) => {
                Err(End::Refused(Error::refused(Reason::OutOfOrder, "a second Hello")))
            }
            FromClient::Heartbeat { seq, progress, jobs_max } => {
                self.answer(FromServer::HeartbeatAck { seq }).await?;
                self.session.note_throttled(&progress);
                if jobs_max.is_some_and(|jobs_max| self.session.note_jobs_max(jobs_max)) {
                    self.act(None).await?;
                }
                Ok(())
            }
            FromClient::Reply { attempt, verdict } => {
                let done = self.coordinator.replied(&self.session, attempt, verdict).await;
                note(done);
                Ok(())
            }
            FromClient::Report(report) => {
                let attempt = report.attempt;
                let done = self.coordinator.reported(&self.session, report).await;
                if done.as_ref().is_err_and(is_passing) {
                    // Not acknowledged: the client sends it again in its next session.
                    note(done);
                    return Ok(());
                }
                note(done);
                self.answer(FromServer::ReportAck(attempt)).await
            }
            FromClient::Goodbye { reason } => Err(End::Goodbye(reason)),
            FromClient::Unknown => Ok(()),
        }
    }

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

    /// Sends what is to be stopped, then commands.
    async fn act(&mut self, place: Option<Place>) -> Result<(), End> {
        self.claim_at = None;
        loop {
            let Ok(slot) = self.outbox.try_reserve() else {
                // The rest waits for room.
                self.claim_at = Some(Instant::now() + CLAIM_PAUSE_MIN);
                return Ok(());
            };
            let Some(attempt) = self.session.next_stop() else { break };
            slot.send(Ok(FromServer::Stop(attempt).into()));
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
                    if transfer.kept_bytes == 0 {
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

    async fn offer_prepared(&mut self, prepared: Result<Prepared, JoinError>) -> Result<(), End> {
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
                note(self.coordinator.broken(attempt_of(&transfer), cause, 0).await);
                Ok(())
            }
        }
    }

    /// Sends what a message of the client asks for. Until there is room nothing more is read of it.
    async fn answer(&mut self, message: FromServer) -> Result<(), End> {
        match timeout(limits::OUTBOX_WAIT, self.outbox.send(Ok(message.into()))).await {
            Ok(sent) => sent.map_err(|_| End::Closed),
            Err(_) => Err(End::Stuck),
        }
    }

    fn send(&self, message: FromServer) -> Result<(), End> {
        self.outbox.try_send(Ok(message.into())).map_err(|err| match err {
            NotSent::Full => End::Stuck,
            NotSent::Closed => End::Closed,
        })
    }

    /// Tells the client why, if it can still be told.
    fn farewell(&self, end: &End) {
        let word = match end {
            End::Draining => {
                FromServer::Drain { reconnect_after: self.coordinator.sessions.drain_pause() }
            }
            End::Superseded => {
                let Some(by) = self.session.successor() else { return };
                if by.instance == self.session.instance {
                    // The same process, on a new connection.
                    return;
                }
                FromServer::Superseded {
                    host_name: bounded(by.host_name.clone(), limits::LABEL_BYTES_MAX),
                    address: by.address.clone(),
                    reconnect_after: limits::SUPERSEDED_PAUSE,
                }
            }
            End::Closed | End::Goodbye(_) | End::Silent | End::Stuck | End::Refused(_) => return,
        };
        if self.send(word).is_err() {
            tracing::debug!("the client cannot be told why");
        }
    }
}

/// Waits until then; for ever, if there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for a place, if one is waited for at all.
async fn next_place(place: &mut Option<Pin<Box<dyn Future<Output = Place> + Send>>>) -> Place {
    let Some(waiting) = place else { return std::future::pending().await };
    let free = waiting.await;
    *place = None;
    free
}

/// What a client says of transfers that it does not have is ignored; only our own trouble is worth
/// a line.
fn note(done: Result<(), Error>) {
    if let Err(err) = done {
        err.log();
    }
}

/// The same report may be taken later.
fn is_passing(err: &Error) -> bool {
    matches!(err, Error::Store(_) | Error::Landing(_) | Error::Internal(_))
}

/// An offer, and what need not be sent again.
type Prepared = (Transfer, Result<Option<Resume>, Error>);

fn command(transfer: &Transfer, resume: Option<Resume>) -> Command {
    Command {
        attempt: attempt_of(transfer),
        path: Ok(transfer.path.clone()),
        consistency: transfer.consistency,
        size_max: limits::FILE_BYTES_MAX,
        rate_max: transfer.rate_max,
        resume,
    }
}

/// Between a newer session's record and its arrival here.
const SUPERSEDED_WAIT: Duration = Duration::from_secs(2);
/// A transfer that is due is not asked for more often than this.
const CLAIM_PAUSE_MIN: Duration = Duration::from_millis(20);
