//! A real server that asks for TLS and credentials, and what is shown to it.

use std::{path::Path, sync::Arc, time::Duration};

use fts::{
    ids::{ClientId, OperatorName, UnixMs},
    route::{Proxies, Route},
    server::{
        access::{Role, Scope},
        administration::{Administration, Wanted},
        authority::{Authority, Issued},
        config::PKI,
        store::credentials::{Credentials, Joined, Joining},
        tls::Tls,
    },
    server_url::ServerUrl,
    tls::Trust,
    token::{Secret, Sha256, Token, TokenKind},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use tonic::{metadata::MetadataValue, transport::Channel};
use uuid::Uuid;

use super::server::{Setup, TestServer};

/// What certificates of clients in tests last, unless a test says otherwise.
pub const LIFE: Duration = Duration::from_secs(3600);

/// A server with an authority, and the keys to it.
pub struct Secured {
    pub server: TestServer,
    pub tls: Arc<Tls>,
    pub administration: Administration,
}

/// A key with a certificate: who a client is.
#[derive(Clone, Debug)]
pub struct Identity {
    pub client: ClientId,
    pub key: Arc<CertifiedKey>,
    /// PEM, as a client keeps it.
    pub pem: String,
}

impl Secured {
    pub async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    pub async fn start_with(setup: Setup) -> Self {
        let server = TestServer::start_secured(setup).await;
        let tls = server.tls.clone().expect("a secured server");
        let administration = Administration {
            credentials: Arc::clone(&server.credentials),
            coordinator: Some(Arc::clone(&server.coordinator)),
            tls: Some(Arc::clone(&tls)),
        };
        Self { server, tls, administration }
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.server.address.port())
    }

    pub fn credentials(&self) -> &Arc<dyn Credentials> {
        &self.server.credentials
    }

    pub fn root(&self) -> Sha256 {
        self.tls.root().expect("a certificate of its own authority")
    }

    pub fn pki(&self) -> std::path::PathBuf {
        self.server.dir().join(PKI)
    }

    /// Makes an operator, and returns its token.
    pub async fn operator(&self, name: &str, role: Role, scope: Scope) -> Secret {
        let name: OperatorName = name.parse().expect("a name");
        let made = self.administration.create_operator(name, role, scope, None).await;
        made.expect("made").1
    }

    /// Makes a join token for these ids.
    pub async fn join_token(&self, pattern: &str) -> Secret {
        let wanted = Wanted {
            patterns: vec![pattern.parse().expect("a pattern")],
            uses_max: 1,
            ttl: Duration::from_secs(600),
            needs_approval: false,
            replaces: false,
        };
        let made = self.administration.create_join_tokens(wanted, "test").await.expect("made");
        made.into_iter().next().expect("one").1
    }

    /// Makes a client that has joined.
    pub async fn identity(&self, client: &str) -> Identity {
        self.identity_for(client, LIFE).await
    }

    /// Makes one whose certificate lasts for so long.
    pub async fn identity_for(&self, client: &str, life: Duration) -> Identity {
        let client: ClientId = client.parse().expect("an id");
        let token = self.join_token(client.as_str()).await;
        let token = Token::parse(token.reveal(), TokenKind::Join).expect("a token");
        let uid = Uuid::new_v4();
        let (key, issued) = issue(&self.tls.authority(), &client, uid, life);
        let joining = Joining {
            token: token.id,
            client: client.clone(),
            uid,
            key: issued.key,
            begins: issued.begins,
            expires: issued.expires,
            host_name: "test-host".to_owned(),
        };
        let joined = self.credentials().join(&joining, UnixMs::now()).await.expect("written");
        assert!(matches!(joined, Joined::Done(_)), "{joined:?}");
        identity(client, &key, issued.chain)
    }

    /// Dials as this client, or as nobody.
    pub async fn channel(&self, identity: Option<&Identity>) -> Channel {
        let route = self.route(identity);
        let dialled = route.endpoint().connect_with_connector(route.connector()).await;
        dialled.expect("connected")
    }

    pub fn route(&self, identity: Option<&Identity>) -> Route {
        let server = ServerUrl::parse(&self.url()).expect("a URL");
        let identity =
            identity.map(|identity| Arc::new(identity.clone()) as Arc<dyn ResolvesClientCert>);
        Route::new(&server, &Trust::Pinned(self.root()), identity, &Proxies::off()).expect("a way")
    }
}

/// Signs a certificate for a new key.
pub fn issue(
    authority: &Authority,
    client: &ClientId,
    uid: Uuid,
    life: Duration,
) -> (KeyPair, Issued) {
    let key = KeyPair::generate().expect("a key");
    let request = CertificateParams::default().serialize_request(&key).expect("signed");
    let issued = authority.issue_client(request.der(), client, uid, life).expect("issued");
    (key, issued)
}

/// Puts a key and a chain together.
pub fn identity(client: ClientId, key: &KeyPair, chain: Vec<CertificateDer<'static>>) -> Identity {
    let der = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let pem = chain.iter().fold(key.serialize_pem(), |pem, certificate| {
        pem + &pem::encode(&pem::Pem::new("CERTIFICATE", certificate.to_vec()))
    });
    let key = CertifiedKey::from_der(chain, der, &fts::tls::provider()).expect("they fit");
    Identity { client, key: Arc::new(key), pem }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Adds a token to a request.
pub fn bearing<T>(token: &Secret, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value: MetadataValue<_> =
        format!("Bearer {}", token.reveal()).parse().expect("a header value");
    request.metadata_mut().insert("authorization", value);
    request
}

/// Makes the authority of a server on this directory.
pub fn open_tls(dir: &Path) -> Tls {
    let pki = dir.join(PKI);
    let authority = match Authority::open(&pki).expect("opened") {
        Some(authority) => authority,
        None => Authority::init(&pki, &["localhost".to_owned()]).expect("made"),
    };
    Tls::open(pki, authority, None).expect("TLS")
}
