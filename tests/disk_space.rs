//! A disk that is low, or not there, stops what is new with a reason, and everything goes on by itself
//! when that is over.

mod common;

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{
    bytes,
    client::TestClient,
    files_beneath, http,
    process::{Process, ServerProcess},
    raw::RawSession,
    server::{Setup, TestServer},
};
use fts::{
    limits::CHUNK_BYTES,
    server::landing::{Disk, MARKER, Marks, RealDisk, Space},
    wire::{
        proto::{State, Transfer, Waiting, WaitingReason},
        session::{FromClient, FromServer},
    },
};
use tempfile::TempDir;

const MB: u64 = 1_000_000;
/// Nothing waits for longer once there is space again.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Says how much is free, whatever is true.
struct ToldDisk(Arc<AtomicU64>);

impl Disk for ToldDisk {
    fn look(&self, dir: &OwnedFd) -> io::Result<Space> {
        let free = self.0.load(Ordering::SeqCst);
        Ok(Space { free, all: 1000 * MB, ..RealDisk.look(dir)? })
    }
}

/// A server whose disk is low below 100 MB, and has room again above 200 MB.
async fn server_with(free: u64) -> (TestServer, Arc<AtomicU64>) {
    let free = Arc::new(AtomicU64::new(free));
    let disk = Box::new(ToldDisk(Arc::clone(&free)));
    let marks = Marks { low: Some(100 * MB), high: Some(200 * MB) };
    (TestServer::start_with(Setup { disk, marks, ..Setup::default() }).await, free)
}

async fn look(server: &TestServer) {
    server.coordinator.look_at_disk().await.expect("looked");
}

fn waits_for_disk(transfer: &Transfer) -> bool {
    let reason = transfer.waiting.as_ref().map(Waiting::reason);
    reason == Some(WaitingReason::ServerDiskLow)
}

/// Follows a transfer to COMPLETE, which takes no longer than it may once there is space again.
async fn goes_on(server: &TestServer, id: &str, data: &[u8]) -> Transfer {
    let since = Instant::now();
    let (transfer, landed) = server.landed(id).await;
    assert!(since.elapsed() < BACK_WITHIN, "it took {:?}", since.elapsed());
    assert!(landed == data, "what landed differs");
    transfer
}

#[tokio::test]
async fn below_the_low_mark_nothing_is_offered_until_more_than_the_high_one_is_free() {
    let (server, free) = server_with(99 * MB).await;
    look(&server).await;
    let mut session = RawSession::open(&server, "client-1").await;

    let transfer = server.trigger("client-1", "/raw").await;
    assert!(waits_for_disk(&transfer) || waits_for_disk(&server.transfer(&transfer.id).await));
    for still_low in [99 * MB, 150 * MB, 200 * MB] {
        free.store(still_low, Ordering::SeqCst);
        look(&server).await;
        server.coordinator.ring_due().await.expect("rung");
        // What it says after the second one, it says after it has looked at the queue.
        for seq in 0..2 {
            let beat = FromClient::Heartbeat {
                seq,
                progress: Vec::new(),
                jobs_max: None,
                audit_head: None,
            };
            session.say(beat).await;
            let next = session.next().await;
            assert!(matches!(next, FromServer::HeartbeatAck { .. }), "{still_low}: {next:?}");
        }
        let waiting = server.transfer(&transfer.id).await;
        assert!(waits_for_disk(&waiting), "{waiting:?}");
        assert_eq!((waiting.state(), waiting.attempts), (State::Queued, 0));
    }
    free.store(201 * MB, Ordering::SeqCst);
    let since = Instant::now();

    let command = session.command().await;

    assert!(since.elapsed() < BACK_WITHIN, "{:?}", since.elapsed());
    assert_eq!(command.attempt.transfer.to_string(), transfer.id);
    server.stop().await;
}

#[tokio::test]
async fn readiness_and_metrics_tell_of_the_disk() {
    let (server, free) = server_with(99 * MB).await;
    look(&server).await;
    let ready = http::get(server.address, "/readyz?verbose").await;
    assert!(ready.text().starts_with("ready\n"), "what has landed can be read: {}", ready.text());
    for line in ["disk: low", "disk-free: 99000000 bytes", "disk-low: 100000000 bytes"] {
        assert!(ready.text().contains(&format!("\n{line}\n")), "{}", ready.text());
    }
    let metrics = http::get(server.address, "/metrics").await;
    assert!(metrics.text().contains("\nfts_disk_low 1\n"), "{}", metrics.text());
    assert!(metrics.text().contains("\nfts_disk_free_bytes 99000000\n"), "{}", metrics.text());

    free.store(300 * MB, Ordering::SeqCst);
    look(&server).await;

    let ready = http::get(server.address, "/readyz?verbose").await;
    assert!(ready.text().contains("\ndisk: ok\n"), "{}", ready.text());
    let metrics = http::get(server.address, "/metrics").await;
    assert!(metrics.text().contains("\nfts_disk_low 0\n"), "{}", metrics.text());
    server.stop().await;
}

