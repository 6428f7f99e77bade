//! The records in SQLite: one writer, a few readers, one file.
//!
//! Every write is `BEGIN IMMEDIATE … COMMIT` on the one write connection, and counts only once
//! COMMIT has answered. (In autocommit sqlx can report success for a write that failed: it stops at
//! the first row of a `RETURNING`, before SQLite has committed.) A write that is dropped half-way
//! rolls back.
//!
//! The SQL is meant for PostgreSQL as well: `$1` placeholders, text ids, milliseconds in BIGINT.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use sqlx::{
    Connection as _, Sqlite, SqlitePool, Transaction,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Applied, Claim, ClientRecord, Created, Events, SessionOpening, Store, StoreError,
    TransferFilter,
};
use crate::{
    ids::{ClientId, InstanceId, SessionEpoch, TransferId, UnixMs},
    limits,
    transfer::{Moment, State, Step, Transfer},
};

mod clients;
mod events;
mod rows;
mod transfers;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// The records in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    /// Of one connection, so that writes queue here, in order, and not inside SQLite.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the store that `url` (`sqlite:PATH`) names. The file is made if it is not there, for
    /// its owner alone.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let refused = |reason: String| StoreError::Open { url: url.to_owned(), reason };
        let path = path_of(url).map_err(|reason| refused(reason.to_owned()))?;
        Self::open_file(&path).await.map_err(|err| refused(chain(&*err)))
    }

    async fn open_file(path: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        // SQLite gives its journal the mode of the database, and would make that one readable by
        // all.
        let mut file = tokio::fs::OpenOptions::new();
        file.write(true).create(true).truncate(false).mode(0o600).open(path).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(limits::STORE_BUSY_WAIT)
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(limits::STORE_QUEUE_WAIT)
            .idle_timeout(None)
            .max_lifetime(None)
            // Where SQLite itself rolled back (disk full, I/O error), sqlx still counts a
            // transaction as open, and would refuse every later one: such a connection is replaced.
            // The ping waits for a pending rollback.
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_with(options.clone().journal_mode(SqliteJournalMode::Wal))
            .await?;
        MIGRATIONS.run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(limits::STORE_READERS)
            .acquire_timeout(limits::STORE_QUEUE_WAIT)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { writer, readers })
    }

    /// Begins a write. Dropped without [`commit`], it changes nothing.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

async fn commit(transaction: Transaction<'static, Sqlite>) -> Result<(), StoreError> {
    Ok(transaction.commit().await?)
}

/// Returns the file that `url` names.
fn path_of(url: &str) -> Result<PathBuf, &'static str> {
    let Some(rest) = url.strip_prefix("sqlite:") else { return Err("expected sqlite:PATH") };
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() {
        return Err("the path is missing");
    }
    if path.starts_with(":memory:") {
        return Err("records in memory would be lost");
    }
    if path.contains(['?', '\0']) {
        return Err("parameters are not supported");
    }
    // A leading "./" keeps SQLite from reading a relative path as a URI.
    Ok(Path::new(".").join(path))
}

