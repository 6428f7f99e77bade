//! What sessions and uploads report of attempts. Every report names its epoch; the store refuses
//! those that are too late, and that is not an error: somebody else has already said how it went
//! on.

use std::sync::Arc;

use super::{Coordinator, attempt_of};
use crate::{
    ids::{AttemptId, ClientId, TransferId, UnixMs},
    limits,
    server::{
        error::Error,
        questions::Asked,
        sessions::Session,
        store::{Claim, Claimant, Party, SessionOpening, TransferFilter},
        view::Presence,
    },
    status::Reason,
    transfer::{Cause, FailReason, Moment, State, Step, Transfer},
    wire::session::{Explained, Hello, Outcome, Report, Verdict},
};

impl Coordinator {
    // === Sessions ===

    /// Opens a session, supersedes the client's older one, and settles what the older ones left.
    pub async fn open_session(
        self: &Arc<Self>,
        hello: Hello,
        address: String,
    ) -> Result<Arc<Session>, Error> {
        let running = hello.running;
        let opening = SessionOpening {
            client: hello.client,
            instance: hello.instance,
            jobs_max: hello.jobs_max,
            version: hello.version,
            host_name: hello.host_name,
            os: hello.os,
            address,
            allowed_roots: hello.allowed_roots,
            policy_digest: hello.policy_digest,
        };
        let epoch = self.store.open_session(&opening, UnixMs::now()).await?;
        let session = Arc::new(Session::new(
            opening.client,
            epoch,
            opening.instance,
            opening.host_name,
            opening.address,
            opening.jobs_max,
        ));
        let older = self.sessions.enter(Arc::clone(&session)).map_err(|newer| {
            let text = format!("a newer session of this client is open, {}", newer.epoch);
            Error::refused(Reason::StaleEpoch, text)
        })?;
        if older.as_ref().is_some_and(|older| older.instance == session.instance) {
            self.metrics.instance_reconnected();
        }
        if let Some(older) = older.filter(|older| older.instance != session.instance) {
            tracing::warn!(
                client_id = %session.client, older_host = ?older.host_name, older_address = older.address,
                newer_host = ?session.host_name, newer_address = session.address,
                "another instance took over: two machines or processes may share this client id"
            );
        }
        if let Err(err) = self.reconcile(&session, &running).await {
            self.sessions.leave(&session);
            return Err(err);
        }
        Ok(session)
    }

    /// Brings the records in line with what a client that has just connected says it is doing.
    async fn reconcile(
        self: &Arc<Self>,
        session: &Session,
        running: &[AttemptId],
    ) -> Result<(), Error> {
        let Load { active, queued } = self.load(session).await?;
        let outstanding = if active > 0 { self.outstanding(session).await? } else { Vec::new() };
        for transfer in &outstanding {
            let attempt = attempt_of(transfer);
            let is_its_own = transfer.instance == Some(session.instance);
            let is_known = running.contains(&attempt) || self.is_uploading(attempt);
            if transfer.state == State::Verifying || (is_its_own && is_known) {
                continue;
            }
            // The command never arrived, or the process that had it is gone.
            self.broken(attempt, Cause::ClientLost, 0).await?;
        }
        for attempt in running {
            let is_current = |t: &Transfer| attempt_of(t) == *attempt;
            if !outstanding.iter().any(is_current) {
                session.stop(*attempt);
            }
        }
        if active + queued > 0 { self.make_due(session).await } else { Ok(()) }
    }

    /// Returns how much there is to settle for a session's client. Mostly nothing: so when a fleet
    /// comes or goes at once, this one look for each is all.
    async fn load(&self, session: &Session) -> Result<Load, Error> {
        let record = self.store.client(&session.client).await?;
        Ok(record.map_or(Load { active: 0, queued: 0 }, |record| Load {
            active: record.active_transfers,
            queued: record.queued_transfers,
        }))
    }

    /// A reconnect makes every transfer of the client that waits for a time due at once.
    async fn make_due(self: &Arc<Self>, session: &Session) -> Result<(), Error> {
        let states = vec![State::Interrupted, State::Queued];
        let filter = TransferFilter { client: Some(session.client.clone()), states };
        for transfer in self.store.transfers(&filter, None, limits::PAGE_SIZE_MAX).await? {
            if transfer.due().is_some_and(|due| due > UnixMs::now()) {
                ignore_late(self.apply(transfer.id, Step::MadeDue).await)?;
            }
        }
        Ok(())
    }

