//! What can happen to a server, and how often it does. Numbers choose among what there is, from the
//! newest on, so that zero is the simplest.

use proptest::{collection::vec, prelude::*};

use super::faults::Fault;
use crate::{
    limits,
    transfer::{FailReason, Hold},
    wire::session::{Outcome, Verdict},
};

#[derive(Debug, Clone, Copy)]
pub enum Verb {
    Trigger {
        client: u8,
        request_id: Option<u8>,
        deadline_s: u64,
    },
    /// `mentions`: how many of its latest attempts the client says it is running.
    Connect {
        client: u8,
        instance: u8,
        mentions: u8,
    },
    Disconnect {
        session: u8,
    },
    Claim {
        session: u8,
        jobs_max: u32,
        offers_max: u32,
    },
    Reply {
        session: u8,
        attempt: u8,
        verdict: Verdict,
    },
    Report {
        session: u8,
        attempt: u8,
        outcome: Outcome,
    },
    Begin {
        attempt: u8,
        whose: Whose,
        source: Sent,
        older: Older,
    },
    Upload {
        upload: u8,
        does: Does,
    },
    Operator {
        transfer: u8,
        does: Wish,
    },
    /// A step that comes at another time than it should, of this epoch or an older one.
    Stray {
        transfer: u8,
        step: Stray,
        is_late: bool,
    },
    Wait {
        ms: i64,
    },
    Sweep,
    SettleOrphans,
    RingDue,
    Retain,
    CollectAbandoned,
    /// Something goes wrong with the call after so many others.
    Arm {
        fault: Fault,
        after: u8,
    },
    Crash,
}

/// A step of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    Busy,
    OfferExpired,
    Begun,
    Broken,
    Refused,
    Finished,
    Mismatched,
    Unpublished,
    Published,
    Kept,
}

/// Who begins an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The instance that was given the attempt.
    Its,
    /// Another of the same client, or of another client.
    Others,
}

/// How long a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// It is recorded when it has landed.
    Small,
    /// Nothing of it is kept between attempts.
    OneChunk,
    Chunks,
}

/// What the client has under the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub size: Size,
    /// It is another version than before.
    pub is_changed: bool,
    /// The client goes on all the same, with what is kept of the older one.
    pub is_mixed: bool,
}

/// What an older upload of the same transfer does when it is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Older {
    LetsGo,
    /// It hangs on the disk, for longer than a newer one waits.
    Hangs,
}

/// What an upload does next, if it is at that point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// Everything that is left, up to its receipt.
    Deliver,
    /// A chunk, or what it is told.
    Send,
    /// Its Finish is taken.
    Finish,
    /// Its Finish has another root than what was written.
    FinishOther,
    Publish,
    Record,
    Abort(FailReason),
    /// The stream ends without a word.
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Cancel,
    Pause,
    Resume,
    Retry,
    Delete,
}

/// Histories of up to `parts_max` parts. A client is there, and asked for a file.
pub fn history(parts_max: usize) -> impl Strategy<Value = Vec<Verb>> {
    let begin = [
        Verb::Connect { client: 0, instance: 0, mentions: 0 },
        Verb::Trigger { client: 0, request_id: None, deadline_s: 100_000 },
    ];
    let part = prop_oneof![20 => verb().prop_map(|verb| vec![verb]), 1 => attempts()];
    vec(part, 1..parts_max).prop_map(move |parts| begin.into_iter().chain(parts.concat()).collect())
}

fn client() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(0u8), 1 => Just(1)]
}

/// Attempts of one client, one after the other, alike or not, and what may go wrong near their
/// ends: by themselves, verbs seldom come so far.
fn attempts() -> impl Strategy<Value = Vec<Verb>> {
    let alike = (attempt(), 1..12usize).prop_map(|(attempt, times)| vec![attempt; times]);
    let lasts =
        prop_oneof![4 => alike, 4 => vec(attempt(), 1..4), 1 => unrecorded(), 3 => resumed()];
    (client(), lasts).prop_map(|(client, lasts)| {
        // The first makes due what waits.
        let begin = [
            Verb::Connect { client, instance: 0, mentions: 0 },
            Verb::Claim { session: 0, jobs_max: 4, offers_max: 1 },
        ];
        lasts.into_iter().flat_map(|last| begin.into_iter().chain(last)).collect()
    })
}

