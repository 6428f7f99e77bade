//! The rules of a transfer's life: a table of every step from every state, then each rule by
//! itself, then random lives.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    ids::{Digest, TransferId},
    rate::Rate,
    transfer::{Consistency, Delivered, Fingerprint, Finish, Request, SourceFile},
};

const T0: UnixMs = UnixMs(1_700_000_000_000);
const DEADLINE: Duration = Duration::from_secs(1000);
/// Before any pause ends.
const SOON: Duration = Duration::from_millis(100);
/// After every pause, and before the deadline.
const LATER: Duration = Duration::from_mins(15);

fn after(wait: Duration) -> Moment {
    Moment { at: T0.plus(wait), dice: 0.5 }
}

fn instance() -> InstanceId {
    InstanceId::from_bytes(&[7; 16]).unwrap()
}

fn queued() -> Transfer {
    let request = Request {
        client: "client-1".parse().unwrap(),
        operator: None,
        path: Some("/a".parse().unwrap()),
        request_id: None,
        consistency: Consistency::Auto,
        rate_max: None,
        signed: None,
        deadline: DEADLINE,
    };
    Transfer::new(TransferId::generate(), request, T0)
}

fn take(transfer: &Transfer, step: &Step) -> Transfer {
    transfer.apply(step, after(Duration::ZERO)).unwrap()
}

fn take_at(transfer: &Transfer, step: &Step, wait: Duration) -> Transfer {
    transfer.apply(step, after(wait)).unwrap()
}

fn claimed() -> Step {
    Step::Claimed { instance: instance() }
}

fn begun(epoch: Epoch) -> Step {
    let fingerprint = Fingerprint { device: 1, inode: 2, size_bytes: 9, mtime_ns: 3, ctime_ns: 4 };
    let file = SourceFile { path: "/a".to_owned(), size_bytes: 9, fingerprint };
    Step::Begun { epoch, instance: instance(), file }
}

fn finished(epoch: Epoch) -> Step {
    let finish = Finish {
        digest: Digest::from(blake3::hash(b"")),
        delivered: Delivered::Unchanged,
        trusted_bytes: 0,
    };
    Step::Finished { epoch, finish, received_bytes: 9 }
}

fn broken(epoch: Epoch, cause: Cause) -> Step {
    Step::Broken { epoch, cause, received_bytes: 4 }
}

fn failed(reason: FailReason) -> Cause {
    Cause::Failed { reason, detail: "it broke".to_owned() }
}

fn held(hold: Hold) -> Cause {
    Cause::ClientHolds { hold, pause: Duration::from_secs(3600) }
}

fn refused(epoch: Epoch) -> Step {
    let detail = "it is not there".to_owned();
    Step::Refused { epoch, reason: FailReason::SourceNotFound, detail }
}

/// A transfer in `state`, brought there by its second attempt, so that there is an older epoch.
fn in_state(state: State) -> Transfer {
    let first = take(&queued(), &claimed());
    let epoch = Epoch(2);
    let waiting = take(&take(&first, &Step::OfferExpired { epoch: Epoch(1) }), &Step::MadeDue);
    let offered = take(&waiting, &claimed());
    let receiving = take(&offered, &begun(epoch));
    let verifying = take(&receiving, &finished(epoch));
    match state {
        State::Queued => take(&offered, &Step::Busy { epoch }),
        State::Offered => offered,
        State::Receiving => receiving,
        State::Verifying => verifying,
        State::Interrupted => take(&receiving, &broken(epoch, failed(FailReason::Io))),
        State::Complete => take(&verifying, &Step::Published { epoch }),
        State::Failed => take(&offered, &refused(epoch)),
        State::Cancelled => take(&offered, &Step::Cancelled { received_bytes: 0 }),
    }
}

