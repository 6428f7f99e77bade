//! What the kernel is asked about files: names are resolved by it beneath a directory, it says which
//! name an open file has, and of what kind and age it is.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, Stat},
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
    let system = rustix::io::retry_on_intr(|| rustix::fs::fstatfs(fd))?;
    // The kernel's magic numbers have 32 bits; the field is a signed word on some machines.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    if KERNEL_FILE_SYSTEMS.contains(&(system.f_type as u32)) {
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

/// Returns the name that an open file has beneath a directory, both as the kernel knows them now;
/// `None` if it has none.
pub(super) fn name_beneath(dir: &OwnedFd, fd: &OwnedFd) -> io::Result<Option<String>> {
    let name = |fd: &OwnedFd| {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        std::fs::read_link(link).map(|path| path.into_os_string().into_string().ok())
    };
    let (Some(dir), Some(file)) = (name(dir)?, name(fd)?) else { return Ok(None) };
    // What the kernel says of a name that is gone; a file that is called so is told apart by nobody.
    if dir.ends_with(" (deleted)") || file.ends_with(" (deleted)") {
        return Ok(None);
    }
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
