//! The signed requests that this client has begun to answer, until they expire: so that one that
//! was delivered is good for nothing more, after a restart too, and one transfer has one signature.
//! In a file of the state directory, synced before a byte is sent. What cannot be remembered is not
//! answered. Everything here blocks.
//!
//! The file is a head and records of one length, `B` or `S`, transfer, expiry, digest. A record
//! never moves; delivered, its first byte becomes `S`, which needs no room. What has expired is
//! dropped by writing the file anew. The head has the latest expiry that was dropped: with a clock
//! that was set back, nothing comes to life again.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError},
};

use blake3::Hash;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{policy::signed::Unsigned, state_dir::StateDir};
use crate::{
    ids::{TransferId, UnixMs},
    limits,
};

const NAME: &str = "signed-requests";
const NEW_NAME: &str = "signed-requests.new";
const HEAD: &str = "fts signed requests 1 ";
/// A moment, in digits.
const MOMENT_BYTES: usize = 20;
const HEAD_BYTES: usize = HEAD.len() + MOMENT_BYTES + 1;
const RECORD_BYTES: usize = 2 + 36 + 1 + MOMENT_BYTES + 1 + 64 + 1;
/// What has expired is looked for when there are so many, and then when there are twice as many as
/// were left.
const FORGET_FROM: usize = 1024;

/// What is remembered; read when it is needed first.
#[derive(Debug)]
pub(super) struct Spent {
    dir: Arc<StateDir>,
    memory: Mutex<Option<Memory>>,
}

#[derive(Debug)]
struct Memory {
    file: File,
    /// Nothing that expires sooner is believed: it may have been forgotten.
    floor: UnixMs,
    known: HashMap<TransferId, Known>,
    /// Where the next record goes. A record that could not be written whole is written over.
    end: u64,
    /// Delivered, which the file could not be told yet.
    owed: Vec<TransferId>,
    forget_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    at: u64,
    expires: UnixMs,
    digest: Hash,
    is_spent: bool,
}

impl Spent {
    pub(super) fn new(dir: Arc<StateDir>) -> Self {
        Self { dir, memory: Mutex::default() }
    }

    /// Notes that a request is about to be answered; again, in a later attempt. `digest` is of all
    /// that was signed, and the signature.
    pub(super) fn begin(
        &self,
        transfer: TransferId,
        expires: UnixMs,
        digest: Hash,
        now: UnixMs,
    ) -> Result<(), Unsigned> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |err: io::Error| {
            tracing::error!(error = %err, "cannot remember signed requests, so takes none");
            Unsigned::NotRemembered
        };
        if memory.is_none() {
            *memory = Some(Memory::load(&self.dir, now).map_err(failed)?);
        }
        let memory = memory.as_mut().expect("it was just read");
        memory.settle().map_err(failed)?;
        if expires <= memory.floor {
            return Err(Unsigned::Expired);
        }
        if let Some(known) = memory.known.get(&transfer) {
            return match known {
                known if known.digest != digest => Err(Unsigned::Reused),
                known if known.is_spent => Err(Unsigned::Spent),
                _ => Ok(()),
            };
        }
        if memory.known.len() >= memory.forget_at {
            memory.forget(&self.dir, now).map_err(failed)?;
        }
        if memory.known.len() >= limits::SIGNED_REMEMBERED_MAX {
            return Err(failed(io::Error::other("there are as many as are remembered")));
        }
        memory.add(transfer, expires, digest).map_err(failed)
    }

    /// Notes that a request which was begun has been delivered. Whatever the disk does, it is spent
    /// for this process, and nothing more is begun until the file says so too.
    pub(super) fn spend(&self, transfer: TransferId) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(memory) = memory.as_mut() else { return };
        let Some(known) = memory.known.get_mut(&transfer) else { return };
        known.is_spent = true;
        memory.owed.push(transfer);
        if let Err(err) = memory.settle() {
            tracing::error!(error = %err, "cannot note that a signed request was delivered");
        }
    }
}

