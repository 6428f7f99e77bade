//! Judges a history: what fts promises, whatever happened meanwhile. Knows nothing of how the
//! history came about.

use std::collections::BTreeMap;

use fts::wire::proto::{State, Transfer, WaitingReason};

use crate::{
    history::{Answer, Asked, History, Landed},
    plan::Op,
};

/// What a cut may cost, besides one second of data.
const WASTE_BYTES_MAX: u64 = 16 << 20;

/// Returns everything that must not be.
pub fn check(history: &History) -> Vec<String> {
    let mut found = history.complaints.clone();
    one_transfer_for_each_request(history, &mut found);
    let lives = lives(history);
    for (id, life) in &lives {
        legal(id, life, history, &mut found);
    }
    for record in &history.records {
        let asked = history.asked.iter().find(|asked| asked.request_id == record.request_id);
        let Some(asked) = asked else {
            found.push(format!("{}: nobody asked for it", record.id));
            continue;
        };
        let life = lives.get(record.id.as_str()).map_or(&[][..], Vec::as_slice);
        if life.last().is_none_or(|last| key(last) != key(record)) {
            let last = life.last().map(|last| key(last));
            found.push(format!("{}: {:?}, but its last event is {last:?}", record.id, key(record)));
        }
        ended(record, asked, &mut found);
        landed_whole(record, asked, &history.landed, &mut found);
        let is_forged = history.forged.contains(&record.id);
        let rate = history.rates.get(&record.id).copied().unwrap_or_default();
        let repeated = history.repeated.get(&record.id).copied().unwrap_or_default();
        let again = repeated + if is_forged { asked.size } else { 0 };
        little_waste(record, life, rate, again, &mut found);
        if !is_forged {
            nothing_kept_is_lost(&record.id, life, &mut found);
        }
    }
    nothing_else_landed(history, &mut found);
    waits_say_why(history, &mut found);
    for name in &history.partials {
        found.push(format!("left over: partial file {name}"));
    }
    found
}

fn one_transfer_for_each_request(history: &History, found: &mut Vec<String>) {
    for asked in &history.asked {
        let name = &asked.request_id;
        let mut ids = asked.ids.clone();
        let records = history.records.iter().filter(|record| record.request_id == *name);
        ids.extend(records.map(|record| record.id.clone()));
        if asked.ids.is_empty() || ids.len() == asked.ids.len() {
            found.push(format!("{name}: asked for, and there is no record of it"));
        }
        ids.sort();
        ids.dedup();
        if ids.len() > 1 {
            found.push(format!("{name}: more than one transfer: {ids:?}"));
        }
    }
}

/// Returns the events of each transfer, in order.
fn lives(history: &History) -> BTreeMap<&str, Vec<&Transfer>> {
    let mut lives: BTreeMap<&str, Vec<&Transfer>> = BTreeMap::new();
    for event in &history.events {
        lives.entry(&event.id).or_default().push(event);
    }
    lives
}

fn key(transfer: &Transfer) -> (&'static str, u64, u64, &str) {
    let state = transfer.state().as_str_name();
    (state, transfer.revision, transfer.epoch, &transfer.digest)
}

/// Each change follows the one before, and leads where it may.
fn legal(id: &str, life: &[&Transfer], history: &History, found: &mut Vec<String>) {
    let first = life[0];
    if (first.revision, first.state()) != (1, State::Queued) {
        found.push(format!("{id}: it begins with {:?}", key(first)));
    }
    let asked = history.asked.iter().find(|asked| asked.request_id == first.request_id);
    let has = |op: Op| asked.is_some_and(|asked| asked.ops.iter().any(|(each, _)| *each == op));
    for pair in life.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let step = format!("{:?} → {:?}", key(from), key(to));
        if to.revision != from.revision + 1 {
            found.push(format!("{id}: a change is missing, or told twice: {step}"));
        }
        let is_offer = to.state() == State::Offered && from.state() != State::Offered;
        let raised = u64::from(is_offer);
        if to.epoch != from.epoch + raised {
            found
                .push(format!("{id}: an offer raises the epoch by one, nothing else does: {step}"));
        }
        let is_paused =
            from.waiting.is_some_and(|waiting| waiting.reason() == WaitingReason::Paused);
        // Told for what it says of the bytes that are kept.
        let is_note = is_note(from, to) && to.state() != State::Complete;
        let is_allowed = match to.state() {
            State::Cancelled => has(Op::Cancel),
            State::Queued if is_final(from.state()) => has(Op::Retry),
            State::Offered => !is_paused,
            _ => true,
        };
        if !(is_note || follows(from.state(), to.state()) && is_allowed) {
            found.push(format!("{id}: an illegal change: {step}"));
        }
    }
    let complete = life.iter().filter(|each| each.state() == State::Complete).count();
    if complete > 1 {
        found.push(format!("{id}: COMPLETE {complete} times"));
    }
}

/// Whether only what is kept has changed.
fn is_note(from: &Transfer, to: &Transfer) -> bool {
    let said = |transfer: &Transfer| (transfer.bytes_kept, transfer.restart_detail.clone());
    from.state() == to.state() && said(from) != said(to)
}

fn is_final(state: State) -> bool {
    matches!(state, State::Complete | State::Failed | State::Cancelled)
}

