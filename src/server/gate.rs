//! Who calls, and whether it may: the one door of the server. Every request of every listener
//! passes here before anything else is done with it; what is not in a table is refused.
//!
//! Without set-up there are no credentials, and the door is open to this machine only
//! ([`super::guard`]). With an authority, a client is who its certificate says, an operator who its
//! token says, and each is looked up in the records at each call: what was revoked a moment ago is
//! good for nothing.

use std::sync::Arc;

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};

use super::{
    access::{self, Need, Role, Scope},
    audit::{Action, Actor, Audit, Detail, Entry, Outcome},
    authority::ClientCertificate,
    connection::{Peer, Surface},
    error::Error,
    guard::{self, ClearText, Rules},
    http_api::{self, Problem},
    store::credentials::{Credentials, JoinRefusal, Operator, Standing},
};
use crate::{
    ids::UnixMs,
    status::Reason,
    token::{Token, TokenId, TokenKind},
    wire::method::Method,
};

/// Who calls. Handlers find it among the extensions of a request.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Nobody asks for credentials here.
    Anyone,
    /// Whoever may open the server's own socket.
    Owner,
    Operator(Arc<Operator>),
    Client(Arc<ClientCertificate>),
    /// Who holds a join token that is good.
    Joiner(TokenId),
}

impl Caller {
    /// Returns what it may see and ask for: everything, unless it is an operator with a scope.
    pub fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Operator(operator) => Some(&operator.scope),
            _ => None,
        }
    }

    pub(super) fn actor(&self) -> Actor {
        match self {
            Self::Anyone => Actor::Unknown,
            Self::Owner => Actor::Local,
            Self::Operator(operator) => Actor::Operator(operator.name.clone()),
            Self::Client(certificate) => Actor::Client(certificate.client.clone()),
            Self::Joiner(token) => Actor::Token(token.clone()),
        }
    }

    /// Returns a name for the log.
    pub fn name(&self) -> String {
        match self {
            Self::Anyone => "anyone".to_owned(),
            Self::Owner => "local".to_owned(),
            Self::Operator(operator) => operator.name.to_string(),
            Self::Client(certificate) => certificate.client.as_str().to_owned(),
            Self::Joiner(token) => format!("join token {token}"),
        }
    }
}

/// The door.
#[derive(Clone)]
pub struct Gate {
    rules: Rules,
    credentials: Option<Arc<dyn Credentials>>,
    audit: Option<Audit>,
}

impl Gate {
    /// Asks for no credentials.
    pub fn open(clear_text: ClearText) -> Self {
        Self { rules: clear_text.into(), credentials: None, audit: None }
    }

    /// Asks for credentials, which are on these records.
    pub fn keyed(credentials: Arc<dyn Credentials>, audit: Option<Audit>) -> Self {
        Self { rules: Rules::Tls, credentials: Some(credentials), audit }
    }

    /// Puts the gate before all of `app`: gRPC, HTTP and fallback.
    pub fn before(self, app: Router) -> Router {
        app.layer(from_fn_with_state(self, pass))
    }

    /// Puts a refusal on record; of too many, how many they were.
    fn note_refused(&self, request: &Parts, err: &Error) {
        let peer = request.extensions.get::<Peer>();
        let from = peer.map_or("?", |peer| &peer.address);
        tracing::debug!(from, reason = err.reason().as_str(), "refused a request");
        let Some(audit) = &self.audit else { return };
        // Who it says it is, as far as that is proved.
        let certificate = peer.and_then(|peer| peer.certificate.as_ref());
        let actor = certificate.map_or(Actor::Unknown, |c| Actor::Client(c.client.clone()));
        let outcome = Outcome::Not(err.reason().as_str());
        let asked = format!("{} {}", request.method, request.uri.path());
        let mut entry =
            Entry::new(actor, from, Action::Refused, outcome).with(Detail::Method(asked));
        // Of a token only what is public.
        let kinds = [TokenKind::Operator, TokenKind::Join];
        let mut tokens = kinds.iter().filter_map(|kind| bearer(&request.headers, *kind).ok());
        if let Some(token) = tokens.next() {
            entry = entry.with(Detail::Token(token.id));
        }
        audit.refused(entry);
    }

