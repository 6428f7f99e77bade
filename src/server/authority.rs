//! The server's own certificate authority, in `DATA_DIR/pki`: a root, an intermediate that signs,
//! and the server's certificate. Every field of a certificate is set here; of a request only the
//! public key is taken, once its signature has proved that the caller holds the key.
//!
//! ```text
//! roots.pem          whom this server trusts for certificates of clients; the first one is current
//! root.key           signs intermediates only: take it away, and keep it offline
//! intermediate.pem   intermediate.key
//! server.pem         server.key      the leaf, the intermediate, and the root
//! names              what the server is called, one name a line; the first is the trust domain
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _,
    SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use uuid::Uuid;

use crate::{
    ids::{ClientId, UnixMs},
    limits,
    token::Sha256,
};

mod files;
mod identity;

pub(super) use identity::life;
pub use identity::{ClientCertificate, IdentityError};

use files::Files;

/// Why the authority cannot do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    #[error("cannot use {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{0} is there already: this data directory has an authority")]
    Exists(PathBuf),
    #[error("{0:?} is neither a host name nor an address")]
    Name(String),
    #[error("the certificate request is not good: {0}")]
    Request(String),
    #[error("cannot make a certificate: {0}")]
    Certificate(#[source] rcgen::Error),
}

/// What signs.
pub struct Authority {
    files: Files,
    domain: String,
    names: Vec<String>,
    /// The first one is current.
    roots: Vec<CertificateDer<'static>>,
    intermediate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate of a client.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Sha256,
    pub expires: UnixMs,
}

impl Authority {
    /// Makes the authority of a new server that is called by these names, and its certificate.
    pub fn init(dir: &Path, names: &[String]) -> Result<Self, AuthorityError> {
        let names = names.iter().map(|name| checked_name(name)).collect::<Result<Vec<_>, _>>()?;
        let files = Files::create(dir)?;
        let domain = names.first().map_or("fts", String::as_str);
        let now = SystemTime::now();
        let (root, root_key) = make_root(domain, now)?;
        files.write("root.key", root_key.serialize_pem().as_bytes())?;
        files.write_certificates("roots.pem", std::slice::from_ref(&root))?;
        let (intermediate, key) = make_intermediate(&root, root_key, now)?;
        files.write("intermediate.key", key.serialize_pem().as_bytes())?;
        files.write_certificates("intermediate.pem", &[intermediate])?;
        // Last: what has names is whole.
        files.write("names", (names.join("\n") + "\n").as_bytes())?;
        let authority =
            Self::open(dir)?.ok_or_else(|| files.damaged("names", "it is not there"))?;
        authority.issue_server(now)?;
        Ok(authority)
    }

