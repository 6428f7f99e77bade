//! How a session ends, as the log says it.

use crate::{server::error::Error, status::Reason};

/// Why a session ends. Text of the client is escaped.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the connection ended")]
    Closed,
    #[error("goodbye: {0:?}")]
    Goodbye(String),
    #[error("nothing was heard for too long")]
    Silent,
    #[error("it does not read what it is sent")]
    Stuck,
    #[error("superseded by a newer session")]
    Superseded,
    #[error("its certificate has expired")]
    CertificateExpired,
    #[error("the server is draining")]
    Draining,
    #[error("refused: {0}")]
    Refused(Error),
}

impl End {
    pub(super) fn revoked() -> Self {
        Self::Refused(Error::refused(Reason::Revoked, "the identity of this client was revoked"))
    }
}