/// What must be true of any transfer at any time.
fn check(transfer: &Transfer) {
    let Transfer { state, .. } = *transfer;
    assert_eq!(transfer.due().is_some(), state.is_waiting() && !transfer.is_paused());
    assert!(transfer.waiting.is_none() || state.is_waiting(), "{transfer:?}");
    assert_eq!(transfer.ended.is_some(), state.is_final());
    assert!(transfer.epoch.0 >= u64::from(transfer.attempts));
    assert_eq!(transfer.epoch == Epoch(0), transfer.instance.is_none());
    if state.is_outstanding() {
        assert!(transfer.epoch > Epoch(0));
    }
    if matches!(state, State::Receiving | State::Verifying | State::Complete) {
        assert!(transfer.file.is_some() && transfer.started.is_some());
    }
    if matches!(state, State::Verifying | State::Complete) {
        assert!(transfer.finish.is_some());
    }
    assert_eq!(transfer.content != Content::None, state == State::Complete);
    match state {
        State::Complete => assert_eq!(transfer.failure, None),
        State::Failed => assert!(transfer.failure.is_some()),
        _ => {
            let failure = transfer.failure.as_ref().map(|failure| failure.reason);
            assert!(!matches!(failure, Some(FailReason::Attempts | FailReason::Deadline)));
        }
    }
    if !state.is_final() {
        assert!(transfer.attempts_barren < limits::ATTEMPTS_MAX);
        assert!(transfer.source_changes < limits::SOURCE_CHANGES_MAX);
        assert!(transfer.mismatches < limits::MISMATCHES_MAX);
    }
}

// === The table ===

/// Where each step leads from each state, in the order of [`State::ALL`]: the letter of a state, or
/// `.` where the step is refused.
const TABLE: [(&str, &str); 25] = [
    //                  QORVICFX
    ("claimed         ", "O...O..."),
    ("busy            ", ".Q......"),
    ("offer expired   ", ".Q......"),
    ("begun           ", ".RR....."),
    ("kept            ", "QOR.I.F."),
    ("restarted       ", ".OR....."),
    ("client lost     ", ".QI....."),
    ("server stopped  ", ".QI....."),
    ("server busy     ", ".QI....."),
    ("server disk     ", ".QI....."),
    ("client stopped  ", ".QI....."),
    ("client holds    ", ".QI....."),
    ("attempt failed  ", ".II....."),
    ("refused         ", ".FF....."),
    ("finished        ", "..V....."),
    ("mismatched      ", "...I...."),
    ("unpublished     ", "...I...."),
    ("published       ", "...C...."),
    ("made due        ", "Q...I..."),
    ("deadline passed ", "FFF.F..."),
    ("cancelled       ", "XXX.X..."),
    ("retried         ", "......QQ"),
    ("paused          ", "QQI.I..."),
    ("resumed         ", "........"),
    ("content deleted ", ".....C.."),
];

/// The row of a step; a new step does not compile without one.
fn row(step: &Step) -> &'static str {
    let name = match step {
        Step::Claimed { .. } => "claimed",
        Step::Busy { .. } => "busy",
        Step::OfferExpired { .. } => "offer expired",
        Step::Begun { .. } => "begun",
        Step::Kept { .. } => "kept",
        Step::Restarted { .. } => "restarted",
        Step::Broken { cause: Cause::ClientLost, .. } => "client lost",
        Step::Broken { cause: Cause::ServerStopped, .. } => "server stopped",
        Step::Broken { cause: Cause::ServerBusy, .. } => "server busy",
        Step::Broken { cause: Cause::ServerDisk { .. }, .. } => "server disk",
        Step::Broken { cause: Cause::ClientStopped, .. } => "client stopped",
        Step::Broken { cause: Cause::ClientHolds { .. }, .. } => "client holds",
        Step::Broken { cause: Cause::Failed { .. }, .. } => "attempt failed",
        Step::Refused { .. } => "refused",
        Step::Finished { .. } => "finished",
        Step::Mismatched { .. } => "mismatched",
        Step::Unpublished { .. } => "unpublished",
        Step::Published { .. } => "published",
        Step::MadeDue => "made due",
        Step::DeadlinePassed { .. } => "deadline passed",
        Step::Cancelled { .. } => "cancelled",
        Step::Retried => "retried",
        Step::Paused { .. } => "paused",
        Step::Resumed => "resumed",
        Step::ContentDeleted => "content deleted",
    };
    TABLE.iter().find(|(each, _)| each.trim() == name).expect("every step has a row").1
}

fn letter(state: State) -> char {
    match state {
        State::Queued => 'Q',
        State::Offered => 'O',
        State::Receiving => 'R',
        State::Verifying => 'V',
        State::Interrupted => 'I',
        State::Complete => 'C',
        State::Failed => 'F',
        State::Cancelled => 'X',
    }
}

