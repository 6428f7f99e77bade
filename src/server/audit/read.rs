//! Reads the audit: the closed files by age, then the current one; only whole lines, each of them
//! one JSON object.

use std::{
    collections::VecDeque,
    fs::{self, File, Metadata},
    io::{self, BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::Deserialize;

use super::{AuditError, DIRECTORY, Series, entry};
use crate::{ids::UnixMs, limits};

/// Reads the audit of a data directory, whether a server runs on it or not: what was done since,
/// oldest first.
pub fn read_dir(data_dir: &Path, since: Option<UnixMs>) -> Result<Lines, AuditError> {
    Lines::open(&data_dir.join(DIRECTORY), since, [u64::MAX; Series::ALL.len()])
}

/// The lines of all series by time, without their ends. It blocks.
#[derive(Debug)]
pub struct Lines {
    /// Each with its next line, if that was looked at.
    series: Vec<(SeriesLines, Option<(UnixMs, String)>)>,
}

impl Lines {
    pub(super) fn open(
        path: &Path,
        since: Option<UnixMs>,
        last_seqs: [u64; Series::ALL.len()],
    ) -> Result<Self, AuditError> {
        let all = Series::ALL.into_iter().zip(last_seqs);
        let open = |(series, last)| Ok((SeriesLines::open(path, series, since, last)?, None));
        Ok(Self { series: all.map(open).collect::<Result<_, AuditError>>()? })
    }

    fn next_line(&mut self) -> Result<Option<String>, AuditError> {
        for (lines, next) in &mut self.series {
            if next.is_none() {
                *next = lines.next_line()?;
            }
        }
        let at = |next: &Option<(UnixMs, String)>| next.as_ref().map(|(at, _)| *at);
        let first = self.series.iter_mut().filter(|(_, next)| next.is_some());
        let first = first.min_by_key(|(_, next)| at(next));
        Ok(first.and_then(|(_, next)| next.take()).map(|(_, line)| line))
    }
}

/// The lines of a series.
#[derive(Debug)]
struct SeriesLines {
    closed: VecDeque<PathBuf>,
    current: Option<File>,
    reading: Option<RawLines>,
    since: Option<UnixMs>,
    /// The last line that is known to be on stable storage.
    last_seq: u64,
    /// What is no line of ours goes with the line before it.
    is_since: bool,
    at: UnixMs,
}

impl SeriesLines {
    fn open(
        path: &Path,
        series: Series,
        since: Option<UnixMs>,
        last_seq: u64,
    ) -> Result<Self, AuditError> {
        let failed = |source| AuditError::io("list", path, source);
        // First, so that what is closed meanwhile is not missed; it may then be in the list too.
        let current = found(File::open(path.join(series.current()))).map_err(failed)?;
        let current_id = match &current {
            Some(file) => Some(file_id(&file.metadata().map_err(failed)?)),
            None => None,
        };
        let mut closed = VecDeque::new();
        for (_, name) in closed_files(path, series).map_err(failed)? {
            let name = path.join(name);
            // Removed since: the oldest are.
            let Some(metadata) = found(fs::metadata(&name)).map_err(failed)? else { continue };
            if Some(file_id(&metadata)) == current_id {
                break;
            }
            if since.is_none_or(|since| last_written(&metadata) >= since) {
                closed.push_back(name);
            }
        }
        let (is_since, at) = (since.is_none(), UnixMs(0));
        Ok(Self { closed, current, reading: None, since, last_seq, is_since, at })
    }

    /// Returns a line, and its time.
    fn next_line(&mut self) -> Result<Option<(UnixMs, String)>, AuditError> {
        loop {
            let Some(reading) = &mut self.reading else {
                if !self.open_next()? {
                    return Ok(None);
                }
                continue;
            };
            let failed = |source| AuditError::io("read", Path::new(DIRECTORY), source);
            let Some((bytes, _)) = reading.next_line().map_err(failed)? else {
                self.reading = None;
                continue;
            };
            let head = Head::parse(bytes);
            if let Some(head) = &head {
                if head.seq > self.last_seq {
                    self.closed.clear();
                    (self.current, self.reading) = (None, None);
                    return Ok(None);
                }
                self.at = head.at;
                self.is_since = self.since.is_none_or(|since| head.at >= since);
            }
            if self.is_since {
                let text = String::from_utf8_lossy(bytes);
                let line = if head.is_some() { text.into_owned() } else { malformed(&text) };
                return Ok(Some((self.at, line)));
            }
        }
    }

    /// Returns whether there is another file.
    fn open_next(&mut self) -> Result<bool, AuditError> {
        while let Some(path) = self.closed.pop_front() {
            let opened = found(File::open(&path));
            if let Some(file) = opened.map_err(|source| AuditError::io("open", &path, source))? {
                self.reading = Some(RawLines::new(file));
                return Ok(true);
            }
        }
        self.reading = self.current.take().map(RawLines::new);
        Ok(self.reading.is_some())
    }
}

impl Iterator for Lines {
    type Item = Result<String, AuditError>;

    /// After an error it ends.
    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_line().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.series.clear();
        }
        next
    }
}

