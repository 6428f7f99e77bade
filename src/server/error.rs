//! What the server answers when it cannot do as asked, and the one place where that becomes a
//! status.

use tonic::Status;

use super::{landing::LandingError, quotas::OverQuota, store::StoreError};
use crate::{
    ids::{IdError, TransferId},
    status::{self, Reason},
    transfer::StepError,
};

/// Why the server did not do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Expected, and told to the peer in words.
    #[error("{text}")]
    Refused { reason: Reason, text: String },
    /// It is there, and not for this caller: who is told what it would be told if it were not.
    #[error("there is no transfer {transfer}")]
    Hidden { transfer: TransferId, why: Reason },
    #[error(transparent)]
    Step(#[from] StepError),
    /// An upload whose next byte is another one.
    #[error("the next byte expected is {expected}")]
    WrongOffset { expected: u64 },
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    OverQuota(#[from] OverQuota),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Landing(#[from] LandingError),
    /// A bug; the text is for our log only.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    pub fn refused(reason: Reason, text: impl Into<String>) -> Self {
        Self::Refused { reason, text: text.into() }
    }

    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { reason, .. } => *reason,
            Self::Hidden { .. } => Reason::UnknownTransfer,
            Self::Step(StepError::StaleEpoch { .. }) => Reason::StaleEpoch,
            Self::Step(StepError::OtherInstance) => Reason::OtherInstance,
            Self::Step(StepError::WrongState(_) | StepError::NotDue | StepError::Unchanged) => {
                Reason::WrongState
            }
            Self::WrongOffset { .. } => Reason::WrongOffset,
            Self::Id(_) => Reason::InvalidArgument,
            Self::OverQuota(_) => Reason::OverQuota,
            Self::Store(_) => Reason::Unavailable,
            Self::Landing(_) => Reason::ServerIo,
            Self::Internal(_) => Reason::Internal,
        }
    }

    /// Returns the reason as the audit has it: what it is, also where the peer is told less.
    pub fn on_record(&self) -> Reason {
        if let Self::Hidden { why, .. } = self { *why } else { self.reason() }
    }

    /// Whether it is about what the caller may do, and not about what can be done.
    pub fn is_of_rights(&self) -> bool {
        matches!(
            self.on_record(),
            Reason::Unauthenticated
                | Reason::PermissionDenied
                | Reason::WrongClient
                | Reason::OtherInstance
                | Reason::CertificateExpired
                | Reason::Revoked
                | Reason::PendingApproval
        )
    }

    /// Returns what a peer may read. What a database, a disk or a bug said is for our own log.
    pub fn peer_text(&self) -> String {
        match self {
            Self::Refused { text, .. } => text.clone(),
            Self::Step(err) => err.to_string(),
            Self::Hidden { .. } | Self::WrongOffset { .. } => self.to_string(),
            Self::Id(err) => err.to_string(),
            Self::OverQuota(over) => over.to_string(),
            Self::Store(_) => "the record store is unavailable; try again later".to_owned(),
            Self::Landing(_) => "the server's disk cannot serve this now".to_owned(),
            Self::Internal(_) => "internal error".to_owned(),
        }
    }

    /// Returns the status for the peer, and logs what the peer is not told.
    pub fn into_status(self) -> Status {
        self.log();
        if let Self::WrongOffset { expected } = self {
            let metadata = [("expected", expected.to_string())];
            return status::status_with(Reason::WrongOffset, self.peer_text(), metadata);
        }
        status::status(self.reason(), self.peer_text())
    }

    /// Logs what a peer is not told. Called once, where the error is answered.
    pub fn log(&self) {
        match self {
            Self::Store(_) | Self::Landing(_) | Self::Internal(_) => {
                tracing::error!(
                    error = self as &dyn std::error::Error,
                    "could not serve a request"
                );
            }
            Self::Refused { .. }
            | Self::Hidden { .. }
            | Self::Step(_)
            | Self::WrongOffset { .. }
            | Self::Id(_)
            | Self::OverQuota(_) => {}
        }
    }
}
