//! Where a setting comes from: its flag, its `FTS_` variable, its short variable, the TOML file,
//! its default, in this order. Every problem is told at once, and none is passed over.

use std::{fmt, fs, io::Read as _, os::unix::fs::OpenOptionsExt as _, path::Path, time::Duration};

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;

use crate::rate::Rate;

/// The largest TOML file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// So many problems of one file are told; nobody reads on.
pub(crate) const FILE_PROBLEMS_MAX: usize = 32;

/// What is wrong with the configuration: everything that was found, one problem each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bad configuration")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigError {}

impl From<String> for ConfigError {
    fn from(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

/// A setting that holds, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As its flag, without the dashes.
    pub name: String,
    /// Masked, if it is secret.
    pub shown: String,
    /// A flag, a variable, a file, or `default`.
    pub origin: String,
}

/// Picks the value of each setting, and collects what is wrong.
#[derive(Debug, Default)]
pub struct Picker {
    problems: Vec<String>,
    settings: Vec<Setting>,
}

/// What else may say a setting, after the flag and its variables: where, and what.
pub type Layer = (String, Option<String>);

impl Picker {
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the first value that there is: `flag` (clap has already looked at the `FTS_`
    /// variable), the variable `short`, or `file`. A value that does not parse is a problem that
    /// names its source. Flag and `FTS_` variable have the same name, and only the value tells
    /// which it was.
    pub fn pick<T>(
        &mut self,
        flag: (&str, Option<String>),
        short: Option<&str>,
        file: Option<String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let layers = [(in_file(flag.0), file)];
        self.pick_shown(flag, short, layers, parse, |text| format!("{text:?}"))
    }

    /// As [`Self::pick`], from as many files as there are layers, and shown as `show` has it:
    /// wherever a value may be secret.
    pub fn pick_shown<T>(
        &mut self,
        flag: (&str, Option<String>),
        short: Option<&str>,
        layers: impl IntoIterator<Item = Layer>,
        parse: impl Fn(&str) -> Result<T, String>,
        show: impl Fn(&str) -> String,
    ) -> Option<T> {
        let (name, value) = flag;
        let from_flag = value.map(|text| (flag_or_variable(name, &text, variable), text));
        let from_short = || Some((short?.to_owned(), variable(short?)?));
        let mut layers = layers.into_iter();
        let from_layer = || layers.find_map(|(origin, text)| Some((origin, text?)));
        let (origin, text) = from_flag.or_else(from_short).or_else(from_layer)?;
        let shown = show(&text);
        self.note(name, shown.clone(), origin.clone());
        let parsed = parse(&text);
        parsed.map_err(|problem| self.problem(format!("{origin}: {shown}: {problem}"))).ok()
    }

    /// Notes what holds for `name`, unless that is known.
    pub fn note(&mut self, name: &str, shown: impl Into<String>, origin: impl Into<String>) {
        if !self.settings.iter().any(|setting| setting.name == name) {
            let (shown, origin) = (shown.into(), origin.into());
            self.settings.push(Setting { name: name.to_owned(), shown, origin });
        }
    }

    /// Returns what has been picked and noted, in order.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Notes a problem.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// Takes what is wrong with another part of the configuration.
    pub fn take<T: Default>(&mut self, part: Result<T, ConfigError>) -> T {
        part.unwrap_or_else(|err| {
            self.problems.extend(err.problems);
            T::default()
        })
    }

    /// Returns `value`, if there was no problem.
    pub fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(ConfigError { problems: self.problems })
        }
    }
}

/// Returns where a file says the setting `name`.
pub fn in_file(name: &str) -> String {
    format!("'{}' in the file", name.replace('-', "_"))
}