    /// Notes that a session has ended. What was only offered goes back to the queue; an upload that
    /// runs outlives it.
    pub async fn close_session(self: &Arc<Self>, session: &Session) -> Result<(), Error> {
        if !self.sessions.leave(session) {
            // A newer session has settled it.
            return Ok(());
        }
        if self.load(session).await?.active == 0 {
            return Ok(());
        }
        for transfer in self.outstanding(session).await? {
            let attempt = attempt_of(&transfer);
            if self.sessions.find(&session.client).is_some() {
                // It is back already, and has settled this.
                break;
            }
            let is_its_own = transfer.instance == Some(session.instance);
            if transfer.state == State::Offered && is_its_own && !self.is_uploading(attempt) {
                self.broken(attempt, Cause::ClientLost, 0).await?;
            }
        }
        Ok(())
    }

    async fn outstanding(&self, session: &Session) -> Result<Vec<Transfer>, Error> {
        let states = vec![State::Offered, State::Receiving, State::Verifying];
        let filter = TransferFilter { client: Some(session.client.clone()), states };
        Ok(self.store.transfers(&filter, None, limits::PAGE_SIZE_MAX).await?)
    }

    pub(super) fn is_uploading(&self, attempt: AttemptId) -> bool {
        self.uploads.find(attempt.transfer).is_some_and(|upload| upload.attempt == attempt)
    }

    /// Takes the next transfers of the session's client from the queue, at most `offers_max`.
    pub async fn claim(
        self: &Arc<Self>,
        session: &Session,
        jobs_max: u32,
        offers_max: u32,
    ) -> Result<Claim, Error> {
        if let Some(until) = self.held_until(&session.client).await? {
            return Ok(Claim::Nothing { next_due: Some(until) });
        }
        let claimant = Claimant {
            client: session.client.clone(),
            session: session.epoch,
            instance: session.instance,
            jobs_max,
            offers_max,
        };
        let this = Arc::clone(self);
        self.owned(async move {
            let claim = this.store.claim(&claimant, Moment::now()).await?;
            if let Claim::Offered(offers) = &claim {
                for transfer in offers {
                    this.tell(transfer);
                }
            }
            Ok(claim)
        })
        .await
    }

    /// Returns until when a client is over its quota of bytes, if it is.
    async fn held_until(&self, client: &ClientId) -> Result<Option<UnixMs>, Error> {
        let used = |party, since| async move { Ok(self.store.usage(&party, since).await?) };
        let party = Party::Client(client.clone());
        self.quotas.get_to_know::<_, _, Error>(&party, &used).await?;
        Ok(self.quotas.client_held_until(client))
    }

    /// Takes a client's answer to a command.
    pub async fn replied(
        self: &Arc<Self>,
        session: &Session,
        attempt: AttemptId,
        verdict: Verdict,
    ) -> Result<(), Error> {
        let step = match verdict {
            Verdict::Accepted => return Ok(()),
            Verdict::Busy => Step::Busy { epoch: attempt.epoch },
            Verdict::StaleEpoch | Verdict::Conflict => {
                let detail = format!("the client refused the command: {verdict:?}");
                let cause = Cause::Failed { reason: FailReason::Io, detail };
                Step::Broken { epoch: attempt.epoch, cause, received_bytes: 0 }
            }
        };
        self.check_owner(session, attempt).await?;
        ignore_late(self.apply(attempt.transfer, step).await)
    }

    /// Takes a client's report of how an attempt ended.
    pub async fn reported(
        self: &Arc<Self>,
        session: &Session,
        report: Report,
    ) -> Result<(), Error> {
        if report.outcome == Outcome::Delivered {
            // The record is the truth, and whoever wrote it has told.
            return Ok(());
        }
        let attempt = report.attempt;
        self.check_owner(session, attempt).await?;
        let detail = report.detail;
        let cause = match report.outcome {
            Outcome::Delivered => return Ok(()),
            Outcome::Failed(reason) if !reason.is_worth_retrying() => {
                let step = Step::Refused { epoch: attempt.epoch, reason, detail };
                return ignore_late(self.apply(attempt.transfer, step).await);
            }
            Outcome::Failed(reason) => Cause::Failed { reason, detail },
            Outcome::Broken => Cause::Failed { reason: FailReason::Io, detail },
            Outcome::Stopped => Cause::ClientStopped,
            Outcome::Held(hold, pause) => Cause::ClientHolds { hold, pause },
        };
        if self.uploads.stop_because(attempt, cause.clone()) {
            // It knows what is kept, and notes that with its end.
            return Ok(());
        }
        self.broken(attempt, cause, 0).await
    }

