//! How a command ends when it does not end well: its words, its exit code, and whether trying again
//! may help.

use tonic::{Code, ConnectError, Status};

use super::output::clean;
use crate::{
    status::{self, Reason},
    tls,
};

/// Why a command did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The arguments, taken together, make no sense.
    #[error("{0}")]
    Usage(String),
    /// No answer. `was_sent` tells whether the server may have taken the request all the same.
    #[error("{text}")]
    Unreachable { text: String, was_sent: bool },
    /// The server answered, and said no.
    #[error("{text}")]
    Refused { reason: Option<Reason>, text: String },
    #[error("not permitted: {0}")]
    NotPermitted(String),
    #[error("{0}")]
    Failed(String),
    /// `--timeout` is over; the transfer goes on.
    #[error("{0}")]
    StillWaiting(String),
    #[error("{0}")]
    Interrupted(String),
    /// Nobody reads standard output any more; what the system said is known to the output.
    #[error("standard output was closed")]
    OutputClosed,
}

impl Error {
    /// Returns what a call that was answered with `status` by the server at `address` has come to.
    /// Only its reason is acted on; a status without one means *later*, unless its code can mean
    /// nothing of the kind.
    pub(super) fn from_status(status: &Status, address: &str) -> Self {
        let text = clean(status.message());
        if let Some(reason) = status::reason(status) {
            return match reason {
                Reason::NotLocal
                | Reason::OtherInstance
                | Reason::PermissionDenied
                | Reason::Revoked => Self::NotPermitted(text),
                Reason::Unauthenticated => {
                    Self::NotPermitted(format!("{text}\nlog in: fts login {address}"))
                }
                _ => Self::Refused { reason: Some(reason), text: with_hint(reason, text) },
            };
        }
        match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Self::NotPermitted(text),
            Code::Unimplemented => Self::Failed(format!(
                "{address} does not know this call: it is no fts-server, or an older one"
            )),
            Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::Aborted
            | Code::DeadlineExceeded
            | Code::ResourceExhausted => {
                Self::unreachable(address, &cause(status), was_sent(status))
            }
            code => Self::Failed(format!("the server answered {code:?}: {text}")),
        }
    }

    /// The server at `address` gave no answer, because of `detail`.
    pub(super) fn unreachable(address: &str, detail: &str, was_sent: bool) -> Self {
        let text = format!(
            "no answer from the server at {address}: {}\n\
             is it running there? another address is set with --server or SERVER_URL",
            clean(detail)
        );
        Self::Unreachable { text, was_sent }
    }

    /// The server's answer breaks the protocol.
    pub(super) fn strange(what: &str) -> Self {
        Self::Failed(format!("the server's answer makes no sense: {what}"))
    }

    /// The same may be done soon.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { reason, .. } => reason.is_some_and(is_for_now),
            _ => false,
        }
    }

    /// Nothing of the request can have reached a server.
    pub(super) fn is_unsent(&self) -> bool {
        matches!(self, Self::Unreachable { was_sent: false, .. })
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        if let Self::Refused { reason, .. } = self { *reason } else { None }
    }

    /// Returns the exit code of the program.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. }
            | Self::Refused {
                reason: Some(Reason::Draining | Reason::Unavailable | Reason::ServerIo),
                ..
            } => 69,
            Self::Refused { .. } | Self::Failed(_) | Self::OutputClosed => 1,
            Self::StillWaiting(_) => 75,
            Self::NotPermitted(_) => 77,
            Self::Interrupted(_) => 130,
        }
    }

    /// Adds a line of advice, or of news, to the words.
    pub(super) fn and(self, line: &str) -> Self {
        let add = |text: String| format!("{text}\n{line}");
        match self {
            Self::Usage(text) => Self::Usage(add(text)),
            Self::Unreachable { text, was_sent } => Self::Unreachable { text: add(text), was_sent },
            Self::Refused { reason, text } => Self::Refused { reason, text: add(text) },
            Self::NotPermitted(text) => Self::NotPermitted(add(text)),
            Self::Failed(text) => Self::Failed(add(text)),
            Self::StillWaiting(text) => Self::StillWaiting(add(text)),
            Self::Interrupted(text) => Self::Interrupted(add(text)),
            Self::OutputClosed => Self::OutputClosed,
        }
    }
}

fn is_for_now(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Draining
            | Reason::Unavailable
            | Reason::ServerIo
            | Reason::ServerBusy
            | Reason::TooMany
            | Reason::Stalled
    )
}

fn with_hint(reason: Reason, text: String) -> String {
    match reason {
        Reason::UnknownClient => format!("{text}\n`fts clients` lists those that are known"),
        Reason::UnknownTransfer => format!("{text}\n`fts transfers` lists those that are known"),
        Reason::ContentLost => format!(
            "{text}\nthe landed file is gone from the server's disk: pull it again, under a new \
             request id"
        ),
        Reason::RequestIdConflict => {
            format!("{text}\nanother request needs another --request-id, or none")
        }
        _ => text,
    }
}

/// A connection that never was carried nothing.
fn was_sent(status: &Status) -> bool {
    let mut link = std::error::Error::source(status);
    while let Some(err) = link {
        if err.is::<ConnectError>() {
            return false;
        }
        link = err.source();
    }
    true
}

/// The innermost cause is what the system said; what is around it says "transport error".
fn cause(status: &Status) -> String {
    if let Some(text) = tls::explain(status) {
        return text;
    }
    let mut link = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(err) = link {
        text = err.to_string();
        link = err.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: &Status) -> Error {
        Error::from_status(status, "http://here:3000")
    }

    #[test]
    fn the_exit_code_follows_the_reason_and_not_the_code() {
        let cases = [
            (Reason::UnknownClient, 1),
            (Reason::RequestIdConflict, 1),
            (Reason::WrongState, 1),
            (Reason::TooMany, 1),
            (Reason::Internal, 1),
            (Reason::Draining, 69),
            (Reason::Unavailable, 69),
            (Reason::NotLocal, 77),
        ];
        for (reason, code) in cases {
            assert_eq!(error(&status::status(reason, "no")).exit_code(), code, "{reason:?}");
        }
    }

    #[test]
    fn a_status_without_a_reason_means_later() {
        let err = error(&Status::unavailable("bad gateway"));
        assert!(err.is_transient() && !err.is_unsent());
        assert_eq!(err.exit_code(), 69);
        assert_eq!(error(&Status::unauthenticated("who?")).exit_code(), 77);
        assert!(!error(&Status::unimplemented("")).is_transient());
    }

    #[test]
    fn words_of_the_server_are_escaped() {
        let err = error(&status::status(Reason::WrongState, "\u{1b}[2J\nall is well"));
        assert_eq!(err.to_string(), "\\u{1b}[2J\\nall is well");
    }
}