/// Whether a transfer in `from` may be in `to` next. An offer that was not taken, a pause and a
/// reconnect change a waiting transfer without moving it.
fn follows(from: State, to: State) -> bool {
    use State::{Cancelled, Complete, Failed, Interrupted, Offered, Queued, Receiving, Verifying};
    match from {
        Queued => matches!(to, Queued | Offered | Failed | Cancelled),
        Offered => matches!(to, Receiving | Queued | Interrupted | Failed | Cancelled),
        Receiving => matches!(to, Receiving | Verifying | Interrupted | Failed | Cancelled),
        Verifying => matches!(to, Complete | Interrupted | Failed),
        Interrupted => matches!(to, Interrupted | Offered | Failed | Cancelled),
        Failed | Cancelled => to == Queued,
        Complete | State::Unspecified => false,
    }
}

/// The sources do not change, so whatever was not cancelled is delivered in the end.
fn ended(record: &Transfer, asked: &Asked, found: &mut Vec<String>) {
    let last = asked.ops.iter().rfind(|(op, answer)| match op {
        Op::Retry => *answer == Answer::Taken,
        op => *op == Op::Cancel,
    });
    let (may_be_cancelled, must_be) = match last {
        Some((Op::Cancel, answer)) => (true, *answer == Answer::Taken),
        _ => (false, false),
    };
    let is_right = match record.state() {
        State::Complete => !must_be,
        State::Cancelled => may_be_cancelled,
        _ => false,
    };
    if !is_right {
        let (ops, waiting, failure) = (&asked.ops, &record.waiting, &record.failure);
        found.push(format!(
            "{}: ended as {:?} after {} attempts; asked {ops:?}; {waiting:?} {failure:?}",
            record.id,
            key(record),
            record.attempts,
        ));
    }
}

fn landed_whole(record: &Transfer, asked: &Asked, landed: &[Landed], found: &mut Vec<String>) {
    let id = &record.id;
    if record.state() != State::Complete {
        return;
    }
    if (record.size, &record.digest) != (Some(asked.size), &asked.digest) {
        let (size, digest) = (record.size, &record.digest);
        found.push(format!("{id}: COMPLETE with size {size:?} and digest {digest}, not {asked:?}"));
    }
    match landed.iter().find(|file| file.path == record.location) {
        None => found.push(format!("{id}: COMPLETE, and no file at {:?}", record.location)),
        Some(file) if (file.size, &file.digest) != (asked.size, &asked.digest) => {
            found.push(format!("{id}: COMPLETE with other bytes than the source's: {file:?}"));
        }
        Some(_) => {}
    }
}

/// One file for each COMPLETE transfer, and no other.
fn nothing_else_landed(history: &History, found: &mut Vec<String>) {
    for file in &history.landed {
        let complete = history.records.iter().filter(|each| each.state() == State::Complete);
        let owners = complete.filter(|each| each.location == file.path).count();
        if owners != 1 {
            found.push(format!("{} COMPLETE records name the landed file {}", owners, file.path));
        }
    }
}

fn waits_say_why(history: &History, found: &mut Vec<String>) {
    for shown in history.looks.iter().flatten() {
        if matches!(shown.state, State::Queued | State::Interrupted) && !shown.waits {
            let (id, state) = (&shown.id, shown.state.as_str_name());
            found.push(format!("{id}: {state} at revision {}, and no reason", shown.revision));
        }
    }
}

/// A cut costs at most the larger of 16 MiB and one second of data. Besides, `again` bytes came twice
/// because of what a relay did: it repeated them, or they had to be sent again because it forged one.
fn little_waste(
    record: &Transfer,
    life: &[&Transfer],
    rate: u64,
    again: u64,
    found: &mut Vec<String>,
) {
    let cuts = life.windows(2).filter(|pair| match pair[0].state() {
        State::Receiving => pair[1].state() != State::Verifying && !is_note(pair[0], pair[1]),
        State::Verifying => pair[1].state() != State::Complete,
        // A small file is not shown as RECEIVING before it has landed.
        State::Offered => {
            pair[1].state() != State::Receiving && pair[1].bytes_received > pair[0].bytes_received
        }
        _ => false,
    });
    let cuts = cuts.count() as u64;
    let size = record.size.unwrap_or_default();
    let allowed = cuts * WASTE_BYTES_MAX.max(rate) + again;
    if record.state() == State::Complete && record.bytes_received < size {
        let bytes = record.bytes_received;
        found.push(format!("{}: only {bytes} bytes of {size} were counted", record.id));
    }
    let waste = record.bytes_received.saturating_sub(size);
    if record.state() == State::Complete && waste > allowed {
        found.push(format!(
            "{}: {waste} bytes of {size} were sent again for {cuts} cuts; {allowed} at most",
            record.id
        ));
    }
}

/// What is durably held stays so until the file has landed or is not wanted, and the client goes on
/// behind it, having read it again: its source does not change.
fn nothing_kept_is_lost(id: &str, life: &[&Transfer], found: &mut Vec<String>) {
    for pair in life.windows(2) {
        let (before, after) = (pair[0].bytes_kept, pair[1].bytes_kept);
        let is_over = matches!(pair[1].state(), State::Complete | State::Cancelled);
        if after < before && !is_over {
            let now = key(pair[1]);
            found.push(format!("{id}: {before} bytes were kept, and then {after}, in {now:?}"));
        }
    }
    if let Some(again) = life.iter().find(|each| !each.restart_detail.is_empty()) {
        found.push(format!("{id}: it began from zero again: {}", again.restart_detail));
    }
    if let Some(trusted) = life.iter().find(|each| each.bytes_trusted > 0) {
        let bytes = trusted.bytes_trusted;
        found.push(format!("{id}: {bytes} bytes were not read again, and nobody allowed that"));
    }
}

#[cfg(test)]
mod tests;
