//! The audit: who asked for what, from where, and what came of it. Lines of JSON, for a SIEM, that
//! are on stable storage before their callers go on.
//!
//! ```text
//! audit/audit.jsonl              what was asked for, granted, done: the current file
//! audit/audit-<time>-<n>.jsonl   closed ones; time and number of their first line
//! audit/sessions*.jsonl          sessions of clients
//! audit/refused*.jsonl           what was refused
//! ```
//!
//! How many sessions and refusals there are, others decide: so each series has files, and a total,
//! of its own, and none can push out the lines of another. A reader sees them as one, by time.
//!
//! The lines of a series are numbered without a gap, also over restarts: a missing number is a
//! missing line.
//!
//! One thread owns the files. It takes all that waits, writes it at once, syncs once, and answers
//! everybody. After a call that failed the file is opened anew and what was not synced is cut off:
//! a sync that failed is never tried again, because the next one may succeed and mean nothing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};

use crate::{
    ids::UnixMs,
    limits,
    server::landing::{Disk, RealDisk},
};

mod desk;
mod detail;
mod entry;
mod log;
mod notes;
mod owed;
mod read;
#[cfg(test)]
mod tests;

pub use detail::Detail;
pub use entry::{Action, Actor, Entry, Outcome};
pub use read::{Lines, read_dir};

use desk::{Desk, Job};
use log::{Bounds, Log};
use read::Head;

/// Why nothing is known to be in the audit, or could be read from it. Everybody whose entries were
/// written together gets the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    #[error("cannot {action} the audit {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("the audit's disk is too slow")]
    Slow,
    #[error("as many lines wait for the audit's disk as may")]
    Full,
    #[error("the audit is closed")]
    Closed,
}

impl AuditError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

/// The audit of a data directory. Clones are the same one.
#[derive(Clone)]
pub struct Audit {
    shared: Arc<Handle>,
}

impl Audit {
    /// Opens the audit of a data directory, which must be there. It blocks.
    pub fn open(data_dir: &Path) -> Result<Self, AuditError> {
        Self::open_on(data_dir, &(Arc::new(RealDisk) as Arc<dyn Disk>), Settings::default())
    }

    fn open_on(
        data_dir: &Path,
        on: &Arc<dyn Disk>,
        settings: Settings,
    ) -> Result<Self, AuditError> {
        let path = data_dir.join(DIRECTORY);
        let open = |series| Log::open(&path, Arc::clone(on), series, settings.bounds(series));
        let logs = Series::ALL.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let desk = Arc::new(Desk::new(path, &logs, &settings));
        let of_thread = Arc::clone(&desk);
        thread::Builder::new()
            .name("fts-audit".to_owned())
            .spawn(move || desk::run(of_thread, logs))
            .map_err(|source| AuditError::io("start the thread of", data_dir, source))?;
        Ok(Self { shared: Arc::new(Handle(desk)) })
    }

    /// Writes entries, one after the other; returns once they are on stable storage. After an error
    /// they may or may not be there.
    ///
    /// Whoever drops this loses only the answer: entries that are in the queue are written. They
    /// are in it once this was polled, unless the queue is full.
    pub async fn write(&self, entries: Vec<Entry>) -> Result<(), AuditError> {
        if entries.is_empty() {
            return Ok(());
        }
        let desk = &self.shared.0;
        let written = async {
            let place = Arc::clone(&desk.places).acquire_owned().await;
            let place = place.map_err(|_| AuditError::Closed)?;
            let (answer, answered) = oneshot::channel();
            desk.take_in(Job { entries, answer, place })?;
            answered.await.map_err(|_| AuditError::Closed)?
        };
        timeout(limits::AUDIT_WAIT, written).await.unwrap_or(Err(AuditError::Slow))
    }

    /// Writes an entry of what is done in any case. If it cannot be written within moments it is
    /// kept, as long as this process lives, and written once it can be; then this is an error.
    pub async fn write_or_keep(&self, entry: Entry) -> Result<(), AuditError> {
        let answered = self.shared.0.owe(entry)?;
        let answered = timeout(limits::AUDIT_OWED_WAIT, answered).await;
        answered.map_or(Err(AuditError::Slow), |a| a.unwrap_or(Err(AuditError::Closed)))
    }

