//! How a machine becomes a client, and stays one: a join token, or a certificate, is exchanged for a
//! new certificate. Who the caller is, the gate has found out; no message says it.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{
    audit::{Action, Audit, Detail},
    audited::Audited,
    authority::{Authority, AuthorityError, ClientCertificate, Issued},
    connection::Peer,
    coordinator::Coordinator,
    error::Error,
    gate::Caller,
    store::credentials::{Changed, Credentials, JoinRefusal, Joined, Joining, Renewing, Standing},
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
        let host = bounded(ask.host_name, limits::LABEL_BYTES_MAX);
        let about = [
            Detail::Client(client.clone()),
            Detail::Token(token.clone()),
            Detail::Host(host.clone()),
        ];
        let judged = self.judged(token, client, host, &ask.certificate_request).await;
        let (joining, is_again) = match judged {
            Ok(judged) => judged,
            Err(err) => {
                audited.refuse(Action::ClientJoin, &about, &err);
                return Err(err.into_status());
            }
        };
        let work = self.joined(joining, is_again, &ask.certificate_request);
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
        if let Err(err) = self.judged_renewal(&certificate).await {
            audited.refuse(Action::ClientRenew, &[], &err);
            return Err(err.into_status());
        }
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

    /// Judges a join as the records are now, so that one that is refused is neither signed nor
    /// costs a write. Returns whether it is asked for again.
    async fn judged(
        &self,
        token: TokenId,
        client: ClientId,
        host_name: String,
        request: &[u8],
    ) -> Result<(Joining, bool), Error> {
        let known = self.credentials.join_token(&token).await?;
        let known = known.ok_or_else(|| refused(JoinRefusal::Token))?;
        let held = self.credentials.identity(&client).await?;
        let key = Authority::requested_key(request).map_err(not_issued)?;
        // Whoever asks again because the answer was lost is who it was.
        let again = held.as_ref().filter(|held| held.token == token && held.key == key);
        let is_again = again.is_some();
        let uid = again.map_or_else(Uuid::new_v4, |held| held.uid);
        let now = UnixMs::now();
        let expires = now.plus(self.life);
        let joining = Joining { token, client, uid, key, begins: now, expires, host_name };
        known.admit(&joining, held.as_ref(), now).map_err(refused)?;
        self.coordinator.quotas.admit_certificate(&joining.client)?;
        Ok((joining, is_again))
    }

    /// Judges a renewal as the records are now: whoever holds a key that is good no longer must
    /// neither use up what its client may ask for, nor have anything signed or written.
    async fn judged_renewal(&self, certificate: &ClientCertificate) -> Result<(), Error> {
        let held = self.credentials.identity(&certificate.client).await?;
        let ClientCertificate { key, begins, .. } = certificate;
        if held.is_some_and(|held| held.uid == certificate.uid && !held.may_renew(key, *begins)) {
            return Err(renewed_since(certificate));
        }
        Ok(self.coordinator.quotas.admit_certificate(&certificate.client)?)
    }

    async fn joined(
        &self,
        mut joining: Joining,
        is_again: bool,
        request: &[u8],
    ) -> Result<proto::JoinResponse, Error> {
        let client = joining.client.clone();
        // Made first: what cannot be issued must not cost a use of the token.
        let mut issued = self.issue(request, &client, joining.uid)?;
        (joining.begins, joining.expires) = (issued.begins, issued.expires);
        let identity = match self.credentials.join(&joining, UnixMs::now()).await? {
            Joined::Done(identity) => identity,
            Joined::Refused(refusal) => return Err(refused(refusal)),
        };
        if identity.uid != joining.uid {
            // The same join was under way twice, and the other one was first.
            issued = self.issue(request, &client, identity.uid)?;
        } else if !is_again {
            // Whoever had this id before, if anybody, is somebody else now.
            self.coordinator.expel(&client);
        }
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
        let renewing = Renewing {
            client: certificate.client.clone(),
            uid: certificate.uid,
            shown: certificate.key,
            shown_begins: certificate.begins,
            key: issued.key,
            begins: issued.begins,
            expires: issued.expires,
        };
        match self.credentials.renew(&renewing).await? {
            Changed::Done(_) => {}
            Changed::WrongState(held) if held.uid == renewing.uid && held.is_in_use() => {
                return Err(renewed_since(certificate));
            }
            _ => {
                let text = "the identity of this client is good no longer";
                return Err(Error::refused(Reason::Revoked, text));
            }
        }
        tracing::debug!(client_id = certificate.client.as_str(), "renewed a certificate");
        let certificate = Some(message(&issued));
        Ok(proto::RenewResponse { certificate, server_roots: self.roots() })
    }

    fn issue(&self, request: &[u8], client: &ClientId, uid: Uuid) -> Result<Issued, Error> {
        let tls = self.tls.as_ref().ok_or_else(|| Error::Internal("no authority".to_owned()))?;
        tls.authority().issue_client(request, client, uid, self.life).map_err(not_issued)
    }

    fn roots(&self) -> Vec<bytes::Bytes> {
        let roots = self.tls.as_ref().map(|tls| tls.roots()).unwrap_or_default();
        roots.into_iter().map(Into::into).collect()
    }
}

fn refused(refusal: JoinRefusal) -> Error {
    let reason = match refusal {
        JoinRefusal::Token => Reason::Unauthenticated,
        _ => Reason::JoinRefused,
    };
    Error::refused(reason, refusal.to_string())
}

fn renewed_since(certificate: &ClientCertificate) -> Error {
    tracing::warn!(
        client_id = certificate.client.as_str(),
        "refused to renew a certificate that was renewed twice since: somebody else may hold a \
         copy of this client's key"
    );
    let text = "this certificate was renewed twice since: another machine may hold a copy of this \
                identity, or an old one was restored";
    Error::refused(Reason::Revoked, text)
}

fn not_issued(err: AuthorityError) -> Error {
    match err {
        AuthorityError::Request(text) => Error::refused(Reason::InvalidArgument, text),
        other => Error::Internal(other.to_string()),
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
