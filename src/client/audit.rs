//! The client's own audit: what was asked for, what was served, what was refused, and by whom. The
//! lines are chained by their hashes, and the head of the chain is told to the server: so neither
//! the server nor this machine can change what was written without the other one's seeing it.
//!
//! ```text
//! STATE_DIR/audit/audit.jsonl           the current file
//! STATE_DIR/audit/audit-<seq>.jsonl     closed ones, by the number of their first line
//! STATE_DIR/audit/broken-<time>.jsonl   what did not follow from the lines before it
//! ```
//!
//! That a file is served is on stable storage before the first byte of it leaves: without a line
//! nothing is sent. How much is refused and asked is up to the server, so a minute has room for some
//! lines of that, and the rest is counted.
//!
//! One thread owns the files. It takes all that waits, writes it at once, syncs once, and answers
//! everybody.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::state_dir::StateDir;
use crate::{audit_head::AuditHead, limits, wire::session::Outcome};

mod desk;
mod line;
mod log;
pub mod show;
#[cfg(test)]
mod tests;
pub mod verify;

use desk::{Desk, Job};
pub(super) use line::{Asked, Event};
use log::{Bounds, Log};

/// Why nothing is known to be in the audit.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum AuditError {
    #[error("the client cannot write its audit: {0}")]
    Io(Arc<io::Error>),
    #[error("the client cannot write its audit: the disk is too slow")]
    Slow,
    #[error("the client cannot write its audit: as many lines wait for the disk as may")]
    Full,
    #[error("the client is ending")]
    Closed,
}

/// The audit of a state directory. Clones are the same one; when the last one is dropped, what waits
/// is written.
#[derive(Debug, Clone)]
pub(super) struct Audit {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    desk: Arc<Desk>,
    /// Until the thread has it.
    log: Mutex<Option<Log>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.desk.begin_end();
    }
}

impl Audit {
    /// Opens the audit of a state directory. Nothing is written before [`Audit::start`]. It blocks.
    pub(super) fn open(state_dir: &StateDir) -> io::Result<Self> {
        let (file_bytes, files_max) =
            (limits::CLIENT_AUDIT_FILE_BYTES, limits::CLIENT_AUDIT_FILES_MAX);
        Self::open_within(state_dir, Bounds { file_bytes, files_max })
    }

    fn open_within(state_dir: &StateDir, bounds: Bounds) -> io::Result<Self> {
        let log = Log::open(state_dir, bounds)?;
        let desk = Arc::new(Desk::new(log.head()));
        Ok(Self { handle: Arc::new(Handle { desk, log: Mutex::new(Some(log)) }) })
    }

    /// Starts the thread that writes; what was handed in is written then. Once the sandbox is laid
    /// on, so that it holds for the thread too.
    pub(super) fn start(&self) {
        let log = self.handle.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(log) = log else { return };
        let desk = Arc::clone(&self.handle.desk);
        let of_thread = Arc::clone(&desk);
        let thread = thread::Builder::new().name("fts-audit".to_owned());
        if let Err(err) = thread.spawn(move || desk::run(of_thread, log)) {
            tracing::error!(error = %err, "there is no audit, so nothing will be sent");
            desk.begin_end();
        }
    }

    /// Notes that a file is served; returns once that is on stable storage. After an error it may or
    /// may not be there, and nothing may be sent.
    pub(super) async fn serve(&self, event: Event) -> Result<(), AuditError> {
        let (answer, answered) = oneshot::channel();
        self.handle.desk.take_in(Job { event, answer })?;
        let answered = timeout(limits::AUDIT_WAIT, answered).await;
        answered.map_or(Err(AuditError::Slow), |a| a.unwrap_or(Err(AuditError::Closed)))
    }

    /// Notes what has become of a file that was served, or of this client. It never waits.
    pub(super) fn note(&self, event: Event) {
        self.handle.desk.note(event);
    }

    /// Notes a refusal, or a question. It never waits; what comes too fast is counted.
    pub(super) fn note_some(&self, event: Event) {
        self.handle.desk.note_some(event, Instant::now());
    }

    /// Tells where the audit stands: at lines that are on stable storage.
    pub(super) fn heads(&self) -> watch::Receiver<AuditHead> {
        self.handle.desk.heads()
    }

    pub(super) fn head(&self) -> AuditHead {
        *self.heads().borrow()
    }

    /// Whether the last lines could be written.
    pub(super) fn is_up(&self) -> bool {
        self.handle.desk.is_up()
    }

    /// Writes what waits; from now on nothing is served. Waits for that for a while.
    pub(super) async fn close(&self) {
        self.handle.desk.begin_end();
        let ended: &CancellationToken = self.handle.desk.ended();
        if timeout(limits::CLIENT_AUDIT_END_WAIT, ended.cancelled()).await.is_err() {
            tracing::warn!("the last lines of the audit may be missing: the disk is too slow");
        }
    }
}

/// Returns how an attempt ended, in a word.
pub(super) fn outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Delivered => "delivered".to_owned(),
        Outcome::Failed(reason) => format!("failed: {reason:?}"),
        Outcome::Broken => "broken".to_owned(),
        Outcome::Stopped => "stopped".to_owned(),
        Outcome::Held(..) => "held by the policy".to_owned(),
    }
}

/// A minute has room for so many refusals and questions, and for so much text of them.
#[derive(Debug, Default)]
struct Minute {
    began: Option<Instant>,
    taken: usize,
    bytes: usize,
    left_out: u64,
}

impl Minute {
    const LENGTH: Duration = Duration::from_secs(60);

    /// Returns whether there is room for one more.
    fn take(&mut self, event: &Event, now: Instant) -> bool {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= Self::LENGTH) {
            (self.began, self.taken, self.bytes) = (Some(now), 0, 0);
        }
        if self.taken < limits::CLIENT_AUDIT_NOTES_PER_MINUTE {
            let bytes = self.bytes + line::bytes(event);
            if bytes <= limits::CLIENT_AUDIT_NOTED_BYTES_PER_MINUTE {
                self.taken += 1;
                self.bytes = bytes;
                return true;
            }
        }
        self.left_out = self.left_out.saturating_add(1);
        false
    }

    /// Returns when it is told how many were left out, if some were.
    fn tell_at(&self) -> Option<Instant> {
        self.began.filter(|_| self.left_out > 0).map(|began| began + Self::LENGTH)
    }
}
