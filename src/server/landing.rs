//! Where files land: the only place of the server that makes, syncs, renames and removes them.
//!
//! ```text
//! files/partial/<transfer>           while it is received, and between attempts
//! files/partial/<transfer>.journal   which of it is on stable storage
//! files/<xx>/<transfer>.<epoch>      whole, verified, on stable storage; xx: the id's last two digits
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
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{self, Access, AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};

use crate::{
    ids::{AttemptId, Epoch, TransferId},
    limits,
};

mod disk;
mod journal;
mod kept;
mod partial;

pub use disk::{Disk, RealDisk};
pub use journal::Whole;
pub use kept::Kept;
pub use partial::Partial;

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

    /// The disk is full, or a quota is.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// There is no such file.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The directory of files, held open.
pub struct Landing {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    root: OwnedFd,
    /// The shards whose own names are known to be on stable storage.
    durable: [AtomicBool; SHARDS],
    /// Transfers whose kept bytes an earlier process wrote: they are read again before they are
    /// published.
    inherited: Mutex<HashSet<TransferId>>,
}

impl Landing {
    /// Opens the directory at `path`, and makes it (0700) if it is not there.
    pub fn open(path: &Path) -> Result<Self, LandingError> {
        Self::open_on(path, Box::new(RealDisk))
    }

