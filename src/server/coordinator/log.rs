//! What the log says of transfers: how attempts break, and how transfers end.

use crate::{
    ids::RemotePath,
    telemetry,
    transfer::{Failure, State, Transfer},
};

/// One line for each attempt that broke.
pub(super) fn broken(transfer: &Transfer, failure: &Failure) {
    tracing::info!(
        transfer_id = %transfer.id, client_id = transfer.client.as_str(), epoch = transfer.epoch.0,
        reason = ?failure.reason, detail = ?failure.detail, "an attempt broke"
    );
}

/// One line for each ended transfer.
pub(super) fn ended(transfer: &Transfer) {
    let span = telemetry::transfer_span(transfer.id);
    let _entered = span.enter();
    let client_id = transfer.client.as_str();
    let size_bytes = transfer.file.as_ref().map(|file| file.size_bytes);
    let path = transfer.path.as_ref().map_or("(default file)", RemotePath::as_str);
    let duration_ms = transfer.started.zip(transfer.ended).map(|(s, e)| e.since(s).as_millis());
    match (&transfer.failure, transfer.state) {
        (Some(failure), State::Failed) => tracing::warn!(
            client_id, ?path, reason = ?failure.reason, last_reason = ?failure.last_reason,
            detail = ?failure.detail, attempts = transfer.attempts, "transfer failed"
        ),
        (_, State::Cancelled) => tracing::info!(client_id, ?path, "transfer cancelled"),
        _ => tracing::info!(
            client_id,
            ?path,
            size_bytes,
            duration_ms,
            attempts = transfer.attempts,
            received_bytes = transfer.received_bytes,
            "transfer complete"
        ),
    }
}
