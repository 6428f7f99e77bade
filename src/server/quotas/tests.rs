//! The quotas beside a list of all that ever happened.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use proptest::prelude::*;

use super::*;

#[derive(Debug)]
enum TestError {
    Over(OverQuota),
    Store,
}

impl From<OverQuota> for TestError {
    fn from(over: OverQuota) -> Self {
        Self::Over(over)
    }
}

fn client(n: u8) -> ClientId {
    format!("client-{n}").parse().expect("an id")
}

fn operator(n: u8) -> OperatorName {
    format!("operator-{n}").parse().expect("a name")
}

/// What happened once.
struct Event {
    at: Duration,
    client: u8,
    operator: Option<u8>,
    used: Usage,
}

/// All that happened, and for each operator the requests that it has left, in time to make them.
#[derive(Default)]
struct Model {
    events: Vec<Event>,
    left: HashMap<u8, (Duration, Duration)>,
}

type Whose = fn(&Event, u8) -> bool;

fn of_client(event: &Event, n: u8) -> bool {
    event.client == n
}

fn of_operator(event: &Event, n: u8) -> bool {
    event.operator == Some(n)
}

impl Model {
    fn sum(&self, is_counted: impl Fn(&Event) -> bool, of: fn(Usage) -> u64) -> u64 {
        self.events.iter().filter(|event| is_counted(event)).map(|event| of(event.used)).sum()
    }

    fn wait(
        &self,
        now: Duration,
        (whose, n): (Whose, u8),
        of: fn(Usage) -> u64,
        limit: Option<u64>,
    ) -> Option<Duration> {
        let limit = limit?;
        let hour = |time: Duration| time.as_secs() / 3600;
        let used_at = |at: u64| self.sum(|event| whose(event, n) && hour(event.at) + 25 > at, of);
        let day = Duration::from_secs(24 * 3600);
        let within = |span: Duration| self.sum(|e| whose(e, n) && e.at + span > now, of);
        if used_at(hour(now)) < limit {
            assert!(within(day) < limit, "a day never has more");
            return None;
        }
        assert!(within(day + HOUR) >= limit, "nobody is refused for what is longer ago");
        let again = (hour(now) + 1..hour(now) + 25).find(|at| used_at(*at) < limit);
        let again = Duration::from_secs(again.unwrap_or(hour(now) + 25) * 3600);
        Some(again.saturating_sub(now))
    }

    fn wait_for_trigger(&mut self, now: Duration, n: u8, each: Duration) -> Option<Duration> {
        let (left, at) = self.left.entry(n).or_insert((Duration::from_secs(60), now));
        *left = (*left + now.saturating_sub(*at)).min(Duration::from_secs(60));
        *at = now;
        each.checked_sub(*left).filter(|wait| !wait.is_zero())
    }

