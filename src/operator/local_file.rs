//! A file on the operator's own disk: written under another name beside it, and under its own only
//! once it is whole. Everything here blocks.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, CWD, RenameFlags, access, renameat_with},
    io::Errno,
};
use uuid::Uuid;

use super::error::Error;

/// Where a copy shall be.
#[derive(Debug, Clone)]
pub(super) struct Target {
    path: PathBuf,
    dir: PathBuf,
    may_replace: bool,
}

impl Target {
    /// Looks whether a file can be written at `local`, or beneath it as `name` if it is a
    /// directory, so that nothing is asked for in vain. `name` comes from the operator, never from
    /// a peer.
    pub(super) fn plan(local: &Path, name: Option<&str>, force: bool) -> Result<Self, Error> {
        let path = if local.is_dir() {
            let usage = || {
                Error::Usage(format!(
                    "{} is a directory, and nothing here says what the file shall be called in \
                     it: name a file",
                    local.display()
                ))
            };
            local.join(name.ok_or_else(usage)?)
        } else if local.as_os_str().as_bytes().ends_with(b"/") {
            return Err(Error::Usage(format!("{} is not a directory", local.display())));
        } else {
            local.to_owned()
        };
        may_be_written(&path, force)?;
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        access(&dir, Access::WRITE_OK | Access::EXEC_OK)
            .map_err(|err| failed("cannot write in", &dir, &err.into()))?;
        Ok(Self { path, dir, may_replace: force })
    }

    /// Creates the file beside its place. No one else may read it until it is whole.
    pub(super) fn create(self) -> Result<Partial, Error> {
        let temp = self.dir.join(format!(".fts-{}.part", Uuid::new_v4()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temp)
            .map_err(|err| failed("cannot create a file in", &self.dir, &err))?;
        Ok(Partial { file, temp: Some(temp), target: self })
    }
}

/// What is there is replaced only on demand, and only if it is a file: a device is not meant to be.
fn may_be_written(path: &Path, force: bool) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(failed("cannot write", path, &err)),
        Ok(_) if !force => Err(Error::Failed(format!(
            "{} exists; nothing was asked for. --force replaces it",
            path.display()
        ))),
        Ok(_) if path.is_file() => Ok(()),
        Ok(_) => Err(Error::Failed(format!("{} is not a regular file", path.display()))),
    }
}

/// A file that is not whole yet. Dropped before it is, it is removed.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    temp: Option<PathBuf>,
    target: Target,
}

impl Partial {
    /// Adds bytes at the end.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(bytes);
        written.map_err(|err| failed("cannot write", &self.target.path, &err))
    }

    /// Gives the whole file its name, on stable storage. It stays private: who may read it at its
    /// source is not known here, and perhaps only root may.
    pub(super) fn publish(mut self) -> Result<PathBuf, Error> {
        let temp = self.temp.as_ref().expect("it is published once");
        let Target { path, dir, may_replace } = &self.target;
        self.file
            .set_permissions(fs::Permissions::from_mode(0o600))
            .and_then(|()| self.file.sync_all())
            .and_then(
                |()| if *may_replace { fs::rename(temp, path) } else { rename_new(temp, path) },
            )
            .map_err(|err| failed("cannot write", path, &err))?;
        self.temp = None;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|err| failed("it is written, but cannot sync", dir, &err))?;
        Ok(self.target.path.clone())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(temp) = &self.temp
            && let Err(err) = fs::remove_file(temp)
        {
            tracing::warn!(path = %temp.display(), error = %err, "could not remove a partial file");
        }
    }
}

/// Renames, unless there is such a file by now.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can; a second name for the file cannot replace another either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        renamed => Ok(renamed?),
    }
}

fn failed(what: &str, path: &Path, err: &io::Error) -> Error {
    Error::Failed(format!("{what} {}: {err}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_file_has_its_name_only_once_it_is_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = Target::plan(dir.path(), Some("a.log"), false).expect("free");
        let mut partial = target.create().expect("created");
        partial.write(b"whole").expect("written");
        let temp = names(dir.path());
        assert!(temp.len() == 1 && temp[0].starts_with(".fts-"), "{temp:?}");
        let path = partial.publish().expect("published");
        assert_eq!(fs::read(path).expect("read"), b"whole");
        assert_eq!(names(dir.path()), ["a.log"]);
    }

    #[test]
    fn a_whole_file_is_private_also_in_place_of_a_public_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        fs::write(&path, "old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("set");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        for path in [path, dir.path().join("new")] {
            let partial = Target::plan(&path, None, true).expect("free").create().expect("made");
            let path = partial.publish().expect("published");
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }

    #[test]
    fn a_partial_file_is_private_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let target = Target::plan(&dir.path().join("x"), None, false).expect("free");
        let partial = target.create().expect("created");
        let mode = partial.file.metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(partial);
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn a_file_that_came_meanwhile_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        let partial = Target::plan(&path, None, false).expect("free").create().expect("created");
        fs::write(&path, "theirs").expect("written");
        partial.publish().expect_err("refused");
        assert_eq!(fs::read(&path).expect("read"), b"theirs");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn only_files_are_replaced_and_only_by_force() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        fs::write(&path, "old").expect("written");
        Target::plan(&path, None, false).expect_err("exists");
        let mut partial = Target::plan(&path, None, true).expect("forced").create().expect("made");
        partial.write(b"new").expect("written");
        partial.publish().expect("published");
        assert_eq!(fs::read(&path).expect("read"), b"new");
        Target::plan(Path::new("/dev/null"), None, true).expect_err("a device");
    }

    #[test]
    fn a_place_that_cannot_be_is_found_out_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("no/such");
        Target::plan(&missing, None, false).expect_err("no such directory");
        Target::plan(&dir.path().join("no/"), None, false).expect_err("no such directory");
        Target::plan(dir.path(), None, false).expect_err("a directory, and no name");
    }
}
