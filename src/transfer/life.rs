//! The steps of a transfer's life, and where each leads. Written once: both stores apply steps
//! through [`Transfer::apply`].

use std::time::Duration;

use super::{
    Cause, Content, FailReason, Failure, Hold, Moment, SourceFile, State, Step, StepError,
    Transfer, Waiting, WaitingReason,
};
use crate::{
    ids::{Epoch, InstanceId, UnixMs},
    limits,
};

impl Transfer {
    /// Returns the transfer after `step`, or why the step is not taken.
    pub fn apply(&self, step: &Step, now: Moment) -> Result<Self, StepError> {
        let mut next = self.clone();
        next.step(step, now)?;
        next.revision += 1;
        next.updated = now.at;
        Ok(next)
    }

    /// Returns the transfer after each of `steps`, or why one of them is not taken.
    pub fn apply_all(&self, steps: &[(Step, Moment)]) -> Result<Vec<Self>, StepError> {
        let mut after: Vec<Self> = Vec::with_capacity(steps.len());
        for (step, now) in steps {
            let next = after.last().unwrap_or(self).apply(step, *now)?;
            after.push(next);
        }
        Ok(after)
    }

    fn step(&mut self, step: &Step, now: Moment) -> Result<(), StepError> {
        match step {
            Step::Claimed { instance } => self.claimed(*instance, now),
            Step::Busy { epoch } => {
                self.offered(*epoch)?;
                let next = now.at.plus(limits::BUSY_PAUSE);
                self.wait_in(State::Queued, WaitingReason::ClientBusy, Some(next), now);
                Ok(())
            }
            Step::OfferExpired { epoch } => {
                self.offered(*epoch)?;
                let next = now.at.plus(limits::BUSY_PAUSE);
                self.wait_in(State::Queued, WaitingReason::Backoff, Some(next), now);
                Ok(())
            }
            Step::Begun { epoch, instance, file } => self.begun(*epoch, *instance, file, now),
            Step::Kept { epoch, kept_bytes } => self.kept(*epoch, *kept_bytes),
            Step::Restarted { epoch, detail } => self.restarted(*epoch, detail),
            Step::Broken { epoch, cause, received_bytes } => {
                self.sending(*epoch)?;
                self.received_bytes = self.received_bytes.saturating_add(*received_bytes);
                self.broken(cause, now);
                Ok(())
            }
            Step::Refused { epoch, reason, detail } => {
                self.sending(*epoch)?;
                self.fail(*reason, None, detail.clone(), now);
                Ok(())
            }
            Step::Finished { epoch, finish, received_bytes } => {
                self.current(*epoch)?;
                self.only_from(State::Receiving)?;
                self.received_bytes = self.received_bytes.saturating_add(*received_bytes);
                self.finish = Some(*finish);
                self.state = State::Verifying;
                Ok(())
            }
            Step::Mismatched { epoch } => self.mismatched(*epoch, now),
            Step::Unpublished { epoch, cause } => {
                self.current(*epoch)?;
                self.only_from(State::Verifying)?;
                self.broken(cause, now);
                Ok(())
            }
            Step::Published { epoch } => self.published(*epoch, now),
            Step::MadeDue => self.made_due(now),
            Step::DeadlinePassed { received_bytes } => self.deadline_passed(*received_bytes, now),
            Step::Cancelled { received_bytes } => self.cancelled(*received_bytes, now),
            Step::Retried => self.retried(now),
            Step::Paused { received_bytes } => self.paused(*received_bytes, now),
            Step::Resumed => self.resumed(),
            Step::ContentDeleted => {
                if self.content != Content::Kept {
                    return Err(StepError::WrongState(self.state));
                }
                self.content = Content::Deleted;
                Ok(())
            }
        }
    }

    fn claimed(&mut self, instance: InstanceId, now: Moment) -> Result<(), StepError> {
        if !self.state.is_waiting() {
            return Err(StepError::WrongState(self.state));
        }
        if self.due().is_none_or(|due| due > now.at) {
            return Err(StepError::NotDue);
        }
        self.epoch = self.epoch.next();
        self.instance = Some(instance);
        self.state = State::Offered;
        self.waiting = None;
        self.finish = None;
        if self.kept_bytes == 0 {
            self.file = None;
            self.started = None;
        }
        Ok(())
    }

    /// Takes note of what is durably held. An attempt that added to it was not in vain.
    fn kept(&mut self, epoch: Epoch, kept_bytes: u64) -> Result<(), StepError> {
        if epoch != self.epoch {
            return Err(StepError::StaleEpoch { current: self.epoch, got: epoch });
        }
        // What was cancelled is dropped, and what is whole is no longer partial.
        if matches!(self.state, State::Verifying | State::Cancelled | State::Complete) {
            return Err(StepError::WrongState(self.state));
        }
        if self.kept_bytes == kept_bytes {
            return Err(StepError::Unchanged);
        }
        if kept_bytes > self.kept_bytes {
            self.attempts_barren = 0;
        }
        self.kept_bytes = kept_bytes;
        Ok(())
    }

