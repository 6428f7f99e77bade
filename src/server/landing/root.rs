//! The directory of files: which one it is, and whether it is still there.
//!
//! A file system that is not mounted looks like an empty directory, and whatever is written there
//! fills the disk beneath. So the directory holds a marker with a random id that the records know
//! too: where it is missing, nothing is written.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{self, AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::{
    Landing, LandingError, PARTIAL, Partial, SHARDS,
    disk::{Disk, RealDisk},
    make_private_dir, open_dir,
    space::{Gauged, Marks},
};

/// The marker's name. Not one of a transfer.
pub const MARKER: &str = ".fts-id";
const ID_CHARS: usize = 32;

/// Why the directory of files cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    #[error(
        "{path} is not the directory of files that the records tell of: {why}. Perhaps its file system is not mounted. \
         To go on with what is there, on purpose, start once with --new-files: files that are not there then count as lost"
    )]
    NotOurs { path: PathBuf, why: &'static str },
    #[error(transparent)]
    Failed(#[from] LandingError),
}

/// The directory, held open.
#[derive(Debug)]
pub(super) struct Root {
    dir: OwnedFd,
    /// Another one after it was gone and came back.
    life: u64,
    /// The shards whose own names are known to be on stable storage.
    durable: [AtomicBool; SHARDS],
}

impl Root {
    pub(super) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn is_durable(&self, shard: &str) -> Option<&AtomicBool> {
        self.durable.get(usize::from_str_radix(shard, 16).ok()?)
    }

    /// Takes a directory for this process alone.
    fn take(dir: OwnedFd, life: u64) -> io::Result<Self> {
        // Two servers on one directory would take each other's files for left-overs.
        fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { dir, life, durable: [const { AtomicBool::new(false) }; SHARDS] })
    }
}

/// Where the directory is, if it is.
#[derive(Debug)]
pub(super) struct Place {
    root: RwLock<Option<Arc<Root>>>,
    lives: AtomicU64,
}

impl Place {
    fn set(&self, root: Option<Arc<Root>>) {
        *self.root.write().unwrap_or_else(PoisonError::into_inner) = root;
    }
}

impl Landing {
    /// Opens the directory at `path`, and makes it (0700) if it is not there. Whatever marker it has
    /// is taken for the right one.
    pub fn open(path: &Path) -> Result<Self, LandingError> {
        Self::open_on(path, Box::new(RealDisk))
    }

    /// Like [`Landing::open`], on another disk.
    pub fn open_on(path: &Path, disk: Box<dyn Disk>) -> Result<Self, LandingError> {
        let failed = |action, source| LandingError::of(path, action, source);
        make_private_dir(path).map_err(|err| failed("make", err))?;
        let dir = open_dir(fs::CWD, path).map_err(|err| failed("open", err))?;
        let found = read_marker(&dir).map_err(|err| failed("read the marker of", err))?;
        let root = Root::take(dir, 0).map_err(|err| failed(LOCK, err))?;
        let id = match found {
            Some(id) => id,
            None => write_marker(root.dir()).map_err(|err| failed("mark", err))?,
        };
        let parent = path.canonicalize().and_then(|path| {
            let above = path.parent().map(|above| open_dir(fs::CWD, above)).transpose()?;
            above.map_or(Ok(()), |above| disk.sync_dir(&above))
        });
        parent.map_err(|err| failed("sync the directory of", err))?;
        Self::on_root(path, disk, root, id)
    }

