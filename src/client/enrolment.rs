//! What the client asks the server about its own identity: to join, once, and to renew. Knows what
//! is said; knows nothing of when.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;
use tonic::{
    Request, Response, Status,
    metadata::MetadataValue,
    transport::{Channel, Error as TransportError},
};

use super::{
    identity::{Identity, IdentityError, NewKey},
    words::{causes, status_text},
};
use crate::{
    ids::ClientId,
    limits,
    route::Route,
    status::{self, Reason},
    tls,
    token::Token,
    wire::proto::{Certificate, JoinRequest, RenewRequest, enrolment_client::EnrolmentClient},
};

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    #[error("cannot reach the server: {0}")]
    Unreachable(String),
    #[error("the server refused: {text}")]
    Refused { reason: Option<Reason>, text: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A new certificate, and what came with it.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) identity: Identity,
    /// The roots to trust from now on; none: those that were given by hand, or the machine's.
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// An operator has yet to approve it.
    pub(super) is_pending: bool,
    pub(super) clock: Option<Clock>,
}

/// What the server's clock said, and ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) server: SystemTime,
    pub(super) here: SystemTime,
}

impl Clock {
    /// By how many seconds ours is ahead.
    pub(super) fn ahead_seconds(self) -> i64 {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        match self.here.duration_since(self.server) {
            Ok(ahead) => seconds(ahead),
            Err(behind) => -seconds(behind.duration()),
        }
    }

    /// Names both, if they differ by more than a little.
    pub(super) fn problem(self) -> Option<String> {
        let off = self.ahead_seconds();
        (off.unsigned_abs() > limits::CLOCK_OFFSET_MAX.as_secs()).then(|| {
            format!(
                "the clock of this machine says {}, the server's {}: one of them is wrong, and \
                 certificates may seem expired, or not valid yet",
                humantime::format_rfc3339_seconds(self.here),
                humantime::format_rfc3339_seconds(self.server)
            )
        })
    }

    /// Returns the moment by our clock that is `at` by the server's.
    pub(super) fn here_at(self, at: SystemTime) -> SystemTime {
        match self.here.duration_since(self.server) {
            Ok(ahead) => at + ahead,
            Err(behind) => at.checked_sub(behind.duration()).unwrap_or(at),
        }
    }
}

/// Exchanges a join token for an identity.
pub(super) async fn join(
    route: &Route,
    token: &Token,
    key: NewKey,
    client: &ClientId,
    host_name: &str,
) -> Result<Granted, EnrolmentError> {
    let mut request = Request::new(JoinRequest {
        client_id: client.to_string(),
        certificate_request: key.request.clone(),
        host_name: host_name.to_owned(),
    });
    let bearer = format!("Bearer {}", token.reveal().reveal());
    let mut bearer: MetadataValue<_> = bearer.parse().expect("a token is ASCII");
    bearer.set_sensitive(true);
    request.metadata_mut().insert("authorization", bearer);
    let mut client = connect(route).await?;
    let answer = call(client.join(request)).await?;
    granted(key, answer.certificate, answer.server_roots, answer.pending)
}

/// Exchanges the identity that `route` shows for a new one, with a new key.
pub(super) async fn renew(route: &Route) -> Result<Granted, EnrolmentError> {
    let key = NewKey::generate()?;
    let request = RenewRequest { certificate_request: key.request.clone() };
    let mut client = connect(route).await?;
    let answer = call(client.renew(request)).await?;
    granted(key, answer.certificate, answer.server_roots, false)
}

async fn connect(route: &Route) -> Result<EnrolmentClient<Channel>, EnrolmentError> {
    let channel = route.endpoint().connect_with_connector(route.connector()).await;
    let channel = channel.map_err(|err| EnrolmentError::Unreachable(transport_text(&err)))?;
    Ok(EnrolmentClient::new(channel).max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES_MAX))
}

/// Returns why a server was not reached, in words.
pub(super) fn transport_text(err: &TransportError) -> String {
    let explained = tls::explain(err);
    explained.unwrap_or_else(|| format!("cannot connect{}", causes(err, "cannot connect")))
}

async fn call<T>(
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, EnrolmentError> {
    let wait = limits::ENROLMENT_WAIT;
    let Ok(answer) = timeout(wait, answer).await else {
        let text = format!("no answer within {} seconds", wait.as_secs());
        return Err(EnrolmentError::Unreachable(text));
    };
    answer.map(Response::into_inner).map_err(|status| {
        let (reason, text) = (status::reason(&status), status_text(&status));
        let is_away = status.code() == tonic::Code::Unavailable;
        if is_away || (reason.is_none() && tls::explain(&status).is_some()) {
            EnrolmentError::Unreachable(text)
        } else {
            EnrolmentError::Refused { reason, text }
        }
    })
}

fn granted(
    key: NewKey,
    certificate: Option<Certificate>,
    roots: Vec<Bytes>,
    is_pending: bool,
) -> Result<Granted, EnrolmentError> {
    let here = SystemTime::now();
    let certificate = certificate.unwrap_or_default();
    let server = certificate.server_time.and_then(|time| SystemTime::try_from(time).ok());
    let roots = roots.into_iter().map(|root| CertificateDer::from(root.to_vec())).collect();
    Ok(Granted {
        identity: key.with(certificate.chain)?,
        roots,
        is_pending,
        clock: server.map(|server| Clock { server, here }),
    })
}
