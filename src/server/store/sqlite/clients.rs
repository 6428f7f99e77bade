//! The table of clients: sessions and when they were last seen.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, QueryBuilder, SqliteConnection, SqlitePool};

use super::{rows, writer::Verb};
use crate::{
    audit_head::AuditHead,
    ids::{ClientId, SessionEpoch, UnixMs},
    server::store::{ClientRecord, SaidHead, SessionOpening, StoreError},
};

/// Notes a new session, and raises the session epoch.
pub(super) struct OpenSession {
    pub(super) opening: SessionOpening,
    pub(super) at: UnixMs,
}

#[async_trait]
impl Verb for OpenSession {
    type Done = SessionEpoch;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<SessionEpoch, StoreError> {
        open_session(tx, &self.opening, self.at).await
    }
}

/// Notes when clients were last seen.
pub(super) struct NoteSeen(pub(super) Vec<(ClientId, UnixMs)>);

#[async_trait]
impl Verb for NoteSeen {
    type Done = ();

    async fn run(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        note_seen(tx, &self.0).await
    }
}

/// Notes where the audit of a client stands; returns where it stood, if it has gone back.
pub(super) struct NoteAuditHead {
    pub(super) client: ClientId,
    pub(super) session: SessionEpoch,
    pub(super) said: SaidHead,
    pub(super) at: UnixMs,
}

#[async_trait]
impl Verb for NoteAuditHead {
    type Done = Option<AuditHead>;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Option<AuditHead>, StoreError> {
        let Self { client, session, said: SaidHead { head, is_of_hello }, at } = self;
        let known = "SELECT audit_head FROM clients WHERE id = $1 AND session_epoch = $2";
        let known = sqlx::query(known).bind(client.as_str()).bind(rows::big(session.0)?);
        let Some(row) = known.fetch_optional(&mut *tx).await? else { return Ok(None) };
        let known: Option<AuditHead> = rows::word_or_none(&row, "audit_head")?;
        if known == Some(*head) {
            return Ok(None);
        }
        let back = known.filter(|known| !known.may_become(*head));
        if back.is_some() && *is_of_hello {
            return Ok(None);
        }
        sqlx::query(
            "UPDATE clients SET audit_head = $2, audit_back_ms = coalesce($3, audit_back_ms)
             WHERE id = $1",
        )
        .bind(client.as_str())
        .bind(head.to_string())
        .bind(back.map(|_| at.0))
        .execute(tx)
        .await?;
        Ok(back)
    }
}

async fn open_session(
    tx: &mut SqliteConnection,
    opening: &SessionOpening,
    at: UnixMs,
) -> Result<SessionEpoch, StoreError> {
    let known = "SELECT session_epoch, last_seen_ms FROM clients WHERE id = $1";
    let known = sqlx::query(known).bind(opening.client.as_str()).fetch_optional(&mut *tx).await?;
    let (epoch, last_seen) = match &known {
        Some(row) => (rows::number(row, "session_epoch")?, rows::column(row, "last_seen_ms")?),
        None => (0, at.0),
    };
    let epoch = SessionEpoch(epoch + 1);
    sqlx::query(
        "INSERT INTO clients (id, session_epoch, instance, jobs_max, version, host_name, os,
            address, allowed_roots, policy_digest, first_seen_ms, last_seen_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         ON CONFLICT (id) DO UPDATE SET session_epoch = excluded.session_epoch,
            instance = excluded.instance, jobs_max = excluded.jobs_max,
            version = excluded.version, host_name = excluded.host_name, os = excluded.os,
            address = excluded.address, allowed_roots = excluded.allowed_roots,
            policy_digest = excluded.policy_digest,
            last_seen_ms = excluded.last_seen_ms",
    )
    .bind(opening.client.as_str())
    .bind(rows::big(epoch.0)?)
    .bind(opening.instance.secret_text())
    .bind(i64::from(opening.jobs_max))
    .bind(&opening.version)
    .bind(&opening.host_name)
    .bind(&opening.os)
    .bind(&opening.address)
    .bind(rows::json(&opening.allowed_roots)?)
    .bind(opening.policy_digest.map(|digest| digest.to_string()))
    .bind(at.0)
    .bind(last_seen.max(at.0))
    .execute(tx)
    .await?;
    Ok(epoch)
}

async fn note_seen(
    tx: &mut SqliteConnection,
    seen: &[(ClientId, UnixMs)],
) -> Result<(), StoreError> {
    // One row for each client: of two rows, the statement below would take any.
    let mut latest = BTreeMap::new();
    for (client, at) in seen {
        let noted = latest.entry(client.as_str()).or_insert(at.0);
        *noted = at.0.max(*noted);
    }
    let latest: Vec<_> = latest.into_iter().collect();
    for part in latest.chunks(SEEN_PER_STATEMENT) {
        let mut update = QueryBuilder::new("UPDATE clients SET last_seen_ms = seen.column2 FROM (");
        update.push_values(part, |mut row, &(client, at)| {
            row.push_bind(client).push_bind(at);
        });
        update.push(
            ") AS seen WHERE clients.id = seen.column1 AND clients.last_seen_ms < seen.column2",
        );
        update.build().persistent(false).execute(&mut *tx).await?;
    }
    Ok(())
}

pub(super) async fn one(
    readers: &SqlitePool,
    id: &ClientId,
) -> Result<Option<ClientRecord>, StoreError> {
    let sql = AssertSqlSafe(format!("{} WHERE c.id = $1", rows::CLIENT));
    let row = sqlx::query(sql).bind(id.as_str()).fetch_optional(readers).await?;
    row.as_ref().map(rows::client).transpose()
}

pub(super) async fn page(
    readers: &SqlitePool,
    after: Option<&ClientId>,
    limit: u32,
) -> Result<Vec<ClientRecord>, StoreError> {
    // No id is empty: every one comes after the empty text.
    let sql = AssertSqlSafe(format!("{} WHERE c.id > $1 ORDER BY c.id LIMIT $2", rows::CLIENT));
    let after = after.map_or("", ClientId::as_str);
    let page = sqlx::query(sql).bind(after).bind(i64::from(limit)).fetch_all(readers).await?;
    page.iter().map(rows::client).collect()
}

pub(super) async fn due(
    readers: &SqlitePool,
    now: UnixMs,
    after: Option<&ClientId>,
    limit: u32,
) -> Result<Vec<ClientId>, StoreError> {
    // One look at the index of queues for each client, however long its queue is.
    let sql = "SELECT c.id FROM clients c WHERE c.id > $1 AND EXISTS (
            SELECT 1 FROM transfers t WHERE t.client_id = c.id AND t.due_ms <= $2)
         ORDER BY c.id LIMIT $3";
    let after = after.map_or("", ClientId::as_str);
    let query = sqlx::query(sql).bind(after).bind(now.0).bind(i64::from(limit));
    let due = query.fetch_all(readers).await?;
    due.iter().map(|row| rows::word(row, "id")).collect()
}

/// Two values each; SQLite takes 32,766 in a statement.
const SEEN_PER_STATEMENT: usize = 500;

pub(super) async fn known(readers: &SqlitePool) -> Result<u64, StoreError> {
    let row = sqlx::query("SELECT COUNT(*) AS count FROM clients").fetch_one(readers).await?;
    rows::number(&row, "count")
}
