//! Which files may be read: from flags, variable, files, or the demo file.

use std::path::Path;

use super::{DEFAULT, DEMO_FILE, Layers, Shared, Surroundings, directory};
use crate::{
    ids::RemotePath,
    limits,
    server_url::ServerUrl,
    settings::{self, Picker},
};

/// Picks the policy. A list replaces the one that it wins over: what is typed can only be narrower
/// than expected.
pub(super) fn shared(
    picker: &mut Picker,
    server: &ServerUrl,
    flags: &[String],
    layers: &Layers<'_>,
    around: &Surroundings,
) -> Option<Shared> {
    let here = |text: &str| {
        let path = directory(text)?;
        root(&path.to_string_lossy())
    };
    let variable = around.allow.as_deref().filter(|list| !list.is_empty());
    let (origin, texts) = if !flags.is_empty() {
        ("--allow".to_owned(), flags.to_vec())
    } else if let Some(list) = variable {
        ("FTS_ALLOW".to_owned(), list.split(':').map(str::to_owned).collect())
    } else if let Some(list) = &layers.file.allow {
        (settings::in_file("allow"), list.clone())
    } else {
        (layers.origin("allow"), layers.joined.allow.clone().unwrap_or_default())
    };
    let parse = |text: &String| if flags.is_empty() { root(text) } else { here(text) };
    let roots: Vec<_> = texts.iter().map(|text| (text, parse(text))).collect();
    if roots.len() > limits::ALLOWED_ROOTS_MAX {
        picker.problem(format!("--allow: at most {}", limits::ALLOWED_ROOTS_MAX));
    }
    if roots.is_empty() {
        return demo_file(picker, server, around);
    }
    let mut good = Vec::with_capacity(roots.len());
    for (text, root) in roots {
        match root {
            Ok(root) => good.push(root),
            Err(err) => picker.problem(format!("{origin}: {text:?}: {err}")),
        }
    }
    picker.note("allow", format!("{texts:?}"), origin);
    Some(Shared::Roots(good))
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
