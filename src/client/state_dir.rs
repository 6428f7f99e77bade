//! The client's own directory: private, and locked for as long as the process lives. It knows its
//! files, so that none of them is ever delivered.

use std::{
    fs::{DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat},
    io::Errno,
};

use crate::limits;

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    #[error("the state directory {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the state directory {} belongs to another user", .0.display())]
    Foreign(PathBuf),
    #[error("the state directory {path} is open to other users: run chmod 700 {path}",
        path = .0.display())]
    Open(PathBuf),
    #[error(
        "another fts-client (process {holder}) has this id, and holds {}: stop it, or give another \
         --client-id or --state-dir", path.display()
    )]
    Held { path: PathBuf, holder: String },
}

/// The directory, open and locked.
#[derive(Debug)]
pub struct StateDir {
    /// `None`: it was only looked for, and is not there.
    dir: Option<OwnedFd>,
    /// Unlocked by the kernel when the process ends, however it ends. `None`: it was only looked
    /// at.
    _lock: Option<OwnedFd>,
}

const LOCK: &str = "lock";

impl StateDir {
    /// Makes the directory if it is not there, and locks it.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |source: io::Error| StateDirError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let stat = rustix::fs::fstat(&dir).map_err(|e| failed(e.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(StateDirError::Foreign(path.to_owned()));
        }
        if Mode::from_raw_mode(stat.st_mode).intersects(Mode::RWXG | Mode::RWXO) {
            return Err(StateDirError::Open(path.to_owned()));
        }
        let lock = lock(&dir, path)?;
        Ok(Self { dir: Some(dir), _lock: Some(lock) })
    }

    /// Opens the directory if it is there, to know its files, and leaves it to whoever holds it.
    pub fn look(path: &Path) -> Result<Self, StateDirError> {
        // systemd makes it a link, for a DynamicUser.
        let dir = match rustix::fs::open(path, LIST - OFlags::NOFOLLOW, Mode::empty()) {
            Ok(dir) => Some(dir),
            Err(Errno::NOENT) => None,
            Err(err) => {
                return Err(StateDirError::Io { path: path.to_owned(), source: err.into() });
            }
        };
        Ok(Self { dir, _lock: None })
    }

    /// Returns the directory, for the client's own files.
    pub(super) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        let dir = self.dir.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(dir.as_fd())
    }

    /// Whether `stat` is this directory, or anything in it. By inode, so that no other name of it (a hard
    /// link, a bind mount) is a way around; and only this user can add to the directory.
    pub fn owns(&self, stat: &Stat) -> io::Result<bool> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let look = || {
            let dir = rustix::fs::openat(dir, ".", LIST, Mode::empty())?;
            let own = rustix::fs::fstat(&dir)?;
            let mut left = limits::STATE_FILES_MAX;
            if is_same(&own, stat) { Ok(true) } else { holds(&dir, stat, &mut left) }
        };
        for _ in 1..limits::OPEN_TRIES_MAX {
            match look() {
                // A file was replaced meanwhile.
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                looked => return looked,
            }
        }
        look()
    }

    /// Reads a file of this directory; `None` if it is not there.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(dir) = &self.dir else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(err) => return Err(err.into()),
        };
        let mut bytes = Vec::new();
        let most = limits::STATE_FILE_BYTES_MAX;
        File::from(fd).take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is too large")));
        }
        Ok(Some(bytes))
    }

    /// Replaces a file of this directory, or makes it; when this returns, it is on stable storage.
    /// A crash leaves the old one or the new one. One caller at a time for each name.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Err(Errno::NOENT.into()) };
        let fresh = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(dir, fresh.as_str(), flags | OFlags::CLOEXEC, mode)?;
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        file.sync_data()?;
        rustix::fs::renameat(dir, fresh.as_str(), dir, name)?;
        Ok(rustix::fs::fsync(dir)?)
    }
}

const LIST: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn holds(dir: &OwnedFd, wanted: &Stat, left: &mut usize) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *left = left.checked_sub(1).ok_or_else(|| io::Error::other("too many files of state"))?;
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_same(&stat, wanted) {
            return Ok(true);
        }
        // Each level costs one of the files left, which bounds the depth.
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let below = rustix::fs::openat(dir, name, LIST, Mode::empty())?;
            if holds(&below, wanted, left)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn lock(dir: &OwnedFd, path: &Path) -> Result<OwnedFd, StateDirError> {
    let failed = |source: io::Error| StateDirError::Io { path: path.join(LOCK), source };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, LOCK, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|err| failed(err.into()))?;
    let mut file = File::from(fd);
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // For people only: a lock without a readable number is held all the same.
            let read = (&mut file).take(16).read_to_string(&mut holder);
            let holder = if read.is_ok() { holder.trim().to_owned() } else { String::new() };
            return Err(StateDirError::Held { path: path.to_owned(), holder });
        }
        Err(err) => return Err(failed(err.into())),
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_second_process_with_the_same_directory_is_refused_in_words() {
        let temp = tempfile::tempdir().expect("a directory");
        let path = temp.path().join("a/b");
        let first = StateDir::open(&path).expect("free");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);

        let refused = StateDir::open(&path).expect_err("held").to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        assert!(refused.contains("--client-id"), "{refused}");

        drop(first);
        StateDir::open(&path).expect("free again");
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let temp = tempfile::tempdir().expect("a directory");
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o750)).expect("changed");
        assert!(matches!(StateDir::open(temp.path()), Err(StateDirError::Open(_))));
    }

    #[test]
    fn its_files_are_known_by_any_name() {
        let temp = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(&temp.path().join("state")).expect("free");
        fs::create_dir(temp.path().join("state/keys")).expect("made");
        fs::write(temp.path().join("state/keys/k"), "secret").expect("written");
        fs::hard_link(temp.path().join("state/keys/k"), temp.path().join("link")).expect("linked");
        fs::write(temp.path().join("other"), "").expect("written");
        let owns = |name: &str| {
            let stat = rustix::fs::stat(temp.path().join(name)).expect("there");
            state.owns(&stat).expect("listed")
        };
        assert!(owns("state/lock"));
        assert!(owns("state/keys/k"));
        assert!(owns("link"));
        assert!(!owns("other"));
    }
}