impl Memory {
    fn load(dir: &StateDir, now: UnixMs) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file: File = match rustix::fs::openat(dir.fd()?, NAME, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::NOENT) => return Self::write(dir, UnixMs(0), &HashMap::new()),
            Err(err) => return Err(err.into()),
        };
        let most = HEAD_BYTES + RECORD_BYTES * (limits::SIGNED_REMEMBERED_MAX + 1);
        let mut bytes = Vec::new();
        (&mut file).take(most as u64 + 1).read_to_end(&mut bytes)?;
        let damaged = || io::Error::other(format!("{NAME} in the state directory is damaged"));
        let (head, records) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(damaged)?;
        let floor = head_of(head).ok_or_else(damaged)?;
        let mut known = HashMap::new();
        let mut end = HEAD_BYTES as u64;
        let mut records = records.chunks(RECORD_BYTES).peekable();
        while let Some(record) = records.next() {
            match record_of(record, end) {
                Some((transfer, record)) => drop(known.insert(transfer, record)),
                // Not synced when the machine went down, so nothing was sent.
                None if records.peek().is_none() => break,
                None => return Err(damaged()),
            }
            end += RECORD_BYTES as u64;
        }
        let forget_at = forget_at(known.len());
        let mut memory = Self { file, floor, known, end, owed: Vec::new(), forget_at };
        // Else the file stays as it is: on a full disk what was begun goes on.
        if memory.known.values().any(|known| known.expires <= now) {
            memory.forget(dir, now)?;
        }
        Ok(memory)
    }

    /// Writes the file anew, whole, and then gives it its name.
    fn write(
        dir: &StateDir,
        floor: UnixMs,
        known: &HashMap<TransferId, Known>,
    ) -> io::Result<Self> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir.fd()?, NEW_NAME, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(fd);
        let mut text = head(floor);
        let mut moved = HashMap::with_capacity(known.len());
        for (transfer, each) in known {
            moved.insert(*transfer, Known { at: text.len() as u64, ..*each });
            text += &record(*transfer, each);
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        rustix::fs::renameat(dir.fd()?, NEW_NAME, dir.fd()?, NAME)?;
        rustix::fs::fsync(dir.fd()?)?;
        let forget_at = forget_at(known.len());
        let end = text.len() as u64;
        Ok(Self { file, floor, known: moved, end, owed: Vec::new(), forget_at })
    }

    /// Drops what has expired.
    fn forget(&mut self, dir: &StateDir, now: UnixMs) -> io::Result<()> {
        let gone = self.known.values().filter(|known| known.expires <= now);
        let floor = gone.map(|known| known.expires).fold(self.floor, UnixMs::max);
        let mut left = self.known.clone();
        left.retain(|_, known| known.expires > now);
        *self = Self::write(dir, floor, &left)?;
        Ok(())
    }

    fn add(&mut self, transfer: TransferId, expires: UnixMs, digest: Hash) -> io::Result<()> {
        let known = Known { at: self.end, expires, digest, is_spent: false };
        self.file.write_all_at(record(transfer, &known).as_bytes(), known.at)?;
        self.file.sync_data()?;
        self.end += RECORD_BYTES as u64;
        self.known.insert(transfer, known);
        Ok(())
    }

    /// Tells the file what it has not been told yet.
    fn settle(&mut self) -> io::Result<()> {
        while let Some(known) = self.owed.last().and_then(|owed| self.known.get(owed)) {
            self.file.write_all_at(b"S", known.at)?;
            self.file.sync_data()?;
            self.owed.pop();
        }
        Ok(())
    }
}

/// Returns at how many records to look for what has expired, now that so many are left.
fn forget_at(left: usize) -> usize {
    (2 * left).clamp(FORGET_FROM, limits::SIGNED_REMEMBERED_MAX)
}

fn head(floor: UnixMs) -> String {
    format!("{HEAD}{:0MOMENT_BYTES$}\n", floor.0)
}

