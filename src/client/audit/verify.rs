//! `fts-client audit verify`: whether the lines of the audit follow from each other, without a gap,
//! and lead to a head that the server was told. It takes no lock: the client may run meanwhile.

use std::{fmt, fs::File, io, path::Path};

use super::{
    line::{self, Event},
    log::{self, CURRENT, Lines},
};
use crate::{audit_head::AuditHead, client::state_dir::StateDir, limits};

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
    let files = files(state_dir)?;
    let mut walk = Walk::new(told);
    for (name, file) in files {
        walk.file(&name, file).map_err(failed)?;
    }
    Ok(walk.end())
}

/// Opens the files of the audit, oldest first.
pub(super) fn files(state_dir: &Path) -> Result<Vec<(String, File)>, LookError> {
    let failed = |source| LookError { dir: state_dir.display().to_string(), source };
    let look = || -> io::Result<Option<Vec<(String, File)>>> {
        let state_dir = StateDir::look(state_dir).map_err(io::Error::other)?;
        let no_audit = || io::Error::new(io::ErrorKind::NotFound, "there is none");
        let dir = log::look(&state_dir)?.ok_or_else(no_audit)?;
        let names = log::closed(&dir)?;
        let all = names.iter().map(String::as_str).chain([CURRENT]);
        let open = |name: &str| match log::open(&dir, name) {
            Ok(file) => Some(Ok((name.to_owned(), file))),
            // A crash may have come between the end of one and the begin of the next.
            Err(err) if name == CURRENT && err.kind() == io::ErrorKind::NotFound => None,
            Err(err) => Some(Err(err)),
        };
        let files = all.filter_map(open).collect::<io::Result<Vec<_>>>();
        // If a file was closed meanwhile, some of these are not what they were taken for.
        if log::closed(&dir)? == names { files.map(Some) } else { Ok(None) }
    };
    for _ in 0..limits::OPEN_TRIES_MAX {
        match look() {
            Ok(Some(files)) => return Ok(files),
            Ok(None) => {}
            Err(err) => return Err(failed(err)),
        }
    }
    Err(failed(io::Error::other("its files change all the time")))
}

struct Walk {
    told: Option<AuditHead>,
    first: Option<u64>,
    last: Option<AuditHead>,
    told_was_met: bool,
    torn_bytes: u64,
    problems: Vec<String>,
    count: usize,
}

impl Walk {
    fn new(told: Option<AuditHead>) -> Self {
        let told_was_met = false;
        let (first, last, torn_bytes, count) = (None, None, 0, 0);
        Self { told, first, last, told_was_met, torn_bytes, problems: Vec::new(), count }
    }

    fn file(&mut self, name: &str, file: File) -> io::Result<()> {
        let mut lines = Lines::new(file);
        let mut number = 0_u64;
        while let Some(line) = lines.next_line()? {
            number += 1;
            if !line.whole && name == CURRENT {
                self.torn_bytes += line.text.len() as u64;
                continue;
            }
            let link = match line.check() {
                Ok(link) => link,
                Err(err) => {
                    self.problem(format!("{name}, line {number}: {err}"));
                    continue;
                }
            };
            if let Some(last) = self.last.filter(|last| *last != link.prev) {
                self.problem(format!(
                    "{name}, line {number}: it has the number {}, and does not follow from {}",
                    link.head.seq, last.seq
                ));
            }
            if let Some(line) = line::read(line.text)
                && let Event::Broken { file } = line.event
            {
                self.problem(format!("line {}: the client found a file broken: {file}", line.seq));
            }
            self.meet(link.head);
        }
        Ok(())
    }

    fn meet(&mut self, head: AuditHead) {
        self.first.get_or_insert(head.seq);
        self.last = Some(head);
        if let Some(told) = self.told.filter(|told| told.seq == head.seq) {
            self.told_was_met = true;
            if told != head {
                self.problem(format!(
                    "line {} is not the one that the server was told of",
                    told.seq
                ));
            }
        }
    }

    fn problem(&mut self, text: String) {
        self.count += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }

    fn end(mut self) -> Verified {
        let (first, head) = (self.first.unwrap_or(0), self.last.unwrap_or(AuditHead::NONE));
        if let Some(told) = self.told.filter(|told| !self.told_was_met && *told != AuditHead::NONE)
        {
            self.problem(if told.seq > head.seq {
                format!(
                    "it ends at line {}, and the server was told of line {}",
                    head.seq, told.seq
                )
            } else {
                format!("line {}, of which the server was told, is not there", told.seq)
            });
        }
        Verified {
            first,
            head,
            torn_bytes: self.torn_bytes,
            problems: self.problems,
            problems_count: self.count,
        }
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
