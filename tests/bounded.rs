//! What is slow slows down only what has to wait for it, and nothing piles up in memory meanwhile.

mod common;

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    bytes, http,
    process::{Process, ServerProcess},
    raw::{RawSession, RawUpload, hello, receipt, register, upload},
    server::{PATIENCE, Setup, TestServer, is_final},
};
use fts::{
    chunk::{RootBuilder, crc32c},
    ids::{Digest, InstanceId},
    limits::{self, CHUNK_BYTES},
    server::landing::{Disk, RealDisk},
    transfer::{Delivered, Finish},
    wire::{
        proto::{
            State, TriggerDownloadRequest, WatchTransfersRequest, control_client::ControlClient,
            receipt::Status,
        },
        session::{FromClient, FromServer, Header, Upload},
    },
};
use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::{
    runtime::Builder,
    sync::watch,
    time::{error::Elapsed, timeout},
};
use tonic::transport::{Channel, Endpoint};

/// The call of a disk that is stuck until the test lets it go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Write,
    Sync,
}

#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
    /// How many calls have been stuck.
    stuck: watch::Sender<usize>,
}

impl Gate {
    fn pass(&self) {
        let is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_open {
            self.stuck.send_modify(|calls| *calls += 1);
            drop(self.opened.wait_while(is_open, |is_open| !*is_open));
        }
    }

    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }

    /// Waits until so many calls are stuck.
    async fn stuck(&self, calls: usize) {
        let mut stuck = self.stuck.subscribe();
        let enough = timeout(PATIENCE, stuck.wait_for(|stuck| *stuck >= calls)).await;
        drop(enough.expect("each upload gets as far as to its disk, in time").expect("a gate"));
    }
}

/// Opens its gate when the test ends, in whatever way: the server's runtime waits for its threads.
struct Opener(Arc<Gate>);

impl Drop for Opener {
    fn drop(&mut self) {
        self.0.open();
    }
}

struct StuckDisk {
    gate: Arc<Gate>,
    call: Call,
}

fn stuck_in(call: Call) -> (Opener, Setup) {
    let gate = Arc::<Gate>::default();
    let disk = Box::new(StuckDisk { gate: Arc::clone(&gate), call });
    (Opener(gate), Setup { disk, ..Setup::default() })
}

impl Disk for StuckDisk {
    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        if self.call == Call::Write {
            self.gate.pass();
        }
        RealDisk.write_at(file, data, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        if self.call == Call::Sync {
            self.gate.pass();
        }
        RealDisk.sync_data(file)
    }
}

/// A file of equal chunks, made as it is sent.
fn repeated(header: &Header, chunk: &Bytes, chunks: u64) -> impl Iterator<Item = Upload> {
    let mut root = RootBuilder::new(header.size);
    for _ in 0..chunks {
        root.push(chunk);
    }
    let finish =
        Finish { digest: root.finish(), delivered: Delivered::Unchanged, trusted_bytes: 0 };
    let end = Upload::Finish { size: header.size, finish, fingerprint: header.fingerprint };
    let (crc32c, data) = (crc32c(chunk), chunk.clone());
    let chunk_at = move |offset| Upload::Chunk { offset, crc32c, data: data.clone() };
    let begin = std::iter::once(Upload::Header(header.clone()));
    begin.chain((0..chunks).map(move |i| chunk_at(i * CHUNK_BYTES as u64))).chain([end])
}

