//! The two streams that operators read over gRPC: `ReadFile`, and how many `WatchTransfers` there
//! may be.

use fts::{
    chunk::crc32c,
    limits::{CHUNK_BYTES, HTTP2_STREAMS_MAX, WATCHES_MAX},
    status::{self, Reason},
    wire::proto::{ReadFileRequest, ReadFileResponse, WatchTransfersRequest},
};
use tonic::{Code, Status};

use crate::{
    common::{bytes, http::ask, raw::RawSession, server::TestServer},
    fixture::land,
};

async fn read(
    server: &TestServer,
    id: &str,
    offset: u64,
    length: u64,
) -> Result<Vec<ReadFileResponse>, Status> {
    let request = ReadFileRequest { transfer_id: id.to_owned(), offset, length };
    let mut stream = server.control().await.read_file(request).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.push(message);
    }
    Ok(messages)
}

#[tokio::test]
async fn any_part_of_a_file_comes_with_the_digest_of_the_whole() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(2 * CHUNK_BYTES + 17, 1);
    let size = data.len() as u64;
    let id = land(&server, &mut session, "/raw", &data).await.id;
    for (offset, length, end) in [
        (0, 0, size),
        (0, 1, 1),
        (7, 0, size),
        (CHUNK_BYTES as u64 - 1, 2, CHUNK_BYTES as u64 + 1),
        (size - 1, u64::MAX, size),
        (size, 0, size),
        (size, 5, size),
    ] {
        let messages = read(&server, &id, offset, length).await.expect("read");

        let what = format!("{offset}, {length}");
        assert_eq!(messages[0].size, size, "{what}");
        assert_eq!(messages[0].digest, blake3::hash(&data).to_hex().as_str(), "{what}");
        let mut at = offset;
        for message in &messages {
            assert_eq!(message.offset, at, "{what}");
            assert!(message.data.len() <= CHUNK_BYTES, "{what}");
            assert_eq!(message.crc32c, crc32c(&message.data), "{what}");
            at += message.data.len() as u64;
        }
        let range = usize::try_from(offset).expect("small")..usize::try_from(end).expect("small");
        let joined: Vec<u8> = messages.iter().flat_map(|message| message.data.to_vec()).collect();
        assert!(joined == data[range], "{what}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_a_reason() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = land(&server, &mut session, "/raw", b"data").await.id;
    let queued = server.trigger("client-1", "/raw").await.id;
    let unknown = fts::ids::TransferId::generate().to_string();
    let refused = async |id: &str, offset| {
        let refused = read(&server, id, offset, 0).await.expect_err("refused");
        (refused.code(), status::reason(&refused))
    };

    let beyond = refused(&id, 5).await;
    let early = refused(&queued, 0).await;
    let unknown = refused(&unknown, 0).await;
    let malformed = refused("7", 0).await;
    ask(server.address, "DELETE", &format!("/transfers/{id}"), &[], "").await;
    let deleted = refused(&id, 0).await;

    assert_eq!(beyond, (Code::OutOfRange, Some(Reason::RangeNotSatisfiable)));
    assert_eq!(early, (Code::FailedPrecondition, Some(Reason::NoContent)));
    assert_eq!(unknown, (Code::NotFound, Some(Reason::UnknownTransfer)));
    assert_eq!(malformed, (Code::InvalidArgument, Some(Reason::InvalidArgument)));
    assert_eq!(deleted, (Code::FailedPrecondition, Some(Reason::NoContent)));
    server.stop().await;
}

#[tokio::test]
async fn one_watch_too_many_is_refused_until_another_ends() {
    let server = TestServer::start().await;
    let mut watches = Vec::new();
    // A connection has so many streams, and no more.
    let per_connection = HTTP2_STREAMS_MAX as usize;
    while watches.len() < WATCHES_MAX {
        let mut control = server.control().await;
        for _ in 0..per_connection.min(WATCHES_MAX - watches.len()) {
            let watch = control.watch_transfers(WatchTransfersRequest::default()).await;
            watches.push(watch.expect("watched").into_inner());
        }
    }
    let mut control = server.control().await;

    let refused = control.watch_transfers(WatchTransfersRequest::default()).await;

    let refused = refused.expect_err("one too many");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(status::reason(&refused), Some(Reason::TooMany));
    drop(watches);
    let again = async {
        while control.watch_transfers(WatchTransfersRequest::default()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::common::server::PATIENCE, again).await.expect("there is room");
    server.stop().await;
}