/// A file that landed, of which the record does not say so, and another attempt.
fn unrecorded() -> impl Strategy<Value = Vec<Vec<Verb>>> {
    let source = Sent { size: Size::Small, is_changed: false, is_mixed: false };
    let landed = vec![
        Verb::Begin { attempt: 0, whose: Whose::Its, source, older: Older::LetsGo },
        Verb::Upload { upload: 0, does: Does::Finish },
        Verb::Upload { upload: 0, does: Does::Publish },
        Verb::Arm { fault: Fault::StoreFails, after: 0 },
        Verb::Upload { upload: 0, does: Does::Record },
    ];
    attempt().prop_map(move |attempt| vec![landed.clone(), attempt])
}

/// An attempt that broke with something kept, and another.
fn resumed() -> impl Strategy<Value = Vec<Vec<Verb>>> {
    let next = prop_oneof![1 => Just(Does::Deliver), 1 => does()];
    let does = |does| Verb::Upload { upload: 0, does };
    let begun =
        |source| Verb::Begin { attempt: 0, whose: Whose::Its, source, older: Older::LetsGo };
    let ends = prop_oneof![
        2 => Just(Some(Verb::Upload { upload: 0, does: Does::Cut })),
        1 => Just(Some(Verb::Upload { upload: 0, does: Does::Abort(FailReason::Io) })),
        1 => Just(Some(Verb::Crash)),
        // The next session ends it.
        1 => Just(None),
    ];
    let source = sent().prop_map(|source| Sent { size: Size::Chunks, ..source });
    (ends, source, next).prop_map(move |(ends, source, next)| {
        let first = Sent { is_changed: false, ..source };
        let broken = [begun(first), does(Does::Send)].into_iter().chain(ends).collect();
        vec![broken, vec![begun(source), does(next)]]
    })
}

/// An upload, from its beginning.
fn attempt() -> impl Strategy<Value = Vec<Verb>> {
    let steps = vec(prop_oneof![Just(Does::Send), Just(Does::Finish), Just(Does::Publish)], 0..3);
    let fault = proptest::option::weighted(0.3, (fault(), 0..3u8));
    let dies = proptest::bool::weighted(0.2);
    (sent(), steps, fault, does(), dies).prop_map(|(source, steps, fault, last, dies)| {
        let (whose, older) = (Whose::Its, Older::LetsGo);
        let mut verbs = vec![Verb::Begin { attempt: 0, whose, source, older }];
        verbs.extend(steps.into_iter().map(|does| Verb::Upload { upload: 0, does }));
        verbs.extend(fault.map(|(fault, after)| Verb::Arm { fault, after }));
        verbs.push(Verb::Upload { upload: 0, does: last });
        verbs.extend(dies.then_some(Verb::Crash));
        verbs
    })
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        10 => (client(), prop_oneof![4 => Just(None), 1 => (0..3u8).prop_map(Some)], deadline_s())
            .prop_map(|(client, request_id, deadline_s)| {
                Verb::Trigger { client, request_id, deadline_s }
            }),
        8 => (client(), prop_oneof![3 => Just(0u8), 1 => Just(1)], 0..3u8)
            .prop_map(|(client, instance, mentions)| Verb::Connect { client, instance, mentions }),
        3 => newest().prop_map(|session| Verb::Disconnect { session }),
        18 => (newest(), 1..5u32, 1..4u32).prop_map(|(session, jobs_max, offers_max)| {
            Verb::Claim { session, jobs_max, offers_max }
        }),
        4 => (newest(), newest(), verdict()).prop_map(|(session, attempt, verdict)| {
            Verb::Reply { session, attempt, verdict }
        }),
        5 => (newest(), newest(), outcome()).prop_map(|(session, attempt, outcome)| {
            Verb::Report { session, attempt, outcome }
        }),
        18 => begin(),
        24 => (newest(), does()).prop_map(|(upload, does)| Verb::Upload { upload, does }),
        10 => (newest(), wish()).prop_map(|(transfer, does)| Verb::Operator { transfer, does }),
        4 => (newest(), stray(), any::<bool>()).prop_map(|(transfer, step, is_late)| {
            Verb::Stray { transfer, step, is_late }
        }),
        8 => wait_ms().prop_map(|ms| Verb::Wait { ms }),
        4 => tend(),
        3 => (fault(), 0..12u8).prop_map(|(fault, after)| Verb::Arm { fault, after }),
        2 => Just(Verb::Crash),
    ]
}

