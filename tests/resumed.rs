//! What broke goes on where it was: what is durable is not sent again, is proved to be of the same
//! source, and ends as the same file.

mod common;

use std::{fs, path::PathBuf};

use common::{
    bytes,
    client::TestClient,
    raw::{Ending, RawSession, RawUpload, chunks, finish, hello, reason, receipt},
    server::{Setup, TestServer},
};
use fts::{
    limits::{self, CHUNK_BYTES},
    status::Reason,
    transfer::FailReason,
    wire::{
        proto::{self, State, WaitingReason, receipt::Status},
        session::{Command, FromClient, Header, Outcome, Report, Resume, Upload},
    },
};

const MIB: u64 = CHUNK_BYTES as u64;

/// A server, and a transfer of `data` whose upload was cut after `sent` chunks.
struct Cut {
    server: TestServer,
    session: RawSession,
    id: String,
    data: Vec<u8>,
    header: Header,
}

async fn cut(data: Vec<u8>, sent: usize) -> Cut {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    cut_after(&server, &id, &header, &data, sent).await;
    Cut { server, session, id, data, header }
}

/// Sends `sent` more chunks, and resets the call.
async fn cut_after(server: &TestServer, id: &str, header: &Header, data: &[u8], sent: usize) {
    let epoch = header.attempt.epoch.0;
    let first = usize::try_from(header.offset / MIB).expect("small");
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    raw.send_all(chunks(data).into_iter().skip(first).take(sent)).await;
    let there = header.offset + (sent * CHUNK_BYTES) as u64;
    let there = there.min(header.size);
    server.shown(id, |t| t.bytes_done >= there || t.epoch > epoch).await;
    raw.end(Ending::Reset(h2::Reason::CANCEL), finish(header, data)).await;
    server.follow(id, |t| t.state() != State::Receiving || t.epoch > epoch).await;
}

/// The header of an upload that goes on where `resume` says.
fn go_on(header: &Header, command: &Command) -> Header {
    let resume = command.resume.as_ref().expect("something is kept");
    assert_eq!(resume.fingerprint, header.fingerprint);
    Header { attempt: command.attempt, offset: resume.kept.bytes(), ..header.clone() }
}

/// Sends the rest from the header's offset on.
async fn send_rest(server: &TestServer, header: &Header, data: &[u8]) -> RawUpload {
    let first = usize::try_from(header.offset / MIB).expect("small");
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    raw.send_all(chunks(data).into_iter().skip(first)).await;
    raw.send(finish(header, data)).await;
    raw
}

fn kept(resume: Option<&Resume>) -> u64 {
    resume.map_or(0, |resume| resume.kept.bytes())
}

#[tokio::test]
async fn a_cut_upload_goes_on_after_its_last_chunk_and_sends_nothing_twice() {
    for sent in 1..=5 {
        let mut cut = cut(bytes(5 * CHUNK_BYTES + 3, 1), sent).await;
        let command = cut.session.command().await;
        assert_eq!(kept(command.resume.as_ref()), sent as u64 * MIB);

        let header = go_on(&cut.header, &command);
        let answer = send_rest(&cut.server, &header, &cut.data).await.answer().await;

        assert_eq!(receipt(&answer.expect("taken")), Status::Complete, "{sent}");
        let (transfer, landed) = cut.server.landed(&cut.id).await;
        assert!(landed == cut.data);
        assert_eq!(transfer.bytes_received, cut.data.len() as u64, "nothing was sent twice");
        assert_eq!((transfer.attempts, transfer.bytes_kept), (2, 0));
        let dir = cut.server.stop().await;
        let left = common::files_beneath(&dir.path().join("files"));
        assert_eq!(left, [PathBuf::from(transfer.location)], "no partial file is left");
    }
}

