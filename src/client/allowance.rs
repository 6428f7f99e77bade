//! What the site lets this client use, which may change while it runs.

use std::sync::Arc;

use tokio::sync::watch;

use super::pace::Limiter;
use crate::rate::Rate;

/// The client's own limits, shared by whoever obeys them.
#[derive(Debug)]
pub struct Allowance {
    pub(super) pace: Arc<Limiter>,
    uploads_max: watch::Sender<u32>,
    /// How many uploads have a place.
    running: watch::Sender<u32>,
}

/// The place of a running upload.
#[derive(Debug)]
pub(super) struct Place(Arc<Allowance>);

impl Allowance {
    pub(super) fn new(rate_max: Option<Rate>, uploads_max: u32) -> Arc<Self> {
        let uploads_max = watch::Sender::new(uploads_max);
        let running = watch::Sender::new(0);
        Arc::new(Self { pace: Limiter::new(rate_max), uploads_max, running })
    }

    /// Waits until fewer uploads run than may. The server asks for the next file as soon as it has
    /// recorded one, and its command may be here before the answer to the upload is.
    pub(super) async fn place(self: &Arc<Self>) -> Place {
        let (mut uploads_max, mut running) = (self.uploads_max_changes(), self.running.subscribe());
        loop {
            let max = *uploads_max.borrow_and_update();
            running.mark_unchanged();
            if self.running.send_if_modified(|running| take_one(running, max)) {
                return Place(Arc::clone(self));
            }
            // Neither sender goes away while this is here.
            tokio::select! {
                _ = uploads_max.changed() => {}
                _ = running.changed() => {}
            }
        }
    }

    pub(super) fn uploads_max(&self) -> u32 {
        *self.uploads_max.borrow()
    }

    /// Tells each change of [`Self::uploads_max`].
    pub(super) fn uploads_max_changes(&self) -> watch::Receiver<u32> {
        self.uploads_max.subscribe()
    }

    /// Changes the limits, for running uploads as well; those beyond a lower number end by
    /// themselves.
    pub(super) fn set(&self, rate_max: Option<Rate>, uploads_max: u32) {
        self.pace.set(rate_max);
        let replaced = |old: &mut u32| std::mem::replace(old, uploads_max) != uploads_max;
        self.uploads_max.send_if_modified(replaced);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| *running -= 1);
    }
}

fn take_one(running: &mut u32, max: u32) -> bool {
    let is_free = *running < max;
    *running += u32::from(is_free);
    is_free
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use super::*;

    fn is_ready<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> bool {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        matches!(future.poll(&mut cx), Poll::Ready(_))
    }

    #[tokio::test]
    async fn no_more_uploads_run_than_have_a_place() {
        let allowance = Allowance::new(None, 1);
        let first = allowance.place().await;
        let mut second = pin!(allowance.place());
        let mut third = pin!(allowance.place());
        assert!(!is_ready(second.as_mut()));

        drop(first);
        let second = second.await;
        assert!(!is_ready(third.as_mut()));

        allowance.set(None, 2);
        let third = third.await;

        // Those beyond a lower number end by themselves.
        allowance.set(None, 1);
        drop(second);
        let mut fourth = pin!(allowance.place());
        assert!(!is_ready(fourth.as_mut()));
        drop(third);
        fourth.await;
    }
}
