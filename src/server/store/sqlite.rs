//! The records in SQLite: one writer, a few readers, one file. Writes that come together share a
//! commit: see `writer`.
//!
//! The SQL is meant for PostgreSQL as well: `$1` placeholders, text ids, milliseconds in BIGINT.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, SqlitePool,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Applied, Claim, Claimant, ClientRecord, Created, Events, Party, SaidHead, SessionOpening,
    Store, StoreError, TransferFilter, Usage,
};
use crate::{
    audit_head::AuditHead,
    ids::{ClientId, SessionEpoch, TransferId, UnixMs},
    limits,
    transfer::{Moment, State, Step, Transfer},
};

mod clients;
mod credentials;
mod events;
mod lists;
mod meta;
mod rows;
mod transfers;
mod writer;

use writer::Writer;

static MIGRATIONS: Migrator = sqlx::migrate!();

/// The records in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: Writer,
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
        let write_options = options.clone().journal_mode(SqliteJournalMode::Wal);
        let mut connection = write_options.connect().await?;
        MIGRATIONS.run(&mut connection).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(limits::STORE_READERS)
            .acquire_timeout(limits::STORE_QUEUE_WAIT)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { writer: Writer::start(connection, write_options), readers })
    }
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
        self.writer.write(meta::Ping(UnixMs::now())).await?;
        sqlx::query("SELECT pinged_ms FROM meta").fetch_one(&self.readers).await?;
        Ok(())
    }

    async fn landing_id(&self) -> Result<Option<String>, StoreError> {
        meta::landing_id(&self.readers).await
    }

    async fn set_landing_id(&self, id: &str) -> Result<(), StoreError> {
        self.writer.write(meta::SetLandingId(id.to_owned())).await
    }

    async fn open_session(
        &self,
        opening: &SessionOpening,
        at: UnixMs,
    ) -> Result<SessionEpoch, StoreError> {
        self.writer.write(clients::OpenSession { opening: opening.clone(), at }).await
    }

    async fn note_audit_head(
        &self,
        client: &ClientId,
        session: SessionEpoch,
        said: SaidHead,
        at: UnixMs,
    ) -> Result<Option<AuditHead>, StoreError> {
        let note = clients::NoteAuditHead { client: client.clone(), session, said, at };
        self.writer.write(note).await
    }

    async fn note_seen(&self, seen: &[(ClientId, UnixMs)]) -> Result<(), StoreError> {
        if seen.is_empty() {
            return Ok(());
        }
        self.writer.write(clients::NoteSeen(seen.to_vec())).await
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
        self.writer.write(transfers::Create(transfer.clone())).await
    }

    async fn claim(&self, claimant: &Claimant, now: Moment) -> Result<Claim, StoreError> {
        // Most claims find nothing to do: those need not wait for the writer.
        let mut reader = self.readers.acquire().await?;
        let next = transfers::next(&mut reader, claimant, now).await?;
        drop(reader);
        match next {
            transfers::Next::Not(claim) => Ok(claim),
            transfers::Next::Due(_) => {
                let claimant = claimant.clone();
                self.writer.write(transfers::ClaimDue { claimant, now }).await
            }
        }
    }

    async fn due_clients(
        &self,
        now: UnixMs,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientId>, StoreError> {
        clients::due(&self.readers, now, after, limit).await
    }

    async fn apply(&self, id: TransferId, steps: &[(Step, Moment)]) -> Result<Applied, StoreError> {
        self.writer.write(transfers::Apply { id, steps: steps.to_vec() }).await
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
        lists::page(&self.readers, filter, before, limit).await
    }

    async fn overdue(
        &self,
        at: UnixMs,
        offered_before: UnixMs,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        lists::overdue(&self.readers, at, offered_before, limit).await
    }

    async fn expired_content(
        &self,
        ended_before: Option<UnixMs>,
        bytes_max: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        lists::expired_content(&self.readers, ended_before, bytes_max, limit).await
    }

    async fn clients_known(&self) -> Result<u64, StoreError> {
        clients::known(&self.readers).await
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        lists::counts(&self.readers).await
    }

    async fn usage(&self, of: &Party, since: UnixMs) -> Result<Usage, StoreError> {
        lists::usage(&self.readers, of, since).await
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
            let dropped = self.writer.write(events::Prune { before, keep_after }).await?;
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

    struct Pragma(&'static str);

    #[async_trait]
    impl writer::Verb for Pragma {
        type Done = String;

        async fn run(&self, tx: &mut SqliteConnection) -> Result<String, StoreError> {
            Ok(sqlx::query(self.0).fetch_one(tx).await?.try_get_unchecked(0)?)
        }
    }

    #[tokio::test]
    async fn every_commit_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("records.db").display());
        let store = SqliteStore::open(&url).await.unwrap();

        let pragma = async |name| store.writer.write(Pragma(name)).await.unwrap();

        assert_eq!(pragma("PRAGMA journal_mode").await, "wal");
        assert_eq!(pragma("PRAGMA synchronous").await, "2");
        assert_eq!(pragma("PRAGMA foreign_keys").await, "1");
        store.close().await;
    }
}
