//! SQLite against the model in memory: the same verbs in the same order must have the same answers.

use std::{sync::Arc, time::Duration};

use fts::{
    ids::{ClientId, Epoch, InstanceId, SessionEpoch, TransferId},
    rate::Rate,
    server::store::{
        Claimant, Created, Party, Store, TransferFilter, memory::MemoryStore, sqlite::SqliteStore,
    },
    transfer::{Cause, Consistency, FailReason, Request, State, Step, Transfer},
};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::fixture::*;

#[derive(Debug, Clone)]
enum Verb {
    Wait(i64),
    OpenSession { client: u8, jobs_max: u32 },
    NoteSeen(Vec<(u8, i64)>),
    Create { client: u8, path: u8, operator: Option<u8>, request_id: Option<u8>, deadline_s: u64 },
    Claim { client: u8, session_back: u64, jobs_max: u32, offers_max: u32 },
    Apply { transfer: Index, kinds: Vec<u8>, epoch_back: u64, bytes: u64 },
    List { client: Option<u8>, states: Vec<State>, before: Option<Index>, limit: u32 },
    Due { ago: i64, after: Option<u8>, limit: u32 },
    Overdue { offered_ago: i64, limit: u32 },
    Expired { ended_ago: Option<i64>, bytes_max: Option<u64>, limit: u32 },
    Usage { client: u8, operator: Option<u8>, ago: i64 },
    Events { back: u64, limit: u32 },
    Prune { ago: i64, keep_max: u64 },
}

fn verb() -> impl Strategy<Value = Verb> {
    let operator = || proptest::option::of(0..2u8);
    let back = || prop_oneof![9 => Just(0), 1 => Just(1u64)];
    let kind = prop_oneof![2 => 0..STEPS, 3 => Just(FORWARD)];
    let kinds = prop_oneof![
        8 => kind.prop_map(|kind| vec![kind]),
        2 => Just(vec![BEGUN, FINISHED, PUBLISHED]),
        1 => vec(0..STEPS, 0..4),
    ];
    let client = 1..4u8;
    let states = proptest::sample::subsequence(State::ALL.to_vec(), 0..4);
    let ago = 0..5000i64;
    prop_oneof![
        3 => prop_oneof![0..100i64, 0..100_000i64, Just(-50)].prop_map(Verb::Wait),
        2 => (client.clone(), 1..9u32)
            .prop_map(|(client, jobs_max)| Verb::OpenSession { client, jobs_max }),
        1 => vec((1..5u8, -200..200i64), 0..5).prop_map(Verb::NoteSeen),
        6 => (client.clone(), 0..2u8, operator(), proptest::option::of(0..4u8), 1..100u64)
            .prop_map(|(client, path, operator, request_id, deadline_s)| {
                Verb::Create { client, path, operator, request_id, deadline_s }
            }),
        1 => (client.clone(), operator(), ago.clone())
            .prop_map(|(client, operator, ago)| Verb::Usage { client, operator, ago }),
        8 => (client.clone(), back(), 1..6u32, 1..4u32).prop_map(
            |(client, session_back, jobs_max, offers_max)| {
                Verb::Claim { client, session_back, jobs_max, offers_max }
            }
        ),
        20 => (any::<Index>(), kinds, back(), 0..100u64)
            .prop_map(|(transfer, kinds, epoch_back, bytes)| {
                Verb::Apply { transfer, kinds, epoch_back, bytes }
            }),
        2 => (-5000..5000i64, proptest::option::of(client.clone()), 0..4u32)
            .prop_map(|(ago, after, limit)| Verb::Due { ago, after, limit }),
        2 => (proptest::option::of(client), states, proptest::option::of(any::<Index>()), 0..9u32)
            .prop_map(|(client, states, before, limit)| {
                Verb::List { client, states, before, limit }
            }),
        1 => (ago.clone(), 0..9u32)
            .prop_map(|(offered_ago, limit)| Verb::Overdue { offered_ago, limit }),
        2 => (proptest::option::of(ago.clone()), proptest::option::of(0..200u64), 0..9u32)
            .prop_map(|(ended_ago, bytes_max, limit)| {
                Verb::Expired { ended_ago, bytes_max, limit }
            }),
        1 => (0..30u64, 0..9u32).prop_map(|(back, limit)| Verb::Events { back, limit }),
        1 => (ago, 0..30u64).prop_map(|(ago, keep_max)| Verb::Prune { ago, keep_max }),
    ]
}

