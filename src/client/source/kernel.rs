//! What the kernel is asked about files: names are resolved by it beneath a directory, it says which
//! name an open file has, and of what kind and age it is.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use rustix::{
    fs::{Dir, FileType, IFlags, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};

use crate::{
    client::policy::{Links, Rule},
    limits,
    transfer::Fingerprint,
};

/// `O_NONBLOCK` lets a FIFO not hang; `O_NOCTTY` keeps a terminal from becoming ours.
pub(super) const READ: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
/// Only a look: opens no device, and needs no permission to read.
pub(super) const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// What something is.
pub(super) enum Kind {
    Regular,
    /// The kernel makes it up.
    OfKernel,
    Other(&'static str),
}

/// Returns what an open file is.
pub(super) fn kind(fd: &OwnedFd) -> rustix::io::Result<Kind> {
    if KERNEL_FILE_SYSTEMS.contains(&file_system(fd)?) {
        return Ok(Kind::OfKernel);
    }
    let stat = rustix::fs::fstat(fd)?;
    Ok(Kind::Other(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(Kind::Regular),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    }))
}

/// Returns the magic number of the file system that a file is on.
fn file_system(fd: &OwnedFd) -> rustix::io::Result<u32> {
    let system = rustix::io::retry_on_intr(|| rustix::fs::fstatfs(fd))?;
    // The kernel's magic numbers have 32 bits; the field is a signed word on some machines.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(system.f_type as u32)
}

/// Returns how names beneath a root are resolved.
pub(super) fn resolution(rule: &Rule) -> ResolveFlags {
    // BENEATH refuses magic links too, for now; its manual says not to rely on that.
    let mut resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    if rule.links == Links::Never {
        resolve |= ResolveFlags::NO_SYMLINKS;
    }
    if rule.one_file_system {
        resolve |= ResolveFlags::NO_XDEV;
    }
    resolve
}

/// Whether there is a link on the way.
pub(super) fn is_by_link(dir: &OwnedFd, rest: &str) -> bool {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    beneath(dir, rest, LOOK, resolve).err() == Some(Errno::LOOP)
}

/// Whether a name without links is one that the directories on its way list. Some file systems open
/// a file by other spellings as well (upper and lower case, short names), and say then that it is
/// called so.
pub(super) fn is_spelled_as_listed(dir: &OwnedFd, rest: &str) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let mut dir = beneath(dir, ".", flags, resolve)?;
    let mut names = rest.split('/').peekable();
    while let Some(name) = names.next() {
        if !is_exact(&dir)? && !lists(&dir, name)? {
            return Ok(false);
        }
        if names.peek().is_some() {
            dir = beneath(&dir, name, flags, resolve)?;
        }
    }
    Ok(true)
}

/// Whether a directory is known to take no spelling but its own.
fn is_exact(dir: &OwnedFd) -> rustix::io::Result<bool> {
    if !EXACT_FILE_SYSTEMS.contains(&file_system(dir)?) {
        return Ok(false);
    }
    match rustix::fs::ioctl_getflags(dir) {
        Ok(flags) => Ok(!flags.contains(CASEFOLD)),
        // It has no flags, so it has not this one either.
        Err(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(true),
        Err(err) => Err(err),
    }
}

fn lists(dir: &OwnedFd, name: &str) -> rustix::io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        if entry?.file_name().to_bytes() == name.as_bytes() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the path that an open file has now, as the kernel knows it; `None` if it has none.
pub(super) fn path_of(fd: &OwnedFd) -> io::Result<Option<String>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let path = std::fs::read_link(link)?.into_os_string().into_string().ok();
    // What the kernel says of a name that is gone; a file that is called so is told apart by nobody.
    Ok(path.filter(|path| !path.ends_with(" (deleted)")))
}

/// Returns the name that an open file has beneath a directory, both as the kernel knows them now;
/// `None` if it has none.
pub(super) fn name_beneath(dir: &OwnedFd, fd: &OwnedFd) -> io::Result<Option<String>> {
    let (Some(dir), Some(file)) = (path_of(dir)?, path_of(fd)?) else { return Ok(None) };
    let rest = file.strip_prefix(dir.trim_end_matches('/'));
    Ok(rest.and_then(|rest| rest.strip_prefix('/')).map(str::to_owned))
}

/// Opens `rest` beneath `dir`.
pub(super) fn beneath(
    dir: impl AsFd,
    rest: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    for _ in 1..limits::OPEN_TRIES_MAX {
        match rustix::fs::openat2(dir.as_fd(), rest, flags, Mode::empty(), resolve) {
            // A directory was renamed meanwhile, and the kernel could not tell whether `..` led
            // out.
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    rustix::fs::openat2(dir.as_fd(), rest, flags, Mode::empty(), resolve)
}

/// Magic numbers of file systems whose files the kernel makes up. (devtmpfs has the number of
/// tmpfs; what matters in it are devices, and those are no regular files.)
const KERNEL_FILE_SYSTEMS: [u32; 16] = [
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x0000_1cd1, // devpts
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0xcafe_4a11, // bpf
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
    0x6265_6570, // configfs
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
];

/// Of a directory that folds upper and lower case (`chattr +F`).
const CASEFOLD: IFlags = IFlags::from_bits_retain(0x4000_0000);

/// File systems whose directories fold no names, or say so by [`CASEFOLD`]. Not XFS, which may have
/// been made to (`version=ci`), nor what a program or another machine serves.
const EXACT_FILE_SYSTEMS: [u32; 9] = [
    0x0000_ef53, // ext2, ext3, ext4
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlayfs
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // erofs
];

pub(super) fn fingerprint(file: impl AsFd, stat: &Stat) -> rustix::io::Result<Fingerprint> {
    // The file system's own id: device numbers may be others after a reboot. Some have none.
    let id = rustix::io::retry_on_intr(|| rustix::fs::fstatvfs(&file))?.f_fsid;
    let nanos = |s: i64, ns: u64| {
        s.saturating_mul(1_000_000_000).saturating_add(i64::try_from(ns).unwrap_or(0))
    };
    Ok(Fingerprint {
        device: if id == 0 { stat.st_dev } else { id },
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: nanos(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanos(stat.st_ctime, stat.st_ctime_nsec),
    })
}
