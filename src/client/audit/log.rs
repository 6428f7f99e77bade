//! The files of the audit: appends lines, closes a file that is full, removes the oldest, and finds
//! its way back after a crash or a failed call. It blocks.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags, RenameFlags},
    io::Errno,
};

use super::line::{self, Event, LineError, Link};
use crate::{audit_head::AuditHead, client::state_dir::StateDir, ids::UnixMs, limits};

/// In the state directory.
const DIRECTORY: &str = "audit";
pub(super) const CURRENT: &str = "audit.jsonl";
/// Of a file that was put aside.
const BROKEN: &str = "broken-";
const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How large a file may be, and how many closed ones are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) file_bytes: u64,
    pub(super) files_max: usize,
}

#[derive(Debug)]
pub(super) struct Log {
    dir: OwnedFd,
    bounds: Bounds,
    /// Of the last line on stable storage.
    head: AuditHead,
    /// `None` after a call has failed: then nobody knows what is in the file, or whether its
    /// descriptor would tell.
    current: Option<Current>,
    /// What is known of the file to which was last written.
    known: Option<Known>,
    /// What the next lines say of what was done to the files.
    notices: Vec<Event>,
}

#[derive(Debug)]
struct Current {
    file: File,
    known: Known,
    /// After that there is what a crash left. It stays until the line that tells of it is there: a
    /// kill between the two would take it away without a word.
    is_torn: bool,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    id: (u64, u64),
    /// What is on stable storage.
    len: u64,
    /// The number of its first line; without a line, of the one that comes first.
    first: u64,
}

impl Log {
    /// Opens the files, makes the first one if there is none, and finds the last good line.
    pub(super) fn open(state_dir: &StateDir, bounds: Bounds) -> io::Result<Self> {
        let state = state_dir.fd()?;
        match rustix::fs::mkdirat(state, DIRECTORY, Mode::RWXU) {
            // Its own name is to outlive a crash too.
            Ok(()) => rustix::fs::fsync(state)?,
            Err(Errno::EXIST) => {}
            Err(err) => return Err(err.into()),
        }
        let dir = rustix::fs::openat(state, DIRECTORY, OPEN_DIR, Mode::empty())?;
        let (current, known, notices) = (None, None, Vec::new());
        let mut log = Self { dir, bounds, head: AuditHead::NONE, current, known, notices };
        // Without a closed file nobody knows what the first line of the current one follows from.
        let before = log.last_closed()?;
        log.head = before.unwrap_or(AuditHead::NONE);
        log.current = Some(log.open_current(before)?);
        Ok(log)
    }

    /// Returns the last line that is on stable storage.
    pub(super) fn head(&self) -> AuditHead {
        self.head
    }