#[tokio::test]
async fn the_last_chunk_is_always_sent_again() {
    for data in [bytes(3 * CHUNK_BYTES, 2), bytes(2 * CHUNK_BYTES + 1, 2)] {
        let mut cut = cut(data, 3).await;
        let command = cut.session.command().await;
        assert_eq!(kept(command.resume.as_ref()), 2 * MIB);
        let header = go_on(&cut.header, &command);
        let answer = send_rest(&cut.server, &header, &cut.data).await.answer().await;
        assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
        assert!(cut.server.landed(&cut.id).await.1 == cut.data);
    }
}

#[tokio::test]
async fn an_interrupted_transfer_shows_what_is_kept() {
    let Cut { server, session, id, .. } = cut(bytes(5 * CHUNK_BYTES, 3), 3).await;
    drop(session);

    let after = server.follow(&id, |t| t.bytes_kept > 0).await;

    assert_eq!((after.bytes_kept, after.bytes_done), (3 * MIB, 3 * MIB));
    assert_eq!(after.size, Some(5 * MIB));
}

#[tokio::test]
async fn a_restarted_server_goes_on_and_reads_what_it_kept_again() {
    for is_damaged in [false, true] {
        let Cut { server, session, id, data, header } = cut(bytes(6 * CHUNK_BYTES, 4), 4).await;
        drop(session);
        server.shown(&id, |t| t.bytes_kept == 4 * MIB).await;
        let dir = server.abort().await;
        if is_damaged {
            flip(&dir.path().join("files/partial").join(&id), MIB + 5);
        }

        let server = TestServer::start_in(dir, Setup::default(), 0).await;
        assert_eq!(server.transfer(&id).await.bytes_kept, 4 * MIB);
        let mut again = hello("client-1", header.instance);
        again.jobs_max = 1;
        let mut session = RawSession::open_as(&server, again).await;
        let command = session.command().await;
        let next = go_on(&header, &command);
        let answer = send_rest(&server, &next, &data).await.answer().await;

        if is_damaged {
            assert_eq!(reason(answer), Some(Reason::ServerIo));
            let after = server.transfer(&id).await;
            assert_eq!((after.state(), after.bytes_kept), (State::Interrupted, 0));
        } else {
            assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
            let (transfer, landed) = server.landed(&id).await;
            assert!(landed == data);
            assert_eq!(transfer.bytes_received, 6 * MIB);
        }
    }
}

