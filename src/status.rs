//! The stable vocabulary of errors between programs: a gRPC code, and a reason
//! (`google.rpc.ErrorInfo`). Whoever receives one acts on the reason only; a status without one
//! means "later".

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `domain` of our reasons.
pub const DOMAIN: &str = "fts";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident, $http:literal;)*) => {
        /// Why a request was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The text that peers see, and act on.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code),* }
            }

            /// The HTTP status that says the same.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$name => $http),* }
            }

            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    InvalidArgument = "INVALID_ARGUMENT", InvalidArgument, 400;
    /// No credentials, or none that are good.
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated, 401;
    /// Good credentials, but not for this.
    PermissionDenied = "PERMISSION_DENIED", PermissionDenied, 403;
    /// The certificate is of another client than the message says.
    WrongClient = "WRONG_CLIENT", PermissionDenied, 403;
    /// The certificate has expired: it can still be renewed.
    CertificateExpired = "CERTIFICATE_EXPIRED", Unauthenticated, 401;
    /// The identity was revoked, deleted, or replaced.
    Revoked = "REVOKED", PermissionDenied, 403;
    /// An operator has yet to approve the client.
    PendingApproval = "PENDING_APPROVAL", FailedPrecondition, 409;
    /// The join token is not good, or not for this id.
    JoinRefused = "JOIN_REFUSED", PermissionDenied, 403;
    AlreadyExists = "ALREADY_EXISTS", AlreadyExists, 409;
    UnknownToken = "UNKNOWN_TOKEN", NotFound, 404;
    UnknownOperator = "UNKNOWN_OPERATOR", NotFound, 404;
    /// A quota of the client, or of the operator, is used up.
    OverQuota = "OVER_QUOTA", ResourceExhausted, 429;
    /// It never registered.
    UnknownClient = "UNKNOWN_CLIENT", NotFound, 404;
    /// It is not there to be asked.
    ClientOffline = "CLIENT_OFFLINE", Unavailable, 503;
    UnknownTransfer = "UNKNOWN_TRANSFER", NotFound, 404;
    /// No such path or method (HTTP only).
    NotFound = "NOT_FOUND", NotFound, 404;
    MethodNotAllowed = "METHOD_NOT_ALLOWED", Unimplemented, 405;
    /// A request id that stands for another request.
    RequestIdConflict = "REQUEST_ID_CONFLICT", AlreadyExists, 409;
    /// Not possible in the transfer's state.
    WrongState = "WRONG_STATE", FailedPrecondition, 409;
    /// The transfer has no bytes: not COMPLETE, or deleted.
    NoContent = "NO_CONTENT", FailedPrecondition, 409;
    /// The bytes of a COMPLETE transfer are not where they were put.
    ContentLost = "CONTENT_LOST", DataLoss, 410;
    RangeNotSatisfiable = "RANGE_NOT_SATISFIABLE", OutOfRange, 416;
    /// The events after a resume token have been dropped.
    TokenExpired = "TOKEN_EXPIRED", OutOfRange, 410;
    TooMany = "TOO_MANY", ResourceExhausted, 429;
    TooLarge = "TOO_LARGE", ResourceExhausted, 413;
    Draining = "DRAINING", Unavailable, 503;
    /// The record store or the disk cannot serve now.
    Unavailable = "UNAVAILABLE", Unavailable, 503;
    /// In clear text, only from this machine, and only as itself.
    NotLocal = "NOT_LOCAL", PermissionDenied, 403;
    /// A newer attempt or session has taken over.
    StaleEpoch = "STALE_EPOCH", Aborted, 409;
    OtherInstance = "OTHER_INSTANCE", PermissionDenied, 403;
    WrongOffset = "WRONG_OFFSET", OutOfRange, 409;
    ChunkCorrupt = "CHUNK_CORRUPT", DataLoss, 422;
    ChunkMalformed = "CHUNK_MALFORMED", InvalidArgument, 400;
    OutOfOrder = "OUT_OF_ORDER", FailedPrecondition, 409;
    NotWhole = "NOT_WHOLE", FailedPrecondition, 409;
    Integrity = "INTEGRITY", DataLoss, 422;
    ServerIo = "SERVER_IO", Unavailable, 503;
    ServerBusy = "SERVER_BUSY", ResourceExhausted, 429;
    Stalled = "STALLED", DeadlineExceeded, 408;
    Internal = "INTERNAL", Internal, 500;
}

/// Returns the status for `reason`, with a short text for people.
pub fn status(reason: Reason, text: impl Into<String>) -> Status {
    status_with(reason, text, [])
}

/// Returns the status for `reason`, with details that programs may use.
pub fn status_with<const N: usize>(
    reason: Reason,
    text: impl Into<String>,
    metadata: [(&str, String); N],
) -> Status {
    let metadata: HashMap<String, String> =
        metadata.map(|(key, value)| (key.to_owned(), value)).into();
    let details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, metadata);
    Status::with_error_details(reason.code(), text, details)
}

/// Returns the reason of a peer's status, if it has one that is known.
pub fn reason(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain == DOMAIN { Reason::parse(&info.reason) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for &each in Reason::ALL {
            let status = status(each, "text");
            assert_eq!(reason(&status), Some(each));
            assert_eq!(status.code(), each.code());
        }
    }

    #[test]
    fn a_status_of_somebody_else_has_no_reason() {
        assert_eq!(reason(&Status::unavailable("proxy")), None);
        let details = ErrorDetails::with_error_info("STALE_EPOCH", "example.com", HashMap::new());
        let status = Status::with_error_details(Code::Aborted, "", details);
        assert_eq!(reason(&status), None);
    }
}
