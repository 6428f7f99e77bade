//! Certificates that the server never made, by somebody who has all of its keys.

use std::{path::PathBuf, time::Duration};

use fts::{ids::ClientId, server::authority::Authority};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use uuid::Uuid;

use crate::common::secured::{Identity, Secured, identity};

pub const DAY: i64 = 24 * 3600;

/// Who a forged certificate says that it is of, and where its signers are.
pub struct Forge {
    pki: PathBuf,
    client: ClientId,
    pub uid: Uuid,
}

/// What a leaf says.
pub struct Leaf {
    pub names: Vec<SanType>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    /// Seconds from now.
    pub begins: i64,
    pub ends: i64,
}

/// A signer, and what leads from it to a root.
pub struct Signer {
    pub issuer: Issuer<'static, KeyPair>,
    pub chain: Vec<CertificateDer<'static>>,
}

impl Forge {
    /// Of a client that has joined: only the certificate can be wrong.
    pub async fn new(secured: &Secured, client: &str) -> Self {
        let real = secured.identity(client).await;
        let record = secured.credentials().identity(&real.client).await.expect("read");
        let uid = record.expect("joined").uid;
        Self { pki: secured.pki(), client: real.client, uid }
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.pki.join(name)).expect("a file of the authority")
    }

    fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.text(name).as_bytes()).expect("a certificate")
    }

    fn key(&self, name: &str) -> KeyPair {
        KeyPair::from_pem(&self.text(name)).expect("a key")
    }

    pub fn uri(&self) -> String {
        uri_of("localhost", self.client.as_str(), &self.uid.simple().to_string())
    }

    /// Everything as it should be.
    pub fn leaf(&self) -> Leaf {
        Leaf {
            names: vec![uri(&self.uri())],
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            begins: -60,
            ends: 3600,
        }
    }

    pub fn intermediate(&self) -> Signer {
        let certificate = self.certificate("intermediate.pem");
        let issuer = Issuer::from_ca_cert_der(&certificate, self.key("intermediate.key"));
        Signer { issuer: issuer.expect("a signer"), chain: vec![certificate] }
    }

    /// Its name, and a key of our own.
    pub fn impostor(&self) -> Signer {
        let certificate = self.certificate("intermediate.pem");
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_ca_cert_der(&certificate, key).expect("a signer");
        Signer { issuer, chain: vec![certificate] }
    }

    pub fn root(&self) -> Signer {
        let root = self.certificate("roots.pem");
        let issuer = Issuer::from_ca_cert_der(&root, self.key("root.key")).expect("a signer");
        Signer { issuer, chain: Vec::new() }
    }

    /// One that has been there for a year: what it signed may have expired long ago.
    pub fn old_intermediate(&self) -> Signer {
        signer_of(&self.root(), &ca(-400 * DAY, 400 * DAY))
    }

    pub fn expired_intermediate(&self) -> Signer {
        signer_of(&self.root(), &ca(-400 * DAY, -DAY))
    }

    /// A signer made by a signer, which it may not.
    pub fn beneath_intermediate(&self) -> Signer {
        signer_of(&self.intermediate(), &ca(-60, 3600))
    }

    /// A client that signs.
    pub fn client_that_signs(&self) -> Signer {
        signer_of(&self.intermediate(), &self.params(&self.leaf()))
    }

    fn params(&self, leaf: &Leaf) -> CertificateParams {
        let mut params = params(leaf.begins, leaf.ends);
        params.subject_alt_names.clone_from(&leaf.names);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(&leaf.usages);
        params.distinguished_name.push(DnType::CommonName, self.client.as_str());
        params
    }

    pub fn sign(&self, leaf: &Leaf, signer: &Signer) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let made = self.params(leaf).signed_by(&key, &signer.issuer).expect("made");
        let chain = [vec![made.der().clone()], signer.chain.clone()].concat();
        identity(self.client.clone(), &key, chain)
    }

    pub fn self_signed(&self) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let signed = self.params(&self.leaf()).self_signed(&key).expect("signed");
        identity(self.client.clone(), &key, vec![signed.der().clone()])
    }

    /// Of an authority of the same name.
    pub fn of_another_authority(&self) -> Identity {
        let dir = tempfile::tempdir().expect("a directory");
        let names = ["localhost".to_owned()];
        let other = Authority::init(&dir.path().join("pki"), &names).expect("made");
        let life = Duration::from_secs(3600);
        let (key, issued) = crate::common::secured::issue(&other, &self.client, self.uid, life);
        identity(self.client.clone(), &key, issued.chain)
    }

    /// The server's own certificate.
    pub fn of_the_server(&self) -> Identity {
        let text = self.text("server.pem");
        let chain = CertificateDer::pem_slice_iter(text.as_bytes());
        let chain: Result<Vec<_>, _> = chain.collect();
        identity(self.client.clone(), &self.key("server.key"), chain.expect("certificates"))
    }
}

pub fn uri_of(domain: &str, client: &str, uid: &str) -> String {
    format!("spiffe://{domain}/client/{client}/{uid}")
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn signer_of(above: &Signer, params: &CertificateParams) -> Signer {
    let key = KeyPair::generate().expect("a key");
    let signed = params.signed_by(&key, &above.issuer).expect("signed").der().clone();
    let mut params = params.clone();
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let chain = [vec![signed], above.chain.clone()].concat();
    Signer { issuer: Issuer::new(params, key), chain }
}

fn ca(begins: i64, ends: i64) -> CertificateParams {
    let mut params = params(begins, ends);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, Uuid::new_v4().to_string());
    params
}

/// As of seconds from now.
fn params(begins: i64, ends: i64) -> CertificateParams {
    let now = fts::ids::UnixMs::now().0 / 1000;
    let moment = |at: i64| {
        let since = Duration::from_secs(u64::try_from(now + at).expect("after 1970"));
        rcgen::date_time_ymd(1970, 1, 1) + since
    };
    let mut params = CertificateParams::default();
    params.not_before = moment(begins);
    params.not_after = moment(ends);
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params
}