    async fn decide(&self, request: &Parts) -> Result<Option<Caller>, Error> {
        // Every listener says who is at the other end.
        let peer = request.extensions.get::<Peer>();
        let peer = peer.ok_or_else(|| Error::Internal("a request has no peer".to_owned()))?;
        if peer.surface == Surface::Socket {
            return Ok(Some(Caller::Owner));
        }
        guard::check(self.rules, &request.uri, &request.headers)
            .map_err(|refusal| Error::refused(Reason::NotLocal, refusal.to_string()))?;
        let need = need(request);
        if !is_served(peer.surface, need) {
            return Err(Error::refused(Reason::NotFound, "not on this listener"));
        }
        let Some(credentials) = &self.credentials else {
            return Ok(Some(Caller::Anyone));
        };
        let headers = &request.headers;
        let caller = match need {
            Need::Nothing => return Ok(None),
            Need::JoinToken => joiner(credentials.as_ref(), headers).await?,
            Need::Client | Need::ClientToRenew => {
                let certificate = peer.certificate.as_ref().ok_or_else(|| {
                    unauthenticated("a client's certificate is needed: fts-client join")
                })?;
                client(credentials.as_ref(), certificate, need).await?;
                Caller::Client(Arc::clone(certificate))
            }
            Need::Role(role) => {
                Caller::Operator(operator(credentials.as_ref(), headers, role).await?)
            }
        };
        // A join is one call: whoever holds its token needs no more time than anybody.
        if !matches!(caller, Caller::Joiner(_)) {
            peer.note_known();
        }
        Ok(Some(caller))
    }
}

async fn pass(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let (mut head, body) = request.into_parts();
    match gate.decide(&head).await {
        Ok(caller) => {
            if let Some(caller) = caller {
                head.extensions.insert(caller);
            }
            next.run(Request::from_parts(head, body)).await
        }
        Err(err) => {
            gate.note_refused(&head, &err);
            refuse(err, &head.headers)
        }
    }
}

/// Returns what a request needs, by the tables of methods and of HTTP routes.
fn need(request: &Parts) -> Need {
    let path = request.uri.path();
    if let Some(method) = Method::parse(path) {
        return access::need(method);
    }
    if matches!(path, "/grpc.health.v1.Health/Check" | "/grpc.health.v1.Health/Watch") {
        return Need::Nothing;
    }
    let matched = request.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
    // Reflection, and what is not there: that it is not is for those who may look.
    matched
        .and_then(|matched| http_api::need(&request.method, matched))
        .unwrap_or(Need::Role(Role::Viewer))
}

fn is_served(surface: Surface, need: Need) -> bool {
    match (surface, need) {
        (Surface::All | Surface::Socket, _) | (_, Need::Nothing) => true,
        (Surface::Transfers, need) => !matches!(need, Need::Role(_)),
        (Surface::Control, need) => matches!(need, Need::Role(_)),
    }
}

/// Returns the operator whose token a request bears, if it may do this.
async fn operator(
    credentials: &dyn Credentials,
    headers: &HeaderMap,
    role: Role,
) -> Result<Arc<Operator>, Error> {
    let token = bearer(headers, TokenKind::Operator)?;
    let operator = credentials.operator_of_token(&token.id).await?;
    let operator = operator.filter(|operator| token.is_of(&operator.hash)).ok_or_else(not_good)?;
    check_operator(&operator, UnixMs::now())?;
    if operator.role < role {
        let text = format!(
            "this needs the role {}, and {} has {}",
            role.as_str(),
            operator.name,
            operator.role.as_str()
        );
        return Err(Error::refused(Reason::PermissionDenied, text));
    }
    Ok(Arc::new(operator))
}

fn check_operator(operator: &Operator, now: UnixMs) -> Result<(), Error> {
    let is_over = operator.revoked.is_some() || operator.expires.is_some_and(|at| at <= now);
    if is_over { Err(not_good()) } else { Ok(()) }
}

/// Returns an error if the operator may no longer do what it began.
pub(super) async fn recheck(
    credentials: &dyn Credentials,
    operator: &Operator,
) -> Result<(), Error> {
    let now = credentials.operator_of_token(&operator.token).await?.ok_or_else(not_good)?;
    check_operator(&now, UnixMs::now())
}

async fn joiner(credentials: &dyn Credentials, headers: &HeaderMap) -> Result<Caller, Error> {
    let token = bearer(headers, TokenKind::Join)?;
    let known = credentials.join_token(&token.id).await?;
    // One that is used up is judged once it is known who joins: it may have been by this one.
    let known = known.filter(|known| token.is_of(&known.hash) && known.is_good(UnixMs::now()));
    let known = known.ok_or_else(|| unauthenticated(&JoinRefusal::Token.to_string()))?;
    Ok(Caller::Joiner(known.id))
}

