//! The clockwork of the server: what is done now and then, whether or not somebody asks.

use std::sync::Arc;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{coordinator::Coordinator, error::Error};
use crate::limits;

/// Sweeps until the server drains. What works on the files has a clock of its own, so that a disk
/// that hangs, or much to delete, keeps nothing else waiting.
pub async fn run(coordinator: Arc<Coordinator>) {
    tokio::join!(tend_records(&coordinator), tend_files(&coordinator), watch_disk(&coordinator));
}

async fn tend_records(coordinator: &Arc<Coordinator>) {
    let mut sweep = every(limits::SWEEP);
    let mut due = every(limits::CLAIM_POLL);
    let mut seen = every(limits::SEEN_FLUSH);
    loop {
        note(tokio::select! {
            () = coordinator.shutdown.draining().cancelled() => return,
            _ = sweep.tick() => {
                coordinator.look_for_stalls();
                coordinator.sweep().await
            }
            _ = due.tick() => coordinator.ring_due().await,
            _ = seen.tick() => coordinator.flush_seen().await,
        });
    }
}

async fn tend_files(coordinator: &Arc<Coordinator>) {
    let mut orphans = every(limits::ORPHAN_SWEEP);
    let mut retain = every(limits::RETENTION_SWEEP);
    let mut abandoned = every(limits::RETENTION_SWEEP);
    loop {
        note(tokio::select! {
            () = coordinator.shutdown.draining().cancelled() => return,
            _ = orphans.tick() => coordinator.settle_orphans().await,
            _ = retain.tick() => coordinator.retain().await,
            _ = abandoned.tick() => coordinator.collect_abandoned().await,
        });
    }
}

async fn watch_disk(coordinator: &Arc<Coordinator>) {
    let mut look = every(limits::DISK_LOOK);
    let looks = async {
        loop {
            look.tick().await;
            note(coordinator.look_at_disk().await);
        }
    };
    // A look that hangs is left behind.
    tokio::select! {
        () = coordinator.shutdown.draining().cancelled() => {}
        () = looks => {}
    }
}

/// The next tick tries again.
fn note(done: Result<(), Error>) {
    if let Err(err) = done {
        err.log();
    }
}

fn every(period: std::time::Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::{
        ids::{ClientId, InstanceId, TransferId, UnixMs},
        server::{
            coordinator::{Parts, Retention},
            landing::{Landing, Marks},
            metrics::Metrics,
            quotas::QuotaLimits,
            sessions::Session,
            store::{SessionOpening, memory::MemoryStore},
        },
        shutdown::Shutdown,
        transfer::{Consistency, Request, Transfer},
    };

    /// Registers a client, and returns its session, which does nothing by itself.
    async fn session(coordinator: &Coordinator, id: &str) -> Arc<Session> {
        let client: ClientId = id.parse().expect("an id");
        let opening = SessionOpening {
            client: client.clone(),
            instance: InstanceId::generate(),
            jobs_max: 1,
            version: String::new(),
            host_name: String::new(),
            os: String::new(),
            address: String::new(),
            allowed_roots: Vec::new(),
            policy_digest: None,
        };
        let epoch = coordinator.store.open_session(&opening, UnixMs::now()).await;
        let (epoch, none) = (epoch.expect("known"), String::new());
        let session = Session::new(client, epoch, opening.instance, none.clone(), none, 1);
        let session = Arc::new(session);
        coordinator.sessions.enter(Arc::clone(&session)).expect("the only one");
        session
    }

    fn coordinator(dir: &Path) -> Arc<Coordinator> {
        let landing = Landing::open(&dir.join("files")).expect("a landing");
        Coordinator::new(Parts {
            store: Arc::new(MemoryStore::new()),
            credentials: Arc::new(MemoryStore::new()),
            landing: Arc::new(landing.with_marks(Marks::NONE)),
            metrics: Arc::new(Metrics::new()),
            shutdown: Shutdown::new(),
            heartbeat: limits::HEARTBEAT,
            retention: Retention::default(),
            quotas: QuotaLimits::default(),
            uploads_max: 1,
        })
    }

    /// Writes a transfer that only the store knows of: nobody rings.
    async fn write(coordinator: &Coordinator, client: &ClientId) {
        let request = Request {
            client: client.clone(),
            operator: None,
            path: None,
            request_id: None,
            consistency: Consistency::Auto,
            deadline: limits::DEADLINE,
            rate_max: None,
            signed: None,
        };
        let transfer = Transfer::new(TransferId::generate(), request, UnixMs::now());
        coordinator.store.create(&transfer).await.expect("written");
    }

    #[tokio::test(start_paused = true)]
    async fn a_missed_bell_delays_a_transfer_to_the_next_look() {
        let dir = tempfile::tempdir().expect("a directory");
        let coordinator = coordinator(dir.path());
        let asked = session(&coordinator, "asked").await;
        let idle = session(&coordinator, "idle").await;
        let sweeping = coordinator.shutdown.spawn(run(Arc::clone(&coordinator)));
        // The first look goes by.
        assert!(timeout(limits::CLAIM_POLL / 2, asked.bell.notified()).await.is_err());

        write(&coordinator, &asked.client).await;
        let written = Instant::now();

        let rung = timeout(limits::CLAIM_POLL * 2, asked.bell.notified()).await;
        assert!(rung.is_ok(), "nobody looked");
        assert!(written.elapsed() <= limits::CLAIM_POLL, "{:?}", written.elapsed());
        let rung = timeout(limits::CLAIM_POLL * 2, idle.bell.notified()).await;
        assert!(rung.is_err(), "an idle client is left alone");
        coordinator.shutdown.drain();
        sweeping.await.expect("no panic");
    }

    #[tokio::test]
    async fn clients_that_are_offline_do_not_hide_one_that_is_here() {
        let dir = tempfile::tempdir().expect("a directory");
        let coordinator = coordinator(dir.path());
        for number in 0..limits::PAGE_SIZE_MAX {
            let gone = session(&coordinator, &format!("gone-{number}")).await;
            coordinator.sessions.leave(&gone);
            write(&coordinator, &gone.client).await;
        }
        let here = session(&coordinator, "here").await;
        write(&coordinator, &here.client).await;

        coordinator.ring_due().await.expect("looked");

        let rung = timeout(Duration::ZERO, here.bell.notified()).await;
        assert!(rung.is_ok(), "not rung");
    }
}
