//! A transfer's life, as pure logic: what it is, and which step leads where. Both stores apply
//! steps through [`Transfer::apply`], so that the rules are written once.
//!
//! ```text
//!            Claimed: new epoch      Begun                Finished              Published
//!  QUEUED ────────────────► OFFERED ──────► RECEIVING ──────────► VERIFYING ──────────► COMPLETE
//!    ▲  ▲                     │ Busy, Expired,  │ Broken             │ Mismatched, Broken
//!    │  └─────────────────────┘ ClientLost      ▼                    │
//!    └──────────── Claimed when due ─────── INTERRUPTED ◄────────────┘ (Unpublished)
//!  Refused; Broken too often; Mismatched twice; Expired past the deadline → FAILED(reason)
//!  Cancelled: from any state before VERIFYING → CANCELLED;   Retried: FAILED, CANCELLED → QUEUED
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{
        ClientId, Digest, Epoch, InstanceId, OperatorName, RemotePath, RequestId, TransferId,
        UnixMs,
    },
    rate::Rate,
    signature::RequestSignature,
};

mod life;
mod step;

pub use step::{Cause, Hold, Moment, Step, StepError};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    Queued,
    Offered,
    Receiving,
    Verifying,
    Interrupted,
    Complete,
    Failed,
    Cancelled,
}

impl State {
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Offered,
        Self::Receiving,
        Self::Verifying,
        Self::Interrupted,
        Self::Complete,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Its name, as everybody sees it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Offered => "OFFERED",
            Self::Receiving => "RECEIVING",
            Self::Verifying => "VERIFYING",
            Self::Interrupted => "INTERRUPTED",
            Self::Complete => "COMPLETE",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }

    pub fn is_final(self) -> bool {
        matches!(self, Self::Complete | Self::Failed | Self::Cancelled)
    }

    /// The client has it: it counts against `jobs_max`.
    pub fn is_outstanding(self) -> bool {
        matches!(self, Self::Offered | Self::Receiving | Self::Verifying)
    }

    /// It waits to be claimed.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Queued | Self::Interrupted)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WaitingReason {
    ClientOffline,
    ClientBusy,
    ServerBusy,
    Backoff,
    ServerDiskLow,
    Throttled,
    Paused,
    ClientPolicyWindow,
    Draining,
    /// Nothing comes of an upload although its client is there.
    Stalled,
    /// Its command is about to go out.
    Due,
    /// The client has sent as much as it may in a day.
    Quota,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum FailReason {
    SourceNotFound,
    SourceUnreadable,
    SourceNotRegular,
    DeniedByPolicy,
    SourceChanged,
    TooLarge,
    Integrity,
    Io,
    Attempts,
    Deadline,
}

impl FailReason {
    /// Another attempt may do better.
    pub fn is_worth_retrying(self) -> bool {
        matches!(self, Self::SourceChanged | Self::Io | Self::Integrity)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Consistency {
    #[default]
    Auto,
    Strict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Delivered {
    Unchanged,
    Prefix,
}

/// One version of a source file, as its file system described it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint {
    pub device: u64,
    pub inode: u64,
    pub size_bytes: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
}

/// The file of a transfer, once the client has opened it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// What the client says it opened; for people.
    pub path: String,
    pub size_bytes: u64,
    pub fingerprint: Fingerprint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub reason: WaitingReason,
    pub since: UnixMs,
    /// Not before this.
    pub next_attempt: Option<UnixMs>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub reason: FailReason,
    /// What ended the last attempt, with `Attempts` and `Deadline`.
    pub last_reason: Option<FailReason>,
    /// For people.
    pub detail: String,
}

/// What the client announced with its Finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    pub digest: Digest,
    pub delivered: Delivered,
    /// Of the first bytes so many were not read again: an equal fingerprint was the proof.
    #[serde(default)]
    pub trusted_bytes: u64,
}

/// Where the verified bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Content {
    /// Not yet, or never.
    None,
    Kept,
    /// Removed on request or by age; the record stays.
    Deleted,
}

