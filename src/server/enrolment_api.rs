//! How a machine becomes a client, and stays one: a join token, or a certificate, is exchanged for a
//! new certificate. Who the caller is, the gate has found out; no message says it.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    audit::{Action, Audit, Detail},
    audited::Audited,
    authority::{AuthorityError, ClientCertificate, Issued},
    connection::Peer,
    coordinator::Coordinator,
    error::Error,
    gate::Caller,
    store::credentials::{Changed, Credentials, JoinRefusal, Joined, Joining, Standing},
    tls::Tls,
};
use crate::{
    ids::{ClientId, UnixMs, bounded},
    limits,
    status::Reason,
    token::TokenId,
    wire::{
        control::timestamp,
        proto::{self, enrolment_server::Enrolment},
    },
};

/// The service `fts.v1.Enrolment`.
pub struct EnrolmentApi {
    pub coordinator: Arc<Coordinator>,
    pub credentials: Arc<dyn Credentials>,
    /// `None`: there is no authority here.
    pub tls: Option<Arc<Tls>>,
    /// Of the certificates that it issues.
    pub life: Duration,
    pub audit: Option<Audit>,
}

#[tonic::async_trait]
impl Enrolment for EnrolmentApi {
    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let audited = self.audited(&request);
        let Some(Caller::Joiner(token)) = caller else { return Err(no_authority()) };
        let ask = request.into_inner();
        let client: ClientId = ask.client_id.parse().map_err(|err| Error::Id(err).into_status())?;
        let host = bounded(ask.host_name.clone(), limits::LABEL_BYTES_MAX);
        let about =
            [Detail::Client(client.clone()), Detail::Token(token.clone()), Detail::Host(host)];
        let work = self.joined(token, client, ask);
        let joined = audited.run(Action::ClientJoin, &about, work).await;
        joined.map(Response::new).map_err(Error::into_status)
    }

    async fn renew(
        &self,
        request: Request<proto::RenewRequest>,
    ) -> Result<Response<proto::RenewResponse>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let Some(Caller::Client(certificate)) = caller else { return Err(no_authority()) };
        let audited = self.audited(&request);
        let work = self.renewed(&certificate, &request.get_ref().certificate_request);
        let renewed = audited.run(Action::ClientRenew, &[], work).await;
        renewed.map(Response::new).map_err(Error::into_status)
    }
}

impl EnrolmentApi {
    fn audited<T>(&self, request: &Request<T>) -> Audited {
        let caller = request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anyone);
        let from = request.extensions().get::<Peer>().map(|peer| peer.address.clone());
        Audited::new(self.audit.clone(), &caller, from.unwrap_or_default())
    }

    async fn joined(
        &self,
        token: TokenId,
        client: ClientId,
        ask: proto::JoinRequest,
    ) -> Result<proto::JoinResponse, Error> {
        let uid = Uuid::new_v4();
        // Made first: a request that is no good must not cost a use of the token.
        let issued = self.issue(&ask.certificate_request, &client, uid)?;
        let joining = Joining {
            token,
            client: client.clone(),
            uid,
            key: issued.key,
            expires: issued.expires,
            host_name: bounded(ask.host_name, limits::LABEL_BYTES_MAX),
        };
        let identity = match self.credentials.join(&joining, UnixMs::now()).await? {
            Joined::Done(identity) => identity,
            Joined::Refused(JoinRefusal::Token) => {
                return Err(Error::refused(
                    Reason::Unauthenticated,
                    JoinRefusal::Token.to_string(),
                ));
            }
            Joined::Refused(refusal) => {
                return Err(Error::refused(Reason::JoinRefused, refusal.to_string()));
            }
        };
        // Whoever had this id before, if anybody, is somebody else now.
        self.coordinator.expel(&client);
        tracing::info!(client_id = client.as_str(), token = %joining.token, "a client joined");
        Ok(proto::JoinResponse {
            certificate: Some(message(&issued)),
            server_roots: self.roots(),
            pending: identity.standing == Standing::Pending,
        })
    }

    async fn renewed(
        &self,
        certificate: &ClientCertificate,
        request: &[u8],
    ) -> Result<proto::RenewResponse, Error> {
        let issued = self.issue(request, &certificate.client, certificate.uid)?;
        let changed = self
            .credentials
            .renew(&certificate.client, certificate.uid, issued.key, issued.expires)
            .await?;
        if !matches!(changed, Changed::Done(_)) {
            let text = "the identity of this client is good no longer";
            return Err(Error::refused(Reason::Revoked, text));
        }
        tracing::debug!(client_id = certificate.client.as_str(), "renewed a certificate");
        let certificate = Some(message(&issued));
        Ok(proto::RenewResponse { certificate, server_roots: self.roots() })
    }

    fn issue(&self, request: &[u8], client: &ClientId, uid: Uuid) -> Result<Issued, Error> {
        let tls = self.tls.as_ref().ok_or_else(|| Error::Internal("no authority".to_owned()))?;
        tls.authority().issue_client(request, client, uid, self.life).map_err(|err| match err {
            AuthorityError::Request(text) => Error::refused(Reason::InvalidArgument, text),
            other => Error::Internal(other.to_string()),
        })
    }

    fn roots(&self) -> Vec<bytes::Bytes> {
        let roots = self.tls.as_ref().map(|tls| tls.roots()).unwrap_or_default();
        roots.into_iter().map(Into::into).collect()
    }
}

fn message(issued: &Issued) -> proto::Certificate {
    let der = |certificate: &rustls::pki_types::CertificateDer<'_>| {
        bytes::Bytes::copy_from_slice(certificate)
    };
    proto::Certificate {
        chain: issued.chain.iter().map(der).collect(),
        expire_time: Some(timestamp(issued.expires)),
        server_time: Some(timestamp(UnixMs::now())),
    }
}

fn no_authority() -> Status {
    let text = "this server asks for no credentials, so there is nothing to join by; \
                see fts-server init";
    Error::refused(Reason::WrongState, text).into_status()
}
