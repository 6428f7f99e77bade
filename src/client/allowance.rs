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
}

impl Allowance {
    pub(super) fn new(rate_max: Option<Rate>, uploads_max: u32) -> Arc<Self> {
        let uploads_max = watch::Sender::new(uploads_max);
        Arc::new(Self { pace: Limiter::new(rate_max), uploads_max })
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
