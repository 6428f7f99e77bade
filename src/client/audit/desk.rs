//! Where lines are handed in, and the one thread that writes them.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{AuditError, Event, Minute, log::Log};
use crate::{audit_head::AuditHead, limits};

/// What the callers and the thread share.
#[derive(Debug)]
pub(super) struct Desk {
    /// Never held while the disk is asked for anything.
    waiting: Mutex<Waiting>,
    bell: Condvar,
    head: watch::Sender<AuditHead>,
    is_up: AtomicBool,
    ended: CancellationToken,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: Vec<Job>,
    notes: Vec<Event>,
    /// When the first of the notes came.
    noted: Option<Instant>,
    minute: Minute,
    is_closing: bool,
}

/// A line that somebody waits for.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) event: Event,
    pub(super) answer: oneshot::Sender<Result<(), AuditError>>,
}

/// What is written at once: notes first, because they are older.
#[derive(Debug, Default)]
struct Batch {
    notes: Vec<Event>,
    jobs: Vec<Job>,
}

impl Waiting {
    /// Takes what is to be written now. Notes wait a while for others, or for a job.
    fn take(&mut self, now: Instant) -> Batch {
        let is_told = self.is_closing || self.minute.tell_at().is_some_and(|at| at <= now);
        if is_told && self.minute.left_out > 0 {
            self.notes.push(Event::LeftOut { count: std::mem::take(&mut self.minute.left_out) });
            self.noted.get_or_insert(now);
        }
        let is_due = !self.jobs.is_empty() || self.is_closing;
        if !is_due && self.notes_at().is_none_or(|at| at > now) {
            return Batch::default();
        }
        self.noted = None;
        Batch { notes: std::mem::take(&mut self.notes), jobs: std::mem::take(&mut self.jobs) }
    }

    fn notes_at(&self) -> Option<Instant> {
        self.noted.map(|at| at + limits::CLIENT_AUDIT_BATCH_WAIT)
    }

    /// Returns how long nothing needs to be done.
    fn idle_for(&self, now: Instant) -> Duration {
        let next = [self.notes_at(), self.minute.tell_at()].into_iter().flatten().min();
        next.map_or(Duration::MAX, |at| at.saturating_duration_since(now))
    }

    /// Takes a line, if there is room: a disk may hang.
    fn add(&mut self, event: Event) {
        if self.notes.len() < limits::CLIENT_AUDIT_QUEUE_MAX {
            self.notes.push(event);
            self.noted.get_or_insert_with(Instant::now);
        } else {
            self.leave_out(1);
        }
    }

    /// Counts what gets no line of its own, to be told within a minute.
    fn leave_out(&mut self, count: u64) {
        self.minute.left_out = self.minute.left_out.saturating_add(count);
        self.minute.began.get_or_insert_with(Instant::now);
    }
}

impl Desk {
    pub(super) fn new(head: AuditHead) -> Self {
        Self {
            waiting: Mutex::default(),
            bell: Condvar::new(),
            head: watch::Sender::new(head),
            is_up: AtomicBool::new(true),
            ended: CancellationToken::new(),
        }
    }

    pub(super) fn heads(&self) -> watch::Receiver<AuditHead> {
        self.head.subscribe()
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    pub(super) fn ended(&self) -> &CancellationToken {
        &self.ended
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
        if waiting.jobs.len() >= limits::CLIENT_AUDIT_QUEUE_MAX {
            return Err(AuditError::Full);
        }
        waiting.jobs.push(job);
        self.bell.notify_one();
        Ok(())
    }

    pub(super) fn note(&self, event: Event) {
        self.lock().add(event);
        self.bell.notify_one();
    }

    pub(super) fn note_some(&self, event: Event, now: Instant) {
        let mut waiting = self.lock();
        if waiting.minute.take(&event, now) {
            waiting.add(event);
        }
        self.bell.notify_one();
    }

    pub(super) fn begin_end(&self) {
        self.lock().is_closing = true;
        self.bell.notify_one();
    }

    /// Waits for something to write; `None` at the end.
    fn next_batch(&self) -> Option<Batch> {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let batch = waiting.take(now);
            if !batch.notes.is_empty() || !batch.jobs.is_empty() {
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

    fn write(&self, log: &mut Log, batch: Batch) {
        let Batch { notes, jobs } = batch;
        let count = notes.iter().map(Event::count).fold(0, u64::saturating_add);
        let (events, answers): (Vec<_>, Vec<_>) =
            jobs.into_iter().map(|job| (job.event, job.answer)).unzip();
        let events: Vec<_> = notes.into_iter().chain(events).collect();
        let written = log.append(&events).map_err(|err| AuditError::Io(Arc::new(err)));
        match &written {
            Ok(()) => drop(self.head.send_replace(log.head())),
            Err(err) => {
                tracing::error!(error = %err, "nothing is sent without a line in the audit");
                let mut waiting = self.lock();
                if !waiting.is_closing && count > 0 {
                    // From now on, so that it is not tried again at once.
                    waiting.minute.began = None;
                    waiting.leave_out(count);
                }
            }
        }
        self.is_up.store(written.is_ok(), Ordering::Relaxed);
        for answer in answers {
            // Nobody waits any more: then nobody needs to know.
            drop(answer.send(written.clone()));
        }
    }
}

/// The thread: writes until the end, and tells everybody that it has ended, however it did.
pub(super) fn run(desk: Arc<Desk>, mut log: Log) {
    let ending = Ending(desk);
    while let Some(batch) = ending.0.next_batch() {
        ending.0.write(&mut log, batch);
    }
}

struct Ending(Arc<Desk>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.is_up.store(false, Ordering::Relaxed);
        self.0.begin_end();
        self.0.lock().jobs.clear();
        self.0.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        client::{audit::Bounds, state_dir::StateDir},
        ids::Digest,
    };

    #[test]
    fn what_was_left_out_is_counted_also_when_that_cannot_be_written() {
        let temp = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(&temp.path().join("state")).expect("free");
        let bounds = Bounds { file_bytes: 1 << 20, files_max: 3 };
        let mut log = Log::open(&state, bounds).expect("opened");
        fs::remove_dir_all(temp.path().join("state/audit")).expect("removed");
        let desk = Desk::new(log.head());

        let notes = vec![Event::LeftOut { count: 1000 }, Event::Policy { policy: Digest::ZERO }];
        desk.write(&mut log, Batch { notes, jobs: Vec::new() });

        assert!(!desk.is_up());
        assert_eq!(desk.lock().minute.left_out, 1001);
    }
}
