//! The directory of a rule, held open once it was there, so that nobody can put another in its
//! place. Only who may mount can: a file system that is mounted there is opened, and one that was
//! taken away is gone.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags},
    io::{Errno, Result},
};

use super::kernel::{LOOK, path_of};

/// What is at the path of a rule.
pub(super) enum Root {
    Dir(Arc<OwnedFd>),
    /// Anything else: allowed by itself.
    File,
}

/// The directory of a rule, if it was ever there.
#[derive(Debug, Default)]
pub(super) struct HeldRoot(Mutex<Option<Held>>);

#[derive(Debug, Clone)]
struct Held {
    dir: Arc<OwnedFd>,
    /// A file system was mounted there.
    is_mount: bool,
    /// The directory above, and the name in it; `/` has none.
    place: Option<Arc<(OwnedFd, String)>>,
}

impl HeldRoot {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().expect("no panic").is_none()
    }

    /// Returns what is at `path` now, which is a directory that was there before, if it is not gone.
    pub(super) fn get(&self, path: &str) -> Result<Root> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Not under the lock, because it may hang (a dead NFS server).
        let now = match held {
            Some(held) => held.now()?,
            None => None,
        };
        let now = match now {
            Some(now) => now,
            None => match Held::open(path)? {
                Some(new) => new,
                None => return Ok(Root::File),
            },
        };
        let dir = Arc::clone(&now.dir);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(Root::Dir(dir))
    }
}

impl Held {
    /// Opens what is at a path; `None`, if that is no directory.
    fn open(path: &str) -> Result<Option<Self>> {
        let dir = rustix::fs::open(path, LOOK, Mode::empty())?;
        let stat = rustix::fs::fstat(&dir)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(None);
        }
        let is_mount = is_mount(&dir)?;
        let place = place(&dir)?.map(Arc::new);
        Ok(Some(Self { dir: Arc::new(dir), is_mount, place }))
    }

    /// Returns what is to be held from now on; `None`, if the directory was removed: another may have
    /// been made since.
    fn now(self) -> Result<Option<Self>> {
        let stat = rustix::fs::fstat(&self.dir)?;
        // A directory that was removed has no links left.
        if stat.st_nlink == 0 {
            return Ok(None);
        }
        let Some(place) = self.place.clone() else { return Ok(Some(self)) };
        let (above, name) = (&place.0, place.1.as_str());
        let there = match rustix::fs::openat(above, name, LOOK | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(there) => there,
            // It is held, wherever its name has gone.
            Err(_) if !self.is_mount => return Ok(Some(self)),
            Err(err) => return Err(err),
        };
        let at = rustix::fs::fstat(&there)?;
        if (at.st_dev, at.st_ino) == (stat.st_dev, stat.st_ino) {
            return Ok(Some(self));
        }
        // No link leads here, and no mount point can be renamed: who may mount has done it.
        if is_mount(&there)? {
            let dir = Arc::new(there);
            return Ok(Some(Self { dir, is_mount: true, place: Some(place) }));
        }
        // What is there without the file system is not what the policy means.
        if self.is_mount { Err(Errno::NOENT) } else { Ok(Some(self)) }
    }
}

/// Whether a directory is the root of a mounted file system; not, if the kernel cannot say (before
/// Linux 5.8).
fn is_mount(dir: &OwnedFd) -> Result<bool> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(dir, "", flags, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Returns where a directory is: the one above it, and its name there.
fn place(dir: &OwnedFd) -> Result<Option<(OwnedFd, String)>> {
    // Without /proc nobody knows; then it is held as it is.
    let Ok(Some(path)) = path_of(dir) else { return Ok(None) };
    let Some(name) = path.rsplit('/').next().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let above = rustix::fs::openat(dir, "..", LOOK | OFlags::DIRECTORY, Mode::empty())?;
    Ok(Some((above, name.to_owned())))
}
