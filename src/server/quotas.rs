//! Quotas: how many files an operator may ask for, and how many bytes may come, for one operator
//! and from one client. Over a sliding day, in memory; what was used before a party was first heard
//! of, the records say.

use std::{
    fmt,
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::store::{Party, Usage};
use crate::{
    ids::{ClientId, OperatorName, UnixMs},
    limits,
};

mod parties;
#[cfg(test)]
mod tests;
mod window;

use parties::{Parties, Used};
use window::{HOUR, Triggers, Window};

/// What may be used. `None`: there is no such quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaLimits {
    pub client_bytes_per_day: Option<u64>,
    pub client_transfers_per_day: Option<u64>,
    pub operator_bytes_per_day: Option<u64>,
    pub operator_transfers_per_day: Option<u64>,
    pub operator_triggers_per_minute: u32,
}

impl Default for QuotaLimits {
    fn default() -> Self {
        Self {
            client_bytes_per_day: None,
            client_transfers_per_day: None,
            operator_bytes_per_day: None,
            operator_transfers_per_day: None,
            operator_triggers_per_minute: limits::TRIGGERS_PER_MINUTE,
        }
    }
}

impl QuotaLimits {
    fn has_client_day(&self) -> bool {
        self.client_bytes_per_day.is_some() || self.client_transfers_per_day.is_some()
    }

    fn has_operator_day(&self) -> bool {
        self.operator_bytes_per_day.is_some() || self.operator_transfers_per_day.is_some()
    }
}

/// A quota that can be used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    OperatorTriggers,
    OperatorTransfers,
    OperatorBytes,
    OperatorLogins,
    ClientTransfers,
    ClientBytes,
    ClientCertificates,
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OperatorTriggers => "the operator's quota of requests a minute",
            Self::OperatorTransfers => "the operator's quota of transfers a day",
            Self::OperatorBytes => "the operator's quota of bytes a day",
            Self::OperatorLogins => "the operator's quota of logins a minute",
            Self::ClientCertificates => "the client's quota of certificates a minute",
            Self::ClientTransfers => "the client's quota of transfers a day",
            Self::ClientBytes => "the client's quota of bytes a day",
        })
    }
}

/// A quota is used up; after so long there is some of it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct OverQuota {
    pub which: Quota,
    pub retry_after: Duration,
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.retry_after.as_millis().div_ceil(1000).max(1);
        let wait = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
        let wait = humantime::format_duration(wait);
        write!(f, "{} is used up; there is more of it in {wait}", self.which)
    }
}

/// What everybody has used.
pub struct Quotas {
    limits: QuotaLimits,
    /// By the clock that nobody sets.
    began: Instant,
    used: Mutex<Everybody>,
}

struct Everybody {
    clients: Parties<ClientId>,
    operators: Parties<OperatorName>,
}

impl Quotas {
    pub fn new(limits: QuotaLimits) -> Self {
        Self::with_room_for(limits::QUOTA_PARTIES_MAX, limits)
    }

    fn with_room_for(parties_max: usize, limits: QuotaLimits) -> Self {
        let (clients, operators) = (Parties::new(parties_max), Parties::new(parties_max));
        let used = Mutex::new(Everybody { clients, operators });
        Self { limits, began: Instant::now(), used }
    }

    pub fn limits(&self) -> &QuotaLimits {
        &self.limits
    }

    /// Admits a request for a file, and counts it, if every quota of operator and client has room.
    ///
    /// `seed` asks the records what a party has used since some time. It is asked at the first use
    /// of a party, a few times, so that what it tells is forgotten bit by bit; and not at all where
    /// no quota needs it.
    pub async fn admit_trigger<S, F, E>(
        &self,
        operator: Option<&OperatorName>,
        client: &ClientId,
        seed: S,
    ) -> Result<(), E>
    where
        S: Fn(Party, UnixMs) -> F,
        F: Future<Output = Result<Usage, E>>,
        E: From<OverQuota>,
    {
        if let Some(operator) = operator {
            self.get_to_know(&Party::Operator(operator.clone()), &seed).await?;
        }
        self.get_to_know(&Party::Client(client.clone()), &seed).await?;
        Ok(self.try_admit(self.now(), operator, client)?)
    }

    /// Asks the records what a party has used, unless that was done, or no quota needs it.
    pub async fn get_to_know<S, F, E>(&self, party: &Party, seed: &S) -> Result<(), E>
    where
        S: Fn(Party, UnixMs) -> F,
        F: Future<Output = Result<Usage, E>>,
    {
        let is_needed = match party {
            Party::Client(_) => self.limits.has_client_day(),
            Party::Operator(_) => self.limits.has_operator_day(),
        };
        if !is_needed || self.lock().of(party).is_seeded {
            return Ok(());
        }
        let mut spans = [Usage::default(); SEED_SPANS as usize];
        let now = UnixMs::now();
        for (span, ago) in spans.iter_mut().zip((1..=SEED_SPANS).rev()) {
            *span = seed(party.clone(), now.minus(SEED_SPAN * ago)).await?;
            if span.is_nothing() {
                break;
            }
        }
        let mut used = self.lock();
        let used = used.of(party);
        if !used.is_seeded {
            used.seed(self.now(), spans);
        }
        Ok(())
    }

