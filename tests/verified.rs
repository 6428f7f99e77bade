//! What does not have its checksums is refused and never visible; what is refused says why.

mod common;

use bytes::Bytes;
use common::{
    bytes, edge_sizes,
    raw::{RawSession, RawUpload, chunks, finish, reason, receipt, upload},
    server::TestServer,
};
use fts::{
    chunk::crc32c,
    ids::{AttemptId, Epoch, InstanceId, TransferId},
    limits::{self, CHUNK_BYTES},
    status::Reason,
    wire::{
        proto::{FailReason, State, receipt::Status},
        session::{Header, Upload},
    },
};

/// Asks for a file and returns the header of its attempt.
async fn offered(server: &TestServer, session: &mut RawSession, data: &[u8]) -> (String, Header) {
    let transfer = server.trigger("client-1", "/raw").await;
    let command = session.command().await;
    (transfer.id, session.header(command.attempt, data))
}

#[tokio::test]
async fn a_whole_upload_lands_with_the_digest_that_b3sum_prints() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    for size in edge_sizes() {
        let data = bytes(size, 7);
        let (id, header) = offered(&server, &mut session, &data).await;

        let mut raw = RawUpload::open(server.address).await;
        raw.send_all(upload(&header, &data)).await;
        let answer = raw.answer().await.expect("taken");

        assert_eq!(receipt(&answer), Status::Complete, "{size} bytes");
        let (transfer, landed) = server.landed(&id).await;
        assert!(landed == data, "{size} bytes are equal");
        assert_eq!(transfer.digest, blake3::hash(&data).to_hex().to_string());
        assert_eq!(transfer.bytes_received, size as u64);
    }
    server.stop().await;
}

#[tokio::test]
async fn one_flipped_byte_in_any_chunk_is_refused() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(2 * CHUNK_BYTES + 3, 8);
    for flipped in 0..3 {
        let (id, header) = offered(&server, &mut session, &data).await;
        let mut messages = upload(&header, &data);
        let Upload::Chunk { offset, crc32c, data: good } = messages[1 + flipped].clone() else {
            panic!("a chunk");
        };
        let mut bad = good.to_vec();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        messages[1 + flipped] = Upload::Chunk { offset, crc32c, data: bad.into() };

        let mut raw = RawUpload::open(server.address).await;
        raw.send_all(messages).await;

        assert_eq!(reason(raw.answer().await), Some(Reason::ChunkCorrupt), "chunk {flipped}");
        let after = server.follow(&id, |t| t.state() != State::Receiving).await;
        assert_eq!(after.state(), State::Interrupted);
        cancel(&server, &id).await;
    }
    assert!(left_after(server).await.is_empty());
}

#[tokio::test]
async fn a_wrong_root_is_tried_once_more_and_then_failed() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(CHUNK_BYTES + 1, 9);
    let (id, mut header) = offered(&server, &mut session, &data).await;
    for attempt in 1..=2 {
        // Every chunk has its CRC, and only the whole is not what was announced.
        let mut messages = upload(&header, &data);
        *messages.last_mut().expect("a finish") = finish(&header, &bytes(CHUNK_BYTES + 1, 10));

        let mut raw = RawUpload::open(server.address).await;
        raw.send_all(messages).await;

        assert_eq!(reason(raw.answer().await), Some(Reason::Integrity));
        if attempt == 1 {
            header.attempt = session.command().await.attempt;
        }
    }
    let after = server.ended(&id).await;
    assert_eq!(after.state(), State::Failed);
    assert_eq!(after.failure.expect("a reason").reason(), FailReason::Integrity);
    assert!(left_after(server).await.is_empty());
}

#[tokio::test]
async fn another_size_than_announced_is_refused() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(CHUNK_BYTES + 7, 14);
    for wrong in [CHUNK_BYTES as u64 + 6, CHUNK_BYTES as u64 + 8, 0, u64::MAX] {
        let (id, header) = offered(&server, &mut session, &data).await;
        let mut messages = upload(&header, &data);
        let Some(Upload::Finish { size, .. }) = messages.last_mut() else { panic!("a finish") };
        *size = wrong;

        let mut raw = RawUpload::open(server.address).await;
        raw.send_all(messages).await;

        assert_eq!(reason(raw.answer().await), Some(Reason::NotWhole), "{wrong}");
        cancel(&server, &id).await;
    }
    assert!(left_after(server).await.is_empty());
}

#[tokio::test]
async fn an_end_that_contradicts_its_beginning_is_not_taken_for_unchanged() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(10, 15);
    let (id, header) = offered(&server, &mut session, &data).await;
    let mut messages = upload(&header, &data);
    let Some(Upload::Finish { fingerprint, .. }) = messages.last_mut() else { panic!("a finish") };
    fingerprint.mtime_ns += 1;

    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(messages).await;

    assert!(raw.answer().await.is_err());
    let after = server.follow(&id, |t| t.state() == State::Interrupted).await;
    assert_eq!(after.failure.expect("a reason").reason(), FailReason::SourceChanged);
    server.stop().await;
}

