//! The server's own certificate authority, in `DATA_DIR/pki`: a root, an intermediate that signs,
//! and the server's certificate. Every field of a certificate is set here; of a request only the
//! public key is taken, once its signature has proved that the caller holds the key.
//!
//! ```text
//! roots.pem              whom this server trusts for certificates of clients
//! root.key               signs intermediates only: take it away, and keep it offline
//! intermediate.pem       intermediate.key: what signs; the current root is the one of this
//! intermediate.old.pem   intermediate.old.key: during a rotation, what signs the server's own
//! server.pem             server.key: the leaf, the intermediate, and the root
//! names                  what the server is called, one a line; the first is the trust domain
//! ```
//!
//! A rotation trusts the new root beside the old one, and has begun once the new intermediate is in
//! its place. Until it is finished the server's own certificate is of the old root, also if it
//! is renewed: that is the one that everybody knows.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType,
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
mod signer;

pub(super) use identity::life;
pub use identity::{ClientCertificate, IdentityError};

use files::{Files, INTERMEDIATE, OLD_INTERMEDIATE, SERVER};
use signer::{Signer, make_intermediate, make_root, params};

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
    /// What is asked for does not go with the state of the authority.
    #[error("{0}")]
    WrongState(String),
    #[error("the authority's {0} has expired: see fts-server ca --help")]
    Expired(&'static str),
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
    signer: Signer,
    /// During a rotation, what signed before it.
    old: Option<Signer>,
    is_rotating: bool,
}

/// A certificate of a client.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Sha256,
    pub begins: UnixMs,
    pub expires: UnixMs,
}

impl Authority {
    /// Makes the authority of a new server that is called by these names, and its certificate. It
    /// is made under another name, so that a crash leaves all of it or nothing; the caller sees to
    /// it that nobody else does the same.
    pub fn init(dir: &Path, names: &[String]) -> Result<Self, AuthorityError> {
        let names = names.iter().map(|name| checked_name(name)).collect::<Result<Vec<_>, _>>()?;
        let files = Files::begin(dir)?;
        let domain = names.first().map_or("fts", String::as_str);
        let now = SystemTime::now();
        let (root, root_key) = make_root(domain, now)?;
        files.write("root.key", root_key.serialize_pem().as_bytes())?;
        files.write_certificates("roots.pem", std::slice::from_ref(&root))?;
        let (intermediate, key) = make_intermediate(&root, root_key, now)?;
        files.write_pair(INTERMEDIATE, &key, &[intermediate])?;
        files.write("names", (names.join("\n") + "\n").as_bytes())?;
        let made = Self::open(files.dir())?.ok_or_else(|| files.damaged("", "it is gone"))?;
        made.issue_server(now, &made.signer)?;
        let files = files.end(dir)?;
        Self::open(dir)?.ok_or_else(|| files.damaged("", "it is gone"))
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
        for pair in [INTERMEDIATE, OLD_INTERMEDIATE, SERVER] {
            files.settle(pair)?;
        }
        let mut roots = files.certificates("roots.pem")?;
        let signer = Signer::read(&files, INTERMEDIATE, &roots)?
            .ok_or_else(|| files.damaged("intermediate.pem", "none of roots.pem has signed it"))?;
        files.settle_root_key(&signer.root)?;
        let old = match files.read_if_there(OLD_INTERMEDIATE.certificate)? {
            // Without its root it is left of a rotation that was finished.
            Some(_) => Signer::read(&files, OLD_INTERMEDIATE, &roots)?,
            None => None,
        };
        // If it is of the current root, a crash broke the rotation off before it began.
        let has_begun = old.as_ref().is_none_or(|old| old.root != signer.root);
        let is_rotating = roots.len() > 1 && has_begun;
        let old = old.filter(|_| is_rotating);
        roots.sort_by_key(|root| *root != signer.root);
        let domain = trust_domain(names.first().map_or("fts", String::as_str));
        Ok(Some(Self { files, domain, names, roots, signer, old, is_rotating }))
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
        let ends = self.signer.until(now, life)?;
        let mut params = params(now - slack, ends, client.as_str())?;
        params.subject_alt_names = vec![SanType::URI(
            identity::uri(&self.domain, client, uid)
                .try_into()
                .map_err(AuthorityError::Certificate)?,
        )];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        // Nothing that was asked for stays.
        request.params = params;
        let leaf = request.signed_by(&self.signer.issuer).map_err(refused)?;
        let leaf = leaf.der().clone();
        let certificate = self.identify(&leaf).map_err(|err| {
            AuthorityError::Request(format!("what was made of it does not read back: {err}"))
        })?;
        Ok(Issued {
            key: certificate.key,
            begins: certificate.begins,
            expires: certificate.expires,
            chain: vec![leaf, self.signer.certificate.clone()],
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
        // While there is an old root, it is the one that everybody knows.
        let old = self.old.as_ref().filter(|old| old.until(now, Duration::ZERO).is_ok());
        let signer = old.unwrap_or(&self.signer);
        // One that ends no later is of no use, and would be made again at each look.
        if signer.ends <= ends {
            return Ok(false);
        }
        self.issue_server(now, signer)?;
        Ok(true)
    }

    fn issue_server(&self, now: SystemTime, signer: &Signer) -> Result<(), AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Certificate)?;
        let name = self.names.first().map_or("fts", String::as_str);
        let ends = signer.until(now, limits::SERVER_CERTIFICATE_LIFE)?;
        let mut params = params(now - limits::CLOCK_SLACK, ends, name)?;
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
        let leaf = params.signed_by(&key, &signer.issuer).map_err(AuthorityError::Certificate)?;
        let chain = [leaf.der().clone(), signer.certificate.clone(), signer.root.clone()];
        self.files.write_pair(SERVER, &key, &chain)
    }