    fn try_admit(
        &self,
        now: Duration,
        operator: Option<&OperatorName>,
        client: &ClientId,
    ) -> Result<(), OverQuota> {
        let limits = &self.limits;
        let per_minute = limits.operator_triggers_per_minute;
        let mut used = self.lock();
        let used = &mut *used;
        let mut operator = operator.map(|operator| used.operators.of(operator));
        if let Some(used) = &mut operator {
            over(Quota::OperatorTriggers, used.triggers.wait(now, per_minute))?;
            let wait = used.wait_for_transfers(now, limits.operator_transfers_per_day);
            over(Quota::OperatorTransfers, wait)?;
            let wait = used.wait_for_bytes(now, limits.operator_bytes_per_day);
            over(Quota::OperatorBytes, wait)?;
        }
        let client = limits.has_client_day().then(|| used.clients.of(client));
        let one = Usage { transfers: 1, received_bytes: 0 };
        if let Some(used) = client {
            let wait = used.wait_for_transfers(now, limits.client_transfers_per_day);
            over(Quota::ClientTransfers, wait)?;
            over(Quota::ClientBytes, used.wait_for_bytes(now, limits.client_bytes_per_day))?;
            used.window.add(now, one);
        }
        if let Some(used) = operator {
            used.triggers.count(now, per_minute);
            used.window.add(now, one);
        }
        Ok(())
    }

    /// Admits a certificate for a client, and counts it: each costs a signature, and lines that are
    /// synced. A join counts too: whoever asks again because the answer was lost is answered again.
    pub fn admit_certificate(&self, client: &ClientId) -> Result<(), OverQuota> {
        let used = &mut self.lock().clients;
        let calls = &mut used.of(client).calls;
        admit(calls, self.now(), limits::CERTIFICATES_PER_MINUTE, Quota::ClientCertificates)
    }

    /// Admits a login of an operator, and counts it.
    pub fn admit_login(&self, operator: &OperatorName) -> Result<(), OverQuota> {
        let used = &mut self.lock().operators;
        let calls = &mut used.of(operator).calls;
        admit(calls, self.now(), limits::LOGINS_PER_MINUTE, Quota::OperatorLogins)
    }

    /// Counts bytes that came.
    pub fn note_bytes(&self, client: &ClientId, operator: Option<&OperatorName>, bytes: u64) {
        self.note_bytes_at(self.now(), client, operator, bytes);
    }

    fn note_bytes_at(
        &self,
        now: Duration,
        client: &ClientId,
        operator: Option<&OperatorName>,
        bytes: u64,
    ) {
        let came = Usage { transfers: 0, received_bytes: bytes };
        if self.limits.client_bytes_per_day.is_some() {
            self.lock().clients.of(client).window.add(now, came);
        }
        if let Some(operator) = operator
            && self.limits.operator_bytes_per_day.is_some()
        {
            self.lock().operators.of(operator).window.add(now, came);
        }
    }

    /// Returns until when a client is over its quota of bytes, if it is.
    pub fn client_held_until(&self, client: &ClientId) -> Option<UnixMs> {
        let wait = self.client_held_for(self.now(), client)?;
        Some(UnixMs::now().plus(wait))
    }

    fn client_held_for(&self, now: Duration, client: &ClientId) -> Option<Duration> {
        let limit = self.limits.client_bytes_per_day;
        limit.and_then(|_| self.lock().clients.known(client)?.wait_for_bytes(now, limit))
    }

    /// Counted from a day before this was made, so that what the records tell has its hours.
    fn now(&self) -> Duration {
        self.began.elapsed() + Window::SPAN
    }

    fn lock(&self) -> MutexGuard<'_, Everybody> {
        // Counts are never half changed.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Everybody {
    fn of(&mut self, party: &Party) -> &mut Used {
        match party {
            Party::Client(client) => self.clients.of(client),
            Party::Operator(operator) => self.operators.of(operator),
        }
    }
}

impl Used {
    /// Takes what was used since each of some times, the earliest first. Of what was used between
    /// two of them, it may all have been at the end.
    fn seed(&mut self, now: Duration, since: [Usage; SEED_SPANS as usize]) {
        let later = since.into_iter().skip(1).chain([Usage::default()]);
        for ((used, later), ago) in since.into_iter().zip(later).zip((0..SEED_SPANS).rev()) {
            self.window.seed(now, SEED_SPAN * ago, used.minus(later));
        }
        self.is_seeded = true;
    }

    fn wait_for_transfers(&mut self, now: Duration, limit: Option<u64>) -> Option<Duration> {
        limit.and_then(|limit| self.window.until_below(now, limit, |used| used.transfers))
    }

    fn wait_for_bytes(&mut self, now: Duration, limit: Option<u64>) -> Option<Duration> {
        limit.and_then(|limit| self.window.until_below(now, limit, |used| used.received_bytes))
    }
}

fn admit(
    calls: &mut Triggers,
    now: Duration,
    per_minute: u32,
    which: Quota,
) -> Result<(), OverQuota> {
    over(which, calls.wait(now, per_minute))?;
    calls.count(now, per_minute);
    Ok(())
}

fn over(which: Quota, wait: Option<Duration>) -> Result<(), OverQuota> {
    wait.map_or(Ok(()), |retry_after| Err(OverQuota { which, retry_after }))
}

/// The records are asked for a day in so many pieces: a few questions, and still what they tell is
/// forgotten within a piece of the right time.
const SEED_SPANS: u32 = 4;
const SEED_SPAN: Duration = HOUR.saturating_mul(24 / SEED_SPANS);
