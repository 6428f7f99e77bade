//! Random faults: the real programs, a plan of faults made from a seed, and a checker that judges
//! what was seen. `make chaos-faults SECONDS=600` runs seed after seed, `SEED=7` one of them; the
//! test alone runs a few fixed ones on a smaller scale.

#[path = "../common/mod.rs"]
mod common;

mod checker;
mod history;
mod message_relay;
mod operator;
mod plan;
mod rig;
mod run;
mod tcp_relay;

use std::{
    env, fs,
    io::Write as _,
    time::{Duration, Instant},
};

use plan::{Plan, Scale};

/// As CI runs it.
const SAMPLE: Scale = Scale {
    transfers: 25,
    faults: 30,
    window: Duration::from_secs(12),
    settle: Duration::from_secs(60),
    fresh_clients: true,
};
const SAMPLE_SEEDS: [u64; 2] = [1, 2];

/// As `make chaos-faults` runs it. A client may stay away for a minute after the last fault, and a
/// transfer that has just been tried again for another.
const LONG: Scale = Scale {
    transfers: 200,
    faults: 160,
    window: Duration::from_secs(75),
    settle: Duration::from_secs(150),
    fresh_clients: false,
};

#[test]
#[ignore = "test-all: takes a minute"]
fn random_faults_lose_nothing_land_nothing_twice_and_leave_no_wait_unexplained() {
    let number = |name: &str| {
        let text = env::var(name).ok().filter(|text| !text.is_empty())?;
        Some(text.parse::<u64>().unwrap_or_else(|err| panic!("{name}={text}: {err}")))
    };
    match (number("FTS_CHAOS_SEED"), number("FTS_CHAOS_SECONDS")) {
        (Some(seed), _) => assert!(is_clean(seed, LONG)),
        (None, Some(seconds)) => {
            let until = Instant::now() + Duration::from_secs(seconds);
            let first = fastrand::u64(..1_000_000);
            let seeds = (first..).take_while(|_| Instant::now() < until);
            let bad: Vec<u64> = seeds.filter(|seed| !is_clean(*seed, LONG)).collect();
            assert!(bad.is_empty(), "seeds {bad:?}");
        }
        (None, None) => {
            let bad: Vec<u64> =
                SAMPLE_SEEDS.into_iter().filter(|seed| !is_clean(*seed, SAMPLE)).collect();
            assert!(bad.is_empty(), "seeds {bad:?}");
        }
    }
}

/// Runs one seed, and says how it went. What was wrong is told with all that is needed to look into
/// it, and to run it again.
fn is_clean(seed: u64, scale: Scale) -> bool {
    let begun = Instant::now();
    // Not where others clean up: what a failure leaves is wanted.
    let above = env!("CARGO_TARGET_TMPDIR");
    let dir = tempfile::Builder::new().prefix("chaos-").tempdir_in(above).expect("a directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (plan, path) = (Plan::new(seed, scale), dir.path().to_owned());
    let ran = runtime.block_on(async {
        let mut running = tokio::task::JoinSet::new();
        running.spawn(async move { run::run(plan, &path).await });
        running.join_next().await.expect("it was spawned")
    });
    let (found, summary) = match ran {
        Ok(Ok(outcome)) => {
            let history = format!("{:#?}", outcome.history);
            fs::write(dir.path().join("history.txt"), history).expect("written");
            (checker::check(&outcome.history), outcome.summary)
        }
        Ok(Err(err)) => (vec![format!("the run itself failed: {err:#}")], String::new()),
        Err(err) => (vec![format!("the run itself failed: {err}")], String::new()),
    };
    tell(&format!("seed {seed}: {summary}; took {:?}", begun.elapsed()));
    if found.is_empty() {
        return true;
    }
    let kept = dir.keep();
    tell(&format!("seed {seed} FAILED:"));
    for each in &found {
        tell(&format!("  {each}"));
    }
    tell(&format!("  logs, plan and history: {}", kept.display()));
    tell(&format!("  again, on the long scale: make chaos-faults SEED={seed}"));
    false
}

/// Past libtest, which hides what passing tests print.
fn tell(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).expect("standard error");
}