#[tokio::test]
async fn every_breach_of_the_protocol_has_its_reason() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(2 * CHUNK_BYTES, 11);
    let chunk = |offset, data: &[u8]| Upload::Chunk {
        offset,
        crc32c: crc32c(data),
        data: Bytes::copy_from_slice(data),
    };
    let second = CHUNK_BYTES as u64;
    let cases: Vec<(&str, Vec<Upload>, Reason)> = vec![
        ("a gap", vec![chunk(second, &data[CHUNK_BYTES..])], Reason::WrongOffset),
        ("a short chunk", vec![chunk(0, &data[..CHUNK_BYTES - 1])], Reason::ChunkMalformed),
        ("an empty chunk", vec![chunk(0, b"")], Reason::ChunkMalformed),
        (
            "other bytes again",
            vec![chunk(0, &data[..CHUNK_BYTES]), chunk(0, &data[CHUNK_BYTES..])],
            Reason::WrongOffset,
        ),
        ("far beyond", vec![chunk(u64::MAX, b"x")], Reason::WrongOffset),
        ("a range end", vec![Upload::RangeEnd], Reason::OutOfOrder),
    ];
    for (what, messages, expected) in cases {
        let (id, header) = offered(&server, &mut session, &data).await;
        let mut raw = RawUpload::open(server.address).await;
        raw.send(Upload::Header(header.clone())).await;
        raw.send_all(messages).await;
        assert_eq!(reason(raw.answer().await), Some(expected), "{what}");
        cancel(&server, &id).await;
    }
    let (id, header) = offered(&server, &mut session, &data).await;
    let wrong_size = Header { size: limits::FILE_BYTES_MAX + 1, ..header.clone() };
    let beyond = [chunk(0, &data[..CHUNK_BYTES]), chunk(second, &data[CHUNK_BYTES..])];
    let mut too_many = vec![Upload::Header(header.clone())];
    too_many.extend(beyond);
    too_many.push(chunk(2 * second, b"x"));
    let firsts: Vec<(&str, Vec<Upload>, Reason)> = vec![
        ("no header", chunks(&data), Reason::OutOfOrder),
        ("too large", vec![Upload::Header(wrong_size)], Reason::TooLarge),
        (
            "another epoch",
            vec![Upload::Header(with(&header, header.attempt.transfer, 9))],
            Reason::StaleEpoch,
        ),
        (
            "another transfer",
            vec![Upload::Header(with(&header, TransferId::generate(), 1))],
            Reason::UnknownTransfer,
        ),
        (
            "another instance",
            vec![Upload::Header(Header { instance: InstanceId::generate(), ..header.clone() })],
            Reason::OtherInstance,
        ),
        ("more than announced", too_many, Reason::WrongOffset),
    ];
    for (what, messages, expected) in firsts {
        let mut raw = RawUpload::open(server.address).await;
        raw.send_all(messages).await;
        assert_eq!(reason(raw.answer().await), Some(expected), "{what}");
    }
    cancel(&server, &id).await;
    server.stop().await;
}

#[tokio::test]
async fn a_chunk_sent_again_is_ignored() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(2 * CHUNK_BYTES, 12);
    let (id, header) = offered(&server, &mut session, &data).await;
    let mut messages = upload(&header, &data);
    messages.insert(2, messages[1].clone());

    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(messages).await;

    assert_eq!(receipt(&raw.answer().await.expect("taken")), Status::Complete);
    assert!(server.landed(&id).await.1 == data);
    server.stop().await;
}

#[tokio::test]
async fn a_message_over_its_limit_is_refused() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(2 * CHUNK_BYTES, 13);
    let (id, header) = offered(&server, &mut session, &data).await;

    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header)).await;
    let whole = Upload::Chunk { offset: 0, crc32c: crc32c(&data), data: data.into() };
    raw.send(whole).await;

    assert_eq!(reason(raw.answer().await), Some(Reason::ChunkMalformed));
    cancel(&server, &id).await;
    server.stop().await;
}

fn with(header: &Header, transfer: TransferId, epoch: u64) -> Header {
    Header { attempt: AttemptId { transfer, epoch: Epoch(epoch) }, ..header.clone() }
}

async fn cancel(server: &TestServer, id: &str) {
    let request = fts::wire::proto::CancelTransferRequest { transfer_id: id.to_owned() };
    server.control().await.cancel_transfer(request).await.expect("cancelled");
}

/// Stops the server, and returns what is left of files.
async fn left_after(server: TestServer) -> Vec<std::path::PathBuf> {
    let dir = server.stop().await;
    common::files_beneath(&dir.path().join("files"))
}
