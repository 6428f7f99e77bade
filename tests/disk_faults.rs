//! A disk that fails at any one call loses nothing: what is COMPLETE is whole, what is not is not
//! there, and the next attempt delivers.

mod common;

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use common::{
    bytes, files_beneath,
    process::ServerProcess,
    raw::{RawSession, RawUpload, hello, receipt, upload},
    server::{Setup, TestServer},
};
use fts::{
    limits::CHUNK_BYTES,
    server::landing::{Disk, RealDisk},
    wire::{
        proto::{self, State, WaitingReason, receipt::Status},
        session::{FromClient, Outcome, Report},
    },
};
use sqlx::Connection as _;

/// Fails once, after as many calls as it is told; then it works again.
struct FaultyDisk {
    calls_left: Arc<AtomicI64>,
    error: fn() -> io::Error,
}

impl FaultyDisk {
    fn tick(&self) -> io::Result<()> {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) == 0 {
            Err((self.error)())
        } else {
            Ok(())
        }
    }
}

impl Disk for FaultyDisk {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        self.tick()?;
        RealDisk.create_new(dir, name)
    }

    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.tick()?;
        RealDisk.reserve(file, bytes)
    }

    fn space(&self, dir: &OwnedFd) -> io::Result<(u64, u64)> {
        self.tick()?;
        RealDisk.space(dir)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.tick()?;
        RealDisk.write_at(file, data, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.tick()?;
        RealDisk.sync_data(file)
    }

    fn rename(&self, old: (&OwnedFd, &str), new: (&OwnedFd, &str)) -> io::Result<()> {
        self.tick()?;
        RealDisk.rename(old, new)
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        self.tick()?;
        RealDisk.sync_dir(dir)
    }

    fn remove(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.tick()?;
        RealDisk.remove(dir, name)
    }

    fn make_dir(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.tick()?;
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
        let disk = Box::new(FaultyDisk { calls_left: Arc::clone(&calls_left), error });
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
    every_call_may_fail(|| io::Error::from_raw_os_error(5), WaitingReason::Backoff).await;
}

#[tokio::test]
async fn a_full_disk_at_any_call_waits_with_its_reason() {
    let full = || io::Error::from(io::ErrorKind::StorageFull);
    every_call_may_fail(full, WaitingReason::ServerDiskLow).await;
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
    raw.send(fts::wire::session::Upload::Header(header)).await;

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
