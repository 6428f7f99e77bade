//! TLS as the server speaks it: which certificate it shows, whose certificates it takes, and both
//! read again when their files change. Connections that stand keep what they began with.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, UNIX_EPOCH},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use super::authority::{self, Authority, AuthorityError};
use crate::{ids::UnixMs, limits, token::Sha256};

/// Why the server cannot speak TLS. What runs already goes on with what it has.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerTlsError {
    #[error("cannot read {path}: {reason}")]
    Unreadable { path: PathBuf, reason: String },
    #[error("the certificate {cert} and the key {key} are of no use: {reason}")]
    Useless { cert: PathBuf, key: PathBuf, reason: TlsError },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("cannot check certificates of clients: {0}")]
    Verifier(String),
}

/// The server's certificate and key, if they are not its authority's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnCertificate {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// What TLS is spoken with, now.
pub struct Tls {
    pki: PathBuf,
    own: Option<OwnCertificate>,
    current: Mutex<Current>,
    /// Held by whoever changes the files, or takes what they hold; when it last warned.
    changing: Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Current {
    config: Arc<ServerConfig>,
    authority: Arc<Authority>,
    /// Of the files that it was made of.
    seen: Sha256,
}

impl Tls {
    /// `pki` holds an authority.
    pub fn open(
        pki: PathBuf,
        authority: Authority,
        own: Option<OwnCertificate>,
    ) -> Result<Self, ServerTlsError> {
        let current = load(&pki, Arc::new(authority), own.as_ref())?;
        Ok(Self { pki, own, current: Mutex::new(current), changing: Mutex::new(None) })
    }

    pub fn config(&self) -> Arc<ServerConfig> {
        self.now().config
    }

    pub fn authority(&self) -> Arc<Authority> {
        self.now().authority
    }

    /// What a token holds to know this server by; `None`: the certificate is of another authority,
    /// which the roots of the system know.
    pub fn root(&self) -> Option<Sha256> {
        self.own.is_none().then(|| self.served_root()).flatten()
    }

    /// The root that the server's certificate leads to: during a rotation the old one.
    fn served_root(&self) -> Option<Sha256> {
        let authority = self.authority();
        let (cert, _) = authority.server_files();
        let chain = certificates(&cert).ok()?;
        chain.last().map(|root| Sha256::of(root))
    }

