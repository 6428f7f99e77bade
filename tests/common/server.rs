//! A real server in this process, on port 0, in a directory of its own.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use fts::{
    server::{
        Listeners, Options, Security, Server,
        audit::Audit,
        coordinator::{Coordinator, Retention},
        files,
        guard::ClearText,
        landing::{Disk, Marks, RealDisk},
        quotas::QuotaLimits,
        store::{Store, credentials::Credentials, sqlite::SqliteStore},
        tls::Tls,
    },
    shutdown::Shutdown,
    wire::proto::{self, control_client::ControlClient},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::transport::{Channel, Endpoint};

/// How a test wants its server.
pub struct Setup {
    pub heartbeat: Duration,
    pub retention: Retention,
    pub quotas: QuotaLimits,
    pub uploads_max: usize,
    pub disk: Box<dyn Disk>,
    pub marks: Marks,
    pub clear_text: ClearText,
    pub drain_wait: Duration,
    /// Of certificates that a secured server issues.
    pub certificate_life: Duration,
    /// A listener of its own for operators.
    pub control: Option<TcpListener>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            heartbeat: fts::limits::HEARTBEAT,
            retention: Retention::default(),
            quotas: QuotaLimits::default(),
            uploads_max: fts::limits::UPLOADS_MAX,
            disk: Box::new(RealDisk),
            marks: Marks::NONE,
            clear_text: ClearText::LoopbackOnly,
            drain_wait: fts::limits::DRAIN_WAIT,
            certificate_life: fts::limits::CLIENT_CERTIFICATE_LIFE,
            control: None,
        }
    }
}

