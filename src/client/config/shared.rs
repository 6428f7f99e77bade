//! Which files may be read: from flags, variable, files, or the demo file.

use std::path::{Path, PathBuf};

use super::{DEFAULT, DEMO_FILE, Layers, Shared, Surroundings, directory, shown};
use crate::{
    client::policy::Policy,
    ids::RemotePath,
    limits,
    server_url::ServerUrl,
    settings::{self, Picker},
};

/// Picks the policy: a file, or the list of `--allow`. A list replaces the one that it wins over:
/// what is typed can only be narrower than expected. Returns the policy's file too, if it has one.
pub(super) fn shared(
    picker: &mut Picker,
    server: &ServerUrl,
    said: Said<'_>,
    layers: &Layers<'_>,
    around: &Surroundings,
) -> Option<(Shared, Option<PathBuf>)> {
    let from = [(settings::in_file("policy"), layers.file.policy.clone())];
    let flag = ("policy", said.policy);
    let file = picker.pick_shown(flag, None, from, directory, shown);
    let list = listed(said.allow, layers, around);
    match (file, list) {
        (Some(_), Some(list)) => {
            let origin = list.origin;
            picker.problem(format!("{origin} and a policy file: one of them says what is shared"));
            None
        }
        (Some(path), None) => from_file(picker, path),
        (None, Some(list)) => Some((from_list(picker, list), None)),
        (None, None) => match (&layers.joined.policy, &layers.joined.allow) {
            (Some(path), _) => {
                picker.note("policy", format!("{path:?}"), layers.origin("policy"));
                from_file(picker, path.into())
            }
            (None, Some(texts)) if !texts.is_empty() => {
                let (texts, origin) = (texts.clone(), layers.origin("allow"));
                Some((from_list(picker, Listed { origin, texts, is_typed: false }), None))
            }
            _ => demo_file(picker, server, around).map(|shared| (shared, None)),
        },
    }
}

/// What the command line says of what may be read.
pub(super) struct Said<'a> {
    pub(super) allow: &'a [String],
    pub(super) policy: Option<String>,
}

/// A list of roots, and where it was said.
struct Listed {
    origin: String,
    texts: Vec<String>,
    /// Where the client was started: a name may be relative.
    is_typed: bool,
}

fn listed(flags: &[String], layers: &Layers<'_>, around: &Surroundings) -> Option<Listed> {
    let variable = around.allow.as_deref().filter(|list| !list.is_empty());
    let (origin, texts) = if !flags.is_empty() {
        ("--allow".to_owned(), flags.to_vec())
    } else if let Some(list) = variable {
        ("FTS_ALLOW".to_owned(), list.split(':').map(str::to_owned).collect())
    } else {
        (settings::in_file("allow"), layers.file.allow.clone().unwrap_or_default())
    };
    (!texts.is_empty()).then_some(Listed { origin, texts, is_typed: !flags.is_empty() })
}

fn from_list(picker: &mut Picker, list: Listed) -> Shared {
    let Listed { origin, texts, is_typed } = list;
    let here = |text: &str| {
        let path = directory(text)?;
        root(&path.to_string_lossy())
    };
    if texts.len() > limits::ALLOWED_ROOTS_MAX {
        picker.problem(format!("--allow: at most {}", limits::ALLOWED_ROOTS_MAX));
    }
    let mut good = Vec::with_capacity(texts.len());
    for text in &texts {
        match if is_typed { here(text) } else { root(text) } {
            Ok(root) => good.push(root),
            Err(err) => picker.problem(format!("{origin}: {text:?}: {err}")),
        }
    }
    picker.note("allow", format!("{texts:?}"), origin);
    Shared::Policy(Policy::of_roots(good))
}

fn from_file(picker: &mut Picker, path: PathBuf) -> Option<(Shared, Option<PathBuf>)> {
    match Policy::read(&path) {
        Ok(policy) => Some((Shared::Policy(policy), Some(path))),
        Err(problems) => {
            for problem in problems {
                picker.problem(format!("{}: {problem}", path.display()));
            }
            None
        }
    }
}

pub(super) fn root(text: &str) -> Result<RemotePath, String> {
    text.parse().map_err(|err: crate::ids::IdError| err.to_string())
}

fn demo_file(picker: &mut Picker, server: &ServerUrl, around: &Surroundings) -> Option<Shared> {
    if !server.is_loopback() {
        picker.problem(format!(
            "the server {server} is not on this machine: say which files of this one it may ask \
             for, with --allow DIR (or FTS_ALLOW, or 'allow' in the file)"
        ));
        return None;
    }
    let home = around.home.as_deref().and_then(Path::to_str);
    picker.note("allow", format!("$HOME/{DEMO_FILE}, the demo file"), DEFAULT);
    let path = home.map(|home| format!("{}/{DEMO_FILE}", home.trim_end_matches('/')));
    let path = path.and_then(|path| path.parse().ok());
    if path.is_none() {
        picker.problem("HOME names no place for the demo file: give --allow DIR");
    }
    Some(Shared::DemoFile { path: path?, size: limits::DEMO_FILE_BYTES })
}
