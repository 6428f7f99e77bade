//! An authority for tests: a root, an intermediate below it, and leaves of every kind; and a server
//! that shows them and notes what it is sent.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{ALPN_HTTP2, provider, store};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Authority {
    pub(crate) root: CertificateDer<'static>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, as its owner shows it.
pub(crate) struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let root = CertifiedIssuer::self_signed(ca("root"), key()).expect("a root");
        let intermediate = CertifiedIssuer::signed_by(ca("intermediate"), key(), &root);
        Self { root: root.der().clone(), intermediate: intermediate.expect("signed") }
    }

    /// Returns a good certificate of a server, with `adjust` to spoil it.
    pub(crate) fn server(&self, name: &str, adjust: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        lasts(&mut params, HOUR, HOUR);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        adjust(&mut params);
        let key = key();
        let leaf = params.signed_by(&key, &self.intermediate).expect("signed");
        Shown { chain: self.chain(leaf.der().clone()), key }
    }

    /// Returns the chain of a client whose request is `csr`, good since and for so long.
    pub(crate) fn client(
        &self,
        csr: &[u8],
        uri: &str,
        since: Duration,
        for_now: Duration,
    ) -> Vec<CertificateDer<'static>> {
        self.client_with(csr, uri, |params| lasts(params, since, for_now))
    }

    pub(crate) fn expired_client(&self, csr: &[u8], uri: &str) -> Vec<CertificateDer<'static>> {
        self.client_with(csr, uri, lasted)
    }

    fn client_with(
        &self,
        csr: &[u8],
        uri: &str,
        adjust: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let mut request =
            CertificateSigningRequestParams::from_der(&csr.into()).expect("a request");
        let mut params = CertificateParams::default();
        adjust(&mut params);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("a URI"))];
        request.params = params;
        let leaf = request.signed_by(&self.intermediate).expect("signed");
        vec![leaf.der().clone(), self.intermediate.der().clone()]
    }

    fn chain(&self, leaf: CertificateDer<'static>) -> Vec<CertificateDer<'static>> {
        vec![leaf, self.intermediate.der().clone(), self.root.clone()]
    }

    /// Returns what a server needs to show `shown`, and to look at certificates of `clients`.
    pub(crate) fn acceptor(&self, shown: &Shown, clients: Clients) -> TlsAcceptor {
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3");
        let builder = match clients {
            Clients::Unasked => builder.with_no_client_auth(),
            Clients::Anybody => builder.with_client_cert_verifier(Arc::new(Anybody)),
            Clients::Ours => {
                let roots = Arc::new(store(std::slice::from_ref(&self.root)).expect("a root"));
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let mut config =
            builder.with_single_cert(shown.chain.clone(), shown.private()).expect("a pair");
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        Arc::new(config).into()
    }
}

/// Whose certificates a server asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clients {
    Unasked,
    /// Whoever has the key, and also who has nothing to show.
    Anybody,
    /// This authority's, and no others.
    Ours,
}

#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("only TLS 1.3 is spoken")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl Shown {
    pub(crate) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).expect("a key")
    }

    /// One that vouches for itself.
    pub(crate) fn self_signed(name: &str) -> Self {
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        lasts(&mut params, HOUR, HOUR);
        let key = key();
        let leaf = params.self_signed(&key).expect("signed");
        Self { chain: vec![leaf.der().clone()], key }
    }
}

/// Good since `since` ago, and for `for_now` from now.
pub(crate) fn lasts(params: &mut CertificateParams, since: Duration, for_now: Duration) {
    params.not_before = (SystemTime::now() - since).into();
    params.not_after = (SystemTime::now() + for_now).into();
}

/// Good in the past only.
pub(crate) fn lasted(params: &mut CertificateParams) {
    params.not_before = (SystemTime::now() - 2 * HOUR).into();
    params.not_after = (SystemTime::now() - HOUR).into();
}

fn key() -> KeyPair {
    KeyPair::generate().expect("random")
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    lasts(&mut params, HOUR, 24 * HOUR);
    params
}

/// Takes one connection: what was sent inside of TLS, and what outside if there was none.
pub(crate) struct OneShot {
    pub(crate) address: SocketAddr,
    heard: JoinSet<Vec<u8>>,
}

impl OneShot {
    pub(crate) async fn tls(acceptor: TlsAcceptor) -> Self {
        let (listener, address) = listen().await;
        let mut heard = JoinSet::new();
        heard.spawn(async move {
            let (socket, _) = listener.accept().await.expect("accepted");
            let mut heard = Vec::new();
            if let Ok(mut stream) = acceptor.accept(socket).await {
                // What came before the connection broke is in it as well.
                let _ = stream.read_to_end(&mut heard).await;
            }
            heard
        });
        Self { address, heard }
    }

    /// Answers whatever comes with `answer`, and knows no TLS.
    pub(crate) async fn plain(answer: Vec<u8>) -> Self {
        let (listener, address) = listen().await;
        let mut heard = JoinSet::new();
        heard.spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("accepted");
            let mut heard = vec![0; 16];
            socket.read_exact(&mut heard).await.expect("a ClientHello");
            socket.write_all(&answer).await.expect("sent");
            socket.shutdown().await.expect("closed");
            let _ = socket.read_to_end(&mut heard).await;
            heard
        });
        Self { address, heard }
    }

    pub(crate) async fn heard(mut self) -> Vec<u8> {
        self.heard.join_next().await.expect("a task").expect("no panic")
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}
