//! What outlives an attempt that broke: the chunks of a partial file that are on stable storage, as
//! its journal says.
//!
//! One upload of a transfer runs at a time, and only whoever holds its place (`uploads`) touches its
//! partial file: so neither name carries an epoch, and no other clean-up can meet it.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::fs::{self, Mode, OFlags};

use super::{
    Landing, LandingError, PARTIAL, SYNC_DATA,
    journal::{self, Journal, Whole},
    open_dir,
    partial::{JOURNAL, Partial, journal_name},
    remove,
    root::Root,
};
use crate::{
    chunk::{self, Prefix, Value},
    ids::{AttemptId, TransferId},
    limits,
};

/// What is durably held of a file that has not come whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub whole: Whole,
    pub prefix: Prefix,
}

/// An upload that goes on with what was kept.
#[derive(Debug)]
pub struct Resumed {
    pub partial: Partial,
    pub prefix: Prefix,
    /// What must be read again before it can be published.
    pub unproved: Option<Unproved>,
}

/// Kept bytes that an earlier process wrote, and that were not read again since.
#[derive(Debug)]
pub struct Unproved {
    transfer: TransferId,
    data: File,
    values: Vec<Value>,
}

impl Landing {
    /// Goes on with what is kept of a transfer: with its first `offset` bytes, whose values are
    /// returned too. `None` if so much of this very file is not there.
    pub fn resume(
        &self,
        attempt: AttemptId,
        whole: Whole,
        offset: u64,
    ) -> Result<Option<Resumed>, LandingError> {
        let name = attempt.transfer.to_string();
        let failed = |action, source| LandingError { action, name: name.clone(), source };
        let Some(found) = self.look(attempt.transfer)? else { return Ok(None) };
        let records = offset / limits::CHUNK_BYTES as u64;
        let values = usize::try_from(records).ok().and_then(|n| found.values.get(..n));
        let Some(values) = values.filter(|v| !v.is_empty() && found.header.whole == whole) else {
            return Ok(None);
        };
        let root = self.root().map_err(|err| failed("find the directory of", err))?;
        self.find_space(&root, &name, whole.size - offset)?;
        let dir = self.partial_in(&root).map_err(|err| failed("open the directory of", err))?;
        self.cut(attempt.transfer, &found, records)?;
        self.disk
            .reserve(&found.data, whole.size)
            .map_err(|err| failed("reserve space for", err))?;
        let unproved = if self.inherited().contains(&attempt.transfer) {
            let data = found.data.try_clone().map_err(|err| failed("open once more", err))?;
            Some(Unproved { transfer: attempt.transfer, data, values: values.to_vec() })
        } else {
            None
        };
        let journal = Journal::resume(found.journal, found.header, records);
        let begun = Partial::new(found.data, attempt, whole.size, root.life());
        let partial = begun.resume((whole, offset), dir, journal);
        Ok(Some(Resumed { partial, prefix: journal::prefix(values), unproved }))
    }

    /// Ends the writing of a partial file whose attempt broke, and returns how many bytes of it are
    /// kept. Space that was reserved for the rest is free again.
    pub fn rest(&self, mut partial: Partial) -> Result<u64, LandingError> {
        let transfer = partial.attempt.transfer;
        let journaled = match self.root_of(&partial) {
            Ok(_) => self.journal_rest(&mut partial),
            // It is no longer in the directory, or not in sight: only what writes it is waited for.
            Err(_) => partial.settle().map(drop),
        };
        match journaled {
            Err(err) if !err.leaves_kept() => {
                self.discard_after(transfer, &err);
                return Err(err);
            }
            _ => drop(partial),
        }
        self.settle_partial(transfer)
    }

    /// Brings what is left of a transfer in line with its journal, and returns how many bytes are
    /// kept. What cannot be believed is removed.
    pub fn settle_partial(&self, transfer: TransferId) -> Result<u64, LandingError> {
        let Some(found) = self.look(transfer)? else { return Ok(0) };
        let records = found.values.len() as u64;
        self.cut(transfer, &found, records)?;
        // Records may be there that no sync has covered, and names: of a process that ended, or after
        // an error.
        let synced = self.disk.sync_data(&found.journal).and_then(|()| {
            let dir = self.partial()?;
            self.disk.sync_dir(&dir)
        });
        if let Err(source) = synced {
            let err = LandingError { action: SYNC_DATA, name: transfer.to_string(), source };
            self.discard_after(transfer, &err);
            return Err(err);
        }
        Ok(records * limits::CHUNK_BYTES as u64)
    }

    /// Returns what is kept of a transfer.
    pub fn kept(&self, transfer: TransferId) -> Result<Option<Kept>, LandingError> {
        let found = self.look(transfer)?;
        Ok(found.map(|found| Kept {
            whole: found.header.whole,
            prefix: journal::prefix(&found.values),
        }))
    }

    /// Reads what an earlier process kept again, and returns whether it is what the journal said.
    /// Ends early once `stop` is set; then it is not known.
    pub fn recheck(&self, unproved: &Unproved, stop: &AtomicBool) -> Result<bool, LandingError> {
        let name = unproved.transfer.to_string();
        let mut buffer = vec![0; limits::CHUNK_BYTES];
        let mut offset = 0;
        for value in &unproved.values {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let read = unproved.data.read_exact_at(&mut buffer, offset);
            read.map_err(|source| LandingError {
                action: "read again",
                name: name.clone(),
                source,
            })?;
            if chunk::value(offset, &buffer) != *value {
                return Ok(false);
            }
            offset += buffer.len() as u64;
        }
        self.inherited().remove(&unproved.transfer);
        Ok(true)
    }

