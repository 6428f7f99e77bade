//! The tables of transfers, their files and their attempts.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection, query::Query};

use super::{events, rows, writer::Verb};
use crate::{
    ids::TransferId,
    limits,
    server::store::{Applied, Claim, Claimant, Created, StoreError, last_of_attempt},
    transfer::{Moment, Step, Transfer},
};

type Arguments = <Sqlite as sqlx::Database>::Arguments;

// === Writing ===

/// Writes a new transfer.
pub(super) struct Create(pub(super) Transfer);

#[async_trait]
impl Verb for Create {
    type Done = Created;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Created, StoreError> {
        create(tx, &self.0).await
    }
}

/// Offers what is due.
pub(super) struct ClaimDue {
    pub(super) claimant: Claimant,
    pub(super) now: Moment,
}

#[async_trait]
impl Verb for ClaimDue {
    type Done = Claim;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Claim, StoreError> {
        claim(tx, &self.claimant, self.now).await
    }
}

/// Applies steps to a transfer: all of them, or none.
pub(super) struct Apply {
    pub(super) id: TransferId,
    pub(super) steps: Vec<(Step, Moment)>,
}

#[async_trait]
impl Verb for Apply {
    type Done = Applied;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Applied, StoreError> {
        apply(tx, self.id, &self.steps).await
    }
}

async fn create(tx: &mut SqliteConnection, transfer: &Transfer) -> Result<Created, StoreError> {
    // First: a repeated request has its answer, whatever else has changed since.
    if let Some(other) = of_request(tx, transfer).await? {
        return Ok(if other.is_same_request(transfer) {
            Created::Existing(other)
        } else {
            Created::Conflict(other.id)
        });
    }
    // An id that was made here is unlike any other.
    if transfer.signature.is_some() && one(tx, transfer.id).await?.is_some() {
        return Ok(Created::Taken(transfer.id));
    }
    // The states name themselves for SQLite to choose the index of what is unfinished: by the client
    // alone it would look at all that the client ever had.
    let client = sqlx::query(
        "SELECT (SELECT COUNT(*) FROM transfers WHERE client_id = $1 AND ended_ms IS NULL
            AND state IN ('QUEUED', 'OFFERED', 'RECEIVING', 'VERIFYING', 'INTERRUPTED'))
            AS unfinished FROM clients WHERE id = $1",
    );
    let client = client.bind(transfer.client.as_str()).fetch_optional(&mut *tx).await?;
    let Some(client) = client else { return Ok(Created::UnknownClient) };
    let unfinished = rows::number(&client, "unfinished")?;
    if unfinished >= limits::UNFINISHED_PER_CLIENT_MAX {
        return Ok(Created::TooMany(unfinished));
    }
    insert(tx, transfer).await?;
    events::write(tx, std::slice::from_ref(transfer)).await?;
    Ok(Created::New(transfer.clone()))
}

async fn of_request(
    tx: &mut SqliteConnection,
    transfer: &Transfer,
) -> Result<Option<Transfer>, StoreError> {
    let Some(request_id) = &transfer.request_id else { return Ok(None) };
    let sql = format!("{} WHERE t.operator = $1 AND t.request_id = $2", rows::TRANSFER);
    let query = sqlx::query(AssertSqlSafe(sql)).bind(rows::operator_text(transfer));
    let query = query.bind(request_id.as_str());
    query.fetch_optional(tx).await?.as_ref().map(rows::transfer).transpose()
}

async fn insert(tx: &mut SqliteConnection, transfer: &Transfer) -> Result<(), StoreError> {
    let row = sqlx::query(
        "INSERT INTO transfers (revision, updated_ms, deadline_ms, state, epoch, instance,
            waiting_reason, waiting_since_ms, waiting_until_ms, due_ms, failure_reason,
            failure_last_reason, failure_detail, attempts, attempts_barren, source_changes,
            mismatches, received_bytes, started_ms, ended_ms, kept_bytes, restart_detail, id,
            client_id, operator, request_id, path, consistency, created_ms, deadline_wait_ms,
            rate_max, signed_request, signature)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
            $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)",
    );
    bind_progress(row, transfer)?
        .bind(transfer.id.to_string())
        .bind(transfer.client.as_str())
        .bind(rows::operator_text(transfer))
        .bind(rows::text_or_none(transfer.request_id.as_ref())?)
        .bind(rows::text_or_none(transfer.path.as_ref())?)
        .bind(rows::text(&transfer.consistency)?)
        .bind(transfer.created.0)
        .bind(rows::big(transfer.deadline_wait_ms)?)
        .bind(transfer.rate_max.map(|rate| rows::big(rate.bytes_per_second())).transpose()?)
        .bind(transfer.signature.as_ref().map(|signed| signed.request().to_vec()))
        .bind(transfer.signature.as_ref().map(|signed| signed.signature().to_vec()))
        .execute(&mut *tx)
        .await?;
    let file = sqlx::query(
        "INSERT INTO files (path, size_bytes, fingerprint, digest, delivered, content,
            trusted_bytes, transfer_id, file_index) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0)",
    );
    bind_file(file, transfer)?.bind(transfer.id.to_string()).execute(tx).await?;
    Ok(())
}

/// What a claim found.
pub(super) enum Next {
    /// At least one, oldest first.
    Due(Vec<Transfer>),
    Not(Claim),
}

