//! The server's program as a process of its own, which asks for credentials.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use fts::{
    route::{Proxies, Route},
    server::{authority::Authority, config::PKI},
    server_url::ServerUrl,
    tls::Trust,
    token::Secret,
    wire::proto::{
        CreateJoinTokensRequest, JoinRequest, ListClientsRequest, admin_client::AdminClient,
        control_client::ControlClient, enrolment_client::EnrolmentClient,
    },
};
use rcgen::{CertificateParams, KeyPair};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit, setrlimit};
use rustls::client::ResolvesClientCert;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::common::{
    process::{Process, ServerProcess, pause},
    secured::{Identity, bearing, identity},
    server::PATIENCE,
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_fts-server");

pub struct Child {
    pub server: ServerProcess,
    /// Of an administrator.
    pub token: Secret,
    pub dir: TempDir,
}

impl Child {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(more: &[&str]) -> Self {
        let (dir, token) = init();
        Self { server: ServerProcess::start(dir.path(), 0, more), token, dir }
    }

    /// Starts one that may open so many files.
    pub fn start_limited(files: u64) -> Self {
        let (dir, token) = init();
        let (log, port) = (dir.path().join("server.log"), dir.path().join("port"));
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let run = format!(
            "ulimit -n {files}; exec {PROGRAM} --listen 127.0.0.1:0 --data-dir {} --port-file {}",
            text(&dir.path().join("data")),
            text(&port)
        );
        let mut process = Process::start("sh", &log, &["-c", &run], &[]);
        process.logged("serving");
        let address = fs::read_to_string(&port).expect("a port").parse().expect("an address");
        Self { server: ServerProcess { process, address }, token, dir }
    }

    pub fn pki(&self) -> std::path::PathBuf {
        self.dir.path().join("data").join(PKI)
    }

    /// As its files have it now.
    pub fn authority(&self) -> Authority {
        Authority::open(&self.pki()).expect("opened").expect("an authority")
    }

    pub async fn channel(&self, identity: Option<&Identity>) -> Channel {
        self.channel_by(&Trust::Pinned(self.authority().root()), identity).await
    }

    pub async fn channel_by(&self, trust: &Trust, identity: Option<&Identity>) -> Channel {
        let url = format!("https://localhost:{}", self.server.address.port());
        let url = ServerUrl::parse(&url).expect("a URL");
        let identity =
            identity.map(|identity| Arc::new(identity.clone()) as Arc<dyn ResolvesClientCert>);
        let route = Route::new(&url, trust, identity, &Proxies::off()).expect("a way");
        let dialled = route.endpoint().connect_with_connector(route.connector()).await;
        dialled.expect("connected")
    }

    /// Joins as a client does.
    pub async fn join(&self, client: &str) -> Identity {
        self.join_by(&Trust::Pinned(self.authority().root()), client).await
    }

    pub async fn join_by(&self, trust: &Trust, client: &str) -> Identity {
        let channel = self.channel_by(trust, None).await;
        let ask = CreateJoinTokensRequest {
            patterns: vec![client.to_owned()],
            uses_max: 1,
            ttl: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
            ..Default::default()
        };
        let made = AdminClient::new(channel.clone())
            .create_join_tokens(bearing(&self.token, ask))
            .await
            .expect("made");
        let token = Secret::new(made.into_inner().tokens.remove(0).text);
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("signed");
        let ask = JoinRequest {
            client_id: client.to_owned(),
            certificate_request: request.der().to_vec().into(),
            host_name: "test-host".to_owned(),
        };
        let joined = EnrolmentClient::new(channel).join(bearing(&token, ask)).await;
        let certificate = joined.expect("joined").into_inner().certificate.expect("one");
        let chain = certificate.chain.iter().map(|der| der.to_vec().into()).collect();
        identity(client.parse().expect("an id"), &key, chain)
    }

    /// An operator asks something on a connection that stands.
    pub async fn ask(&self, channel: Channel) {
        let asked = bearing(&self.token, ListClientsRequest::default());
        ControlClient::new(channel).list_clients(asked).await.expect("answered");
    }

    fn proc(&self, name: &str) -> String {
        let id = self.server.process.id().as_raw_nonzero();
        fs::read_to_string(format!("/proc/{id}/{name}")).expect("it runs")
    }

    /// Returns how many files it has open.
    pub fn descriptors(&self) -> usize {
        let id = self.server.process.id().as_raw_nonzero();
        fs::read_dir(format!("/proc/{id}/fd")).expect("it runs").count()
    }

    /// Returns the memory that it has, in bytes.
    pub fn memory(&self) -> u64 {
        self.memory_by("VmRSS:")
    }

    /// Returns the most that it ever had.
    pub fn most_memory(&self) -> u64 {
        self.memory_by("VmHWM:")
    }

    fn memory_by(&self, name: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("known");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }

    /// Returns how long it has kept a core busy.
    pub fn busy(&self) -> Duration {
        let stat = self.proc("stat");
        let (_, rest) = stat.rsplit_once(") ").expect("a name");
        let ticks = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.map(|ticks| ticks.expect("a number")).sum();
        let each = 1000 / rustix::param::clock_ticks_per_second();
        Duration::from_millis(ticks * each)
    }

    /// Lets it open no more than so many files from now on.
    pub fn limit(&self, files: u64) {
        let id = Some(self.server.process.id());
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit { current: Some(files), maximum };
        prlimit(id, Resource::Nofile, limit).expect("limited");
    }

    /// Waits until it has at most so many files open.
    pub async fn back_to(&self, files: usize) {
        let back = async {
            while self.descriptors() > files {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let back = tokio::time::timeout(PATIENCE, back).await;
        back.unwrap_or_else(|_| panic!("{} of {files} files are open", self.descriptors()));
    }
}

fn init() -> (TempDir, Secret) {
    let dir = TempDir::new().expect("a directory");
    let data = dir.path().join("data");
    let made = Command::new(PROGRAM)
        .args(["init", "--name", "localhost", "--data-dir"])
        .arg(&data)
        .env_clear()
        .output()
        .expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (dir, Secret::new(String::from_utf8(made.stdout).expect("text").trim()))
}

/// Lets this process open as many files as it may, and returns how many.
pub fn raise_own_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("raised");
    limit.maximum.unwrap_or(u64::MAX)
}

/// Waits for something of another process that no event tells of.
pub fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while !is() {
        assert!(std::time::Instant::now() < until, "never: {what}");
        pause();
    }
}
