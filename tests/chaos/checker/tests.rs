//! Made-up histories: the good one passes, and each bad one is found, for what is wrong with it.

use fts::wire::proto::Waiting;

use super::*;
use crate::history::Shown;

const SIZE: u64 = 20 << 20;
const PATH: &str = "/data/files/01/t1.1";

fn digest() -> String {
    blake3::hash(b"the source").to_hex().to_string()
}

fn event(revision: u64, epoch: u64, state: State) -> Transfer {
    Transfer {
        id: "t1".to_owned(),
        request_id: "r1".to_owned(),
        revision,
        epoch,
        state: state.into(),
        ..Default::default()
    }
}

fn complete(revision: u64, epoch: u64) -> Transfer {
    Transfer {
        size: Some(SIZE),
        bytes_received: SIZE,
        digest: digest(),
        location: PATH.to_owned(),
        ..event(revision, epoch, State::Complete)
    }
}

/// A life in which each state follows the one before.
fn life(states: &[State]) -> Vec<Transfer> {
    let mut epoch = 0;
    let each = states.iter().enumerate().map(|(nth, &state)| {
        epoch += u64::from(state == State::Offered);
        let revision = nth as u64 + 1;
        if state == State::Complete {
            complete(revision, epoch)
        } else {
            event(revision, epoch, state)
        }
    });
    each.collect()
}

/// A transfer that broke once, and landed.
fn good() -> History {
    let events = life(&[
        State::Queued,
        State::Offered,
        State::Receiving,
        State::Interrupted,
        State::Offered,
        State::Receiving,
        State::Verifying,
        State::Complete,
    ]);
    History {
        asked: vec![Asked {
            request_id: "r1".to_owned(),
            size: SIZE,
            digest: digest(),
            ids: vec!["t1".to_owned(), "t1".to_owned()],
            ops: vec![(Op::AskAgain, Answer::Taken)],
        }],
        records: vec![events.last().expect("an end").clone()],
        events,
        landed: vec![Landed { path: PATH.to_owned(), size: SIZE, digest: digest() }],
        ..Default::default()
    }
}

/// A history whose transfer has this life, and ended with it.
fn lived(states: &[State]) -> History {
    let events = life(states);
    let is_complete = states.last() == Some(&State::Complete);
    let landed = if is_complete { good().landed } else { Vec::new() };
    History { records: vec![events.last().expect("an end").clone()], events, landed, ..good() }
}

#[track_caller]
fn found(history: &History, what: &str) {
    let all = check(history);
    assert!(all.iter().any(|each| each.contains(what)), "no {what:?} in {all:#?}");
}

#[test]
fn a_good_history_passes() {
    assert_eq!(check(&good()), Vec::<String>::new());
}

#[test]
fn a_transfer_that_was_cancelled_and_retried_passes() {
    let mut history = lived(&[
        State::Queued,
        State::Cancelled,
        State::Queued,
        State::Offered,
        State::Receiving,
        State::Verifying,
        State::Complete,
    ]);
    history.asked[0].ops = vec![(Op::Cancel, Answer::Taken), (Op::Retry, Answer::Taken)];
    assert_eq!(check(&history), Vec::<String>::new());
}

#[test]
fn a_double_landing_is_found() {
    let mut twice = good();
    twice.landed.push(Landed { path: format!("{PATH}0"), size: SIZE, digest: digest() });
    found(&twice, "0 COMPLETE records name the landed file");
    let mut again = good();
    again.events.push(complete(9, 2));
    again.records = vec![complete(9, 2)];
    found(&again, "COMPLETE 2 times");
    found(&again, "an illegal change");
}

#[test]
fn two_transfers_of_one_request_are_found() {
    let mut history = good();
    history.asked[0].ids.push("t2".to_owned());
    found(&history, "more than one transfer");
    let mut unanswered = good();
    unanswered.records.push(Transfer { id: "t2".to_owned(), ..complete(8, 2) });
    found(&unanswered, "more than one transfer");
    let mut stranger = good();
    stranger.records[0].request_id = "r2".to_owned();
    found(&stranger, "nobody asked for it");
}

#[test]
fn a_lost_transfer_is_found() {
    let history = History { events: Vec::new(), records: Vec::new(), ..good() };
    found(&history, "there is no record of it");
}

#[test]
fn complete_without_its_file_is_found() {
    found(&History { landed: Vec::new(), ..good() }, "and no file at");
}

#[test]
fn wrong_bytes_are_found() {
    let wrong = blake3::hash(b"else").to_hex().to_string();
    let mut on_disk = good();
    on_disk.landed[0].digest.clone_from(&wrong);
    found(&on_disk, "other bytes than the source's");
    let mut short = good();
    short.landed[0].size -= 1;
    found(&short, "other bytes than the source's");
    let mut on_record = good();
    on_record.records[0].digest = wrong;
    found(&on_record, "COMPLETE with size");
}

#[test]
fn illegal_changes_are_found() {
    let mut history = lived(&[State::Queued, State::Offered, State::Complete]);
    found(&history, "an illegal change");
    history = lived(&[State::Queued, State::Offered, State::Queued, State::Receiving]);
    found(&history, "an illegal change");
    history = lived(&[State::Offered]);
    found(&history, "it begins with");
    history = good();
    history.events.remove(3);
    found(&history, "a change is missing");
    history = good();
    history.events[5].epoch = 1;
    found(&history, "an offer raises the epoch by one");
    history = good();
    history.events.pop();
    found(&history, "but its last event is");
}

