//! The server's rules under long random histories: coordinator, store, uploads and landing are the
//! real ones, with clients, operators, faults and deaths around them, and what must hold is checked
//! after each verb.
//!
//! [`history`] says what can happen, [`rules`] what holds of every transfer; [`verbs`], [`sending`],
//! [`stray`] and [`tending`] say what each verb must do, and may do at most; [`world`] and [`files`]
//! what holds of ends, deaths, recovery and files. [`upload`] goes the way of `ingest`, in smaller
//! steps. Time, dice and order are the history's own, so a history that fails is cut down to the
//! smallest that does.
//!
//! `FTS_MODEL_SEED` takes other histories than the usual ones, `FTS_MODEL_HISTORIES` as many.

use std::{cell::RefCell, collections::HashSet, path::Path, sync::Arc, thread};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::metrics::Metrics;
use crate::transfer::State;
use faults::Fault;
use history::{Does, Older, Sent, Size, Verb, Whose, history};
use world::World;

mod faults;
mod files;
mod history;
mod rules;
mod sending;
mod stray;
mod tending;
mod upload;
mod verbs;
mod world;

/// The ways of transfers that were taken, or what went wrong.
type Ran = Result<HashSet<(State, State)>, String>;

/// Runs as many histories as asked for, on every processor.
fn run(histories: u32) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u32>().expect("a number"));
    let seed = number("FTS_MODEL_SEED").unwrap_or(1);
    let histories = number("FTS_MODEL_HISTORIES").unwrap_or(histories);
    let threads =
        thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).expect("few"));
    let part = histories.div_ceil(threads);
    let parts: Vec<Ran> = thread::scope(|scope| {
        let worker = |number| scope.spawn(move || run_part([seed, number], part));
        let workers: Vec<_> = (0..threads).map(worker).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    let mut missed = rules::ways();
    for part in parts {
        let taken = part.unwrap_or_else(|failure| panic!("{failure}"));
        missed.retain(|way| !taken.contains(way));
    }
    assert!(histories < 50_000 || missed.is_empty(), "no transfer took {missed:?}");
    eprintln!("{} histories of up to {PARTS_MAX} parts, seed {seed}", part * threads);
}

fn run_part(seed: [u32; 2], histories: u32) -> Ran {
    let dir = tempfile::tempdir_in(fast_dir()).expect("a directory");
    let runtime = runtime();
    let metrics = Arc::new(Metrics::new());
    let config = Config {
        cases: histories,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    // Unoptimised, the default one takes more time than everything else.
    let seed = seed.map(u32::to_le_bytes).concat().repeat(2);
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
    let taken = RefCell::new(HashSet::new());
    let ran = TestRunner::new_with_rng(config, rng).run(&history(PARTS_MAX), |verbs| {
        let lived = runtime.block_on(live(dir.path(), &metrics, &verbs));
        let ways = lived.map_err(|err| TestCaseError::fail(format!("{err:#}")))?;
        taken.borrow_mut().extend(ways);
        Ok(())
    });
    match ran {
        Ok(()) => Ok(taken.into_inner()),
        Err(TestError::Fail(why, verbs)) => Err(format!("{why}\n\nin the history {verbs:#?}")),
        Err(TestError::Abort(why)) => Err(why.to_string()),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().expect("a runtime")
}

async fn live(
    dir: &Path,
    metrics: &Arc<Metrics>,
    history: &[Verb],
) -> anyhow::Result<HashSet<(State, State)>> {
    let mut world = World::new(dir, Arc::clone(metrics))?;
    let lived = world.live(history).await;
    let ways = std::mem::take(&mut world.told.ways);
    drop(world);
    std::fs::remove_dir_all(dir.join("files"))?;
    lived.map(|()| ways)
}

/// Where files cost least: nothing here depends on a real disk.
fn fast_dir() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

const PARTS_MAX: usize = 16;

#[test]
fn the_rules_hold_in_some_histories() {
    run(5_000);
}

#[test]
#[ignore = "test-all: 100,000 histories take a minute"]
fn the_rules_hold_in_100_000_histories() {
    run(100_000);
}

/// A history that once went wrong.
fn replay(history: &[Verb]) {
    let dir = tempfile::tempdir_in(fast_dir()).expect("a directory");
    let lived = runtime().block_on(live(dir.path(), &Arc::new(Metrics::new()), history));
    assert!(lived.is_ok(), "{:#}", lived.expect_err("it failed"));
}

#[test]
fn what_a_call_landed_and_could_not_record_is_not_taken_for_the_next_calls() {
    let begin = |size| {
        let source = Sent { size, is_changed: false, is_mixed: false };
        Verb::Begin { attempt: 0, whose: Whose::Its, source, older: Older::LetsGo }
    };
    let does = |does| Verb::Upload { upload: 0, does };
    if false {
        return;
    }
    replay(&[
        Verb::Connect { client: 0, instance: 0, mentions: 0 },
        Verb::Trigger { client: 0, request_id: None, deadline_s: 1000 },
        Verb::Claim { session: 0, jobs_max: 1, offers_max: 1 },
        begin(Size::Small),
        does(Does::Finish),
        does(Does::Publish),
        Verb::Arm { fault: Fault::StoreFails, after: 0 },
        does(Does::Record),
        begin(Size::OneChunk),
        does(Does::Finish),
        Verb::Crash,
    ]);
}
