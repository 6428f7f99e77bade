//! A real client in this process.

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use fts::{
    client::{
        Client,
        config::{ClientConfig, Shared, StatusPort},
        policy::Policy,
        sandbox::Mode,
    },
    limits,
    rate::Rate,
    route::Proxies,
    server_url::ServerUrl,
    shutdown::Shutdown,
    telemetry::LogFormat,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{
    secured::{Identity, Secured},
    server::TestServer,
};

pub struct TestClient {
    shutdown: Shutdown,
    running: JoinHandle<()>,
    _state: TempDir,
}

impl TestClient {
    /// Starts a client that may read what is beneath `allowed`, and waits until it is there.
    pub async fn start(server: &TestServer, id: &str, allowed: &[&Path]) -> Self {
        let client = Self::start_at(&server.url(), id, allowed);
        server.online(id).await;
        client
    }

    /// Starts one whose uploads together send at most so many bytes a second.
    pub async fn start_at_rate(
        server: &TestServer,
        id: &str,
        allowed: &[&Path],
        rate_max: u64,
    ) -> Self {
        let rate_max = Rate::try_from(rate_max).expect("enough");
        let client =
            Self::start_with(&server.url(), id, allowed, |config| config.rate_max = Some(rate_max));
        server.online(id).await;
        client
    }

    /// Starts a client of a server that may not be there yet.
    pub fn start_at(url: &str, id: &str, allowed: &[&Path]) -> Self {
        Self::start_with(url, id, allowed, |_| ())
    }

    /// Starts one of a secured server, as this identity.
    pub fn start_secured(secured: &Secured, identity: &Identity, allowed: &[&Path]) -> Self {
        let roots = secured.tls.roots();
        let pem = |der: &Vec<u8>| pem::encode(&pem::Pem::new("CERTIFICATE", der.clone()));
        let roots: String = roots.iter().map(pem).collect();
        Self::start_with(&secured.url(), identity.client.as_str(), allowed, |config| {
            let mut dir = std::fs::DirBuilder::new();
            dir.recursive(true).mode(0o700).create(&config.state_dir).expect("a directory");
            let write = |name: &str, text: &str| {
                let mut options = std::fs::OpenOptions::new();
                let file = options.write(true).create_new(true).mode(0o600);
                let mut file = file.open(config.state_dir.join(name)).expect("a file");
                file.write_all(text.as_bytes()).expect("written");
            };
            write("identity.pem", &identity.pem);
            write("server-roots.pem", &roots);
        })
    }

    /// Starts one with settings that `adjust` changes.
    pub fn start_with(
        url: &str,
        id: &str,
        allowed: &[&Path],
        adjust: impl FnOnce(&mut ClientConfig),
    ) -> Self {
        let state = TempDir::new().expect("a directory");
        let root = |path: &&Path| path.to_str().expect("text").parse().expect("a path");
        let mut config = ClientConfig {
            server: ServerUrl::parse(url).expect("a URL"),
            id: id.parse().expect("an id"),
            host_name: "test-host".to_owned(),
            status: StatusPort::None,
            shared: Shared::Policy(Policy::of_roots(allowed.iter().map(root).collect())),
            policy_file: None,
            ca_file: None,
            sandbox: Mode::Off,
            ca: None,
            proxies: Proxies::off(),
            state_dir: state.path().join("state"),
            rate_max: None,
            uploads_max: limits::JOBS,
            nice: 0,
            trusts_fingerprint: false,
            log_format: LogFormat::Text,
        };
        adjust(&mut config);
        let client = Client::new(config).expect("a client");
        let shutdown = Shutdown::new();
        let running = shutdown.spawn(client.run(shutdown.clone()));
        Self { shutdown, running, _state: state }
    }

    /// Drains, and waits for the end.
    pub async fn stop(self) {
        self.shutdown.drain();
        self.running.await.expect("no panic");
    }

    /// Cuts whatever runs, and waits for the end.
    pub async fn abort(self) {
        self.shutdown.abort();
        self.running.await.expect("no panic");
    }
}
