//! Where the tool's words go: data on standard output, everything else on standard error. Each has
//! a thread of its own that writes, so that a reader who is slow, or gone, never holds up the
//! reactor. Whatever is printed as text passes through [`clean`]: nothing that a peer says can
//! steer a terminal.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write},
    thread,
};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;

use super::error::Error;

/// Writes that wait for the thread; more wait with their writer.
const WRITES_WAITING_MAX: usize = 4;

/// Where a run of the tool writes.
pub struct Io {
    pub stdout: Box<dyn Write + Send>,
    pub stderr: Box<dyn Write + Send>,
    /// Whether a progress bar may be drawn on the process's standard error.
    pub stderr_is_terminal: bool,
}

impl Io {
    /// The standard streams of the process.
    pub fn of_process() -> Self {
        Self {
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }
}

/// The form of what is printed on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    /// One object per line.
    Json,
}

/// Both streams, and the form of the data.
pub(super) struct Output {
    stdout: Sink,
    stderr: Sink,
    pub(super) form: Form,
    pub(super) terminal: bool,
}

impl Output {
    pub(super) fn new(io: Io, form: Form) -> Self {
        Self {
            stdout: Sink::new(io.stdout),
            stderr: Sink::new(io.stderr),
            form,
            terminal: io.stderr_is_terminal,
        }
    }

    /// Prints a line of data.
    pub(super) async fn line(&self, text: &str) -> Result<(), Error> {
        self.bytes(Bytes::from(clean(text) + "\n")).await
    }

    /// Prints an object as one line of data.
    pub(super) async fn json<T: Serialize>(&self, value: &T) -> Result<(), Error> {
        let text = serde_json::to_string(value).expect("views have only string keys");
        self.bytes(Bytes::from(ascii(&text) + "\n")).await
    }

    /// Prints the bytes of a file, as they are.
    pub(super) async fn bytes(&self, bytes: Bytes) -> Result<(), Error> {
        self.stdout.write(bytes).await.map_err(|Closed| Error::OutputClosed)
    }

    /// Prints an aligned table as data.
    pub(super) async fn table<const N: usize>(
        &self,
        head: [&str; N],
        rows: Vec<[String; N]>,
    ) -> Result<(), Error> {
        for line in table(head, rows) {
            self.line(&line).await?;
        }
        Ok(())
    }

    /// Tells the person at the terminal something that is not data.
    pub(super) async fn note(&self, text: &str) {
        for line in text.lines() {
            // When nobody listens on standard error, there is nobody to tell that to.
            let _ = self.stderr.write(Bytes::from(clean(line) + "\n")).await;
        }
    }

    /// Waits until everything is written, tells how the run ended if it did not end well, and
    /// returns the exit code.
    pub(super) async fn end(self, outcome: Result<(), Error>) -> u8 {
        let Self { stdout, stderr, .. } = self;
        let (code, words) = verdict(outcome, stdout.close().await);
        for line in words.lines() {
            // When nobody listens on standard error, there is nobody to tell that to.
            let _ = stderr.write(Bytes::from(clean(line) + "\n")).await;
        }
        let _ = stderr.close().await;
        code
    }
}

/// A run is as good as its outcome and its output. That the reader of a pipe left needs no words.
fn verdict(outcome: Result<(), Error>, written: io::Result<()>) -> (u8, String) {
    match (outcome, written) {
        (Ok(()) | Err(Error::OutputClosed), Err(err)) => {
            let is_quiet = err.kind() == io::ErrorKind::BrokenPipe;
            let words = format!("fts: cannot write to standard output: {err}");
            (1, if is_quiet { String::new() } else { words })
        }
        (Ok(()), Ok(())) => (0, String::new()),
        (Err(err), _) => (err.exit_code(), format!("fts: {err}")),
    }
}

/// The writing thread is gone; its error is told when the sink is closed.
struct Closed;

struct Sink {
    writes: mpsc::Sender<Bytes>,
    thread: thread::JoinHandle<io::Result<()>>,
}

