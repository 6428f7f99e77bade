//! A disk that fails at any one call loses nothing: what is COMPLETE is whole, what is not is not
//! there, and the next attempt delivers.

mod common;

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use common::{
    bytes, files_beneath,
    process::ServerProcess,
    raw::{Ending, RawSession, RawUpload, chunks, finish, hello, receipt, upload},
    server::{Setup, TestServer},
};
use fts::{
    limits::CHUNK_BYTES,
    server::landing::{Disk, RealDisk, Space},
    wire::{
        proto::{self, State, WaitingReason, receipt::Status},
        session::{FromClient, FromServer, Header, Outcome, Report, Upload},
    },
};
use sqlx::Connection as _;

/// Fails once, after as many calls as it is told; then it works again.
struct FaultyDisk {
    calls_left: Arc<AtomicI64>,
    error: fn() -> io::Error,
    /// The call that failed.
    failed: Arc<Mutex<&'static str>>,
}

impl FaultyDisk {
    fn tick(&self, call: &'static str) -> io::Result<()> {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            *self.failed.lock().expect("no panic") = call;
            Err((self.error)())
        } else {
            Ok(())
        }
    }
}

impl Disk for FaultyDisk {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        self.tick("create_new")?;
        RealDisk.create_new(dir, name)
    }

    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.tick("reserve")?;
        RealDisk.reserve(file, bytes)
    }

    fn space(&self, dir: &OwnedFd) -> io::Result<Space> {
        self.tick("space")?;
        RealDisk.space(dir)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.tick("write_at")?;
        RealDisk.write_at(file, data, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.tick("sync_data")?;
        RealDisk.sync_data(file)
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        self.tick("truncate")?;
        RealDisk.truncate(file, len)
    }

    fn rename(&self, old: (&OwnedFd, &str), new: (&OwnedFd, &str)) -> io::Result<()> {
        self.tick("rename")?;
        RealDisk.rename(old, new)
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        self.tick("sync_dir")?;
        RealDisk.sync_dir(dir)
    }

    fn remove(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.tick("remove")?;
        RealDisk.remove(dir, name)
    }

    fn make_dir(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.tick("make_dir")?;
        RealDisk.make_dir(dir, name)
    }
}

/// Files under their final names.
fn visible(server: &TestServer) -> Vec<PathBuf> {
    let partial = server.dir().join("files/partial");
    let all = files_beneath(&server.dir().join("files"));
    all.into_iter().filter(|path| !path.starts_with(&partial)).collect()
}

/// Uploads with the n-th call failing, for every n, until an upload makes no more calls than that.
async fn every_call_may_fail(error: fn() -> io::Error, waiting: WaitingReason) {
    every_call_of(&bytes(2 * CHUNK_BYTES + 9, 1), 8, error, waiting).await;
    // A small file lands in another way.
    every_call_of(&bytes(5, 1), 6, error, waiting).await;
}

async fn every_call_of(
    data: &[u8],
    calls_min: i64,
    error: fn() -> io::Error,
    waiting: WaitingReason,
) {
    for nth in 0.. {
        let calls_left = Arc::new(AtomicI64::new(-1));
        let failed = Arc::default();
        let disk = Box::new(FaultyDisk { calls_left: Arc::clone(&calls_left), error, failed });
        let server = TestServer::start_with(Setup { disk, ..Setup::default() }).await;
        let mut session = RawSession::open(&server, "client-1").await;
        let transfer = server.trigger("client-1", "/raw").await;
        let attempt = session.command().await.attempt;
        calls_left.store(nth, Ordering::SeqCst);

        let header = session.header(attempt, data);
        let mut raw = RawUpload::open(server.address).await;
        raw.send_all(upload(&header, data)).await;
        let answer = raw.answer().await;

        let had_its_fault = calls_left.load(Ordering::SeqCst) < 0;
        if let Ok(answer) = answer {
            // The fault, if any, was in cleaning up.
            assert_eq!(receipt(&answer), Status::Complete);
            assert!(server.landed(&transfer.id).await.1 == data, "call {nth}");
        } else {
            assert!(had_its_fault, "call {nth}: {answer:?}");
            let after = server.follow(&transfer.id, |t| t.state() == State::Interrupted).await;
            let why = after.waiting.as_ref().map(proto::Waiting::reason);
            assert_eq!(why, Some(waiting), "call {nth}: {after:?}");
            assert!(visible(&server).is_empty(), "call {nth}: {:?}", visible(&server));
            deliver_again(&server, &transfer.id, data).await;
        }
        assert_eq!(visible(&server).len(), 1, "call {nth}: it landed once");
        server.stop().await;
        if !had_its_fault {
            assert!(nth >= calls_min, "only {nth} calls were made");
            return;
        }
    }
}

