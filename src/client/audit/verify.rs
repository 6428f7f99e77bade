//! `fts-client audit verify`: whether the lines of the audit follow from each other, without a gap,
//! and lead to a head that the server was told. It takes no lock: the client may run meanwhile.

use std::{fmt, fs::File, io, path::Path};

use super::{
    line::{self, Event, LineError},
    log::{self, CURRENT, Lines},
};
use crate::{
    audit_head::AuditHead,
    client::state_dir::{StateDir, StateDirError},
    limits,
};

/// Why the audit cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the audit in {dir}")]
pub struct LookError {
    dir: String,
    source: io::Error,
}

/// What was found. Shown, it is some lines for people.
#[derive(Debug)]
pub struct Verified {
    /// The first line that is kept, and the last one.
    pub first: u64,
    pub head: AuditHead,
    /// Bytes after the last line. A crash leaves some; a client that runs may be writing them.
    pub torn_bytes: u64,
    /// What is wrong: the first of them, and how many there are.
    pub problems: Vec<String>,
    pub problems_count: usize,
}

/// Follows the audit of a client from its first line to its last one. With `told`, a head that the
/// server has, its line must be there and be that one.
pub fn verify(state_dir: &Path, told: Option<AuditHead>) -> Result<Verified, LookError> {
    let failed = |source| LookError { dir: state_dir.display().to_string(), source };
    let files = Files::open(state_dir)?;
    let mut walk = Walk { told, ..Walk::default() };
    for (name, file) in files.all {
        walk.file(&name, file).map_err(failed)?;
    }
    // That the client has ended before it could write a line of it is no reason to keep silent.
    for name in files.broken {
        if !walk.broken.contains(&name) {
            walk.problems.add(format!("{name}: lines that did not follow were put aside there"));
        }
    }
    Ok(walk.end())
}

/// The files of the audit, open.
pub(super) struct Files {
    /// Oldest first.
    pub(super) all: Vec<(String, File)>,
    /// The names of those that were put aside.
    broken: Vec<String>,
}

impl Files {
    pub(super) fn open(state_dir: &Path) -> Result<Self, LookError> {
        let failed = |source| LookError { dir: state_dir.display().to_string(), source };
        for _ in 0..limits::OPEN_TRIES_MAX {
            if let Some(files) = Self::look(state_dir).map_err(failed)? {
                return Ok(files);
            }
        }
        Err(failed(io::Error::other("its files change all the time")))
    }

    /// Returns `None`, if a file was closed meanwhile: then some of them are not what they were
    /// taken for.
    fn look(state_dir: &Path) -> io::Result<Option<Self>> {
        let state_dir = StateDir::look(state_dir).map_err(|err| match err {
            StateDirError::Io { source, .. } => source,
            err => io::Error::other(err),
        })?;
        let no_audit = || {
            let text = "there is none; is that the --state-dir of the client?";
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        let dir = log::look(&state_dir)?.ok_or_else(no_audit)?;
        let names = log::closed(&dir)?;
        let all = names.iter().map(String::as_str).chain([CURRENT]);
        let open = |name: &str| match log::open(&dir, name) {
            Ok(file) => Some(Ok((name.to_owned(), file))),
            // A crash may have come between the end of one and the begin of the next.
            Err(err) if name == CURRENT && err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => Some(Err(err)),
        };
        let all = all.filter_map(open).collect::<io::Result<Vec<_>>>();
        if log::closed(&dir)? != names {
            return Ok(None);
        }
        Ok(Some(Self { all: all?, broken: log::broken(&dir)? }))
    }
}

/// The first of them, and how many there are.
#[derive(Default)]
struct Problems {
    shown: Vec<String>,
    count: usize,
}

impl Problems {
    fn add(&mut self, text: String) {
        self.count += 1;
        if self.shown.len() < PROBLEMS_MAX {
            self.shown.push(text);
        }
    }

