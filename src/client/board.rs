//! What the client is doing now, for its status page: written by the link and the jobs, read by the
//! page.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::SystemTime,
};

use serde::Serialize;
use tokio::sync::watch;

use super::{
    allowance::Allowance, audit::Audit, sandbox::Held, shares::Shares, source::Source,
    upload::Progress,
};
use crate::{
    ids::{RemotePath, SessionEpoch},
    rate::Rate,
};

/// What does not change while the process lives.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Facts {
    pub(super) id: String,
    /// Enough to tell two apart; the whole of it is a secret.
    pub(super) instance: String,
    pub(super) version: &'static str,
    pub(super) server: String,
}

#[derive(Debug)]
pub(super) struct Board {
    facts: Facts,
    shares: watch::Receiver<Arc<Source>>,
    waiting: watch::Receiver<Vec<RemotePath>>,
    allowance: Arc<Allowance>,
    audit: Audit,
    now: Mutex<Now>,
}

#[derive(Debug)]
struct Now {
    session: Option<SessionEpoch>,
    since: SystemTime,
    last_server_contact: Option<SystemTime>,
    last_error: Option<(String, SystemTime)>,
    transfers: Vec<Arc<Progress>>,
    identity: Option<Identity>,
    sandbox: Held,
    clock_ahead_seconds: Option<i64>,
}

/// Until when the certificate is good, and when it is renewed.
#[derive(Debug, Clone, Copy)]
struct Identity {
    expires: SystemTime,
    renews: SystemTime,
}

/// The page, as it is written in JSON.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    #[serde(flatten)]
    facts: Facts,
    default_file: Option<String>,
    allowed_roots: Vec<String>,
    /// Named by the policy, and not shared: the kernel allows none of them before a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roots_after_restart: Vec<String>,
    policy_digest: String,
    sandbox: Held,
    audit: AuditShown,
    jobs_max: u32,
    /// Absent: no cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_rate_bytes_per_second: Option<u64>,
    session: Session,
    last_server_contact: Option<String>,
    last_error: Option<String>,
    last_error_time: Option<String>,
    /// Absent in clear text.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<IdentityShown>,
    /// By how much this machine's clock is ahead of the server's, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_ahead_seconds: Option<i64>,
    transfers: Vec<Transfer>,
}

#[derive(Debug, Serialize)]
struct AuditShown {
    /// The number of its last line, and that line's hash.
    head: String,
    /// The last lines could be written: otherwise nothing is sent.
    writable: bool,
}

#[derive(Debug, Serialize)]
struct IdentityShown {
    expires: String,
    renews_at: String,
}

#[derive(Debug, Serialize)]
struct Session {
    connected: bool,
    epoch: Option<u64>,
    /// Connected or not, since when.
    since: String,
}

#[derive(Debug, Serialize)]
struct Transfer {
    #[serde(rename = "transfer_id")]
    id: String,
    epoch: u64,
    path: String,
    bytes_sent: u64,
    size: u64,
    /// A cap holds it back.
    throttled: bool,
}

impl Board {
    pub(super) fn new(
        facts: Facts,
        shares: &Shares,
        allowance: Arc<Allowance>,
        audit: Audit,
    ) -> Self {
        let now = Now {
            session: None,
            since: SystemTime::now(),
            last_server_contact: None,
            last_error: None,
            transfers: Vec::new(),
            identity: None,
            sandbox: Held::default(),
            clock_ahead_seconds: None,
        };
        let (shares, waiting) = (shares.changes(), shares.waiting());
        Self { facts, shares, waiting, allowance, audit, now: Mutex::new(now) }
    }

    pub(super) fn connected(&self, epoch: SessionEpoch) {
        let mut now = self.lock();
        now.session = Some(epoch);
        now.since = SystemTime::now();
    }

    pub(super) fn disconnected(&self, why: &str) {
        let (mut now, at) = (self.lock(), SystemTime::now());
        if now.session.take().is_some() {
            now.since = at;
        }
        now.last_error = Some((why.to_owned(), at));
    }

    /// Notes what went wrong beside the session.
    pub(super) fn failed(&self, why: String) {
        self.lock().last_error = Some((why, SystemTime::now()));
    }

    pub(super) fn heard(&self) {
        self.lock().last_server_contact = Some(SystemTime::now());
    }

    pub(super) fn transfers(&self, running: Vec<Arc<Progress>>) {
        self.lock().transfers = running;
    }

    pub(super) fn identity(&self, expires: SystemTime, renews: SystemTime) {
        self.lock().identity = Some(Identity { expires, renews });
    }

    pub(super) fn sandbox(&self, held: Held) {
        self.lock().sandbox = held;
    }

    pub(super) fn clock(&self, ahead_seconds: i64) {
        self.lock().clock_ahead_seconds = Some(ahead_seconds);
    }

    pub(super) fn page(&self) -> Page {
        let time = |at: SystemTime| humantime::format_rfc3339_millis(at).to_string();
        let source = self.shares.borrow().clone();
        let waiting = self.waiting.borrow().clone().into_iter();
        let now = self.lock();
        let transfers = now.transfers.iter().map(|progress| Transfer {
            id: progress.attempt.transfer.to_string(),
            epoch: progress.attempt.epoch.0,
            path: progress.path.clone(),
            bytes_sent: progress.sent.load(Ordering::Relaxed),
            size: progress.size.load(Ordering::Relaxed),
            throttled: progress.throttled.load(Ordering::Relaxed),
        });
        Page {
            facts: self.facts.clone(),
            default_file: source.default_file().map(|path| path.as_str().to_owned()),
            allowed_roots: source.roots(),
            roots_after_restart: waiting.map(String::from).collect(),
            sandbox: now.sandbox,
            policy_digest: source.policy().digest().to_string(),
            audit: AuditShown { head: self.audit.head().to_string(), writable: self.audit.is_up() },
            jobs_max: self.allowance.uploads_max(),
            max_rate_bytes_per_second: self.allowance.pace.rate().map(Rate::bytes_per_second),
            session: Session {
                connected: now.session.is_some(),
                epoch: now.session.map(|epoch| epoch.0),
                since: time(now.since),
            },
            last_server_contact: now.last_server_contact.map(time),
            last_error: now.last_error.as_ref().map(|(why, _)| why.clone()),
            last_error_time: now.last_error.as_ref().map(|(_, at)| time(*at)),
            identity: now.identity.map(|identity| IdentityShown {
                expires: time(identity.expires),
                renews_at: time(identity.renews),
            }),
            clock_ahead_seconds: now.clock_ahead_seconds,
            transfers: transfers.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
