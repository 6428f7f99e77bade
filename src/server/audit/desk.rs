//! Where lines are handed in, and the one thread that writes them.

use std::{
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    AuditError, Series, Settings,
    entry::Entry,
    log::Log,
    notes::{LeftOut, Notes},
    owed::{Owed, OwedLines},
};
use crate::limits;

/// What the callers and the thread share.
pub(super) struct Desk {
    pub(super) path: PathBuf,
    /// Never held while the disk is asked for anything.
    waiting: Mutex<Waiting>,
    bell: Condvar,
    pub(super) places: Arc<Semaphore>,
    pub(super) ended: CancellationToken,
    /// Of the last line of each series on stable storage.
    seqs: [AtomicU64; Series::ALL.len()],
    /// The last lines of each series could be written.
    are_up: [AtomicBool; Series::ALL.len()],
}

struct Waiting {
    jobs: Vec<Job>,
    owed: Owed,
    sessions: Notes,
    refusals: Notes,
    is_closing: bool,
}

/// Entries of a caller who waits.
pub(super) struct Job {
    pub(super) entries: Vec<Entry>,
    pub(super) answer: oneshot::Sender<Result<(), AuditError>>,
    /// In the queue, until they are answered.
    pub(super) place: OwnedSemaphorePermit,
}

/// What is written at once.
struct Batch {
    jobs: Vec<Job>,
    owed: OwedLines,
    notes: [(Series, Vec<Entry>, LeftOut); 2],
}

impl Batch {
    fn is_empty(&self) -> bool {
        let is_nothing =
            |(_, lines, left_out): &(_, Vec<_>, LeftOut)| lines.is_empty() && left_out.is_empty();
        self.jobs.is_empty() && self.owed.is_empty() && self.notes.iter().all(is_nothing)
    }
}

impl Waiting {
    fn notes(&mut self, series: Series) -> &mut Notes {
        if series == Series::Sessions { &mut self.sessions } else { &mut self.refusals }
    }

    fn take(&mut self, now: Instant) -> Batch {
        let is_closing = self.is_closing;
        let jobs = std::mem::take(&mut self.jobs);
        let owed = self.owed.take(now, is_closing || !jobs.is_empty());
        let notes = [Series::Sessions, Series::Refused].map(|series| {
            let (lines, left_out) = self.notes(series).take(now, is_closing);
            (series, lines, left_out)
        });
        Batch { jobs, owed, notes }
    }

    /// Returns how long nothing needs to be done.
    fn idle_for(&self, now: Instant) -> Duration {
        let idle =
            [self.owed.idle_for(now), self.sessions.idle_for(now), self.refusals.idle_for(now)];
        idle.into_iter().flatten().min().unwrap_or(Duration::MAX)
    }
}

impl Desk {
    pub(super) fn new(path: PathBuf, logs: &[Log], settings: &Settings) -> Self {
        let notes = |per_minute| Notes::new(per_minute, settings.minute);
        let seq = |series: Series| {
            let log = logs.iter().find(|log| log.series() == series);
            AtomicU64::new(log.map_or(0, Log::seq))
        };
        Self {
            path,
            waiting: Mutex::new(Waiting {
                jobs: Vec::new(),
                owed: Owed::new(settings.owed_max, settings.retry),
                sessions: notes(settings.sessions_per_minute),
                refusals: notes(settings.refusals_per_minute),
                is_closing: false,
            }),
            bell: Condvar::new(),
            places: Arc::new(Semaphore::new(limits::AUDIT_QUEUE_MAX)),
            ended: CancellationToken::new(),
            seqs: Series::ALL.map(seq),
            are_up: Series::ALL.map(|_| AtomicBool::new(true)),
        }
    }

    /// Returns the number of the last line of each series on stable storage.
    pub(super) fn seqs(&self) -> [u64; Series::ALL.len()] {
        Series::ALL.map(|series| self.seqs[series as usize].load(Ordering::Acquire))
    }

    pub(super) fn is_up(&self) -> bool {
        self.are_up.iter().all(|is_up| is_up.load(Ordering::Relaxed))
    }

