//! Reads one file from its first byte to its size at open, checks each chunk on the way, and says
//! at the end what was delivered: the file unchanged, its first bytes, or nothing. Blocks: it runs
//! on a thread of its own.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, Scope},
    time::Instant,
};

use bytes::Bytes;
use rustix::{fs::Advice, io::Errno};
use tokio_util::sync::CancellationToken;

use super::{
    pace::ReadPace,
    page_cache::Footprint,
    resume::{Plan, Proof, Trail},
    source::OpenFile,
};
use crate::{
    chunk::{self, Prefix, RootBuilder, Value},
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
    #[error("what the server keeps of it is not what the source has")]
    KeptDiffers,
    /// Nobody takes the messages any more, so nobody needs the reason.
    #[error("the upload has ended")]
    Unheard,
}

/// What one attempt reads, and how.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) file: &'a OpenFile,
    pub(super) consistency: Consistency,
    pub(super) plan: &'a Plan,
    pub(super) pool: &'a Pool,
    /// For what is read without being sent: a server that offers to go on, again and again, makes
    /// no more reading than the site allows. (It learns whether its values are those of the file;
    /// it may have that file, and has to guess a mebibyte.)
    pub(super) again: &'a ReadPace,
}

impl Reading<'_> {
    /// Sends the chunks of the file that the plan leaves to send, then Finish or Abort. Ends early,
    /// without either, once `send` returns false. Returns the values of what was read, if all of
    /// it, from the beginning, is proved: for the next attempt, in case that this one does not
    /// arrive.
    pub(super) fn read(self, send: &mut dyn FnMut(Upload) -> bool) -> Option<Trail> {
        let mut trail = Trail::new(self.file.fingerprint, self.plan.kept.clone());
        let mut is_proved = self.plan.proof == Proof::Known;
        let last = match self.whole(send, &mut trail, &mut is_proved) {
            Ok(finish) => Some(finish),
            Err(ReadError::Unheard) => None,
            Err(err) => {
                let reason = match err {
                    ReadError::Io(_) => FailReason::Io,
                    ReadError::KeptDiffers => FailReason::Integrity,
                    ReadError::Changed(_) | ReadError::Unheard => FailReason::SourceChanged,
                };
                is_proved &= reason == FailReason::Io;
                Some(Upload::Abort { reason, detail: err.to_string() })
            }
        };
        last.map(&mut *send);
        is_proved.then_some(trail)
    }

    fn whole(
        self,
        send: &mut dyn FnMut(Upload) -> bool,
        trail: &mut Trail,
        is_proved: &mut bool,
    ) -> Result<Upload, ReadError> {
        let Self { file, consistency, plan, pool, again } = self;
        let size = file.fingerprint.size_bytes;
        // Only advice: without it reading is slower, and as good.
        let _ = rustix::fs::fadvise(file.file(), 0, None, Advice::Sequential);
        let (digest, last_chunk) = thread::scope(|scope| {
            let mut check = KeptCheck::new(scope, file, plan, again);
            let mut last_chunk = None;
            let take = |offset, data: Bytes, value| {
                check.look()?;
                let chunk = Upload::Chunk { offset, crc32c: chunk::crc32c(&data), data };
                if offset + limits::CHUNK_BYTES as u64 >= size {
                    last_chunk = Some(chunk.clone());
                }
                if let Some(value) = value {
                    trail.push(value);
                }
                heard(send(chunk))
            };
            let digest = each_chunk(file, size, plan.kept.clone(), pool, |_| Ok(()), take)?;
            check.wait(|| heard(last_chunk.clone().is_none_or(&mut *send)))?;
            Ok::<_, ReadError>((digest, last_chunk))
        })?;
        *is_proved |= plan.proof == Proof::ReadAgain;
        let is_trusted = plan.proof == Proof::Fingerprint;
        let mut trusted_bytes = if is_trusted { plan.kept.bytes() } else { 0 };
        let mut after = file.fingerprint_now()?;
        let delivered = match change(&file.fingerprint, &after, consistency) {
            Change::None => Delivered::Unchanged,
            Change::Grew => {
                if self.read_again(last_chunk.as_ref(), send)? != digest {
                    return Err(ReadError::Changed("its first bytes are others when read again"));
                }
                after = file.fingerprint_now()?;
                trusted_bytes = 0;
                Delivered::Prefix
            }
            Change::Other(what) => return Err(ReadError::Changed(what)),
        };
        let finish = Finish { digest, delivered, trusted_bytes };
        Ok(Upload::Finish { size, finish, fingerprint: after })
    }

    /// Computes the root once more. The server sees the last chunk repeated meanwhile, which it
    /// ignores, so that it knows of a large file that this end is alive.
    fn read_again(
        self,
        last_chunk: Option<&Upload>,
        send: &mut dyn FnMut(Upload) -> bool,
    ) -> Result<Digest, ReadError> {
        let Self { file, pool, again, .. } = self;
        let mut told = Instant::now();
        let mut step = || {
            if told.elapsed() < limits::REPEAT_CHUNK_EVERY {
                return Ok(());
            }
            told = Instant::now();
            heard(last_chunk.cloned().is_none_or(&mut *send))
        };
        let before = |bytes| await_pace(again, &again.over, bytes, &mut step);
        let size = file.fingerprint.size_bytes;
        each_chunk(file, size, Prefix::default(), pool, before, |_, _, _| Ok(()))
    }
}

