//! Why a file is not delivered: what the server is told of it, and what the kernel's errors come to.

use std::io;

use rustix::io::Errno;

use crate::{client::policy::Denied, transfer::FailReason};

/// Why a file is not delivered. The text is what the server may read; of a refusal it says nothing
/// else, so that what is outside looks the same whether it exists or not.
#[derive(Debug, thiserror::Error)]
pub(in crate::client) enum SourceError {
    #[error("not allowed by the client's policy")]
    Denied(Denied),
    #[error("the client has no default file: name a path")]
    NoDefault,
    #[error("no such file")]
    NotFound,
    #[error("the client has no default file: there is none at {0}")]
    DefaultMissing(String),
    #[error("the client, which runs as user {user}, may not read it")]
    Unreadable { user: String },
    #[error("it is {0}, not a regular file")]
    NotRegular(&'static str),
    #[error("the client's kernel lacks openat2 (Linux 5.6), without which it opens nothing")]
    NoOpenat2,
    #[error("the client could not open it: {0}")]
    Io(#[source] io::Error),
}

impl SourceError {
    /// Says what an error of the kernel means for a client that runs as `user`.
    pub(super) fn new(err: Errno, user: &str) -> Self {
        match err {
            Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => Self::NotFound,
            // A link that leads out; a magic link, or links in a circle.
            Errno::XDEV | Errno::LOOP => Self::Denied(Denied::LeadsOut),
            Errno::ACCESS | Errno::PERM => Self::Unreadable { user: user.to_owned() },
            Errno::NXIO => Self::NotRegular("a socket"),
            Errno::NOSYS => Self::NoOpenat2,
            err => Self::Io(err.into()),
        }
    }

    pub(in crate::client) fn reason(&self) -> FailReason {
        match self {
            Self::Denied(_) => FailReason::DeniedByPolicy,
            Self::NoDefault | Self::NotFound | Self::DefaultMissing(_) => {
                FailReason::SourceNotFound
            }
            Self::Unreadable { .. } | Self::NoOpenat2 => FailReason::SourceUnreadable,
            Self::NotRegular(_) => FailReason::SourceNotRegular,
            Self::Io(_) => FailReason::Io,
        }
    }
}
