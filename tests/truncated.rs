//! A cut-off upload is never a finished one, in whatever way it ends.

mod common;

use std::sync::Arc;

use common::{
    bytes,
    raw::{Ending, RawSession, RawUpload, chunks, finish, reason, upload},
    server::TestServer,
};
use fts::{
    limits::CHUNK_BYTES,
    status::Reason,
    wire::{proto::State, session::Upload},
};
use tokio::task::JoinSet;

const ENDINGS: [Ending; 8] = [
    Ending::EndStream,
    Ending::Reset(h2::Reason::CANCEL),
    Ending::Reset(h2::Reason::NO_ERROR),
    Ending::Reset(h2::Reason::INTERNAL_ERROR),
    Ending::HalfMessage(h2::Reason::CANCEL),
    Ending::HalfMessage(h2::Reason::NO_ERROR),
    Ending::HalfMessage(h2::Reason::REFUSED_STREAM),
    Ending::Close,
];

/// The one that counts most: every ending, after every number of chunks.
#[tokio::test]
async fn an_upload_without_finish_is_never_complete() {
    let server = Arc::new(TestServer::start().await);
    let chunks = chunks(&bytes(3 * CHUNK_BYTES + 5, 1)).len();
    let mut cases = JoinSet::new();
    for (i, ending) in ENDINGS.into_iter().enumerate() {
        for sent in 0..=chunks {
            let client = format!("client-{i}-{sent}");
            cases.spawn(cut(Arc::clone(&server), client, ending, sent));
        }
    }
    cases.join_all().await;
    let dir = Arc::into_inner(server).expect("ours alone").stop().await;
    let left = common::files_beneath(&dir.path().join("files"));
    assert!(left.is_empty(), "nothing is left: {left:?}");
}

/// Ends an upload after `sent` chunks, and checks that it is not COMPLETE.
async fn cut(server: Arc<TestServer>, client: String, ending: Ending, sent: usize) {
    let data = bytes(3 * CHUNK_BYTES + 5, 1);
    let all = chunks(&data);
    let mut session = RawSession::open(&server, &client).await;
    let transfer = server.trigger(&client, "/raw").await;
    let command = session.command().await;
    let header = session.header(command.attempt, &data);

    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    raw.send_all(all[..sent].iter().cloned()).await;
    server.follow(&transfer.id, |t| t.state() == State::Receiving).await;
    let next = all.get(sent).cloned().unwrap_or_else(|| finish(&header, &data));
    raw.end(ending, next).await;

    let broken = |t: &fts::wire::proto::Transfer| t.state() != State::Receiving;
    let after = server.follow(&transfer.id, broken).await;
    let what = format!("{ending:?} after {sent} chunks: {after:?}");
    assert!(matches!(after.state(), State::Interrupted | State::Offered), "{what}");
    assert!(after.location.is_empty() && after.digest.is_empty(), "{what}");
    let cancel = fts::wire::proto::CancelTransferRequest { transfer_id: transfer.id };
    server.control().await.cancel_transfer(cancel).await.expect("cancelled");
}

#[tokio::test]
async fn a_finish_before_every_byte_is_refused() {
    let server = TestServer::start().await;
    let data = bytes(2 * CHUNK_BYTES, 2);
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let command = session.command().await;
    let header = session.header(command.attempt, &data);

    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header.clone())).await;
    raw.send(chunks(&data).swap_remove(0)).await;
    raw.send(finish(&header, &data)).await;

    assert_eq!(reason(raw.answer().await), Some(Reason::NotWhole));
    let after = server.follow(&transfer.id, |t| t.state() != State::Receiving).await;
    assert_eq!(after.state(), State::Interrupted);
    server.stop().await;
}

#[tokio::test]
async fn nothing_may_follow_finish() {
    let server = TestServer::start().await;
    let data = bytes(CHUNK_BYTES, 3);
    let mut session = RawSession::open(&server, "client-1").await;
    let transfer = server.trigger("client-1", "/raw").await;
    let command = session.command().await;
    let header = session.header(command.attempt, &data);

    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, &data)).await;
    raw.send(chunks(&data).swap_remove(0)).await;

    assert_eq!(reason(raw.answer().await), Some(Reason::OutOfOrder));
    let after = server.follow(&transfer.id, |t| t.state() != State::Receiving).await;
    assert_eq!(after.state(), State::Interrupted);
    server.stop().await;
}