fn head_of(bytes: &[u8]) -> Option<UnixMs> {
    let text = std::str::from_utf8(bytes).ok()?;
    let floor = text.strip_prefix(HEAD)?.strip_suffix('\n')?;
    floor.parse().ok().map(UnixMs)
}

fn record(transfer: TransferId, known: &Known) -> String {
    let mark = if known.is_spent { 'S' } else { 'B' };
    let digest = known.digest.to_hex();
    format!("{mark} {transfer} {:0MOMENT_BYTES$} {digest}\n", known.expires.0)
}

fn record_of(bytes: &[u8], at: u64) -> Option<(TransferId, Known)> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let fields: Vec<&str> = text.split(' ').collect();
    let [mark, transfer, expires, digest] = fields.as_slice() else { return None };
    let is_spent = match *mark {
        "S" => true,
        "B" => false,
        _ => return None,
    };
    let known = Known {
        at,
        expires: UnixMs(expires.parse().ok()?),
        digest: Hash::from_hex(digest).ok()?,
        is_spent,
    };
    (bytes.len() == RECORD_BYTES).then_some((transfer.parse().ok()?, known))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use tempfile::TempDir;

    use super::*;

    const NOW: UnixMs = UnixMs(1_700_000_000_000);
    const LATER: UnixMs = UnixMs(NOW.0 + 1000);

    struct Place {
        temp: TempDir,
        dir: Option<Arc<StateDir>>,
    }

    impl Place {
        fn new() -> Self {
            Self { temp: tempfile::tempdir().expect("a directory"), dir: None }
        }

        /// The client starts, again.
        fn start(&mut self) -> Spent {
            self.dir = None;
            let dir = Arc::new(StateDir::open(&self.temp.path().join("state")).expect("free"));
            self.dir = Some(dir.clone());
            Spent::new(dir)
        }

        fn file(&self) -> PathBuf {
            self.temp.path().join("state").join(NAME)
        }
    }

    fn digest(text: &str) -> Hash {
        blake3::hash(text.as_bytes())
    }

    fn begin(spent: &Spent, transfer: TransferId, text: &str) -> Result<(), Unsigned> {
        spent.begin(transfer, LATER, digest(text), NOW)
    }

    #[test]
    fn what_was_delivered_is_spent_also_after_a_restart() {
        let mut place = Place::new();
        let spent = place.start();
        let [one, two] = [TransferId::generate(), TransferId::generate()];
        for _ in 0..2 {
            assert_eq!(begin(&spent, one, "one"), Ok(()));
            assert_eq!(begin(&spent, two, "two"), Ok(()));
        }
        spent.spend(one);
        assert_eq!(begin(&spent, one, "one"), Err(Unsigned::Spent));
        drop(spent);

        for _ in 0..2 {
            let spent = place.start();
            assert_eq!(begin(&spent, one, "one"), Err(Unsigned::Spent));
            assert_eq!(begin(&spent, two, "two"), Ok(()));
        }
    }

    #[test]
    fn a_transfer_has_one_signature_also_after_a_restart() {
        let mut place = Place::new();
        let spent = place.start();
        let one = TransferId::generate();
        assert_eq!(begin(&spent, one, "one"), Ok(()));
        assert_eq!(begin(&spent, one, "other"), Err(Unsigned::Reused));
        drop(spent);
        assert_eq!(begin(&place.start(), one, "other"), Err(Unsigned::Reused));
    }

    #[test]
    fn what_was_forgotten_is_not_believed_when_the_clock_is_set_back() {
        let mut place = Place::new();
        let spent = place.start();
        let one = TransferId::generate();
        assert_eq!(begin(&spent, one, "one"), Ok(()));
        spent.spend(one);
        drop(spent);

        let spent = place.start();
        let much_later = UnixMs(LATER.0 + 1000);
        let two = TransferId::generate();
        assert_eq!(spent.begin(two, UnixMs(i64::MAX), digest("two"), LATER), Ok(()));
        assert_eq!(fs::read(place.file()).expect("read").len(), HEAD_BYTES + RECORD_BYTES);
        assert_eq!(begin(&spent, one, "one"), Err(Unsigned::Expired));
        assert_eq!(spent.begin(one, much_later, digest("one"), NOW), Ok(()));
        drop(spent);
        let new = TransferId::generate();
        assert_eq!(begin(&place.start(), new, "new"), Err(Unsigned::Expired));
    }

    #[test]
    fn what_was_not_written_whole_is_written_again() {
        let mut place = Place::new();
        let spent = place.start();
        let [one, two] = [TransferId::generate(), TransferId::generate()];
        assert_eq!(begin(&spent, one, "one"), Ok(()));
        spent.spend(one);
        assert_eq!(begin(&spent, two, "two"), Ok(()));
        drop(spent);
        let whole = fs::read(place.file()).expect("read");
        for torn in [1, RECORD_BYTES - 1] {
            fs::write(place.file(), &whole[..whole.len() - torn]).expect("written");
            let spent = place.start();
            assert_eq!(begin(&spent, one, "one"), Err(Unsigned::Spent), "{torn}");
            assert_eq!(begin(&spent, two, "other"), Ok(()), "{torn}");
        }
    }

    #[test]
    fn nothing_is_begun_that_cannot_be_remembered() {
        let mut place = Place::new();
        let spent = place.start();
        let [one, two, three] = [(); 3].map(|()| TransferId::generate());
        assert_eq!(begin(&spent, one, "one"), Ok(()));
        assert_eq!(begin(&spent, two, "two"), Ok(()));
        // The disk fails: what is written goes to a file that takes nothing.
        let full = || File::options().write(true).open("/dev/full").expect("a device");
        let exchange = |file: File| {
            let mut memory = spent.memory.lock().expect("whole");
            std::mem::replace(&mut memory.as_mut().expect("read").file, file)
        };
        let good = exchange(full());
        assert_eq!(begin(&spent, three, "three"), Err(Unsigned::NotRemembered));
        spent.spend(one);
        // Also what needs no room: another may be owed.
        assert_eq!(begin(&spent, two, "two"), Err(Unsigned::NotRemembered));

        exchange(good);
        assert_eq!(begin(&spent, one, "one"), Err(Unsigned::Spent));
        assert_eq!(begin(&spent, two, "two"), Ok(()));
        assert_eq!(begin(&spent, three, "three"), Ok(()));
        drop(spent);
        let spent = place.start();
        assert_eq!(begin(&spent, one, "one"), Err(Unsigned::Spent));
        assert_eq!(begin(&spent, three, "other"), Err(Unsigned::Reused));
    }

    #[test]
    fn a_damaged_file_lets_nothing_begin() {
        let mut place = Place::new();
        let spent = place.start();
        for _ in 0..2 {
            assert_eq!(begin(&spent, TransferId::generate(), "x"), Ok(()));
        }
        drop(spent);
        let whole = fs::read(place.file()).expect("read");
        for at in [0, HEAD_BYTES - 2, HEAD_BYTES, HEAD_BYTES + RECORD_BYTES - 1] {
            let mut damaged = whole.clone();
            damaged[at] = b'x';
            fs::write(place.file(), damaged).expect("written");
            let refused = begin(&place.start(), TransferId::generate(), "new");
            assert_eq!(refused, Err(Unsigned::NotRemembered), "{at}");
        }
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let mut place = Place::new();
        let known = Known { at: 0, expires: LATER, digest: digest("x"), is_spent: true };
        let many = (0..limits::SIGNED_REMEMBERED_MAX).map(|_| (TransferId::generate(), known));
        let many = many.collect();
        place.start();
        let dir = place.dir.clone().expect("open");
        drop(Memory::write(&dir, UnixMs(0), &many).expect("written"));
        drop(dir);
        let spent = place.start();
        let new = TransferId::generate();
        assert_eq!(begin(&spent, new, "new"), Err(Unsigned::NotRemembered));
        // Once they have expired there is room.
        assert_eq!(spent.begin(new, UnixMs(LATER.0 + 1), digest("new"), LATER), Ok(()));
    }
}
