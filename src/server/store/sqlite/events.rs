//! The table of events: every change of a transfer, in one order.

use async_trait::async_trait;
use sqlx::{QueryBuilder, SqliteConnection, SqlitePool};

use super::{rows, writer::Verb};
use crate::{
    ids::UnixMs,
    limits,
    server::store::{Event, Events, StoreError},
    transfer::Transfer,
};

/// Writes the events of changes, in order. One statement, because each is a way to SQLite's thread
/// and back.
pub(super) async fn write(
    tx: &mut SqliteConnection,
    versions: &[Transfer],
) -> Result<(), StoreError> {
    let mut values = Vec::with_capacity(versions.len());
    for transfer in versions {
        values.push((transfer, rows::big(transfer.revision)?, rows::json(transfer)?));
    }
    let mut insert =
        QueryBuilder::new("INSERT INTO events (transfer_id, revision, at_ms, is_final, snapshot) ");
    insert.push_values(values, |mut row, (transfer, revision, snapshot)| {
        row.push_bind(transfer.id.to_string()).push_bind(revision);
        row.push_bind(transfer.updated.0).push_bind(transfer.state.is_final());
        row.push_bind(snapshot);
    });
    insert.build().execute(tx).await?;
    Ok(())
}

pub(super) async fn last(readers: &SqlitePool) -> Result<u64, StoreError> {
    // The latest event may have been dropped.
    let row = sqlx::query(
        "SELECT MAX(last) AS last FROM (
            SELECT pruned_through AS last FROM meta UNION ALL SELECT MAX(seq) FROM events) AS both",
    );
    rows::number(&row.fetch_one(readers).await?, "last")
}

pub(super) async fn after(
    readers: &SqlitePool,
    seq: u64,
    limit: u32,
) -> Result<Events, StoreError> {
    // One transaction: between the two statements, events could be dropped.
    let mut reader = readers.begin().await?;
    let meta = sqlx::query("SELECT pruned_through FROM meta").fetch_one(&mut *reader).await?;
    if seq < rows::number(&meta, "pruned_through")? {
        return Ok(Events::Pruned);
    }
    let found =
        sqlx::query("SELECT seq, snapshot FROM events WHERE seq > $1 ORDER BY seq LIMIT $2")
            .bind(i64::try_from(seq).unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(&mut *reader)
            .await?;
    let event = |row| {
        Ok(Event { seq: rows::number(row, "seq")?, transfer: rows::parsed(row, "snapshot")? })
    };
    found.iter().map(event).collect::<Result<_, StoreError>>().map(Events::After)
}

/// Returns the greatest seq that is beyond the `keep_max` latest events of ended transfers; zero if
/// there is none.
pub(super) async fn keep_after(readers: &SqlitePool, keep_max: u64) -> Result<i64, StoreError> {
    let keep_max = i64::try_from(keep_max).unwrap_or(i64::MAX);
    let count = sqlx::query("SELECT COUNT(*) AS count FROM events").fetch_one(readers).await?;
    if rows::column::<i64>(&count, "count")? <= keep_max {
        return Ok(0);
    }
    let row = sqlx::query(
        "SELECT e.seq FROM events e JOIN transfers t ON t.id = e.transfer_id
         WHERE t.ended_ms IS NOT NULL ORDER BY e.seq DESC LIMIT 1 OFFSET $1",
    );
    let row = row.bind(keep_max).fetch_optional(readers).await?;
    row.as_ref().map_or(Ok(0), |row| rows::column(row, "seq"))
}

/// Drops events of ended transfers that are before `before`, or not after `keep_after`; at most
/// `limits::PRUNE_EVENTS_MAX`. Answers how many they were.
pub(super) struct Prune {
    pub(super) before: UnixMs,
    pub(super) keep_after: i64,
}

#[async_trait]
impl Verb for Prune {
    type Done = u64;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<u64, StoreError> {
        prune(tx, self.before, self.keep_after).await
    }
}

async fn prune(
    tx: &mut SqliteConnection,
    before: UnixMs,
    keep_after: i64,
) -> Result<u64, StoreError> {
    // Without an order, the index of each half is used; the horizon is right in any order.
    let dropped = sqlx::query(
        "DELETE FROM events WHERE seq IN (
            SELECT e.seq FROM events e JOIN transfers t ON t.id = e.transfer_id
            WHERE (e.at_ms < $1 OR e.seq <= $2) AND t.ended_ms IS NOT NULL LIMIT $3)
         RETURNING seq",
    );
    let dropped = dropped.bind(before.0).bind(keep_after);
    let dropped = dropped.bind(rows::big(limits::PRUNE_EVENTS_MAX)?).fetch_all(&mut *tx).await?;
    let mut last = 0;
    for row in &dropped {
        last = rows::column::<i64>(row, "seq")?.max(last);
    }
    let horizon = sqlx::query("UPDATE meta SET pruned_through = $1 WHERE pruned_through < $1");
    horizon.bind(last).execute(tx).await?;
    Ok(dropped.len() as u64)
}
