//! The table that has one row: whether the store can be written, and from where on events are kept.

use async_trait::async_trait;
use sqlx::SqliteConnection;

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
