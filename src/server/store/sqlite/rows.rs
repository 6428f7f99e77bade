//! Rows and records: what a column holds, and how it is written and read back. A row that does not
//! read as what was written is damage, and is said so.

use std::str::FromStr;

use serde::{
    Serialize,
    de::{DeserializeOwned, IntoDeserializer as _, value},
};
use sqlx::{ColumnIndex, Decode, Row as _, Sqlite, Type, sqlite::SqliteRow};

use crate::{
    ids::{Epoch, OperatorName, SessionEpoch, UnixMs},
    rate::Rate,
    server::store::{ClientRecord, SessionOpening, StoreError},
    signature::RequestSignature,
    transfer::{Cause, Failure, Finish, SourceFile, Step, Transfer, Waiting},
};

/// What [`transfer`] reads: a transfer with its file. Every one has a file; `LEFT` makes SQLite
/// begin with transfers, which have the indexes.
pub(super) const TRANSFER: &str = "SELECT t.*, f.path AS opened_path, f.size_bytes, \
    f.fingerprint, f.digest, f.delivered, f.content, f.trusted_bytes \
    FROM transfers t LEFT JOIN files f ON f.transfer_id = t.id AND f.file_index = 0";

/// What [`client`] reads: a client with its counts.
pub(super) const CLIENT: &str = "SELECT c.*, \
    (SELECT COUNT(*) FROM transfers t WHERE t.client_id = c.id AND t.ended_ms IS NULL \
        AND t.state IN ('OFFERED', 'RECEIVING', 'VERIFYING')) AS active_transfers, \
    (SELECT COUNT(*) FROM transfers t WHERE t.client_id = c.id AND t.ended_ms IS NULL \
        AND t.state IN ('QUEUED', 'INTERRUPTED')) AS queued_transfers \
    FROM clients c";

pub(super) fn transfer(row: &SqliteRow) -> Result<Transfer, StoreError> {
    Ok(Transfer {
        id: word(row, "id")?,
        client: word(row, "client_id")?,
        operator: operator(row)?,
        path: word_or_none(row, "path")?,
        request_id: word_or_none(row, "request_id")?,
        consistency: word(row, "consistency")?,
        rate_max: rate_max(row)?,
        signature: signature(row)?,
        created: UnixMs(column(row, "created_ms")?),
        deadline: UnixMs(column(row, "deadline_ms")?),
        deadline_wait_ms: number(row, "deadline_wait_ms")?,
        updated: UnixMs(column(row, "updated_ms")?),
        revision: number(row, "revision")?,
        state: word(row, "state")?,
        epoch: Epoch(number(row, "epoch")?),
        instance: word_or_none(row, "instance")?,
        waiting: waiting(row)?,
        failure: failure(row)?,
        attempts: small(row, "attempts")?,
        attempts_barren: small(row, "attempts_barren")?,
        source_changes: small(row, "source_changes")?,
        mismatches: small(row, "mismatches")?,
        file: file(row)?,
        received_bytes: number(row, "received_bytes")?,
        kept_bytes: number(row, "kept_bytes")?,
        restart_detail: column(row, "restart_detail")?,
        started: moment_or_none(row, "started_ms")?,
        ended: moment_or_none(row, "ended_ms")?,
        finish: finish(row)?,
        content: word(row, "content")?,
    })
}

/// The column is never NULL, for request ids to be unique among those of no operator too.
fn operator(row: &SqliteRow) -> Result<Option<OperatorName>, StoreError> {
    if column::<&str>(row, "operator")?.is_empty() {
        return Ok(None);
    }
    word(row, "operator").map(Some)
}

fn rate_max(row: &SqliteRow) -> Result<Option<Rate>, StoreError> {
    let Some(rate) = column::<Option<i64>>(row, "rate_max")? else { return Ok(None) };
    let rate = u64::try_from(rate).map_err(|err| damaged("rate_max", &err))?;
    Rate::try_from(rate).map(Some).map_err(|err| damaged("rate_max", &err))
}