fn newest() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(0u8), 3 => 0..4u8, 1 => any::<u8>()]
}

fn deadline_s() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(100_000u64), 1 => 1..60u64]
}

fn wait_ms() -> impl Strategy<Value = i64> {
    prop_oneof![2 => 0..2000i64, 3 => Just(6000), 3 => Just(31_000), 1 => 0..400_000i64]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    proptest::sample::select(vec![
        Verdict::Busy,
        Verdict::Accepted,
        Verdict::StaleEpoch,
        Verdict::Conflict,
    ])
}

fn outcome() -> impl Strategy<Value = Outcome> {
    proptest::sample::select(vec![
        Outcome::Broken,
        Outcome::Stopped,
        Outcome::Held(Hold::PolicyWindow, limits::HOLD_MIN),
        Outcome::Held(Hold::BytesPerDay, limits::HOLD_MAX),
        Outcome::Delivered,
        Outcome::Failed(FailReason::Io),
        Outcome::Failed(FailReason::SourceChanged),
        Outcome::Failed(FailReason::SourceNotFound),
        Outcome::Failed(FailReason::Integrity),
    ])
}

fn begin() -> impl Strategy<Value = Verb> {
    let whose = prop_oneof![8 => Just(Whose::Its), 1 => Just(Whose::Others)];
    let older = prop_oneof![3 => Just(Older::LetsGo), 1 => Just(Older::Hangs)];
    (newest(), whose, sent(), older).prop_map(|(attempt, whose, source, older)| Verb::Begin {
        attempt,
        whose,
        source,
        older,
    })
}

fn sent() -> impl Strategy<Value = Sent> {
    let size = prop_oneof![
        3 => Just(Size::Chunks),
        2 => Just(Size::Small),
        1 => Just(Size::OneChunk),
    ];
    let (is_changed, is_mixed) = (proptest::bool::weighted(0.1), proptest::bool::weighted(0.3));
    (size, is_changed, is_mixed).prop_map(|(size, is_changed, is_mixed)| Sent {
        size,
        is_changed,
        is_mixed,
    })
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        4 => Just(Does::Deliver),
        3 => Just(Does::Send),
        4 => Just(Does::Finish),
        1 => Just(Does::FinishOther),
        3 => Just(Does::Publish),
        2 => Just(Does::Record),
        1 => Just(Does::Abort(FailReason::Io)),
        1 => Just(Does::Abort(FailReason::SourceChanged)),
        1 => Just(Does::Abort(FailReason::DeniedByPolicy)),
        2 => Just(Does::Cut),
    ]
}

fn wish() -> impl Strategy<Value = Wish> {
    proptest::sample::select(vec![
        Wish::Cancel,
        Wish::Pause,
        Wish::Resume,
        Wish::Resume,
        Wish::Retry,
        Wish::Retry,
        Wish::Delete,
    ])
}

fn stray() -> impl Strategy<Value = Stray> {
    proptest::sample::select(vec![
        Stray::Busy,
        Stray::OfferExpired,
        Stray::Begun,
        Stray::Broken,
        Stray::Refused,
        Stray::Finished,
        Stray::Mismatched,
        Stray::Unpublished,
        Stray::Published,
        Stray::Kept,
    ])
}

fn tend() -> impl Strategy<Value = Verb> {
    proptest::sample::select(vec![
        Verb::Sweep,
        Verb::Sweep,
        Verb::SettleOrphans,
        Verb::RingDue,
        Verb::Retain,
        Verb::CollectAbandoned,
    ])
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::StoreFails),
        2 => Just(Fault::StoreAnswerLost),
        2 => Just(Fault::DiskFails),
        1 => Just(Fault::DiskFull),
        3 => Just(Fault::Death),
    ]
}
