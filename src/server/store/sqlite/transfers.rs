//! The tables of transfers, their files and their attempts.

use sqlx::{AssertSqlSafe, QueryBuilder, Sqlite, SqliteConnection, SqlitePool, query::Query};

use super::{events, rows};
use crate::{
    ids::{ClientId, InstanceId, SessionEpoch, TransferId, UnixMs},
    limits,
    server::store::{Applied, Claim, Created, StoreError, TransferFilter},
    transfer::{Moment, State, Step, Transfer},
};

type Arguments = <Sqlite as sqlx::Database>::Arguments;

// === Writing ===

pub(super) async fn create(
    tx: &mut SqliteConnection,
    transfer: &Transfer,
) -> Result<Created, StoreError> {
    // First: a repeated request has its answer, whatever else has changed since.
    if let Some(other) = of_request(tx, transfer).await? {
        return Ok(if other.is_same_request(transfer) {
            Created::Existing(other)
        } else {
            Created::Conflict(other.id)
        });
    }
    let client = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM transfers WHERE client_id = $1 AND ended_ms IS NULL) \
            AS unfinished FROM clients WHERE id = $1",
    );
    let client = client.bind(transfer.client.as_str()).fetch_optional(&mut *tx).await?;
    let Some(client) = client else { return Ok(Created::UnknownClient) };
    let unfinished = rows::number(&client, "unfinished")?;
    if unfinished >= limits::UNFINISHED_PER_CLIENT_MAX {
        return Ok(Created::TooMany(unfinished));
    }
    insert(tx, transfer).await?;
    events::write(tx, transfer).await?;
    Ok(Created::New(transfer.clone()))
}

async fn of_request(
    tx: &mut SqliteConnection,
    transfer: &Transfer,
) -> Result<Option<Transfer>, StoreError> {
    let Some(request_id) = &transfer.request_id else { return Ok(None) };
    let sql = format!("{} WHERE t.operator = $1 AND t.request_id = $2", rows::TRANSFER);
    let query = sqlx::query(AssertSqlSafe(sql)).bind(OPERATOR).bind(request_id.as_str());
    query.fetch_optional(tx).await?.as_ref().map(rows::transfer).transpose()
}

async fn insert(tx: &mut SqliteConnection, transfer: &Transfer) -> Result<(), StoreError> {
    let row = sqlx::query(
        "INSERT INTO transfers (revision, updated_ms, deadline_ms, state, epoch, instance,
            waiting_reason, waiting_since_ms, waiting_until_ms, due_ms, failure_reason,
            failure_last_reason, failure_detail, attempts, attempts_barren, source_changes,
            mismatches, received_bytes, started_ms, ended_ms, id, client_id, operator,
            request_id, path, consistency, created_ms, deadline_wait_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19, $20, $21, $22, $23, $24, $25, $26, $27, $28)",
    );
    bind_progress(row, transfer)?
        .bind(transfer.id.to_string())
        .bind(transfer.client.as_str())
        .bind(OPERATOR)
        .bind(rows::text_or_none(transfer.request_id.as_ref())?)
        .bind(rows::text_or_none(transfer.path.as_ref())?)
        .bind(rows::text(&transfer.consistency)?)
        .bind(transfer.created.0)
        .bind(rows::big(transfer.deadline_wait_ms)?)
        .execute(&mut *tx)
        .await?;
    let file = sqlx::query(
        "INSERT INTO files (path, size_bytes, fingerprint, digest, delivered, content,
            transfer_id, file_index) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)",
    );
    bind_file(file, transfer)?.bind(transfer.id.to_string()).execute(tx).await?;
    Ok(())
}

/// What a claim found.
pub(super) enum Next {
    Due(Transfer),
    Not(Claim),
}