const STEPS: u8 = 16;
/// The step that leads on to COMPLETE.
const FORWARD: u8 = 2;
const BEGUN: u8 = 3;
const FINISHED: u8 = 9;
const PUBLISHED: u8 = 14;

fn step(kind: u8, before: &Transfer, epoch: Epoch, instance: InstanceId, bytes: u64) -> Step {
    let detail = "as it happens".to_owned();
    let failed = |reason| Cause::Failed { reason, detail: detail.clone() };
    let broken = |cause| Step::Broken { epoch, cause, received_bytes: bytes };
    match kind {
        0 => Step::Busy { epoch },
        1 => Step::OfferExpired { epoch },
        FORWARD => match before.state {
            State::Receiving => finished(epoch, bytes),
            State::Verifying => Step::Published { epoch },
            _ => begun(epoch, instance, bytes),
        },
        BEGUN => begun(epoch, instance, bytes),
        4 => broken(Cause::ClientLost),
        5 => broken(Cause::ServerBusy),
        6 => broken(failed(FailReason::Io)),
        7 => broken(failed(FailReason::SourceChanged)),
        8 => Step::Refused { epoch, reason: FailReason::DeniedByPolicy, detail },
        FINISHED => finished(epoch, bytes),
        10 => Step::Mismatched { epoch },
        11 => [Step::MadeDue, Step::DeadlinePassed { received_bytes: 0 }][usize::from(bytes > 50)]
            .clone(),
        12 => {
            [Step::Cancelled { received_bytes: 0 }, Step::Retried][usize::from(bytes > 50)].clone()
        }
        13 => [Step::Paused { received_bytes: 0 }, Step::Resumed][usize::from(bytes > 50)].clone(),
        PUBLISHED => Step::Published { epoch },
        _ => Step::ContentDeleted,
    }
}

/// Both stores, and what has been done to them.
struct Pair {
    memory: Arc<dyn Store>,
    sqlite: Arc<dyn Store>,
    now_ms: i64,
    created: Vec<TransferId>,
}

/// Calls a verb on both stores, and returns the answer once they agree.
macro_rules! both {
    ($pair:expr, $verb:ident($($argument:expr),*)) => {{
        let expected = $pair.memory.$verb($($argument),*).await.unwrap();
        let answer = $pair.sqlite.$verb($($argument),*).await.unwrap();
        assert_eq!(answer, expected, stringify!($verb));
        answer
    }};
}

impl Pair {
    fn instance(client: u8) -> InstanceId {
        InstanceId::from_bytes(&[client; 16]).unwrap()
    }

    async fn session(&self, client: &ClientId) -> SessionEpoch {
        let record = both!(self, client(client));
        record.map_or(SessionEpoch(1), |record| record.session_epoch)
    }

