//! Who a client's certificate is of: `spiffe://DOMAIN/client/ID/UID`, in its only alternative name.

use rustls::pki_types::CertificateDer;
use uuid::Uuid;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer as _,
};

use crate::{
    ids::{ClientId, UnixMs},
    token::Sha256,
};

/// What a certificate says of its client. The authority has signed it, so it is true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub client: ClientId,
    /// Of the identity: another one that came to the same id is somebody else.
    pub uid: Uuid,
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`, DER).
    pub key: Sha256,
    pub begins: UnixMs,
    pub expires: UnixMs,
}

/// Why a certificate names no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate does not name a client of this server")]
    NotAClient,
}

/// Returns the name of an identity.
pub(super) fn uri(domain: &str, client: &ClientId, uid: Uuid) -> String {
    format!("spiffe://{domain}/client/{}/{}", client.as_str(), uid.simple())
}

impl ClientCertificate {
    pub(super) fn read(
        leaf: &CertificateDer<'_>,
        domain: &str,
        roots: &[CertificateDer<'_>],
    ) -> Result<Self, IdentityError> {
        let parsed = parse(leaf)?;
        // A root signs intermediates only.
        for root in roots {
            if parse(root)?.subject().as_raw() == parsed.issuer().as_raw() {
                return Err(IdentityError::NotAClient);
            }
        }
        // The verifier takes one that says no use as good for every use.
        let usage = parsed.extended_key_usage().map_err(|_| IdentityError::Unreadable)?;
        if !usage.is_some_and(|usage| usage.value.client_auth) {
            return Err(IdentityError::NotAClient);
        }
        let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
        let names = names.ok_or(IdentityError::NotAClient)?;
        let [GeneralName::URI(name)] = names.value.general_names.as_slice() else {
            return Err(IdentityError::NotAClient);
        };
        let rest = name.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(domain));
        let rest = rest.and_then(|rest| rest.strip_prefix("/client/"));
        let (client, uid) =
            rest.and_then(|rest| rest.split_once('/')).ok_or(IdentityError::NotAClient)?;
        let client = client.parse().map_err(|_| IdentityError::NotAClient)?;
        let uid = Uuid::try_parse(uid).map_err(|_| IdentityError::NotAClient)?;
        Ok(Self {
            client,
            uid,
            key: Sha256::of(parsed.public_key().raw),
            begins: UnixMs(parsed.validity().not_before.timestamp().saturating_mul(1000)),
            expires: UnixMs(parsed.validity().not_after.timestamp().saturating_mul(1000)),
        })
    }

    pub fn is_expired(&self, now: UnixMs) -> bool {
        self.expires <= now
    }
}

/// Returns when a certificate begins and ends to hold.
pub(in crate::server) fn life(
    leaf: &CertificateDer<'_>,
) -> Result<(UnixMs, UnixMs), IdentityError> {
    let parsed = parse(leaf)?;
    let ms = |at: x509_parser::time::ASN1Time| UnixMs(at.timestamp().saturating_mul(1000));
    Ok((ms(parsed.validity().not_before), ms(parsed.validity().not_after)))
}

/// Whether a certificate says that the key of `root` has signed it. It is one of our own files, so
/// what it says is true.
pub(super) fn is_signed_by(certificate: &CertificateDer<'_>, root: &CertificateDer<'_>) -> bool {
    let (Ok(certificate), Ok(root)) = (parse(certificate), parse(root)) else { return false };
    let signer = certificate.iter_extensions().find_map(|each| match each.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(signer) => signer.key_identifier.as_ref(),
        _ => None,
    });
    let own = root.iter_extensions().find_map(|each| match each.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(own) => Some(own),
        _ => None,
    });
    signer.is_some() && signer == own
}

/// Returns the public key of a certificate (`SubjectPublicKeyInfo`, DER).
pub(super) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, IdentityError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

fn parse<'a>(leaf: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Unreadable)?;
    if rest.is_empty() { Ok(parsed) } else { Err(IdentityError::Unreadable) }
}