/// Looks for the transfer that a claim would take.
pub(super) async fn next(
    connection: &mut SqliteConnection,
    client: &ClientId,
    session: SessionEpoch,
    jobs_max: u32,
    now: Moment,
) -> Result<Next, StoreError> {
    let latest = sqlx::query("SELECT session_epoch FROM clients WHERE id = $1");
    let latest = latest.bind(client.as_str()).fetch_optional(&mut *connection).await?;
    let latest = latest.map(|row| rows::number(&row, "session_epoch")).transpose()?;
    if latest != Some(session.0) {
        return Ok(Next::Not(Claim::Fenced));
    }
    let outstanding = sqlx::query(
        "SELECT COUNT(*) AS outstanding FROM transfers WHERE client_id = $1
            AND ended_ms IS NULL AND state IN ('OFFERED', 'RECEIVING', 'VERIFYING')",
    );
    let outstanding = outstanding.bind(client.as_str()).fetch_one(&mut *connection).await?;
    if rows::number(&outstanding, "outstanding")? >= u64::from(jobs_max) {
        return Ok(Next::Not(Claim::Full));
    }
    let sql = format!(
        "{} WHERE t.client_id = $1 AND t.due_ms IS NOT NULL ORDER BY t.due_ms, t.id LIMIT 1",
        rows::TRANSFER
    );
    let first = sqlx::query(AssertSqlSafe(sql)).bind(client.as_str()).fetch_optional(connection);
    let first = first.await?.as_ref().map(rows::transfer).transpose()?;
    let next_due = first.as_ref().and_then(Transfer::due);
    Ok(match first {
        Some(transfer) if next_due.is_some_and(|due| due <= now.at) => Next::Due(transfer),
        _ => Next::Not(Claim::Nothing { next_due }),
    })
}

pub(super) async fn claim(
    tx: &mut SqliteConnection,
    client: &ClientId,
    session: SessionEpoch,
    instance: InstanceId,
    jobs_max: u32,
    now: Moment,
) -> Result<Claim, StoreError> {
    let before = match next(tx, client, session, jobs_max, now).await? {
        Next::Due(before) => before,
        Next::Not(claim) => return Ok(claim),
    };
    let offered = before
        .apply(&Step::Claimed { instance }, now)
        .map_err(|err| StoreError::Corrupt(format!("transfer {} is due, but: {err}", before.id)))?;
    update(tx, &before, &offered).await?;
    sqlx::query(
        "INSERT INTO attempts (transfer_id, epoch, instance, session_epoch, offered_ms,
            received_bytes) VALUES ($1, $2, $3, $4, $5, 0)",
    )
    .bind(offered.id.to_string())
    .bind(rows::big(offered.epoch.0)?)
    .bind(instance.secret_text())
    .bind(rows::big(session.0)?)
    .bind(now.at.0)
    .execute(tx)
    .await?;
    Ok(Claim::Offered(offered))
}

pub(super) async fn apply(
    tx: &mut SqliteConnection,
    id: TransferId,
    step: &Step,
    now: Moment,
) -> Result<Applied, StoreError> {
    let Some(before) = one(tx, id).await? else { return Ok(Applied::Unknown) };
    let after = match before.apply(step, now) {
        Ok(after) => after,
        Err(err) => return Ok(Applied::Refused(err, before)),
    };
    update(tx, &before, &after).await?;
    if before.state.is_outstanding() {
        update_attempt(tx, &before, &after, step).await?;
    }
    Ok(Applied::Done(after))
}

/// Writes `after` over `before`, with its event.
async fn update(
    tx: &mut SqliteConnection,
    before: &Transfer,
    after: &Transfer,
) -> Result<(), StoreError> {
    let row = sqlx::query(
        "UPDATE transfers SET revision = $1, updated_ms = $2, deadline_ms = $3, state = $4,
            epoch = $5, instance = $6, waiting_reason = $7, waiting_since_ms = $8,
            waiting_until_ms = $9, due_ms = $10, failure_reason = $11, failure_last_reason = $12,
            failure_detail = $13, attempts = $14, attempts_barren = $15, source_changes = $16,
            mismatches = $17, received_bytes = $18, started_ms = $19, ended_ms = $20
         WHERE id = $21 AND revision = $22",
    );
    let row = bind_progress(row, after)?.bind(after.id.to_string());
    let done = row.bind(rows::big(before.revision)?).execute(&mut *tx).await?;
    if done.rows_affected() != 1 {
        let text = format!("transfer {} has changed meanwhile", after.id);
        return Err(StoreError::Unavailable(text.into()));
    }
    if (&before.file, &before.finish, before.content) != (&after.file, &after.finish, after.content)
    {
        let file = sqlx::query(
            "UPDATE files SET path = $1, size_bytes = $2, fingerprint = $3, digest = $4,
                delivered = $5, content = $6 WHERE transfer_id = $7 AND file_index = 0",
        );
        bind_file(file, after)?.bind(after.id.to_string()).execute(&mut *tx).await?;
    }
    events::write(tx, after).await
}