pub struct TestServer {
    pub address: SocketAddr,
    pub coordinator: Arc<Coordinator>,
    pub credentials: Arc<dyn Credentials>,
    /// Of a secured one.
    pub tls: Option<Arc<Tls>>,
    pub shutdown: Shutdown,
    dir: Arc<TempDir>,
    serving: JoinHandle<Result<bool, fts::server::ServeError>>,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_with(Setup::default()).await
    }

    pub async fn start_with(setup: Setup) -> Self {
        Self::start_in(Arc::new(TempDir::new().expect("a directory")), setup, 0).await
    }

    /// Starts on a directory that an earlier server may have left, and on a given port.
    pub async fn start_in(dir: Arc<TempDir>, setup: Setup, port: u16) -> Self {
        Self::start_as(dir, setup, port, None).await
    }

    /// Starts one that asks for TLS and credentials.
    pub async fn start_secured(setup: Setup) -> Self {
        let dir = Arc::new(TempDir::new().expect("a directory"));
        Self::start_secured_in(dir, setup, 0).await
    }

    pub async fn start_secured_in(dir: Arc<TempDir>, setup: Setup, port: u16) -> Self {
        let tls = Arc::new(super::secured::open_tls(dir.path()));
        Self::start_as(dir, setup, port, Some(tls)).await
    }

    async fn start_as(dir: Arc<TempDir>, setup: Setup, port: u16, tls: Option<Arc<Tls>>) -> Self {
        let url = format!("sqlite:{}", dir.path().join("fts.db").display());
        let sqlite = Arc::new(SqliteStore::open(&url).await.expect("a store"));
        let store: Arc<dyn Store> = sqlite.clone();
        let files = dir.path().join("files");
        let landing = files::open(store.as_ref(), &files, setup.disk, false).await.expect("files");
        let landing = landing.with_marks(setup.marks);
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = Shutdown::new();
        let server = Server::new(Options {
            store,
            credentials: sqlite.clone(),
            landing,
            security: match &tls {
                Some(tls) => Security::Tls(Arc::clone(tls)),
                None => Security::Clear(setup.clear_text),
            },
            audit: tls.is_some().then(|| Audit::open(dir.path()).expect("an audit")),
            certificate_life: setup.certificate_life,
            heartbeat: setup.heartbeat,
            retention: setup.retention,
            quotas: setup.quotas,
            uploads_max: setup.uploads_max,
            drain_wait: setup.drain_wait,
            shutdown: shutdown.clone(),
        });
        let coordinator = Arc::clone(server.coordinator());
        let listeners = Listeners { main: listener, control: setup.control, socket: None };
        let serving = shutdown_spawn(server, listeners);
        Self { address, coordinator, credentials: sqlite, tls, shutdown, dir, serving }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Drains, waits for the end, and returns the directory for the next server.
    pub async fn stop(self) -> Arc<TempDir> {
        self.shutdown.drain();
        self.serving.await.expect("no panic").expect("served");
        self.dir
    }

    /// Ends at once, as if by a hard stop: running work is cut.
    pub async fn abort(self) -> Arc<TempDir> {
        self.shutdown.abort();
        self.serving.await.expect("no panic").expect("served");
        self.dir
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.url()).expect("an address");
        endpoint.connect().await.expect("connected")
    }

    pub async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel().await)
    }

    /// Asks for a file and returns the transfer.
    pub async fn trigger(&self, client: &str, path: &str) -> proto::Transfer {
        let request = proto::TriggerDownloadRequest {
            client_id: client.to_owned(),
            path: path.to_owned(),
            ..Default::default()
        };
        let answer = self.control().await.trigger_download(request).await.expect("triggered");
        answer.into_inner().transfer.expect("a transfer")
    }

    pub async fn transfer(&self, id: &str) -> proto::Transfer {
        let request = proto::GetTransferRequest { transfer_id: id.to_owned() };
        let answer = self.control().await.get_transfer(request).await.expect("known");
        answer.into_inner().transfer.expect("a transfer")
    }

    /// Follows a transfer until `enough` says so, and returns it.
    pub async fn follow(
        &self,
        id: &str,
        enough: impl Fn(&proto::Transfer) -> bool,
    ) -> proto::Transfer {
        self.follow_within(id, PATIENCE, enough).await
    }

    async fn follow_within(
        &self,
        id: &str,
        patience: Duration,
        enough: impl Fn(&proto::Transfer) -> bool,
    ) -> proto::Transfer {
        let request =
            proto::WatchTransfersRequest { transfer_id: id.to_owned(), ..Default::default() };
        let follow = async {
            let mut control = self.control().await;
            let mut events = control.watch_transfers(request).await.expect("watched").into_inner();
            while let Some(event) = events.message().await.expect("an event") {
                let transfer = event.transfer.expect("a transfer");
                if enough(&transfer) {
                    return transfer;
                }
            }
            panic!("the transfer ended first: {:?}", self.transfer(id).await);
        };
        let Ok(transfer) = tokio::time::timeout(patience, follow).await else {
            panic!("waited too long: {:?}", self.transfer(id).await);
        };
        transfer
    }

    /// Follows a transfer to its end.
    pub async fn ended(&self, id: &str) -> proto::Transfer {
        self.follow(id, |t| is_final(t.state())).await
    }

    /// Follows a long transfer to its end.
    pub async fn ended_within(&self, id: &str, patience: Duration) -> proto::Transfer {
        self.follow_within(id, patience, |t| is_final(t.state())).await
    }

    /// Follows a transfer to COMPLETE, and returns its bytes.
    pub async fn landed(&self, id: &str) -> (proto::Transfer, Vec<u8>) {
        let transfer = self.ended(id).await;
        assert_eq!(transfer.state(), proto::State::Complete, "{transfer:?}");
        let bytes = std::fs::read(&transfer.location).expect("the file is where the record says");
        (transfer, bytes)
    }

    /// Asks for a transfer until it is shown as wanted: what is no change of the record is in no
    /// watch.
    pub async fn shown(
        &self,
        id: &str,
        wanted: impl Fn(&proto::Transfer) -> bool,
    ) -> proto::Transfer {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let transfer = self.transfer(id).await;
            if wanted(&transfer) {
                return transfer;
            }
            assert!(tokio::time::Instant::now() < until, "never shown: {transfer:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a client is there.
    pub async fn online(&self, client: &str) -> proto::Client {
        let wait = async {
            loop {
                let request = proto::GetClientRequest { client_id: client.to_owned() };
                if let Ok(answer) = self.control().await.get_client(request).await {
                    let client = answer.into_inner().client.expect("a client");
                    if client.presence() == proto::Presence::Online {
                        return client;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the client came")
    }
}

#[allow(clippy::disallowed_methods)] // the test waits for it
fn shutdown_spawn(
    server: Server,
    listeners: Listeners,
) -> JoinHandle<Result<bool, fts::server::ServeError>> {
    tokio::spawn(server.serve(listeners))
}

pub fn is_final(state: proto::State) -> bool {
    matches!(state, proto::State::Complete | proto::State::Failed | proto::State::Cancelled)
}

/// A test that waits longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
