//! The audit: who asked for what, from where, and what came of it. Lines of JSON, for a SIEM, that
//! are on stable storage before their callers go on.
//!
//! ```text
//! audit/audit.jsonl              the current file
//! audit/audit-<time>-<n>.jsonl   closed ones; time and number of their first line
//! ```
//!
//! Lines are numbered without a gap, also over restarts: a missing number is a missing line.
//!
//! One thread owns the file. It takes all that waits, writes it at once, syncs once, and answers
//! everybody. After a call that failed the file is opened anew and what was not synced is cut off:
//! a sync that failed is never tried again, because the next one may succeed and mean nothing.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

use crate::{
    ids::UnixMs,
    limits,
    server::landing::{Disk, RealDisk},
};

mod entry;
mod log;
mod read;
mod refusals;
#[cfg(test)]
mod tests;

pub use entry::{Action, Actor, Detail, Entry, Outcome};
pub use read::{Lines, read_dir};

use log::{Bounds, Log};
use read::Head;
use refusals::{LeftOut, Refusals};

/// Why nothing is known to be in the audit, or could be read from it. Everybody whose entries were
/// written together gets the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    #[error("cannot {action} the audit {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("the audit's disk is too slow")]
    Slow,
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
        Self::open_on(data_dir, Box::new(RealDisk), Settings::default())
    }

    fn open_on(
        data_dir: &Path,
        disk: Box<dyn Disk>,
        settings: Settings,
    ) -> Result<Self, AuditError> {
        let path = data_dir.join(DIRECTORY);
        let log = Log::open(path.clone(), disk, settings.bounds)?;
        let shared = Arc::new(Desk {
            path,
            waiting: Mutex::new(Waiting {
                jobs: Vec::new(),
                refusals: Refusals::new(settings.refusals_per_minute, settings.minute),
                is_closing: false,
            }),
            bell: Condvar::new(),
            places: Arc::new(Semaphore::new(limits::AUDIT_QUEUE_MAX)),
            ended: CancellationToken::new(),
            seq: AtomicU64::new(log.seq()),
        });
        let ending = Ending(Arc::clone(&shared));
        thread::Builder::new()
            .name("fts-audit".to_owned())
            .spawn(move || ending.0.serve(log))
            .map_err(|source| AuditError::io("start the thread of", data_dir, source))?;
        Ok(Self { shared: Arc::new(Handle(shared)) })
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

    /// Notes a refusal. It never waits and never fails: what comes too fast, or cannot be written,
    /// is counted, and one line a minute says how many were left out.
    pub fn refused(&self, entry: Entry) {
        let desk = &self.shared.0;
        desk.lock().refusals.add(entry, Instant::now());
        desk.bell.notify_one();
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
            let last_seq = desk.seq.load(Ordering::Acquire);
            match Lines::open(&desk.path, since, last_seq) {
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

#[derive(Debug, Clone, Copy)]
struct Settings {
    bounds: Bounds,
    refusals_per_minute: usize,
    minute: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let file_bytes = limits::AUDIT_FILE_BYTES;
        let bounds = Bounds { file_bytes, files_max: limits::AUDIT_FILES_MAX };
        let refusals_per_minute = limits::AUDIT_REFUSALS_PER_MINUTE;
        Self { bounds, refusals_per_minute, minute: Duration::from_secs(60) }
    }
}

/// What the callers and the thread share.
struct Desk {
    path: PathBuf,
    /// Never held while the disk is asked for anything.
    waiting: Mutex<Waiting>,
    bell: Condvar,
    places: Arc<Semaphore>,
    ended: CancellationToken,
    /// Of the last line on stable storage.
    seq: AtomicU64,
}

struct Waiting {
    jobs: Vec<Job>,
    refusals: Refusals,
    is_closing: bool,
}

/// Entries of a caller who waits.
struct Job {
    entries: Vec<Entry>,
    answer: oneshot::Sender<Result<(), AuditError>>,
    /// In the queue, until they are answered.
    place: OwnedSemaphorePermit,
}

/// What is written at once.
struct Batch {
    jobs: Vec<Job>,
    refusals: Vec<Entry>,
    left_out: LeftOut,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in it is ever half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_in(&self, job: Job) -> Result<(), AuditError> {
        let mut waiting = self.lock();
        if waiting.is_closing {
            return Err(AuditError::Closed);
        }
        waiting.jobs.push(job);
        self.bell.notify_one();
        Ok(())
    }

    fn begin_end(&self) {
        self.lock().is_closing = true;
        self.places.close();
        self.bell.notify_one();
    }

    fn serve(&self, mut log: Log) {
        while let Some(batch) = self.next_batch() {
            self.write(&mut log, batch);
        }
    }

    /// Waits for something to write; `None` at the end.
    fn next_batch(&self) -> Option<Batch> {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let is_closing = waiting.is_closing;
            let (refusals, left_out) = waiting.refusals.take(now, is_closing);
            let jobs = std::mem::take(&mut waiting.jobs);
            if !jobs.is_empty() || !refusals.is_empty() || !left_out.is_empty() {
                return Some(Batch { jobs, refusals, left_out });
            }
            if is_closing {
                return None;
            }
            let idle = waiting.refusals.idle_for(now).unwrap_or(Duration::MAX);
            let woken = self.bell.wait_timeout(waiting, idle);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write(&self, log: &mut Log, batch: Batch) {
        let mut entries = batch.refusals;
        let refusals = entries.len();
        entries.extend(batch.left_out.entry());
        let (given, answers): (Vec<_>, Vec<_>) =
            batch.jobs.into_iter().map(|job| (job.entries, (job.answer, job.place))).unzip();
        entries.extend(given.into_iter().flatten());
        let written = log.append(&entries);
        match &written {
            Ok(()) => self.seq.store(log.seq(), Ordering::Release),
            Err(err) => {
                if refusals > 0 || !batch.left_out.is_empty() {
                    tracing::warn!(error = %err, "cannot write refusals to the audit");
                }
                let mut waiting = self.lock();
                if !waiting.is_closing {
                    let lines = &entries[..refusals];
                    waiting.refusals.give_back(lines, batch.left_out, Instant::now());
                }
            }
        }
        for (answer, _place) in answers {
            // Nobody waits any more: then nobody needs to know.
            drop(answer.send(written.clone()));
        }
    }
}

/// Tells everybody that the thread has ended, however it did.
struct Ending(Arc<Desk>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.begin_end();
        self.0.lock().jobs.clear();
        self.0.ended.cancel();
    }
}

const DIRECTORY: &str = "audit";
const CURRENT: &str = "audit.jsonl";
const CLOSED_PREFIX: &str = "audit-";
const CLOSED_SUFFIX: &str = ".jsonl";

/// Returns the name of a closed file, by its first line.
fn closed_name(first: Head) -> String {
    let time: String = entry::time(first.at).chars().filter(|c| !"-:".contains(*c)).collect();
    let second = time.split('.').next().unwrap_or(&time);
    format!("{CLOSED_PREFIX}{second}Z-{}{CLOSED_SUFFIX}", first.seq)
}

/// Returns the number of the first line of a closed file, if the name is of one.
fn closed_seq(name: &str) -> Option<u64> {
    let middle = name.strip_prefix(CLOSED_PREFIX)?.strip_suffix(CLOSED_SUFFIX)?;
    let (_, seq) = middle.split_once('-')?;
    seq.parse().ok()
}