    /// Notes a refusal. It never waits and never fails: what comes too fast, or cannot be written,
    /// is counted, and one line a minute says how many were left out.
    pub fn refused(&self, entry: Entry) {
        self.shared.0.note(Series::Refused, entry);
    }

    /// Notes that a session of a client began, or ended; like a refusal.
    pub fn session(&self, entry: Entry) {
        self.shared.0.note(Series::Sessions, entry);
    }

    /// Returns whether the last lines could be written, and how many wait until they can.
    pub fn standing(&self) -> (bool, u64) {
        (self.shared.0.is_up(), self.shared.0.owed())
    }

    /// Reads what was done since, oldest first, as far as it is on stable storage now.
    pub fn read(
        &self,
        since: Option<UnixMs>,
    ) -> impl Stream<Item = Result<String, AuditError>> + Send + use<> {
        let (line, lines) = mpsc::channel(limits::AUDIT_READ_AHEAD);
        let desk = Arc::clone(&self.shared.0);
        // It ends with its stream.
        drop(spawn_blocking(move || {
            match Lines::open(&desk.path, since, desk.seqs()) {
                Ok(all) => {
                    for each in all {
                        if line.blocking_send(each).is_err() {
                            return;
                        }
                    }
                }
                // Nobody listens: then nobody needs to know.
                Err(err) => drop(line.blocking_send(Err(err))),
            }
        }));
        ReceiverStream::new(lines)
    }

    /// Takes nothing more, and waits until what was taken is written, or has failed.
    pub async fn close(&self) {
        self.shared.0.begin_end();
        self.shared.0.ended.cancelled().await;
    }
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").field("path", &self.shared.0.path).finish_non_exhaustive()
    }
}

/// With the last of these the thread ends.
struct Handle(Arc<Desk>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.begin_end();
    }
}

/// Lines that share files and numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Series {
    /// What was asked for, granted, done.
    Actions,
    Sessions,
    Refused,
}

impl Series {
    const ALL: [Self; 3] = [Self::Actions, Self::Sessions, Self::Refused];

    /// What the names of its files begin with.
    fn name(self) -> &'static str {
        match self {
            Self::Actions => "audit",
            Self::Sessions => "sessions",
            Self::Refused => "refused",
        }
    }

    /// Returns the name of the current file.
    fn current(self) -> String {
        format!("{}{SUFFIX}", self.name())
    }

    /// Returns the name of a closed file, by its first line.
    fn closed(self, first: Head) -> String {
        let time: String = first.at.rfc3339().chars().filter(|c| !"-:".contains(*c)).collect();
        let second = time.split('.').next().unwrap_or(&time);
        format!("{}-{second}Z-{}{SUFFIX}", self.name(), first.seq)
    }

    /// Returns the number of the first line of a closed file, if the name is of one.
    fn closed_seq(self, name: &str) -> Option<u64> {
        let middle = name.strip_prefix(self.name())?.strip_prefix('-')?.strip_suffix(SUFFIX)?;
        let (_, seq) = middle.split_once('-')?;
        seq.parse().ok()
    }
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    actions: Bounds,
    sessions: Bounds,
    refused: Bounds,
    sessions_per_minute: usize,
    refusals_per_minute: usize,
    minute: Duration,
    owed_max: usize,
    retry: Duration,
}

impl Settings {
    fn bounds(&self, series: Series) -> Bounds {
        match series {
            Series::Actions => self.actions,
            Series::Sessions => self.sessions,
            Series::Refused => self.refused,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let bounds = |files_max| Bounds { file_bytes: limits::AUDIT_FILE_BYTES, files_max };
        Self {
            actions: bounds(limits::AUDIT_FILES_MAX),
            sessions: bounds(limits::AUDIT_SESSION_FILES_MAX),
            refused: bounds(limits::AUDIT_REFUSED_FILES_MAX),
            sessions_per_minute: limits::AUDIT_SESSIONS_PER_MINUTE,
            refusals_per_minute: limits::AUDIT_REFUSALS_PER_MINUTE,
            minute: Duration::from_secs(60),
            owed_max: limits::AUDIT_OWED_MAX,
            retry: limits::AUDIT_RETRY,
        }
    }
}

const DIRECTORY: &str = "audit";
const SUFFIX: &str = ".jsonl";
