//! Reads one file from its first byte to its size at open, checks each chunk on the way, and says
//! at the end what was delivered: the file unchanged, its first bytes, or nothing. Blocks: it runs
//! on a thread of its own.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use rustix::{fs::Advice, io::Errno};

use super::{page_cache::Footprint, source::OpenFile};
use crate::{
    chunk::{self, RootBuilder},
    ids::Digest,
    limits,
    transfer::{Consistency, Delivered, FailReason, Fingerprint, Finish},
    wire::session::Upload,
};

/// Why reading ended without the file.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the client could not read it: {0}")]
    Io(#[from] io::Error),
    #[error("it changed while it was read: {0}")]
    Changed(&'static str),
    /// Nobody takes the messages any more, so nobody needs the reason.
    #[error("the upload has ended")]
    Unheard,
}

/// Sends the file's chunks, then Finish or Abort. Ends early, without either, once `send` returns
/// false.
pub(super) fn read(
    file: &OpenFile,
    consistency: Consistency,
    pool: &Pool,
    send: &mut dyn FnMut(Upload) -> bool,
) {
    let last = match read_whole(file, consistency, pool, send) {
        Ok(finish) => finish,
        Err(ReadError::Unheard) => return,
        Err(err @ ReadError::Io(_)) => {
            Upload::Abort { reason: FailReason::Io, detail: err.to_string() }
        }
        Err(err @ ReadError::Changed(_)) => {
            Upload::Abort { reason: FailReason::SourceChanged, detail: err.to_string() }
        }
    };
    send(last);
}

fn read_whole(
    file: &OpenFile,
    consistency: Consistency,
    pool: &Pool,
    send: &mut dyn FnMut(Upload) -> bool,
) -> Result<Upload, ReadError> {
    let size = file.fingerprint.size_bytes;
    // Only advice: without it reading is slower, and as good.
    let _ = rustix::fs::fadvise(file.file(), 0, None, Advice::Sequential);
    let mut last_chunk = None;
    let digest = each_chunk(file, size, pool, |offset, data| {
        let chunk = Upload::Chunk { offset, crc32c: chunk::crc32c(&data), data };
        if offset + limits::CHUNK_BYTES as u64 >= size {
            last_chunk = Some(chunk.clone());
        }
        send(chunk)
    })?;
    let mut after = file.fingerprint_now()?;
    let delivered = match change(&file.fingerprint, &after, consistency) {
        Change::None => Delivered::Unchanged,
        Change::Grew => {
            if read_again(file, size, pool, last_chunk.as_ref(), send)? != digest {
                return Err(ReadError::Changed("its first bytes are others when read again"));
            }
            after = file.fingerprint_now()?;
            Delivered::Prefix
        }
        Change::Other(what) => return Err(ReadError::Changed(what)),
    };
    Ok(Upload::Finish { size, finish: Finish { digest, delivered }, fingerprint: after })
}

/// Computes the root once more. The server sees the last chunk repeated meanwhile, which it
/// ignores, so that it knows of a large file that this end is alive.
fn read_again(
    file: &OpenFile,
    size: u64,
    pool: &Pool,
    last_chunk: Option<&Upload>,
    send: &mut dyn FnMut(Upload) -> bool,
) -> Result<Digest, ReadError> {
    let mut heard = Instant::now();
    each_chunk(file, size, pool, |_, _| {
        if heard.elapsed() < limits::REPEAT_CHUNK_EVERY {
            return true;
        }
        heard = Instant::now();
        last_chunk.cloned().is_none_or(&mut *send)
    })
}

/// Reads the file's first `size` bytes, and returns their root.
fn each_chunk(
    file: &OpenFile,
    size: u64,
    pool: &Pool,
    mut take: impl FnMut(u64, Bytes) -> bool,
) -> Result<Digest, ReadError> {
    let mut footprint = Footprint::new(file.file(), size);
    let mut root = RootBuilder::new(size);
    let mut offset = 0;
    while offset < size {
        let mut buffer = pool.take();
        let part = &mut buffer[..chunk::chunk_len(size, offset)];
        footprint.before_read();
        if !fill(file, part, offset)? {
            return Err(ReadError::Changed("it became shorter"));
        }
        footprint.after_read(offset, part.len());
        root.push(part);
        let length = part.len();
        if !take(offset, pool.bytes(buffer, length)) {
            return Err(ReadError::Unheard);
        }
        offset += length as u64;
    }
    Ok(root.finish())
}

/// Fills `part` from the file; returns false if the file ends before.
fn fill(file: &OpenFile, mut part: &mut [u8], mut offset: u64) -> io::Result<bool> {
    while !part.is_empty() {
        match rustix::io::pread(file.file(), &mut *part, offset) {
            Ok(0) => return Ok(false),
            Ok(read) => {
                part = &mut part[read..];
                offset += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(true)
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    /// Only longer: worth a second look.
    Grew,
    Other(&'static str),
}

fn change(before: &Fingerprint, after: &Fingerprint, consistency: Consistency) -> Change {
    if before == after {
        return Change::None;
    }
    if (before.device, before.inode) != (after.device, after.inode) {
        return Change::Other("it is another file");
    }
    match (after.size_bytes.cmp(&before.size_bytes), consistency) {
        (std::cmp::Ordering::Greater, Consistency::Auto) => Change::Grew,
        (std::cmp::Ordering::Greater, Consistency::Strict) => Change::Other("it became longer"),
        (std::cmp::Ordering::Less, _) => Change::Other("it became shorter"),
        (std::cmp::Ordering::Equal, _) => Change::Other("its times changed"),
    }
}

/// Buffers of a chunk each, used again once nobody reads them, by whichever upload is next.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// The first `length` bytes of a buffer, which goes back when the last reader drops it.
struct Filled {
    buffer: Vec<u8>,
    length: usize,
    pool: Pool,
}

impl Pool {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; limits::CHUNK_BYTES])
    }

    fn bytes(&self, buffer: Vec<u8>, length: usize) -> Bytes {
        Bytes::from_owner(Filled { buffer, length, pool: self.clone() })
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let mut spare = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as one upload has out at a time: those in the channel, one at each end of it.
        if spare.len() < limits::CHUNKS_IN_FLIGHT_MAX + 2 {
            spare.push(std::mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, FileTimes, OpenOptions},
        io::Write as _,
        path::{Path, PathBuf},
        time::SystemTime,
    };

    use tempfile::TempDir;

    use super::*;
    use crate::client::{config::Shared, source::Source, state_dir::StateDir};

    const SIZE: usize = 2 * limits::CHUNK_BYTES + 5;

    fn place() -> (TempDir, PathBuf, Vec<u8>) {
        let temp = tempfile::tempdir().expect("a directory");
        let path = temp.path().join("f");
        let data: Vec<u8> = (0..SIZE).map(|i| u8::try_from(i % 251).expect("small")).collect();
        fs::write(&path, &data).expect("written");
        (temp, path, data)
    }

    /// Reads the file; `meddle` is called once, after the first chunk.
    fn run(
        temp: &TempDir,
        consistency: Consistency,
        meddle: impl FnOnce(&Path),
    ) -> (Vec<u8>, Upload) {
        let path = temp.path().join("f");
        let state = StateDir::open(&temp.path().join("state")).expect("free");
        let root = path.to_str().expect("text").parse().expect("a path");
        let source = Source::new(&Shared::Roots(vec![root]), Arc::new(state));
        let path_asked = path.to_str().expect("text").parse().expect("a path");
        let file = source.open(&Ok(Some(path_asked))).expect("open");
        let (mut sent, mut last, mut meddle) = (Vec::new(), None, Some(meddle));
        read(&file, consistency, &Pool::default(), &mut |message| {
            match message {
                Upload::Chunk { offset, crc32c, data } => {
                    assert_eq!(offset, sent.len() as u64);
                    assert_eq!(crc32c, chunk::crc32c(&data));
                    sent.extend_from_slice(&data);
                    if let Some(meddle) = meddle.take() {
                        meddle(&path);
                    }
                }
                other => assert!(last.replace(other).is_none(), "one end"),
            }
            true
        });
        (sent, last.expect("an end"))
    }

    fn append(path: &Path) {
        let mut file = OpenOptions::new().append(true).open(path).expect("open");
        file.write_all(&vec![7; 3 * limits::CHUNK_BYTES]).expect("written");
    }

    fn overwrite(path: &Path, at: u64) {
        use std::os::unix::fs::FileExt as _;
        let file = OpenOptions::new().write(true).open(path).expect("open");
        file.write_all_at(b"!", at).expect("written");
    }

    fn shorten(path: &Path) {
        let file = OpenOptions::new().write(true).open(path).expect("open");
        file.set_len(9).expect("cut");
    }

    fn delivered(end: &Upload) -> (Delivered, Digest, u64) {
        match end {
            Upload::Finish { size, finish, .. } => (finish.delivered, finish.digest, *size),
            other => panic!("{other:?}"),
        }
    }

    fn aborted(end: &Upload) -> FailReason {
        match end {
            Upload::Abort { reason, .. } => *reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_unchanged_file_is_finished_with_its_root() {
        for length in [0, 1, limits::CHUNK_BYTES, limits::CHUNK_BYTES + 1, SIZE] {
            let (temp, path, data) = place();
            fs::write(&path, &data[..length]).expect("written");
            let (sent, end) = run(&temp, Consistency::Strict, |_| ());
            let root = blake3::hash(&data[..length]).into();
            assert_eq!(sent, data[..length]);
            assert_eq!(delivered(&end), (Delivered::Unchanged, root, length as u64));
        }
    }

    #[test]
    fn a_file_that_grew_is_a_prefix_under_auto_and_changed_under_strict() {
        let (temp, _, data) = place();
        let (sent, end) = run(&temp, Consistency::Auto, append);
        assert_eq!(sent, data);
        let root = blake3::hash(&data).into();
        assert_eq!(delivered(&end), (Delivered::Prefix, root, SIZE as u64));

        let (temp, _, _) = place();
        let (_, end) = run(&temp, Consistency::Strict, append);
        assert_eq!(aborted(&end), FailReason::SourceChanged);
    }

    #[test]
    fn a_file_that_grew_over_other_bytes_is_changed() {
        let (temp, _, _) = place();
        let (_, end) = run(&temp, Consistency::Auto, |path| {
            overwrite(path, 0);
            append(path);
        });
        assert_eq!(aborted(&end), FailReason::SourceChanged);
    }

    #[test]
    fn any_other_change_is_changed() {
        let changes: [fn(&Path); 4] = [
            |path| overwrite(path, 3),
            |path| overwrite(path, SIZE as u64 - 1),
            shorten,
            |path| {
                let times = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
                let file = OpenOptions::new().write(true).open(path).expect("open");
                file.set_times(times).expect("set");
            },
        ];
        for (index, meddle) in changes.into_iter().enumerate() {
            for consistency in [Consistency::Auto, Consistency::Strict] {
                let (temp, _, _) = place();
                let (sent, end) = run(&temp, consistency, meddle);
                assert_eq!(aborted(&end), FailReason::SourceChanged, "{index}");
                assert!(sent.len() <= SIZE);
            }
        }
    }

    #[test]
    fn a_reader_that_nobody_hears_ends_at_once() {
        let (temp, path, _) = place();
        let state = StateDir::open(&temp.path().join("state")).expect("free");
        let root: crate::ids::RemotePath = path.to_str().expect("text").parse().expect("a path");
        let source = Source::new(&Shared::Roots(vec![root.clone()]), Arc::new(state));
        let file = source.open(&Ok(Some(root))).expect("open");
        let mut messages = 0;
        read(&file, Consistency::Auto, &Pool::default(), &mut |_| {
            messages += 1;
            false
        });
        assert_eq!(messages, 1);
    }

    #[test]
    fn buffers_are_used_again() {
        let pool = Pool::default();
        let first = pool.take();
        let address = first.as_ptr();
        drop(pool.bytes(first, 10));
        let second = pool.take();
        assert_eq!(second.as_ptr(), address);
    }
}