#[test]
fn a_landing_after_a_cancel_is_found() {
    let mut history = lived(&[
        State::Queued,
        State::Offered,
        State::Receiving,
        State::Cancelled,
        State::Verifying,
        State::Complete,
    ]);
    history.asked[0].ops = vec![(Op::Cancel, Answer::Taken)];
    found(&history, "an illegal change");
    found(&history, "ended as");
}

#[test]
fn an_end_that_nobody_asked_for_is_found() {
    let mut history = lived(&[State::Queued, State::Cancelled]);
    found(&history, "an illegal change");
    found(&history, "ended as");
    history.asked[0].ops = vec![(Op::Cancel, Answer::WrongState)];
    assert_eq!(check(&history), Vec::<String>::new(), "its first answer was lost");
    history = lived(&[State::Queued, State::Offered, State::Receiving, State::Failed]);
    found(&history, "ended as");
    history = lived(&[State::Queued, State::Offered, State::Receiving, State::Interrupted]);
    found(&history, "ended as");
    history = lived(&[State::Queued, State::Cancelled, State::Queued]);
    history.asked[0].ops = vec![(Op::Cancel, Answer::Taken)];
    found(&history, "an illegal change");
}

#[test]
fn an_offer_of_a_paused_transfer_is_found() {
    let mut history = good();
    let mut waiting = Waiting::default();
    waiting.set_reason(WaitingReason::Paused);
    history.events[3].waiting = Some(waiting);
    found(&history, "an illegal change");
}

#[test]
fn a_wait_without_a_reason_is_found() {
    let looked = |state, waits| {
        let shown = Shown { id: "t1".to_owned(), revision: 4, state, waits };
        History { looks: vec![Vec::new(), vec![shown]], ..good() }
    };
    found(&looked(State::Interrupted, false), "no reason");
    found(&looked(State::Queued, false), "no reason");
    assert_eq!(check(&looked(State::Interrupted, true)), Vec::<String>::new());
    assert_eq!(check(&looked(State::Receiving, false)), Vec::<String>::new());
}

#[test]
fn bytes_that_were_not_counted_are_found() {
    let mut history = good();
    history.records[0].bytes_received = SIZE - 1;
    found(&history, "bytes of 20971520 were counted");
}

#[test]
fn waste_is_found() {
    let waste = |bytes, life: &[Transfer], rate, again| {
        let record = Transfer { bytes_received: SIZE + bytes, ..complete(8, 2) };
        let mut found = Vec::new();
        let life: Vec<_> = life.iter().collect();
        little_waste(&record, &life, rate, again, &mut found);
        found.len()
    };
    let life = good().events;
    assert_eq!(waste(WASTE_BYTES_MAX, &life, 0, 0), 0);
    assert_eq!(waste(WASTE_BYTES_MAX + 1, &life, 0, 0), 1);
    assert_eq!(waste(2 * WASTE_BYTES_MAX, &life, 2 * WASTE_BYTES_MAX, 0), 0, "a second of data");
    assert_eq!(waste(1, &life[4..], u64::MAX, 0), 1, "nothing was cut");
    assert_eq!(waste(WASTE_BYTES_MAX + SIZE, &life, 0, SIZE), 0);
    assert_eq!(waste(WASTE_BYTES_MAX + SIZE + 1, &life, 0, SIZE), 1);
    let mut small = life.clone();
    small.remove(2);
    assert_eq!(waste(1, &small[..3], 0, 0), 1, "nothing had come");
    small[2].bytes_received = 1;
    assert_eq!(waste(1, &small[..3], 0, 0), 0);
    // That something is kept is told while it is received; nothing was cut then.
    let mut told = life;
    told[3] = Transfer { bytes_kept: 1, ..event(4, 1, State::Receiving) };
    assert_eq!(waste(1, &told[..4], 0, 0), 1);
}

/// One that broke, kept something, and went on behind it.
fn resumed() -> History {
    let mut history = lived(&[
        State::Queued,
        State::Offered,
        State::Receiving,
        State::Receiving,
        State::Interrupted,
        State::Offered,
        State::Receiving,
        State::Verifying,
        State::Complete,
    ]);
    for event in &mut history.events[3..8] {
        event.bytes_kept = 5 << 20;
    }
    history
}

#[test]
fn a_loss_of_what_was_kept_is_found() {
    assert_eq!(check(&resumed()), Vec::<String>::new());
    let mut lost = resumed();
    lost.events[5].bytes_kept = 4 << 20;
    found(&lost, "bytes were kept, and then");
    let mut again = resumed();
    again.events[6].restart_detail = "another inode".to_owned();
    found(&again, "began from zero again: another inode");
    // Told when the next attempt is offered, too.
    let mut told = resumed();
    told.events[4].bytes_kept = 0;
    told.events[3].bytes_kept = 0;
    told.events.insert(6, Transfer { bytes_kept: 0, ..told.events[5].clone() });
    told.events[5].bytes_kept = 0;
    told.events[6].bytes_kept = 1;
    told.events.iter_mut().enumerate().for_each(|(nth, each)| each.revision = nth as u64 + 1);
    told.records = vec![told.events[9].clone()];
    assert_eq!(check(&told), Vec::<String>::new());
    let mut trusted = resumed();
    trusted.events[8].bytes_trusted = 1;
    found(&trusted, "were not read again");
    for mut forged in [lost, again] {
        forged.forged.insert("t1".to_owned());
        assert_eq!(check(&forged), Vec::<String>::new());
    }
}

#[test]
fn left_over_partial_files_and_complaints_are_told() {
    let partials = vec!["t1.1".to_owned()];
    found(&History { partials, ..good() }, "left over");
    let complaints = vec!["the server ended by itself".to_owned()];
    found(&History { complaints, ..good() }, "ended by itself");
}