    fn restarted(&mut self, epoch: Epoch, detail: &str) -> Result<(), StepError> {
        self.sending(epoch)?;
        self.kept_bytes = 0;
        self.restart_detail = Some(detail.to_owned());
        Ok(())
    }

    fn mismatched(&mut self, epoch: Epoch, now: Moment) -> Result<(), StepError> {
        self.current(epoch)?;
        self.only_from(State::Verifying)?;
        self.mismatches += 1;
        self.kept_bytes = 0;
        let detail = "the bytes received do not have the root that the client announced";
        self.attempt_failed(FailReason::Integrity, detail.to_owned(), now);
        Ok(())
    }

    fn published(&mut self, epoch: Epoch, now: Moment) -> Result<(), StepError> {
        self.current(epoch)?;
        self.only_from(State::Verifying)?;
        self.content = Content::Kept;
        self.kept_bytes = 0;
        self.end(State::Complete, now);
        self.failure = None;
        Ok(())
    }

    fn begun(
        &mut self,
        epoch: Epoch,
        instance: InstanceId,
        file: &SourceFile,
        now: Moment,
    ) -> Result<(), StepError> {
        self.current(epoch)?;
        if self.instance != Some(instance) {
            return Err(StepError::OtherInstance);
        }
        // From RECEIVING: a newer call of the same attempt, which fences the older one.
        if !matches!(self.state, State::Offered | State::Receiving) {
            return Err(StepError::WrongState(self.state));
        }
        if self.state == State::Offered {
            self.attempts += 1;
        }
        self.state = State::Receiving;
        self.file = Some(file.clone());
        if self.kept_bytes == 0 || self.started.is_none() {
            self.started = Some(now.at);
        }
        Ok(())
    }

    fn broken(&mut self, cause: &Cause, now: Moment) {
        let state = if self.state == State::Offered { State::Queued } else { State::Interrupted };
        match cause {
            Cause::ClientLost => self.wait_in(state, WaitingReason::ClientOffline, None, now),
            Cause::ServerStopped => self.wait_in(state, WaitingReason::Backoff, None, now),
            Cause::ServerBusy => {
                let next = now.at.plus(limits::BUSY_PAUSE);
                self.wait_in(state, WaitingReason::ServerBusy, Some(next), now);
            }
            Cause::ServerDisk { is_full } => {
                let reason =
                    if *is_full { WaitingReason::ServerDiskLow } else { WaitingReason::Backoff };
                self.wait_in(state, reason, Some(now.at.plus(limits::DISK_PAUSE)), now);
                let detail = "the server's disk failed".to_owned();
                self.failure = (!is_full).then_some(Failure {
                    reason: FailReason::Io,
                    last_reason: None,
                    detail,
                });
            }
            Cause::ClientStopped => {
                let next = now.at.plus(limits::BUSY_PAUSE);
                self.wait_in(state, WaitingReason::ClientBusy, Some(next), now);
            }
            Cause::ClientHolds { hold, pause } => {
                let reason = match hold {
                    Hold::PolicyWindow => WaitingReason::ClientPolicyWindow,
                    Hold::BytesPerDay => WaitingReason::Quota,
                };
                self.wait_in(state, reason, Some(now.at.plus(*pause)), now);
            }
            Cause::Failed { reason, detail } => self.attempt_failed(*reason, detail.clone(), now),
        }
    }

    /// Counts a failed attempt: another follows after a pause, or there have been enough.
    fn attempt_failed(&mut self, reason: FailReason, detail: String, now: Moment) {
        if self.state == State::Offered {
            // It broke before it began, and is an attempt all the same.
            self.attempts += 1;
        }
        self.attempts_barren += 1;
        if reason == FailReason::SourceChanged {
            self.source_changes += 1;
        }
        if self.source_changes >= limits::SOURCE_CHANGES_MAX
            || self.mismatches >= limits::MISMATCHES_MAX
        {
            return self.fail(reason, None, detail, now);
        }
        if self.attempts_barren >= limits::ATTEMPTS_MAX {
            return self.fail(FailReason::Attempts, Some(reason), detail, now);
        }
        let pause = retry_pause(self.attempts_barren, now.dice);
        self.wait_in(State::Interrupted, WaitingReason::Backoff, Some(now.at.plus(pause)), now);
        self.failure = Some(Failure { reason, last_reason: None, detail });
    }

