//! The seam between the landing and the disk: small synchronous calls, so that a test can make the
//! n-th one fail.

use std::{
    fs::File,
    io,
    num::NonZeroU64,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
};

use rustix::{
    fs::{self, Advice, AtFlags, FallocateFlags, Mode, OFlags, RenameFlags, StatVfsMountFlags},
    io::Errno,
};

/// How much room a file system has.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Bytes, for us.
    pub free: u64,
    pub all: u64,
    pub is_read_only: bool,
}

/// The calls that change the disk. A test puts one in between that fails at its n-th call.
pub trait Disk: Send + Sync + 'static {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Reserves space beyond what is written; the size stays what was written.
    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        match fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            // Not every file system can; then the writes will tell.
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Returns how much room there is, for a file that is about to begin.
    fn space(&self, dir: &OwnedFd) -> io::Result<Space> {
        self.look(dir)
    }

    /// Returns how much room there is, for the gauge.
    fn look(&self, dir: &OwnedFd) -> io::Result<Space> {
        let stat = fs::fstatvfs(dir)?;
        Ok(Space {
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            all: stat.f_blocks.saturating_mul(stat.f_frsize),
            is_read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(data, offset)
    }

    /// Begins to write out what is in the page cache, without waiting, so that the disk works while
    /// the rest still comes, and little is left for the sync at the end. To Linux this advice on
    /// pages that are dirty means just that (`mm/fadvise.c`); it is only advice, so it cannot fail.
    fn write_out(&self, file: &File, offset: u64, bytes: u64) {
        let bytes = NonZeroU64::new(bytes);
        if let Err(err) = fs::fadvise(file, offset, bytes, Advice::DontNeed) {
            tracing::debug!(error = %err, "the disk takes no advice");
        }
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// Renames, unless the new name is taken.
    fn rename(&self, old: (&OwnedFd, &str), new: (&OwnedFd, &str)) -> io::Result<()> {
        Ok(fs::renameat_with(old.0, old.1, new.0, new.1, RenameFlags::NOREPLACE)?)
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        Ok(fs::fsync(dir)?)
    }

    fn remove(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    fn make_dir(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        match fs::mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) => Ok(()),
            done => Ok(done?),
        }
    }
}

/// The disk as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {}
