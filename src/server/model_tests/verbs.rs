//! What each verb must do, if nothing goes wrong meanwhile, and the most that it may do in any case.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};

use super::{
    history::Verb,
    rules::due,
    upload::Upload,
    world::{Given, Scope, World, client_id, instance_id, now},
};
use crate::{
    ids::AttemptId,
    server::{coordinator::attempt_of, error::Error, sessions::Session, store::Claim},
    status::Reason,
    transfer::{Consistency, Request, State, Transfer},
    wire::session::{Hello, Outcome, Report, Verdict},
};

/// Chooses from the newest on.
pub fn pick<T>(all: &[T], back: u8) -> Option<&T> {
    let back = usize::from(back) % all.len().max(1);
    all.iter().rev().nth(back)
}

impl World {
    /// Does what the verb says, and returns what that may have changed.
    pub async fn perform(&mut self, verb: &Verb) -> Result<Scope> {
        match *verb {
            Verb::Trigger { client, request_id, deadline_s } => {
                self.trigger(client, request_id, deadline_s).await
            }
            Verb::Connect { client, instance, mentions } => {
                self.connect(client, instance, mentions).await
            }
            Verb::Disconnect { session } => self.disconnect(session).await,
            Verb::Claim { session, jobs_max, offers_max } => {
                self.claim(session, jobs_max, offers_max).await
            }
            Verb::Reply { session, attempt, verdict } => {
                self.reply(session, attempt, verdict).await
            }
            Verb::Report { session, attempt, outcome } => {
                self.report(session, attempt, outcome).await
            }
            Verb::Begin { attempt, whose, source, older } => {
                self.begin(attempt, whose, source, older).await
            }
            Verb::Upload { upload, does } => self.upload(upload, does).await,
            Verb::Operator { transfer, does } => self.operate(transfer, does).await,
            Verb::Stray { transfer, step, is_late } => self.stray(transfer, step, is_late).await,
            Verb::Wait { ms } => {
                self.wait(Duration::from_millis(ms.unsigned_abs())).await;
                Ok(Scope::Nothing)
            }
            Verb::Sweep
            | Verb::SettleOrphans
            | Verb::RingDue
            | Verb::Retain
            | Verb::CollectAbandoned => self.tend(verb).await,
            Verb::Arm { fault, after } => {
                self.faults.arm(fault, after);
                Ok(Scope::Nothing)
            }
            Verb::Crash => {
                self.crash().await?;
                Ok(Scope::Nothing)
            }
        }
    }

    /// Whether nothing went wrong since the verb began: then it must have done what it says.
    pub fn is_strict(&self) -> bool {
        !self.faults.has_fired_now()
    }

    pub async fn record(&self, of: AttemptId) -> Result<Transfer> {
        use crate::server::store::Store as _;
        let record = self.records.transfer(of.transfer).await?;
        record.ok_or_else(|| anyhow::anyhow!("a record is gone"))
    }

    async fn trigger(&mut self, client: u8, request: Option<u8>, seconds: u64) -> Result<Scope> {
        let client = client_id(client);
        let request_id = request.map(|number| format!("r{number}").parse().expect("an id"));
        let same = self
            .told
            .transfers
            .values()
            .find(|t| t.request_id.is_some() && t.request_id == request_id);
        let same = same.map(|t| (t.id, t.client == client));
        let request = Request {
            client: client.clone(),
            operator: None,
            path: None,
            request_id,
            consistency: Consistency::Auto,
            rate_max: None,
            signed: None,
            // A request of one name is always the same.
            deadline: Duration::from_secs(if same.is_some() || request.is_some() {
                100
            } else {
                seconds
            }),
        };
        let is_known = self.server().client(&client).await.is_ok();
        let triggered = self.server().trigger(request).await;
        let scope = match (&triggered, same) {
            (Ok(view), None) => {
                self.transfers.push(view.transfer.id);
                Scope::Transfer(view.transfer.id)
            }
            (Ok(view), Some((id, is_same))) => {
                ensure!(is_same && view.transfer.id == id, "one name stands for two requests");
                Scope::Nothing
            }
            (Err(_), _) if !self.is_strict() => Scope::Client(client),
            (Err(err), Some((_, is_same))) => {
                ensure!(!is_same && err.reason() == Reason::RequestIdConflict, "{err}");
                Scope::Nothing
            }
            (Err(err), None) => {
                ensure!(!is_known && err.reason() == Reason::UnknownClient, "{err}");
                Scope::Nothing
            }
        };
        Ok(scope)
    }