    /// Begins to sign with a new root, made here. The old root stays trusted until `finish`, and
    /// every join and renewal hands out both. One rotation at a time.
    pub fn rotate(&self) -> Result<Self, AuthorityError> {
        if self.is_rotating {
            let text = "a rotation is under way: finish it first";
            return Err(AuthorityError::WrongState(text.to_owned()));
        }
        let now = SystemTime::now();
        let (root, root_key) = make_root(&self.domain, now)?;
        let root_pem = root_key.serialize_pem();
        let (intermediate, key) = make_intermediate(&root, root_key, now)?;
        let old = &self.signer;
        let old_key = self.files.key(INTERMEDIATE.key)?;
        self.files.write_pair(
            OLD_INTERMEDIATE,
            &old_key,
            std::slice::from_ref(&old.certificate),
        )?;
        // Trusted before anything is signed with it.
        self.files.write_certificates("roots.pem", &[old.root.clone(), root.clone()])?;
        self.files.write_root_key(&root_pem)?;
        // With this it has begun; what follows is done by whoever opens it, or is for people.
        self.files.write_pair(INTERMEDIATE, &key, &[intermediate])?;
        self.files.write_certificates("roots.pem", &[root, old.root.clone()])?;
        self.reopened()
    }

    /// Ends a rotation: the server's certificate is of the current root from now on, and no other
    /// root is trusted.
    pub fn finish(&self) -> Result<Self, AuthorityError> {
        if !self.is_rotating {
            // Of one whose end a crash broke off: its key is good for nothing any more.
            self.files.remove(OLD_INTERMEDIATE)?;
            let text = "no rotation is under way: begin one first";
            return Err(AuthorityError::WrongState(text.to_owned()));
        }
        self.issue_server(SystemTime::now(), &self.signer)?;
        self.files.write_certificates("roots.pem", &self.roots[..1])?;
        self.files.remove(OLD_INTERMEDIATE)?;
        self.reopened()
    }

    /// Makes the intermediate anew, of the current root, whose key must be there.
    pub fn renew_intermediate(&self) -> Result<Self, AuthorityError> {
        let path = self.files.path("root.key");
        let wrong = |what: &str| AuthorityError::WrongState(format!("{} {what}", path.display()));
        if self.files.read_if_there("root.key")?.is_none() {
            return Err(wrong("is not there: put it back for this, and take it away again"));
        }
        let root_key = self.files.key("root.key")?;
        let root = &self.signer.root;
        if identity::public_key(root).ok() != Some(root_key.subject_public_key_info()) {
            return Err(wrong("is not the key of the current root"));
        }
        let (intermediate, key) = make_intermediate(root, root_key, SystemTime::now())?;
        self.files.write_pair(INTERMEDIATE, &key, &[intermediate])?;
        self.reopened()
    }

    /// Returns when the intermediate expires.
    pub fn expires(&self) -> UnixMs {
        self.signer.ends
    }

    /// Whether less than a fifth of the intermediate's life is left.
    pub fn is_ageing(&self, now: UnixMs) -> bool {
        let Signer { begins, ends, .. } = &self.signer;
        ends.0 - now.0 < (ends.0 - begins.0) / 5
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
