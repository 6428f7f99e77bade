//! Where files land: the only place of the server that makes, syncs, renames and removes them.
//!
//! ```text
//! files/partial/<transfer>           while it is received, and between attempts
//! files/partial/<transfer>.journal   which of it is on stable storage
//! files/<xx>/<transfer>.<epoch>      whole, verified, on stable storage; xx: the id's last two digits
//! files/.fts-id                      says that this is the directory that the records tell of
//! ```
//!
//! Every name is made of ids that the server made, and every call is relative to a directory that
//! is held open, so no text of a client can become a path. All calls block: they belong on a
//! blocking thread.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use rustix::{
    fs::{self, Access, AtFlags, Mode, OFlags},
    io::Errno,
};

use crate::ids::{AttemptId, Epoch, TransferId};

mod disk;
mod journal;
mod kept;
mod partial;
mod root;
mod space;

pub use disk::{Disk, RealDisk, Space};
pub use journal::Whole;
pub use kept::{Kept, Resumed, Unproved};
pub use partial::Partial;
pub use root::{MARKER, OpenError};
pub use space::{Gauge, Marks, Room};

use root::{Place, Root};
use space::Gauged;

/// A call of the landing failed; what it was about is in the text, for our own log only.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {name}")]
pub struct LandingError {
    action: &'static str,
    name: String,
    source: io::Error,
}

impl LandingError {
    /// The name is taken, by a file that is whole.
    pub fn is_exists(&self) -> bool {
        self.source.kind() == io::ErrorKind::AlreadyExists
    }

    fn of(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self { action, name: path.display().to_string(), source }
    }

    /// Nothing can be written for now: the disk is full, or a quota is; it is read-only, or gone.
    pub fn is_unwritable(&self) -> bool {
        let kinds = [
            io::ErrorKind::StorageFull,
            io::ErrorKind::QuotaExceeded,
            io::ErrorKind::ReadOnlyFilesystem,
            io::ErrorKind::StaleNetworkFileHandle,
        ];
        kinds.contains(&self.source.kind())
    }

    /// What is in the journal is as good as it was. Not after a sync that failed, whatever the
    /// reason: nobody can tell what that one lost.
    pub fn leaves_kept(&self) -> bool {
        // Of the process, or of the moment: no file descriptors, no memory, no threads.
        let passing = [Errno::INTR, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
        let is_passing = Errno::from_io_error(&self.source).is_some_and(|e| passing.contains(&e));
        (self.is_unwritable() || is_passing) && self.action != SYNC_DATA
    }

    /// There is no such file.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The directory of files.
pub struct Landing {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Of the marker.
    id: String,
    place: Place,
    marks: Marks,
    gauged: Gauged,
    /// Transfers whose kept bytes an earlier process wrote, or an earlier mount held: they are read
    /// again before they are published.
    inherited: Mutex<HashSet<TransferId>>,
    /// Transfers of which nothing is kept, and whose files could not be removed yet.
    condemned: Mutex<HashSet<TransferId>>,
}

impl Landing {
    /// Proves that the directory is there, and can be written.
    pub fn ping(&self) -> Result<(), LandingError> {
        let failed = |source| self.of_root("write in", source);
        let partial = self.partial().map_err(failed)?;
        fs::accessat(&partial, ".", Access::WRITE_OK, AtFlags::empty())
            .map_err(|err| failed(err.into()))
    }

    /// Opens the directory of partial files, and makes it again if somebody removed it.
    fn partial(&self) -> io::Result<OwnedFd> {
        self.partial_in(&*self.root()?)
    }

    fn partial_in(&self, root: &Root) -> io::Result<OwnedFd> {
        match open_dir(root.dir(), PARTIAL) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.disk.make_dir(root.dir(), PARTIAL)?;
                open_dir(root.dir(), PARTIAL)
            }
            opened => opened,
        }
    }