/// Looks for the transfers that a claim would take.
pub(super) async fn next(
    connection: &mut SqliteConnection,
    claimant: &Claimant,
    now: Moment,
) -> Result<Next, StoreError> {
    let client = claimant.client.as_str();
    let found = sqlx::query(
        "SELECT session_epoch, (SELECT COUNT(*) FROM transfers WHERE client_id = $1
            AND ended_ms IS NULL AND state IN ('OFFERED', 'RECEIVING', 'VERIFYING')) AS outstanding
         FROM clients WHERE id = $1",
    );
    let Some(found) = found.bind(client).fetch_optional(&mut *connection).await? else {
        return Ok(Next::Not(Claim::Fenced));
    };
    if rows::number(&found, "session_epoch")? != claimant.session.0 {
        return Ok(Next::Not(Claim::Fenced));
    }
    let outstanding = rows::number(&found, "outstanding")?;
    let room = u64::from(claimant.jobs_max).saturating_sub(outstanding);
    if room == 0 {
        return Ok(Next::Not(Claim::Full));
    }
    let sql = format!(
        "{} WHERE t.client_id = $1 AND t.due_ms IS NOT NULL ORDER BY t.due_ms, t.id LIMIT $2",
        rows::TRANSFER
    );
    let limit = room.min(u64::from(claimant.offers_max));
    let first = sqlx::query(AssertSqlSafe(sql)).bind(client).bind(rows::big(limit)?);
    let first = first.fetch_all(connection).await?;
    let mut first = first.iter().map(rows::transfer).collect::<Result<Vec<_>, _>>()?;
    let next_due = first.first().and_then(Transfer::due);
    first.retain(|transfer| transfer.due().is_some_and(|due| due <= now.at));
    if first.is_empty() {
        return Ok(Next::Not(Claim::Nothing { next_due }));
    }
    Ok(Next::Due(first))
}

async fn claim(
    tx: &mut SqliteConnection,
    claimant: &Claimant,
    now: Moment,
) -> Result<Claim, StoreError> {
    let due = match next(tx, claimant, now).await? {
        Next::Due(due) => due,
        Next::Not(claim) => return Ok(claim),
    };
    let mut offers = Vec::with_capacity(due.len());
    for before in due {
        offers.push(offer(tx, &before, claimant, now).await?);
    }
    Ok(Claim::Offered(offers))
}

async fn offer(
    tx: &mut SqliteConnection,
    before: &Transfer,
    claimant: &Claimant,
    now: Moment,
) -> Result<Transfer, StoreError> {
    let instance = claimant.instance;
    let offered = before
        .apply(&Step::Claimed { instance }, now)
        .map_err(|err| StoreError::Corrupt(format!("transfer {} is due, but: {err}", before.id)))?;
    update(tx, before, std::slice::from_ref(&offered)).await?;
    sqlx::query(
        "INSERT INTO attempts (transfer_id, epoch, instance, session_epoch, offered_ms,
            received_bytes, client_id, operator) VALUES ($1, $2, $3, $4, $5, 0, $6, $7)",
    )
    .bind(offered.id.to_string())
    .bind(rows::big(offered.epoch.0)?)
    .bind(instance.secret_text())
    .bind(rows::big(claimant.session.0)?)
    .bind(now.at.0)
    .bind(offered.client.as_str())
    .bind(rows::operator_text(&offered))
    .execute(tx)
    .await?;
    Ok(offered)
}

async fn apply(
    tx: &mut SqliteConnection,
    id: TransferId,
    steps: &[(Step, Moment)],
) -> Result<Applied, StoreError> {
    let Some(before) = one(tx, id).await? else { return Ok(Applied::Unknown) };
    let after = match before.apply_all(steps) {
        Ok(after) => after,
        Err(err) => return Ok(Applied::Refused(err, before)),
    };
    let Some(last) = last_of_attempt(&after) else { return Ok(Applied::Done(after)) };
    update(tx, &before, &after).await?;
    if before.state.is_outstanding() {
        update_attempt(tx, &before, &after[last], &steps[last].0).await?;
    }
    Ok(Applied::Done(after))
}

/// Writes the last of `versions` over `before`, with the event of each.
async fn update(
    tx: &mut SqliteConnection,
    before: &Transfer,
    versions: &[Transfer],
) -> Result<(), StoreError> {
    let Some(after) = versions.last() else { return Ok(()) };
    let row = sqlx::query(
        "UPDATE transfers SET revision = $1, updated_ms = $2, deadline_ms = $3, state = $4,
            epoch = $5, instance = $6, waiting_reason = $7, waiting_since_ms = $8,
            waiting_until_ms = $9, due_ms = $10, failure_reason = $11, failure_last_reason = $12,
            failure_detail = $13, attempts = $14, attempts_barren = $15, source_changes = $16,
            mismatches = $17, received_bytes = $18, started_ms = $19, ended_ms = $20,
            kept_bytes = $21, restart_detail = $22
         WHERE id = $23 AND revision = $24",
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
                delivered = $5, content = $6, trusted_bytes = $7
             WHERE transfer_id = $8 AND file_index = 0",
        );
        bind_file(file, after)?.bind(after.id.to_string()).execute(&mut *tx).await?;
    }
    events::write(tx, versions).await
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

/// Binds `$1` to `$22`: what changes in a transfer's life.
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
        .bind(rows::moment(transfer.ended))
        .bind(rows::big(transfer.kept_bytes)?)
        .bind(transfer.restart_detail.clone()))
}

/// Binds `$1` to `$7`: the file.
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
        .bind(rows::text(&transfer.content)?)
        .bind(rows::big(finish.map_or(0, |finish| finish.trusted_bytes))?))
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
