//! Reads a TOML table key by key: each wrong key is a problem of its own, with its line, and hides no
//! other.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::settings;

/// What is wrong with a file. Shown in the order of its lines.
#[derive(Debug)]
pub(super) struct Problems<'t> {
    text: &'t str,
    all: Vec<(usize, String)>,
}

impl<'t> Problems<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        Self { text, all: Vec::new() }
    }

    /// Notes a problem with what is at byte `at`.
    pub(super) fn add(&mut self, at: usize, what: String) {
        let line = 1 + self.text[..self.text.floor_char_boundary(at)].matches('\n').count();
        self.all.push((line, what));
    }

    /// Returns what there is to say, by line: the first of them, and how many more there are.
    pub(super) fn told(mut self) -> Vec<String> {
        self.all.sort_by_key(|(line, _)| *line);
        let more = self.all.len().saturating_sub(settings::FILE_PROBLEMS_MAX);
        self.all.truncate(settings::FILE_PROBLEMS_MAX);
        let told = self.all.into_iter().map(|(line, what)| format!("line {line}: {what}"));
        told.chain((more > 0).then(|| format!("and {more} more"))).collect()
    }
}

/// A table that is being read.
#[derive(Debug)]
pub(super) struct Keys<'p, 't> {
    problems: &'p mut Problems<'t>,
    /// What a problem with it begins with; empty for the file itself.
    title: String,
    /// Where it begins.
    pub(super) at: usize,
    left: BTreeMap<String, (Range<usize>, Spanned<DeValue<'t>>)>,
}

impl<'p, 't> Keys<'p, 't> {
    pub(super) fn new(
        problems: &'p mut Problems<'t>,
        title: String,
        table: Spanned<DeTable<'t>>,
    ) -> Self {
        let at = table.span().start;
        let left = table.into_inner().into_iter();
        let left = left.map(|(key, value)| {
            let span = key.span();
            (key.into_inner().into_owned(), (span, value))
        });
        Self { problems, title, at, left: left.collect() }
    }

    /// Reads the name of what the table stands for, which its other problems tell from now on.
    pub(super) fn name(&mut self, check: fn(&str) -> Result<(), String>) -> Option<String> {
        let at = self.left.get("name").map_or(self.at, |(at, _)| at.start);
        let name = self.need("name", |value| text(value).map(ToOwned::to_owned))?;
        self.title = format!("{} ({name:?})", self.title);
        if let Err(what) = check(&name) {
            self.wrong(at, &format!("name: {what}"));
        }
        Some(name)
    }

    /// Returns what `read` makes of the value of a key, or notes what is wrong with it; `None` too
    /// if there is no such key.
    pub(super) fn take<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<T> {
        let (at, value) = self.left.remove(key)?;
        let result = read(value.get_ref());
        result.map_err(|what| self.wrong(at.start, &format!("{key}: {what}"))).ok()
    }

    /// As [`Self::take`], of a key that has to be there.
    pub(super) fn need<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<T> {
        if !self.left.contains_key(key) {
            self.wrong(self.at, &format!("there is no {key}"));
        }
        self.take(key, read)
    }

    /// Returns what `read` makes of each text of a list, and notes what is wrong with the others.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some((at, value)) = self.left.remove(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong(
                at.start,
                &format!("{key}: {}", no_such(value.get_ref(), "a list of texts")),
            );
            return Vec::new();
        };
        let mut good = Vec::new();
        for item in items {
            match text(item.get_ref()).and_then(&read) {
                Ok(item) => good.push(item),
                Err(what) => self.wrong(item.span().start, &format!("{key}: {what}")),
            }
        }
        good
    }

    /// Takes the tables of `[[key]]`, in their order.
    pub(super) fn tables(&mut self, key: &str) -> Vec<Spanned<DeTable<'t>>> {
        let Some((at, value)) = self.left.remove(key) else { return Vec::new() };
        let DeValue::Array(items) = value.into_inner() else {
            self.wrong(at.start, &format!("{key} is written [[{key}]]"));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => tables.push(Spanned::new(span, table)),
                other => self.wrong(span.start, &format!("{key}: {}", no_such(&other, "a table"))),
            }
        }
        tables
    }

    /// Notes a problem with what is at byte `at`.
    pub(super) fn wrong(&mut self, at: usize, what: &str) {
        let what =
            if self.title.is_empty() { what.to_owned() } else { format!("{}: {what}", self.title) };
        self.problems.add(at, what);
    }

    /// Notes the keys that nobody took.
    pub(super) fn end(mut self) {
        for (key, (at, _)) in std::mem::take(&mut self.left) {
            self.wrong(at.start, &format!("there is no such key: {key:?}"));
        }
    }
}

/// Reads a text, and of it what `parse` makes.
pub(super) fn parsed<'v, T>(
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> impl FnOnce(&DeValue<'v>) -> Result<T, String> {
    |value| parse(text(value)?)
}

/// Reads a text.
fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, String> {
    value.as_str().ok_or_else(|| no_such(value, "a text"))
}

/// Reads true or false.
pub(super) fn flag(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| no_such(value, "true or false"))
}

fn no_such(value: &DeValue<'_>, what: &str) -> String {
    format!("not {what}, but of type {}", value.type_str())
}
