//! How many uploads a server takes at a time. A transfer has its place from the moment that it is
//! offered, so that no client is asked for what the server has no room for; who waits for a place
//! gets the next one that is free, in order.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    ids::{AttemptId, TransferId},
    limits,
};

/// The right to one upload; dropped, it is free again.
#[derive(Debug)]
pub struct Place(#[allow(dead_code)] OwnedSemaphorePermit); // held for its drop

/// The places of a server.
#[derive(Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    /// Of the attempts whose upload has not begun.
    offered: Mutex<HashMap<TransferId, Offered>>,
}

#[derive(Debug)]
struct Offered {
    attempt: AttemptId,
    since: Instant,
    place: Place,
}

impl Places {
    pub fn new(uploads_max: usize) -> Self {
        let free = Arc::new(Semaphore::new(uploads_max));
        Self { free, offered: Mutex::default() }
    }

    /// Takes a free place, if there is one for which nobody waits.
    pub fn try_take(&self) -> Option<Place> {
        // An offer that ended before its place was kept has left it here.
        self.offered().retain(|_, offered| offered.since.elapsed() < KEPT_MAX);
        Arc::clone(&self.free).try_acquire_owned().ok().map(Place)
    }

    /// Waits for a place; first come, first served. Dropped, it lets the next one have it.
    pub fn take(&self) -> impl Future<Output = Place> + Send + 'static {
        let free = Arc::clone(&self.free);
        async move { Place(free.acquire_owned().await.expect("the semaphore is never closed")) }
    }

    /// Keeps the place of an attempt that was offered, until its upload begins or it is over.
    pub fn keep(&self, attempt: AttemptId, place: Place) {
        let offered = Offered { attempt, since: Instant::now(), place };
        self.offered().insert(attempt.transfer, offered);
    }

    /// Returns the place that is kept for this attempt.
    pub fn of(&self, attempt: AttemptId) -> Option<Place> {
        let mut offered = self.offered();
        let is_its_own = offered.get(&attempt.transfer).is_some_and(|o| o.attempt == attempt);
        if is_its_own {
            offered.remove(&attempt.transfer).map(|offered| offered.place)
        } else {
            None
        }
    }

    /// Frees what is kept for this attempt, or an older one of its transfer.
    pub fn release(&self, attempt: AttemptId) {
        let mut offered = self.offered();
        if offered.get(&attempt.transfer).is_some_and(|o| o.attempt.epoch <= attempt.epoch) {
            offered.remove(&attempt.transfer);
        }
    }

    fn offered(&self) -> MutexGuard<'_, HashMap<TransferId, Offered>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Longer than any offer stands.
const KEPT_MAX: std::time::Duration = limits::OFFER_WAIT.saturating_mul(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn attempt(epoch: u64) -> AttemptId {
        AttemptId { transfer: TransferId::generate(), epoch: Epoch(epoch) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_kept_for_its_attempt_and_free_when_that_is_over() {
        let places = Places::new(1);
        let (one, other) = (attempt(2), attempt(1));
        places.keep(one, places.try_take().expect("free"));
        assert!(places.try_take().is_none());
        assert!(places.of(other).is_none());
        assert!(places.of(AttemptId { epoch: Epoch(1), ..one }).is_none());
        places.release(AttemptId { epoch: Epoch(1), ..one });
        assert!(places.try_take().is_none(), "an older attempt frees nothing");

        drop(places.of(one).expect("its own"));
        places.keep(one, places.try_take().expect("free again"));
        places.release(AttemptId { epoch: Epoch(3), ..one });
        places.keep(one, places.try_take().expect("free again"));
        tokio::time::advance(KEPT_MAX).await;
        assert!(places.try_take().is_some(), "a place that nobody freed");
    }

    #[tokio::test]
    async fn who_waits_longest_is_next_and_nobody_overtakes() {
        let places = Places::new(1);
        let held = places.try_take().expect("free");
        let (mut first, mut second) = (Box::pin(places.take()), Box::pin(places.take()));
        assert!(once(&mut first).await.is_none());
        assert!(once(&mut second).await.is_none());
        drop(held);
        assert!(places.try_take().is_none(), "it is the first one's");
        assert!(once(&mut second).await.is_none());
        drop(first);
        assert!(once(&mut second).await.is_some());
    }

    /// Looks once whether it is ready.
    async fn once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            let polled = std::pin::Pin::new(&mut *future).poll(cx);
            std::task::Poll::Ready(match polled {
                std::task::Poll::Ready(value) => Some(value),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