/// Returns what `text` was given as: `--name`, or the variable `FTS_NAME` if that has this value.
fn flag_or_variable(name: &str, text: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let its_variable = format!("FTS_{}", name.replace('-', "_").to_ascii_uppercase());
    if variable(&its_variable).as_deref() == Some(text) {
        its_variable
    } else {
        format!("--{name}")
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Reads the TOML file at `path`; nothing, if there is no path. Unknown keys are errors with their
/// line.
pub fn read_file<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigError> {
    let Some(path) = path else { return Ok(T::default()) };
    read_toml(path, &format!("--config {}", path.display()))
}

/// Reads the TOML file at `path`, which problems call `name`.
pub fn read_toml<T: DeserializeOwned>(path: &Path, name: &str) -> Result<T, ConfigError> {
    let problem = |what: String| ConfigError::from(format!("{name}: {what}"));
    let text = read_regular(path).map_err(problem)?;
    parse_toml(&text).map_err(|problems| {
        let problems = problems.into_iter();
        let named = problems.map(|(line, what)| format!("{name}: line {line}: {what}"));
        ConfigError { problems: named.collect() }
    })
}

/// Reads a file that is one: opening a pipe could wait for ever, and a device has no end.
pub(crate) fn read_regular(path: &Path) -> Result<String, String> {
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag of open(2)");
    let file = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(path);
    let file = file.map_err(|err| err.to_string())?;
    if !file.metadata().map_err(|err| err.to_string())?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    let size = read.map_err(|err| err.to_string())? as u64;
    if size > FILE_BYTES_MAX {
        return Err(format!("more than {FILE_BYTES_MAX} bytes are too many for a configuration"));
    }
    Ok(text)
}

/// Parses `text`, or returns everything that is wrong with it, by line. The parser stops at the
/// first error: so what is wrong is blanked out, and the rest is parsed again.
pub fn parse_toml<T: DeserializeOwned>(text: &str) -> Result<T, Vec<(usize, String)>> {
    let mut lines: Vec<&str> = text.split('\n').collect();
    let mut problems: Vec<(usize, String)> = Vec::new();
    while problems.len() < FILE_PROBLEMS_MAX {
        let left = lines.join("\n");
        let err = match toml::from_str(&left) {
            Ok(value) if problems.is_empty() => return Ok(value),
            Ok(_) => break,
            Err(err) => err,
        };
        let span = err.span().unwrap_or(0..0);
        let line_of = |at: usize| left[..left.floor_char_boundary(at)].matches('\n').count();
        let (first, last) = (line_of(span.start), line_of(span.end.max(span.start)));
        let is_toml = toml::from_str::<toml::Table>(&left).is_ok();
        let is_told = problems.iter().any(|(line, _)| *line == first + 1);
        // What is no TOML after a line was taken out of it may be no fault of the file.
        if is_told || (!is_toml && !problems.is_empty()) {
            break;
        }
        problems.push((first + 1, err.message().to_owned()));
        if !is_toml {
            break;
        }
        blank(&mut lines, first, last);
    }
    problems.sort();
    Err(problems)
}

/// Empties the lines from `first` to `last`; with the head of a table, the table.
fn blank(lines: &mut [&str], first: usize, last: usize) {
    let is_head = |line: &str| line.trim_start().starts_with('[');
    let mut end = last + 1;
    if is_head(lines[first]) {
        while lines.get(end).is_some_and(|line| !is_head(line)) {
            end += 1;
        }
    }
    let end = end.min(lines.len());
    lines[first..end].fill("");
}

/// Parses a size in bytes: `1048576`, `100MB`, `1GiB`.
pub fn size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| "not a size; write it like 500MB or 1GiB".to_owned())
}

/// Parses a cap: `5MB/s`, `500KB`; none for `off`.
pub fn rate(text: &str) -> Result<Option<Rate>, String> {
    Rate::parse(text).map_err(|err| err.to_string())
}

/// Parses a duration: `30s`, `5m`, `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "not a duration; write it like 30s or 7d".to_owned())
}