/// What was asked for, from request to verified bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    pub id: TransferId,
    pub client: ClientId,
    /// Who asked; `None` where no credentials are asked for. Absent in events of earlier versions.
    #[serde(default)]
    pub operator: Option<OperatorName>,
    /// `None` asks for the client's default file.
    pub path: Option<RemotePath>,
    pub request_id: Option<RequestId>,
    pub consistency: Consistency,
    /// Its own cap, besides the client's. Absent in events of earlier versions.
    #[serde(default)]
    pub rate_max: Option<Rate>,
    /// What an operator signed, for the client. Not in events: nobody who watches needs it.
    #[serde(skip)]
    pub signature: Option<RequestSignature>,
    pub created: UnixMs,
    pub deadline: UnixMs,
    /// How long it may take, from the request or a retry to the deadline.
    pub deadline_wait_ms: u64,
    pub updated: UnixMs,
    /// Grows by one with every step.
    pub revision: u64,
    pub state: State,
    /// Of the latest attempt; zero before the first.
    pub epoch: Epoch,
    /// Whom the latest epoch was given to.
    pub instance: Option<InstanceId>,
    pub waiting: Option<Waiting>,
    /// Why it failed, or why the last attempt broke.
    pub failure: Option<Failure>,
    pub attempts: u32,
    /// Attempts in a row that added no durable bytes.
    pub attempts_barren: u32,
    pub source_changes: u32,
    pub mismatches: u32,
    pub file: Option<SourceFile>,
    /// Over all attempts that ended, so that waste shows.
    pub received_bytes: u64,
    /// What is durably held of attempts that broke. The disk knows best; this is what it last said.
    #[serde(default)]
    pub kept_bytes: u64,
    /// Why an attempt last began from zero although bytes were kept.
    #[serde(default)]
    pub restart_detail: Option<String>,
    /// When the first byte was sent of what is delivered, kept or on its way.
    pub started: Option<UnixMs>,
    pub ended: Option<UnixMs>,
    pub finish: Option<Finish>,
    pub content: Content,
}

/// What the operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub client: ClientId,
    /// Who asks; `None` where no credentials are asked for.
    pub operator: Option<OperatorName>,
    pub path: Option<RemotePath>,
    /// Its operator's: another's may be spelled alike.
    pub request_id: Option<RequestId>,
    pub consistency: Consistency,
    pub rate_max: Option<Rate>,
    /// Where it is signed.
    pub signed: Option<Signed>,
    /// From now.
    pub deadline: Duration,
}

/// A signature is of one transfer, whose id the signer chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub transfer: TransferId,
    pub signature: RequestSignature,
}

impl Transfer {
    /// Returns a new transfer, queued; `fresh` is its id, unless the request has one.
    pub fn new(fresh: TransferId, request: Request, at: UnixMs) -> Self {
        let (id, signature) = match request.signed {
            Some(signed) => (signed.transfer, Some(signed.signature)),
            None => (fresh, None),
        };
        Self {
            id,
            client: request.client,
            operator: request.operator,
            path: request.path,
            request_id: request.request_id,
            consistency: request.consistency,
            rate_max: request.rate_max,
            signature,
            created: at,
            deadline: at.plus(request.deadline),
            deadline_wait_ms: u64::try_from(request.deadline.as_millis()).unwrap_or(u64::MAX),
            updated: at,
            revision: 1,
            state: State::Queued,
            epoch: Epoch(0),
            instance: None,
            waiting: None,
            failure: None,
            attempts: 0,
            attempts_barren: 0,
            source_changes: 0,
            mismatches: 0,
            file: None,
            received_bytes: 0,
            kept_bytes: 0,
            restart_detail: None,
            started: None,
            ended: None,
            finish: None,
            content: Content::None,
        }
    }

    /// Whether `other` asks for the same: what one request id must stand for.
    pub fn is_same_request(&self, other: &Self) -> bool {
        self.client == other.client
            && self.path == other.path
            && self.consistency == other.consistency
            && self.rate_max == other.rate_max
            && self.signature.is_some() == other.signature.is_some()
            && self.deadline_wait_ms == other.deadline_wait_ms
    }

    pub fn is_paused(&self) -> bool {
        self.waiting.is_some_and(|w| w.reason == WaitingReason::Paused)
    }

    /// Returns when it may be claimed; `None` while it may not.
    pub fn due(&self) -> Option<UnixMs> {
        if !self.state.is_waiting() || self.is_paused() {
            return None;
        }
        Some(self.waiting.and_then(|w| w.next_attempt).unwrap_or(self.created))
    }
}
