//! The table of join tokens.

use async_trait::async_trait;
use sqlx::{QueryBuilder, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use crate::{
    ids::UnixMs,
    server::store::{
        StoreError,
        credentials::{Changed, JoinToken},
        sqlite::{rows, writer::Verb},
    },
    token::TokenId,
};

/// Writes new tokens.
pub(super) struct Add(pub(super) Vec<JoinToken>);

#[async_trait]
impl Verb for Add {
    type Done = ();

    async fn run(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        for part in self.0.chunks(TOKENS_PER_STATEMENT) {
            let mut insert = QueryBuilder::new(
                "INSERT INTO join_tokens (id, hash, pattern, uses_max, uses, created_ms,
                    expires_ms, revoked_ms, needs_approval, replaces, creator) ",
            );
            insert.push_values(part, |mut row, token| {
                row.push_bind(token.id.as_str()).push_bind(token.hash.to_string());
                row.push_bind(token.pattern.as_str());
                row.push_bind(i64::from(token.uses_max)).push_bind(i64::from(token.uses));
                row.push_bind(token.created.0).push_bind(token.expires.0);
                row.push_bind(rows::moment(token.revoked)).push_bind(token.needs_approval);
                row.push_bind(token.replaces).push_bind(token.creator.as_str());
            });
            insert.build().persistent(false).execute(&mut *tx).await?;
        }
        Ok(())
    }
}

/// Eleven values each; SQLite takes 32,766 in a statement.
const TOKENS_PER_STATEMENT: usize = 500;

/// Revokes a token.
pub(super) struct Revoke {
    pub(super) id: TokenId,
    pub(super) at: UnixMs,
}

#[async_trait]
impl Verb for Revoke {
    type Done = Changed<JoinToken>;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Changed<JoinToken>, StoreError> {
        let Some(before) = one(tx, &self.id).await? else { return Ok(Changed::Unknown) };
        let Some(after) = before.revoke(self.at) else { return Ok(Changed::WrongState(before)) };
        update(tx, &before, &after).await?;
        Ok(Changed::Done(after))
    }
}

/// Writes `after` over `before`: what changes in a token's life.
pub(super) async fn update(
    tx: &mut SqliteConnection,
    before: &JoinToken,
    after: &JoinToken,
) -> Result<(), StoreError> {
    // The uses that were seen: no two callers take the same one.
    let row = sqlx::query(
        "UPDATE join_tokens SET uses = $1, revoked_ms = $2 WHERE id = $3 AND uses = $4",
    );
    let row = row.bind(i64::from(after.uses)).bind(rows::moment(after.revoked));
    let row = row.bind(after.id.as_str()).bind(i64::from(before.uses));
    if row.execute(tx).await?.rows_affected() != 1 {
        let text = format!("join token {} has changed meanwhile", after.id);
        return Err(StoreError::Unavailable(text.into()));
    }
    Ok(())
}

pub(super) async fn one(
    connection: &mut SqliteConnection,
    id: &TokenId,
) -> Result<Option<JoinToken>, StoreError> {
    let query = sqlx::query("SELECT * FROM join_tokens WHERE id = $1").bind(id.as_str());
    query.fetch_optional(connection).await?.as_ref().map(read).transpose()
}

pub(super) async fn page(
    readers: &SqlitePool,
    after: Option<&TokenId>,
    limit: u32,
) -> Result<Vec<JoinToken>, StoreError> {
    // No id is empty: every one comes after the empty text.
    let query = sqlx::query("SELECT * FROM join_tokens WHERE id > $1 ORDER BY id LIMIT $2");
    let query = query.bind(after.map_or("", TokenId::as_str)).bind(i64::from(limit));
    query.fetch_all(readers).await?.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<JoinToken, StoreError> {
    Ok(JoinToken {
        id: rows::spelled(row, "id")?,
        hash: rows::spelled(row, "hash")?,
        pattern: rows::spelled(row, "pattern")?,
        uses_max: rows::small(row, "uses_max")?,
        uses: rows::small(row, "uses")?,
        created: UnixMs(rows::column(row, "created_ms")?),
        expires: UnixMs(rows::column(row, "expires_ms")?),
        revoked: rows::moment_or_none(row, "revoked_ms")?,
        needs_approval: rows::column(row, "needs_approval")?,
        replaces: rows::column(row, "replaces")?,
        creator: rows::column(row, "creator")?,
    })
}