    async fn run(&mut self, verb: Verb) {
        let now = moment(self.now_ms);
        match verb {
            Verb::Wait(ms) => self.now_ms += ms,
            Verb::OpenSession { client: number, jobs_max } => {
                let mut opening = opening(&client(number), Self::instance(number));
                opening.jobs_max = jobs_max;
                both!(self, open_session(&opening, now.at));
            }
            Verb::NoteSeen(seen) => {
                let note = |&(number, ms): &(u8, i64)| (client(number), at(self.now_ms + ms));
                let seen: Vec<_> = seen.iter().map(note).collect();
                both!(self, note_seen(&seen));
            }
            Verb::Create { client: number, path, operator, request_id, deadline_s } => {
                let request = Request {
                    client: client(number),
                    operator: operator.map(self::operator),
                    path: ["/a".parse().ok(), None][usize::from(path)].clone(),
                    request_id: request_id.map(|id| format!("r{id}").parse().unwrap()),
                    consistency: Consistency::Strict,
                    rate_max: Some(Rate::try_from(64_001).unwrap()),
                    signed: None,
                    deadline: Duration::from_secs(deadline_s),
                };
                let new = Transfer::new(TransferId::generate(), request, now.at);
                if let Created::New(new) = both!(self, create(&new)) {
                    self.created.push(new.id);
                }
            }
            Verb::Claim { client: number, session_back, jobs_max, offers_max } => {
                let client = client(number);
                let session = SessionEpoch(self.session(&client).await.0 - session_back);
                let instance = Self::instance(number);
                let claimant = Claimant { client, session, instance, jobs_max, offers_max };
                both!(self, claim(&claimant, now));
            }
            Verb::Apply { transfer, kinds, epoch_back, bytes } => {
                let Some(id) = self.pick(transfer) else { return };
                let before = both!(self, transfer(id)).expect("it was created");
                let epoch = Epoch(before.epoch.0.saturating_sub(epoch_back));
                let instance = before.instance.unwrap_or(Self::instance(9));
                let steps: Vec<_> = kinds
                    .iter()
                    .map(|kind| (step(*kind, &before, epoch, instance, bytes), now))
                    .collect();
                both!(self, apply(id, &steps));
                both!(self, transfer(id));
            }
            read => self.read(read).await,
        }
    }

    async fn read(&self, verb: Verb) {
        let ago = |ms: i64| at(self.now_ms - ms);
        match verb {
            Verb::List { client: number, states, before, limit } => {
                let filter = TransferFilter { client: number.map(client), states };
                let before = before.and_then(|before| self.pick(before));
                both!(self, transfers(&filter, before, limit));
            }
            Verb::Due { ago: ms, after, limit } => {
                let after = after.map(client);
                both!(self, due_clients(ago(ms), after.as_ref(), limit));
            }
            Verb::Overdue { offered_ago, limit } => {
                both!(self, overdue(at(self.now_ms), ago(offered_ago), limit));
            }
            Verb::Expired { ended_ago, bytes_max, limit } => {
                both!(self, expired_content(ended_ago.map(ago), bytes_max, limit));
            }
            Verb::Usage { client: number, operator, ago: ms } => {
                let party = operator.map_or(Party::Client(client(number)), |number| {
                    Party::Operator(self::operator(number))
                });
                both!(self, usage(&party, ago(ms)));
            }
            Verb::Events { back, limit } => {
                let last = both!(self, last_event());
                both!(self, events_after(last.saturating_sub(back), limit));
            }
            Verb::Prune { ago: ms, keep_max } => {
                both!(self, prune_events(ago(ms), keep_max));
            }
            other => unreachable!("{other:?} is no read"),
        }
    }

    fn pick(&self, index: Index) -> Option<TransferId> {
        (!self.created.is_empty()).then(|| *index.get(&self.created))
    }

    /// Compares everything there is.
    async fn compare(&self) {
        both!(self, clients(None, 100));
        both!(self, counts());
        both!(self, transfers(&TransferFilter::default(), None, 1000));
        both!(self, due_clients(at(self.now_ms), None, 1000));
        both!(self, overdue(at(self.now_ms), at(self.now_ms), 1000));
        both!(self, expired_content(Some(at(self.now_ms)), Some(0), 1000));
        for number in 0..4 {
            both!(self, usage(&Party::Client(client(number)), at(-1_000_000)));
            both!(self, usage(&Party::Operator(operator(number)), at(-1_000_000)));
        }
        let last = both!(self, last_event());
        for seq in 0..=last {
            both!(self, events_after(seq, 1000));
        }
    }
}

async fn same_answers(verbs: Vec<Verb>) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}/records.db", dir.path().display());
    let mut pair = Pair {
        memory: Arc::new(MemoryStore::new()),
        sqlite: Arc::new(SqliteStore::open(&url).await.unwrap()),
        now_ms: 0,
        created: Vec::new(),
    };
    for number in 1..3 {
        pair.run(Verb::OpenSession { client: number, jobs_max: 4 }).await;
    }
    for verb in verbs {
        pair.run(verb).await;
    }
    pair.compare().await;
    pair.sqlite.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn both_stores_answer_alike(verbs in vec(verb(), 20..100)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(same_answers(verbs));
    }
}