    /// Removes what there is of a transfer that has not been published.
    pub fn discard(&self, transfer: TransferId) -> Result<(), LandingError> {
        // Until it is gone, nobody must believe it.
        self.condemned().insert(transfer);
        self.inherited().remove(&transfer);
        let name = transfer.to_string();
        let dir = self.partial().map_err(|source| LandingError {
            action: "open the directory of",
            name: name.clone(),
            source,
        })?;
        // The journal first: data without one is nothing.
        remove(self.disk.as_ref(), &dir, &journal_name(transfer))?;
        remove(self.disk.as_ref(), &dir, &name)?;
        self.condemned().remove(&transfer);
        Ok(())
    }

    /// Removes what cannot be used after a failure for another reason, which is the one to tell.
    pub(super) fn discard_after(&self, transfer: TransferId, cause: &LandingError) {
        if let Err(err) = self.discard(transfer) {
            tracing::error!(error = %err, cause = %cause, "could not remove a partial file");
        }
    }

    /// Returns the transfers of which there are partial files. What has another name is removed.
    pub fn partials(&self) -> Result<Vec<TransferId>, LandingError> {
        let dir = self.partial().map_err(|source| LandingError {
            action: "open",
            name: PARTIAL.to_owned(),
            source,
        })?;
        let mut found = Vec::new();
        for name in self.names(&dir)? {
            match name.strip_suffix(JOURNAL).unwrap_or(&name).parse() {
                Ok(transfer) => found.push(transfer),
                Err(_) => remove(self.disk.as_ref(), &dir, &name)?,
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Takes note that whatever is kept in a directory that came back is to be read again.
    pub(super) fn inherit_all(&self, root: &Root) -> io::Result<()> {
        let dir = match open_dir(root.dir(), PARTIAL) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        let names = self.names(&dir).map_err(|err| err.source)?;
        self.inherited().extend(names.iter().filter_map(|name| name.parse::<TransferId>().ok()));
        Ok(())
    }

    /// Takes note that what is kept of a transfer is from an earlier process.
    pub fn inherit(&self, transfer: TransferId) {
        self.inherited().insert(transfer);
    }

    /// Opens what is kept of a transfer, if it can be believed; else it is removed.
    fn look(&self, transfer: TransferId) -> Result<Option<Found>, LandingError> {
        if self.condemned().contains(&transfer) {
            self.discard(transfer)?;
            return Ok(None);
        }
        let name = transfer.to_string();
        let failed = |action, source| LandingError { action, name: name.clone(), source };
        let dir = self.partial().map_err(|err| failed("open the directory of", err))?;
        let open = |name: &str| {
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match fs::openat(&dir, name, flags, Mode::empty()) {
                Ok(file) => Ok(Some(File::from(file))),
                Err(rustix::io::Errno::NOENT) => Ok(None),
                Err(err) => Err(failed("open what is kept of", err.into())),
            }
        };
        let (data, journal) = (open(&name)?, open(&journal_name(transfer))?);
        let (Some(data), Some(journal)) = (data, journal) else {
            self.discard(transfer)?;
            return Ok(None);
        };
        let why = match journal::read(&journal) {
            Ok((header, values)) => {
                let len = data.metadata().map_err(|err| failed("look at", err))?.len();
                if !values.is_empty() && len >= values.len() as u64 * limits::CHUNK_BYTES as u64 {
                    return Ok(Some(Found { data, journal, header, values }));
                }
                "its data is shorter than its journal, or nothing is in that".to_owned()
            }
            Err(journal::ReadError::Damaged(why)) => why.to_owned(),
            // A disk that does not give it back: it is as good as damaged.
            Err(journal::ReadError::Io(err)) => err.to_string(),
        };
        tracing::warn!(transfer_id = %transfer, why, "nothing is kept of a partial file");
        self.discard(transfer)?;
        Ok(None)
    }

    /// Cuts off what is beyond so many chunks. The journal first: it must never say more than there
    /// is.
    fn cut(&self, transfer: TransferId, found: &Found, records: u64) -> Result<(), LandingError> {
        let failed = |source| LandingError {
            action: "cut off the end of",
            name: transfer.to_string(),
            source,
        };
        let disk = self.disk.as_ref();
        let end = journal::end_of(records);
        if found.journal.metadata().map_err(failed)?.len() != end {
            disk.truncate(&found.journal, end).map_err(failed)?;
            let name = transfer.to_string();
            let synced = disk.sync_data(&found.journal);
            synced.map_err(|source| LandingError { action: SYNC_DATA, name, source })?;
        }
        // Even to the same length: it frees what was reserved beyond.
        disk.truncate(&found.data, records * limits::CHUNK_BYTES as u64).map_err(failed)
    }
}

/// A partial file and its journal, open.
struct Found {
    data: File,
    journal: File,
    header: journal::Header,
    values: Vec<Value>,
}
