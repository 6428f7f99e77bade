//! Pauses between dials: full jitter over a bound that doubles, so that a fleet does not come back
//! at once.

use std::time::Duration;

/// An endless row of pauses.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    bound: Duration,
}

impl Backoff {
    /// Bounds grow from `min` to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, bound: min }
    }

    /// Begins again from the smallest bound.
    pub fn reset(&mut self) {
        self.bound = self.min;
    }

    /// Returns the next pause: anything up to the bound, which then doubles.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.bound.mul_f64(fastrand::f64());
        self.bound = self.bound.saturating_mul(2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_below_a_bound_that_doubles_up_to_the_maximum() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for bound in [1, 2, 4, 5, 5] {
            assert!(backoff.next_pause() <= Duration::from_secs(bound));
        }
        backoff.reset();
        assert!(backoff.next_pause() <= Duration::from_secs(1));
    }
}
