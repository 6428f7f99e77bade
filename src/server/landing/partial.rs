//! A file that is being received: written as it comes, and synced and journaled behind that by a
//! thread beside, so that neither waits for the other.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use super::{
    Landing, LandingError, SYNC_DATA,
    disk::Disk,
    journal::{Journal, Whole},
};
use crate::{
    chunk::Value,
    ids::{AttemptId, TransferId},
    limits,
};

/// A file that is being received. Its name is not visible to operators.
#[derive(Debug)]
pub struct Partial {
    pub(super) file: Arc<File>,
    pub(super) attempt: AttemptId,
    /// Of the directory that it is in.
    pub(super) life: u64,
    size: u64,
    written: u64,
    /// Up to here it is on its way to the disk.
    writing_out: u64,
    /// `None`: a file of one chunk, of which nothing is kept.
    keeping: Option<Keeping>,
}

/// What makes a partial file outlive its attempt.
#[derive(Debug)]
struct Keeping {
    whole: Whole,
    dir: Arc<OwnedFd>,
    journal: Slot,
    /// Of the chunks that are written, and not in a batch yet.
    values: Vec<Value>,
    /// When the last batch was begun.
    since: Instant,
}

/// Where the journal is.
#[derive(Debug)]
enum Slot {
    /// No batch has been written.
    None,
    Here(Journal),
    /// At a thread that syncs. It is waited for before the file goes anywhere.
    Away(JoinHandle<Result<Journal, LandingError>>),
    /// It, or a sync, failed, and is not tried again: so it was.
    Failed(&'static str, io::ErrorKind),
}

impl Slot {
    /// While somebody works on it; what is left if that one does not come back.
    const AT_WORK: Self = Self::Failed(SYNC_DATA, io::ErrorKind::Other);
}

impl Partial {
    /// A file that is sent at once, and of which nothing is kept.
    pub(super) fn new(file: File, attempt: AttemptId, size: u64, life: u64) -> Self {
        let file = Arc::new(file);
        Self { file, attempt, life, size, written: 0, writing_out: 0, keeping: None }
    }

    /// Goes on after `offset` bytes, which are in the journal.
    pub(super) fn resume(
        self,
        (whole, offset): (Whole, u64),
        dir: OwnedFd,
        journal: Journal,
    ) -> Self {
        let keeping = Some(Keeping::new(whole, dir, Slot::Here(journal)));
        Self { written: offset, writing_out: offset, keeping, ..self }
    }

    pub(super) fn failed(&self, action: &'static str, source: io::Error) -> LandingError {
        LandingError { action, name: self.attempt.to_string(), source }
    }

    /// Waits for the sync that is under way, and returns whether a journal has been begun.
    pub fn settle(&mut self) -> Result<bool, LandingError> {
        let Some(keeping) = &mut self.keeping else { return Ok(false) };
        keeping.settle()
    }
}

impl Keeping {
    fn new(whole: Whole, dir: OwnedFd, journal: Slot) -> Self {
        Self { whole, dir: Arc::new(dir), journal, values: Vec::new(), since: Instant::now() }
    }

    fn is_due(&self) -> bool {
        let bytes = self.values.len() as u64 * limits::CHUNK_BYTES as u64;
        !self.values.is_empty()
            && (self.since.elapsed() >= limits::CHECKPOINT_EVERY
                || bytes >= limits::CHECKPOINT_BYTES)
    }

    /// So much waits for the sync that is under way that it is waited for: the disk is slower than
    /// the line, and a crash must not cost more and more.
    fn is_behind(&self) -> bool {
        self.values.len() as u64 * limits::CHUNK_BYTES as u64 >= limits::CHECKPOINT_BYTES
    }

    fn is_busy(&self) -> bool {
        matches!(&self.journal, Slot::Away(thread) if !thread.is_finished())
    }