#[tokio::test]
async fn a_file_that_does_not_fit_waits_while_others_go_on() {
    let (server, free) = server_with(101 * MB).await;
    let dir = TempDir::new().expect("a directory");
    let (big, small) = (bytes(3 * CHUNK_BYTES, 1), bytes(10, 2));
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    fs::write(path("big"), &big).expect("written");
    fs::write(path("small"), &small).expect("written");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;

    let first = server.trigger("client-1", &path("big")).await;
    let waiting = server.follow(&first.id, waits_for_disk).await;
    assert_eq!(waiting.state(), State::Interrupted);
    let second = server.trigger("client-1", &path("small")).await;
    assert!(server.landed(&second.id).await.1 == small, "it fits");
    // A little more is still not enough, and is no reason to try.
    free.store(102 * MB, Ordering::SeqCst);
    look(&server).await;
    let waiting = server.transfer(&first.id).await;
    assert!(waits_for_disk(&waiting) && waiting.attempts == 1, "{waiting:?}");

    free.store(110 * MB, Ordering::SeqCst);
    let done = goes_on(&server, &first.id, &big).await;

    assert_eq!(done.attempts, 2);
    client.stop().await;
    server.stop().await;
}

/// A client with a file of 16 MiB, which it sends at 4 MB a second.
async fn slow_client(server: &TestServer) -> (TestClient, TempDir, String, Vec<u8>) {
    let dir = TempDir::new().expect("a directory");
    let data = bytes(16 * CHUNK_BYTES, 3);
    let path = dir.path().join("f");
    fs::write(&path, &data).expect("written");
    let client = TestClient::start_at_rate(server, "client-1", &[dir.path()], 4 * MB).await;
    let id = server.trigger("client-1", path.to_str().expect("text")).await.id;
    (client, dir, id, data)
}

/// Of a transfer that was broken and went on, little was sent twice.
fn wasted_little(transfer: &Transfer, size: usize) {
    let waste = transfer.bytes_received - size as u64;
    assert!(waste <= 6 * MIB, "{waste} bytes were sent again");
    assert!(transfer.attempts >= 2, "it was broken: {transfer:?}");
}

#[tokio::test]
async fn a_directory_that_is_replaced_gets_nothing_and_is_taken_up_again_when_it_is_back() {
    let server = TestServer::start().await;
    let (client, _dir, id, data) = slow_client(&server).await;
    server.follow(&id, |t| t.bytes_done > 6 * MB).await;
    let (files, away) = (server.dir().join("files"), server.dir().join("away"));

    fs::rename(&files, &away).expect("moved");
    fs::create_dir(&files).expect("made");
    server.follow(&id, waits_for_disk).await;
    let ready = http::get(server.address, "/readyz?verbose").await;
    assert!(ready.text().starts_with("not ready\n"), "{}", ready.text());
    assert!(ready.text().contains("\ndisk: gone\n"), "{}", ready.text());
    let other = server.trigger("client-1", "/nowhere").await;
    server.shown(&other.id, waits_for_disk).await;
    assert_eq!(fs::read_dir(&files).expect("listed").count(), 0, "nothing was written there");

    fs::remove_dir(&files).expect("removed");
    fs::rename(&away, &files).expect("back");
    let done = server.landed(&id).await;

    assert!(done.1 == data);
    wasted_little(&done.0, data.len());
    assert!(is_final(&server.ended(&other.id).await));
    client.stop().await;
    server.stop().await;
}

fn is_final(transfer: &Transfer) -> bool {
    common::server::is_final(transfer.state())
}

#[tokio::test]
async fn a_copy_of_the_directory_that_is_put_in_its_place_is_read_again() {
    let server = TestServer::start().await;
    let (client, dir, id, data) = slow_client(&server).await;
    server.follow(&id, |t| t.bytes_done > 6 * MB).await;
    let (files, away) = (server.dir().join("files"), server.dir().join("away"));
    fs::rename(&files, &away).expect("moved");
    server.follow(&id, waits_for_disk).await;

    // One byte of what was kept is not what it was.
    let partial = away.join("partial").join(&id);
    let mut kept = fs::read(&partial).expect("kept");
    kept[100] ^= 1;
    fs::write(&partial, kept).expect("written");
    fs::rename(&away, &files).expect("back");

    let dropped = server.follow(&id, |t| t.failure.is_some() || is_final(t)).await;
    assert_eq!((dropped.state(), dropped.bytes_kept), (State::Interrupted, 0), "{dropped:?}");
    client.stop().await;
    // It is due as soon as its client is back.
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    assert!(server.landed(&id).await.1 == data, "what landed is what was sent");
    client.stop().await;
    server.stop().await;
}