async fn update_attempt(
    tx: &mut SqliteConnection,
    before: &Transfer,
    after: &Transfer,
    step: &Step,
) -> Result<(), StoreError> {
    let ended = !after.state.is_outstanding();
    let received_bytes = after.received_bytes - before.received_bytes;
    let attempt = sqlx::query(
        "UPDATE attempts SET started_ms = $1, ended_ms = $2, outcome = $3,
            received_bytes = received_bytes + $4 WHERE transfer_id = $5 AND epoch = $6",
    );
    attempt
        .bind(rows::moment(after.started))
        .bind(ended.then_some(after.updated.0))
        .bind(if ended { Some(rows::outcome(step)?) } else { None })
        .bind(rows::big(received_bytes)?)
        .bind(after.id.to_string())
        .bind(rows::big(before.epoch.0)?)
        .execute(tx)
        .await?;
    Ok(())
}

type Statement<'q> = Query<'q, Sqlite, Arguments>;

/// Binds `$1` to `$20`: what changes in a transfer's life.
fn bind_progress<'q>(
    statement: Statement<'q>,
    transfer: &Transfer,
) -> Result<Statement<'q>, StoreError> {
    let waiting = transfer.waiting.as_ref();
    let failure = transfer.failure.as_ref();
    let last_reason = failure.and_then(|failure| failure.last_reason.as_ref());
    Ok(statement
        .bind(rows::big(transfer.revision)?)
        .bind(transfer.updated.0)
        .bind(transfer.deadline.0)
        .bind(rows::text(&transfer.state)?)
        .bind(rows::big(transfer.epoch.0)?)
        .bind(transfer.instance.map(|instance| instance.secret_text()))
        .bind(rows::text_or_none(waiting.map(|waiting| &waiting.reason))?)
        .bind(waiting.map(|waiting| waiting.since.0))
        .bind(rows::moment(waiting.and_then(|waiting| waiting.next_attempt)))
        .bind(rows::moment(transfer.due()))
        .bind(rows::text_or_none(failure.map(|failure| &failure.reason))?)
        .bind(rows::text_or_none(last_reason)?)
        .bind(failure.map(|failure| failure.detail.clone()))
        .bind(i64::from(transfer.attempts))
        .bind(i64::from(transfer.attempts_barren))
        .bind(i64::from(transfer.source_changes))
        .bind(i64::from(transfer.mismatches))
        .bind(rows::big(transfer.received_bytes)?)
        .bind(rows::moment(transfer.started))
        .bind(rows::moment(transfer.ended)))
}

/// Binds `$1` to `$6`: the file.
fn bind_file<'q>(
    statement: Statement<'q>,
    transfer: &Transfer,
) -> Result<Statement<'q>, StoreError> {
    let file = transfer.file.as_ref();
    let finish = transfer.finish.as_ref();
    Ok(statement
        .bind(file.map(|file| file.path.clone()))
        .bind(file.map(|file| rows::big(file.size_bytes)).transpose()?)
        .bind(file.map(|file| rows::json(&file.fingerprint)).transpose()?)
        .bind(rows::text_or_none(finish.map(|finish| &finish.digest))?)
        .bind(rows::text_or_none(finish.map(|finish| &finish.delivered))?)
        .bind(rows::text(&transfer.content)?))
}

