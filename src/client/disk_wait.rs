//! Whether the disk of one upload still answers. A read that hangs, on a dead NFS server, cannot be
//! ended; but its attempt can, so that the place is free for others.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Shared by the thread that reads, and by who waits for it.
#[derive(Debug)]
pub(super) struct DiskWait {
    begun: Instant,
    /// When the disk was asked, in milliseconds since the begin and one more; 0 while it is not.
    asked: AtomicU64,
}

impl DiskWait {
    pub(super) fn new() -> Self {
        Self { begun: Instant::now(), asked: AtomicU64::new(0) }
    }

    /// From now on the disk is waited for.
    pub(super) fn asks(&self) {
        self.asked.store(self.now() + 1, Ordering::Relaxed);
    }

    pub(super) fn answered(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    /// Returns once the disk has not answered for so long.
    pub(super) async fn hangs(&self, longest: Duration) {
        let longest_ms = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        loop {
            let asked = self.asked.load(Ordering::Relaxed);
            if asked > 0 && self.now() + 1 >= asked.saturating_add(longest_ms) {
                return;
            }
            sleep(longest / 8).await;
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const LONGEST: Duration = Duration::from_secs(40);

    #[tokio::test(start_paused = true)]
    async fn only_one_that_does_not_answer_hangs() {
        let disk = DiskWait::new();
        let hangs = async || timeout(2 * LONGEST, disk.hangs(LONGEST)).await.is_ok();
        assert!(!hangs().await, "it was not asked");
        let begun = Instant::now();
        disk.asks();
        assert!(hangs().await);
        assert!(begun.elapsed() >= LONGEST && begun.elapsed() < 2 * LONGEST);
        disk.answered();
        assert!(!hangs().await, "it has answered");
    }
}
