//! A site, or an operator, says how much fts may use: caps hold, changes hold at once, and what
//! waits says why.

mod common;

use std::{fs, path::Path, time::Duration};

use common::{
    bytes,
    client::TestClient,
    process::Process,
    raw::{RawSession, RawUpload, chunks, receipt, upload},
    server::{PATIENCE, Setup, TestServer},
};
use fts::{
    ids::AttemptId,
    limits::{self, CHUNK_BYTES},
    status::Reason,
    wire::{
        proto::{
            CancelTransferRequest, State, Transfer, TriggerDownloadRequest, WaitingReason,
            WatchTransfersRequest, WatchTransfersResponse, receipt::Status,
        },
        session::{FromClient, Upload, UploadProgress, Verdict},
    },
};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::Streaming;

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn waits(transfer: &Transfer) -> Option<WaitingReason> {
    transfer.waiting.as_ref().map(fts::wire::proto::Waiting::reason)
}

fn is_throttled(transfer: &Transfer) -> bool {
    transfer.state() == State::Receiving && waits(transfer) == Some(WaitingReason::Throttled)
}

/// Asks for a file with a cap of its own.
async fn trigger_at(server: &TestServer, path: &str, max_rate: u64) -> Transfer {
    let request = TriggerDownloadRequest {
        client_id: "client-1".to_owned(),
        path: path.to_owned(),
        max_rate,
        ..Default::default()
    };
    let answer = server.control().await.trigger_download(request).await.expect("triggered");
    answer.into_inner().transfer.expect("a transfer")
}

/// What a cap lets through in this time, with what it may send at once.
fn allowance(rate: u64, time: Duration) -> u64 {
    let time = time + limits::RATE_BURST;
    let bytes = u128::from(rate) * time.as_millis() / 1000;
    u64::try_from(bytes).expect("small") + limits::RATE_PIECE_BYTES_MAX as u64
}

