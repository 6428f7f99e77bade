//! Lists of transfers: pages, what is overdue, what is kept too long, how many there are, and what
//! was used.

use sqlx::{AssertSqlSafe, QueryBuilder, SqlitePool};

use super::rows;
use crate::{
    ids::{TransferId, UnixMs},
    server::store::{Party, StoreError, TransferFilter, Usage},
    transfer::{State, Transfer},
};

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

pub(super) async fn usage(
    readers: &SqlitePool,
    of: &Party,
    since: UnixMs,
) -> Result<Usage, StoreError> {
    let (column, name) = match of {
        Party::Client(client) => ("client_id", client.as_str()),
        Party::Operator(operator) => ("operator", operator.as_str()),
    };
    let sql = format!(
        "SELECT (SELECT COUNT(*) FROM transfers WHERE {column} = $1 AND created_ms >= $2)
                AS transfers,
            (SELECT CAST(COALESCE(SUM(received_bytes), 0) AS BIGINT) FROM attempts
                WHERE {column} = $1 AND offered_ms >= $2) AS received_bytes"
    );
    let query = sqlx::query(AssertSqlSafe(sql)).bind(name).bind(since.0);
    let row = query.fetch_one(readers).await?;
    let received_bytes = rows::number(&row, "received_bytes")?;
    Ok(Usage { transfers: rows::number(&row, "transfers")?, received_bytes })
}