    /// Opens the authority in `dir`; `None` if there is no such directory. What is left of an
    /// authority is an error, and not none: without one the server would ask for no credentials.
    pub fn open(dir: &Path) -> Result<Option<Self>, AuthorityError> {
        match dir.symlink_metadata() {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let files = Files::open(dir);
        let names: Vec<String> = files.read("names")?.lines().map(str::to_owned).collect();
        if names.is_empty() {
            return Err(files.damaged("names", "it names nothing"));
        }
        files.settle("intermediate.key", "intermediate.pem")?;
        files.settle("server.key", "server.pem")?;
        let roots = files.certificates("roots.pem")?;
        let intermediate = files.certificates("intermediate.pem")?.swap_remove(0);
        let key = files.key("intermediate.key")?;
        // What another key signs is good for nothing, and only who gets it would notice.
        if identity::public_key(&intermediate).ok() != Some(key.subject_public_key_info()) {
            let reason = "it is not the key of intermediate.pem";
            return Err(files.damaged("intermediate.key", reason));
        }
        let issuer = Issuer::from_ca_cert_der(&intermediate, key)
            .map_err(|err| files.damaged("intermediate.pem", &err.to_string()))?;
        let domain = trust_domain(names.first().map_or("fts", String::as_str));
        Ok(Some(Self { files, domain, names, roots, intermediate, issuer }))
    }

    /// Whom the server trusts for certificates of clients.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// What joins hold to know the server by.
    pub fn root(&self) -> Sha256 {
        Sha256::of(&self.roots[0])
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Where the server's own certificate and key are.
    pub fn server_files(&self) -> (PathBuf, PathBuf) {
        (self.files.path("server.pem"), self.files.path("server.key"))
    }

    /// Reads who a certificate that leads to one of the roots is of.
    pub fn identify(&self, leaf: &CertificateDer<'_>) -> Result<ClientCertificate, IdentityError> {
        ClientCertificate::read(leaf, &self.domain, &self.roots)
    }

    /// Returns the SHA-256 of the public key of `request` (PKCS #10, DER), whose signature proves
    /// that the caller holds the key.
    pub fn requested_key(request: &[u8]) -> Result<Sha256, AuthorityError> {
        Ok(Sha256::of(&checked_request(request)?.public_key.subject_public_key_info()))
    }

    /// Signs a client's certificate for the public key of `request` (PKCS #10, DER).
    pub fn issue_client(
        &self,
        request: &[u8],
        client: &ClientId,
        uid: Uuid,
        life: Duration,
    ) -> Result<Issued, AuthorityError> {
        let mut request = checked_request(request)?;
        let now = SystemTime::now();
        // Of a short life only a little: clients renew by how long a certificate is good in all.
        let slack = limits::CLOCK_SLACK.min(life / 10);
        let mut params = params(now - slack, now + life, client.as_str())?;
        params.subject_alt_names = vec![SanType::URI(
            identity::uri(&self.domain, client, uid)
                .try_into()
                .map_err(AuthorityError::Certificate)?,
        )];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // Nothing that was asked for stays.
        request.params = params;
        let leaf = request.signed_by(&self.issuer).map_err(refused)?;
        let leaf = leaf.der().clone();
        let certificate = self.identify(&leaf).map_err(|err| {
            AuthorityError::Request(format!("what was made of it does not read back: {err}"))
        })?;
        Ok(Issued {
            key: certificate.key,
            expires: certificate.expires,
            chain: vec![leaf, self.intermediate.clone()],
        })
    }

    /// Makes the server's own certificate anew if two thirds of its life are over. Returns whether
    /// it did.
    pub fn renew_server(&self) -> Result<bool, AuthorityError> {
        let now = SystemTime::now();
        let leaf = self.files.certificates("server.pem")?.swap_remove(0);
        let (begins, ends) =
            life(&leaf).map_err(|err| self.files.damaged("server.pem", &err.to_string()))?;
        let due = begins.0 + (ends.0 - begins.0) / 3 * 2;
        if UnixMs::now().0 < due {
            return Ok(false);
        }
        self.issue_server(now)?;
        Ok(true)
    }

    fn issue_server(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Certificate)?;
        let name = self.names.first().map_or("fts", String::as_str);
        let mut params =
            params(now - limits::CLOCK_SLACK, now + limits::SERVER_CERTIFICATE_LIFE, name)?;
        // And as whoever is on this machine calls it.
        let own = ["localhost", "127.0.0.1", "::1"].into_iter();
        for name in self.names.iter().map(String::as_str).chain(own) {
            let name = match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(AuthorityError::Certificate)?),
            };
            if !params.subject_alt_names.contains(&name) {
                params.subject_alt_names.push(name);
            }
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Certificate)?;
        let chain = [leaf.der().clone(), self.intermediate.clone(), self.roots[0].clone()];
        self.files.write_pair(("server.key", &key), ("server.pem", &chain))
    }

    /// Begins to sign with a new root, made here. The old roots stay trusted until `finish`: the
    /// server keeps its certificate, so that who knows only the old root still knows it, and every
    /// join and renewal hands out both.
    pub fn rotate(&self) -> Result<Self, AuthorityError> {
        let now = SystemTime::now();
        let (root, root_key) = make_root(&self.domain, now)?;
        let root_pem = root_key.serialize_pem();
        let (intermediate, key) = make_intermediate(&root, root_key, now)?;
        let mut roots = vec![root];
        roots.extend_from_slice(&self.roots);
        roots.truncate(limits::ROOTS_MAX);
        self.files.write_certificates("roots.pem", &roots)?;
        self.files.write("root.key", root_pem.as_bytes())?;
        self.files.write_pair(("intermediate.key", &key), ("intermediate.pem", &[intermediate]))?;
        self.reopened()
    }

    /// Ends a rotation: the server's certificate is of the current root from now on, and no other
    /// root is trusted.
    pub fn finish(&self) -> Result<Self, AuthorityError> {
        self.issue_server(SystemTime::now())?;
        self.files.write_certificates("roots.pem", &self.roots[..1])?;
        self.reopened()
    }

    fn reopened(&self) -> Result<Self, AuthorityError> {
        Self::open(self.files.dir())?.ok_or_else(|| self.files.damaged("", "it is gone"))
    }
}

/// Reads a request whose signature is of the key that it holds.
fn checked_request(request: &[u8]) -> Result<CertificateSigningRequestParams, AuthorityError> {
    if request.len() > limits::CERTIFICATE_REQUEST_BYTES_MAX {
        return Err(AuthorityError::Request("it is too long".to_owned()));
    }
    let request = CertificateSigningRequestDer::from(request);
    CertificateSigningRequestParams::from_der(&request).map_err(refused)
}

#[allow(clippy::needless_pass_by_value)] // the end of an error's way
fn refused(err: rcgen::Error) -> AuthorityError {
    AuthorityError::Request(err.to_string())
}

fn make_root(
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

fn make_intermediate(
    root: &CertificateDer<'static>,
    root_key: KeyPair,
    now: SystemTime,
) -> Result<(CertificateDer<'static>, KeyPair), AuthorityError> {
    let issuer = Issuer::from_ca_cert_der(root, root_key).map_err(AuthorityError::Certificate)?;
    let key = KeyPair::generate().map_err(AuthorityError::Certificate)?;
    // Its name tells it from the ones before.
    let name = format!("fts intermediate {}", Uuid::now_v7().simple());
    let mut params = params(now - limits::CLOCK_SLACK, now + limits::INTERMEDIATE_LIFE, &name)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let signed = params.signed_by(&key, &issuer).map_err(AuthorityError::Certificate)?;
    Ok((signed.der().clone(), key))
}

/// What every certificate has: its life, a random serial number, a name.
fn params(
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

/// A host name or an address, as a certificate and a URL have it.
fn checked_name(name: &str) -> Result<String, AuthorityError> {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    let name = name.to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(name)
    } else {
        Err(AuthorityError::Name(name))
    }
}

/// A trust domain is what a URI can have for a host without brackets.
fn trust_domain(name: &str) -> String {
    name.replace(':', "-")
}

#[cfg(test)]
mod tests;