/// The client comes back, which makes the transfer due at once; the disk works again.
async fn deliver_again(server: &TestServer, id: &str, data: &[u8]) {
    let hello = hello("client-1", fts::ids::InstanceId::generate());
    let mut session = RawSession::open_as(server, hello).await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, data)).await;
    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    assert!(server.landed(id).await.1 == data);
}

#[tokio::test]
async fn an_io_error_at_any_call_loses_nothing() {
    every_call_may_fail(EIO, WaitingReason::Backoff).await;
}

#[tokio::test]
async fn a_full_disk_at_any_call_waits_with_its_reason() {
    every_call_may_fail(ENOSPC, WaitingReason::ServerDiskLow).await;
}

const EIO: fn() -> io::Error = || io::Error::from_raw_os_error(5);
const ENOSPC: fn() -> io::Error = || io::Error::from_raw_os_error(28);
const EROFS: fn() -> io::Error = || io::Error::from_raw_os_error(30);
const EDQUOT: fn() -> io::Error = || io::Error::from_raw_os_error(122);

#[tokio::test]
async fn a_disk_that_is_read_only_or_over_its_quota_at_any_call_waits_with_its_reason() {
    every_call_may_fail(EROFS, WaitingReason::ServerDiskLow).await;
    every_call_may_fail(EDQUOT, WaitingReason::ServerDiskLow).await;
}

const MIB: u64 = CHUNK_BYTES as u64;