/// The steps that name an attempt.
fn steps_of(epoch: Epoch) -> Vec<Step> {
    vec![
        Step::Busy { epoch },
        Step::OfferExpired { epoch },
        begun(epoch),
        Step::Kept { epoch, kept_bytes: 77 },
        Step::Restarted { epoch, detail: "another source".to_owned() },
        broken(epoch, Cause::ClientLost),
        broken(epoch, Cause::ServerStopped),
        broken(epoch, Cause::ServerBusy),
        broken(epoch, Cause::ServerDisk { is_full: true }),
        broken(epoch, Cause::ClientStopped),
        broken(epoch, held(Hold::PolicyWindow)),
        broken(epoch, failed(FailReason::Io)),
        refused(epoch),
        finished(epoch),
        Step::Mismatched { epoch },
        Step::Unpublished { epoch, cause: Cause::ServerStopped },
        Step::Published { epoch },
    ]
}

/// Whether it leads anywhere; the others only note what is kept.
fn acts(step: &Step) -> bool {
    !matches!(step, Step::Kept { .. } | Step::Restarted { .. })
}

fn all_steps(epoch: Epoch) -> Vec<Step> {
    let mut steps = vec![
        claimed(),
        Step::MadeDue,
        Step::DeadlinePassed { received_bytes: 0 },
        Step::Cancelled { received_bytes: 0 },
        Step::Retried,
        Step::Paused { received_bytes: 0 },
        Step::Resumed,
        Step::ContentDeleted,
    ];
    steps.extend(steps_of(epoch));
    steps
}

#[test]
fn every_step_from_every_state_leads_where_the_table_says() {
    let steps = all_steps(Epoch(2));
    assert_eq!(steps.len(), TABLE.len());
    for state in State::ALL {
        let before = in_state(state);
        assert_eq!(before.state, state);
        check(&before);
        let column = State::ALL.iter().position(|each| *each == state).unwrap();
        for step in &steps {
            let wait = match step {
                Step::Claimed { .. } => LATER,
                Step::DeadlinePassed { .. } => DEADLINE,
                _ => SOON,
            };
            let expected = row(step).chars().nth(column).unwrap();
            match before.apply(step, after(wait)) {
                Ok(next) => {
                    assert_eq!(letter(next.state), expected, "{state:?} {step:?}");
                    assert_eq!(next.revision, before.revision + 1);
                    assert_eq!(next.updated, T0.plus(wait));
                    check(&next);
                }
                Err(err) => {
                    assert_eq!('.', expected, "{state:?} {step:?}");
                    assert_eq!(err, StepError::WrongState(state), "{step:?}");
                }
            }
        }
    }
}

#[test]
fn only_the_current_epoch_may_act() {
    for state in State::ALL {
        let transfer = in_state(state);
        for got in [Epoch(0), Epoch(1), Epoch(3)] {
            for step in steps_of(got) {
                let refused = transfer.apply(&step, after(SOON));
                let stale = StepError::StaleEpoch { current: Epoch(2), got };
                assert_eq!(refused, Err(stale), "{state:?} {step:?}");
            }
        }
    }
}

#[test]
fn only_the_instance_that_was_asked_may_begin() {
    let Step::Begun { epoch, file, .. } = begun(Epoch(2)) else { unreachable!() };
    let other = Step::Begun { epoch, instance: InstanceId::generate(), file };

    for state in [State::Offered, State::Receiving] {
        let refused = in_state(state).apply(&other, after(SOON));
        assert_eq!(refused, Err(StepError::OtherInstance));
    }
}

// === Claims ===

#[test]
fn a_new_transfer_is_due_at_once() {
    let new = queued();
    check(&new);
    assert_eq!(new.due(), Some(T0));
    let early = Moment { at: T0.minus(SOON), dice: 0.0 };
    assert_eq!(new.apply(&claimed(), early), Err(StepError::NotDue));

    let offered = take(&new, &claimed());

    assert_eq!((offered.state, offered.epoch), (State::Offered, Epoch(1)));
    assert_eq!(offered.instance, Some(instance()));
}

#[test]
fn a_busy_client_is_asked_again_after_a_pause() {
    let busy = in_state(State::Queued);
    let waiting = busy.waiting.unwrap();
    assert_eq!(waiting.reason, WaitingReason::ClientBusy);
    assert_eq!(busy.due(), Some(T0.plus(limits::BUSY_PAUSE)));

    let just_before = Moment { at: UnixMs(busy.due().unwrap().0 - 1), dice: 0.5 };
    assert_eq!(busy.apply(&claimed(), just_before), Err(StepError::NotDue));
    assert_eq!(take_at(&busy, &claimed(), limits::BUSY_PAUSE).epoch, Epoch(3));
}