    pub(super) fn owed(&self) -> u64 {
        self.lock().owed.count()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in it is ever half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_in(&self, job: Job) -> Result<(), AuditError> {
        let mut waiting = self.lock();
        if waiting.is_closing {
            return Err(AuditError::Closed);
        }
        waiting.jobs.push(job);
        self.bell.notify_one();
        Ok(())
    }

    pub(super) fn owe(
        &self,
        entry: Entry,
    ) -> Result<oneshot::Receiver<Result<(), AuditError>>, AuditError> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.lock();
        if waiting.is_closing {
            return Err(AuditError::Closed);
        }
        waiting.owed.add(entry, answer, Instant::now());
        self.bell.notify_one();
        Ok(answered)
    }

    pub(super) fn note(&self, series: Series, entry: Entry) {
        self.lock().notes(series).add(entry, Instant::now());
        self.bell.notify_one();
    }

    pub(super) fn begin_end(&self) {
        self.lock().is_closing = true;
        self.places.close();
        self.bell.notify_one();
    }

    fn serve(&self, logs: &mut [Log]) {
        while let Some(batch) = self.next_batch() {
            self.write(logs, batch);
        }
    }

    /// Waits for something to write; `None` at the end.
    fn next_batch(&self) -> Option<Batch> {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let batch = waiting.take(now);
            if !batch.is_empty() {
                return Some(batch);
            }
            if waiting.is_closing {
                return None;
            }
            let idle = waiting.idle_for(now);
            let woken = self.bell.wait_timeout(waiting, idle);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write(&self, logs: &mut [Log], batch: Batch) {
        // Whoever waits comes first.
        if !batch.jobs.is_empty() || !batch.owed.is_empty() {
            let is_up = self.write_actions(logs, batch.jobs, batch.owed);
            self.are_up[Series::Actions as usize].store(is_up, Ordering::Relaxed);
        }
        for (series, lines, left_out) in batch.notes {
            if !lines.is_empty() || !left_out.is_empty() {
                let is_up = self.write_notes(logs, series, lines, left_out);
                self.are_up[series as usize].store(is_up, Ordering::Relaxed);
            }
        }
    }

    fn write_actions(&self, logs: &mut [Log], jobs: Vec<Job>, owed: OwedLines) -> bool {
        let OwedLines { lines, left_out, answers: owed_answers } = owed;
        let (given, answers): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.entries, (job.answer, job.place))).unzip();
        let mut entries = lines;
        let owed = entries.len();
        entries.extend(left_out.entry());
        entries.extend(given.into_iter().flatten());
        let written = self.append(logs, Series::Actions, &entries);
        if written.is_err() {
            entries.truncate(owed);
            let mut waiting = self.lock();
            if waiting.is_closing && (owed > 0 || !left_out.is_empty()) {
                tracing::error!(lines = owed, "lines of the audit are lost with this process");
            } else {
                waiting.owed.give_back(entries, left_out, Instant::now());
            }
        }
        for answer in owed_answers.into_iter().chain(answers.into_iter().map(|(answer, _)| answer))
        {
            // Nobody waits any more: then nobody needs to know.
            drop(answer.send(written.clone()));
        }
        written.is_ok()
    }

    fn write_notes(
        &self,
        logs: &mut [Log],
        series: Series,
        mut entries: Vec<Entry>,
        left_out: LeftOut,
    ) -> bool {
        let lines = entries.len();
        entries.extend(left_out.entry());
        let written = self.append(logs, series, &entries);
        if let Err(err) = &written {
            tracing::warn!(error = %err, "cannot write refusals or sessions to the audit");
            let mut waiting = self.lock();
            if !waiting.is_closing {
                let lines = &entries[..lines];
                waiting.notes(series).give_back(lines, left_out, Instant::now());
            }
        }
        written.is_ok()
    }

    fn append(
        &self,
        logs: &mut [Log],
        series: Series,
        entries: &[Entry],
    ) -> Result<(), AuditError> {
        let log = logs.iter_mut().find(|log| log.series() == series);
        let log = log.expect("there is one for each series");
        log.append(entries)?;
        self.seqs[series as usize].store(log.seq(), Ordering::Release);
        Ok(())
    }
}

/// The thread: writes until the end, and tells everybody that it has ended, however it did.
pub(super) fn run(desk: Arc<Desk>, mut logs: Vec<Log>) {
    let ending = Ending(desk);
    ending.0.serve(&mut logs);
}

struct Ending(Arc<Desk>);

impl Drop for Ending {
    fn drop(&mut self) {
        // Closed, or broken: nothing is written any more.
        self.0.are_up[Series::Actions as usize].store(false, Ordering::Relaxed);
        self.0.begin_end();
        self.0.lock().jobs.clear();
        self.0.ended.cancel();
    }
}
