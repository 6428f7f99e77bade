//! An error as HTTP has it: `application/problem+json` (RFC 9457).

use axum::{
    extract::rejection::BytesRejection,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::json::Json;
use crate::{ids::IdError, server::error::Error, status::Reason, wire::session::WireError};

/// Why a request was not served: a stable code for programs, and a text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    reason: Reason,
    detail: String,
}

impl Problem {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// The request itself is wrong.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(Reason::InvalidArgument, detail)
    }

    #[cfg(test)]
    pub(super) fn reason(&self) -> Reason {
        self.reason
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            r#type: &'static str,
            title: &'static str,
            status: u16,
            code: &'static str,
            detail: String,
        }
        let status = StatusCode::from_u16(self.reason.http_status());
        let status = status.expect("the table of reasons has HTTP statuses");
        let body = Body {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            code: self.reason.as_str(),
            detail: self.detail,
        };
        let headers = [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        (status, headers, Json(body)).into_response()
    }
}

impl From<Error> for Problem {
    /// Logs what the peer is not told: it is answered here.
    fn from(err: Error) -> Self {
        err.log();
        Self::new(err.reason(), err.peer_text())
    }
}

impl From<IdError> for Problem {
    fn from(err: IdError) -> Self {
        Self::malformed(err.to_string())
    }
}

impl From<WireError> for Problem {
    fn from(err: WireError) -> Self {
        Self::malformed(err.to_string())
    }
}

impl From<BytesRejection> for Problem {
    fn from(err: BytesRejection) -> Self {
        if err.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::new(Reason::TooLarge, "the body is too large");
        }
        Self::malformed("the body could not be read")
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::server::store::StoreError;

    async fn body(problem: Problem) -> (Response<()>, Value) {
        let (head, body) = problem.into_response().into_parts();
        let body = to_bytes(body, 4096).await.expect("read");
        (Response::from_parts(head, ()), serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn every_reason_is_a_problem_with_its_code_and_status() {
        for &reason in Reason::ALL {
            let (response, body) = body(Problem::new(reason, "a \"text\"\n")).await;
            assert_eq!(response.status().as_u16(), reason.http_status());
            assert!(response.status().is_client_error() || response.status().is_server_error());
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            assert_eq!(response.headers()["cache-control"], "no-store");
            let title = response.status().canonical_reason().expect("a title");
            let expected = json!({
                "type": "about:blank",
                "title": title,
                "status": reason.http_status(),
                "code": reason.as_str(),
                "detail": "a \"text\"\n",
            });
            assert_eq!(body, expected);
        }
    }

    #[test]
    fn what_a_database_said_is_not_told() {
        let store = StoreError::Corrupt("secret row".to_owned());
        let problem = Problem::from(Error::from(store));
        assert_eq!(problem.reason, Reason::Unavailable);
        assert!(!problem.detail.contains("secret"));
    }
}
