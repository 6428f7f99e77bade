//! The clockwork of the server: what is done now and then, whether or not somebody asks.

use std::sync::Arc;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{coordinator::Coordinator, error::Error};
use crate::limits;

/// Sweeps until the server drains, and once more then.
pub async fn run(coordinator: Arc<Coordinator>) {
    let mut sweep = every(limits::SWEEP);
    let mut orphans = every(limits::ORPHAN_SWEEP);
    let mut seen = every(limits::SEEN_FLUSH);
    let mut retain = every(limits::RETENTION_SWEEP);
    loop {
        let done = tokio::select! {
            () = coordinator.shutdown.draining().cancelled() => break,
            _ = sweep.tick() => coordinator.sweep().await,
            _ = orphans.tick() => coordinator.settle_orphans().await,
            _ = seen.tick() => coordinator.flush_seen().await,
            _ = retain.tick() => coordinator.retain().await,
        };
        note(done);
    }
    note(coordinator.flush_seen().await);
}

fn every(period: std::time::Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The next tick tries again.
fn note(done: Result<(), Error>) {
    if let Err(err) = done {
        err.log();
    }
}