    fn trigger(
        &mut self,
        now: Duration,
        client: u8,
        operator: Option<u8>,
        limits: &QuotaLimits,
    ) -> Result<(), OverQuota> {
        let (transfers, bytes) = (|used: Usage| used.transfers, |used: Usage| used.received_bytes);
        let each = Duration::from_secs(60) / limits.operator_triggers_per_minute;
        if let Some(n) = operator {
            over(Quota::OperatorTriggers, self.wait_for_trigger(now, n, each))?;
            let party = (of_operator as Whose, n);
            let wait = self.wait(now, party, transfers, limits.operator_transfers_per_day);
            over(Quota::OperatorTransfers, wait)?;
            let wait = self.wait(now, party, bytes, limits.operator_bytes_per_day);
            over(Quota::OperatorBytes, wait)?;
        }
        let party = (of_client as Whose, client);
        let wait = self.wait(now, party, transfers, limits.client_transfers_per_day);
        over(Quota::ClientTransfers, wait)?;
        let wait = self.wait(now, party, bytes, limits.client_bytes_per_day);
        over(Quota::ClientBytes, wait)?;
        if let Some(n) = operator {
            self.left.get_mut(&n).expect("it was looked at").0 -= each;
        }
        self.events.push(Event {
            at: now,
            client,
            operator,
            used: Usage { transfers: 1, received_bytes: 0 },
        });
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Pass(Duration),
    Trigger(u8, Option<u8>),
    Bytes(u8, Option<u8>, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let operator = || prop::option::of(0..2_u8);
    let step = prop_oneof![
        1 => (1..10 * 3_600_000_u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        2 => (1..30_000_u64).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        6 => (0..2_u8, operator()).prop_map(|(c, o)| Step::Trigger(c, o)),
        3 => (0..2_u8, operator(), 0..40_u64).prop_map(|(c, o, bytes)| Step::Bytes(c, o, bytes)),
    ];
    prop::collection::vec(step, 1..150)
}

fn quota_limits() -> impl Strategy<Value = QuotaLimits> {
    let limit = |max: u64| prop::option::weighted(0.7, 0..max);
    (limit(100), limit(10), limit(100), limit(10), 1..8_u32).prop_map(|(cb, ct, ob, ot, minute)| {
        QuotaLimits {
            client_bytes_per_day: cb,
            client_transfers_per_day: ct,
            operator_bytes_per_day: ob,
            operator_transfers_per_day: ot,
            operator_triggers_per_minute: minute,
        }
    })
}

proptest! {
    #[test]
    fn quotas_are_as_a_list_of_all_that_happened_says(
        limits in quota_limits(), steps in steps()
    ) {
        let quotas = Quotas::new(limits.clone());
        let mut model = Model::default();
        let mut now = Window::SPAN;
        for step in steps {
            match step {
                Step::Pass(time) => now += time,
                Step::Trigger(c, o) => {
                    let expected = model.trigger(now, c, o, &limits);
                    let name = o.map(operator);
                    let got = quotas.try_admit(now, name.as_ref(), &client(c));
                    prop_assert_eq!(got, expected);
                }
                Step::Bytes(c, o, bytes) => {
                    quotas.note_bytes_at(now, &client(c), o.map(operator).as_ref(), bytes);
                    let used = Usage { transfers: 0, received_bytes: bytes };
                    model.events.push(Event { at: now, client: c, operator: o, used });
                }
            }
            for c in 0..2 {
                let held = quotas.client_held_for(now, &client(c));
                // Of whom nothing was heard, nothing is known.
                if held.is_some() || model.events.iter().any(|event| event.client == c) {
                    let limit = limits.client_bytes_per_day;
                    let expected = model.wait(now, (of_client, c), |used| used.received_bytes, limit);
                    prop_assert_eq!(held, expected);
                }
            }
        }
    }
}

fn all_limits(limit: u64) -> QuotaLimits {
    QuotaLimits {
        client_bytes_per_day: Some(limit),
        client_transfers_per_day: Some(limit),
        operator_bytes_per_day: Some(limit),
        operator_transfers_per_day: Some(limit),
        ..QuotaLimits::default()
    }
}

fn used(transfers: u64, bytes: u64) -> Usage {
    Usage { transfers, received_bytes: bytes }
}

#[tokio::test(start_paused = true)]
async fn what_the_records_say_counts_and_is_forgotten_within_a_day_and_six_hours() {
    let quotas = Quotas::new(all_limits(100));
    let (asked, now) = (RefCell::new(Vec::new()), UnixMs::now());
    // 10 in each of the last hours, and nothing of an operator.
    let seed = async |party: Party, since: UnixMs| {
        asked.borrow_mut().push(party.clone());
        let hours = now.since(since).as_secs() / 3600;
        let is_client = matches!(party, Party::Client(_));
        Ok::<_, TestError>(if is_client { used(0, hours * 10) } else { used(0, 0) })
    };

    let refused = quotas.admit_trigger(Some(&operator(0)), &client(1), &seed).await;

    // 60 of the last six hours, and those of the six before, which may all be of their end.
    let Err(TestError::Over(refused)) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.which, Quota::ClientBytes);
    assert!(refused.retry_after > HOUR * 18 && refused.retry_after <= HOUR * 19, "{refused:?}");
    tokio::time::advance(refused.retry_after.saturating_sub(Duration::from_millis(1))).await;
    assert!(quotas.client_held_until(&client(1)).is_some());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(quotas.client_held_until(&client(1)), None);
    quotas.admit_trigger(Some(&operator(0)), &client(1), &seed).await.expect("admitted");
    let asked = asked.borrow();
    let clients = asked.iter().filter(|party| **party == Party::Client(client(1))).count();
    let operators = asked.iter().filter(|p| **p == Party::Operator(operator(0))).count();
    assert_eq!((clients, operators), (4, 1), "once, and no more when there was nothing");
}

#[tokio::test]
async fn bytes_that_came_before_the_records_were_asked_count_once() {
    let quotas = Quotas::new(all_limits(100));
    quotas.note_bytes(&client(1), None, 60);
    let seed = async |_, _| Ok::<_, TestError>(used(0, 70));
    let party = Party::Client(client(1));

    quotas.get_to_know(&party, &seed).await.expect("asked");
    assert_eq!(quotas.client_held_until(&client(1)), None, "70, not 130");
    quotas.note_bytes(&client(1), None, 30);

    assert!(quotas.client_held_until(&client(1)).is_some());
}

#[tokio::test(start_paused = true)]
async fn two_who_ask_the_records_at_once_count_their_answer_once() {
    let quotas = Quotas::new(all_limits(100));
    let party = Party::Client(client(1));
    let answers = async |_, _| Ok::<_, TestError>(used(0, 60));
    let slow = async |_, _| {
        tokio::time::sleep(HOUR).await;
        Ok::<_, TestError>(used(0, 60))
    };

    let (first, second) =
        tokio::join!(quotas.get_to_know(&party, &slow), quotas.get_to_know(&party, &answers));

    assert!(first.is_ok() && second.is_ok());
    assert_eq!(quotas.client_held_until(&client(1)), None, "60, not 120");
}

#[tokio::test]
async fn without_an_answer_of_the_records_nothing_is_admitted_or_counted() {
    let quotas = Quotas::new(all_limits(1));
    let fails = async |_, _| Err(TestError::Store);
    let empty = async |_, _| Ok(used(0, 0));

    for _ in 0..3 {
        let refused = quotas.admit_trigger(Some(&operator(0)), &client(1), fails).await;
        assert!(matches!(refused, Err(TestError::Store)), "{refused:?}");
    }
    let admitted: Result<(), TestError> =
        quotas.admit_trigger(Some(&operator(0)), &client(1), empty).await;

    admitted.expect("none was counted");
}

#[tokio::test]
async fn a_refused_request_is_not_counted() {
    let quotas = Quotas::new(QuotaLimits {
        client_transfers_per_day: Some(1),
        operator_transfers_per_day: Some(2),
        operator_triggers_per_minute: 2,
        ..QuotaLimits::default()
    });
    let admit = async |n| -> Result<(), TestError> {
        quotas.admit_trigger(Some(&operator(0)), &client(n), async |_, _| Ok(used(0, 0))).await
    };
    admit(1).await.expect("the first");
    for _ in 0..5 {
        let refused = admit(1).await;
        let Err(TestError::Over(over)) = refused else { panic!("{refused:?}") };
        assert_eq!(over.which, Quota::ClientTransfers);
    }
    admit(2).await.expect("the operator still has one");
}

#[tokio::test]
async fn without_quotas_nobody_asks_the_records() {
    let quotas = Quotas::new(QuotaLimits::default());
    let asked = Cell::new(false);
    let seed = async |_, _| {
        asked.set(true);
        Err(TestError::Store)
    };

    quotas.admit_trigger(Some(&operator(0)), &client(1), seed).await.expect("admitted");
    quotas.note_bytes(&client(1), Some(&operator(0)), u64::MAX);

    assert!(!asked.get());
    assert_eq!(quotas.client_held_until(&client(1)), None);
}

#[tokio::test]
async fn who_was_forgotten_is_asked_for_again() {
    let quotas = Quotas::with_room_for(2, all_limits(5));
    let asked = RefCell::new(Vec::new());
    let seed = async |party, _| {
        asked.borrow_mut().push(party);
        Ok::<_, TestError>(used(0, 0))
    };

    for n in [1, 2, 1, 3, 1, 2] {
        quotas.admit_trigger(None, &client(n), &seed).await.expect("admitted");
    }

    assert_eq!(*asked.borrow(), [1, 2, 3, 2].map(|n| Party::Client(client(n))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_who_race_as_many_are_admitted_as_there_is_room_for() {
    let quotas = std::sync::Arc::new(Quotas::new(all_limits(10)));
    let mut racers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let quotas = std::sync::Arc::clone(&quotas);
        racers.spawn(async move {
            let seed = |_, _| async {
                tokio::task::yield_now().await;
                Ok::<_, TestError>(used(3, 0))
            };
            quotas.admit_trigger(Some(&operator(0)), &client(1), seed).await.is_ok()
        });
    }

    let admitted = racers.join_all().await.into_iter().filter(|admitted| *admitted).count();

    assert_eq!(admitted, 7);
}

#[test]
fn a_refusal_says_which_quota_and_when_to_come_back() {
    let text = |which, ms| OverQuota { which, retry_after: Duration::from_millis(ms) }.to_string();
    assert_eq!(
        text(Quota::ClientBytes, 3_600_000 + 59_001),
        "the client's quota of bytes a day is used up; there is more of it in 1h 1m"
    );
    assert_eq!(
        text(Quota::OperatorTriggers, 1),
        "the operator's quota of requests a minute is used up; there is more of it in 1s"
    );
}
