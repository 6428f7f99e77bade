//! What administrators say over gRPC: decode, call the use case, encode. Lists are read from the
//! records as they are.

use std::{pin::Pin, str::FromStr, sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{
    access::Scope,
    administration::{Administration, Wanted},
    audit::{Action, Audit, Detail, Outcome},
    audited::Audited,
    authority::Authority,
    connection::Peer,
    error::Error,
    gate::Caller,
    store::credentials::Operator,
    until_over::UntilOver,
};
use crate::{
    ids::{ClientId, OperatorName, UnixMs},
    limits,
    status::{self, Reason},
    token::TokenId,
    wire::{
        admin,
        control::timestamp,
        proto::{self, admin_server::Admin},
        session::WireError,
    },
};

/// The service `fts.v1.Admin`.
pub struct AdminApi {
    administration: Arc<Administration>,
    audit: Option<Audit>,
    /// Each reader of the audit holds a thread for as long as it reads.
    readers: Arc<Semaphore>,
}

impl AdminApi {
    pub fn new(administration: Arc<Administration>, audit: Option<Audit>) -> Self {
        let readers = Arc::new(Semaphore::new(limits::AUDIT_READERS_MAX));
        Self { administration, audit, readers }
    }

    fn audited<T>(&self, request: &Request<T>) -> Audited {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anyone);
        let from = request.extensions().get::<Peer>().map(|peer| peer.address.clone());
        Audited::new(self.audit.clone(), &caller, from.unwrap_or_default())
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Admin for AdminApi {
    async fn create_join_tokens(
        &self,
        request: Request<proto::CreateJoinTokensRequest>,
    ) -> Answer<proto::CreateJoinTokensResponse> {
        let audited = self.audited(&request);
        let creator = caller(&request);
        let ask = request.into_inner();
        let ttl = admin::ttl(ask.ttl, limits::JOIN_TOKEN_TTL_MAX).map_err(malformed)?;
        let patterns = ask.patterns.iter().map(|text| text.parse());
        let wanted = Wanted {
            patterns: patterns.collect::<Result<_, _>>().map_err(invalid)?,
            uses_max: ask.uses_max.max(1),
            ttl: ttl.unwrap_or(limits::JOIN_TOKEN_TTL),
            needs_approval: ask.needs_approval,
            replaces: ask.replaces,
        };
        let about = [
            Detail::Patterns(wanted.patterns.clone()),
            Detail::Uses(wanted.uses_max),
            Detail::Ttl(wanted.ttl),
            Detail::Approval(wanted.needs_approval),
            Detail::Replaces(wanted.replaces),
        ];
        let made = audited
            .run_and_name(
                Action::TokenCreate,
                &about,
                self.administration.create_join_tokens(wanted, &creator),
                |made| {
                    vec![Detail::Tokens(made.iter().map(|(token, _)| token.id.clone()).collect())]
                },
            )
            .await;
        let made = made.map_err(Error::into_status)?.into_iter();
        let tokens = made.map(|(token, text)| proto::CreatedJoinToken {
            token: Some(token.into()),
            text: text.reveal().to_owned(),
        });
        Ok(Response::new(proto::CreateJoinTokensResponse { tokens: tokens.collect() }))
    }

    async fn list_join_tokens(
        &self,
        request: Request<proto::ListJoinTokensRequest>,
    ) -> Answer<proto::ListJoinTokensResponse> {
        let ask = request.into_inner();
        let (after, size) = page::<TokenId>(ask.page_size, &ask.page_token)?;
        let listed = self.administration.credentials.join_tokens(after.as_ref(), size).await;
        let tokens = listed.map_err(|err| Error::from(err).into_status())?;
        let next_page_token = next(&tokens, size, |token| token.id.as_str());
        let tokens = tokens.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListJoinTokensResponse { tokens, next_page_token }))
    }

    async fn revoke_join_token(
        &self,
        request: Request<proto::RevokeJoinTokenRequest>,
    ) -> Answer<proto::RevokeJoinTokenResponse> {
        let audited = self.audited(&request);
        let id = parse::<TokenId>(&request.get_ref().token_id)?;
        let token = audited
            .run(
                Action::TokenRevoke,
                &[Detail::Token(id.clone())],
                self.administration.revoke_join_token(&id),
            )
            .await;
        let token = Some(token.map_err(Error::into_status)?.into());
        Ok(Response::new(proto::RevokeJoinTokenResponse { token }))
    }

    async fn list_identities(
        &self,
        request: Request<proto::ListIdentitiesRequest>,
    ) -> Answer<proto::ListIdentitiesResponse> {
        let ask = request.into_inner();
        let (after, size) = page::<ClientId>(ask.page_size, &ask.page_token)?;
        let listed = self.administration.credentials.identities(after.as_ref(), size).await;
        let identities = listed.map_err(|err| Error::from(err).into_status())?;
        let next_page_token = next(&identities, size, |identity| identity.client.as_str());
        let identities = identities.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListIdentitiesResponse { identities, next_page_token }))
    }

    async fn approve_client(
        &self,
        request: Request<proto::ApproveClientRequest>,
    ) -> Answer<proto::ApproveClientResponse> {
        let audited = self.audited(&request);
        let client = parse::<ClientId>(&request.get_ref().client_id)?;
        let identity = audited
            .run(
                Action::ClientApprove,
                &[Detail::Client(client.clone())],
                self.administration.approve(&client),
            )
            .await
            .map_err(Error::into_status)?;
        Ok(Response::new(proto::ApproveClientResponse { identity: Some(identity.into()) }))
    }

    async fn revoke_client(
        &self,
        request: Request<proto::RevokeClientRequest>,
    ) -> Answer<proto::RevokeClientResponse> {
        let audited = self.audited(&request);
        let client = parse::<ClientId>(&request.get_ref().client_id)?;
        let identity = audited
            .run(
                Action::ClientRevoke,
                &[Detail::Client(client.clone())],
                self.administration.revoke(&client),
            )
            .await
            .map_err(Error::into_status)?;
        Ok(Response::new(proto::RevokeClientResponse { identity: Some(identity.into()) }))
    }

    async fn delete_client(
        &self,
        request: Request<proto::DeleteClientRequest>,
    ) -> Answer<proto::DeleteClientResponse> {
        let audited = self.audited(&request);
        let client = parse::<ClientId>(&request.get_ref().client_id)?;
        let identity = audited
            .run(
                Action::ClientDelete,
                &[Detail::Client(client.clone())],
                self.administration.delete(&client),
            )
            .await
            .map_err(Error::into_status)?;
        Ok(Response::new(proto::DeleteClientResponse { identity: Some(identity.into()) }))
    }

    async fn create_operator(
        &self,
        request: Request<proto::CreateOperatorRequest>,
    ) -> Answer<proto::CreateOperatorResponse> {
        let audited = self.audited(&request);
        let ask = request.into_inner();
        let name = parse::<OperatorName>(&ask.name)?;
        let role = admin::role(ask.role).map_err(malformed)?;
        let scope = ask.scope.unwrap_or_default();
        let scope = Scope::parse(&scope.clients, &scope.paths).map_err(invalid)?;
        let ttl = operator_ttl(ask.ttl)?;
        let mut about =
            vec![Detail::Operator(name.clone()), Detail::Role(role), Detail::Scope(scope.clone())];
        about.extend(ttl.map(Detail::Ttl));
        let made = audited
            .run_and_name(
                Action::OperatorCreate,
                &about,
                self.administration.create_operator(name, role, scope, ttl),
                |(operator, _)| about_operator(operator),
            )
            .await;
        let (operator, token) = made.map_err(Error::into_status)?;
        let token = token.reveal().to_owned();
        let operator = Some(operator.into());
        Ok(Response::new(proto::CreateOperatorResponse { operator, token }))
    }

    async fn list_operators(
        &self,
        request: Request<proto::ListOperatorsRequest>,
    ) -> Answer<proto::ListOperatorsResponse> {
        let ask = request.into_inner();
        let (after, size) = page::<OperatorName>(ask.page_size, &ask.page_token)?;
        let listed = self.administration.credentials.operators(after.as_ref(), size).await;
        let operators = listed.map_err(|err| Error::from(err).into_status())?;
        let next_page_token = next(&operators, size, |operator| operator.name.as_str());
        let operators = operators.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListOperatorsResponse { operators, next_page_token }))
    }

    async fn rotate_operator(
        &self,
        request: Request<proto::RotateOperatorRequest>,
    ) -> Answer<proto::RotateOperatorResponse> {
        let audited = self.audited(&request);
        let ask = request.into_inner();
        let name = parse::<OperatorName>(&ask.name)?;
        let ttl = operator_ttl(ask.ttl)?;
        let mut about = vec![Detail::Operator(name.clone())];
        about.extend(ttl.map(Detail::Ttl));
        let made = audited
            .run_and_name(
                Action::OperatorRotate,
                &about,
                self.administration.rotate_operator(&name, ttl),
                |(operator, _)| about_operator(operator),
            )
            .await;
        let (operator, token) = made.map_err(Error::into_status)?;
        let token = token.reveal().to_owned();
        let operator = Some(operator.into());
        Ok(Response::new(proto::RotateOperatorResponse { operator, token }))
    }

    async fn revoke_operator(
        &self,
        request: Request<proto::RevokeOperatorRequest>,
    ) -> Answer<proto::RevokeOperatorResponse> {
        let audited = self.audited(&request);
        let name = parse::<OperatorName>(&request.get_ref().name)?;
        let operator = audited
            .run(
                Action::OperatorRevoke,
                &[Detail::Operator(name.clone())],
                self.administration.revoke_operator(&name),
            )
            .await;
        let operator = Some(operator.map_err(Error::into_status)?.into());
        Ok(Response::new(proto::RevokeOperatorResponse { operator }))
    }

    type ReadAuditStream =
        Pin<Box<dyn Stream<Item = Result<proto::ReadAuditResponse, Status>> + Send>>;

    async fn read_audit(
        &self,
        request: Request<proto::ReadAuditRequest>,
    ) -> Answer<Self::ReadAuditStream> {
        let noted = self.audited(&request).note(Action::AuditRead, &[], Outcome::Done).await;
        noted.map_err(Error::into_status)?;
        let since = request.get_ref().since.map(|at| {
            UnixMs(at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos) / 1_000_000))
        });
        let Some(audit) = &self.audit else {
            let text = "nobody asks who calls here, so there is no audit";
            return Err(status::status(Reason::WrongState, text));
        };
        let permit = Arc::clone(&self.readers).try_acquire_owned().map_err(|_| {
            let most = limits::AUDIT_READERS_MAX;
            status::status(Reason::TooMany, format!("{most} read the audit now, which is the most"))
        })?;
        let lines = audit.read(since).map(move |line| {
            // Held for as long as the stream is.
            let _ = &permit;
            line.map(|line| proto::ReadAuditResponse { line }).map_err(|err| {
                tracing::error!(error = &err as &dyn std::error::Error, "could not read the audit");
                status::status(Reason::ServerIo, "the audit cannot be read now")
            })
        });
        let caller = request.extensions().get::<Caller>().unwrap_or(&Caller::Anyone);
        let credentials = &self.administration.credentials;
        let lines = UntilOver::new(lines, caller, credentials, Error::into_status);
        Ok(Response::new(Box::pin(lines)))
    }

    async fn rotate_authority(
        &self,
        request: Request<proto::RotateAuthorityRequest>,
    ) -> Answer<proto::RotateAuthorityResponse> {
        let work = self.administration.rotate_authority();
        let done = self.audited(&request).run(Action::CaRotate, &[], work).await;
        let authority = Some(message(done.map_err(Error::into_status)?.as_ref()));
        Ok(Response::new(proto::RotateAuthorityResponse { authority }))
    }

    async fn finish_rotation(
        &self,
        request: Request<proto::FinishRotationRequest>,
    ) -> Answer<proto::FinishRotationResponse> {
        let work = self.administration.finish_rotation();
        let done = self.audited(&request).run(Action::CaFinish, &[], work).await;
        let authority = Some(message(done.map_err(Error::into_status)?.as_ref()));
        Ok(Response::new(proto::FinishRotationResponse { authority }))
    }

    async fn renew_intermediate(
        &self,
        request: Request<proto::RenewIntermediateRequest>,
    ) -> Answer<proto::RenewIntermediateResponse> {
        let work = self.administration.renew_intermediate();
        let done = self.audited(&request).run(Action::CaRenew, &[], work).await;
        let authority = Some(message(done.map_err(Error::into_status)?.as_ref()));
        Ok(Response::new(proto::RenewIntermediateResponse { authority }))
    }
}