#[test]
fn a_reconnect_makes_a_waiting_transfer_due_at_once() {
    for state in [State::Queued, State::Interrupted] {
        let waiting = in_state(state);
        assert!(waiting.due() > Some(T0));

        let due = take(&waiting, &Step::MadeDue);

        assert!(due.due() <= Some(T0));
        assert_eq!(due.apply(&Step::MadeDue, after(SOON)), Err(StepError::Unchanged));
    }
}

#[test]
fn a_claim_forgets_the_file_of_the_attempt_before() {
    let offered = take_at(&in_state(State::Interrupted), &claimed(), LATER);

    assert_eq!((offered.file, offered.finish, offered.started), (None, None, None));
}

// === Attempts ===

#[test]
fn a_lost_client_is_no_failed_attempt() {
    let mut transfer = queued();
    for round in 1..=u64::from(limits::ATTEMPTS_MAX) * 3 {
        let epoch = Epoch(round);
        transfer = take(&transfer, &claimed());
        if round % 2 == 0 {
            transfer = take(&transfer, &begun(epoch));
        }
        transfer = take(&transfer, &broken(epoch, Cause::ClientLost));
        check(&transfer);
        assert_eq!(transfer.waiting.unwrap().reason, WaitingReason::ClientOffline);
        assert!(transfer.due() <= Some(T0));
    }
    assert_eq!((transfer.attempts_barren, transfer.failure), (0, None));
    // Only those that began count, and their bytes show.
    assert_eq!(transfer.attempts, limits::ATTEMPTS_MAX * 3 / 2);
    assert_eq!(transfer.received_bytes, 4 * u64::from(limits::ATTEMPTS_MAX) * 3);
}

#[test]
fn a_stopped_or_busy_server_is_no_failed_attempt() {
    let receiving = in_state(State::Receiving);

    let stopped = take(&receiving, &broken(Epoch(2), Cause::ServerStopped));
    let busy = take(&receiving, &broken(Epoch(2), Cause::ServerBusy));

    assert_eq!((stopped.attempts_barren, busy.attempts_barren), (0, 0));
    assert!(stopped.due() <= Some(T0));
    assert_eq!(busy.due(), Some(T0.plus(limits::BUSY_PAUSE)));
    assert_eq!(busy.waiting.unwrap().reason, WaitingReason::ServerBusy);
}

#[test]
fn what_a_policy_holds_back_says_so_and_is_no_failed_attempt() {
    for state in [State::Offered, State::Receiving] {
        let window = take(&in_state(state), &broken(Epoch(2), held(Hold::PolicyWindow)));
        let quota = take(&in_state(state), &broken(Epoch(2), held(Hold::BytesPerDay)));

        assert_eq!((window.attempts_barren, quota.attempts_barren), (0, 0));
        assert_eq!((window.failure, quota.failure), (None, None));
        let due = T0.plus(Duration::from_secs(3600));
        let reasons = [WaitingReason::ClientPolicyWindow, WaitingReason::Quota];
        for (waiting, reason) in [window.waiting, quota.waiting].into_iter().zip(reasons) {
            assert_eq!(waiting, Some(Waiting { reason, since: T0, next_attempt: Some(due) }));
        }
    }
}

/// Repeats attempts that end with `end`, until the transfer has ended. Returns it, and how many
/// there were.
fn until_failed(end: impl Fn(Epoch) -> Vec<Step>) -> (Transfer, u32) {
    let mut transfer = queued();
    for attempts in 1..100 {
        let now = transfer.due().unwrap();
        let mut steps = vec![claimed(), begun(transfer.epoch.next())];
        steps.extend(end(transfer.epoch.next()));
        for step in &steps {
            transfer = transfer.apply(step, Moment { at: now, dice: 0.9 }).unwrap();
            check(&transfer);
        }
        if transfer.state.is_final() {
            return (transfer, attempts);
        }
    }
    panic!("it never ended");
}

