//! What must hold of every transfer, whatever happens: said of two versions that follow each other,
//! without a word of how the code gets from one to the other.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ids::{ClientId, TransferId, UnixMs},
    limits,
    server::store::{Events, Store as _, memory::MemoryStore},
    transfer::{Content, FailReason, State, Transfer, WaitingReason},
};

/// One step of a transfer, as its event tells it.
pub struct Change {
    /// `None` of a new one.
    pub before: Option<Transfer>,
    pub after: Transfer,
}

/// Every transfer, as its events tell it.
#[derive(Default)]
pub struct Told {
    pub transfers: BTreeMap<TransferId, Transfer>,
    /// The ways that were taken.
    pub ways: HashSet<(State, State)>,
    seq: u64,
}

impl Told {
    /// Reads what happened since the last look, and checks each step of it.
    pub async fn read_on(&mut self, records: &MemoryStore, now: UnixMs) -> Result<Vec<Change>> {
        let Events::After(events) = records.events_after(self.seq, u32::MAX).await? else {
            anyhow::bail!("events were pruned before they were read");
        };
        let mut changes = Vec::with_capacity(events.len());
        for event in events {
            ensure!(event.seq == self.seq + 1, "event {} after {}", event.seq, self.seq);
            self.seq = event.seq;
            let after = event.transfer;
            let before = self.transfers.insert(after.id, after.clone());
            check_version(&after, now).with_context(|| format!("{after:#?}"))?;
            match &before {
                None => ensure!(after.revision == 1 && after.state == State::Queued, "{after:#?}"),
                Some(before) => {
                    check_step(before, &after)
                        .with_context(|| format!("from {before:#?}\nto {after:#?}"))?;
                    self.ways.insert((before.state, after.state));
                }
            }
            changes.push(Change { before, after });
        }
        for change in &changes {
            let id = change.after.id;
            let record = records.transfer(id).await?;
            ensure!(record.as_ref() == self.transfers.get(&id), "the events do not replay to it");
        }
        Ok(changes)
    }

    pub fn of<'a>(&'a self, client: &'a ClientId) -> impl Iterator<Item = &'a Transfer> {
        self.transfers.values().filter(move |transfer| transfer.client == *client)
    }
}

/// When a transfer may be claimed; `None` while it may not.
pub fn due(t: &Transfer) -> Option<UnixMs> {
    let pause = t.waiting.and_then(|waiting| waiting.next_attempt);
    (t.state.is_waiting() && !t.is_paused()).then(|| pause.unwrap_or(t.created))
}

/// What every version of a transfer satisfies.
fn check_version(t: &Transfer, now: UnixMs) -> Result<()> {
    // The steps of a small file are recorded when it has landed.
    ensure!(t.updated <= now, "it happened later than now");
    ensure!(t.state.is_final() == t.ended.is_some(), "ended and its state disagree");
    ensure!(t.waiting.is_none() || t.state.is_waiting(), "it waits, and does not");
    ensure!((t.epoch.0 == 0) == t.instance.is_none(), "an epoch belongs to an instance");
    ensure!((t.content != Content::None) == (t.state == State::Complete), "bytes without an end");
    ensure!(u64::from(t.attempts) <= t.epoch.0, "more attempts than epochs");
    ensure!(t.attempts_barren <= limits::ATTEMPTS_MAX, "too many attempts");
    ensure!(t.source_changes <= limits::SOURCE_CHANGES_MAX, "too many changes");
    ensure!(t.mismatches <= limits::MISMATCHES_MAX, "too many mismatches");
    if !t.state.is_final() {
        ensure!(t.attempts_barren < limits::ATTEMPTS_MAX, "it goes on after the last attempt");
        ensure!(t.source_changes < limits::SOURCE_CHANGES_MAX, "it goes on after too many changes");
        ensure!(t.mismatches < limits::MISMATCHES_MAX, "it goes on after too many mismatches");
    }
    // What is kept may be of a longer version than the one that was sent last, and an upload
    // that begins says first from where, then of what.
    let size = t.file.as_ref().filter(|_| t.state.is_waiting()).map(|file| file.size_bytes);
    let size = size.filter(|size| *size > limits::CHUNK_BYTES as u64).unwrap_or(u64::MAX);
    ensure!(t.kept_bytes < size, "it keeps more than there is to come");
    ensure!(t.kept_bytes.is_multiple_of(limits::CHUNK_BYTES as u64), "it keeps parts of chunks");
    ensure!(
        t.kept_bytes == 0 || !matches!(t.state, State::Complete | State::Cancelled),
        "it keeps what nobody wants"
    );
    if let (true, false, Some(next)) =
        (t.state.is_waiting(), t.is_paused(), t.waiting.and_then(|w| w.next_attempt))
    {
        let wait = next.since(now);
        let is_held = t.waiting.is_some_and(|waiting| {
            matches!(waiting.reason, WaitingReason::ClientPolicyWindow | WaitingReason::Quota)
        });
        let most = if is_held { limits::HOLD_MAX } else { limits::RETRY_PAUSE_MAX };
        ensure!(wait <= most, "it waits for {wait:?}");
    }
    if matches!(t.state, State::Receiving | State::Verifying | State::Complete) {
        ensure!(t.file.is_some() && t.started.is_some(), "it is sent, and not begun");
    }
    if matches!(t.state, State::Verifying | State::Complete) {
        ensure!(t.finish.is_some(), "it is whole, and not finished");
    }
    let reason = t.failure.as_ref().map(|failure| failure.reason);
    if t.state == State::Failed {
        ensure!(reason.is_some(), "it failed for no reason");
        let is_late = reason == Some(FailReason::Deadline);
        ensure!(!is_late || now >= t.deadline, "the deadline is yet to come");
    }
    Ok(())
}