    /// The roots that clients are told to trust.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        if self.own.is_some() {
            return Vec::new();
        }
        self.authority().roots().iter().map(|root| root.to_vec()).collect()
    }

    /// Reads the files again, and renews the server's certificate when it is time: what is wrong
    /// with the one does not keep the other from being done. Returns whether anything is new.
    /// Blocks.
    pub fn look(&self) -> Result<bool, ServerTlsError> {
        let mut warned = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.take();
        let renewed = self.renew();
        self.warn(&mut warned);
        match (taken, renewed) {
            (Ok(taken), Ok(renewed)) => Ok(taken || renewed),
            (Err(err), Ok(_)) => Err(err),
            (taken, Err(err)) => {
                let text = "could not renew the server's certificate";
                tracing::error!(error = &err as &dyn std::error::Error, "{text}");
                taken
            }
        }
    }

    /// Changes the authority, and takes what came of it. Blocks.
    pub fn change(
        &self,
        change: impl FnOnce(&Authority) -> Result<Authority, AuthorityError>,
    ) -> Result<Arc<Authority>, ServerTlsError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // As the files have it: somebody may have changed them since they were looked at.
        change(&self.read()?)?;
        self.take()?;
        Ok(self.authority())
    }

    fn read(&self) -> Result<Authority, ServerTlsError> {
        Authority::open(&self.pki)?.ok_or_else(|| ServerTlsError::Unreadable {
            path: self.pki.clone(),
            reason: "the authority is gone".to_owned(),
        })
    }

    /// Uses what the files hold now; returns whether that is new.
    fn take(&self) -> Result<bool, ServerTlsError> {
        if fingerprint(&self.pki, self.own.as_ref()) == self.now().seen {
            return Ok(false);
        }
        let new = load(&self.pki, Arc::new(self.read()?), self.own.as_ref())?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(true)
    }

    fn renew(&self) -> Result<bool, ServerTlsError> {
        if self.own.is_some() || !self.authority().renew_server()? {
            return Ok(false);
        }
        tracing::info!("renewed the server's certificate");
        self.take()
    }

    fn warn(&self, warned: &mut Option<Instant>) {
        let authority = self.authority();
        if authority.is_ageing(UnixMs::now())
            && warned.is_none_or(|at| at.elapsed() >= limits::AGEING_WARNING)
        {
            *warned = Some(Instant::now());
            let expires = UNIX_EPOCH
                + Duration::from_millis(u64::try_from(authority.expires().0).unwrap_or(0));
            let expires = humantime::format_rfc3339_seconds(expires);
            let text = "the intermediate expires soon: put root.key back, run fts-server ca renew";
            tracing::warn!(%expires, "{text}");
        }
    }

    fn now(&self) -> Current {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn load(
    pki: &std::path::Path,
    authority: Arc<Authority>,
    own: Option<&OwnCertificate>,
) -> Result<Current, ServerTlsError> {
    // Before the files are read: what changes meanwhile is seen the next time.
    let seen = fingerprint(pki, own);
    let (cert, key) = match own {
        Some(own) => (own.cert.clone(), own.key.clone()),
        None => authority.server_files(),
    };
    let chain = certificates(&cert)?;
    let unreadable = |reason: String| ServerTlsError::Unreadable { path: key.clone(), reason };
    let text = std::fs::read(&key).map_err(|err| unreadable(err.to_string()))?;
    // What the parser says could quote the key.
    let secret = PrivateKeyDer::from_pem_slice(&text);
    let secret = secret.map_err(|_| unreadable("it holds no private key".to_owned()))?;
    let verifier = RenewableClients::new(authority.roots())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|err| ServerTlsError::Verifier(err.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain, secret)
        .map_err(|reason| ServerTlsError::Useless { cert, key, reason })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // No resumption: who comes is checked each time, and there is no ticket to steal.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Current { config: Arc::new(config), authority, seen })
}

/// Returns what tells two states of the files apart: their content, since times can be equal.
fn fingerprint(pki: &std::path::Path, own: Option<&OwnCertificate>) -> Sha256 {
    let of = |path: &std::path::Path| {
        // A file that cannot be read is told about when it is loaded.
        Sha256::of(&std::fs::read(path).unwrap_or_default()).to_string()
    };
    let names = ["roots.pem", "intermediate.pem", "server.pem", "server.key"];
    let mut all: String = names.iter().map(|name| of(&pki.join(name))).collect();
    if let Some(own) = own {
        all = all + &of(&own.cert) + &of(&own.key);
    }
    Sha256::of(all.as_bytes())
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, ServerTlsError> {
    let unreadable = |reason: String| ServerTlsError::Unreadable { path: path.to_owned(), reason };
    let text = std::fs::read(path).map_err(|err: io::Error| unreadable(err.to_string()))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let read = read.map_err(|err| unreadable(format!("{err:?}")))?;
    if read.is_empty() {
        return Err(unreadable("it holds no certificate".to_owned()));
    }
    Ok(read)
}

/// Takes certificates that lead to our roots, and none at all. One that expired a while ago is
/// taken as well, because its owner may renew it; nothing else is granted to it.
#[derive(Debug)]
struct RenewableClients {
    inner: Arc<dyn ClientCertVerifier>,
}

impl RenewableClients {
    fn new(roots: &[CertificateDer<'static>]) -> Result<Self, ServerTlsError> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).map_err(|err| ServerTlsError::Verifier(err.to_string()))?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|err| ServerTlsError::Verifier(err.to_string()))?;
        Ok(Self { inner })
    }
}

impl ClientCertVerifier for RenewableClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let err = match self.inner.verify_client_cert(end_entity, intermediates, now) {
            Err(err) => err,
            verified => return verified,
        };
        let TlsError::InvalidCertificate(CertificateError::ExpiredContext { .. }) = &err else {
            return Err(err);
        };
        // Of the leaf itself: if that is good still, it is its signer that has expired.
        let ended = authority::life(end_entity).ok().map(|(_, ends)| ends.0 / 1000);
        let Some(ended) = ended.and_then(|ended| u64::try_from(ended).ok()) else {
            return Err(err);
        };
        let ago = now.as_secs().checked_sub(ended);
        if ago.is_none_or(|ago| ago > limits::RENEW_WITHIN.as_secs()) {
            return Err(err);
        }
        // As of its last second everything else must hold.
        let then = UnixTime::since_unix_epoch(Duration::from_secs(ended));
        self.inner.verify_client_cert(end_entity, intermediates, then)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