/// Waits until so many bytes may be read again; `each` is called for each part of them.
fn await_pace(
    again: &ReadPace,
    stop: &CancellationToken,
    bytes: usize,
    mut each: impl FnMut() -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut left = bytes;
    while left > 0 {
        left -= again.take(left, stop).ok_or(ReadError::Unheard)?;
        each()?;
    }
    Ok(())
}

fn heard(is_heard: bool) -> Result<(), ReadError> {
    if is_heard { Ok(()) } else { Err(ReadError::Unheard) }
}

/// Reads the file's first `size` bytes, without those that are `kept`, and returns the root of all.
/// `before` is told how many bytes each read wants.
fn each_chunk(
    file: &OpenFile,
    size: u64,
    kept: Prefix,
    pool: &Pool,
    mut before: impl FnMut(usize) -> Result<(), ReadError>,
    mut take: impl FnMut(u64, Bytes, Option<Value>) -> Result<(), ReadError>,
) -> Result<Digest, ReadError> {
    let mut offset = kept.bytes();
    let mut footprint = Footprint::new(file.file(), offset, size);
    let mut root = RootBuilder::resume(size, kept).expect("a plan keeps less than the file");
    while offset < size {
        let mut buffer = pool.take();
        let part = &mut buffer[..chunk::chunk_len(size, offset)];
        before(part.len())?;
        footprint.before_read();
        if !fill(file, part, offset)? {
            return Err(ReadError::Changed("it became shorter"));
        }
        footprint.after_read(offset, part.len());
        let value = root.push(part);
        let length = part.len();
        take(offset, pool.bytes(buffer, length), value)?;
        offset += length as u64;
    }
    Ok(root.finish())
}

/// Reads the kept bytes again, on a thread beside the one that sends the rest.
struct KeptCheck {
    result: Option<mpsc::Receiver<Result<(), ReadError>>>,
    /// Counts on as long as it goes on.
    done: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl KeptCheck {
    /// Begins, if that is the proof.
    fn new<'scope>(
        scope: &'scope Scope<'scope, '_>,
        file: &'scope OpenFile,
        plan: &Plan,
        again: &'scope ReadPace,
    ) -> Self {
        let (stop, done) = (again.over.child_token(), Arc::new(AtomicU64::new(0)));
        if plan.proof != Proof::ReadAgain {
            return Self { result: None, done, stop };
        }
        let (tell, result) = mpsc::sync_channel(1);
        let (kept, stopped, count) = (plan.kept.clone(), stop.clone(), done.clone());
        scope.spawn(move || {
            // Whoever asked may have gone.
            drop(tell.send(compare(file, &kept, again, &stopped, &count)));
        });
        Self { result: Some(result), done, stop }
    }

