//! On what terms the files of a rule are sent: how fast, at which hours, how many bytes a day, and
//! only as long as the policy that says so holds.

use std::{fmt, sync::Arc, time::Duration};

use jiff::{Zoned, civil::Time};
use tokio_util::sync::CancellationToken;

use super::{
    day_counts::DayCounts,
    pace::Limiter,
    policy::{
        Rule,
        hours::{Hours, until},
    },
};
use crate::{
    limits,
    transfer::{FailReason, Hold},
    wire::session::Upload,
};

/// Those of one rule, shared by all its transfers.
#[derive(Debug)]
pub(super) struct Terms {
    /// Of the rule.
    pub(super) name: String,
    pub(super) limiter: Option<Arc<Limiter>>,
    hours: Option<Hours>,
    bytes_per_day: Option<u64>,
    counts: Arc<DayCounts>,
    clock: Clock,
    /// Fires when another policy holds.
    over: CancellationToken,
}

/// What the wall clock of this machine shows.
#[derive(Clone)]
pub(super) struct Clock(Arc<dyn Fn() -> Zoned + Send + Sync>);

/// Why nothing may be sent now, and for how long.
pub(super) type Held = (Hold, Duration);

impl Terms {
    pub(super) fn new(
        rule: &Rule,
        counts: &Arc<DayCounts>,
        clock: &Clock,
        over: &CancellationToken,
    ) -> Self {
        Self {
            name: rule.name.clone(),
            limiter: rule.rate.map(|rate| Limiter::new(Some(rate))),
            hours: rule.hours,
            bytes_per_day: rule.bytes_per_day,
            counts: Arc::clone(counts),
            clock: clock.clone(),
            over: over.clone(),
        }
    }

    /// Returns why nothing may be sent at this time, if that is so.
    pub(super) fn held(&self) -> Option<Held> {
        if self.over.is_cancelled() {
            return Some(CHANGED);
        }
        let hours = self.hours?;
        let now = self.clock.now();
        (!hours.is_open(&now)).then(|| (Hold::PolicyWindow, hours.open_in(&now)))
    }

    /// Waits until nothing may be sent any more.
    pub(super) async fn end(&self) -> Held {
        let hours_end = async {
            let Some(hours) = self.hours else { return std::future::pending().await };
            loop {
                if let Some(held) = self.held() {
                    return held;
                }
                let left = hours.close_in(&self.clock.now());
                tokio::time::sleep(left.clamp(Duration::from_millis(1), limits::HOURS_LOOK)).await;
            }
        };
        tokio::select! {
            () = self.over.cancelled() => CHANGED,
            held = hours_end => held,
        }
    }

    /// Takes the bytes of a chunk from those of the day, before it is sent: they are on disk as taken
    /// when this returns. If they cannot be, returns how the upload ends instead; and whether more
    /// may follow. It blocks.
    pub(super) fn charge(&self, message: Upload) -> (Upload, bool) {
        let (Some(most), Upload::Chunk { data, .. }) = (self.bytes_per_day, &message) else {
            return (message, true);
        };
        let now = self.clock.now();
        match self.counts.take(&self.name, most, data.len() as u64, &now) {
            Ok(true) => (message, true),
            Ok(false) => (Upload::Held(Hold::BytesPerDay, until(Time::midnight(), &now)), false),
            Err(err) => {
                tracing::error!(error = %err, "cannot note what is sent in a day");
                let detail = "the client cannot note what it sends".to_owned();
                (Upload::Abort { reason: FailReason::Io, detail }, false)
            }
        }
    }
}

/// Another policy holds by now: whoever asks again is judged by that.
const CHANGED: Held = (Hold::PolicyWindow, limits::HOLD_MIN);

impl Clock {
    pub(super) fn of_machine() -> Self {
        Self(Arc::new(Zoned::now))
    }

    pub(super) fn now(&self) -> Zoned {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(all(test, feature = "server"))] // For the fake server.
mod tests;
