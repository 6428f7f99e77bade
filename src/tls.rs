//! How a dialler knows a server: what it trusts, and why it refused, in words. TLS 1.3 only, HTTP/2
//! only, and no way to turn the verification off.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::{settings, token::Sha256};

#[cfg(all(test, feature = "client", feature = "server"))]
pub(crate) mod test_authority;

mod read_ahead;

pub use read_ahead::ReadAhead;

/// What both ends speak over TLS.
pub const ALPN_HTTP2: &[u8] = b"h2";

/// Which certificates a server's own must lead to.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The authorities that this machine trusts.
    System,
    /// These, and no others.
    Roots(Vec<CertificateDer<'static>>),
    /// The one with this SHA-256, which the server sends along.
    Pinned(Sha256),
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("the authorities of this machine"),
            Self::Pinned(root) => write!(f, "the root with the SHA-256 {root}"),
            Self::Roots(roots) => {
                let first = roots.first().map_or_else(String::new, |root| {
                    format!("the root with the SHA-256 {}", Sha256::of(root))
                });
                match roots.len() {
                    0 => f.write_str("nothing"),
                    1 => f.write_str(&first),
                    many => write!(f, "{first} and {} more", many - 1),
                }
            }
        }
    }
}

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error(
        "this machine has no root certificates{0}: install its ca-certificates, or give the \
         server's root with --ca FILE"
    )]
    NoSystemRoots(String),
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("{0:?} is no name that a certificate could have")]
    Name(String),
    #[error("a root certificate is not usable: {0}")]
    Root(rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

/// Returns how to begin TLS with a server: what is trusted, and who we are, if anybody.
pub fn client_config(
    trust: &Trust,
    identity: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?;
    let builder = match trust {
        Trust::System => builder.with_root_certificates(system_roots()?),
        Trust::Roots(roots) => builder.with_root_certificates(store(roots)?),
        Trust::Pinned(root) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedRoot { root: *root, provider })),
    };
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    // A resumed session would stand for certificates that may have changed since, on either end.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The one provider of cryptography. It is named each time, so that nothing depends on what else
/// in the process has set one.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    // Some systems keep ones that nobody can parse.
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |err| format!(" ({err})"));
        return Err(TlsError::NoSystemRoots(why));
    }
    Ok(store)
}

fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(TlsError::Root)?;
    }
    Ok(store)
}

/// Reads every certificate of a PEM file; at least one.
pub fn read_pem_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |problem: String| TlsError::File { path: path.to_owned(), problem };
    let text = settings::read_regular(path).map_err(failed)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let found = found.map_err(|err| failed(format!("not a PEM file: {err}")))?;
    if found.is_empty() {
        return Err(failed("there is no certificate in it".to_owned()));
    }
    Ok(found)
}

/// Trusts the one root that it knows by its hash, and verifies against it as against any other.
#[derive(Debug)]
struct PinnedRoot {
    root: Sha256,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // A leaf vouches for nothing, also if it is sent twice.
        let root = others.iter().find(|each| *each != leaf && Sha256::of(each) == self.root);
        let root = root.ok_or(CertificateError::UnknownIssuer)?;
        let mut store = RootCertStore::empty();
        store.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), self.provider.clone())
            .build()
            .map_err(|err| rustls::Error::General(err.to_string()))?
            .verify_server_cert(leaf, others, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A handshake that came to nothing. It says what was trusted, for [`explain`].
#[derive(Debug, thiserror::Error)]
#[error("the handshake failed")]
pub struct HandshakeError {
    trusted: String,
    source: io::Error,
}

impl HandshakeError {
    pub fn new(trusted: String, source: io::Error) -> Self {
        Self { trusted, source }
    }
}

/// Returns in words what people need to know, if TLS is why `err` came.
pub fn explain(err: &(dyn Error + 'static)) -> Option<String> {
    let mut trusted = None;
    let mut next = Some(err);
    while let Some(err) = next {
        if let Some(handshake) = err.downcast_ref::<HandshakeError>() {
            trusted = Some(handshake.trusted.as_str());
        }
        if let Some(err) = err.downcast_ref::<rustls::Error>() {
            return explain_rustls(err, trusted);
        }
        let io = err.downcast_ref::<io::Error>();
        if trusted.is_some() && io.is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
            return Some("the server hung up in the TLS handshake: is it http://?".to_owned());
        }
        // HTTP/2 keeps only the text of what ended its connection.
        if let Some(alert) = alert_in(&err.to_string()) {
            return explain_alert(alert);
        }
        // The source of an I/O error is the source of what is in it, which would be passed over.
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => err.source(),
        };
    }
    None
}