fn message(authority: &Authority) -> proto::Authority {
    proto::Authority {
        root: authority.root().to_string(),
        roots: u32::try_from(authority.roots().len()).unwrap_or(u32::MAX),
        intermediate_expire_time: Some(timestamp(authority.expires())),
    }
}

fn about_operator(operator: &Operator) -> Vec<Detail> {
    let mut about = vec![
        Detail::Token(operator.token.clone()),
        Detail::Role(operator.role),
        Detail::Scope(operator.scope.clone()),
    ];
    about.extend(operator.expires.map(Detail::Expires));
    about
}

fn caller<T>(request: &Request<T>) -> String {
    request.extensions().get::<Caller>().map_or_else(String::new, Caller::name)
}

fn operator_ttl(ttl: Option<prost_types::Duration>) -> Result<Option<Duration>, Status> {
    admin::ttl(ttl, limits::OPERATOR_TTL_MAX).map_err(malformed)
}

/// Reads where a page begins, and its size. A token is the last of the page before.
fn page<Id: FromStr<Err: std::fmt::Display>>(
    size: u32,
    token: &str,
) -> Result<(Option<Id>, u32), Status> {
    let size = if size == 0 { limits::PAGE_SIZE } else { size.min(limits::PAGE_SIZE_MAX) };
    let after = if token.is_empty() { None } else { Some(parse(token)?) };
    Ok((after, size))
}

fn next<T>(items: &[T], size: u32, id: impl Fn(&T) -> &str) -> String {
    // A full page may be the last: then the next one is empty.
    let last = items.last().filter(|_| items.len() >= size as usize);
    last.map_or_else(String::new, |last| id(last).to_owned())
}

fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Status> {
    text.parse().map_err(invalid)
}

#[allow(clippy::needless_pass_by_value)] // the end of an error's way
fn invalid(err: impl std::fmt::Display) -> Status {
    status::status(Reason::InvalidArgument, err.to_string())
}

#[allow(clippy::needless_pass_by_value)] // the end of an error's way
fn malformed(err: WireError) -> Status {
    status::status(Reason::InvalidArgument, err.to_string())
}
