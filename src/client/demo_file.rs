//! The demo file: text lines that are all different, made once and whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

/// Every line begins with this.
const MARK: &str = "fts demo file, line ";

/// Whether the file was made, or was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    New,
    AlreadyThere,
}

/// Makes the file if nothing is at `path`. Of several processes one wins, and nobody sees a part of
/// it.
pub fn make_once(path: &Path, size: u64) -> io::Result<Made> {
    match fs::symlink_metadata(path) {
        Ok(_) => return Ok(Made::AlreadyThere),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(err),
    }
    write_aside(path, size, |temp| match rename_new(temp, path) {
        Ok(()) => Ok(Made::New),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(temp)?;
            Ok(Made::AlreadyThere)
        }
        Err(err) => Err(err),
    })
}

/// Makes the file, in place of an earlier demo file; any other file is left alone, and is an error.
pub fn make(path: &Path, size: u64) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && is_ours(path)? => {
            write_aside(path, size, |temp| fs::rename(temp, path))
        }
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something else than a demo file is there; remove it, or choose another path",
        )),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            write_aside(path, size, |temp| rename_new(temp, path))
        }
        Err(err) => Err(err),
    }
}

fn is_ours(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(MARK.len() as u64).read_to_end(&mut start)?;
    Ok(start.is_empty() || MARK.as_bytes().starts_with(&start))
}

/// Renames, but never over something that is there.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems (NFS) cannot; a link fails just as well on what is there.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        done => Ok(done?),
    }
}

/// Writes the lines beside `path`, and lets `publish` move them there. What could not be published
/// is removed.
fn write_aside<T>(
    path: &Path,
    size: u64,
    publish: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let name = format!(".{}.{:016x}.tmp", name.to_string_lossy(), fastrand::u64(..));
    let temp = path.with_file_name(name);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    let has_room = check_room(&file, size);
    let published = has_room.and_then(|()| write_lines(file, size)).and_then(|()| publish(&temp));
    if published.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temp);
    }
    published
}

/// Refuses what does not fit beside everything else on the file system of `file`: a disk that is
/// full harms others.
fn check_room(file: &File, size: u64) -> io::Result<()> {
    let system = rustix::fs::fstatvfs(file)?;
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if size <= free {
        return Ok(());
    }
    let text = format!("{size} bytes do not fit: {free} are free on its disk");
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// The same size gives the same bytes, so that a checksum seen once can be compared.
fn write_lines(file: File, size: u64) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut rng = fastrand::Rng::with_seed(size);
    let mut left = size;
    for line in 1u64.. {
        if left == 0 {
            break;
        }
        let [a, b, c, d] = [rng.u64(..), rng.u64(..), rng.u64(..), rng.u64(..)];
        let text = format!("{MARK}{line:012} {a:016x} {b:016x} {c:016x} {d:016x}\n");
        let part = usize::try_from(left).map_or(text.len(), |left| left.min(text.len()));
        out.write_all(&text.as_bytes()[..part])?;
        left -= part as u64;
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;

    #[test]
    fn it_is_made_once_and_whole_by_whoever_comes_first() {
        const SIZE: u64 = 1_000_001;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file_to_download.txt");
        let (new, start) = (AtomicUsize::new(0), Barrier::new(8));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    if make_once(&path, SIZE).expect("made") == Made::New {
                        new.fetch_add(1, Ordering::Relaxed);
                    }
                    assert_eq!(fs::metadata(&path).expect("there").len(), SIZE);
                });
            }
        });
        assert_eq!(new.load(Ordering::Relaxed), 1);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
        assert!(fs::read_to_string(&path).expect("text").starts_with(MARK));
    }

    #[test]
    fn what_is_there_is_not_touched() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        fs::write(&path, "mine").expect("written");
        assert_eq!(make_once(&path, 10).expect("looked"), Made::AlreadyThere);
        assert!(make(&path, 10).is_err());
        assert_eq!(fs::read_to_string(&path).expect("text"), "mine");
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        // Looked at alone first: a test that fails must not fill a disk.
        let file = File::create(dir.path().join("probe")).expect("created");
        let err = check_room(&file, u64::MAX).expect_err("too large");
        assert_eq!(err.kind(), io::ErrorKind::StorageFull);
        fs::remove_file(dir.path().join("probe")).expect("removed");
        let err = make(&path, u64::MAX).expect_err("too large");
        assert!(err.to_string().contains("do not fit"), "{err}");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0);
    }

    #[test]
    fn an_earlier_demo_file_is_replaced_by_hand() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        make(&path, 10).expect("made");
        make(&path, 1000).expect("replaced");
        assert_eq!(fs::metadata(&path).expect("there").len(), 1000);
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
