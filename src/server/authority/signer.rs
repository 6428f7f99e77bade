//! What signs: an intermediate with its key and its root; and how roots and intermediates are made.
//! Nothing that is signed outlives what signs it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use uuid::Uuid;

use super::{
    AuthorityError,
    files::{Files, Pair},
    identity,
};
use crate::{ids::UnixMs, limits};

/// An intermediate, and the root that it leads to.
pub(super) struct Signer {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) root: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) begins: UnixMs,
    pub(super) ends: UnixMs,
}

impl Signer {
    /// Reads a pair of files; `None` if none of the roots has signed it.
    pub(super) fn read(
        files: &Files,
        pair: Pair,
        roots: &[CertificateDer<'static>],
    ) -> Result<Option<Self>, AuthorityError> {
        let damaged = |reason: &str| files.damaged(pair.certificate, reason);
        let certificate = files.certificates(pair.certificate)?.swap_remove(0);
        let signed = |root: &&CertificateDer<'_>| identity::is_signed_by(&certificate, root);
        let Some(root) = roots.iter().find(signed).cloned() else { return Ok(None) };
        let key = files.key(pair.key)?;
        // What another key signs is good for nothing, and only who gets it would notice.
        if identity::public_key(&certificate).ok() != Some(key.subject_public_key_info()) {
            let reason = format!("it is not the key of {}", pair.certificate);
            return Err(files.damaged(pair.key, &reason));
        }
        let (begins, ends) =
            identity::life(&certificate).map_err(|err| damaged(&err.to_string()))?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|err| damaged(&err.to_string()))?;
        Ok(Some(Self { certificate, root, issuer, begins, ends }))
    }

    /// Returns when something ends that is signed now, for so long.
    pub(super) fn until(
        &self,
        now: SystemTime,
        life: Duration,
    ) -> Result<SystemTime, AuthorityError> {
        within(self.ends, now, life).ok_or(AuthorityError::Expired("intermediate"))
    }
}

/// Returns the end of a life that begins now, and at most `ends`; `None` if that is over.
fn within(ends: UnixMs, now: SystemTime, life: Duration) -> Option<SystemTime> {
    let ends = UNIX_EPOCH + Duration::from_millis(u64::try_from(ends.0).unwrap_or(0));
    (ends > now).then(|| ends.min(now + life))
}

pub(super) fn make_root(
    domain: &str,
    now: SystemTime,
) -> Result<(CertificateDer<'static>, KeyPair), AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Certificate)?;
    let name = format!("fts root of {domain}");
    let mut params = params(now - limits::CLOCK_SLACK, now + limits::ROOT_LIFE, &name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).map_err(AuthorityError::Certificate)?;
    Ok((root.der().clone(), key))
}

pub(super) fn make_intermediate(
    root: &CertificateDer<'static>,
    root_key: KeyPair,
    now: SystemTime,
) -> Result<(CertificateDer<'static>, KeyPair), AuthorityError> {
    // One that cannot be read has no life.
    let ends = identity::life(root).map_or(UnixMs(0), |(_, ends)| ends);
    let ends =
        within(ends, now, limits::INTERMEDIATE_LIFE).ok_or(AuthorityError::Expired("root"))?;
    let issuer = Issuer::from_ca_cert_der(root, root_key).map_err(AuthorityError::Certificate)?;
    let key = KeyPair::generate().map_err(AuthorityError::Certificate)?;
    // Its name tells it from the ones before.
    let name = format!("fts intermediate {}", Uuid::now_v7().simple());
    let mut params = params(now - limits::CLOCK_SLACK, ends, &name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let signed = params.signed_by(&key, &issuer).map_err(AuthorityError::Certificate)?;
    Ok((signed.der().clone(), key))
}

/// What every certificate has: its life, a random serial number, a name.
pub(super) fn params(
    begins: SystemTime,
    ends: SystemTime,
    name: &str,
) -> Result<CertificateParams, AuthorityError> {
    let moment = |at: SystemTime| {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs())
    };
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial)
        .map_err(|_| AuthorityError::Certificate(rcgen::Error::RemoteKeyError))?;
    // Positive, and of one length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = moment(begins);
    params.not_after = moment(ends);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    // A name in a certificate has 64 characters at most; ours is for people.
    let name: String = name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}