    /// Opens the directory that the records know by the id `id`, and makes nothing.
    pub fn open_known(path: &Path, disk: Box<dyn Disk>, id: &str) -> Result<Self, OpenError> {
        let failed = |action, source| LandingError::of(path, action, source);
        let not_ours = |why| OpenError::NotOurs { path: path.to_owned(), why };
        let dir = match open_dir(fs::CWD, path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(not_ours("there is no such directory"));
            }
            opened => opened.map_err(|err| failed("open", err))?,
        };
        match read_marker(&dir).map_err(|err| failed("read the marker of", err))? {
            Some(found) if found == id => {}
            Some(_) => return Err(not_ours("its .fts-id is another one")),
            None => return Err(not_ours("it has no .fts-id")),
        }
        let root = Root::take(dir, 0).map_err(|err| failed(LOCK, err))?;
        Ok(Self::on_root(path, disk, root, id.to_owned())?)
    }

    fn on_root(
        path: &Path,
        disk: Box<dyn Disk>,
        root: Root,
        id: String,
    ) -> Result<Self, LandingError> {
        let failed = |action, source| LandingError::of(path, action, source);
        // Absolute, so that the location that operators are shown means the same everywhere.
        let absolute = path.canonicalize().map_err(|err| failed("resolve", err))?;
        disk.make_dir(root.dir(), PARTIAL).map_err(|err| failed("make a directory in", err))?;
        disk.sync_dir(root.dir()).map_err(|err| failed("sync", err))?;
        let place = Place { root: RwLock::new(Some(Arc::new(root))), lives: AtomicU64::new(1) };
        Ok(Self {
            disk: disk.into(),
            path: absolute,
            id,
            place,
            marks: Marks::default(),
            gauged: Gauged::new(),
            inherited: Mutex::default(),
            condemned: Mutex::default(),
        })
    }

    #[must_use]
    pub fn with_marks(self, marks: Marks) -> Self {
        Self { marks, ..self }
    }

    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// What the marker says.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the directory; an error of its own kind while it is gone.
    pub(super) fn root(&self) -> io::Result<Arc<Root>> {
        let root = self.place.root.read().unwrap_or_else(PoisonError::into_inner).clone();
        root.ok_or_else(|| Errno::STALE.into())
    }

    /// Returns the directory that a partial file is in, unless it has been gone since.
    pub(super) fn root_of(&self, partial: &Partial) -> Result<Arc<Root>, LandingError> {
        let same = self.root().and_then(|root| {
            if root.life == partial.life { Ok(root) } else { Err(Errno::STALE.into()) }
        });
        same.map_err(|source| partial.failed("find the directory of", source))
    }

    /// Returns the directory if the path still leads to it, or leads to it again. If it does not, it
    /// is let go of, so that nothing is written to what nobody sees, or beneath a mount.
    pub(super) fn find_again(&self) -> Result<Arc<Root>, LandingError> {
        let found = self.find_root().map_err(|source| self.of_root("find", source));
        if found.is_err() {
            self.place.set(None);
        }
        found
    }

    fn find_root(&self) -> io::Result<Arc<Root>> {
        let dir = open_dir(fs::CWD, &self.path)?;
        match read_marker(&dir)? {
            Some(id) if id == self.id => {}
            Some(_) => return Err(io::Error::other("its marker is another one")),
            None => return Err(io::Error::other("it has no marker")),
        }
        if let Ok(held) = self.root()
            && is_same(held.dir(), &dir)?
        {
            return Ok(held);
        }
        let life = self.place.lives.fetch_add(1, Ordering::Relaxed);
        let root = Arc::new(Root::take(dir, life)?);
        // It may be a copy.
        self.inherit_all(&root)?;
        self.place.set(Some(Arc::clone(&root)));
        Ok(root)
    }

    pub(super) fn of_root(&self, action: &'static str, source: io::Error) -> LandingError {
        LandingError::of(&self.path, action, source)
    }
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> io::Result<bool> {
    let (one, other) = (fs::fstat(one)?, fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Returns the id of the marker in a directory, if it has one that is not damaged.
fn read_marker(dir: &OwnedFd) -> io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match fs::openat(dir, MARKER, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => File::from(opened?),
    };
    let mut text = String::new();
    file.take(2 * ID_CHARS as u64).read_to_string(&mut text)?;
    let id = text.trim_end();
    let is_id = id.len() == ID_CHARS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(is_id.then(|| id.to_owned()))
}

/// Marks a directory with a new id. When this returns, the marker is on stable storage.
fn write_marker(dir: &OwnedFd) -> io::Result<String> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let new = format!("{MARKER}.new");
    match fs::unlinkat(dir, &new, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(err) => return Err(err.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::openat(dir, &new, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(format!("{id}\n").as_bytes())?;
    file.sync_all()?;
    fs::renameat(dir, &new, dir, MARKER)?;
    fs::fsync(dir)?;
    Ok(id)
}

const LOCK: &str = "lock (is another server using it?)";
