//! The records: clients, their session epochs, transfers, attempts and events. They are the truth;
//! whatever else the server holds in memory can be rebuilt from them.
//!
//! [`Store`] has coarse verbs, each one transaction. When a verb returns `Ok`, its change is on
//! stable storage; when it returns `Err`, nothing changed, or (after a lost answer) exactly the
//! whole change did. The rules of a transfer's life are in [`crate::transfer`]; a store applies
//! them, and never invents its own.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    audit_head::AuditHead,
    ids::{ClientId, Digest, InstanceId, OperatorName, SessionEpoch, TransferId, UnixMs},
    transfer::{Moment, State, Step, StepError, Transfer},
};

pub mod credentials;
pub mod memory;
pub mod sqlite;

/// Why a verb failed. What the database said is in the source, for our own log only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database is busy, full, or gone: the same verb may work later.
    #[error("the record store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record does not read as what was written.
    #[error("a record is damaged: {0}")]
    Corrupt(String),
    #[error("cannot open the record store {url}: {reason}")]
    Open { url: String, reason: String },
}

/// What a client says of itself in Hello, and the server sees of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOpening {
    pub client: ClientId,
    pub instance: InstanceId,
    pub jobs_max: u32,
    pub version: String,
    pub host_name: String,
    pub os: String,
    pub address: String,
    pub allowed_roots: Vec<String>,
    /// Of the policy that says so.
    pub policy_digest: Option<Digest>,
}

/// Where a client says that its own audit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaidHead {
    pub head: AuditHead,
    /// Said in a Hello, which may come late: of a dial that the client gave up. Who lives in the
    /// session says more.
    pub is_of_hello: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRecord {
    /// As of its last session.
    pub opening: SessionOpening,
    /// Of its last session; it never goes back.
    pub session_epoch: SessionEpoch,
    pub first_seen: UnixMs,
    /// Flushed now and then: the sessions in memory know better.
    pub last_seen: UnixMs,
    /// OFFERED, RECEIVING, VERIFYING.
    pub active_transfers: u64,
    /// QUEUED, INTERRUPTED.
    pub queued_transfers: u64,
    /// Where its own audit stood when it last said so.
    pub audit_head: Option<AuditHead>,
    /// When that had gone back.
    pub audit_back: Option<UnixMs>,
}

/// What became of a new transfer.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    New(Transfer),
    /// The same request id, and the same request: this is its transfer.
    Existing(Transfer),
    /// The same request id for another request.
    Conflict(TransferId),
    /// There is a transfer with the id that was chosen.
    Taken(TransferId),
    UnknownClient,
    /// The client has this many unfinished transfers, and may have no more.
    TooMany(u64),
}

/// What became of some steps.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)] // it lives for a moment, one at a time
pub enum Applied {
    /// Taken; this is the transfer after each of them.
    Done(Vec<Transfer>),
    /// None of them was taken; this is the transfer still.
    Refused(StepError, Transfer),
    Unknown,
}

/// Who asks for work, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    pub client: ClientId,
    pub session: SessionEpoch,
    pub instance: InstanceId,
    /// That may be outstanding in all.
    pub jobs_max: u32,
    /// That one claim may take.
    pub offers_max: u32,
}

/// What a claim brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// OFFERED, each with a new epoch; at least one.
    Offered(Vec<Transfer>),
    /// `jobs_max` are outstanding.
    Full,
    /// Nothing is due; the next one is at this time, if any.
    Nothing { next_due: Option<UnixMs> },
    /// A newer session has been opened.
    Fenced,
}

/// A change of a transfer: (id, revision) identifies it, and `seq` orders all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub seq: u64,
    /// As it was after the change.
    pub transfer: Transfer,
}

/// Events after a position.
#[derive(Debug, Clone, PartialEq)]
pub enum Events {
    /// In order of `seq`, without a gap; empty when there is none after it.
    After(Vec<Event>),
    /// Some of them have been pruned.
    Pruned,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TransferFilter {
    pub client: Option<ClientId>,
    /// Empty: in every state.
    pub states: Vec<State>,
}

/// On whose account something is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Party {
    Client(ClientId),
    Operator(OperatorName),
}

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// That were created.
    pub transfers: u64,
    /// Of the attempts that were offered, once they have ended.
    pub received_bytes: u64,
}

/// Returns which of the versions that steps led to is the last of the attempt that ran before: it
/// ends at the first step that leaves it, and those that follow are not its own.
fn last_of_attempt(versions: &[Transfer]) -> Option<usize> {
    let ending = versions.iter().position(|version| !version.state.is_outstanding());
    ending.or(versions.len().checked_sub(1))
}