    /// Writes lines; when this returns, they are on stable storage. After an error some of them may
    /// be in the file until the next call, which cuts them off: a sync that failed is never tried
    /// again, because the next one may succeed and mean nothing.
    pub(super) fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let mut current = match self.current.take() {
            Some(current) if self.is_in_place(&current)? => current,
            _ => self.open_current(Some(self.head))?,
        };
        let mut surplus = Vec::new();
        // What is torn is cut off with a line of its own; what is closed stays as it is.
        if current.known.len >= self.bounds.file_bytes && !current.is_torn {
            self.close_file(&current)?;
            current = self.open_current(Some(self.head))?;
            surplus = self.surplus(&current)?;
        }
        let (mut lines, mut head, now) = (String::new(), self.head, UnixMs::now());
        for event in self.notices.iter().chain(&surplus).chain(events) {
            head = line::write(event, head, now, &mut lines);
        }
        current.file.write_all_at(lines.as_bytes(), current.known.len)?;
        current.known.len += lines.len() as u64;
        if current.is_torn {
            current.file.set_len(current.known.len)?;
        }
        current.file.sync_data()?;
        current.is_torn = false;
        self.head = head;
        self.notices.clear();
        self.known = Some(current.known);
        self.current = Some(current);
        self.remove(&surplus);
        Ok(())
    }

    /// Whether the file still has its name, and its lines: somebody may have moved, removed or
    /// emptied it, and then lines in it are lost.
    fn is_in_place(&self, current: &Current) -> io::Result<bool> {
        match rustix::fs::statat(&self.dir, CURRENT, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let len = u64::try_from(stat.st_size).unwrap_or(0);
                Ok((stat.st_dev, stat.st_ino) == current.known.id && len >= current.known.len)
            }
            Err(Errno::NOENT) => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    /// Opens the current file anew, whose first line follows from `before`, if that is known; and
    /// cuts off what a call that failed has left there.
    fn open_current(&mut self, before: Option<AuditHead>) -> io::Result<Current> {
        for _ in 0..limits::OPEN_TRIES_MAX {
            let file = self.open_or_make()?;
            let metadata = file.metadata()?;
            let id = (metadata.dev(), metadata.ino());
            let (known, torn) = match self.known {
                Some(known) if known.id == id && known.len <= metadata.size() => {
                    rustix::fs::ftruncate(&file, known.len)?;
                    (known, 0)
                }
                _ => {
                    let found = follow(&file, before)?;
                    let rest = metadata.size().saturating_sub(found.len);
                    if found.goes_on || rest > limits::CLIENT_AUDIT_TORN_BYTES_MAX {
                        // No crash leaves that: whatever it is, it is kept.
                        self.put_aside()?;
                        continue;
                    }
                    self.head = found.head;
                    let first = found.first.unwrap_or(found.head.seq + 1);
                    (Known { id, len: found.len, first }, rest)
                }
            };
            // A process that was killed may have written lines, and not synced them.
            file.sync_data()?;
            // Whoever made it, or was to sync its name before.
            rustix::fs::fsync(&self.dir)?;
            self.known = Some(known);
            if torn > 0 {
                self.notices.push(Event::Torn { bytes: torn });
            }
            return Ok(Current { file, known, is_torn: torn > 0 });
        }
        Err(io::Error::other("the file of the audit is replaced again and again"))
    }

    fn open_or_make(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(&self.dir, CURRENT, flags | OFlags::NONBLOCK, mode)?;
        Ok(fd.into())
    }

    /// Returns the last line of the last closed file. What is wrong before it is no reason to lose
    /// the lines that follow from it: verify tells.
    fn last_closed(&self) -> io::Result<Option<AuditHead>> {
        let Some(last) = closed(&self.dir)?.pop() else { return Ok(None) };
        let (mut lines, mut head) = (Lines::new(open(&self.dir, &last)?), None);
        while let Some(line) = lines.next_line()? {
            head = line.check().ok().map(|link| link.head).or(head);
        }
        Ok(head)
    }

    fn close_file(&self, current: &Current) -> io::Result<()> {
        self.rename(&closed_name(current.known.first))
    }

    /// Gives the current file another name, which no file has.
    fn rename(&self, name: &str) -> io::Result<()> {
        let dir = &self.dir;
        match rustix::fs::renameat_with(dir, CURRENT, dir, name, RenameFlags::NOREPLACE) {
            // The file system (NFS) has no such rename; and nobody else writes here.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            renamed => return Ok(renamed?),
        }
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(rustix::fs::renameat(dir, CURRENT, dir, name)?),
            Ok(_) => Err(Errno::EXIST.into()),
            Err(err) => Err(err.into()),
        }
    }

    fn put_aside(&mut self) -> io::Result<()> {
        let file = format!("{BROKEN}{}.jsonl", UnixMs::now().0);
        self.rename(&file)?;
        tracing::error!(
            file,
            "the audit had lines that do not follow, and was put aside: see verify"
        );
        self.notices.push(Event::Broken { file });
        Ok(())
    }

    /// Returns which closed files are too many, oldest first, as the lines that tell of it.
    fn surplus(&self, current: &Current) -> io::Result<Vec<Event>> {
        let closed = closed(&self.dir)?;
        let count = closed.len().saturating_sub(self.bounds.files_max);
        let firsts = closed.iter().filter_map(|name| first_of(name));
        let nexts: Vec<_> = firsts.skip(1).chain([current.known.first]).collect();
        let surplus = closed.into_iter().zip(nexts).take(count);
        Ok(surplus.map(|(file, next)| Event::Drop { file, next }).collect())
    }

    /// Removes them, once it is on record: what cannot be removed is tried again, and told again,
    /// when the next file is made.
    fn remove(&self, surplus: &[Event]) {
        for event in surplus {
            if let Event::Drop { file, .. } = event
                && let Err(err) = rustix::fs::unlinkat(&self.dir, file, AtFlags::empty())
            {
                tracing::warn!(error = %err, file, "cannot remove an old file of the audit");
            }
        }
    }
}