/// What a line begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) seq: u64,
    pub(super) at: UnixMs,
}

impl Head {
    /// Returns it if the line is whole.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line<'a> {
            seq: u64,
            time: &'a str,
        }
        let line: Line<'_> = serde_json::from_slice(line).ok()?;
        let since = humantime::parse_rfc3339(line.time).ok()?.duration_since(UNIX_EPOCH).ok()?;
        Some(Self { seq: line.seq, at: UnixMs(i64::try_from(since.as_millis()).ok()?) })
    }
}

/// The lines of a file that end; what is longer than a line can be comes in pieces.
#[derive(Debug)]
pub(super) struct RawLines {
    file: BufReader<File>,
    line: Vec<u8>,
    /// What has been read.
    at: u64,
}

impl RawLines {
    pub(super) fn new(file: File) -> Self {
        Self { file: BufReader::with_capacity(READ_BYTES, file), line: Vec::new(), at: 0 }
    }

    /// Returns a line without its end, and where the next one begins.
    pub(super) fn next_line(&mut self) -> io::Result<Option<(&[u8], u64)>> {
        self.line.clear();
        let most = limits::AUDIT_LINE_BYTES_MAX as u64;
        let read = (&mut self.file).take(most).read_until(b'\n', &mut self.line)?;
        self.at += read as u64;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if (read as u64) < most {
            // Torn, or still being written.
            return Ok(None);
        }
        Ok(Some((&self.line, self.at)))
    }
}

/// What is not as we wrote it is passed on as a text, so that every line is JSON.
fn malformed(text: &str) -> String {
    let mut line = String::new();
    entry::write_printable(&serde_json::json!({ "malformed": text }).to_string(), &mut line);
    line
}

/// Returns the closed files, by age.
pub(super) fn closed_files(path: &Path, series: Series) -> io::Result<Vec<(u64, String)>> {
    let mut closed = Vec::new();
    for entry in found(fs::read_dir(path))?.into_iter().flatten() {
        // A name that is not text is none of ours.
        if let Ok(name) = entry?.file_name().into_string()
            && let Some(seq) = series.closed_seq(&name)
        {
            closed.push((seq, name));
        }
    }
    closed.sort_unstable();
    Ok(closed)
}

pub(super) fn file_id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn last_written(metadata: &Metadata) -> UnixMs {
    UnixMs(metadata.mtime().saturating_mul(1000)).plus(limits::AUDIT_CLOCK_SLACK)
}

pub(super) fn found<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