/// The clock of the test begins before the first byte goes, and each look comes after the bytes
/// that it sees: so a slow machine only makes the bound wider.
async fn never_more_than_allowed(server: &TestServer, ids: &[String], rate: u64, begun: Instant) {
    let mut most = 0;
    loop {
        let mut received = 0;
        let mut ended = true;
        for id in ids {
            let transfer = server.transfer(id).await;
            received += transfer.bytes_received;
            ended &= transfer.state() == State::Complete;
        }
        let allowed = allowance(rate, begun.elapsed());
        assert!(received <= allowed, "{received} of {allowed} after {:?}", begun.elapsed());
        most = received.max(most);
        if ended {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{most} bytes came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_uploads_of_a_client_together_send_no_more_than_its_cap() {
    const RATE: u64 = 4_000_000;
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start_at_rate(&server, "client-1", &[dir.path()], RATE).await;
    let data = bytes(3 * CHUNK_BYTES, 1);
    let begun = Instant::now();
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let path = dir.path().join(name);
        fs::write(&path, &data).expect("written");
        ids.push(server.trigger("client-1", text(&path)).await.id);
    }

    never_more_than_allowed(&server, &ids, RATE, begun).await;

    for id in &ids {
        assert!(server.landed(id).await.1 == data);
    }
    client.stop().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_held_to_its_own_cap_and_shows_it() {
    const RATE: u64 = 2_000_000;
    let server = TestServer::start().await;
    let dir = TempDir::new().expect("a directory");
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;
    let (path, data) = (dir.path().join("f"), bytes(5 * CHUNK_BYTES, 2));
    fs::write(&path, &data).expect("written");
    let begun = Instant::now();

    let id = trigger_at(&server, text(&path), RATE).await.id;

    let throttled = server.follow(&id, is_throttled).await;
    assert_eq!(throttled.max_rate, RATE);
    assert!(throttled.waiting.is_some_and(|waiting| waiting.since.is_some()));
    // Another one is not held back by it.
    let free = server.trigger("client-1", text(&path)).await.id;
    assert!(server.landed(&free).await.1 == data);
    never_more_than_allowed(&server, std::slice::from_ref(&id), RATE, begun).await;
    let (transfer, landed) = server.landed(&id).await;
    assert!(landed == data);
    assert_eq!((transfer.max_rate, transfer.waiting), (RATE, None));
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_cap_out_of_bounds_is_refused_and_asks_for_nothing() {
    let server = TestServer::start().await;
    drop(RawSession::open(&server, "client-1").await);
    for max_rate in [1, limits::RATE_MIN_BYTES - 1, limits::RATE_MAX_BYTES + 1, u64::MAX] {
        let request = TriggerDownloadRequest {
            client_id: "client-1".to_owned(),
            path: "/raw".to_owned(),
            max_rate,
            ..Default::default()
        };
        let refused = server.control().await.trigger_download(request).await.expect_err("refused");
        assert_eq!(fts::status::reason(&refused), Some(Reason::InvalidArgument));
        assert!(refused.message().contains("max_rate"), "{refused}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_cap_of_a_transfer_comes_with_every_command() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let capped = trigger_at(&server, "/raw", 100_000).await;
    let command = session.command().await;
    let rate = command.rate_max.map(fts::rate::Rate::bytes_per_second);
    assert_eq!((rate, capped.max_rate), (Some(100_000), 100_000));
    server.trigger("client-1", "/raw").await;
    assert_eq!(session.command().await.rate_max, None);
    server.stop().await;
}

fn beat(attempt: AttemptId, throttled: bool) -> FromClient {
    let progress = vec![UploadProgress { attempt, sent_bytes: 0, throttled }];
    FromClient::Heartbeat { seq: 1, progress, jobs_max: None, audit_head: None }
}

/// Returns the next transfer of a watch that is as wanted.
async fn told(
    watch: &mut Streaming<WatchTransfersResponse>,
    wanted: impl Fn(&Transfer) -> bool,
) -> Transfer {
    let next = async {
        loop {
            let event = watch.message().await.expect("no error").expect("an event");
            let transfer = event.transfer.expect("a transfer");
            if wanted(&transfer) {
                return transfer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, next).await.expect("told in time")
}

#[tokio::test]
async fn what_a_cap_holds_back_is_shown_and_watched_as_its_own_client_says() {
    let server = TestServer::start().await;
    let data = bytes(2 * CHUNK_BYTES, 3);
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    // Before the first byte of the upload, and it is not lost.
    session.say(beat(attempt, true)).await;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    let shown = server.shown(&id, is_throttled).await;

    let other = RawSession::open(&server, "client-2").await;
    other.say(beat(attempt, false)).await;
    raw.send(chunks(&data).swap_remove(0)).await;
    let request = WatchTransfersRequest { transfer_id: id.clone(), ..Default::default() };
    let watch = server.control().await.watch_transfers(request).await;
    let mut watch = watch.expect("watched").into_inner();
    let throttled = told(&mut watch, is_throttled).await;
    assert_eq!(throttled.waiting, shown.waiting, "since it began");
    session.say(beat(attempt, false)).await;
    // Although no byte has moved.
    told(&mut watch, |transfer| !is_throttled(transfer)).await;
    raw.send_all(upload(&header, &data).into_iter().skip(2)).await;
    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    assert_eq!(server.landed(&id).await.0.waiting, None);
    server.stop().await;
}

#[tokio::test]
async fn a_raised_number_of_uploads_is_offered_at_once_and_a_lower_one_held() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(server.trigger("client-1", "/raw").await.id);
    }
    for _ in 0..4 {
        session.command().await;
    }
    let busy = |t: &Transfer| waits(t) == Some(WaitingReason::ClientBusy);
    server.shown(&ids[4], busy).await;
    let takes = |jobs_max| FromClient::Heartbeat {
        seq: 1,
        progress: Vec::new(),
        jobs_max: Some(jobs_max),
        audit_head: None,
    };

    let begun = Instant::now();
    session.say(takes(6)).await;
    let fifth = session.command().await.attempt;
    session.command().await;
    // Not when the queue would be looked at in any case.
    assert!(begun.elapsed() < limits::CLAIM_POLL / 2, "{:?}", begun.elapsed());
    assert_eq!(server.online("client-1").await.jobs_max, 6);

    session.say(takes(1)).await;
    server.shown(&ids[6], busy).await;
    session.say(FromClient::Reply { attempt: fifth, verdict: Verdict::Busy }).await;
    // What ends frees no place while more than one runs.
    server.shown(&ids[4], |t| t.state() == State::Queued && busy(t)).await;
    assert_eq!(server.transfer(&ids[6]).await.state(), State::Queued);
    session.say(takes(64)).await;
    session.command().await;
    session.command().await;
    server.stop().await;
}

#[tokio::test]
async fn a_full_server_says_so_and_offers_more_when_a_place_is_free_in_turn() {
    let setup = Setup { uploads_max: 1, ..Setup::default() };
    let server = TestServer::start_with(setup).await;
    let mut one = RawSession::open(&server, "client-1").await;
    let mut two = RawSession::open(&server, "client-2").await;
    let data = bytes(10, 4);
    let mut ids = Vec::new();
    let full = |t: &Transfer| waits(t) == Some(WaitingReason::ServerBusy);
    for client in ["client-1", "client-1", "client-1", "client-2"] {
        let id = server.trigger(client, "/raw").await.id;
        if ids.is_empty() {
            // It has the only place.
            server.follow(&id, |t| t.state() == State::Offered).await;
        } else {
            let waiting = server.shown(&id, full).await;
            assert_eq!((waiting.state(), waiting.epoch), (State::Queued, 0), "never offered");
        }
        ids.push(id);
    }
    // The client that has waited longest, and then the other one, before the first again.
    let begun = Instant::now();
    for turn in [0, 1, 3, 2] {
        let session = if turn < 3 { &mut one } else { &mut two };
        let attempt = session.command().await.attempt;
        assert_eq!(attempt.transfer.to_string(), ids[turn], "in turn");
        let header = session.header(attempt, &data);
        let mut raw = RawUpload::open(server.address).await;
        raw.send_all(upload(&header, &data)).await;
        raw.answer().await.expect("taken");
    }
    assert!(
        begun.elapsed() < limits::CLAIM_POLL / 2,
        "it went on by itself: {:?}",
        begun.elapsed()
    );
    server.stop().await;
}

#[tokio::test]
async fn an_offer_that_comes_to_nothing_gives_its_place_back() {
    let setup = Setup { uploads_max: 1, ..Setup::default() };
    let server = TestServer::start_with(setup).await;
    let mut one = RawSession::open(&server, "client-1").await;
    let mut two = RawSession::open(&server, "client-2").await;
    for end in 0..3 {
        let held = server.trigger("client-1", "/raw").await.id;
        let attempt = one.command().await.attempt;
        let next = server.trigger("client-2", "/raw").await.id;
        server.shown(&next, |t| waits(t) == Some(WaitingReason::ServerBusy)).await;
        match end {
            0 => one.say(FromClient::Reply { attempt, verdict: Verdict::Busy }).await,
            1 => cancel(&server, &held).await,
            // The client is gone.
            _ => one = RawSession::open(&server, "client-3").await,
        }
        let command = two.command().await;
        assert_eq!(command.attempt.transfer.to_string(), next);
        cancel(&server, &next).await;
        if end == 0 {
            cancel(&server, &held).await;
        }
    }
    server.stop().await;
}

async fn cancel(server: &TestServer, id: &str) {
    let request = CancelTransferRequest { transfer_id: id.to_owned() };
    server.control().await.cancel_transfer(request).await.expect("cancelled");
}

/// The client's program with a file of settings, and a shared file that no cap could deliver in
/// the time of a test.
struct Site {
    dir: TempDir,
    shared: String,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).expect("made");
        // Of its own, so that the sandbox lets another file take its place.
        fs::create_dir(dir.path().join("etc")).expect("made");
        fs::write(shared.join("f"), bytes(16 * CHUNK_BYTES, 7)).expect("written");
        let shared = text(&shared).to_owned();
        Self { dir, shared }
    }

    fn set(&self, settings: &str) {
        let new = self.dir.path().join("etc/new");
        fs::write(&new, settings).expect("written");
        fs::rename(&new, self.dir.path().join("etc/client.toml")).expect("renamed");
    }

    fn start(&self, server: &TestServer, more: &[&str]) -> Process {
        let text = |name: &str| self.dir.path().join(name).to_str().expect("text").to_owned();
        let (url, state, log) = (server.url(), text("state"), self.dir.path().join("log"));
        let mut args = vec!["--server", &url, "--allow", &self.shared, "--state-dir", &state];
        args.extend(["--client-id", "client-1", "--status-port", "0"]);
        args.extend(more);
        Process::start(env!("CARGO_BIN_EXE_fts-client"), &log, &args, &[])
    }
}

fn hang_up(client: &Process) {
    client.signal(rustix::process::Signal::HUP);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_changes_the_limits_of_what_runs_and_a_bad_file_changes_nothing() {
    let server = TestServer::start().await;
    let site = Site::new();
    site.set("max_rate = \"64KB/s\"\nmax_uploads = 1\n");
    let config = site.dir.path().join("etc/client.toml");
    let mut client = site.start(&server, &["--config", text(&config)]);
    assert_eq!(server.online("client-1").await.jobs_max, 1);
    let path = format!("{}/f", site.shared);
    let first = server.trigger("client-1", &path).await.id;
    let second = server.trigger("client-1", &path).await.id;
    server.follow(&first, is_throttled).await;
    server.shown(&second, |t| waits(t) == Some(WaitingReason::ClientBusy)).await;

    // What is right in a file with something wrong does not count.
    site.set("max_uploads = 9\nmax_rat = \"1GB/s\"\n");
    hang_up(&client);
    client.logged("nothing was changed");
    client.logged("max_rat");
    assert_eq!(server.online("client-1").await.jobs_max, 1);
    assert!(is_throttled(&server.transfer(&first).await));

    // The second one may run as well: the server is told, and offers it at once.
    site.set("max_rate = \"64KB/s\"\nmax_uploads = 2\nallow = [\"/elsewhere\"]\nnice = 5\n");
    hang_up(&client);
    server.follow(&second, is_throttled).await;
    client.logged("the new nice takes effect after a restart");
    assert!(!client.read_log().contains("the new allow"), "the flag wins: {}", client.read_log());

    // At 64 KB/s these would take minutes.
    site.set("");
    hang_up(&client);
    for id in [&first, &second] {
        let (transfer, landed) = server.landed(id).await;
        assert!(landed == bytes(16 * CHUNK_BYTES, 7));
        assert_eq!((transfer.attempts, transfer.waiting), (1, None), "none was cut");
    }

    // And from none to some, in the middle.
    site.set("max_rate = \"64KB/s\"\nmax_uploads = 1\n");
    hang_up(&client);
    let third = server.trigger("client-1", &path).await.id;
    server.follow(&third, is_throttled).await;
    assert_eq!(server.online("client-1").await.jobs_max, 1);
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_that_comes_in_the_middle_holds_what_runs() {
    let server = TestServer::start().await;
    let site = Site::new();
    // A hole: long to send, even on a fast machine.
    let length = 4 << 30;
    let path = format!("{}/long", site.shared);
    fs::File::create(&path).expect("made").set_len(length).expect("grown");
    site.set("");
    let config = site.dir.path().join("etc/client.toml");
    let client = site.start(&server, &["--config", text(&config)]);
    server.online("client-1").await;
    let id = server.trigger("client-1", &path).await.id;
    server.follow(&id, |t| t.bytes_done > 0).await;

    site.set("max_rate = \"64KB/s\"\n");
    hang_up(&client);

    let held = server.follow(&id, is_throttled).await;
    assert!(held.bytes_done < length);
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_as_nice_as_told_and_without_a_file_a_hang_up_ends_it() {
    let server = TestServer::start().await;
    let site = Site::new();
    let client = site.start(&server, &["--nice", "7"]);
    server.online("client-1").await;
    let id = server.trigger("client-1", &format!("{}/f", site.shared)).await.id;
    server.landed(&id).await;
    let tasks = format!("/proc/{}/task", client.id().as_raw_nonzero());
    for task in fs::read_dir(tasks).expect("it runs") {
        let stat = task.expect("a thread").path().join("stat");
        // A thread may end meanwhile.
        let Ok(stat) = fs::read_to_string(stat) else { continue };
        let fields = stat.rsplit_once(") ").expect("a name").1;
        assert_eq!(fields.split(' ').nth(16), Some("7"), "the nice value of {stat}");
    }

    // A terminal that is closed does this; under nohup, which this test may run in, nothing happens.
    hang_up(&client);

    if hangups_are_ignored() {
        drop(client);
    } else {
        assert!(!client.wait().0.success());
    }
    server.stop().await;
}

/// Whether this process, and so its children, were started to outlive their terminal.
fn hangups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    u64::from_str_radix(ignored.trim(), 16).expect("hexadecimal") & 1 == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_became_a_pipe_changes_nothing_and_blocks_nothing() {
    let server = TestServer::start().await;
    let site = Site::new();
    site.set("max_rate = \"1MB/s\"\n");
    let config = site.dir.path().join("etc/client.toml");
    let mut client = site.start(&server, &["--config", text(&config)]);
    server.online("client-1").await;

    fs::remove_file(&config).expect("removed");
    rustix::fs::mkfifoat(rustix::fs::CWD, &config, rustix::fs::Mode::RUSR).expect("made");
    hang_up(&client);
    client.logged("not a regular file");
    fs::remove_file(&config).expect("removed");
    site.set("max_rate = \"2MB/s\"\n");
    hang_up(&client);

    client.logged("2MB/s");
    drop(client);
    server.stop().await;
}
