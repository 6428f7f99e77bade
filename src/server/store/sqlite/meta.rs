//! The table that has one row: whether the store can be written, from where on events are kept, and
//! which directory of files the records tell of.

use async_trait::async_trait;
use sqlx::{SqliteConnection, SqlitePool};

use super::writer::Verb;
use crate::{ids::UnixMs, server::store::StoreError};

/// Proves that a commit works, by making one.
pub(super) struct Ping(pub(super) UnixMs);

#[async_trait]
impl Verb for Ping {
    type Done = ();

    async fn run(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE meta SET pinged_ms = $1").bind(self.0.0);
        update.execute(tx).await?;
        Ok(())
    }
}

pub(super) async fn landing_id(readers: &SqlitePool) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT landing_id FROM meta").fetch_one(readers).await?)
}

/// Notes which directory of files the records tell of.
pub(super) struct SetLandingId(pub(super) String);

#[async_trait]
impl Verb for SetLandingId {
    type Done = ();

    async fn run(&self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        let update = sqlx::query("UPDATE meta SET landing_id = $1").bind(&self.0);
        update.execute(tx).await?;
        Ok(())
    }
}