#[test]
fn two_servers_never_share_a_directory_of_files() {
    let dir = TempDir::new().expect("a directory");
    let files = dir.path().join("files");
    let sink = format!("file://{}", files.display());
    let one = dir.path().join("one");
    fs::create_dir(&one).expect("made");
    let first = ServerProcess::start(&one, 0, &["--sink", &sink]);

    let data = dir.path().join("two").display().to_string();
    let args = ["--listen", "127.0.0.1:0", "--data-dir", &data, "--sink", &sink];
    let log = dir.path().join("second.log");
    let second = Process::start(env!("CARGO_BIN_EXE_fts-server"), &log, &args, &[]);
    let ended = second.wait().0;

    assert_eq!(ended.code(), Some(1));
    let text = fs::read_to_string(&log).expect("a log");
    assert!(text.contains("is another server using it?"), "{text}");
    drop(first);
}

#[test]
fn a_server_whose_files_are_not_there_says_so_and_starts_with_new_ones_only_on_purpose() {
    let dir = TempDir::new().expect("a directory");
    let server = ServerProcess::start(dir.path(), 0, &[]);
    server.process.kill();
    let files = dir.path().join("data/files");
    fs::rename(&files, dir.path().join("away")).expect("moved");

    let data = dir.path().join("data").display().to_string();
    let args = ["--listen", "127.0.0.1:0", "--data-dir", &data];
    let log = dir.path().join("refused.log");
    let refused = Process::start(env!("CARGO_BIN_EXE_fts-server"), &log, &args, &[]);
    assert_eq!(refused.wait().0.code(), Some(1));
    let text = fs::read_to_string(&log).expect("a log");
    let path = files.display().to_string();
    for told in [path.as_str(), "file system is not mounted", "--new-files"] {
        assert!(text.contains(told), "{told} is not in {text}");
    }
    assert!(!files.exists(), "nothing was made");

    let server = ServerProcess::start(dir.path(), 0, &["--new-files"]);
    assert!(server.process.read_log().contains("--new-files"));
    server.process.kill();
    // From now on it is the one.
    drop(ServerProcess::start(dir.path(), 0, &[]));
    assert!(files.join(MARKER).exists());
}

/// A disk of 64 MiB of its own, as ext4 on a loop device.
struct RealFileSystem {
    image: TempDir,
    device: String,
    at: std::path::PathBuf,
}

impl RealFileSystem {
    /// Makes one and mounts it at `at`; `None`, told to the user, where that is not possible.
    fn mount(test: &str, at: &Path) -> Option<Self> {
        for name in ["mkfs.ext4", "losetup", "mount", "umount"] {
            common::tools::tool(test, name)?;
        }
        let image = TempDir::new().expect("a directory");
        let file = image.path().join("image");
        fs::File::create(&file).and_then(|file| file.set_len(64 << 20)).expect("an image");
        let file = file.to_str().expect("text");
        let made = run("mkfs.ext4", &["-q", "-F", "-m", "0", file]);
        let device = made.and_then(|_| run("losetup", &["--find", "--show", file]));
        let Ok(device) = device else {
            common::tools::skipped(test, &format!("root and a loop device ({device:?})"));
            return None;
        };
        let disk = Self { image, device: device.trim().to_owned(), at: at.to_owned() };
        fs::create_dir_all(at).expect("a mount point");
        if let Err(why) = disk.mount_again() {
            common::tools::skipped(test, &format!("root that may mount ({why})"));
            return None;
        }
        Some(disk)
    }

    fn mount_again(&self) -> Result<(), String> {
        run("mount", &[&self.device, self.at.to_str().expect("text")]).map(drop)
    }

    fn remount(&self, how: &str) {
        let at = self.at.to_str().expect("text");
        run("mount", &["-o", &format!("remount,{how}"), at]).expect("remounted");
    }

    fn unmount_lazily(&self) {
        run("umount", &["-l", self.at.to_str().expect("text")]).expect("unmounted");
    }

    /// Fills it up to so many bytes that are left; whoever drops the path's file frees them.
    fn fill(&self, left: u64) -> std::path::PathBuf {
        let path = self.at.join("filler");
        let stat = rustix::fs::statvfs(&self.at).expect("there");
        let file = fs::File::create(&path).expect("made");
        let bytes = stat.f_bavail * stat.f_frsize - left;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .expect("filled");
        path
    }
}