    /// Moves all of `others` here.
    fn take(&mut self, others: &mut Self) {
        let others = std::mem::take(others);
        self.count += others.count;
        let room = PROBLEMS_MAX - self.shown.len();
        self.shown.extend(others.shown.into_iter().take(room));
    }
}

/// What is at the end of a file, and is no line.
#[derive(Default)]
struct Rest {
    bytes: u64,
    problems: Problems,
}

#[derive(Default)]
struct Walk {
    told: Option<AuditHead>,
    first: Option<u64>,
    last: Option<AuditHead>,
    told_was_met: bool,
    /// Lines before that one were removed to make room, as later ones say.
    dropped_to: u64,
    /// Files that were put aside, as lines say.
    broken: Vec<String>,
    torn_bytes: u64,
    problems: Problems,
}

impl Walk {
    fn file(&mut self, name: &str, file: File) -> io::Result<()> {
        let mut lines = Lines::new(file);
        let (mut number, mut rest) = (0_u64, Rest::default());
        while let Some(line) = lines.next_line()? {
            number += 1;
            let checked = line.check();
            let problem = |what: &dyn fmt::Display| format!("{name}, line {number}: {what}");
            let link = match checked {
                Ok(link) => link,
                Err(err) => {
                    rest.bytes += line.text.len() as u64 + u64::from(line.whole);
                    rest.problems.add(problem(&err));
                    if err != LineError::Form {
                        self.problems.take(&mut rest.problems);
                    }
                    continue;
                }
            };
            self.problems.take(&mut std::mem::take(&mut rest).problems);
            if let Some(last) = self.last.filter(|last| *last != link.prev) {
                let (number, last) = (link.head.seq, last.seq);
                self.problems.add(problem(&format_args!(
                    "it has the number {number}, and does not follow from {last}"
                )));
            }
            self.hear(line.text);
            self.meet(link.head);
        }
        // As the client will see it at its next start.
        if name == CURRENT && rest.bytes <= limits::CLIENT_AUDIT_TORN_BYTES_MAX {
            self.torn_bytes = rest.bytes;
        } else {
            self.problems.take(&mut rest.problems);
        }
        Ok(())
    }

    /// Notes what a line says of the files.
    fn hear(&mut self, line: &[u8]) {
        let Some(line) = line::read(line) else { return };
        match line.event {
            Event::Broken { file } => {
                let seq = line.seq;
                self.problems.add(format!("line {seq}: the client found a file broken: {file}"));
                self.broken.push(file);
            }
            Event::Drop { next, .. } => self.dropped_to = self.dropped_to.max(next),
            _ => {}
        }
    }

    fn meet(&mut self, head: AuditHead) {
        self.first.get_or_insert(head.seq);
        self.last = Some(head);
        if let Some(told) = self.told.filter(|told| told.seq == head.seq) {
            self.told_was_met = true;
            if told != head {
                self.problems
                    .add(format!("line {} is not the one that the server was told of", told.seq));
            }
        }
    }

    fn end(mut self) -> Verified {
        let (first, head) = (self.first.unwrap_or(0), self.last.unwrap_or(AuditHead::NONE));
        if first > self.dropped_to.max(1) {
            self.problems.add(format!(
                "it begins at line {first}, and no line says that those before it had to make room"
            ));
        }
        if let Some(told) = self.told.filter(|told| !self.told_was_met && *told != AuditHead::NONE)
        {
            self.problems.add(if told.seq > head.seq {
                format!(
                    "it ends at line {}, and the server was told of line {}",
                    head.seq, told.seq
                )
            } else {
                format!("line {}, of which the server was told, is not there", told.seq)
            });
        }
        let Problems { shown: problems, count: problems_count } = self.problems;
        Verified { first, head, torn_bytes: self.torn_bytes, problems, problems_count }
    }
}

/// As many are shown.
const PROBLEMS_MAX: usize = 20;

impl Verified {
    pub fn is_whole(&self) -> bool {
        self.problems_count == 0
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "PROBLEM: {}", problem.escape_debug())?;
        }
        if self.problems_count > self.problems.len() {
            writeln!(f, "and {} more", self.problems_count - self.problems.len())?;
        }
        if self.torn_bytes > 0 {
            writeln!(
                f,
                "{} bytes follow the last line: the client is writing, or a crash left them",
                self.torn_bytes
            )?;
        }
        let verdict = if self.is_whole() { "whole" } else { "NOT WHOLE" };
        if self.head == AuditHead::NONE {
            return write!(f, "{verdict}: no line yet");
        }
        write!(f, "{verdict}: lines {} to {}; head {}", self.first, self.head.seq, self.head)
    }
}