fn signature(row: &SqliteRow) -> Result<Option<RequestSignature>, StoreError> {
    let Some(request) = column::<Option<&[u8]>>(row, "signed_request")? else { return Ok(None) };
    let signature = column::<&[u8]>(row, "signature")?;
    RequestSignature::new(request, signature).map(Some).map_err(|err| damaged("signature", &err))
}

fn waiting(row: &SqliteRow) -> Result<Option<Waiting>, StoreError> {
    let Some(reason) = word_or_none(row, "waiting_reason")? else { return Ok(None) };
    Ok(Some(Waiting {
        reason,
        since: UnixMs(column(row, "waiting_since_ms")?),
        next_attempt: moment_or_none(row, "waiting_until_ms")?,
    }))
}

fn failure(row: &SqliteRow) -> Result<Option<Failure>, StoreError> {
    let Some(reason) = word_or_none(row, "failure_reason")? else { return Ok(None) };
    Ok(Some(Failure {
        reason,
        last_reason: word_or_none(row, "failure_last_reason")?,
        detail: column(row, "failure_detail")?,
    }))
}

fn file(row: &SqliteRow) -> Result<Option<SourceFile>, StoreError> {
    let Some(path) = column::<Option<String>>(row, "opened_path")? else { return Ok(None) };
    Ok(Some(SourceFile {
        path,
        size_bytes: number(row, "size_bytes")?,
        fingerprint: parsed(row, "fingerprint")?,
    }))
}

fn finish(row: &SqliteRow) -> Result<Option<Finish>, StoreError> {
    let Some(digest) = word_or_none(row, "digest")? else { return Ok(None) };
    let trusted_bytes = number(row, "trusted_bytes")?;
    Ok(Some(Finish { digest, delivered: word(row, "delivered")?, trusted_bytes }))
}

pub(super) fn client(row: &SqliteRow) -> Result<ClientRecord, StoreError> {
    Ok(ClientRecord {
        opening: SessionOpening {
            client: word(row, "id")?,
            instance: word(row, "instance")?,
            jobs_max: small(row, "jobs_max")?,
            version: column(row, "version")?,
            host_name: column(row, "host_name")?,
            os: column(row, "os")?,
            address: column(row, "address")?,
            allowed_roots: parsed(row, "allowed_roots")?,
            policy_digest: word_or_none(row, "policy_digest")?,
        },
        session_epoch: SessionEpoch(number(row, "session_epoch")?),
        first_seen: UnixMs(column(row, "first_seen_ms")?),
        last_seen: UnixMs(column(row, "last_seen_ms")?),
        active_transfers: number(row, "active_transfers")?,
        queued_transfers: number(row, "queued_transfers")?,
        audit_head: word_or_none(row, "audit_head")?,
        audit_back: column::<Option<i64>>(row, "audit_back_ms")?.map(UnixMs),
    })
}

// === Reading a column ===

pub(super) fn column<'r, T>(row: &'r SqliteRow, name: &'static str) -> Result<T, StoreError>
where
    T: Decode<'r, Sqlite> + Type<Sqlite>,
    &'static str: ColumnIndex<SqliteRow>,
{
    Ok(row.try_get(name)?)
}

pub(super) fn number(row: &SqliteRow, name: &'static str) -> Result<u64, StoreError> {
    u64::try_from(column::<i64>(row, name)?).map_err(|err| damaged(name, &err))
}

pub(super) fn small(row: &SqliteRow, name: &'static str) -> Result<u32, StoreError> {
    u32::try_from(column::<i64>(row, name)?).map_err(|err| damaged(name, &err))
}

pub(super) fn moment_or_none(
    row: &SqliteRow,
    name: &'static str,
) -> Result<Option<UnixMs>, StoreError> {
    Ok(column::<Option<i64>>(row, name)?.map(UnixMs))
}

/// Reads an id, or a word of an enum, as serde spells it.
pub(super) fn word<T: DeserializeOwned>(
    row: &SqliteRow,
    name: &'static str,
) -> Result<T, StoreError> {
    word_or_none(row, name)?.ok_or_else(|| damaged(name, &"it is missing"))
}

