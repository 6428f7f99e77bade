//! What one party has used in the last day, by the hour, and how many requests it has left in this
//! minute. It knows no clock: time is what has passed since some moment long ago.

use std::time::Duration;

use crate::server::store::Usage;

impl Usage {
    pub(super) fn is_nothing(self) -> bool {
        self == Self::default()
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            transfers: self.transfers.saturating_add(other.transfers),
            received_bytes: self.received_bytes.saturating_add(other.received_bytes),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            transfers: self.transfers.saturating_sub(other.transfers),
            received_bytes: self.received_bytes.saturating_sub(other.received_bytes),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            transfers: self.transfers.max(other.transfers),
            received_bytes: self.received_bytes.max(other.received_bytes),
        }
    }
}

/// The hour that has begun, and the 24 before it: never less than a day.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    hours: [Usage; HOURS as usize],
    newest: u64,
}

impl Window {
    /// The time that it covers at most.
    pub(super) const SPAN: Duration = HOUR.saturating_mul(HOURS);

    pub(super) fn add(&mut self, now: Duration, used: Usage) {
        self.turn(now);
        let hour = &mut self.hours[place(self.newest)];
        *hour = hour.plus(used);
    }

    /// Takes note of what the records say of an earlier hour; what was counted here meanwhile may
    /// be in it.
    pub(super) fn seed(&mut self, now: Duration, ago: Duration, used: Usage) {
        self.turn(now);
        let hour = hour_of(now.saturating_sub(ago));
        if self.newest - hour < u64::from(HOURS) {
            let hour = &mut self.hours[place(hour)];
            *hour = hour.max(used);
        }
    }

    /// Returns how long it is until less than `limit` was used, if it is not so now. The answer for
    /// a limit of zero is when all is forgotten.
    pub(super) fn until_below(
        &mut self,
        now: Duration,
        limit: u64,
        of: fn(Usage) -> u64,
    ) -> Option<Duration> {
        self.turn(now);
        let used = |sum: Usage, hour: &Usage| sum.plus(*hour);
        let mut sum = of(self.hours.iter().fold(Usage::default(), used));
        if sum < limit {
            return None;
        }
        let mut hour = (self.newest + 1).saturating_sub(u64::from(HOURS));
        while hour < self.newest {
            sum = sum.saturating_sub(of(self.hours[place(hour)]));
            if sum < limit {
                break;
            }
            hour += 1;
        }
        let gone = HOUR.saturating_mul(u32::try_from(hour).unwrap_or(u32::MAX)) + Self::SPAN;
        Some(gone.saturating_sub(now))
    }

    /// Forgets the hours that are over for a day.
    fn turn(&mut self, now: Duration) {
        let hour = hour_of(now);
        let passed = hour.saturating_sub(self.newest);
        for over in 1..=passed.min(u64::from(HOURS)) {
            self.hours[place(self.newest + over)] = Usage::default();
        }
        self.newest = self.newest.max(hour);
    }
}

/// Requests: so many at once, and then as many in a minute, spread over it.
#[derive(Debug, Clone, Default)]
pub(super) struct Triggers {
    /// When all that were admitted would have come, had they been spread.
    spread_until: Duration,
}

impl Triggers {
    /// Returns how long it is until one is admitted, if none is now.
    pub(super) fn wait(&self, now: Duration, per_minute: u32) -> Option<Duration> {
        if per_minute == 0 {
            return Some(MINUTE);
        }
        let until = self.next(now, per_minute);
        until.checked_sub(now + MINUTE).filter(|wait| !wait.is_zero())
    }

    pub(super) fn count(&mut self, now: Duration, per_minute: u32) {
        self.spread_until = self.next(now, per_minute);
    }

    fn next(&self, now: Duration, per_minute: u32) -> Duration {
        self.spread_until.max(now) + MINUTE / per_minute.max(1)
    }
}

fn hour_of(time: Duration) -> u64 {
    time.as_secs() / HOUR.as_secs()
}

fn place(hour: u64) -> usize {
    usize::try_from(hour % u64::from(HOURS)).expect("less than a day has hours")
}

pub(super) const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const HOURS: u32 = 25;