    fn inherited(&self) -> MutexGuard<'_, HashSet<TransferId>> {
        // A set is never half changed.
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn condemned(&self) -> MutexGuard<'_, HashSet<TransferId>> {
        self.condemned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a whole, verified file under its final name. When this returns, data, size and
    /// name are on stable storage. After an error nothing has the final name.
    pub fn publish(&self, mut partial: Partial) -> Result<(), LandingError> {
        let name = partial.attempt.to_string();
        let transfer = partial.attempt.transfer;
        // A sync that failed is not tried again: nobody would be told of what it lost.
        let has_journal = partial.settle()?;
        let root = self.root_of(&partial)?;
        self.disk.sync_data(&partial.file).map_err(|source| partial.failed(SYNC_DATA, source))?;
        let open = |source| partial.failed("open the directory of", source);
        let dir = self.shard(&root, shard(&name)).map_err(open)?;
        let left = self.partial_in(&root).map_err(open)?;
        self.disk
            .rename((&left, &transfer.to_string()), (&dir, &name))
            .map_err(|source| partial.failed("rename", source))?;
        if let Err(source) = self.sync_name(&root, &dir, shard(&name)) {
            let err = partial.failed("sync the directory of", source);
            // It is not known to be durable, so it must not be found.
            if let Err(source) = self.disk.remove(&dir, &name) {
                tracing::error!(error = %source, name, "could not take back a file that was not synced");
            }
            return Err(err);
        }
        // What it kept is the file now; a start removes what is left of it.
        if has_journal && let Err(err) = self.discard(transfer) {
            tracing::warn!(error = %err, "a journal is left over");
        }
        self.inherited().remove(&transfer);
        Ok(())
    }

    /// Puts the name of a published file on stable storage, whoever gave it that name.
    pub fn settle(&self, attempt: AttemptId) -> Result<(), LandingError> {
        let name = attempt.to_string();
        let shard = shard(&name);
        let synced = self.root().and_then(|root| {
            let dir = open_dir(root.dir(), shard)?;
            self.sync_name(&root, &dir, shard)
        });
        synced.map_err(|source| LandingError { action: "sync the directory of", name, source })
    }