const READ_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: i64 = 1_000_000_000_000;

    fn line(seq: u64, at: i64) -> String {
        format!(r#"{{"seq":{seq},"time":"{}"}}"#, UnixMs(at).rfc3339())
    }

    fn data_dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(DIRECTORY)).expect("made");
        for (name, text) in files {
            fs::write(dir.path().join(DIRECTORY).join(name), text).expect("written");
        }
        dir
    }

    fn read(dir: &tempfile::TempDir, since: Option<i64>) -> Vec<String> {
        let lines = read_dir(dir.path(), since.map(UnixMs)).expect("opened");
        lines.collect::<Result<_, _>>().expect("read")
    }

    #[test]
    fn files_come_by_age_and_only_whole_lines() {
        let [a, b, c] = [1, 9, 10].map(|seq| line(seq, OLD));
        let torn = format!("{c}\n{}", &line(11, OLD)[..20]);
        // By name, the second would be before the first.
        let dir = data_dir(&[
            ("audit-20260102T000000Z-1.jsonl", &format!("{a}\n")),
            ("audit-20260101T000000Z-9.jsonl", &format!("{b}\n")),
            ("audit.jsonl", &torn),
            ("audit-x.jsonl", "not ours\n"),
        ]);

        assert_eq!(read(&dir, None), [a, b, c]);
    }

    #[test]
    fn a_directory_without_an_audit_has_no_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(&dir, None), Vec::<String>::new());
    }

    #[test]
    fn only_what_was_done_since_is_read() {
        let lines = [line(1, OLD), line(2, OLD + 5000), line(3, OLD + 4999), line(4, OLD + 6000)];
        let dir = data_dir(&[
            ("audit-20010909T014640Z-1.jsonl", &format!("{}\n{}\n", lines[0], lines[1])),
            ("audit.jsonl", &format!("{}\n{}\n", lines[2], lines[3])),
        ]);

        assert_eq!(read(&dir, Some(OLD + 5000)), [lines[1].clone(), lines[3].clone()]);
        assert_eq!(read(&dir, Some(OLD)), lines);
    }

    #[test]
    fn a_file_that_was_closed_before_is_not_opened() {
        let name = "audit-20010909T014640Z-1.jsonl";
        let now = UnixMs::now();
        let text = format!("{}\n", line(1, now.0));
        let dir = data_dir(&[(name, &text)]);
        let file = File::open(dir.path().join(DIRECTORY).join(name)).expect("opened");

        file.set_modified(std::time::SystemTime::now() - 2 * limits::AUDIT_CLOCK_SLACK)
            .expect("set");
        assert_eq!(read(&dir, Some(now.0)), Vec::<String>::new());
        file.set_modified(std::time::SystemTime::now() - limits::AUDIT_CLOCK_SLACK / 2)
            .expect("set");
        assert_eq!(read(&dir, Some(now.0)).len(), 1);
    }

    #[test]
    fn what_is_no_line_of_ours_is_passed_on_as_text() {
        let good = [line(1, OLD), line(2, OLD + 1)];
        let huge = "x".repeat(limits::AUDIT_LINE_BYTES_MAX + 5);
        let bad = format!("{}\n\0\u{1b}[31m\u{202e}\n{huge}\n{}\n", good[0], good[1]);
        let dir = data_dir(&[("audit.jsonl", &bad)]);

        let lines = read(&dir, None);

        assert_eq!((&lines[0], &lines[4]), (&good[0], &good[1]));
        assert_eq!(lines[1], r#"{"malformed":"\u0000\u001b[31m\u202e"}"#);
        let piece = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            value["malformed"].as_str().expect("a text").len()
        };
        assert_eq!(piece(&lines[2]), limits::AUDIT_LINE_BYTES_MAX);
        assert_eq!(piece(&lines[3]), 5);
        // It goes with the line before it.
        assert_eq!(read(&dir, Some(OLD + 1)), [good[1].clone()]);
    }

    #[test]
    fn a_file_that_is_closed_while_it_is_read_comes_once() {
        let [a, b, c] = [1, 2, 3].map(|seq| line(seq, OLD));
        let dir = data_dir(&[
            ("audit-20010909T014640Z-1.jsonl", &format!("{a}\n")),
            ("audit.jsonl", &format!("{b}\n")),
        ]);
        let audit = dir.path().join(DIRECTORY);
        let mut lines = read_dir(dir.path(), None).expect("opened");

        fs::rename(audit.join("audit.jsonl"), audit.join("audit-20010909T014640Z-2.jsonl"))
            .expect("closed");
        fs::write(audit.join("audit.jsonl"), format!("{c}\n")).expect("begun");
        fs::remove_file(audit.join("audit-20010909T014640Z-1.jsonl")).expect("removed");

        assert_eq!(lines.next().expect("one").expect("read"), b);
        assert!(lines.next().is_none());
        assert_eq!(read(&dir, None), [b, c]);
        // Between the two looks of an opening it is in both.
        fs::hard_link(audit.join("audit.jsonl"), audit.join("audit-20010909T014640Z-3.jsonl"))
            .expect("linked");
        assert_eq!(read(&dir, None).len(), 2);
    }
}