#[test]
fn failed_attempts_run_out() {
    let (transfer, attempts) = until_failed(|epoch| vec![broken(epoch, failed(FailReason::Io))]);

    assert_eq!(attempts, limits::ATTEMPTS_MAX);
    let expected = Failure {
        reason: FailReason::Attempts,
        last_reason: Some(FailReason::Io),
        detail: "it broke".to_owned(),
    };
    assert_eq!((transfer.state, transfer.failure), (State::Failed, Some(expected)));
}

#[test]
fn a_source_may_change_only_so_often() {
    let (transfer, attempts) =
        until_failed(|epoch| vec![broken(epoch, failed(FailReason::SourceChanged))]);

    assert_eq!(attempts, limits::SOURCE_CHANGES_MAX);
    assert_eq!(transfer.failure.unwrap().reason, FailReason::SourceChanged);
}

#[test]
fn a_root_may_differ_only_once() {
    let (transfer, attempts) =
        until_failed(|epoch| vec![finished(epoch), Step::Mismatched { epoch }]);

    assert_eq!(attempts, 2);
    assert_eq!(limits::MISMATCHES_MAX, 2);
    assert_eq!(transfer.failure.unwrap().reason, FailReason::Integrity);
    assert_eq!(transfer.content, Content::None);
}

#[test]
fn what_broke_the_last_attempt_is_told_while_waiting() {
    let waiting = in_state(State::Interrupted);

    let failure = waiting.failure.unwrap();

    assert_eq!((failure.reason, failure.last_reason), (FailReason::Io, None));
    assert_eq!(waiting.waiting.unwrap().reason, WaitingReason::Backoff);
}

#[test]
fn a_refusal_is_final_with_its_reason() {
    let refused = in_state(State::Failed);

    assert_eq!(refused.failure.unwrap().reason, FailReason::SourceNotFound);
    assert_eq!(refused.ended, Some(T0));
}

#[test]
fn a_newer_call_of_the_same_attempt_is_no_new_attempt() {
    let receiving = in_state(State::Receiving);

    let again = take(&receiving, &begun(Epoch(2)));

    assert_eq!((receiving.attempts, again.attempts), (1, 1));
}

#[test]
fn pauses_between_attempts_double_up_to_a_maximum_with_jitter() {
    for barren in 1..40 {
        let doubled = limits::RETRY_PAUSE_MIN * 2u32.pow((barren - 1).min(20));
        let pause = doubled.min(limits::RETRY_PAUSE_MAX);
        assert_eq!(retry_pause(barren, 0.0), pause / 2);
        let longest = retry_pause(barren, 0.999);
        assert!(longest > pause * 9 / 10 && longest < pause, "{longest:?}");
    }
}

// === Ends, and what an operator may do ===

#[test]
fn complete_says_what_was_delivered() {
    let complete = in_state(State::Complete);

    check(&complete);
    assert_eq!((complete.content, complete.received_bytes), (Content::Kept, 9));
    assert_eq!((complete.started, complete.ended), (Some(T0), Some(T0)));
}

#[test]
fn success_forgets_what_broke_before() {
    let offered = take_at(&in_state(State::Interrupted), &claimed(), LATER);
    let epoch = offered.epoch;
    let verifying = take(&take(&offered, &begun(epoch)), &finished(epoch));
    assert!(verifying.failure.is_some());

    let complete = take(&verifying, &Step::Published { epoch });

    assert_eq!(complete.failure, None);
    assert_eq!(complete.received_bytes, 4 + 9);
}

#[test]
fn a_deadline_passes_once_it_is_reached() {
    let waiting = in_state(State::Interrupted);
    let just_before = Moment { at: UnixMs(waiting.deadline.0 - 1), dice: 0.5 };
    let early = waiting.apply(&Step::DeadlinePassed { received_bytes: 0 }, just_before);
    assert_eq!(early, Err(StepError::NotDue));

    let failed = take_at(&waiting, &Step::DeadlinePassed { received_bytes: 0 }, DEADLINE);
    let untried = take_at(&queued(), &Step::DeadlinePassed { received_bytes: 0 }, DEADLINE);

    let failure = failed.failure.unwrap();
    assert_eq!(failure.reason, FailReason::Deadline);
    assert_eq!(failure.last_reason, Some(FailReason::Io));
    assert_eq!(failure.detail, "it broke");
    assert_eq!(untried.failure.unwrap().last_reason, None);
}