/// Uploads the first two chunks, and lets client and connection go. They are kept.
async fn keep_two_chunks(server: &TestServer, data: &[u8]) -> String {
    let mut session = RawSession::open(server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    raw.send_all(chunks(data).into_iter().take(2)).await;
    server.shown(&id, |t| t.bytes_done == 2 * MIB).await;
    drop(session);
    raw.end(Ending::Close, finish(&header, data)).await;
    server.shown(&id, |t| t.state() == State::Interrupted && t.bytes_kept == 2 * MIB).await;
    id
}

/// The client comes back, and sends what is not kept; returns the answer, how much was kept, and the
/// client.
async fn go_on(
    server: &TestServer,
    data: &[u8],
    before: impl FnOnce(),
) -> (Result<proto::UploadFileResponse, tonic::Status>, u64, RawSession) {
    let hello = hello("client-1", fts::ids::InstanceId::generate());
    let mut session = RawSession::open_as(server, hello).await;
    let command = session.command().await;
    let offset = command.resume.map_or(0, |resume| resume.kept.bytes());
    let header = Header { offset, ..session.header(command.attempt, data) };
    before();
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    let first = usize::try_from(offset / MIB).expect("small");
    raw.send_all(chunks(data).into_iter().skip(first)).await;
    raw.send(finish(&header, data)).await;
    (raw.answer().await, offset, session)
}

/// Resumes an upload with the n-th call failing, for every n. What is kept is lost only to a failure
/// after which it cannot be believed.
async fn every_call_of_a_resumed_upload_may_fail(error: fn() -> io::Error, keeps: bool) {
    let data = bytes(3 * CHUNK_BYTES + 9, 7);
    for nth in 0.. {
        let (calls_left, failed) = (Arc::new(AtomicI64::new(-1)), Arc::new(Mutex::new("")));
        let (calls, call) = (Arc::clone(&calls_left), Arc::clone(&failed));
        let disk = Box::new(FaultyDisk { calls_left: calls, error, failed: call });
        let server = TestServer::start_with(Setup { disk, ..Setup::default() }).await;
        let id = keep_two_chunks(&server, &data).await;

        let arm = || calls_left.store(nth, Ordering::SeqCst);
        let (answer, offset, _session) = go_on(&server, &data, arm).await;

        assert_eq!(offset, 2 * MIB);
        let had_its_fault = calls_left.load(Ordering::SeqCst) < 0;
        let call = *failed.lock().expect("no panic");
        if answer.is_err() {
            assert!(had_its_fault, "call {nth}: {answer:?}");
            let after = server.follow(&id, |t| t.state() == State::Interrupted).await;
            // Opening it writes nothing; a sync that failed, of the data or of the name, tells nothing.
            let is_opened = ["space", "truncate", "reserve"].contains(&call);
            let is_kept = is_opened || (keeps && !["sync_data", "sync_dir"].contains(&call));
            let kept = server.shown(&id, |t| (t.bytes_kept > 0) == is_kept).await;
            assert!(kept.bytes_kept == 0 || kept.bytes_kept >= 2 * MIB, "{call}: {kept:?}");
            let why = after.waiting.as_ref().map(proto::Waiting::reason);
            let reason = if keeps { WaitingReason::ServerDiskLow } else { WaitingReason::Backoff };
            assert_eq!(why, Some(reason), "{call}: {after:?}");
            assert!(visible(&server).is_empty(), "{call}: {:?}", visible(&server));
            let (again, offset, _session) = go_on(&server, &data, || ()).await;
            assert_eq!(receipt(&again.expect("taken")), Status::Complete);
            assert_eq!(offset, kept.bytes_kept, "{call}: what is kept is not sent again");
        }
        assert!(server.landed(&id).await.1 == data, "{call}");
        assert_eq!(visible(&server).len(), 1, "{call}: it landed once");
        server.stop().await;
        if !had_its_fault {
            assert!(nth >= 8, "only {nth} calls were made");
            return;
        }
    }
}

#[tokio::test]
async fn an_io_error_at_any_call_of_a_resumed_upload_loses_nothing() {
    every_call_of_a_resumed_upload_may_fail(EIO, false).await;
}

#[tokio::test]
async fn a_resumed_upload_that_finds_the_disk_full_keeps_what_it_had() {
    every_call_of_a_resumed_upload_may_fail(ENOSPC, true).await;
}

#[tokio::test]
async fn a_resumed_upload_that_finds_the_disk_read_only_or_over_its_quota_keeps_what_it_had() {
    every_call_of_a_resumed_upload_may_fail(EDQUOT, true).await;
    every_call_of_a_resumed_upload_may_fail(EROFS, true).await;
}

/// Is read-only at every call while it is told so.
struct LockedDisk(Arc<AtomicBool>);

impl LockedDisk {
    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::SeqCst) { Err(EROFS()) } else { Ok(()) }
    }
}

impl Disk for LockedDisk {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        self.check()?;
        RealDisk.create_new(dir, name)
    }

    fn look(&self, dir: &OwnedFd) -> io::Result<Space> {
        let is_read_only = self.0.load(Ordering::SeqCst);
        Ok(Space { is_read_only, ..RealDisk.look(dir)? })
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.check()?;
        RealDisk.write_at(file, data, offset)
    }

    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.check()?;
        RealDisk.reserve(file, bytes)
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        self.check()?;
        RealDisk.truncate(file, len)
    }

    fn remove(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.check()?;
        RealDisk.remove(dir, name)
    }

    fn rename(&self, old: (&OwnedFd, &str), new: (&OwnedFd, &str)) -> io::Result<()> {
        self.check()?;
        RealDisk.rename(old, new)
    }
}

#[tokio::test]
async fn an_upload_that_meets_a_read_only_disk_goes_on_by_itself_where_it_was() {
    let locked = Arc::new(AtomicBool::new(false));
    let disk = Box::new(LockedDisk(Arc::clone(&locked)));
    let server = TestServer::start_with(Setup { disk, ..Setup::default() }).await;
    let data = bytes(4 * CHUNK_BYTES, 8);
    let id = keep_two_chunks(&server, &data).await;

    let lock = || locked.store(true, Ordering::SeqCst);
    let (answer, _, _session) = go_on(&server, &data, lock).await;
    assert!(answer.is_err());
    let waits = |t: &proto::Transfer| {
        t.waiting.as_ref().map(proto::Waiting::reason) == Some(WaitingReason::ServerDiskLow)
    };
    server.shown(&id, waits).await;
    server.coordinator.look_at_disk().await.expect("looked");
    let mut session = RawSession::open(&server, "client-1").await;
    server.shown(&id, waits).await;
    locked.store(false, Ordering::SeqCst);
    let since = std::time::Instant::now();
    let command = session.command().await;

    assert!(since.elapsed() < std::time::Duration::from_secs(5), "{:?}", since.elapsed());
    let offset = command.resume.map_or(0, |resume| resume.kept.bytes());
    assert_eq!(offset, 2 * MIB, "what was kept before is still good");
    server.stop().await;
}