    /// Like [`Landing::open`], on another disk.
    pub fn open_on(path: &Path, disk: Box<dyn Disk>) -> Result<Self, LandingError> {
        let name = path.display().to_string();
        let failed = |action, source| LandingError { action, name: name.clone(), source };
        make_private_dir(path).map_err(|err| failed("make", err))?;
        // Absolute, so that the location that operators are shown means the same everywhere.
        let path = path.canonicalize().map_err(|err| failed("resolve", err))?;
        let root = open_dir(fs::CWD, &path).map_err(|err| failed("open", err))?;
        disk.make_dir(&root, PARTIAL).map_err(|err| failed("make a directory in", err))?;
        disk.sync_dir(&root).map_err(|err| failed("sync", err))?;
        let parent = path.parent().map_or(Ok(()), |above| {
            open_dir(fs::CWD, above).and_then(|above| disk.sync_dir(&above))
        });
        parent.map_err(|err| failed("sync the directory of", err))?;
        // Two servers on one directory would take each other's files for left-overs.
        if let Err(err) = fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
            return Err(failed("lock (is another server using it?)", err.into()));
        }
        let durable = [const { AtomicBool::new(false) }; SHARDS];
        let inherited = Mutex::default();
        Ok(Self { disk: disk.into(), path, root, durable, inherited })
    }

    /// Proves that the directory is there, and can be written.
    pub fn ping(&self) -> Result<(), LandingError> {
        let failed = |source| LandingError {
            action: "write in",
            name: self.path.display().to_string(),
            source,
        };
        let partial = self.partial().map_err(failed)?;
        fs::accessat(&partial, ".", Access::WRITE_OK, AtFlags::empty())
            .map_err(|err| failed(err.into()))
    }

    /// Opens the directory of partial files, and makes it again if somebody removed it.
    fn partial(&self) -> io::Result<OwnedFd> {
        match open_dir(&self.root, PARTIAL) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.disk.make_dir(&self.root, PARTIAL)?;
                open_dir(&self.root, PARTIAL)
            }
            opened => opened,
        }
    }

    /// Refuses what would leave too little space. A size is a client's word: it must not fill the
    /// disk, not even by what is reserved for it.
    fn find_space(&self, dir: &OwnedFd, name: &str, bytes: u64) -> Result<(), LandingError> {
        let failed =
            |source| LandingError { action: "find space for", name: name.to_owned(), source };
        let (free, all) = self.disk.space(dir).map_err(failed)?;
        let keep_free = limits::DISK_FREE_MIN_BYTES.min(all / 20);
        if bytes.saturating_add(keep_free) > free {
            return Err(failed(io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    fn inherited(&self) -> MutexGuard<'_, HashSet<TransferId>> {
        // A set is never half changed.
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a whole, verified file under its final name. When this returns, data, size and
    /// name are on stable storage. After an error nothing has the final name.
    pub fn publish(&self, mut partial: Partial) -> Result<(), LandingError> {
        let name = partial.attempt.to_string();
        let transfer = partial.attempt.transfer;
        // A sync that failed is not tried again: nobody would be told of what it lost.
        let has_journal = partial.settle()?;
        self.disk
            .sync_data(&partial.file)
            .map_err(|source| partial.failed("sync the data of", source))?;
        let dir = self
            .shard(shard(&name))
            .map_err(|source| partial.failed("open the directory of", source))?;
        let left =
            self.partial().map_err(|source| partial.failed("open the directory of", source))?;
        self.disk
            .rename((&left, &transfer.to_string()), (&dir, &name))
            .map_err(|source| partial.failed("rename", source))?;
        if let Err(source) = self.sync_name(&dir, shard(&name)) {
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
        let synced = open_dir(&self.root, shard).and_then(|dir| self.sync_name(&dir, shard));
        synced.map_err(|source| LandingError { action: "sync the directory of", name, source })
    }

    /// Opens a shard, and makes it if it is not there.
    fn shard(&self, shard: &str) -> io::Result<OwnedFd> {
        match open_dir(&self.root, shard) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                if let Some(is_durable) = self.is_durable(shard) {
                    is_durable.store(false, Ordering::Release);
                }
                self.disk.make_dir(&self.root, shard)?;
                open_dir(&self.root, shard)
            }
            opened => opened,
        }
    }

    /// Syncs a name in a shard, and the shard's own name if that is new. The directory that the file
    /// left needs none: what a crash brings back there is discarded.
    fn sync_name(&self, dir: &OwnedFd, shard: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)?;
        let is_durable = self.is_durable(shard);
        if is_durable.is_none_or(|is_durable| !is_durable.load(Ordering::Acquire)) {
            // Opened anew: where a sync has failed, the next one may succeed and mean nothing.
            self.disk.sync_dir(&open_dir(&self.root, ".")?)?;
            is_durable.inspect(|is_durable| is_durable.store(true, Ordering::Release));
        }
        Ok(())
    }

    fn is_durable(&self, shard: &str) -> Option<&AtomicBool> {
        self.durable.get(usize::from_str_radix(shard, 16).ok()?)
    }

    /// Removes a published file, if it is there.
    pub fn remove(&self, attempt: AttemptId) -> Result<(), LandingError> {
        let name = attempt.to_string();
        match open_dir(&self.root, shard(&name)) {
            Ok(dir) => remove(self.disk.as_ref(), &dir, &name),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(LandingError { action: "open the directory of", name, source }),
        }
    }

    /// Opens a published file for reading.
    pub fn read(&self, attempt: AttemptId) -> Result<File, LandingError> {
        let name = attempt.to_string();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match fs::openat(&self.root, format!("{}/{name}", shard(&name)), flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(err) => Err(LandingError { action: "open", name, source: err.into() }),
        }
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
        for name in self.names(&self.root)?.into_iter().filter(|name| name.len() == SHARD_LEN) {
            let dir = open_dir(&self.root, &name).map_err(|source| LandingError {
                action: "open",
                name,
                source,
            })?;
            all.extend(self.names(&dir)?.iter().filter_map(|name| parse_name(name)));
        }
        Ok(all)
    }

    fn names(&self, dir: &OwnedFd) -> Result<Vec<String>, LandingError> {
        let failed = |err: Errno| LandingError {
            action: "list",
            name: self.path.display().to_string(),
            source: err.into(),
        };
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
        let landing = Landing::open(dir.path()).expect("opened");
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
        let landing = Landing::open(dir.path()).expect("opened");
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
