//! `joined.toml`: what `fts-client join` was told, for the starts that come after it. It holds no
//! secret.

use std::{
    fmt::Write as _,
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{
    config::Surroundings,
    identity::{IdentityError, write_private},
};
use crate::settings::{self, ConfigError};

pub(super) const NAME: &str = "joined.toml";

#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Joined {
    pub(super) server: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) allow: Option<Vec<String>>,
    pub(super) policy: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) proxy: Option<String>,
    /// If it is not the default one.
    pub(super) state_dir: Option<String>,
}

/// Returns where it is, if this user has a place for such files.
pub(super) fn path(around: &Surroundings) -> Option<PathBuf> {
    Some(around.own_state()?.join(NAME))
}

/// Reads it; nothing, if it is not there.
pub(super) fn read(path: Option<&Path>) -> Result<Joined, ConfigError> {
    match path {
        Some(path) if path.symlink_metadata().is_ok() => {
            settings::read_toml(path, &path.display().to_string())
        }
        _ => Ok(Joined::default()),
    }
}

impl Joined {
    pub(super) fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let mut text = "# Written by fts-client join.\n".to_owned();
        let texts = [
            ("server", &self.server),
            ("client_id", &self.client_id),
            ("policy", &self.policy),
            ("ca", &self.ca),
            ("proxy", &self.proxy),
            ("state_dir", &self.state_dir),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                writeln!(text, "{name} = {}", quoted(value)).expect("a string takes text");
            }
        }
        if let Some(allow) = &self.allow {
            let allow: Vec<_> = allow.iter().map(|each| quoted(each)).collect();
            writeln!(text, "allow = [{}]", allow.join(", ")).expect("a string takes text");
        }
        if let Some(dir) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(|source| IdentityError::Write { path: dir.to_owned(), source })?;
        }
        write_private(path, &text)
    }
}

/// Quotes a text for TOML.
fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                write!(quoted, "\\U{:08x}", u32::from(c)).expect("a string takes text");
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn what_was_written_reads_back_and_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/fts-client").join(NAME);
        let some = |text: &str| Some(text.to_owned());
        let joined = Joined {
            policy: Some("/etc/fts \"p\".toml".to_owned()),
            server: some("https://h:1"),
            client_id: some("web-1"),
            allow: Some(vec!["/a \"b\"\\c".into(), "/tab\t\u{7f}\n=é".into()]),
            ca: some("/etc/ca.pem"),
            proxy: None,
            state_dir: some(""),
        };
        assert_eq!(read(Some(&path)).expect("nothing"), Joined::default());
        joined.write(&path).expect("written");
        assert_eq!(read(Some(&path)).expect("there"), joined);
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