    async fn connect(&mut self, client: u8, instance: u8, mentions: u8) -> Result<Scope> {
        let (id, instance) = (client_id(client), instance_id(client, instance));
        let own = self.attempts.iter().rev().filter(|given| given.instance == instance);
        let running: Vec<_> = own.take(mentions.into()).map(|given| given.attempt).collect();
        let hello = Hello {
            client: id.clone(),
            instance,
            jobs_max: 4,
            version: String::new(),
            host_name: String::new(),
            os: String::new(),
            allowed_roots: Vec::new(),
            policy_digest: None,
            audit_head: None,
            running: running.clone(),
        };
        let session = match self.server().open_session(hello, String::new()).await {
            Ok(session) => session,
            Err(err) => {
                ensure!(!self.is_strict(), "refused a session: {err}");
                return Ok(Scope::Client(id));
            }
        };
        ensure!(
            self.sessions.iter().all(|older| older.client != id || older.epoch < session.epoch)
        );
        self.sessions.push(Arc::clone(&session));
        if !self.is_strict() {
            return Ok(Scope::Client(id));
        }
        let mut current = Vec::new();
        for t in self.told.of(&id) {
            let (was_waiting, attempt) = (t.state.is_waiting(), attempt_of(t));
            let t = self.record(attempt).await?;
            if t.state.is_outstanding() {
                current.push(attempt);
                let is_known = running.contains(&attempt) || self.is_running(attempt);
                let is_own = t.instance == Some(instance) && is_known;
                ensure!(t.state == State::Verifying || is_own, "nobody works on {t:#?}");
            }
            let is_due = due(&t).is_none_or(|due| due <= now());
            ensure!(!was_waiting || is_due, "a reconnect makes due {t:#?}");
        }
        self.hear_stops();
        for attempt in running.iter().filter(|attempt| !current.contains(attempt)) {
            ensure!(self.stops.contains(attempt), "it was not told to stop {attempt}");
        }
        Ok(Scope::Client(id))
    }

    pub fn is_running(&self, attempt: AttemptId) -> bool {
        self.uploads.iter().any(|upload| upload.attempt == attempt)
    }

    /// Takes what the sessions are to tell their clients.
    pub fn hear_stops(&mut self) {
        for session in &self.sessions {
            self.stops.extend(std::iter::from_fn(|| session.next_stop()));
        }
    }

    async fn disconnect(&mut self, session: u8) -> Result<Scope> {
        let Some(session) = pick(&self.sessions, session).cloned() else {
            return Ok(Scope::Nothing);
        };
        self.close(&session).await
    }

    async fn close(&mut self, session: &Session) -> Result<Scope> {
        let live = self.server().sessions.find(&session.client);
        let was_live = live.is_some_and(|live| live.epoch == session.epoch);
        let closed = self.server().close_session(session).await;
        ensure!(closed.is_ok() || !self.is_strict(), "{closed:?}");
        for t in self.told.of(&session.client).filter(|_| was_live && self.is_strict()) {
            let attempt = attempt_of(t);
            let is_its_own = t.instance == Some(session.instance);
            let is_offer = t.state == State::Offered && is_its_own && !self.is_running(attempt);
            let state = self.record(attempt).await?.state;
            let expected = if is_offer { State::Queued } else { t.state };
            ensure!(state == expected, "a session left {t:#?} as {state:?}");
        }
        Ok(if was_live { Scope::Client(session.client.clone()) } else { Scope::Nothing })
    }

    /// As a session does when it looks at the queue.
    async fn claim(&mut self, session: u8, jobs_max: u32, offers_max: u32) -> Result<Scope> {
        let Some(session) = pick(&self.sessions, session).cloned() else {
            return Ok(Scope::Nothing);
        };
        let free = std::iter::from_fn(|| self.server().uploads.places.try_take());
        let places: Vec<_> = free.take(offers_max as usize).collect();
        let Some(offers_max) = u32::try_from(places.len()).ok().filter(|max| *max > 0) else {
            return Ok(Scope::Nothing);
        };
        let scope = Scope::Client(session.client.clone());
        let claim = match self.server().claim(&session, jobs_max, offers_max).await {
            Ok(claim) => claim,
            Err(err) => {
                ensure!(!self.is_strict(), "{err}");
                return Ok(scope);
            }
        };
        self.check_claim(&session, jobs_max as usize, offers_max as usize, &claim).await?;
        match claim {
            Claim::Offered(offers) => {
                for (transfer, place) in offers.iter().zip(places) {
                    self.server().uploads.places.keep(attempt_of(transfer), place);
                    self.offer(transfer, session.instance).await?;
                }
                Ok(scope)
            }
            // Such a session ends.
            Claim::Fenced => self.close(&session).await,
            Claim::Full | Claim::Nothing { .. } => Ok(Scope::Nothing),
        }
    }

