//! More than a client can take. The real program, because its memory is what counts.

use std::fs;

use bytes::BytesMut;
use fts::{
    limits,
    wire::{
        proto::{
            DownloadCommand, HeartbeatAck, RequestSignature, ServerMessage, server_message::Body,
        },
        session::Outcome,
    },
};
use prost::Message as _;
use tokio::sync::mpsc;

use crate::{
    Site,
    asked::beat,
    common::process::Process,
    peer::{Peer, Session, Uploads, download, framed},
};

const MEMORY_KIB_MAX: u64 = 64 << 10;
/// What is remembered of commands is far below their own 35 MiB.
const REMEMBERING_KIB_MAX: u64 = 40 << 10;
const DESCRIPTORS_MAX: usize = 256;

fn start(site: &Site, peer: &Peer) -> Process {
    let (root, state, url) = (site.text("root"), site.text("state"), peer.url());
    let args = ["--server", &url, "--client-id", "client-1", "--allow", &root];
    let more = ["--state-dir", &state, "--status-port", "0"];
    let args: Vec<&str> = args.into_iter().chain(more).collect();
    Process::start(env!("CARGO_BIN_EXE_fts-client"), &site.path("log"), &args, &[])
}

/// Returns the most memory that it ever had, in KiB, and how many descriptors it has.
fn costs(process: &Process) -> (u64, usize) {
    let of = format!("/proc/{}", process.id().as_raw_nonzero());
    let status = fs::read_to_string(format!("{of}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    let kib = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    (kib, fs::read_dir(format!("{of}/fd")).expect("it runs").count())
}

fn assert_small(process: &Process, kib_max: u64) {
    let (kib, descriptors) = costs(process);
    eprintln!("{kib} KiB at most, {descriptors} descriptors");
    assert!(kib <= kib_max, "{kib} KiB");
    assert!(descriptors < DESCRIPTORS_MAX, "{descriptors}");
}

/// Heartbeats go on, answered.
async fn beats(session: &mut Session, count: u32) {
    for _ in 0..count {
        let seq = beat(session).await.expect("the session goes on");
        session.say(Body::HeartbeatAck(HeartbeatAck { seq })).await;
    }
}

/// Says `count` commands while the answers are read, and takes none of the reports.
async fn flood(session: Session, paths: &[String], count: usize) -> Session {
    let (mut talker, mut listener) = session.split();
    let (done, mut is_done) = mpsc::channel::<()>(1);
    let talk = async {
        for batch in 0..count / 100 {
            let mut bytes = BytesMut::new();
            for each in 0..100 {
                let path = &paths[(batch * 100 + each) % paths.len()];
                let body = Some(Body::Download(download(path, 1)));
                bytes.extend_from_slice(&framed(&ServerMessage { body }.encode_to_vec()));
            }
            assert!(talker.say_bytes(bytes.freeze()).await, "the session goes on");
        }
        drop(done);
    };
    let listen = async {
        loop {
            tokio::select! {
                next = listener.next() => assert!(next.is_some(), "the session goes on"),
                _ = is_done.recv() => return,
            }
        }
    };
    tokio::join!(talk, listen);
    Session::of(talker, listener)
}

#[tokio::test]
async fn a_flood_of_commands_costs_little() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let process = start(&site, &peer);
    let mut session = peer.silent().await;
    session.welcome(500, 60_000).await;
    let paths = ["root/open", "canary", "root/out", "root/absent"].map(|path| site.text(path));
    let mut session = flood(session, &paths, 100_000).await;
    beats(&mut session, 3).await;
    assert_small(&process, MEMORY_KIB_MAX);
}

/// Each is taken, has ended, and its report is taken, before the next ones: the client remembers all.
#[tokio::test]
async fn commands_as_long_as_can_be_are_remembered_in_little() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let process = start(&site, &peer);
    let mut session = peer.silent().await;
    session.welcome(500, 60_000).await;
    let mut path = site.text("root");
    let name = format!("/{}", "x".repeat(199));
    path.push_str(&name.repeat((limits::PATH_BYTES_MAX - path.len()) / name.len()));
    let request = vec![7; limits::SIGNED_REQUEST_BYTES_MAX].into();
    let signature = Some(RequestSignature { request, signature: vec![7; 64].into() });
    let at_a_time = limits::JOBS_WAITING_MAX;
    for _ in 0..=limits::COMMANDS_REMEMBERED_MAX / at_a_time {
        for _ in 0..at_a_time {
            let command = download(&path, 1);
            let body = DownloadCommand { signature: signature.clone(), ..command };
            assert!(session.say(Body::Download(body)).await, "the session goes on");
        }
        for _ in 0..at_a_time {
            let report = session.report().await.expect("the session goes on");
            assert!(matches!(report.outcome, Outcome::Failed(_)), "{report:?}");
        }
    }
    beats(&mut session, 3).await;
    assert_small(&process, REMEMBERING_KIB_MAX);
}

async fn costs_little_with_uploads(uploads: Uploads) {
    let (site, mut peer) = (Site::new(), Peer::start(uploads).await);
    fs::write(site.path("root/large"), vec![7; 64 << 20]).expect("written");
    let process = start(&site, &peer);
    let mut session = peer.silent().await;
    session.welcome(500, 60_000).await;
    let mut session = flood(session, &[site.text("root/large")], 1_000).await;
    beats(&mut session, 6).await;
    assert_small(&process, MEMORY_KIB_MAX);
}

#[tokio::test]
async fn a_server_that_reads_no_upload_costs_little() {
    costs_little_with_uploads(Uploads::Hold).await;
}

#[tokio::test]
async fn a_server_that_lets_one_byte_at_a_time_through_costs_little() {
    costs_little_with_uploads(Uploads::ByByte).await;
}