/// The durable records. Every verb is one transaction.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Proves that it can be read and written.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Returns the id of the directory of files that these records tell of, if it was ever set.
    async fn landing_id(&self) -> Result<Option<String>, StoreError>;

    async fn set_landing_id(&self, id: &str) -> Result<(), StoreError>;

    // === Sessions ===

    /// Notes a client's new session and raises its session epoch, which fences every session
    /// before.
    async fn open_session(
        &self,
        opening: &SessionOpening,
        at: UnixMs,
    ) -> Result<SessionEpoch, StoreError>;

    /// Notes when clients were last seen. An earlier time than the noted one, or an unknown client,
    /// is ignored.
    async fn note_seen(&self, seen: &[(ClientId, UnixMs)]) -> Result<(), StoreError>;

    /// Notes where the audit of a client stands, if `session` is its latest. Returns where it stood
    /// before, if what it says now does not follow from that; nothing is noted then if it may be old.
    async fn note_audit_head(
        &self,
        client: &ClientId,
        session: SessionEpoch,
        said: SaidHead,
        at: UnixMs,
    ) -> Result<Option<AuditHead>, StoreError>;

    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError>;

    /// Returns clients by id, after `after`, at most `limit`.
    async fn clients(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientRecord>, StoreError>;

    // === Transfers ===

    /// Writes a new transfer, with its first event, if its client is known, its id is new, its
    /// request id is new among those of its operator, and the client has fewer than
    /// `limits::UNFINISHED_PER_CLIENT_MAX` unfinished ones.
    async fn create(&self, transfer: &Transfer) -> Result<Created, StoreError>;

    /// Takes the client's oldest due transfers and offers them ([`Step::Claimed`]), if its session
    /// is the client's latest, until `jobs_max` are outstanding. Two claims never take the same
    /// attempt.
    async fn claim(&self, claimant: &Claimant, now: Moment) -> Result<Claim, StoreError>;

    /// Returns the clients that have a transfer which is due at `now`, by id, after `after`, at most
    /// `limit`: a look at every queue at once.
    async fn due_clients(
        &self,
        now: UnixMs,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientId>, StoreError>;

    /// Applies steps, one after the other, by [`Transfer::apply_all`], and writes the result, with
    /// an event for each and their attempt's record. All of them are taken, or none.
    async fn apply(&self, id: TransferId, steps: &[(Step, Moment)]) -> Result<Applied, StoreError>;

    async fn transfer(&self, id: TransferId) -> Result<Option<Transfer>, StoreError>;

    /// Returns transfers, newest first, older than `before`, at most `limit`.
    async fn transfers(
        &self,
        filter: &TransferFilter,
        before: Option<TransferId>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError>;

    /// Returns unfinished transfers whose deadline has passed, and OFFERED ones last updated before
    /// `offered_before`; at most `limit`.
    async fn overdue(
        &self,
        at: UnixMs,
        offered_before: UnixMs,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError>;

    /// Returns COMPLETE transfers whose content is kept, oldest end first: those that ended before
    /// `ended_before`, and the oldest ones beyond `bytes_max` in total; at most `limit`.
    async fn expired_content(
        &self,
        ended_before: Option<UnixMs>,
        bytes_max: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError>;

    /// Returns how many clients have ever registered.
    async fn clients_known(&self) -> Result<u64, StoreError>;

    /// Returns how many transfers are in each state.
    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError>;

    /// Returns what was used on an account since a moment, which counts too.
    async fn usage(&self, of: &Party, since: UnixMs) -> Result<Usage, StoreError>;

    // === Events ===

    /// Returns the `seq` of the latest event; zero if there never was one.
    async fn last_event(&self) -> Result<u64, StoreError>;

    /// Returns the events after `seq`, at most `limit`.
    async fn events_after(&self, seq: u64, limit: u32) -> Result<Events, StoreError>;

    /// Drops events of ended transfers: those before `before`, and the oldest beyond `keep_max`.
    /// Returns how many.
    async fn prune_events(&self, before: UnixMs, keep_max: u64) -> Result<u64, StoreError>;

    /// Ends pending work and closes the store.
    async fn close(&self);
}

/// Both kinds of records, of one database.
#[derive(Clone)]
pub struct Records {
    pub store: Arc<dyn Store>,
    pub credentials: Arc<dyn credentials::Credentials>,
}

/// Opens the records that `url` names: `sqlite:PATH`, made if it is not there.
pub async fn open(url: &str) -> Result<Records, StoreError> {
    let sqlite = Arc::new(sqlite::SqliteStore::open(url).await?);
    Ok(Records { store: sqlite.clone(), credentials: sqlite })
}
