//! How many messages a client may send: a bucket that is filled anew each period, and with those that
//! the client is asked for.

use std::time::Duration;

use tokio::time::Instant;

use crate::{limits, server::error::Error, status::Reason};

/// What is left of a period's messages.
pub(super) struct Quota {
    left: u32,
    since: Instant,
}

impl Quota {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: QUOTA, since: now }
    }

    /// Allows more messages, because they will be asked for.
    pub(super) fn grant(&mut self, messages: u32) {
        self.left = self.left.saturating_add(messages);
    }

    /// Takes one message, if it is still allowed.
    pub(super) fn spend(&mut self) -> Result<(), Error> {
        if self.since.elapsed() >= QUOTA_PERIOD {
            *self = Self::new(Instant::now());
        }
        let too_many = || Error::refused(Reason::TooMany, "too many messages");
        self.left = self.left.checked_sub(1).ok_or_else(too_many)?;
        Ok(())
    }
}

/// The answer to a command, and the report of how it ended.
pub(super) const MESSAGES_PER_OFFER: u32 = 2;
const QUOTA_PERIOD: Duration = Duration::from_secs(10);
const QUOTA: u32 = limits::CLIENT_MESSAGES_PER_SECOND_MAX * 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_does_not_count_and_a_new_period_begins_anew() {
        let mut quota = Quota::new(Instant::now());
        for _ in 0..1000 {
            quota.grant(MESSAGES_PER_OFFER);
        }
        for message in 0..QUOTA + 2000 {
            assert!(quota.spend().is_ok(), "message {message}");
        }
        assert!(quota.spend().is_err());

        tokio::time::advance(QUOTA_PERIOD).await;

        assert!(quota.spend().is_ok());
    }
}