/// Returns where a count stays for a while, once it has come to `enough`.
async fn settled(count: &mut watch::Receiver<usize>, enough: usize) -> usize {
    let reached = timeout(PATIENCE, count.wait_for(|count| *count >= enough)).await;
    drop(reached.expect("in time").expect("it is counted"));
    let is_quiet = |changed: &Result<_, Elapsed>| changed.is_err();
    while !is_quiet(&timeout(Duration::from_secs(1), count.changed()).await) {}
    *count.borrow()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_disk_and_a_fast_client_stay_within_memory() {
    const CHUNKS: u64 = 200;
    let (opener, setup) = stuck_in(Call::Write);
    let server = TestServer::start_with(setup).await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    let chunk = Bytes::from(bytes(CHUNK_BYTES, 1));
    let mut header = session.header(attempt, &chunk);
    header.size = CHUNKS * CHUNK_BYTES as u64;
    header.fingerprint.size_bytes = header.size;
    let mut raw = RawUpload::open(server.address).await;
    let mut pushed = raw.pushed.subscribe();

    let window = limits::HTTP2_STREAM_WINDOW_BYTES as usize;
    let stuck = async {
        let pushed = settled(&mut pushed, window).await;
        // The window, the channel, the chunk at either end of it, and what is not yet a chunk.
        let most = window + (limits::CHUNKS_IN_FLIGHT_MAX + 3) * CHUNK_BYTES;
        assert!(pushed <= most, "{pushed} bytes were taken, more than {most}");
        opener.0.open();
    };
    let (sent, ()) = tokio::join!(raw.send_all(repeated(&header, &chunk, CHUNKS)), stuck);

    assert!(sent, "the server ended the call");
    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    let (transfer, landed) = server.landed(&id).await;
    assert_eq!(transfer.digest, Digest::from(blake3::hash(&landed)).to_string());
    assert!(landed == chunk.repeat(usize::try_from(CHUNKS).expect("few")));
    server.stop().await;
}

/// Says a heartbeat, and waits for its answer.
async fn beat(session: &mut RawSession, seq: u64) {
    session
        .say(FromClient::Heartbeat { seq, progress: Vec::new(), jobs_max: None, audit_head: None })
        .await;
    while session.next().await != (FromServer::HeartbeatAck { seq }) {}
}

/// A server with two threads, and four uploads for each of them, all stuck in the same call.
async fn heartbeats_are_answered(server: TestServer, gate: &Gate) {
    const UPLOADS: usize = 8;
    let data = bytes(3 * CHUNK_BYTES, 1);
    let who = hello("client-1", InstanceId::generate());
    let who = fts::wire::session::Hello { jobs_max: u32::try_from(UPLOADS).expect("few"), ..who };
    let mut session = RawSession::open_as(&server, who).await;
    let mut other = RawSession::open(&server, "client-2").await;
    let mut uploads = Vec::new();
    for _ in 0..UPLOADS {
        server.trigger("client-1", "/raw").await;
        let attempt = session.command().await.attempt;
        let header = session.header(attempt, &data);
        uploads.push(async {
            let header = header;
            let mut raw = RawUpload::open(server.address).await;
            raw.send_all(upload(&header, &data)).await;
            raw.answer().await
        });
    }

    let meanwhile = async {
        gate.stuck(UPLOADS).await;
        for seq in 1..=3 {
            beat(&mut session, seq).await;
            beat(&mut other, seq).await;
        }
        assert_eq!(http::get(server.address, "/healthz").await.status, 200);
        gate.open();
    };
    let (answers, ()) = tokio::join!(join_all(uploads), meanwhile);

    for answer in answers {
        assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
    }
    drop((session, other));
    server.stop().await;
}

#[test]
fn a_stalled_disk_delays_no_heartbeat() {
    for call in [Call::Write, Call::Sync] {
        // Of its own: when all of its threads are stuck, the test still sees that.
        let mut runtime = Builder::new_multi_thread();
        let there = runtime.worker_threads(2).enable_all().build().expect("a runtime");
        let here = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (opener, setup) = stuck_in(call);
        let server = there.block_on(TestServer::start_with(setup));
        here.block_on(heartbeats_are_answered(server, &opener.0));
    }
}

/// Returns the most memory that a process has had, in bytes, besides the pages of its own program:
/// these are many in a debug build, and the same for any file.
fn peak(process: &Process) -> u64 {
    let path = format!("/proc/{}/status", process.id().as_raw_nonzero());
    let status = fs::read_to_string(path).expect("it runs");
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a size");
        let kib = line.trim().strip_suffix(" kB").expect("in kB");
        kib.parse::<u64>().expect("a number") << 10
    };
    bytes("VmHWM:") - bytes("RssFile:")
}

/// Pulls these files at once, to their end.
async fn pull(control: &ControlClient<Channel>, paths: &[String]) {
    let each = paths.iter().map(|path| async {
        let mut control = control.clone();
        let client_id = "client-1".to_owned();
        let request =
            TriggerDownloadRequest { client_id, path: path.clone(), ..Default::default() };
        let triggered = control.trigger_download(request).await.expect("triggered").into_inner();
        let transfer_id = triggered.transfer.expect("a transfer").id;
        let request = WatchTransfersRequest { transfer_id, ..Default::default() };
        let mut events = control.watch_transfers(request).await.expect("watched").into_inner();
        loop {
            let event = events.message().await.expect("no error").expect("an event");
            let transfer = event.transfer.expect("a transfer");
            if is_final(transfer.state()) {
                assert_eq!(transfer.state(), State::Complete, "{transfer:?}");
                assert_eq!(transfer.attempts, 1, "none was cut");
                return;
            }
        }
    });
    join_all(each).await;
}

fn start_client(server: &ServerProcess, dir: &Path) -> Process {
    let text = |name: &str| dir.join(name).to_str().expect("text").to_owned();
    let (url, shared, state) =
        (format!("http://{}", server.address), text("shared"), text("state"));
    let mut args = vec!["--server", &url, "--client-id", "client-1", "--allow", &shared];
    args.extend(["--state-dir", &state, "--status-port", "0"]);
    Process::start(env!("CARGO_BIN_EXE_fts-client"), &dir.join("client.log"), &args, &[])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "test-all: moves 5 GiB"]
async fn memory_does_not_grow_with_the_size_of_a_file() {
    const MIB: u64 = 1 << 20;
    let dir = TempDir::new().expect("a directory");
    fs::create_dir(dir.path().join("shared")).expect("made");
    let paths = ["a", "b", "c", "d"].map(|name| {
        let path = dir.path().join("shared").join(name);
        File::create(&path).expect("made").set_len(1 << 30).expect("grown");
        path.to_str().expect("text").to_owned()
    });
    let server = ServerProcess::start(dir.path(), 0, &[]);
    let url = format!("http://{}", server.address);
    let channel = Endpoint::from_shared(url).expect("an address").connect().await;
    let channel = channel.expect("connected");
    // So that it is known, and what is asked for waits for the program.
    register(channel.clone(), "client-1").await;
    let control = ControlClient::new(channel);
    let client = start_client(&server, dir.path());

    for uploads in [1, 4] {
        pull(&control, &paths[..uploads]).await;

        let (client, server) = (peak(&client) / MIB, peak(&server.process) / MIB);
        let uploads = uploads as u64;
        // Of each upload: the channel, the chunk at either end of it, and what HTTP/2 has of it.
        assert!(client <= 32 + 8 * uploads, "{uploads} at once: the client had {client} MiB");
        // And the window of its stream.
        assert!(server <= 48 + 16 * uploads, "{uploads} at once: the server had {server} MiB");
    }
}
