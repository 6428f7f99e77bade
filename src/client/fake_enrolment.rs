//! A server in TLS for the client's tests: it makes certificates as the test wants them, notes who
//! shows which, and is a [`FakeServer`] for the rest.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::{io::copy_bidirectional, net::TcpListener, task::JoinSet};
use tonic::{Request, Response, Status};

use super::{
    Client,
    config::{ClientConfig, Flags, JoinFlags, Surroundings},
    fake_server::FakeServer,
    join::{JoinError, Joining, join},
    renewal::Standing,
};
use crate::{
    limits,
    shutdown::Shutdown,
    status::{Reason, status},
    tls::test_authority::{Authority, Clients, HOUR},
    token::{Secret, Sha256, Token, TokenKind},
    wire::proto::{
        Certificate, JoinRequest, JoinResponse, RenewRequest, RenewResponse,
        enrolment_server::{Enrolment, EnrolmentServer},
    },
};

/// What the server does, and what it was asked.
pub(super) struct Desk {
    pub(super) refuses: Option<Reason>,
    /// How long ago the next certificate began, and how long from now it lasts.
    pub(super) began: Duration,
    pub(super) lasts: Duration,
    pub(super) has_expired: bool,
    pub(super) is_pending: bool,
    /// What it has its clients trust.
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) clock_ahead: Duration,
    /// Of Join: the credential and the message.
    pub(super) joins: Vec<(String, JoinRequest)>,
    pub(super) renewals: usize,
    /// The leaf of each connection in TLS, if there was one.
    pub(super) shown: Vec<Option<CertificateDer<'static>>>,
}

pub(super) struct FakeEnrolment {
    authority: Arc<Authority>,
    desk: Arc<Mutex<Desk>>,
}

impl FakeEnrolment {
    #[allow(clippy::result_large_err)] // It is what the service answers.
    fn certificate(&self, csr: &[u8]) -> Result<(Certificate, Vec<Bytes>), Status> {
        let desk = self.desk.lock().expect("not poisoned");
        if let Some(reason) = desk.refuses {
            return Err(status(reason, "the desk is closed"));
        }
        let uri = "spiffe://fts/client/web-1";
        let chain = if desk.has_expired {
            self.authority.expired_client(csr, uri)
        } else {
            self.authority.client(csr, uri, desk.began, desk.lasts)
        };
        let roots = desk.roots.iter().map(|root| root.to_vec().into()).collect();
        let certificate = Certificate {
            chain: chain.into_iter().map(|each| each.to_vec().into()).collect(),
            expire_time: None,
            server_time: Some((SystemTime::now() + desk.clock_ahead).into()),
        };
        Ok((certificate, roots))
    }
}

#[tonic::async_trait]
impl Enrolment for FakeEnrolment {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let bearer = request.metadata().get("authorization").expect("a credential");
        let bearer = bearer.to_str().expect("text").to_owned();
        let request = request.into_inner();
        self.desk.lock().expect("not poisoned").joins.push((bearer, request.clone()));
        let (certificate, server_roots) = self.certificate(&request.certificate_request)?;
        let pending = self.desk.lock().expect("not poisoned").is_pending;
        let certificate = Some(certificate);
        Ok(Response::new(JoinResponse { certificate, server_roots, pending }))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        self.desk.lock().expect("not poisoned").renewals += 1;
        let (certificate, server_roots) =
            self.certificate(&request.into_inner().certificate_request)?;
        Ok(Response::new(RenewResponse { certificate: Some(certificate), server_roots }))
    }
}

pub(super) struct TlsServer {
    pub(super) fake: FakeServer,
    pub(super) authority: Arc<Authority>,
    pub(super) url: String,
    desk: Arc<Mutex<Desk>>,
    _tasks: JoinSet<()>,
}

impl TlsServer {
    pub(super) async fn start() -> Self {
        Self::start_for(Clients::Anybody).await
    }