impl Sink {
    fn new(mut to: Box<dyn Write + Send>) -> Self {
        let (writes, mut waiting) = mpsc::channel::<Bytes>(WRITES_WAITING_MAX);
        let thread = thread::spawn(move || {
            while let Some(bytes) = waiting.blocking_recv() {
                to.write_all(&bytes)?;
                // What can be read should be: a line appears when it is told, not when a buffer is
                // full.
                if waiting.is_empty() {
                    to.flush()?;
                }
            }
            to.flush()
        });
        Self { writes, thread }
    }

    async fn write(&self, bytes: Bytes) -> Result<(), Closed> {
        self.writes.send(bytes).await.map_err(|_| Closed)
    }

    async fn close(self) -> io::Result<()> {
        let Self { writes, thread } = self;
        drop(writes);
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        joined
            .map_err(io::Error::other)?
            .unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))
    }
}

/// Returns `text` with everything written out that could move a cursor, colour a line, reorder it,
/// hide in it, or end it.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unprintable(c) {
            cleaned.extend(c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

/// C0, DEL, C1; marks of direction; separators of lines; what has no width.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Writes everything in a JSON text that is unprintable as `\u` and hexadecimal digits: outside of
/// strings there is none.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unprintable(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").expect("a string takes everything");
            }
        } else {
            text.push(c);
        }
    }
    text
}

/// Returns the lines of a table whose columns are aligned. The last column is not padded.
fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> Vec<String> {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows.into_iter().map(|row| row.map(|cell| clean(&cell))));
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(line, "{cell:<width$}  ").expect("a string takes everything");
        }
        line.trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[31m\r\n\u{7}\u{9b}2J\u{202e}txt\u{2066}\u{feff}\u{e0041}\u{7f}";

    #[test]
    fn no_text_can_steer_a_terminal() {
        let cleaned = clean(HOSTILE);
        assert!(!cleaned.chars().any(is_unprintable), "{cleaned:?}");
        assert_eq!(clean("/var/log/é 日本"), "/var/log/é 日本");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let json = serde_json::to_string(HOSTILE).expect("a string");
        let escaped = ascii(&json);
        assert!(!escaped.chars().any(is_unprintable), "{escaped}");
        assert_eq!(serde_json::from_str::<String>(&escaped).expect("still JSON"), HOSTILE);
    }

    #[test]
    fn columns_are_aligned_and_cells_stay_in_their_line() {
        let rows = vec![["a\nb".to_owned(), "1".to_owned()], ["c".to_owned(), String::new()]];
        assert_eq!(table(["ID", "N"], rows), ["ID    N", "a\\nb  1", "c"]);
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Prints until that fails, and returns the exit code and what was said about it.
    async fn prints_on(kind: io::ErrorKind) -> (u8, String) {
        let said = Written::default();
        let io = Io {
            stdout: Box::new(Broken(kind)),
            stderr: Box::new(said.clone()),
            stderr_is_terminal: false,
        };
        let output = Output::new(io, Form::Text);
        let failed = loop {
            if let Err(err) = output.line("x").await {
                break err;
            }
        };
        (output.end(Err(failed)).await, said.text())
    }

    #[tokio::test]
    async fn a_reader_who_left_is_no_news() {
        assert_eq!(prints_on(io::ErrorKind::BrokenPipe).await, (1, String::new()));
    }

    #[tokio::test]
    async fn a_full_disk_behind_standard_output_is_told() {
        let (code, said) = prints_on(io::ErrorKind::StorageFull).await;
        assert_eq!(code, 1);
        assert!(said.starts_with("fts: cannot write to standard output"), "{said}");
    }
}

/// A writer whose bytes a test can read.
#[cfg(test)]
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    bytes: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
    wrote: std::sync::Arc<tokio::sync::Notify>,
}

#[cfg(test)]
impl Written {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().expect("no writer panicked").clone()
    }

    /// Waits until `text` is there.
    #[cfg(feature = "server")] // Only runs against the fake server are waited for.
    pub(super) async fn says(&self, text: &str) {
        while !String::from_utf8_lossy(&self.bytes()).contains(text) {
            self.wrote.notified().await;
        }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.bytes()).expect("text")
    }
}

#[cfg(test)]
impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.lock().expect("no writer panicked").extend_from_slice(bytes);
        self.wrote.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