/// Parses a yes or no.
pub fn flag(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err("neither true nor false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct File {
        listen: Option<String>,
        port: Option<u16>,
        allow: Option<Vec<String>>,
    }

    #[test]
    fn every_problem_of_the_file_is_told_with_its_line() {
        let lines = |text: &str| {
            let problems = parse_toml::<File>(text).expect_err("refused");
            problems.into_iter().map(|(line, _)| line).collect::<Vec<_>>()
        };
        assert_eq!(lines("lisen = 1\nlisten = 2\nport = 70000\nallow = \"x\"\n"), [1, 2, 3, 4]);
        assert_eq!(lines("allow = [\n  \"a\",\n  1,\n]\nport = \"x\"\n"), [3, 5]);
        assert_eq!(lines("port = \"x\"\n[tls]\nkey = 1\n[more]\n"), [1, 2, 4]);
        assert_eq!(lines("\"é\" = 1\nlisten = \"é\"\nport = 'é'"), [1, 3]);
        // No line is wrong by itself: the syntax is told, and nothing that may follow from it.
        assert_eq!(lines("lisen = 1\nlisten = \n"), [2]);
        assert_eq!(lines("foo = [\n1\n]\n"), [1]);
        assert_eq!(lines(&"x = [".repeat(9)).len(), 1);
    }

    #[test]
    fn a_bad_value_names_the_variable_that_it_came_from() {
        let variable = |name: &str| (name == "FTS_LOG_FORMAT").then(|| "xml".to_owned());
        assert_eq!(flag_or_variable("log-format", "xml", variable), "FTS_LOG_FORMAT");
        assert_eq!(flag_or_variable("log-format", "yml", variable), "--log-format");
        assert_eq!(flag_or_variable("server", "xml", variable), "--server");
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fts.toml");
        fs::write(&path, "listen = \"x\"\n\nlisen = \"y\"\n").expect("written");
        let err = read_file::<File>(Some(&path)).expect_err("refused");
        assert!(err.problems[0].contains("line 3"), "{err}");
        assert!(err.problems[0].contains("lisen"), "{err}");
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let mut picker = Picker::new();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(picker.pick(("size", some("1 potato")), None, None, size), None);
        assert_eq!(picker.pick(("keep", None), None, some("soon"), duration), None);
        assert_eq!(
            picker.pick(("good", some("5m")), None, some("bad"), duration),
            Some(Duration::from_secs(300))
        );
        let err = picker.finish(()).expect_err("two problems");
        assert_eq!(err.problems.len(), 2);
        assert!(err.problems[0].starts_with("--size"));
        assert!(err.problems[1].starts_with("'keep' in the file"));
    }

    #[test]
    fn each_setting_is_known_with_where_it_came_from_and_no_secret() {
        let mut picker = Picker::new();
        let some = |text: &str| Some(text.to_owned());
        picker.pick(("size", some("1MB")), None, some("2MB"), size);
        picker.pick(("max-rate", None), None, some("5MB/s"), rate);
        let layers = [("one".to_owned(), None), ("two".to_owned(), some("hunter2"))];
        let hide = |_: &str| "…".to_owned();
        picker.pick_shown(("proxy", None), None, layers, |_| Ok(()), hide);
        let layers = [("two".to_owned(), some("hunter2"))];
        picker.pick_shown(("bad", None), None, layers, size, hide);
        picker.note("size", "9", "default");
        picker.note("keep", "7d", "default");

        let known: Vec<_> = picker.settings().iter().collect();
        let text: Vec<_> =
            known.iter().map(|s| format!("{} {} {}", s.name, s.shown, s.origin)).collect();
        let expected = [
            "size \"1MB\" --size",
            "max-rate \"5MB/s\" 'max_rate' in the file",
            "proxy … two",
            "bad … two",
            "keep 7d default",
        ];
        assert_eq!(text, expected);
        let err = picker.finish(()).expect_err("bad").to_string();
        assert!(err.contains("two") && !err.contains("hunter2"), "{err}");
    }
}