/// What every step satisfies.
fn check_step(before: &Transfer, after: &Transfer) -> Result<()> {
    ensure!(after.revision == before.revision + 1, "the revision does not grow by one");
    ensure!(after.updated >= before.updated, "it happened before what was before");
    ensure!(is_way(before.state, after.state), "there is no such way");
    ensure!(
        (&after.client, &after.path, &after.request_id, after.consistency, after.created)
            == (
                &before.client,
                &before.path,
                &before.request_id,
                before.consistency,
                before.created
            ),
        "it is another request"
    );
    let is_offered = after.state == State::Offered && before.state != State::Offered;
    let epoch = if is_offered { before.epoch.next() } else { before.epoch };
    ensure!(after.epoch == epoch, "an epoch is given when it is offered, and only then");
    ensure!(is_offered || after.instance == before.instance, "another instance has it");
    if is_offered {
        ensure!(!before.is_paused(), "it is paused");
        let due = before.waiting.and_then(|w| w.next_attempt);
        ensure!(due.is_none_or(|due| due <= after.updated), "it is not due");
    }
    let is_again = before.state.is_final() && !after.state.is_final();
    ensure!(is_again || after.deadline == before.deadline, "the deadline moved");
    ensure!(after.received_bytes >= before.received_bytes, "bytes that came are forgotten");
    ensure!(after.attempts >= before.attempts, "attempts are forgotten");
    if after.kept_bytes > before.kept_bytes {
        ensure!(after.attempts_barren == 0, "progress is not noted");
    } else if is_again {
        let counts = (after.attempts_barren, after.source_changes, after.mismatches);
        ensure!(counts == (0, 0, 0) && after.failure.is_none(), "a retry begins anew");
        ensure!(after.deadline.since(after.updated) > Duration::ZERO, "a retry has no time");
    } else {
        check_counts(before, after)?;
    }
    if before.state == State::Complete {
        ensure!(
            before.content == Content::Kept && after.content == Content::Deleted,
            "COMPLETE is final, but for its bytes"
        );
    }
    if before.state.is_final() && !is_again || (before.state, after.state) == STAYS_OFFERED {
        // Only its bytes may go, and what is kept may be noted.
        let same = Transfer {
            content: before.content,
            kept_bytes: before.kept_bytes,
            restart_detail: before.restart_detail.clone(),
            attempts_barren: before.attempts_barren,
            revision: before.revision,
            updated: before.updated,
            ..after.clone()
        };
        ensure!(same == *before, "it is final, or offered, and changed");
    }
    Ok(())
}

const STAYS_OFFERED: (State, State) = (State::Offered, State::Offered);

/// The diagram of `transfer.rs`, as a list.
fn is_way(from: State, to: State) -> bool {
    ways().contains(&(from, to))
}

/// Every way from a state to another, or to itself.
pub fn ways() -> HashSet<(State, State)> {
    use State::{Cancelled, Complete, Failed, Interrupted, Offered, Queued, Receiving, Verifying};
    let all: [(State, &[State]); 8] = [
        (Queued, &[Queued, Offered, Failed, Cancelled]),
        (Offered, &[Offered, Receiving, Queued, Interrupted, Failed, Cancelled]),
        (Receiving, &[Receiving, Verifying, Interrupted, Failed, Cancelled]),
        (Verifying, &[Complete, Interrupted, Failed]),
        (Interrupted, &[Interrupted, Offered, Failed, Cancelled]),
        (Complete, &[Complete]),
        (Failed, &[Failed, Queued]),
        (Cancelled, &[Queued]),
    ];
    all.into_iter().flat_map(|(from, to)| to.iter().map(move |to| (from, *to))).collect()
}

/// A failed attempt is counted once, and nothing else is.
fn check_counts(before: &Transfer, after: &Transfer) -> Result<()> {
    let was_out = before.state.is_outstanding();
    let failure = after.failure.as_ref();
    // What the last attempt failed of, if it is this step that says so.
    let failed = match (after.state, after.waiting.map(|waiting| waiting.reason)) {
        (State::Failed, _) => failure.map(|f| f.last_reason.unwrap_or(f.reason)),
        (State::Interrupted, Some(WaitingReason::Backoff)) => failure.map(|f| f.reason),
        _ => None,
    };
    let failed = failed.filter(|_| was_out);
    let grew = |before: u32, after: u32| after.checked_sub(before);
    let barren = grew(before.attempts_barren, after.attempts_barren);
    let changes = grew(before.source_changes, after.source_changes);
    let mismatches = grew(before.mismatches, after.mismatches);
    ensure!(
        barren.is_some_and(|n| n <= u32::from(was_out)),
        "attempts without progress: {barren:?}"
    );
    ensure!(changes <= barren && mismatches <= barren, "a failed attempt is counted as one");
    match failed {
        Some(FailReason::SourceChanged) if barren == Some(1) => {
            ensure!(changes == Some(1), "a change of the source is counted");
        }
        _ => ensure!(changes == Some(0), "no change of the source"),
    }
    let is_mismatch = before.state == State::Verifying
        && barren == Some(1)
        && failed == Some(FailReason::Integrity);
    ensure!(mismatches == Some(u32::from(is_mismatch)), "mismatches: {mismatches:?}");
    if failure.is_some_and(|f| f.reason == FailReason::Attempts) && was_out {
        let is_last = after.attempts_barren == limits::ATTEMPTS_MAX;
        ensure!(is_last || after.state != State::Failed, "there were fewer attempts");
    }
    if after.state.is_waiting() && barren == Some(1) {
        let next = after.waiting.and_then(|w| w.next_attempt);
        ensure!(next.is_some_and(|next| next > after.updated), "no pause after a failed attempt");
    }
    Ok(())
}