pub(super) fn word_or_none<T: DeserializeOwned>(
    row: &SqliteRow,
    name: &'static str,
) -> Result<Option<T>, StoreError> {
    let Some(text) = column::<Option<&str>>(row, name)? else { return Ok(None) };
    let read: Result<T, value::Error> = T::deserialize(text.into_deserializer());
    read.map(Some).map_err(|err| damaged(name, &err))
}

/// Reads what its `FromStr` knows.
pub(super) fn spelled<T>(row: &SqliteRow, name: &'static str) -> Result<T, StoreError>
where
    T: FromStr<Err: std::fmt::Display>,
{
    column::<&str>(row, name)?.parse().map_err(|err| damaged(name, &err))
}

/// Reads JSON.
pub(super) fn parsed<T: DeserializeOwned>(
    row: &SqliteRow,
    name: &'static str,
) -> Result<T, StoreError> {
    serde_json::from_str(column(row, name)?).map_err(|err| damaged(name, &err))
}

pub(super) fn damaged(name: &str, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("column {name}: {why}"))
}

// === Writing a column ===

/// Returns an id, or a word of an enum, as serde spells it.
pub(super) fn text(value: &impl Serialize) -> Result<String, StoreError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => Ok(text),
        other => Err(StoreError::Corrupt(format!("expected a word to write, not {other:?}"))),
    }
}

/// Returns who asked; the empty text where nobody is named.
pub(super) fn operator_text(transfer: &Transfer) -> &str {
    transfer.operator.as_ref().map_or("", OperatorName::as_str)
}

pub(super) fn text_or_none(value: Option<&impl Serialize>) -> Result<Option<String>, StoreError> {
    value.map(text).transpose()
}

pub(super) fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|err| StoreError::Corrupt(err.to_string()))
}

/// SQL has no unsigned numbers. A number that it cannot hold is refused, so that what is read is
/// what was written.
pub(super) fn big(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::Corrupt(format!("{value} is too large to keep")))
}

pub(super) fn moment(value: Option<UnixMs>) -> Option<i64> {
    value.map(|at| at.0)
}

/// Returns what ended an attempt, in one word.
pub(super) fn outcome(step: &Step) -> Result<String, StoreError> {
    let word = match step {
        Step::Broken { cause: Cause::Failed { reason, .. }, .. } | Step::Refused { reason, .. } => {
            return text(reason);
        }
        Step::Busy { .. } => "CLIENT_BUSY",
        Step::OfferExpired { .. } => "OFFER_EXPIRED",
        Step::Broken { cause: Cause::ClientLost, .. } => "CLIENT_LOST",
        Step::Broken { cause: Cause::ServerStopped, .. } => "SERVER_STOPPED",
        Step::Broken { cause: Cause::ServerBusy, .. } => "SERVER_BUSY",
        Step::Broken { cause: Cause::ServerDisk { .. }, .. } => "SERVER_DISK",
        Step::Broken { cause: Cause::ClientStopped, .. } => "CLIENT_STOPPED",
        Step::Broken { cause: Cause::ClientHolds { .. }, .. } => "CLIENT_HOLDS",
        Step::Unpublished { .. } => "UNPUBLISHED",
        Step::Mismatched { .. } => "INTEGRITY",
        Step::Published { .. } => "COMPLETE",
        Step::DeadlinePassed { .. } => "DEADLINE",
        Step::Cancelled { .. } => "CANCELLED",
        Step::Paused { .. } => "PAUSED",
        Step::Claimed { .. }
        | Step::Begun { .. }
        | Step::Kept { .. }
        | Step::Restarted { .. }
        | Step::Finished { .. }
        | Step::MadeDue
        | Step::Retried
        | Step::Resumed
        | Step::ContentDeleted => {
            return Err(StoreError::Corrupt(format!("{step:?} ended an attempt")));
        }
    };
    Ok(word.to_owned())
}
