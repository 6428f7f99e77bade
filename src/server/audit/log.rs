//! The files of the audit: appends lines, closes a file that is full, removes the oldest, and finds
//! its way back after a crash or a failed call. It blocks.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, openat};

use super::{
    AuditError, Series,
    detail::Detail,
    entry::{Action, Entry},
    read::{Head, RawLines, closed_files, file_id, found},
};
use crate::{ids::UnixMs, server::landing::Disk};

/// How large a file may be, and how many closed ones are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) file_bytes: u64,
    pub(super) files_max: usize,
}

pub(super) struct Log {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    series: Series,
    bounds: Bounds,
    /// Of the last line on stable storage.
    seq: u64,
    /// `None` after a call has failed: then nobody knows what is in the file, or whether its
    /// descriptor would tell.
    current: Option<Current>,
    /// What is known of the file to which `current` was last written.
    known: Option<Known>,
    /// What the next lines say of what was done to the files.
    notices: Vec<Entry>,
}

struct Current {
    dir: OwnedFd,
    file: File,
    known: Known,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    id: (u64, u64),
    /// What is on stable storage.
    len: u64,
    first: Option<Head>,
}

impl Log {
    /// Opens the files, and makes the first one if there is none.
    pub(super) fn open(
        path: &Path,
        disk: Arc<dyn Disk>,
        series: Series,
        bounds: Bounds,
    ) -> Result<Self, AuditError> {
        let (path, current, known, notices) = (path.to_owned(), None, None, Vec::new());
        let mut log = Self { disk, path, series, bounds, seq: 0, current, known, notices };
        log.seq = log.last_closed_seq().map_err(|source| log.failed("read", source))?;
        let current = log.open_current().map_err(|source| log.failed("open", source))?;
        log.current = Some(current);
        Ok(log)
    }

    pub(super) fn series(&self) -> Series {
        self.series
    }

    /// Returns the number of the last line that is on stable storage.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Writes entries; when this returns, they are on stable storage. After an error some of them
    /// may be in the file until the next call, which cuts them off.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<(), AuditError> {
        self.try_append(entries).map_err(|source| self.failed("write", source))
    }

    fn try_append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut current = match self.current.take() {
            Some(current) if self.is_in_place(&current)? => current,
            _ => self.open_current()?,
        };
        let mut lines = String::new();
        let mut seq = self.write_lines(entries, self.seq, &mut lines);
        if current.known.len > 0 && current.known.len + lines.len() as u64 > self.bounds.file_bytes
        {
            self.close_file(&current)?;
            current = self.open_current()?;
        }
        seq = self.write_lines(&self.notices, seq, &mut lines);
        let Known { len, first, .. } = &mut current.known;
        self.disk.write_at(&current.file, lines.as_bytes(), *len)?;
        self.disk.sync_data(&current.file)?;
        *len += lines.len() as u64;
        if first.is_none() {
            *first = lines.lines().next().and_then(|line| Head::parse(line.as_bytes()));
        }
        self.seq = seq;
        self.notices.clear();
        self.known = Some(current.known);
        self.current = Some(current);
        Ok(())
    }

    /// Whether the file still has its name: somebody may have moved or removed it, and then lines
    /// in it are lost.
    fn is_in_place(&self, current: &Current) -> io::Result<bool> {
        let there = found(self.path.join(self.series.current()).symlink_metadata())?;
        Ok(there.is_some_and(|metadata| file_id(&metadata) == current.known.id))
    }

    /// Opens the current file anew, and cuts what is not known to be whole and on stable storage.
    fn open_current(&mut self) -> io::Result<Current> {
        let (dir, name) = (self.open_dir()?, self.series.current());
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(&dir, &name, flags, Mode::empty()).map_err(io::Error::from);
        let file = if let Some(file) = found(opened)? {
            file.into()
        } else {
            let file = self.disk.create_new(&dir, &name)?;
            self.remove_oldest(&dir)?;
            file
        };
        let metadata = file.metadata()?;
        let id = file_id(&metadata);
        let known = match self.known {
            Some(known) if known.id == id && known.len <= metadata.size() => known,
            _ => self.look_into(id, &file)?,
        };
        if metadata.size() > known.len {
            self.disk.truncate(&file, known.len)?;
        }
        // Whoever made it, or was to sync its name before.
        self.disk.sync_dir(&dir)?;
        self.known = Some(known);
        Ok(Current { dir, file, known })
    }

    fn open_dir(&self) -> io::Result<OwnedFd> {
        let made = std::fs::DirBuilder::new().mode(0o700).create(&self.path);
        match made {
            // Its own name is to outlive a crash too.
            Ok(()) => {
                let above = self.path.parent().unwrap_or(&self.path);
                self.disk.sync_dir(&File::open(above)?.into())?;
            }
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
            Err(err) => return Err(err),
        }
        Ok(File::open(&self.path)?.into())
    }

    /// Reads a file that somebody else wrote, or an earlier process, and goes on with its numbers.
    fn look_into(&mut self, id: (u64, u64), file: &File) -> io::Result<Known> {
        let mut known = Known { id, len: 0, first: None };
        let mut lines = RawLines::new(file.try_clone()?);
        while let Some((line, at)) = lines.next_line()? {
            known.len = at;
            if let Some(head) = Head::parse(line) {
                known.first.get_or_insert(head);
                self.seq = self.seq.max(head.seq);
            }
        }
        Ok(known)
    }

    /// Returns the number of the last line of the last closed file.
    fn last_closed_seq(&self) -> io::Result<u64> {
        let closed = closed_files(&self.path, self.series)?;
        let Some((first, name)) = closed.last() else { return Ok(0) };
        let mut lines = RawLines::new(File::open(self.path.join(name))?);
        let mut last = *first;
        while let Some((line, _)) = lines.next_line()? {
            last = Head::parse(line).map_or(last, |head| last.max(head.seq));
        }
        Ok(last)
    }

    fn close_file(&self, current: &Current) -> io::Result<()> {
        let unknown = || Head { seq: self.seq, at: UnixMs::now() };
        let name = self.series.closed(current.known.first.unwrap_or_else(unknown));
        self.disk.rename((&current.dir, &self.series.current()), (&current.dir, &name))
    }

    /// Removes what is too much; what cannot be removed is tried again when the next file is made.
    fn remove_oldest(&mut self, dir: &OwnedFd) -> io::Result<()> {
        let closed = closed_files(&self.path, self.series)?;
        let too_many = closed.len().saturating_sub(self.bounds.files_max);
        for (_, name) in closed.into_iter().take(too_many) {
            match self.disk.remove(dir, &name) {
                Ok(()) => self.notices.push(Entry::own(Action::AuditDrop, Detail::File(name))),
                Err(err) => {
                    tracing::warn!(error = %err, name, "cannot remove an old file of the audit");
                }
            }
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> AuditError {
        AuditError::io(action, &self.path.join(self.series.current()), source)
    }

    /// Returns the number of the last one.
    fn write_lines(&self, entries: &[Entry], mut seq: u64, to: &mut String) -> u64 {
        for entry in entries {
            seq += 1;
            entry.write_line(self.series, seq, to);
        }
        seq
    }
}
