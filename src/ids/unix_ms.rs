//! Moments of the wall clock.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment on the wall clock: milliseconds since 1970-01-01 UTC, as the store keeps it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct UnixMs(pub i64);

#[cfg(test)]
thread_local! {
    /// What the wall clock says on this thread, for tests in which time must not pass by itself.
    pub(crate) static TEST_CLOCK: std::cell::Cell<Option<UnixMs>> =
        const { std::cell::Cell::new(None) };
}

impl UnixMs {
    pub fn now() -> Self {
        #[cfg(test)]
        if let Some(at) = TEST_CLOCK.get() {
            return at;
        }
        let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock before 1970 counts as 1970.
        Self(since.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns it as RFC 3339 has it, in UTC, with milliseconds. What the format has no year for is its last moment.
    pub fn rfc3339(self) -> String {
        /// 9999-12-31T23:59:59.999Z.
        const LAST_MS: u64 = 253_402_300_799_999;
        let ms = u64::try_from(self.0).unwrap_or(0).min(LAST_MS);
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
    }

    #[must_use]
    pub fn plus(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
    }

    #[must_use]
    pub fn minus(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns how long `earlier` is ago; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}
