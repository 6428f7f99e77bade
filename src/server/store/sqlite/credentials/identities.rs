//! The table of identities, and how one is joined.

use async_trait::async_trait;
use sqlx::{SqliteConnection, SqlitePool, sqlite::SqliteRow};

use super::join_tokens;
use crate::{
    ids::{ClientId, UnixMs},
    server::store::{
        StoreError,
        credentials::{Changed, Identity, JoinRefusal, Joined, Joining, Standing},
        sqlite::{rows, writer::Verb},
    },
    token::Sha256,
};

/// Uses a token once, and makes the identity.
pub(super) struct Join {
    pub(super) joining: Joining,
    pub(super) at: UnixMs,
}

#[async_trait]
impl Verb for Join {
    type Done = Joined;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Joined, StoreError> {
        let Some(token) = join_tokens::one(tx, &self.joining.token).await? else {
            return Ok(Joined::Refused(JoinRefusal::Token));
        };
        let held = one(tx, &self.joining.client).await?;
        let (used, identity) = match token.admit(&self.joining, held.as_ref(), self.at) {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(Joined::Refused(refusal)),
        };
        join_tokens::update(tx, &token, &used).await?;
        write(tx, &identity).await?;
        Ok(Joined::Done(identity))
    }
}

/// Changes an identity, if `change` returns what it is then.
pub(super) struct Change<F> {
    pub(super) client: ClientId,
    pub(super) change: F,
}

#[async_trait]
impl<F> Verb for Change<F>
where
    F: Fn(&Identity) -> Option<Identity> + Send + Sync + 'static,
{
    type Done = Changed<Identity>;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Changed<Identity>, StoreError> {
        let Some(before) = one(tx, &self.client).await? else { return Ok(Changed::Unknown) };
        let Some(after) = (self.change)(&before) else { return Ok(Changed::WrongState(before)) };
        write(tx, &after).await?;
        Ok(Changed::Done(after))
    }
}

async fn write(tx: &mut SqliteConnection, identity: &Identity) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO identities (client_id, uid, standing, standing_since_ms, joined_ms, token_id,
            key_hash, previous_key_hash, displaced_key_hash, begins_ms, expires_ms, host_name)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         ON CONFLICT (client_id) DO UPDATE SET uid = excluded.uid, standing = excluded.standing,
            standing_since_ms = excluded.standing_since_ms, joined_ms = excluded.joined_ms,
            token_id = excluded.token_id, key_hash = excluded.key_hash,
            previous_key_hash = excluded.previous_key_hash,
            displaced_key_hash = excluded.displaced_key_hash, begins_ms = excluded.begins_ms,
            expires_ms = excluded.expires_ms, host_name = excluded.host_name",
    )
    .bind(identity.client.as_str())
    .bind(identity.uid.hyphenated().to_string())
    .bind(identity.standing.as_str())
    .bind(identity.standing_since.0)
    .bind(identity.joined.0)
    .bind(identity.token.as_str())
    .bind(identity.key.to_string())
    .bind(identity.previous_key.map(|key| key.to_string()))
    .bind(identity.displaced_key.map(|key| key.to_string()))
    .bind(identity.begins.0)
    .bind(identity.expires.0)
    .bind(&identity.host_name)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) async fn one(
    connection: &mut SqliteConnection,
    client: &ClientId,
) -> Result<Option<Identity>, StoreError> {
    let query = sqlx::query("SELECT * FROM identities WHERE client_id = $1").bind(client.as_str());
    query.fetch_optional(connection).await?.as_ref().map(read).transpose()
}

pub(super) async fn page(
    readers: &SqlitePool,
    after: Option<&ClientId>,
    limit: u32,
) -> Result<Vec<Identity>, StoreError> {
    // No id is empty: every one comes after the empty text.
    let query =
        sqlx::query("SELECT * FROM identities WHERE client_id > $1 ORDER BY client_id LIMIT $2");
    let query = query.bind(after.map_or("", ClientId::as_str)).bind(i64::from(limit));
    query.fetch_all(readers).await?.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> Result<Identity, StoreError> {
    Ok(Identity {
        client: rows::spelled(row, "client_id")?,
        uid: rows::spelled(row, "uid")?,
        standing: standing(row)?,
        standing_since: UnixMs(rows::column(row, "standing_since_ms")?),
        joined: UnixMs(rows::column(row, "joined_ms")?),
        token: rows::spelled(row, "token_id")?,
        key: rows::spelled(row, "key_hash")?,
        previous_key: key_or_none(row, "previous_key_hash")?,
        displaced_key: key_or_none(row, "displaced_key_hash")?,
        begins: UnixMs(rows::column(row, "begins_ms")?),
        expires: UnixMs(rows::column(row, "expires_ms")?),
        host_name: rows::column(row, "host_name")?,
    })
}

fn key_or_none(row: &SqliteRow, name: &'static str) -> Result<Option<Sha256>, StoreError> {
    match rows::column::<Option<&str>>(row, name)? {
        None => Ok(None),
        Some(_) => rows::spelled(row, name).map(Some),
    }
}

fn standing(row: &SqliteRow) -> Result<Standing, StoreError> {
    let text: &str = rows::column(row, "standing")?;
    let known = Standing::ALL.into_iter().find(|standing| standing.as_str() == text);
    known.ok_or_else(|| rows::damaged("standing", &"it is no standing"))
}
