//! Who this client is to its server: a key that never leaves this machine, and the certificates
//! that the server made for it. Both are one file of the state directory, so that neither is ever
//! without the other; the server's roots are another.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::{CertifiedKey, SingleCertAndKey},
};
use x509_parser::parse_x509_certificate;

use crate::{
    settings,
    tls::{self, TlsError},
    token::TokenId,
};

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Root(#[from] TlsError),
    #[error("cannot make a key: {0}")]
    Key(rcgen::Error),
    #[error("the server's certificate for this machine is not usable: {0}")]
    Unusable(String),
}

/// A key without a certificate.
#[derive(Debug)]
pub(super) struct NewKey {
    pair: KeyPair,
    /// PKCS #10, DER.
    pub(super) request: Bytes,
}

impl NewKey {
    /// Makes an ECDSA P-256 key, and a request that proves it. The server sets every field of the
    /// certificate, so the request names nothing.
    pub(super) fn generate() -> Result<Self, IdentityError> {
        Self::of(KeyPair::generate().map_err(IdentityError::Key)?)
    }

    /// The key of a join. It is kept until there is an identity, so that whoever has lost the
    /// server's answer asks with the same one again, and a token that is used up still answers.
    pub(super) fn to_join(dir: &Path, token: &TokenId) -> Result<Self, IdentityError> {
        let path = dir.join(JOINING);
        let failed = |problem: String| IdentityError::File { path: path.clone(), problem };
        let mark = format!("token {token}\n");
        if is_there(&path) {
            let text = settings::read_regular(&path).map_err(failed)?;
            // Of another join, or damaged: then it is replaced.
            let kept = text.strip_prefix(&mark).and_then(|key| KeyPair::from_pem(key).ok());
            if let Some(pair) = kept {
                return Self::of(pair);
            }
        }
        let new = Self::generate()?;
        write_private(&path, &(mark + &new.pair.serialize_pem()))?;
        Ok(new)
    }

    fn of(pair: KeyPair) -> Result<Self, IdentityError> {
        let request = CertificateParams::default().serialize_request(&pair);
        let request = request.map_err(IdentityError::Key)?;
        Ok(Self { request: Bytes::copy_from_slice(request.der()), pair })
    }

    /// Returns the identity that `chain` makes of it, leaf first.
    pub(super) fn with(self, chain: Vec<Bytes>) -> Result<Identity, IdentityError> {
        let chain = chain.into_iter().map(|each| CertificateDer::from(each.to_vec())).collect();
        Identity::new(chain, self.pair.serialize_der()).map_err(IdentityError::Unusable)
    }
}

/// A key with its certificates.
#[derive(Debug)]
pub(super) struct Identity {
    certified: CertifiedKey,
    text: Text,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// The file, as it is written; it holds the key.
struct Text(String);

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Text(…)")
    }
}

const IDENTITY: &str = "identity.pem";
const JOINING: &str = "joining.pem";
const SERVER_ROOTS: &str = "server-roots.pem";

impl Identity {
    fn new(chain: Vec<CertificateDer<'static>>, key: Vec<u8>) -> Result<Self, String> {
        let leaf = chain.first().ok_or("there is no certificate")?;
        let (_, parsed) = parse_x509_certificate(leaf).map_err(|err| err.to_string())?;
        let (begin, end) = (parsed.validity().not_before, parsed.validity().not_after);
        let (not_before, not_after) = (time(begin.timestamp()), time(end.timestamp()));
        let mut parts = vec![Pem::new("PRIVATE KEY", key.clone())];
        parts.extend(chain.iter().map(|each| Pem::new("CERTIFICATE", each.to_vec())));
        let text = Text(in_pem(&parts));
        let key = PrivateKeyDer::try_from(key).map_err(str::to_owned)?;
        let certified = CertifiedKey::from_der(chain, key, &tls::provider());
        let certified = certified.map_err(|err| err.to_string())?;
        Ok(Self { certified, text, not_before, not_after })
    }

    /// Reads the identity of a state directory; `None` if it never joined.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(IDENTITY);
        if !is_there(&path) {
            return Ok(None);
        }
        let failed = |problem: String| IdentityError::File { path: path.clone(), problem };
        let text = settings::read_regular(&path).map_err(failed)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let chain = chain.map_err(|err| failed(err.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes());
        let key = key.map_err(|err| failed(format!("the key: {err}")))?;
        Self::new(chain, key.secret_der().to_vec()).map(Some).map_err(failed)
    }

    /// Replaces the identity of a state directory; whatever happens, one of them is there whole.
    pub(super) fn store(&self, dir: &Path) -> Result<(), IdentityError> {
        write_private(&dir.join(IDENTITY), &self.text.0)
    }

    /// Returns what shows it in TLS handshakes.
    pub(super) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(SingleCertAndKey::from(self.certified.clone()))
    }

    pub(super) fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Returns when to renew it: after two thirds of its life, a tenth of that sooner or later, so
    /// that a fleet that joined at once does not come back at once.
    pub(super) fn renew_at(&self) -> SystemTime {
        let share = 2.0 / 3.0 * (0.9 + 0.2 * fastrand::f64());
        self.not_before + self.life().mul_f64(share)
    }
}

/// Forgets the key of a join that is over.
pub(super) fn forget_join(dir: &Path) -> Result<(), IdentityError> {
    remove(dir.join(JOINING))
}

/// Whether a state directory holds an identity.
pub(super) fn has_joined(dir: &Path) -> bool {
    is_there(&dir.join(IDENTITY))
}

/// Reads the roots that the server named; none, if it named none.
pub(super) fn load_roots(dir: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let path = dir.join(SERVER_ROOTS);
    if !is_there(&path) {
        return Ok(Vec::new());
    }
    Ok(tls::read_pem_certificates(&path)?)
}

