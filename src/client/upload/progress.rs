//! How far a running attempt is, for the server, the status page and the log.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64},
};

use crate::{
    client::{audit::Asked, pace::Held},
    ids::{AttemptId, Digest, OperatorName},
    wire::session::Command,
};

/// How far a running attempt is.
#[derive(Debug)]
pub(in crate::client) struct Progress {
    pub(in crate::client) attempt: AttemptId,
    /// As asked for; empty for the default file.
    pub(in crate::client) path: String,
    /// Who asked, as the server says.
    operator: Option<OperatorName>,
    pub(in crate::client) sent: AtomicU64,
    pub(in crate::client) size: AtomicU64,
    pub(in crate::client) held: Arc<Held>,
    /// Whether a cap held it back, at the last look.
    pub(in crate::client) throttled: AtomicBool,
    /// Of the whole file, once it has been read.
    pub(super) digest: OnceLock<Digest>,
    /// Who signed the request, once that is known.
    pub(super) signer: OnceLock<String>,
    /// The audit has a line that it is served.
    pub(super) served: AtomicBool,
    /// Why it was not opened, for the site's own eyes.
    pub(super) refused: OnceLock<String>,
}

impl Progress {
    pub(in crate::client) fn new(command: &Command) -> Self {
        let path = command.path.as_ref().ok().and_then(Option::as_ref);
        Self {
            attempt: command.attempt,
            path: path.map(|path| path.as_str().to_owned()).unwrap_or_default(),
            operator: command.operator.clone(),
            sent: AtomicU64::new(0),
            size: AtomicU64::new(0),
            held: Arc::default(),
            throttled: AtomicBool::new(false),
            digest: OnceLock::new(),
            signer: OnceLock::new(),
            served: AtomicBool::new(false),
            refused: OnceLock::new(),
        }
    }

    /// Returns what was asked for, for the audit.
    pub(super) fn asked(&self) -> Asked {
        Asked {
            transfer: self.attempt.transfer,
            epoch: self.attempt.epoch.0,
            path: self.path.clone(),
            operator: self.operator.clone(),
            signer: self.signer.get().cloned(),
        }
    }
}