    fn made_due(&mut self, now: Moment) -> Result<(), StepError> {
        if !self.state.is_waiting() || self.is_paused() {
            return Err(StepError::WrongState(self.state));
        }
        if self.due().is_some_and(|due| due <= now.at) {
            return Err(StepError::Unchanged);
        }
        self.waiting = None;
        Ok(())
    }

    fn deadline_passed(&mut self, received_bytes: u64, now: Moment) -> Result<(), StepError> {
        // VERIFYING ends by itself, within moments.
        if self.state.is_final() || self.state == State::Verifying {
            return Err(StepError::WrongState(self.state));
        }
        if now.at < self.deadline {
            return Err(StepError::NotDue);
        }
        self.received_bytes = self.received_bytes.saturating_add(received_bytes);
        let last = self.failure.take();
        let detail = match &last {
            Some(failure) => failure.detail.clone(),
            None => "the deadline passed before an attempt ended".to_owned(),
        };
        self.fail(FailReason::Deadline, last.map(|failure| failure.reason), detail, now);
        Ok(())
    }

    fn cancelled(&mut self, received_bytes: u64, now: Moment) -> Result<(), StepError> {
        if self.state.is_final() || self.state == State::Verifying {
            return Err(StepError::WrongState(self.state));
        }
        self.received_bytes = self.received_bytes.saturating_add(received_bytes);
        self.kept_bytes = 0;
        self.end(State::Cancelled, now);
        Ok(())
    }

    fn retried(&mut self, now: Moment) -> Result<(), StepError> {
        if !matches!(self.state, State::Failed | State::Cancelled) {
            return Err(StepError::WrongState(self.state));
        }
        self.deadline = now.at.plus(Duration::from_millis(self.deadline_wait_ms));
        self.state = State::Queued;
        self.waiting = None;
        self.failure = None;
        self.attempts_barren = 0;
        self.source_changes = 0;
        self.mismatches = 0;
        self.ended = None;
        if self.kept_bytes == 0 {
            self.started = None;
        }
        Ok(())
    }

    fn paused(&mut self, received_bytes: u64, now: Moment) -> Result<(), StepError> {
        if self.state.is_final() || self.state == State::Verifying || self.is_paused() {
            return Err(StepError::WrongState(self.state));
        }
        self.received_bytes = self.received_bytes.saturating_add(received_bytes);
        let state = match self.state {
            State::Queued | State::Offered => State::Queued,
            _ => State::Interrupted,
        };
        self.wait_in(state, WaitingReason::Paused, None, now);
        Ok(())
    }

    fn resumed(&mut self) -> Result<(), StepError> {
        if !self.is_paused() {
            return Err(StepError::WrongState(self.state));
        }
        self.waiting = None;
        Ok(())
    }

    /// Only an attempt that is out, and only the current one, may act.
    fn current(&self, epoch: Epoch) -> Result<(), StepError> {
        if epoch != self.epoch {
            return Err(StepError::StaleEpoch { current: self.epoch, got: epoch });
        }
        if self.state.is_outstanding() { Ok(()) } else { Err(StepError::WrongState(self.state)) }
    }

    /// The attempt is out, and the server has not begun to publish.
    fn sending(&self, epoch: Epoch) -> Result<(), StepError> {
        self.current(epoch)?;
        if self.state == State::Verifying { Err(StepError::WrongState(self.state)) } else { Ok(()) }
    }

    fn offered(&self, epoch: Epoch) -> Result<(), StepError> {
        self.current(epoch)?;
        self.only_from(State::Offered)
    }

    fn only_from(&self, state: State) -> Result<(), StepError> {
        if self.state == state { Ok(()) } else { Err(StepError::WrongState(self.state)) }
    }

    fn wait_in(&mut self, state: State, reason: WaitingReason, next: Option<UnixMs>, now: Moment) {
        self.state = state;
        self.waiting = Some(Waiting { reason, since: now.at, next_attempt: next });
    }

    fn fail(&mut self, reason: FailReason, last: Option<FailReason>, detail: String, now: Moment) {
        self.end(State::Failed, now);
        self.failure = Some(Failure { reason, last_reason: last, detail });
    }

    fn end(&mut self, state: State, now: Moment) {
        self.state = state;
        self.waiting = None;
        self.ended = Some(now.at);
    }
}

/// Returns the pause after the `barren`-th attempt without progress: it doubles up to a maximum,
/// and is then spread over its upper half by `dice`.
fn retry_pause(barren: u32, dice: f64) -> Duration {
    let doubled = limits::RETRY_PAUSE_MIN.saturating_mul(1 << barren.saturating_sub(1).min(16));
    let pause = doubled.min(limits::RETRY_PAUSE_MAX);
    pause / 2 + pause.mul_f64(dice / 2.0)
}

#[cfg(test)]
mod tests;