// === Reading ===

pub(super) async fn one(
    connection: &mut SqliteConnection,
    id: TransferId,
) -> Result<Option<Transfer>, StoreError> {
    let sql = AssertSqlSafe(format!("{} WHERE t.id = $1", rows::TRANSFER));
    let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(connection).await?;
    row.as_ref().map(rows::transfer).transpose()
}

pub(super) async fn page(
    readers: &SqlitePool,
    filter: &TransferFilter,
    before: Option<TransferId>,
    limit: u32,
) -> Result<Vec<Transfer>, StoreError> {
    let mut query = QueryBuilder::new(rows::TRANSFER);
    // `WHERE TRUE` lets every condition begin with AND.
    query.push(" WHERE TRUE");
    if let Some(client) = &filter.client {
        query.push(" AND t.client_id = ").push_bind(client.as_str());
    }
    if !filter.states.is_empty() {
        query.push(" AND t.state IN (");
        let mut states = query.separated(", ");
        for state in &filter.states {
            states.push_bind(rows::text(state)?);
        }
        query.push(")");
    }
    if let Some(before) = before {
        query.push(" AND t.id < ").push_bind(before.to_string());
    }
    query.push(" ORDER BY t.id DESC LIMIT ").push_bind(i64::from(limit));
    let page = query.build().persistent(false).fetch_all(readers).await?;
    page.iter().map(rows::transfer).collect()
}

pub(super) async fn overdue(
    readers: &SqlitePool,
    at: UnixMs,
    offered_before: UnixMs,
    limit: u32,
) -> Result<Vec<Transfer>, StoreError> {
    // A UNION, so that each half has its index.
    let sql = format!(
        "{} WHERE t.id IN (
            SELECT id FROM transfers WHERE ended_ms IS NULL AND deadline_ms <= $1
            UNION SELECT id FROM transfers WHERE state = 'OFFERED' AND updated_ms < $2)
         ORDER BY t.id LIMIT $3",
        rows::TRANSFER
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(at.0).bind(offered_before.0);
    let found = query.bind(i64::from(limit)).fetch_all(readers).await?;
    found.iter().map(rows::transfer).collect()
}

pub(super) async fn expired_content(
    readers: &SqlitePool,
    ended_before: Option<UnixMs>,
    bytes_max: Option<u64>,
    limit: u32,
) -> Result<Vec<Transfer>, StoreError> {
    // `newer_bytes`: of a file and of all that ended after it. A bound of NULL is never passed.
    let sql = format!(
        "WITH kept AS (
            SELECT f.transfer_id, t.ended_ms,
                SUM(f.size_bytes) OVER (ORDER BY t.ended_ms DESC, t.id DESC) AS newer_bytes
            FROM files f JOIN transfers t ON t.id = f.transfer_id WHERE f.content = 'KEPT')
         {} WHERE t.id IN (
            SELECT transfer_id FROM kept WHERE ended_ms < $1 OR newer_bytes > $2)
         ORDER BY t.ended_ms, t.id LIMIT $3",
        rows::TRANSFER
    );
    let bytes_max = bytes_max.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let query = sqlx::query(AssertSqlSafe(sql)).bind(rows::moment(ended_before)).bind(bytes_max);
    let found = query.bind(i64::from(limit)).fetch_all(readers).await?;
    found.iter().map(rows::transfer).collect()
}

pub(super) async fn counts(readers: &SqlitePool) -> Result<Vec<(State, u64)>, StoreError> {
    let sql = "SELECT state, COUNT(*) AS count FROM transfers GROUP BY state";
    let mut counts = State::ALL.map(|state| (state, 0));
    for row in sqlx::query(sql).fetch_all(readers).await? {
        let state: State = rows::word(&row, "state")?;
        for (_, count) in counts.iter_mut().filter(|(each, _)| *each == state) {
            *count = rows::number(&row, "count")?;
        }
    }
    Ok(counts.to_vec())
}

/// Who asks. A request id is an operator's, and there is one operator for now.
const OPERATOR: &str = "";