fn closed_name(first: u64) -> String {
    format!("audit-{first:020}.jsonl")
}

/// Returns the directory of the audit, to be read; `None`, if there is none.
pub(super) fn look(state_dir: &StateDir) -> io::Result<Option<OwnedFd>> {
    let open = |state| rustix::fs::openat(state, DIRECTORY, OPEN_DIR, Mode::empty());
    match state_dir.fd().and_then(|state| Ok(open(state)?)) {
        Ok(dir) => Ok(Some(dir)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

/// Returns the names of the closed files, oldest first.
pub(super) fn closed(dir: &OwnedFd) -> io::Result<Vec<String>> {
    names(dir, |name| first_of(name).is_some())
}

/// Returns the names of the files that were put aside, oldest first.
pub(super) fn broken(dir: &OwnedFd) -> io::Result<Vec<String>> {
    names(dir, |name| name.starts_with(BROKEN))
}

fn names(dir: &OwnedFd, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().to_str()
            && wanted(name)
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns the number of the first line of a closed file; `None`, if that is no name of one.
fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("audit-")?.strip_suffix(".jsonl")?;
    digits.parse().ok().filter(|first| closed_name(*first) == name)
}

/// Opens a file of the audit, to be read.
pub(super) fn open(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?.into())
}

/// How far the lines of a file follow from each other.
struct Followed {
    /// Of those that do.
    len: u64,
    /// The last of them.
    head: AuditHead,
    /// The number of the first of them.
    first: Option<u64>,
    /// After one that does not, there are whole lines again; or it is one that was changed.
    goes_on: bool,
}

/// Follows the lines of a file as long as they are good; after `before`, if that is known.
fn follow(file: &File, before: Option<AuditHead>) -> io::Result<Followed> {
    let (mut before, mut is_good) = (before, true);
    let head = before.unwrap_or(AuditHead::NONE);
    let mut found = Followed { len: 0, head, first: None, goes_on: false };
    let mut lines = Lines::new(file.try_clone()?);
    while let Some(line) = lines.next_line()? {
        let checked = line.check();
        let link = checked.ok();
        is_good &= link.is_some_and(|link| before.is_none_or(|before| before == link.prev));
        match link {
            Some(link) if is_good => {
                found.first.get_or_insert(link.head.seq);
                found.head = link.head;
                found.len += line.text.len() as u64 + 1;
                before = Some(link.head);
            }
            _ => found.goes_on |= checked != Err(LineError::Form),
        }
    }
    Ok(found)
}

/// Reads a file line by line. One that is longer than any of ours comes in pieces, none of which is
/// good.
pub(super) struct Lines {
    reader: BufReader<File>,
    line: Vec<u8>,
}

pub(super) struct RawLine<'a> {
    /// Without its line feed.
    pub(super) text: &'a [u8],
    /// It has one.
    pub(super) whole: bool,
}

impl RawLine<'_> {
    pub(super) fn check(&self) -> Result<Link, LineError> {
        if self.whole { line::check(self.text) } else { Err(LineError::Form) }
    }
}

impl Lines {
    pub(super) fn new(file: File) -> Self {
        Self { reader: BufReader::new(file), line: Vec::new() }
    }

    pub(super) fn next_line(&mut self) -> io::Result<Option<RawLine<'_>>> {
        self.line.clear();
        let most = limits::CLIENT_AUDIT_LINE_BYTES_MAX;
        self.reader.by_ref().take(most).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let whole = self.line.last() == Some(&b'\n');
        let text = if whole { &self.line[..self.line.len() - 1] } else { &self.line[..] };
        Ok(Some(RawLine { text, whole }))
    }
}