#[test]
fn a_retry_starts_over_with_the_same_id_and_a_new_deadline() {
    let (failed, _) = until_failed(|epoch| vec![broken(epoch, failed(FailReason::Io))]);
    let now = after(LATER * 5);

    let again = failed.apply(&Step::Retried, now).unwrap();

    check(&again);
    assert_eq!((again.id, again.state), (failed.id, State::Queued));
    assert_eq!(again.deadline, now.at.plus(DEADLINE));
    assert_eq!((again.attempts_barren, again.failure.clone()), (0, None));
    assert!(again.due() <= Some(now.at));
    // An attempt of the life before can do nothing in this one.
    assert_eq!(again.epoch, failed.epoch);
    for step in steps_of(failed.epoch).into_iter().filter(acts) {
        assert_eq!(again.apply(&step, now), Err(StepError::WrongState(State::Queued)));
    }
    assert!(take_at(&again, &claimed(), LATER * 5).epoch > failed.epoch);
}

#[test]
fn a_paused_transfer_waits_until_it_is_resumed() {
    for state in [State::Queued, State::Offered, State::Receiving, State::Interrupted] {
        let paused = take(&in_state(state), &Step::Paused { received_bytes: 0 });

        assert!(paused.is_paused());
        assert_eq!(paused.due(), None);
        assert_eq!(paused.apply(&claimed(), after(LATER)), Err(StepError::NotDue));
        for step in [Step::Paused { received_bytes: 0 }, Step::MadeDue] {
            let refused = StepError::WrongState(paused.state);
            assert_eq!(paused.apply(&step, after(LATER)), Err(refused));
        }
        for step in steps_of(Epoch(2)).into_iter().filter(acts) {
            assert!(paused.apply(&step, after(SOON)).is_err(), "{step:?}");
        }

        let resumed = take(&paused, &Step::Resumed);
        assert_eq!(resumed.state, paused.state);
        assert!(take(&resumed, &claimed()).epoch > paused.epoch);
        take(&paused, &Step::Cancelled { received_bytes: 0 });
        take_at(&paused, &Step::DeadlinePassed { received_bytes: 0 }, DEADLINE);
    }
}

#[test]
fn content_is_deleted_once() {
    let deleted = take(&in_state(State::Complete), &Step::ContentDeleted);

    check(&deleted);
    assert_eq!((deleted.state, deleted.content), (State::Complete, Content::Deleted));
    let again = deleted.apply(&Step::ContentDeleted, after(SOON));
    assert_eq!(again, Err(StepError::WrongState(State::Complete)));
}

#[test]
fn the_same_request_is_told_from_another() {
    let one = queued();
    let later = Transfer { id: TransferId::generate(), created: T0.plus(SOON), ..one.clone() };
    assert!(one.is_same_request(&later));

    for other in [
        Transfer { client: "client-2".parse().unwrap(), ..one.clone() },
        Transfer { path: None, ..one.clone() },
        Transfer { consistency: Consistency::Strict, ..one.clone() },
        Transfer { deadline_wait_ms: 1, ..one.clone() },
        Transfer { rate_max: Rate::try_from(64_000).ok(), ..one.clone() },
    ] {
        assert!(!one.is_same_request(&other));
    }
}

#[test]
fn a_record_of_a_version_without_caps_has_none() {
    let capped = Transfer { rate_max: Rate::try_from(64_000).ok(), ..queued() };
    let mut json = serde_json::to_value(&capped).unwrap();
    assert_eq!(serde_json::from_value::<Transfer>(json.clone()).unwrap(), capped);
    json.as_object_mut().unwrap().remove("rate_max").unwrap();
    assert_eq!(serde_json::from_value::<Transfer>(json).unwrap().rate_max, None);
}

// === Random lives ===

#[test]
fn an_attempt_that_adds_durable_bytes_is_not_barren() {
    let mut transfer = in_state(State::Receiving);
    for attempt in 0..3 * u64::from(limits::ATTEMPTS_MAX) {
        let epoch = transfer.epoch;
        if attempt % 3 == 0 {
            let kept_bytes = transfer.kept_bytes + 1;
            transfer = take(&transfer, &Step::Kept { epoch, kept_bytes });
        }
        transfer = take(&transfer, &broken(epoch, failed(FailReason::Io)));
        assert_eq!(transfer.state, State::Interrupted, "attempt {attempt}");
        assert_eq!(u64::from(transfer.attempts_barren), attempt % 3 + 1);
        transfer = take_at(&transfer, &claimed(), LATER * 5);
        transfer = take_at(&transfer, &begun(transfer.epoch), LATER * 5);
    }
    // Less than before is no progress.
    let kept = Step::Kept { epoch: transfer.epoch, kept_bytes: 1 };
    assert_eq!(take(&transfer, &kept).attempts_barren, transfer.attempts_barren);
}