/// Returns an error with its causes, in one line.
fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl From<sqlx::Error> for StoreError {
    fn from(err: sqlx::Error) -> Self {
        match err {
            sqlx::Error::RowNotFound
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_) => Self::Corrupt(err.to_string()),
            _ => Self::Unavailable(Box::new(err)),
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn ping(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let update = sqlx::query("UPDATE meta SET pinged_ms = $1").bind(UnixMs::now().0);
        update.execute(&mut *tx).await?;
        commit(tx).await?;
        sqlx::query("SELECT pinged_ms FROM meta").fetch_one(&self.readers).await?;
        Ok(())
    }

    async fn open_session(
        &self,
        opening: &SessionOpening,
        at: UnixMs,
    ) -> Result<SessionEpoch, StoreError> {
        let mut tx = self.begin().await?;
        let epoch = clients::open_session(&mut tx, opening, at).await?;
        commit(tx).await?;
        Ok(epoch)
    }

    async fn note_seen(&self, seen: &[(ClientId, UnixMs)]) -> Result<(), StoreError> {
        if seen.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        clients::note_seen(&mut tx, seen).await?;
        commit(tx).await
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
        clients::one(&self.readers, id).await
    }

    async fn clients(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientRecord>, StoreError> {
        clients::page(&self.readers, after, limit).await
    }

    async fn create(&self, transfer: &Transfer) -> Result<Created, StoreError> {
        let mut tx = self.begin().await?;
        let created = transfers::create(&mut tx, transfer).await?;
        if matches!(created, Created::New(_)) {
            commit(tx).await?;
        }
        Ok(created)
    }

    async fn claim(
        &self,
        client: &ClientId,
        session: SessionEpoch,
        instance: InstanceId,
        jobs_max: u32,
        now: Moment,
    ) -> Result<Claim, StoreError> {
        // Most claims find nothing to do: those need not wait for the writer.
        let mut reader = self.readers.acquire().await?;
        let next = transfers::next(&mut reader, client, session, jobs_max, now).await?;
        drop(reader);
        if let transfers::Next::Not(claim) = next {
            return Ok(claim);
        }
        let mut tx = self.begin().await?;
        let claim = transfers::claim(&mut tx, client, session, instance, jobs_max, now).await?;
        if matches!(claim, Claim::Offered(_)) {
            commit(tx).await?;
        }
        Ok(claim)
    }

    async fn apply(&self, id: TransferId, step: &Step, now: Moment) -> Result<Applied, StoreError> {
        let mut tx = self.begin().await?;
        let applied = transfers::apply(&mut tx, id, step, now).await?;
        if matches!(applied, Applied::Done(_)) {
            commit(tx).await?;
        }
        Ok(applied)
    }

    async fn transfer(&self, id: TransferId) -> Result<Option<Transfer>, StoreError> {
        let mut reader = self.readers.acquire().await?;
        transfers::one(&mut reader, id).await
    }

    async fn transfers(
        &self,
        filter: &TransferFilter,
        before: Option<TransferId>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        transfers::page(&self.readers, filter, before, limit).await
    }

    async fn overdue(
        &self,
        at: UnixMs,
        offered_before: UnixMs,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        transfers::overdue(&self.readers, at, offered_before, limit).await
    }

    async fn expired_content(
        &self,
        ended_before: Option<UnixMs>,
        bytes_max: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        transfers::expired_content(&self.readers, ended_before, bytes_max, limit).await
    }

    async fn clients_known(&self) -> Result<u64, StoreError> {
        clients::known(&self.readers).await
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        transfers::counts(&self.readers).await
    }

    async fn last_event(&self) -> Result<u64, StoreError> {
        events::last(&self.readers).await
    }

    async fn events_after(&self, seq: u64, limit: u32) -> Result<Events, StoreError> {
        events::after(&self.readers, seq, limit).await
    }

    async fn prune_events(&self, before: UnixMs, keep_max: u64) -> Result<u64, StoreError> {
        let keep_after = events::keep_after(&self.readers, keep_max).await?;
        let mut dropped_total = 0;
        loop {
            let mut tx = self.begin().await?;
            let dropped = events::prune(&mut tx, before, keep_after).await?;
            commit(tx).await?;
            dropped_total += dropped;
            if dropped < limits::PRUNE_EVENTS_MAX {
                return Ok(dropped_total);
            }
        }
    }

    async fn close(&self) {
        // The writer last: the last connection moves the journal into the database.
        self.readers.close().await;
        self.writer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Row as _, SqliteConnection};

    use super::*;

    #[test]
    fn a_url_names_a_file() {
        assert_eq!(path_of("sqlite:/a/b.db"), Ok(PathBuf::from("/a/b.db")));
        assert_eq!(path_of("sqlite:///a/b.db"), Ok(PathBuf::from("/a/b.db")));
        assert_eq!(path_of("sqlite:a.db"), Ok(PathBuf::from("./a.db")));
        assert_eq!(path_of("sqlite:file:a.db"), Ok(PathBuf::from("./file:a.db")));
        for bad in ["", "a.db", "postgres://a", "sqlite:", "sqlite::memory:", "sqlite:a?mode=ro"] {
            assert!(path_of(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn every_commit_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("records.db").display());
        let store = SqliteStore::open(&url).await.unwrap();

        let mut writer = store.writer.acquire().await.unwrap();
        let pragma = async |name, writer: &mut SqliteConnection| -> String {
            let row = sqlx::query(name).fetch_one(writer).await.unwrap();
            row.try_get_unchecked(0).unwrap()
        };

        assert_eq!(pragma("PRAGMA journal_mode", &mut writer).await, "wal");
        assert_eq!(pragma("PRAGMA synchronous", &mut writer).await, "2");
        assert_eq!(pragma("PRAGMA foreign_keys", &mut writer).await, "1");
        drop(writer);
        store.close().await;
    }
}