    /// Fails once it is known that the bytes differ.
    fn look(&mut self) -> Result<(), ReadError> {
        match self.result.as_ref().map(mpsc::Receiver::try_recv) {
            Some(Ok(result)) => {
                self.result = None;
                result
            }
            _ => Ok(()),
        }
    }

    /// Waits for the end. `alive` is called now and then meanwhile, for as long as it goes on: a
    /// disk that hangs must look like that.
    fn wait(&mut self, mut alive: impl FnMut() -> Result<(), ReadError>) -> Result<(), ReadError> {
        let Some(result) = self.result.take() else { return Ok(()) };
        let mut seen = 0;
        loop {
            match result.recv_timeout(limits::REPEAT_CHUNK_EVERY) {
                Ok(result) => return result,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let done = self.done.load(Ordering::Relaxed);
                    if done > seen {
                        alive()?;
                    }
                    seen = done;
                }
                // It panicked, and the scope passes that on.
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(ReadError::Unheard),
            }
        }
    }
}

impl Drop for KeptCheck {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Compares the beginning of the file with the values of what is kept.
fn compare(
    file: &OpenFile,
    kept: &Prefix,
    again: &ReadPace,
    stop: &CancellationToken,
    done: &AtomicU64,
) -> Result<(), ReadError> {
    let mut footprint = Footprint::new(file.file(), 0, kept.bytes());
    let mut buffer = vec![0; limits::CHUNK_BYTES];
    let mut found = Prefix::default();
    while found.bytes() < kept.bytes() {
        await_pace(again, stop, buffer.len(), || {
            done.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })?;
        let offset = found.bytes();
        footprint.before_read();
        if !fill(file, &mut buffer, offset)? {
            return Err(ReadError::Changed("it became shorter"));
        }
        footprint.after_read(offset, buffer.len());
        found.push(chunk::value(offset, &buffer));
    }
    if found == *kept { Ok(()) } else { Err(ReadError::KeptDiffers) }
}

/// Fills `part` from the file; returns false if the file ends before.
fn fill(file: &OpenFile, mut part: &mut [u8], mut offset: u64) -> io::Result<bool> {
    #[cfg(test)]
    hang(&file.path, "read-hangs");
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

/// Does not return, as a call to a disk that does not answer, while there is a file of this name
/// with such an end.
#[cfg(test)]
pub(super) fn hang(path: &str, end: &str) {
    while std::path::Path::new(&format!("{path}.{end}")).exists() {
        #[allow(clippy::disallowed_methods)] // no event tells of it
        thread::sleep(std::time::Duration::from_millis(5));
    }
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

    fn at_any_pace() -> ReadPace {
        ReadPace::new(None, Arc::default(), CancellationToken::new())
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
        let source = Source::new(
            &Shared::Policy(crate::client::policy::Policy::of_roots(vec![root])),
            Arc::new(state),
        );
        let path_asked = path.to_str().expect("text").parse().expect("a path");
        let file = source.open(&Ok(Some(path_asked))).expect("open");
        let (mut sent, mut last, mut meddle) = (Vec::new(), None, Some(meddle));
        let (plan, pool, again) = (Plan::from_zero(""), Pool::default(), at_any_pace());
        let reading = Reading { file: &file, consistency, plan: &plan, pool: &pool, again: &again };
        reading.read(&mut |message| {
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
        let source = Source::new(
            &Shared::Policy(crate::client::policy::Policy::of_roots(vec![root.clone()])),
            Arc::new(state),
        );
        let file = source.open(&Ok(Some(root))).expect("open");
        let mut messages = 0;
        let (plan, pool, again) = (Plan::from_zero(""), Pool::default(), at_any_pace());
        let consistency = Consistency::Auto;
        let reading = Reading { file: &file, consistency, plan: &plan, pool: &pool, again: &again };
        reading.read(&mut |_| {
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