    fn settle(&mut self) -> Result<bool, LandingError> {
        let slot = match std::mem::replace(&mut self.journal, Slot::AT_WORK) {
            Slot::Away(thread) => match thread.join() {
                Ok(Ok(journal)) => Slot::Here(journal),
                Ok(Err(err)) => {
                    self.journal = Slot::Failed(err.action, err.source.kind());
                    return Err(err);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            },
            slot => slot,
        };
        self.journal = slot;
        match self.journal {
            Slot::Failed(action, kind) => {
                Err(LandingError { action, name: String::new(), source: kind.into() })
            }
            Slot::Here(_) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Returns the next batch, to be synced by whoever runs it.
    fn batch(&mut self, partial: &Batched) -> Result<Batch, LandingError> {
        self.settle()?;
        self.since = Instant::now();
        let journal = match std::mem::replace(&mut self.journal, Slot::AT_WORK) {
            Slot::Here(journal) => Some(journal),
            _ => None,
        };
        Ok(Batch {
            disk: Arc::clone(&partial.disk),
            dir: Arc::clone(&self.dir),
            file: Arc::clone(&partial.file),
            attempt: partial.attempt,
            whole: self.whole,
            journal,
            values: std::mem::take(&mut self.values),
        })
    }
}

/// What a batch needs of its partial file.
struct Batched {
    disk: Arc<dyn Disk>,
    file: Arc<File>,
    attempt: AttemptId,
}

/// Chunks that are written, and become durable together.
struct Batch {
    disk: Arc<dyn Disk>,
    dir: Arc<OwnedFd>,
    file: Arc<File>,
    attempt: AttemptId,
    whole: Whole,
    journal: Option<Journal>,
    values: Vec<Value>,
}

impl Batch {
    /// Syncs the data, then writes what the journal says of it.
    fn run(self) -> Result<Journal, LandingError> {
        let name = self.attempt.to_string();
        let failed = |action, source| LandingError { action, name: name.clone(), source };
        let disk = self.disk.as_ref();
        disk.sync_data(&self.file).map_err(|err| failed(SYNC_DATA, err))?;
        let (mut journal, is_new) = if let Some(journal) = self.journal {
            (journal, false)
        } else {
            let file = disk.create_new(&self.dir, &journal_name(self.attempt.transfer));
            let file = file.map_err(|err| failed("create the journal of", err))?;
            (Journal::begin(file, self.whole), true)
        };
        journal.write(disk, &self.values).map_err(|err| failed("write the journal of", err))?;
        journal.sync(disk, self.values.len()).map_err(|err| failed(SYNC_DATA, err))?;
        if is_new {
            disk.sync_dir(&self.dir).map_err(|err| failed("sync the directory of", err))?;
        }
        Ok(journal)
    }
}

impl Landing {
    /// Begins the partial file of a transfer, with space reserved for all of it. What was kept of
    /// it before is dropped.
    pub fn begin(&self, attempt: AttemptId, whole: Whole) -> Result<Partial, LandingError> {
        self.discard(attempt.transfer)?;
        let name = attempt.transfer.to_string();
        let failed = |action, source| LandingError { action, name: name.clone(), source };
        let root = self.root().map_err(|err| failed("find the directory of", err))?;
        self.find_space(&root, &name, whole.size)?;
        let dir = self.partial_in(&root).map_err(|err| failed("open the directory of", err))?;
        let file = self.disk.create_new(&dir, &name).map_err(|err| failed("create", err))?;
        // One write allocates what a small file needs.
        if whole.size > limits::SMALL_FILE_BYTES_MAX
            && let Err(err) = self.disk.reserve(&file, whole.size)
        {
            let err = failed("reserve space for", err);
            self.discard_after(attempt.transfer, &err);
            return Err(err);
        }
        let is_kept = whole.size > limits::CHUNK_BYTES as u64;
        let keeping = is_kept.then(|| Keeping::new(whole, dir, Slot::None));
        Ok(Partial { keeping, ..Partial::new(file, attempt, whole.size, root.life()) })
    }

    /// Appends a chunk to a partial file, and sees to it that it becomes durable soon. After an
    /// error the file is at rest only once [`Landing::rest`] has been called.
    pub fn append(
        &self,
        partial: &mut Partial,
        data: &[u8],
        value: Option<Value>,
    ) -> Result<(), LandingError> {
        self.root_of(partial)?;
        self.disk
            .write_at(&partial.file, data, partial.written)
            .map_err(|source| partial.failed("write", source))?;
        partial.written += data.len() as u64;
        let begun = partial.written - partial.writing_out;
        if begun >= limits::WRITE_OUT_EVERY_BYTES {
            self.disk.write_out(&partial.file, partial.writing_out, begun);
            partial.writing_out = partial.written;
        }
        // The last chunk is not kept: what ends a file is always sent again.
        let is_last = partial.written >= partial.size;
        let batched = self.batched(partial);
        let Some(keeping) = partial.keeping.as_mut().filter(|_| !is_last) else { return Ok(()) };
        keeping.values.extend(value);
        if keeping.is_due() && (!keeping.is_busy() || keeping.is_behind()) {
            let batch = keeping.batch(&batched)?;
            let thread = thread::Builder::new().name("fts-sync".to_owned());
            match thread.spawn(move || batch.run()) {
                Ok(thread) => keeping.journal = Slot::Away(thread),
                Err(err) => return Err(partial.failed("start to sync", err)),
            }
        }
        Ok(())
    }

    /// Syncs and journals what was written and is not journaled yet.
    pub(super) fn journal_rest(&self, partial: &mut Partial) -> Result<(), LandingError> {
        let batched = self.batched(partial);
        let Some(keeping) = &mut partial.keeping else { return Ok(()) };
        keeping.settle()?;
        if !keeping.values.is_empty() {
            keeping.journal = Slot::Here(keeping.batch(&batched)?.run()?);
        }
        Ok(())
    }

    fn batched(&self, partial: &Partial) -> Batched {
        let (disk, file) = (Arc::clone(&self.disk), Arc::clone(&partial.file));
        Batched { disk, file, attempt: partial.attempt }
    }
}

pub(super) fn journal_name(transfer: TransferId) -> String {
    format!("{transfer}{JOURNAL}")
}

pub(super) const JOURNAL: &str = ".journal";