#[test]
fn what_is_kept_goes_with_a_cancel_a_wrong_root_and_a_restart() {
    let kept = |state| Transfer { kept_bytes: 7, ..in_state(state) };
    let epoch = Epoch(2);
    let cancelled = take(&kept(State::Interrupted), &Step::Cancelled { received_bytes: 0 });
    assert_eq!(cancelled.kept_bytes, 0);
    assert_eq!(take(&kept(State::Verifying), &Step::Mismatched { epoch }).kept_bytes, 0);
    assert_eq!(take(&kept(State::Verifying), &Step::Published { epoch }).kept_bytes, 0);
    let detail = "another inode".to_owned();
    let restarted = take(&kept(State::Offered), &Step::Restarted { epoch, detail });
    assert_eq!(restarted.kept_bytes, 0);
    assert_eq!(restarted.restart_detail.as_deref(), Some("another inode"));
    // A pause keeps it, and so does the next offer, with its source and its beginning.
    let paused = take(&kept(State::Receiving), &Step::Paused { received_bytes: 0 });
    let offered = take(&take(&paused, &Step::Resumed), &claimed());
    assert_eq!((offered.kept_bytes, offered.started), (7, paused.started));
    assert_eq!(offered.file, paused.file);
}

/// A step that may be of an older or a future attempt, and how long after the one before.
fn random_step() -> impl Strategy<Value = (usize, i64, u64)> {
    let epoch_off = prop_oneof![18 => Just(0), 1 => Just(-1i64), 1 => Just(1i64)];
    (0..TABLE.len() * 2, epoch_off, prop_oneof![9 => 0..20_000u64, 1 => 0..900_000u64])
}

/// The step that leads on, half of the time; else any.
fn chosen(transfer: &Transfer, choice: usize, epoch_off: i64) -> Step {
    let epoch = Epoch(transfer.epoch.0.saturating_add_signed(epoch_off));
    let steps = all_steps(epoch);
    if let Some(step) = steps.get(choice) {
        return step.clone();
    }
    match transfer.state {
        State::Queued | State::Interrupted if transfer.is_paused() => Step::Resumed,
        State::Queued | State::Interrupted => claimed(),
        State::Offered => begun(epoch),
        State::Receiving => finished(epoch),
        State::Verifying => Step::Published { epoch },
        State::Complete => Step::ContentDeleted,
        State::Failed | State::Cancelled => Step::Retried,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_life_breaks_the_rules(choices in vec(random_step(), 1..120)) {
        let mut transfer = queued();
        let mut now = T0;
        // What the current attempt has been through.
        let mut attempt = Vec::new();
        for (choice, epoch_off, wait_ms) in choices {
            now = now.plus(Duration::from_millis(wait_ms));
            let step = chosen(&transfer, choice, epoch_off);
            let Ok(next) = transfer.apply(&step, Moment { at: now, dice: 0.5 }) else { continue };

            check(&next);
            prop_assert_eq!(next.revision, transfer.revision + 1);
            prop_assert!(next.received_bytes >= transfer.received_bytes);
            prop_assert!(next.attempts >= transfer.attempts);
            prop_assert!(next.updated >= transfer.updated);
            let claims = matches!(step, Step::Claimed { .. });
            prop_assert_eq!(next.epoch.0, transfer.epoch.0 + u64::from(claims));
            if claims {
                attempt.clear();
            }
            if acts(&step) {
                attempt.push(row(&step));
            }
            if transfer.state.is_final() && next.state != transfer.state {
                prop_assert!(matches!(step, Step::Retried));
                prop_assert!(transfer.state != State::Complete);
            }
            if next.state == State::Complete && transfer.state != State::Complete {
                let way: Vec<_> = ["O...O...", ".RR.....", "..V.....", "...C...."].into();
                attempt.dedup();
                prop_assert_eq!(&attempt, &way);
            }
            transfer = next;
        }
    }
}