    /// The oldest that are due are offered, as many as the client takes, to its latest session.
    async fn check_claim(
        &self,
        session: &Session,
        jobs_max: usize,
        offers_max: usize,
        claim: &Claim,
    ) -> Result<()> {
        use crate::server::store::Store as _;
        let record = self.records.client(&session.client).await?;
        let is_latest = record.is_some_and(|record| record.session_epoch == session.epoch);
        ensure!(is_latest != (*claim == Claim::Fenced), "an older session claims: {claim:#?}");
        let all = || self.told.of(&session.client);
        let room = jobs_max.saturating_sub(all().filter(|t| t.state.is_outstanding()).count());
        let mut queue: Vec<_> = all().filter_map(|t| Some((due(t)?, t.id))).collect();
        queue.sort_unstable();
        let expected = queue.iter().filter(|(due, _)| *due <= now()).map(|(_, id)| *id);
        let expected: Vec<_> = expected.take(room.min(offers_max)).collect();
        match claim {
            Claim::Fenced => {}
            Claim::Full => ensure!(room == 0, "full, and there is room"),
            Claim::Nothing { next_due } => {
                ensure!(room > 0 && expected.is_empty(), "nothing, and there is {expected:?}");
                ensure!(*next_due == queue.first().map(|(due, _)| *due), "{next_due:?}");
            }
            Claim::Offered(offers) => {
                let offered: Vec<_> = offers.iter().map(|t| t.id).collect();
                ensure!(offered == expected, "offered {offered:?}, and not {expected:?}");
                let instance = Some(session.instance);
                ensure!(offers.iter().all(|t| t.instance == instance
                    && attempt_of(t).epoch > self.told.transfers[&t.id].epoch));
            }
        }
        Ok(())
    }

    /// What a session may say of an attempt: of the current one of its own instance alone.
    fn may_speak(&self, session: &Session, attempt: AttemptId) -> (bool, Scope) {
        let record = &self.told.transfers[&attempt.transfer];
        let is_own = record.instance == Some(session.instance);
        let is_current = record.epoch == attempt.epoch && record.state.is_outstanding();
        let is_his = is_own && is_current && record.state != State::Verifying;
        let scope = if is_his { Scope::Transfer(record.id) } else { Scope::Nothing };
        (is_own, scope)
    }

    fn check_heard(&self, heard: Result<(), Error>, is_own: bool) -> Result<()> {
        match heard {
            _ if !self.is_strict() => {}
            Ok(()) => ensure!(is_own, "another instance is heard"),
            Err(err) => ensure!(!is_own && err.reason() == Reason::UnknownTransfer, "{err}"),
        }
        Ok(())
    }

    async fn reply(&mut self, session: u8, attempt: u8, verdict: Verdict) -> Result<Scope> {
        let (Some(session), Some(&Given { attempt, .. })) =
            (pick(&self.sessions, session), pick(&self.attempts, attempt))
        else {
            return Ok(Scope::Nothing);
        };
        let (is_own, scope) = self.may_speak(session, attempt);
        let heard = self.server().replied(session, attempt, verdict).await;
        if verdict == Verdict::Accepted {
            return Ok(Scope::Nothing);
        }
        self.check_heard(heard, is_own)?;
        let before = &self.told.transfers[&attempt.transfer];
        if self.is_strict() && scope != Scope::Nothing && before.state == State::Offered {
            let after = self.record(attempt).await?;
            let is_busy = verdict == Verdict::Busy;
            let attempts = before.attempts + u32::from(!is_busy);
            ensure!(!after.state.is_outstanding() && after.attempts == attempts, "{after:#?}");
        }
        Ok(scope)
    }

    async fn report(&mut self, session: u8, attempt: u8, outcome: Outcome) -> Result<Scope> {
        let (Some(session), Some(&Given { attempt, .. })) =
            (pick(&self.sessions, session), pick(&self.attempts, attempt))
        else {
            return Ok(Scope::Nothing);
        };
        let (is_own, scope) = self.may_speak(session, attempt);
        let report = Report { attempt, outcome, detail: "it says".to_owned() };
        let heard = self.server().reported(session, report).await;
        if outcome == Outcome::Delivered {
            ensure!(heard.is_ok(), "the record is the truth");
            return Ok(Scope::Nothing);
        }
        self.check_heard(heard, is_own)?;
        if self.is_strict() && scope != Scope::Nothing {
            let after = self.record(attempt).await?;
            let ends = |upload: &Upload| upload.entered.stop.is_cancelled();
            let ends = self.uploads.iter().find(|u| u.attempt == attempt).is_some_and(ends);
            ensure!(ends || !after.state.is_outstanding(), "it was said to be over, {after:#?}");
        }
        if is_own && scope == Scope::Nothing {
            // One that is late is told to stop; one whose Finish was taken does not hear it.
            return Ok(Scope::Stop(attempt.transfer));
        }
        Ok(scope)
    }
}
