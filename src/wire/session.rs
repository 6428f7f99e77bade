//! What client and server say to each other, as types of our own: checked, and free of protobuf's
//! optionals.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    audit_head::AuditHead,
    chunk::Prefix,
    ids::{
        AttemptId, ClientId, Digest, IdError, InstanceId, OperatorName, RemotePath, SessionEpoch,
    },
    rate::{Rate, RateError},
    signature::RequestSignature,
    transfer::{Consistency, FailReason, Fingerprint, Finish, Hold},
};

mod decode;
mod encode;

pub use decode::{consistency, fail_reason};

/// The version of the protocol that this program speaks.
pub const PROTOCOL: u32 = 1;

/// Why a message is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("max_rate: {0}")]
    Rate(#[from] RateError),
    #[error("{0} is out of range")]
    Range(&'static str),
    #[error("what was signed has another {0}")]
    SignedOther(&'static str),
    #[error("protocol version {0} is not known; this program speaks {PROTOCOL}")]
    Protocol(u32),
}

/// From a client, on `Connect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromClient {
    Hello(Hello),
    Heartbeat {
        seq: u64,
        progress: Vec<UploadProgress>,
        /// How many commands the client takes at a time now; absent: as before.
        jobs_max: Option<u32>,
        /// Where its own audit stands.
        audit_head: Option<AuditHead>,
    },
    Reply {
        attempt: AttemptId,
        verdict: Verdict,
    },
    Report(Report),
    Explanation {
        question: u64,
        explained: Explained,
    },
    Goodbye {
        reason: String,
    },
    /// Of a later version: to be ignored.
    Unknown,
}

/// How far an attempt is, as its client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadProgress {
    pub attempt: AttemptId,
    pub sent_bytes: u64,
    /// A cap holds it back.
    pub throttled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub client: ClientId,
    pub instance: InstanceId,
    pub jobs_max: u32,
    pub version: String,
    pub host_name: String,
    pub os: String,
    pub allowed_roots: Vec<String>,
    /// Of the policy that says so.
    pub policy_digest: Option<Digest>,
    /// Where the client's own audit stands.
    pub audit_head: Option<AuditHead>,
    pub running: Vec<AttemptId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Busy,
    StaleEpoch,
    Conflict,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub attempt: AttemptId,
    pub outcome: Outcome,
    /// For people.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The receipt came.
    Delivered,
    /// The client's own decision.
    Failed(FailReason),
    /// No answer, or a refusal of the server's.
    Broken,
    Stopped,
    /// Its own policy lets it send nothing for so long.
    Held(Hold, Duration),
}

/// What a client's own policy says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    pub verdict: PathVerdict,
    /// The name of the rule that allows it.
    pub rule: String,
    /// For people.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathVerdict {
    Allowed,
    /// The same whether there is such a file or not.
    Denied,
    /// It is allowed, and could not be opened.
    Failed,
}

/// From the server, on `Connect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromServer {
    Welcome {
        session: SessionEpoch,
        heartbeat: Duration,
        silence: Duration,
    },
    HeartbeatAck {
        seq: u64,
    },
    Download(Command),
    Stop(AttemptId),
    ReportAck(AttemptId),
    /// Asks whether a file may be read. An `Err` is a path that no honest server sends.
    Explain {
        question: u64,
        path: Result<RemotePath, IdError>,
        /// Who asks, as the server says.
        operator: Option<OperatorName>,
    },
    Drain {
        reconnect_after: Duration,
    },
    Superseded {
        host_name: String,
        address: String,
        reconnect_after: Duration,
    },
    /// Of a later version: to be ignored.
    Unknown,
}

/// A command to deliver a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub attempt: AttemptId,
    /// `None` asks for the default file. An `Err` is a path that no honest server sends.
    pub path: Result<Option<RemotePath>, IdError>,
    pub consistency: Consistency,
    pub size_max: u64,
    /// Its own cap, besides the client's.
    pub rate_max: Option<Rate>,
    /// What an operator signed, if it was within bounds.
    pub signature: Option<RequestSignature>,
    /// What need not be sent again.
    pub resume: Option<Resume>,
    /// Who asks, as the server says: it proves nothing.
    pub operator: Option<OperatorName>,
}

/// What the server durably holds of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    /// The source that it came from.
    pub fingerprint: Fingerprint,
    /// Not empty.
    pub kept: Prefix,
}

/// From a client, on `UploadFile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upload {
    Header(Header),
    Chunk {
        offset: u64,
        crc32c: u32,
        data: Bytes,
    },
    RangeEnd,
    Abort {
        reason: FailReason,
        detail: String,
    },
    /// Its own policy lets it send no more for so long.
    Held(Hold, Duration),
    Finish {
        size: u64,
        finish: Finish,
        fingerprint: Fingerprint,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub attempt: AttemptId,
    pub instance: InstanceId,
    /// Where the upload begins: zero, or a whole number of chunks that the server has.
    pub offset: u64,
    pub size: u64,
    pub fingerprint: Fingerprint,
    pub path: String,
    /// Why it begins at zero although the server has something; for people.
    pub restart_detail: String,
}