impl Drop for RealFileSystem {
    fn drop(&mut self) {
        // What was not mounted need not be unmounted.
        drop(run("umount", &["-l", self.at.to_str().expect("text")]));
        drop(run("losetup", &["-d", &self.device]));
        assert!(self.image.path().exists(), "the image outlives its device");
    }
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let done = std::process::Command::new(program).args(args).output();
    let done = done.map_err(|err| err.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if done.status.success() { Ok(text(&done.stdout)) } else { Err(text(&done.stderr)) }
}

const MIB: u64 = 1 << 20;

/// Starts a server whose files are on a disk of their own.
async fn server_on_a_disk(test: &str, marks: Marks) -> Option<(TestServer, RealFileSystem)> {
    let dir = Arc::new(TempDir::new().expect("a directory"));
    let disk = RealFileSystem::mount(test, &dir.path().join("files"))?;
    let setup = Setup { marks, ..Setup::default() };
    Some((TestServer::start_in(dir, setup, 0).await, disk))
}

#[tokio::test]
#[ignore = "test-all: needs root"]
async fn a_real_disk_that_is_filled_up_and_emptied_again_loses_nothing() {
    let test = "a_real_disk_that_is_filled_up_and_emptied_again_loses_nothing";
    // Without a low mark it is the file system that says no.
    for low in [8 * MIB, 0] {
        let marks = Marks { low: Some(low), high: None };
        let Some((server, disk)) = server_on_a_disk(test, marks).await else { return };
        let (client, _dir, id, data) = {
            let filler = disk.fill(4 * MIB);
            look(&server).await;
            let asked = slow_client(&server).await;
            let waiting = server.shown(&asked.2, waits_for_disk).await;
            assert_eq!(waiting.attempts, u32::from(low == 0), "{waiting:?}");
            fs::remove_file(filler).expect("removed");
            asked
        };
        let freed = Instant::now();
        server.follow(&id, |t| t.state() == State::Receiving).await;
        assert!(freed.elapsed() < BACK_WITHIN, "low {low}: {:?}", freed.elapsed());
        assert!(server.landed(&id).await.1 == data);
        client.stop().await;
        server.stop().await;
    }
}

#[tokio::test]
#[ignore = "test-all: needs root"]
async fn a_disk_that_is_remounted_read_only_stops_what_is_new_until_it_is_writable() {
    let test = "a_disk_that_is_remounted_read_only_stops_what_is_new_until_it_is_writable";
    let marks = Marks { low: Some(MIB), high: None };
    let Some((server, disk)) = server_on_a_disk(test, marks).await else { return };
    disk.remount("ro");
    look(&server).await;
    let ready = http::get(server.address, "/readyz?verbose").await;
    assert!(ready.text().contains("\ndisk: read-only\n"), "{}", ready.text());
    assert!(ready.text().starts_with("not ready\n"), "{}", ready.text());
    let (client, _dir, id, data) = slow_client(&server).await;
    server.shown(&id, waits_for_disk).await;

    disk.remount("rw");
    let back = Instant::now();
    server.follow(&id, |t| t.state() == State::Receiving).await;

    assert!(back.elapsed() < BACK_WITHIN, "{:?}", back.elapsed());
    assert!(server.landed(&id).await.1 == data);
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
#[ignore = "test-all: needs root"]
async fn a_disk_that_is_unmounted_under_load_leaves_nothing_beneath_and_goes_on_when_it_is_back() {
    let test =
        "a_disk_that_is_unmounted_under_load_leaves_nothing_beneath_and_goes_on_when_it_is_back";
    let marks = Marks { low: Some(MIB), high: None };
    let Some((server, disk)) = server_on_a_disk(test, marks).await else { return };
    let (client, _dir, id, data) = slow_client(&server).await;
    server.follow(&id, |t| t.bytes_done > 6 * MB).await;

    disk.unmount_lazily();
    server.follow(&id, waits_for_disk).await;
    let beneath = fs::read_dir(server.dir().join("files")).expect("listed").count();
    assert_eq!(beneath, 0, "nothing was written beneath the mount");
    disk.mount_again().expect("mounted");
    let back = Instant::now();
    server.follow(&id, |t| t.state() == State::Receiving).await;

    assert!(back.elapsed() < BACK_WITHIN, "{:?}", back.elapsed());
    let (done, landed) = server.landed(&id).await;
    assert!(landed == data);
    wasted_little(&done, data.len());
    assert_eq!(files_beneath(&server.dir().join("files")).len(), 1, "no partial file is left");
    client.stop().await;
    server.stop().await;
}
