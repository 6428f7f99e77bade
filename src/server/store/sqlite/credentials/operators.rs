//! The table of operators.

use async_trait::async_trait;
use sqlx::{SqliteConnection, SqlitePool, sqlite::SqliteRow};

use crate::{
    ids::{OperatorName, UnixMs},
    server::store::{
        StoreError,
        credentials::{Changed, Operator},
        sqlite::{rows, writer::Verb},
    },
    token::TokenId,
};

/// Writes a new operator; answers whether the name was free.
pub(super) struct Add(pub(super) Operator);

#[async_trait]
impl Verb for Add {
    type Done = bool;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<bool, StoreError> {
        if one(tx, &self.0.name).await?.is_some() {
            return Ok(false);
        }
        write(tx, &self.0).await?;
        Ok(true)
    }
}

/// Changes an operator, if `change` returns what it is then.
pub(super) struct Change<F> {
    pub(super) name: OperatorName,
    pub(super) change: F,
}

#[async_trait]
impl<F> Verb for Change<F>
where
    F: Fn(&Operator) -> Option<Operator> + Send + Sync + 'static,
{
    type Done = Changed<Operator>;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Changed<Operator>, StoreError> {
        let Some(before) = one(tx, &self.name).await? else { return Ok(Changed::Unknown) };
        let Some(after) = (self.change)(&before) else { return Ok(Changed::WrongState(before)) };
        write(tx, &after).await?;
        Ok(Changed::Done(after))
    }
}

async fn write(tx: &mut SqliteConnection, operator: &Operator) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO operators (name, role, scope, token_id, hash, created_ms, expires_ms,
            revoked_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (name) DO UPDATE SET role = excluded.role, scope = excluded.scope,
            token_id = excluded.token_id, hash = excluded.hash, created_ms = excluded.created_ms,
            expires_ms = excluded.expires_ms, revoked_ms = excluded.revoked_ms",
    )
    .bind(operator.name.as_str())
    .bind(operator.role.as_str())
    .bind(rows::json(&operator.scope)?)
    .bind(operator.token.as_str())
    .bind(operator.hash.to_string())
    .bind(operator.created.0)
    .bind(rows::moment(operator.expires))
    .bind(rows::moment(operator.revoked))
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) async fn one(
    connection: &mut SqliteConnection,
    name: &OperatorName,
) -> Result<Option<Operator>, StoreError> {
    let query = sqlx::query("SELECT * FROM operators WHERE name = $1").bind(name.as_str());
    query.fetch_optional(connection).await?.as_ref().map(read).transpose()
}

pub(super) async fn of_token(
    readers: &SqlitePool,
    token: &TokenId,
) -> Result<Option<Operator>, StoreError> {
    let query = sqlx::query("SELECT * FROM operators WHERE token_id = $1").bind(token.as_str());
    query.fetch_optional(readers).await?.as_ref().map(read).transpose()
}

pub(super) async fn page(
    readers: &SqlitePool,
    after: Option<&OperatorName>,
    limit: u32,
) -> Result<Vec<Operator>, StoreError> {
    // No name is empty: every one comes after the empty text.
    let query = sqlx::query("SELECT * FROM operators WHERE name > $1 ORDER BY name LIMIT $2");
    let query = query.bind(after.map_or("", OperatorName::as_str)).bind(i64::from(limit));
    query.fetch_all(readers).await?.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<Operator, StoreError> {
    Ok(Operator {
        name: rows::spelled(row, "name")?,
        role: rows::spelled(row, "role")?,
        scope: rows::parsed(row, "scope")?,
        token: rows::spelled(row, "token_id")?,
        hash: rows::spelled(row, "hash")?,
        created: UnixMs(rows::column(row, "created_ms")?),
        expires: rows::moment_or_none(row, "expires_ms")?,
        revoked: rows::moment_or_none(row, "revoked_ms")?,
    })
}