    /// Opens a shard, and makes it if it is not there.
    fn shard(&self, root: &Root, shard: &str) -> io::Result<OwnedFd> {
        match open_dir(root.dir(), shard) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                if let Some(is_durable) = root.is_durable(shard) {
                    is_durable.store(false, Ordering::Release);
                }
                self.disk.make_dir(root.dir(), shard)?;
                open_dir(root.dir(), shard)
            }
            opened => opened,
        }
    }

    /// Syncs a name in a shard, and the shard's own name if that is new. The directory that the file
    /// left needs none: what a crash brings back there is discarded.
    fn sync_name(&self, root: &Root, dir: &OwnedFd, shard: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)?;
        let is_durable = root.is_durable(shard);
        if is_durable.is_none_or(|is_durable| !is_durable.load(Ordering::Acquire)) {
            // Opened anew: where a sync has failed, the next one may succeed and mean nothing.
            self.disk.sync_dir(&open_dir(root.dir(), ".")?)?;
            is_durable.inspect(|is_durable| is_durable.store(true, Ordering::Release));
        }
        Ok(())
    }

    /// Removes a published file, if it is there.
    pub fn remove(&self, attempt: AttemptId) -> Result<(), LandingError> {
        let name = attempt.to_string();
        match self.root().and_then(|root| open_dir(root.dir(), shard(&name))) {
            Ok(dir) => remove(self.disk.as_ref(), &dir, &name),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(LandingError { action: "open the directory of", name, source }),
        }
    }

    /// Opens a published file for reading.
    pub fn read(&self, attempt: AttemptId) -> Result<File, LandingError> {
        let name = attempt.to_string();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = self.root().and_then(|root| {
            let path = format!("{}/{name}", shard(&name));
            Ok(fs::openat(root.dir(), path, flags, Mode::empty())?.into())
        });
        opened.map_err(|source| LandingError { action: "open", name, source })
    }

    /// Returns whether a file of this attempt is published.
    pub fn is_published(&self, attempt: AttemptId) -> Result<bool, LandingError> {
        match self.read(attempt) {
            Ok(_) => Ok(true),
            Err(err) if err.is_not_found() => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Returns where the published file of an attempt is, for people.
    pub fn location(&self, attempt: AttemptId) -> PathBuf {
        let name = attempt.to_string();
        self.path.join(shard(&name)).join(name)
    }

    /// Returns every published file.
    pub fn published(&self) -> Result<Vec<AttemptId>, LandingError> {
        let mut all = Vec::new();
        let root = self.root().map_err(|source| self.of_root("list", source))?;
        for name in self.names(root.dir())?.into_iter().filter(|name| name.len() == SHARD_LEN) {
            let dir = open_dir(root.dir(), &name).map_err(|source| LandingError {
                action: "open",
                name,
                source,
            })?;
            all.extend(self.names(&dir)?.iter().filter_map(|name| parse_name(name)));
        }
        Ok(all)
    }

    fn names(&self, dir: &OwnedFd) -> Result<Vec<String>, LandingError> {
        let failed = |err: Errno| self.of_root("list", err.into());
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is not text is none of ours.
            if let Ok(name) = entry.file_name().to_str()
                && !name.starts_with('.')
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

impl std::fmt::Debug for Landing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Landing").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What was being done when a sync of file data failed.
const SYNC_DATA: &str = "sync the data of";
const PARTIAL: &str = "partial";
const SHARD_LEN: usize = 2;
/// As many as that many hexadecimal digits tell apart.
const SHARDS: usize = 1 << (4 * SHARD_LEN);

/// Returns the directory of a published file: the last two digits of its transfer's id, which are
/// random.
fn shard(name: &str) -> &str {
    let id = name.split('.').next().unwrap_or(name);
    &id[id.len().saturating_sub(SHARD_LEN)..]
}

fn parse_name(name: &str) -> Option<AttemptId> {
    let (id, epoch) = name.split_once('.')?;
    Some(AttemptId { transfer: id.parse().ok()?, epoch: Epoch(epoch.parse().ok()?) })
}

fn remove(disk: &dyn Disk, dir: &OwnedFd, name: &str) -> Result<(), LandingError> {
    match disk.remove(dir, name) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        done => {
            done.map_err(|source| LandingError { action: "remove", name: name.to_owned(), source })
        }
    }
}

fn open_dir(at: impl std::os::fd::AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(fs::openat(at, name, flags, Mode::empty())?)
}

/// Makes a directory that only its owner may enter, and those above it.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::Fingerprint;

    fn attempt() -> AttemptId {
        AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) }
    }

    fn whole(size: u64) -> Whole {
        let fingerprint =
            Fingerprint { device: 1, inode: 2, size_bytes: size, mtime_ns: 3, ctime_ns: 4 };
        Whole { size, fingerprint }
    }

    #[test]
    fn a_removed_directory_of_partial_files_heals() {
        let dir = tempfile::tempdir().expect("a directory");
        let landing = Landing::open(dir.path()).expect("opened").with_marks(Marks::NONE);
        std::fs::remove_dir(dir.path().join(PARTIAL)).expect("removed");

        let attempt = attempt();
        let mut partial = landing.begin(attempt, whole(2)).expect("begun");
        landing.append(&mut partial, b"hi", None).expect("written");
        landing.publish(partial).expect("published");

        assert_eq!(std::fs::read(landing.location(attempt)).expect("there"), b"hi");
        assert_eq!(landing.published().expect("listed"), [attempt]);
    }

    /// Notes the calls whose order is what durability means.
    #[derive(Default)]
    struct RecordingDisk(Arc<Mutex<Vec<&'static str>>>);

    impl RecordingDisk {
        fn note(&self, call: &'static str) {
            self.0.lock().expect("no panic").push(call);
        }
    }

    impl Disk for RecordingDisk {
        fn sync_data(&self, file: &File) -> io::Result<()> {
            self.note("sync data");
            RealDisk.sync_data(file)
        }

        fn rename(&self, old: (&OwnedFd, &str), new: (&OwnedFd, &str)) -> io::Result<()> {
            self.note("rename");
            RealDisk.rename(old, new)
        }

        fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
            self.note("sync directory");
            RealDisk.sync_dir(dir)
        }
    }

    #[test]
    fn data_is_synced_before_it_gets_its_name_and_the_name_after() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = RecordingDisk::default();
        let calls = Arc::clone(&disk.0);
        let landing = Landing::open_on(dir.path(), Box::new(disk)).expect("opened");
        let landing = landing.with_marks(Marks::NONE);
        calls.lock().expect("no panic").clear();

        let first = attempt();
        let second = AttemptId { epoch: Epoch(2), ..first };
        let calls_of = |attempt| {
            landing.publish(landing.begin(attempt, whole(0)).expect("begun")).expect("published");
            std::mem::take(&mut *calls.lock().expect("no panic"))
        };

        // Of the shard, and of the directory above it, in which the shard is new.
        let new = ["sync data", "rename", "sync directory", "sync directory"];
        assert_eq!(calls_of(first), new);
        assert_eq!(calls_of(second), ["sync data", "rename", "sync directory"]);
        // A shard that somebody took away is new once more.
        std::fs::remove_dir_all(landing.location(first).parent().expect("a shard")).expect("gone");
        assert_eq!(calls_of(first), new);
    }

    #[test]
    fn a_published_file_is_never_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let landing = Landing::open(dir.path()).expect("opened").with_marks(Marks::NONE);
        let attempt = attempt();
        landing.publish(landing.begin(attempt, whole(0)).expect("begun")).expect("published");

        let again = landing.publish(landing.begin(attempt, whole(0)).expect("begun"));

        assert!(again.expect_err("refused").is_exists());
    }

    #[test]
    fn two_servers_cannot_share_a_directory_of_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let _first = Landing::open(dir.path()).expect("opened");
        assert!(Landing::open(dir.path()).is_err());
    }
}