fn explain_rustls(err: &rustls::Error, trusted: Option<&str>) -> Option<String> {
    use rustls::Error as E;
    match err {
        E::InvalidCertificate(err) => explain_certificate(err, trusted),
        E::AlertReceived(alert) => explain_alert(*alert),
        E::InvalidMessage(_) => Some("the server speaks no TLS: is it http://?".to_owned()),
        E::PeerIncompatible(_) => Some(NO_TLS13.to_owned()),
        E::DecryptError => Some(
            "what the server sent was changed on the way: something between here and there \
             interferes"
                .to_owned(),
        ),
        _ => None,
    }
}

const NO_TLS13: &str = "the server does not speak TLS 1.3, and nothing older is spoken here";

fn explain_certificate(err: &CertificateError, trusted: Option<&str>) -> Option<String> {
    use CertificateError as E;
    let clock = |now: &UnixTime| {
        format!("if that is not so, the clock of this machine is wrong: it says {}", time(*now))
    };
    Some(match err {
        E::ExpiredContext { time: now, not_after } => {
            format!("the server's certificate expired at {}; {}", time(*not_after), clock(now))
        }
        E::NotValidYetContext { time: now, not_before } => format!(
            "the server's certificate is not valid before {}; {}",
            time(*not_before),
            clock(now)
        ),
        E::NotValidForNameContext { expected, presented } => {
            let names = if presented.is_empty() {
                "no name".to_owned()
            } else {
                presented.iter().map(|name| bare_name(name)).collect::<Vec<_>>().join(", ")
            };
            format!(
                "the server's certificate is not for {:?}, but for {}: is the address right?",
                expected.to_str(),
                names.escape_debug()
            )
        }
        E::UnknownIssuer | E::BadSignature => format!(
            "the server's certificate does not lead to what is trusted here ({}): give its root \
             with --ca FILE, or join again with a new token",
            trusted.unwrap_or("its known roots")
        ),
        E::InvalidPurposeContext { .. } | E::InvalidPurpose => {
            "the server's certificate is not one of a server".to_owned()
        }
        // That of an authority, among others, which is what most self-signed ones are.
        E::Other(why) => format!(
            "the server's certificate is one that no server may have ({:?}): is it self-signed?",
            why.0
        ),
        _ => return None,
    })
}

/// Returns `x` of `DnsName("x")`, as webpki writes it.
fn bare_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

fn explain_alert(alert: AlertDescription) -> Option<String> {
    use AlertDescription as A;
    let text = match alert {
        A::CertificateRequired | A::NoCertificate => {
            "the server wants a certificate of this machine, and has seen none: \
             run fts-client join"
        }
        A::UnknownCA => {
            "the server does not know the authority of this machine's certificate: \
             run fts-client join"
        }
        A::CertificateExpired => {
            "the server says that this machine's certificate has expired: run fts-client join, \
             and look at the clocks of both"
        }
        A::CertificateRevoked | A::AccessDenied => {
            "the server has revoked this machine's certificate"
        }
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate => {
            "the server refuses this machine's certificate: run fts-client join"
        }
        A::UnrecognisedName => "the server does not go by this name: is the address right?",
        A::NoApplicationProtocol => "the server speaks no HTTP/2: is it an fts-server?",
        A::ProtocolVersion | A::HandshakeFailure | A::InsufficientSecurity => NO_TLS13,
        _ => return None,
    };
    Some(text.to_owned())
}

/// Returns the alert that rustls names in `text`.
fn alert_in(text: &str) -> Option<AlertDescription> {
    use AlertDescription as A;
    let (_, rest) = text.rsplit_once("received fatal alert: ")?;
    let known = [
        A::CertificateRequired,
        A::NoCertificate,
        A::UnknownCA,
        A::CertificateExpired,
        A::CertificateRevoked,
        A::AccessDenied,
        A::BadCertificate,
        A::CertificateUnknown,
        A::UnsupportedCertificate,
        A::NoApplicationProtocol,
    ];
    known.into_iter().find(|alert| rest.starts_with(&format!("{alert:?}")))
}

fn time(at: UnixTime) -> humantime::Rfc3339Timestamp {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(at.as_secs().min(TIME_SECONDS_MAX));
    humantime::format_rfc3339_seconds(at)
}

/// The end of the year 9999, which is the last that can be written.
const TIME_SECONDS_MAX: u64 = 253_402_300_799;

#[cfg(all(test, feature = "client", feature = "server"))]
mod tests;
