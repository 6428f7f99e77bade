//! What the disk means for transfers: while it takes no files nothing new is offered, and when it
//! takes them again everything goes on by itself.

use std::sync::{Arc, MutexGuard, PoisonError};

use super::{Coordinator, DiskWaits, Repaired, ignore_late};
use crate::{
    ids::{TransferId, UnixMs},
    server::{
        error::Error,
        landing::{Gauge, Room},
    },
    transfer::{Step, Transfer, WaitingReason},
};

/// A transfer that the disk had no room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskWait {
    /// Bytes that are still to come, as far as that is known.
    needs: u64,
    /// What was free then. A quota is not seen in that, so without a change nothing is tried early.
    free: u64,
}

impl Coordinator {
    /// Looks at the disk. What waited for it goes on when there is room again.
    pub async fn look_at_disk(self: &Arc<Self>) -> Result<(), Error> {
        let (before, now) = self.on_disk(|landing| Ok(landing.look_around())).await?;
        self.metrics.set_disk(now.free, now.room != Room::Enough);
        if now.room != Room::Enough {
            return Ok(());
        }
        if matches!(before.room, Room::ReadOnly | Room::Gone) {
            // What was kept of uploads that it broke could not be noted then.
            self.settle_partials(&mut Repaired::default()).await?;
        }
        let is_back = before.room != Room::Enough;
        for id in self.can_go_on(&now, is_back) {
            ignore_late(self.apply(id, Step::MadeDue).await)?;
        }
        if is_back {
            self.sessions.wake_all();
        }
        Ok(())
    }

    /// Whether the disk takes new files.
    pub(in crate::server) fn takes_files(&self) -> bool {
        self.landing.gauge().room == Room::Enough
    }

    /// Returns since when the disk takes no new files; `None` if it does.
    pub(super) fn disk_low_since(&self) -> Option<UnixMs> {
        let gauge = self.landing.gauge();
        (gauge.room != Room::Enough).then_some(gauge.since)
    }

    /// Takes note of a transfer that waits for the disk, or no longer does.
    pub(super) fn note_disk_wait(&self, transfer: &Transfer) {
        let is_waiting = transfer.state.is_waiting()
            && transfer.waiting.is_some_and(|w| w.reason == WaitingReason::ServerDiskLow);
        if is_waiting {
            let size = transfer.file.as_ref().map_or(0, |file| file.size_bytes);
            let needs = size.saturating_sub(transfer.kept_bytes);
            let wait = DiskWait { needs, free: self.landing.gauge().free };
            self.disk_waits().insert(transfer.id, wait);
        } else {
            self.disk_waits().remove(&transfer.id);
        }
    }

    fn can_go_on(&self, now: &Gauge, is_back: bool) -> Vec<TransferId> {
        let fits = |wait: &DiskWait| now.free > wait.free && self.landing.has_room_for(wait.needs);
        let waits = self.disk_waits();
        let ready = waits.iter().filter(|(_, wait)| is_back || fits(wait));
        ready.map(|(id, _)| *id).collect()
    }

    fn disk_waits(&self) -> MutexGuard<'_, DiskWaits> {
        // A map is never half changed.
        self.disk_waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