    /// Asks a client whether its policy lets a file be read.
    pub async fn explain(&self, client: &ClientId, asked: Asked) -> Result<Explained, Error> {
        let Some(session) = self.sessions.find(client) else {
            self.store.client(client).await?.ok_or_else(|| {
                Error::refused(Reason::UnknownClient, format!("no client {client} is known"))
            })?;
            return Err(Error::refused(Reason::ClientOffline, "the client is not there"));
        };
        let question = session.questions.ask(asked);
        let mut question = question.ok_or_else(|| {
            Error::refused(Reason::TooMany, "the client is being asked too much at a time")
        })?;
        session.bell.notify_one();
        tokio::select! {
            explained = question.answered() => Ok(explained),
            () = session.ended.cancelled() => {
                Err(Error::refused(Reason::ClientOffline, "the client left before it answered"))
            }
            () = tokio::time::sleep(limits::QUESTION_WAIT) => {
                let text = "the client did not answer; it may be of an older version";
                Err(Error::refused(Reason::Unavailable, text))
            }
        }
    }

    /// Returns how much has come in the running upload of a transfer, if there is one.
    pub(super) fn received(&self, transfer: TransferId) -> u64 {
        self.uploads.find(transfer).map_or(0, |upload| upload.received_bytes())
    }

    /// An instance speaks of the attempts that it was given; others are none of its business,
    /// whether they exist or not. That it is an instance of this client is asked too: what it calls
    /// itself is only what it says.
    async fn check_owner(&self, session: &Session, attempt: AttemptId) -> Result<(), Error> {
        match self.store.transfer(attempt.transfer).await? {
            Some(transfer) if transfer.client != session.client => {
                Err(Error::Hidden { transfer: transfer.id, why: Reason::WrongClient })
            }
            Some(transfer) if transfer.instance == Some(session.instance) => Ok(()),
            _ => Err(Error::refused(Reason::UnknownTransfer, "no such transfer")),
        }
    }

    /// Notes that an attempt ended without delivering.
    pub async fn broken(
        self: &Arc<Self>,
        attempt: AttemptId,
        cause: Cause,
        received_bytes: u64,
    ) -> Result<(), Error> {
        let step = Step::Broken { epoch: attempt.epoch, cause, received_bytes };
        ignore_late(self.apply(attempt.transfer, step).await)
    }

    /// Returns what it means that the stream of an upload ended by itself. While the client's
    /// session lives, it is a failed attempt; else the client is lost, which is nobody's fault.
    pub async fn cause_of_cut(&self, transfer: &Transfer) -> Cause {
        let session = self.sessions.find(&transfer.client);
        let session = session.filter(|s| Some(s.instance) == transfer.instance);
        let is_alive = match session {
            Some(session) if self.sessions.presence_of(&session) == Presence::Online => {
                // When a client dies, its connections end together, in any order.
                tokio::time::timeout(limits::CUT_GRACE, session.ended.cancelled()).await.is_err()
            }
            _ => false,
        };
        if is_alive {
            let detail = "the upload ended before its Finish".to_owned();
            Cause::Failed { reason: FailReason::Io, detail }
        } else {
            Cause::ClientLost
        }
    }
}

/// Transfers of a client that have not ended.
struct Load {
    /// OFFERED, RECEIVING, VERIFYING.
    active: u64,
    /// QUEUED, INTERRUPTED.
    queued: u64,
}

/// A step that comes too late changes nothing, and is no error.
pub(in crate::server) fn ignore_late<T>(applied: Result<T, Error>) -> Result<(), Error> {
    match applied {
        Ok(_) | Err(Error::Step(_)) => Ok(()),
        Err(err) => Err(err),
    }
}