/// Notes in what order files are made and synced; one sync fails.
struct SyncDisk {
    fails_at: AtomicI64,
    calls: Arc<Mutex<Vec<(&'static str, u64)>>>,
}

impl Disk for SyncDisk {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        let file = RealDisk.create_new(dir, name)?;
        self.calls.lock().expect("no panic").push(("made", inode(&file)));
        Ok(file)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let fails = self.fails_at.fetch_sub(1, Ordering::SeqCst) == 0;
        let what = if fails { "failed" } else { "synced" };
        self.calls.lock().expect("no panic").push((what, inode(file)));
        if fails { Err(EIO()) } else { RealDisk.sync_data(file) }
    }
}

fn inode(file: &File) -> u64 {
    file.metadata().expect("open").ino()
}

/// Uploads with the n-th sync failing; `pause` after each chunk lets a batch become due.
async fn a_sync_fails(nth: i64, pause: std::time::Duration) {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let fails_at = AtomicI64::new(nth);
    let disk = Box::new(SyncDisk { fails_at, calls: Arc::clone(&calls) });
    let server = TestServer::start_with(Setup { disk, ..Setup::default() }).await;
    let data = bytes(3 * CHUNK_BYTES + 9, 9);
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    for chunk in chunks(&data) {
        raw.send(chunk).await;
        // Time is what makes a batch due.
        tokio::time::sleep(pause).await;
    }
    raw.send(finish(&header, &data)).await;

    assert!(raw.answer().await.is_err());

    let after = server.shown(&id, |t| t.state() == State::Interrupted).await;
    assert_eq!(after.bytes_kept, 0, "nobody can tell what is on the disk: {after:?}");
    assert!(files_beneath(&server.dir().join("files")).is_empty(), "it is discarded");
    let calls = std::mem::take(&mut *calls.lock().expect("no panic"));
    let failed = calls.iter().position(|(what, _)| *what == "failed").expect("it failed");
    let later = &calls[failed + 1..];
    assert!(later.iter().all(|(_, file)| *file != calls[failed].1), "not tried again: {calls:?}");
    deliver_again(&server, &id, &data).await;
    server.stop().await;
}

#[tokio::test]
async fn a_sync_that_failed_is_not_tried_again_and_nothing_is_kept() {
    a_sync_fails(0, std::time::Duration::ZERO).await;
    let due = fts::limits::CHECKPOINT_EVERY;
    // Of the data while it comes, of the journal, and of the data after a batch that was good.
    for nth in 0..3 {
        a_sync_fails(nth, due).await;
    }
}

