//! How an attempt ends: what its reader decided, what the server answered, and what comes of both.

use std::{future::Future, sync::OnceLock, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

use crate::{
    client::words::status_text,
    ids::{AttemptId, Digest},
    limits,
    transfer::{FailReason, Hold},
    wire::{
        proto::{UploadFileResponse, receipt},
        session::{Outcome, Upload},
    },
};

/// What the reader decided, noted before it is sent: so that it is known when the call ends.
#[derive(Debug)]
pub(super) enum Decision {
    Finish { size: u64, digest: Digest },
    Abort { reason: FailReason, detail: String },
    Held(Hold, Duration),
}

/// Returns what is reported of an attempt that the policy holds back.
pub(super) fn held(hold: Hold, pause: Duration) -> (Outcome, String) {
    (Outcome::Held(hold, pause), HELD_BACK.to_owned())
}

pub(super) const HELD_BACK: &str = "the client's policy holds it back for now";

/// Notes the reader's decision; returns whether it is an Abort.
pub(super) fn note(message: &Upload, noted: &OnceLock<Decision>) -> bool {
    let decision = match message {
        Upload::Finish { size, finish, .. } => {
            Decision::Finish { size: *size, digest: finish.digest }
        }
        Upload::Abort { reason, detail } => {
            Decision::Abort { reason: *reason, detail: detail.clone() }
        }
        Upload::Held(hold, pause) => Decision::Held(*hold, *pause),
        Upload::Header(_) | Upload::Chunk { .. } | Upload::RangeEnd => return false,
    };
    let is_abort = !matches!(decision, Decision::Finish { .. });
    noted.set(decision).expect("a reader decides once");
    is_abort
}

/// Returns up to where the file has come, with a chunk.
pub(super) fn end_of_chunk(message: &Upload) -> Option<u64> {
    match message {
        Upload::Chunk { offset, data, .. } => Some(offset + data.len() as u64),
        _ => None,
    }
}

pub(super) type Answer = Result<Response<UploadFileResponse>, Status>;

/// Waits for the call's end; after an Abort, which needs no answer, only for a while.
pub(super) async fn answer(
    call: impl Future<Output = Answer>,
    aborted: &CancellationToken,
) -> Option<Answer> {
    let patience = async {
        aborted.cancelled().await;
        sleep(limits::ABORT_ANSWER_WAIT).await;
    };
    tokio::select! {
        answer = call => Some(answer),
        () = patience => None,
    }
}

/// Returns how the attempt ended. The call's own answer is told rather than what sending met.
pub(super) fn judge(
    attempt: AttemptId,
    answer: Option<Answer>,
    decision: Option<&Decision>,
) -> (Outcome, String) {
    match (answer, decision) {
        (_, Some(Decision::Abort { reason, detail })) => (Outcome::Failed(*reason), detail.clone()),
        (_, Some(Decision::Held(hold, pause))) => held(*hold, *pause),
        (Some(Ok(response)), Some(Decision::Finish { size, digest })) => {
            if is_receipt(attempt, response.get_ref(), *size, *digest) {
                (Outcome::Delivered, String::new())
            } else {
                (Outcome::Broken, "the receipt is not for what was sent".to_owned())
            }
        }
        (Some(Ok(_)), None) => {
            (Outcome::Broken, "the server answered before the end was sent".to_owned())
        }
        (Some(Err(status)), _) => (Outcome::Broken, status_text(&status)),
        (None, _) => (Outcome::Broken, "the server did not answer".to_owned()),
    }
}

fn is_receipt(
    attempt: AttemptId,
    response: &UploadFileResponse,
    size: u64,
    digest: Digest,
) -> bool {
    let [receipt] = response.receipts.as_slice() else { return false };
    receipt.status() == receipt::Status::Complete
        && AttemptId::try_from(receipt.attempt.clone()) == Ok(attempt)
        && receipt.size == size
        && Digest::from_bytes(&receipt.digest) == Ok(digest)
}