/// Returns an error if the identity of a certificate is not in good standing.
pub(super) async fn client(
    credentials: &dyn Credentials,
    certificate: &ClientCertificate,
    need: Need,
) -> Result<(), Error> {
    let identity = credentials.identity(&certificate.client).await?;
    let identity =
        identity.filter(|identity| identity.uid == certificate.uid).ok_or_else(|| {
            let text =
                "the identity of this certificate was replaced: another machine has this id now";
            Error::refused(Reason::Revoked, text)
        })?;
    match identity.standing {
        Standing::Active => {}
        // It may renew, so that it is not too late for it when it is approved.
        Standing::Pending if need == Need::ClientToRenew => {}
        Standing::Pending => {
            let text =
                "an administrator has yet to approve this client: fts-server clients approve";
            return Err(Error::refused(Reason::PendingApproval, text));
        }
        Standing::Revoked | Standing::Deleted => {
            return Err(Error::refused(Reason::Revoked, "the identity of this client was revoked"));
        }
    }
    if need != Need::ClientToRenew && certificate.is_expired(UnixMs::now()) {
        let text = "the certificate has expired by the server's clock; it can be renewed";
        return Err(Error::refused(Reason::CertificateExpired, text));
    }
    Ok(())
}

/// Returns the token that a request bears. One header, one scheme: everything else is refused.
fn bearer(headers: &HeaderMap, kind: TokenKind) -> Result<Token, Error> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(unauthenticated("credentials are needed: authorization: Bearer TOKEN"));
    };
    let text = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let text = text.ok_or_else(|| unauthenticated("the credentials are no bearer token"))?;
    Token::parse(text, kind).map_err(|err| unauthenticated(&err.to_string()))
}

fn not_good() -> Error {
    // Not which of the reasons: that is for the audit.
    unauthenticated("the token is not good, or no longer")
}

fn unauthenticated(text: &str) -> Error {
    Error::refused(Reason::Unauthenticated, text)
}

/// Answers in the language of the question.
fn refuse(err: Error, headers: &HeaderMap) -> Response {
    let reason = err.reason();
    if guard::is_grpc(headers) {
        return err.into_status().into_http();
    }
    let mut response = Problem::from(err).into_response();
    if reason == Reason::Unauthenticated {
        let ask = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::StatusCode,
        routing::post,
    };
    use tower::ServiceExt as _;

    use super::*;
    use crate::status;

    fn app() -> Router {
        let app = Router::new().route("/x", post(|| async { "answered" }));
        Gate::open(ClearText::LoopbackOnly).before(app.fallback(|| async { "fallback" }))
    }

    fn peer() -> Peer {
        Peer::new(Surface::All, "127.0.0.1:1".to_owned())
    }

    #[tokio::test]
    async fn a_refusal_over_http_is_a_problem_and_covers_the_fallback() {
        for path in ["/x", "/nowhere"] {
            let request = Request::post(path).header("host", "evil.com").extension(peer());
            let request = request.body(Body::empty());
            let response = app().oneshot(request.expect("valid")).await.expect("infallible");
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
            assert_eq!(response.headers()["content-type"], "application/problem+json");
            let body = to_bytes(response.into_body(), 4096).await.expect("read");
            let problem: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(problem["code"], "NOT_LOCAL");
            assert_eq!(problem["status"], 403);
        }
    }

    #[tokio::test]
    async fn a_refusal_over_grpc_is_a_status_with_our_reason() {
        let request = Request::post("http://evil.com/x").header("content-type", "application/grpc");
        let request = request.extension(peer()).body(Body::empty()).expect("valid");
        let response = app().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let status = tonic::Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        assert_eq!(status::reason(&status), Some(Reason::NotLocal));
    }

    #[tokio::test]
    async fn a_request_of_this_machine_is_answered() {
        let request = Request::post("/x").header("host", "localhost:3000").extension(peer());
        let request = request.body(Body::empty()).expect("valid");
        let response = app().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn a_request_of_no_connection_is_refused() {
        let request = Request::post("/x").header("host", "localhost:3000").body(Body::empty());
        let response = app().oneshot(request.expect("valid")).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    }
}