/// Notes writes and syncs, of the journal and of the data.
#[derive(Default)]
struct OrderDisk {
    journal: AtomicI64,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl OrderDisk {
    fn note(&self, file: &File, of_journal: &'static str, of_data: &'static str) {
        let is_journal = inode(file).cast_signed() == self.journal.load(Ordering::SeqCst);
        let call = if is_journal { of_journal } else { of_data };
        self.calls.lock().expect("no panic").push(call);
    }
}

impl Disk for OrderDisk {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        let file = RealDisk.create_new(dir, name)?;
        if name.ends_with(".journal") {
            self.journal.store(inode(&file).cast_signed(), Ordering::SeqCst);
        }
        Ok(file)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.note(file, "journal", "data");
        RealDisk.write_at(file, data, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        RealDisk.sync_data(file)?;
        self.note(file, "journal synced", "data synced");
        Ok(())
    }
}

#[tokio::test]
async fn a_journal_speaks_only_of_data_that_was_synced() {
    let disk = OrderDisk::default();
    let calls = Arc::clone(&disk.calls);
    let setup = Setup { disk: Box::new(disk), ..Setup::default() };
    let server = TestServer::start_with(setup).await;

    keep_two_chunks(&server, &bytes(4 * CHUNK_BYTES, 12)).await;

    let mut calls = calls.lock().expect("no panic").clone();
    calls.retain(|call| *call != "data");
    assert!(calls.starts_with(&["data synced", "journal", "journal synced"]), "{calls:?}");
    // Each batch by itself, and once more as the upload comes to rest.
    let count = |call| calls.iter().filter(|c| **c == call).count();
    assert!(count("journal synced") > count("journal"), "{calls:?}");
    server.stop().await;
}

#[tokio::test]
async fn space_is_reserved_before_the_first_byte_and_given_back_when_the_upload_breaks() {
    let server = TestServer::start().await;
    let size = 64 * CHUNK_BYTES;
    let data = bytes(size, 10);
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let partial = server.dir().join("files/partial").join(&id);
    let held = || std::fs::metadata(&partial).map_or(0, |meta| meta.blocks() * 512);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    server.shown(&id, |t| t.state() == State::Receiving && held() > 0).await;
    server.shown(&id, |_| held() >= size as u64).await;
    assert_eq!(std::fs::metadata(&partial).expect("there").len(), 0, "before the first byte");

    raw.send_all(chunks(&data).into_iter().take(2)).await;
    server.shown(&id, |t| t.bytes_done == 2 * MIB).await;
    raw.end(Ending::Reset(h2::Reason::CANCEL), finish(&header, &data)).await;
    server.follow(&id, |t| t.bytes_kept == 2 * MIB).await;

    let held = held();
    assert!((2 * MIB..3 * MIB).contains(&held), "{held} bytes are held for 2 MiB");
    server.stop().await;
}

#[tokio::test]
async fn a_sync_that_hangs_delays_no_heartbeat() {
    let (reached, mut syncing) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, gate) = std::sync::mpsc::channel();
    let disk = Box::new(GatedDisk { reached, go_on: Mutex::new(gate) });
    let server = TestServer::start_with(Setup { disk, ..Setup::default() }).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let data = bytes(2 * CHUNK_BYTES, 11);
    let mut raw = RawUpload::open(server.address).await;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    raw.send_all(upload(&header, &data)).await;
    let answer = raw.answer();
    tokio::pin!(answer);
    let hanging = async {
        syncing.recv().await.expect("it is synced");
        for seq in 0..50 {
            let since = std::time::Instant::now();
            let beat = FromClient::Heartbeat {
                seq,
                progress: Vec::new(),
                jobs_max: None,
                audit_head: None,
            };
            session.say(beat).await;
            let next = session.next().await;
            assert!(matches!(next, FromServer::HeartbeatAck { .. }), "{next:?}");
            assert!(since.elapsed() < std::time::Duration::from_secs(1), "{:?}", since.elapsed());
            server.coordinator.look_at_disk().await.expect("looked");
        }
        assert_eq!(server.transfer(&id).await.state(), State::Verifying);
        drop(go_on);
    };

    let (answer, ()) = tokio::join!(answer, hanging);

    assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
    server.stop().await;
}

/// Stops before it syncs a file, until it may go on.
struct GatedDisk {
    reached: tokio::sync::mpsc::UnboundedSender<()>,
    go_on: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Disk for GatedDisk {
    fn sync_data(&self, file: &File) -> io::Result<()> {
        let _ = self.reached.send(());
        // A test that has ended lets it go on as well.
        let _ = self.go_on.lock().expect("no panic").recv();
        RealDisk.sync_data(file)
    }
}

#[tokio::test]
async fn a_small_file_that_is_cancelled_while_it_lands_is_not_there() {
    let (reached, mut syncing) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, gate) = std::sync::mpsc::channel();
    let disk = Box::new(GatedDisk { reached, go_on: Mutex::new(gate) });
    let server = TestServer::start_with(Setup { disk, ..Setup::default() }).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let data = bytes(5, 1);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&session.header(attempt, &data), &data)).await;
    let cancel = async {
        syncing.recv().await.expect("it lands");
        let request = proto::CancelTransferRequest { transfer_id: transfer.id.clone() };
        let cancelled = server.control().await.cancel_transfer(request).await;
        go_on.send(()).expect("it waits");
        cancelled.expect("cancelled")
    };

    let (answer, cancelled) = tokio::join!(raw.answer(), cancel);

    assert!(answer.is_err());
    let cancelled = cancelled.into_inner().transfer.expect("a transfer");
    assert_eq!(cancelled.state(), State::Cancelled);
    assert_eq!(server.transfer(&transfer.id).await.state(), State::Cancelled);
    assert!(visible(&server).is_empty(), "{:?}", visible(&server));
    server.stop().await;
}