/// Replaces the roots that the server named.
pub(super) fn store_roots(
    dir: &Path,
    roots: &[CertificateDer<'static>],
) -> Result<(), IdentityError> {
    let path = dir.join(SERVER_ROOTS);
    if !roots.is_empty() {
        let roots: Vec<_> =
            roots.iter().map(|root| Pem::new("CERTIFICATE", root.to_vec())).collect();
        return write_private(&path, &in_pem(&roots));
    }
    remove(path)
}

fn remove(path: PathBuf) -> Result<(), IdentityError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(IdentityError::Write { path, source })
        }
        _ => Ok(()),
    }
}

/// Replaces a file that only this user may read. It is on the disk when this returns, and at every
/// moment the old one or the new one is there whole.
pub(super) fn write_private(path: &Path, text: &str) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::Write { path: path.to_owned(), source };
    let write = || {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let fresh = path.with_extension("new");
        // What a crash left behind.
        match fs::remove_file(&fresh) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(failed)
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn in_pem(parts: &[Pem]) -> String {
    let unix = EncodeConfig::new().set_line_ending(LineEnding::LF);
    parts.iter().map(|part| pem::encode_config(part, unix)).collect()
}

fn time(seconds: i64) -> SystemTime {
    let seconds = u64::try_from(seconds).unwrap_or(0).min(TIME_SECONDS_MAX);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The end of the year 9999: times of certificates end there.
const TIME_SECONDS_MAX: u64 = 253_402_300_799;

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::tls::test_authority::{Authority, HOUR};

    fn chain(authority: &Authority, key: &NewKey) -> Vec<Bytes> {
        let chain = authority.client(&key.request, "spiffe://fts/client/x", HOUR, 2 * HOUR);
        chain.into_iter().map(|each| each.to_vec().into()).collect()
    }

    #[test]
    fn what_was_stored_is_loaded_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Identity::load(dir.path()).expect("nothing").is_none());
        let authority = Authority::new();
        // What a crash left is no trouble.
        fs::write(dir.path().join("identity.new"), "half").expect("written");
        for _ in 0..2 {
            let key = NewKey::generate().expect("random");
            let given = chain(&authority, &key);
            let identity = key.with(given.clone()).expect("good");
            identity.store(dir.path()).expect("stored");
            let loaded = Identity::load(dir.path()).expect("good").expect("there");
            let leaf: Vec<_> = loaded.certified.cert.iter().map(|each| each.to_vec()).collect();
            assert_eq!(leaf, given);
            assert_eq!(loaded.life(), 3 * HOUR);
            assert!(!format!("{identity:?} {loaded:?}").contains("PRIVATE"));
        }
        let names: Vec<_> = fs::read_dir(dir.path()).expect("there").collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let stat = fs::metadata(dir.path().join(IDENTITY)).expect("there");
        assert_eq!(stat.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_key_of_a_join_is_kept_until_it_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let [one, other]: [TokenId; 2] =
            ["0123456789abcdef", "fedcba9876543210"].map(|id| id.parse().expect("an id"));
        let key = |token| NewKey::to_join(dir.path(), token).expect("a key").pair.serialize_der();

        let first = key(&one);
        assert_eq!(key(&one), first, "of the same join");
        let second = key(&other);
        assert_ne!(second, first, "of another join");
        let stat = fs::metadata(dir.path().join(JOINING)).expect("there");
        assert_eq!(stat.permissions().mode() & 0o777, 0o600);
        fs::write(dir.path().join(JOINING), format!("token {other}\nhalf a key")).expect("written");
        assert_ne!(key(&other), second, "what is damaged is made anew");

        forget_join(dir.path()).expect("gone");
        forget_join(dir.path()).expect("gone before");
        assert!(!is_there(&dir.path().join(JOINING)));
    }

    #[test]
    fn a_certificate_of_another_key_is_none() {
        let authority = Authority::new();
        let (ours, theirs) = [(); 2].map(|()| NewKey::generate().expect("random")).into();
        let given = chain(&authority, &theirs);
        assert!(matches!(ours.with(given), Err(IdentityError::Unusable(_))));
        let ours = NewKey::generate().expect("random");
        assert!(ours.with(vec![]).is_err());
        let ours = NewKey::generate().expect("random");
        assert!(ours.with(vec![Bytes::from_static(b"hello")]).is_err());
    }

    #[test]
    fn a_file_that_is_no_identity_is_told_with_its_name_and_without_its_text() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in [
            "",
            "hunter2",
            "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n",
        ] {
            fs::write(dir.path().join(IDENTITY), text).expect("written");
            let err = Identity::load(dir.path()).expect_err("refused").to_string();
            assert!(err.contains(IDENTITY) && !err.contains("hunter2"), "{err}");
        }
    }

    #[test]
    fn it_is_renewed_after_two_thirds_of_its_life_and_not_all_at_once() {
        let authority = Authority::new();
        let key = NewKey::generate().expect("random");
        let given = chain(&authority, &key);
        let identity = key.with(given).expect("good");
        let times: Vec<_> = (0..100).map(|_| identity.renew_at()).collect();
        let share = |at: &SystemTime| {
            let age = at.duration_since(identity.not_before).expect("later");
            age.as_secs_f64() / identity.life().as_secs_f64()
        };
        assert!(times.iter().all(|at| (0.59..0.74).contains(&share(at))), "{times:?}");
        let (first, last) = (times.iter().min().expect("many"), times.iter().max().expect("many"));
        assert!(share(last) - share(first) > 0.05, "{times:?}");
    }
}