    pub(super) async fn start_for(clients: Clients) -> Self {
        let authority = Arc::new(Authority::new());
        let desk = Arc::new(Mutex::new(Desk {
            refuses: None,
            began: HOUR,
            lasts: 24 * HOUR,
            has_expired: false,
            is_pending: false,
            roots: vec![authority.root.clone()],
            clock_ahead: Duration::ZERO,
            joins: vec![],
            renewals: 0,
            shown: vec![],
        }));
        let enrolment = FakeEnrolment { authority: authority.clone(), desk: desk.clone() };
        let (fake, door) = FakeServer::start_with(Some(EnrolmentServer::new(enrolment)));
        let shown = authority.server("localhost", |_| ());
        let acceptor = authority.acceptor(&shown, clients);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("https://localhost:{}", listener.local_addr().expect("bound").port());
        let noted = desk.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("accepted");
                let (acceptor, noted, door) = (acceptor.clone(), noted.clone(), door.clone());
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(socket).await else { return };
                    let leaf = stream.get_ref().1.peer_certificates();
                    let leaf = leaf.and_then(|chain| chain.first().cloned());
                    noted.lock().expect("not poisoned").shown.push(leaf);
                    let (mut here, there) = tokio::io::duplex(1 << 20);
                    // Whoever has ended first, nobody misses the rest.
                    if door.send(Ok(there)).await.is_ok() {
                        let _ = copy_bidirectional(&mut stream, &mut here).await;
                    }
                });
            }
        });
        Self { fake, authority, url, desk, _tasks: tasks }
    }

    pub(super) fn desk<T>(&self, look: impl FnOnce(&mut Desk) -> T) -> T {
        look(&mut self.desk.lock().expect("not poisoned"))
    }

    pub(super) fn token(&self) -> Token {
        let root = Some(Sha256::of(&self.authority.root));
        Token::generate(TokenKind::Join, root).expect("random")
    }
}

/// A machine that may join, with a home of its own.
pub(super) struct Machine {
    pub(super) home: TempDir,
}

impl Machine {
    pub(super) fn new() -> Self {
        Self { home: tempfile::tempdir().expect("a directory") }
    }

    pub(super) fn around(&self) -> Surroundings {
        Surroundings {
            home: Some(self.home.path().to_owned()),
            host_name: "web-1".to_owned(),
            ..Surroundings::default()
        }
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.home.path().join(".local/state/fts-client/web-1")
    }

    pub(super) async fn join(&self, url: &str, token: &Token) -> Result<Joining, JoinError> {
        self.join_with(url, token, |_| ()).await
    }

    pub(super) async fn join_with(
        &self,
        url: &str,
        token: &Token,
        adjust: impl FnOnce(&mut JoinFlags),
    ) -> Result<Joining, JoinError> {
        let mut flags = JoinFlags {
            server: Some(url.to_owned()),
            client_id: Some("web-1".to_owned()),
            allow: vec![self.home.path().to_str().expect("text").to_owned()],
            ..JoinFlags::default()
        };
        adjust(&mut flags);
        let token = Secret::new(token.reveal().reveal());
        join(flags.resolve(&self.around(), Some(token)).expect("valid")).await
    }

    /// Returns what a start without any flags goes by.
    pub(super) fn config(&self) -> ClientConfig {
        let none = Flags { status_port: Some("0".to_owned()), ..Flags::default() };
        none.resolve(&self.around()).expect("valid")
    }

    pub(super) fn start(&self) -> Running {
        let client = Client::new(self.config()).expect("a client");
        let board = client.board.clone();
        let standing = client.renewal.as_ref().expect("with TLS").standing();
        let shutdown = Shutdown::new();
        shutdown.spawn(client.run(shutdown.clone()));
        Running { shutdown, standing, board }
    }

    /// Returns the hash of the identity that is stored: a test must not show a key either.
    pub(super) fn identity(&self) -> Sha256 {
        Sha256::of(&std::fs::read(self.state_dir().join("identity.pem")).expect("there"))
    }
}

pub(super) struct Running {
    shutdown: Shutdown,
    pub(super) standing: Standing,
    pub(super) board: Arc<super::Board>,
}

impl Running {
    pub(super) async fn stop(self) {
        assert!(self.shutdown.run_down(limits::DRAIN_WAIT, limits::ABORT_WAIT).await);
    }
}