fn flip(path: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("a partial file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("there");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

#[tokio::test]
async fn a_damaged_journal_is_never_trusted_and_a_torn_one_costs_its_tail() {
    let data = bytes(6 * CHUNK_BYTES, 5);
    for (at, cut_off, expected) in [
        // Of the header; of the first batch, of two.
        (Some(20), 0, 0),
        (Some(128 + 30), 0, 0),
        // Of the last batch: its record and those behind it.
        (Some(128 + 64 * 3 + 30), 0, 3 * MIB),
        // Torn.
        (None, 10, 3 * MIB),
        (None, 64 * 2, 2 * MIB),
    ] {
        let Cut { server, mut session, id, header, .. } = cut(data.clone(), 2).await;
        let command = session.command().await;
        cut_after(&server, &id, &go_on(&header, &command), &data, 2).await;
        drop(session);
        server.shown(&id, |t| t.bytes_kept == 4 * MIB).await;
        let dir = server.abort().await;
        let journal = dir.path().join(format!("files/partial/{id}.journal"));
        if let Some(at) = at {
            flip(&journal, at);
        }
        let len = fs::metadata(&journal).expect("a journal").len();
        fs::OpenOptions::new()
            .write(true)
            .open(&journal)
            .and_then(|file| file.set_len(len - cut_off))
            .expect("cut");

        let server = TestServer::start_in(dir, Setup::default(), 0).await;

        assert_eq!(server.transfer(&id).await.bytes_kept, expected, "{at:?} {cut_off}");
        let mut session = RawSession::open(&server, "client-1").await;
        let command = session.command().await;
        assert_eq!(kept(command.resume.as_ref()), expected);
        let offset = expected;
        let next =
            Header { attempt: command.attempt, instance: session.instance, offset, ..header };
        let answer = send_rest(&server, &next, &data).await.answer().await;
        assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
        assert!(server.landed(&id).await.1 == data);
        server.stop().await;
    }
}

#[tokio::test]
async fn an_upload_that_goes_on_elsewhere_is_refused_and_costs_nothing() {
    let mut cut = cut(bytes(5 * CHUNK_BYTES, 6), 3).await;
    let bad: [fn(&mut Header); 3] = [
        |header| header.offset = 4 * MIB,
        |header| header.fingerprint.mtime_ns += 1,
        |header| header.size += 1,
    ];
    for spoil in bad {
        let command = cut.session.command().await;
        assert_eq!(kept(command.resume.as_ref()), 3 * MIB, "it is still there");
        let mut header = go_on(&cut.header, &command);
        spoil(&mut header);
        let answer = send_rest(&cut.server, &header, &cut.data).await.answer().await;
        assert_eq!(reason(answer), Some(Reason::WrongOffset), "{header:?}");
    }
    let command = cut.session.command().await;
    let header = go_on(&cut.header, &command);
    let answer = send_rest(&cut.server, &header, &cut.data).await.answer().await;
    assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
}

#[tokio::test]
async fn a_client_that_begins_anew_says_why_and_what_was_kept_is_dropped() {
    let mut cut = cut(bytes(3 * CHUNK_BYTES, 7), 2).await;
    let command = cut.session.command().await;
    assert_eq!(kept(command.resume.as_ref()), 2 * MIB);
    let header = Header {
        attempt: command.attempt,
        restart_detail: "its inode differs".to_owned(),
        ..cut.header.clone()
    };

    let answer = send_rest(&cut.server, &header, &cut.data).await.answer().await;

    assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
    let (transfer, landed) = cut.server.landed(&cut.id).await;
    assert!(landed == cut.data);
    assert_eq!(transfer.restart_detail, "its inode differs");
    assert_eq!(transfer.bytes_received, 5 * MIB, "the waste shows");
}

#[tokio::test]
async fn kept_bytes_that_the_source_does_not_have_are_dropped() {
    for failure in [FailReason::Integrity, FailReason::SourceChanged] {
        let mut cut = cut(bytes(4 * CHUNK_BYTES, 8), 2).await;
        let command = cut.session.command().await;
        let header = go_on(&cut.header, &command);
        let mut raw = RawUpload::open(cut.server.address).await;
        raw.send(Upload::Header(header.clone())).await;
        raw.send(Upload::Abort { reason: failure, detail: "other bytes".to_owned() }).await;
        assert_eq!(receipt(&raw.answer().await.expect("noted")), Status::Aborted);

        let command = cut.session.command().await;

        assert!(command.resume.is_none(), "{failure:?}");
        assert_eq!(cut.server.transfer(&cut.id).await.bytes_kept, 0);
    }
}

#[tokio::test]
async fn a_transfer_that_makes_progress_is_never_out_of_attempts() {
    let cuts = limits::ATTEMPTS_MAX as usize + 1;
    let mut cut = cut(bytes((cuts + 1) * CHUNK_BYTES + 1, 9), 1).await;
    for done in 1..=cuts {
        let command = cut.session.command().await;
        assert_eq!(kept(command.resume.as_ref()), done as u64 * MIB);
        let header = go_on(&cut.header, &command);
        let mut raw = RawUpload::open(cut.server.address).await;
        raw.send(Upload::Header(header.clone())).await;
        raw.send(chunks(&cut.data).remove(done)).await;
        let there = (done as u64 + 1) * MIB;
        cut.server.shown(&cut.id, |t| t.bytes_done == there).await;
        // The client's word comes before the cut is seen.
        let (attempt, detail) = (header.attempt, "cut".to_owned());
        let report = Report { attempt, outcome: Outcome::Broken, detail };
        cut.session.say(FromClient::Report(report)).await;
        let after = cut.server.follow(&cut.id, |t| t.state() == State::Interrupted).await;
        assert_eq!(after.bytes_kept, there);
    }
    let command = cut.session.command().await;
    let header = go_on(&cut.header, &command);
    let answer = send_rest(&cut.server, &header, &cut.data).await.answer().await;
    assert_eq!(receipt(&answer.expect("taken")), Status::Complete);
    let (transfer, landed) = cut.server.landed(&cut.id).await;
    assert!(landed == cut.data);
    assert_eq!(transfer.bytes_received, cut.data.len() as u64);
}

#[tokio::test]
async fn a_paused_transfer_keeps_what_it_has_and_a_cancelled_one_nothing() {
    let Cut { server, mut session, id, data, header } = cut(bytes(4 * CHUNK_BYTES, 10), 1).await;
    let command = session.command().await;
    let header = go_on(&header, &command);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    raw.send(chunks(&data).remove(1)).await;
    server.shown(&id, |t| t.bytes_done == 2 * MIB).await;

    let pause = proto::PauseTransferRequest { transfer_id: id.clone() };
    server.control().await.pause_transfer(pause).await.expect("paused");
    let paused = server.shown(&id, |t| t.bytes_kept == 2 * MIB).await;
    assert_eq!(paused.waiting.expect("it waits").reason(), WaitingReason::Paused);

    let resume = proto::ResumeTransferRequest { transfer_id: id.clone() };
    server.control().await.resume_transfer(resume).await.expect("resumed");
    let command = session.command().await;
    assert_eq!(kept(command.resume.as_ref()), 2 * MIB);

    let cancel = proto::CancelTransferRequest { transfer_id: id.clone() };
    let cancelled = server.control().await.cancel_transfer(cancel).await.expect("cancelled");
    assert_eq!(cancelled.into_inner().transfer.expect("a transfer").bytes_kept, 0);
    let dir = server.stop().await;
    assert!(common::files_beneath(&dir.path().join("files")).is_empty());
}

#[tokio::test]
async fn data_that_is_shorter_than_its_journal_is_not_believed() {
    let Cut { server, session, id, .. } = cut(bytes(6 * CHUNK_BYTES, 16), 4).await;
    drop(session);
    server.shown(&id, |t| t.bytes_kept == 4 * MIB).await;
    let dir = server.abort().await;
    let data = dir.path().join("files/partial").join(&id);
    let data = fs::OpenOptions::new().write(true).open(data).expect("a partial file");
    data.set_len(4 * MIB - 1).expect("cut");

    let server = TestServer::start_in(dir, Setup::default(), 0).await;

    assert_eq!(server.transfer(&id).await.bytes_kept, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_running_upload_journals_what_has_come() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let data = bytes(4 * CHUNK_BYTES, 17);
    let attempt = session.command().await.attempt;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header)).await;
    raw.send(chunks(&data).remove(0)).await;
    // Time is what makes a batch due.
    tokio::time::sleep(limits::CHECKPOINT_EVERY).await;
    raw.send(chunks(&data).remove(1)).await;

    let journal = server.dir().join(format!("files/partial/{id}.journal"));
    server.shown(&id, |_| fs::metadata(&journal).is_ok_and(|meta| meta.len() > 0)).await;
}

#[tokio::test]
async fn a_clean_up_leaves_what_may_still_be_wanted() {
    let Cut { server, session, id, .. } = cut(bytes(4 * CHUNK_BYTES, 18), 2).await;
    drop(session);
    server.shown(&id, |t| t.bytes_kept == 2 * MIB).await;

    server.coordinator.collect_abandoned().await.expect("looked");

    let mut session = RawSession::open(&server, "client-1").await;
    assert_eq!(kept(session.command().await.resume.as_ref()), 2 * MIB);
    server.stop().await;
}

// === The real client ===

#[tokio::test]
async fn a_restarted_client_reads_what_was_kept_again_and_sends_the_rest() {
    let server = TestServer::start().await;
    let root = tempfile::TempDir::new().expect("a directory");
    let data = bytes(40 * CHUNK_BYTES + 7, 11);
    let path = root.path().join("f");
    fs::write(&path, &data).expect("written");
    let client = TestClient::start_at_rate(&server, "client-1", &[root.path()], 8_000_000).await;
    let id = server.trigger("client-1", path.to_str().expect("text")).await.id;
    server.shown(&id, |t| t.bytes_done >= 4 * MIB).await;

    client.abort().await;
    let broken = server.follow(&id, |t| t.bytes_kept > 0).await;
    let client = TestClient::start(&server, "client-1", &[root.path()]).await;

    let (transfer, landed) = server.landed(&id).await;
    assert!(landed == data);
    let waste = transfer.bytes_received - data.len() as u64;
    assert!(waste <= MIB, "{waste} bytes were sent twice");
    assert!(broken.bytes_kept >= 4 * MIB, "{broken:?}");
    assert_eq!(transfer.bytes_trusted, 0);
    client.stop().await;
}

#[tokio::test]
async fn a_client_that_sent_it_before_goes_on_without_reading_it_again() {
    let server = TestServer::start().await;
    let root = tempfile::TempDir::new().expect("a directory");
    let data = bytes(24 * CHUNK_BYTES + 7, 12);
    let path = root.path().join("f");
    fs::write(&path, &data).expect("written");
    let client = TestClient::start_at_rate(&server, "client-1", &[root.path()], 8_000_000).await;
    let id = server.trigger("client-1", path.to_str().expect("text")).await.id;
    server.shown(&id, |t| t.bytes_done >= 4 * MIB).await;

    let pause = proto::PauseTransferRequest { transfer_id: id.clone() };
    server.control().await.pause_transfer(pause).await.expect("paused");
    server.shown(&id, |t| t.bytes_kept >= 4 * MIB).await;
    let resume = proto::ResumeTransferRequest { transfer_id: id.clone() };
    server.control().await.resume_transfer(resume).await.expect("resumed");

    let (transfer, landed) = server.landed(&id).await;
    assert!(landed == data);
    // What comes between the pause and its end is kept, and not counted.
    assert!(transfer.bytes_received.saturating_sub(data.len() as u64) <= MIB, "{transfer:?}");
    client.stop().await;
}

#[tokio::test]
async fn a_source_that_is_another_one_is_sent_from_its_beginning_and_says_so() {
    let server = TestServer::start().await;
    let root = tempfile::TempDir::new().expect("a directory");
    let path = root.path().join("f");
    fs::write(&path, bytes(40 * CHUNK_BYTES, 13)).expect("written");
    let client = TestClient::start_at_rate(&server, "client-1", &[root.path()], 8_000_000).await;
    let id = server.trigger("client-1", path.to_str().expect("text")).await.id;
    server.shown(&id, |t| t.bytes_done >= 4 * MIB).await;
    client.abort().await;
    server.follow(&id, |t| t.bytes_kept > 0).await;

    // The same bytes but for one, under the same name, of the same size.
    let data = [bytes(40 * CHUNK_BYTES - 1, 13), vec![0]].concat();
    fs::write(root.path().join("new"), &data).expect("written");
    fs::rename(root.path().join("new"), &path).expect("renamed");
    let client = TestClient::start(&server, "client-1", &[root.path()]).await;

    let (transfer, landed) = server.landed(&id).await;
    assert!(landed == data);
    assert!(transfer.restart_detail.contains("inode"), "{}", transfer.restart_detail);
    client.stop().await;
}

#[tokio::test]
async fn bytes_that_differ_in_spite_of_an_equal_fingerprint_never_land() {
    use std::os::unix::fs::FileExt as _;
    for trusts in [false, true] {
        let server = TestServer::start().await;
        let root = tempfile::TempDir::new().expect("a directory");
        let path = root.path().join("f");
        let mut data = bytes(40 * CHUNK_BYTES, 14);
        fs::write(&path, &data).expect("written");
        let client =
            TestClient::start_at_rate(&server, "client-1", &[root.path()], 8_000_000).await;
        let id = server.trigger("client-1", path.to_str().expect("text")).await.id;
        server.shown(&id, |t| t.bytes_done >= 4 * MIB).await;
        client.abort().await;
        server.follow(&id, |t| t.bytes_kept > 0).await;
        let dir = server.stop().await;

        // As if the clock of the source's file system had not ticked: the journal takes on the
        // fingerprint of what was changed.
        data[5] ^= 1;
        let file = fs::OpenOptions::new().write(true).open(&path).expect("there");
        file.write_all_at(&data[5..6], 5).expect("written");
        forge_fingerprint(&dir.path().join(format!("files/partial/{id}.journal")), &file);
        let server = TestServer::start_in(dir, Setup::default(), 0).await;
        let client = TestClient::start_with(&server.url(), "client-1", &[root.path()], |config| {
            config.trusts_fingerprint = trusts;
        });

        let transfer = server.ended(&id).await;
        assert_eq!(transfer.state(), State::Complete, "{transfer:?}");
        let landed = fs::read(&transfer.location).expect("it landed");
        if trusts {
            // What the site asked for, and the result says so.
            assert!(transfer.bytes_trusted >= 4 * MIB, "{transfer:?}");
            assert!(landed[..5] == data[..5] && landed[6..] == data[6..]);
        } else {
            assert!(landed == data);
            assert_eq!(transfer.bytes_trusted, 0);
            assert!(transfer.bytes_received >= 44 * MIB, "it was sent anew: {transfer:?}");
        }
        client.stop().await;
        server.stop().await;
    }
}

/// Writes the times of `file` into the header of a journal.
fn forge_fingerprint(journal: &std::path::Path, file: &fs::File) {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    let meta = file.metadata().expect("a file");
    let journal = fs::OpenOptions::new().read(true).write(true).open(journal).expect("a journal");
    let mut header = [0; 128];
    journal.read_exact_at(&mut header, 0).expect("a header");
    let nanos = |s: i64, ns: i64| (s * 1_000_000_000 + ns).to_le_bytes();
    header[48..56].copy_from_slice(&nanos(meta.mtime(), meta.mtime_nsec()));
    header[56..64].copy_from_slice(&nanos(meta.ctime(), meta.ctime_nsec()));
    let crc = fts::chunk::crc32c(&header[..124]);
    header[124..].copy_from_slice(&crc.to_le_bytes());
    journal.write_all_at(&header, 0).expect("written");
}

#[tokio::test]
#[ignore = "test-all: waits until an upload counts as stalled"]
async fn an_upload_that_stands_still_is_flagged_while_its_client_is_there() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    let data = bytes(3 * CHUNK_BYTES, 15);
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    raw.send(chunks(&data).remove(0)).await;
    let begun = server.shown(&id, |t| t.bytes_done == MIB).await;
    assert!(begun.waiting.is_none());

    let why = |t: &proto::Transfer| t.waiting.as_ref().map(proto::Waiting::reason);
    let stalled = server.shown(&id, |t| why(t) == Some(WaitingReason::Stalled)).await;
    assert_eq!(stalled.state(), State::Receiving);
    drop(session);
    server.shown(&id, |t| why(t) == Some(WaitingReason::ClientOffline)).await;

    raw.send(chunks(&data).remove(1)).await;
    server.shown(&id, |t| t.waiting.is_none()).await;
}