#[tokio::test]
async fn a_landed_file_whose_record_was_not_written_gives_way_to_the_next_attempt() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let data = bytes(5, 1);
    let url = format!("sqlite:{}", server.dir().join("fts.db").display());
    let mut store = sqlx::SqliteConnection::connect(&url).await.expect("the store");
    let fault = "CREATE TRIGGER fault BEFORE UPDATE ON transfers WHEN NEW.state = 'COMPLETE'
        BEGIN SELECT RAISE(ABORT, 'a disk that fails'); END";
    sqlx::query(fault).execute(&mut store).await.expect("made");

    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&session.header(attempt, &data), &data)).await;
    assert!(raw.answer().await.is_err());
    // It may yet be adopted: nobody knows whether the record was written.
    assert_eq!(visible(&server).len(), 1);

    sqlx::query("DROP TRIGGER fault").execute(&mut store).await.expect("dropped");
    let report = Report { attempt, outcome: Outcome::Broken, detail: String::new() };
    session.say(FromClient::Report(report)).await;
    let again = session.command().await.attempt;
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&session.header(again, &data), &data)).await;
    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    server.coordinator.settle_doubtful().await.expect("settled");

    assert!(server.landed(&transfer.id).await.1 == data);
    assert_eq!(visible(&server).len(), 1, "{:?}", visible(&server));
    server.stop().await;
}

#[tokio::test]
async fn a_size_that_would_fill_the_disk_is_not_reserved() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let attempt = session.command().await.attempt;
    let mut header = session.header(attempt, b"");
    header.size = fts::limits::FILE_BYTES_MAX;

    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header)).await;

    assert!(raw.answer().await.is_err());
    let after = server.follow(&transfer.id, |t| t.state() == State::Interrupted).await;
    let why = after.waiting.as_ref().map(proto::Waiting::reason);
    assert_eq!(why, Some(WaitingReason::ServerDiskLow));
    server.stop().await;
}

/// EIO of the very fsync of a commit: whatever is answered, it is not a transfer.
#[test]
#[ignore = "test-all: needs strace"]
fn a_commit_whose_fsync_fails_is_never_answered_with_a_transfer() {
    let test = "a_commit_whose_fsync_fails_is_never_answered_with_a_transfer";
    let Some(strace) = common::tools::tool(test, "strace") else { return };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a directory");
    let server = ServerProcess::start(dir.path(), 0, &[]);
    let url = format!("http://{}", server.address);
    let mut control = runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(url).expect("an address");
        let channel = endpoint.connect().await.expect("connected");
        common::raw::register(channel.clone(), "client-1").await;
        proto::control_client::ControlClient::new(channel)
    });
    let request =
        || proto::TriggerDownloadRequest { client_id: "client-1".to_owned(), ..Default::default() };

    let pid = server.process.id().as_raw_nonzero().to_string();
    let inject =
        ["-f", "-p", &pid, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"];
    let log = dir.path().join("strace.log");
    let strace = strace.to_str().expect("text");
    let mut tracer = common::process::Process::start(strace, &log, &inject, &[]);
    tracer.logged("attached");
    let refused = runtime.block_on(control.trigger_download(request()));
    assert!(refused.is_err(), "answered although the commit failed: {refused:?}");
    assert!(tracer.read_log().contains("EIO"), "the fault was there: {}", tracer.read_log());
    tracer.signal(rustix::process::Signal::INT);
    tracer.wait();

    let taken = runtime.block_on(control.trigger_download(request())).expect("it works again");
    let id = taken.into_inner().transfer.expect("a transfer").id;
    let port = server.address.port();
    server.process.kill();
    let server = ServerProcess::start(dir.path(), port, &[]);
    let known = runtime.block_on(async {
        let url = format!("http://{}", server.address);
        let endpoint = tonic::transport::Endpoint::from_shared(url).expect("an address");
        let channel = endpoint.connect().await.expect("connected");
        let mut control = proto::control_client::ControlClient::new(channel);
        control.get_transfer(proto::GetTransferRequest { transfer_id: id }).await
    });
    assert!(known.is_ok(), "what was answered is there: {known:?}");
}
