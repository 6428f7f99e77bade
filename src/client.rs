//! The client program, as a value: it dials the server, delivers what it is asked for and its
//! policy allows, and never ends because of what a server says.

use std::{net::SocketAddr, path::Path, sync::Arc};

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub mod allowance;
pub mod audit;
pub mod config;
pub mod demo_file;
pub mod join;
pub mod reload;
mod resume;
pub mod sandbox;
pub mod state_dir;

mod board;
mod data_connection;
mod day_counts;
mod dial;
mod disk_wait;
mod enrolment;
pub mod explain;
#[cfg(all(test, feature = "server"))] // For the generated servers.
mod fake_enrolment;
#[cfg(all(test, feature = "server"))]
mod fake_server;
mod identity;
mod jobs;
mod joined;
mod link;
mod pace;
mod page_cache;
pub mod policy;
mod reader;
mod renewal;
mod session;
pub mod shares;
#[cfg(all(test, feature = "server"))] // For the fake server.
mod signed_tests;
mod source;
mod spent;
mod status_page;
mod terms;
mod upload;
mod words;

use allowance::Allowance;
use audit::{Audit, Event};
use board::{Board, Facts};
use config::{ClientConfig, Shared};
use data_connection::DataConnections;
use demo_file::Made;
use dial::Dialer;
use jobs::Jobs;
use link::Link;
use renewal::{Renewal, Standing};
use sandbox::Held;
use shares::Shares;
use source::Source;
use state_dir::StateDir;
use status_page::StatusPage;
use upload::Uploader;
use words::log_path;

use crate::{
    ids::{InstanceId, RemotePath},
    limits,
    route::Route,
    settings::ConfigError,
    shutdown::Shutdown,
    tls::Trust,
    wire::session::Hello,
};

/// A client that holds its state directory and its status port, and has not dialled yet.
#[derive(Debug)]
pub struct Client {
    dialer: Dialer,
    hello: Hello,
    /// With TLS.
    renewal: Option<Renewal>,
    shared: Shared,
    trusts_fingerprint: bool,
    shares: Arc<Shares>,
    audit: Audit,
    allowance: Arc<Allowance>,
    board: Arc<Board>,
    page: Option<StatusPage>,
}

impl Client {
    /// Takes what the client needs of this machine, or returns everything that stands in the way.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let state_dir = StateDir::open(&config.state_dir);
        let state_dir = state_dir.map_err(|err| problems.push(err.to_string())).ok();
        let audit = state_dir.as_ref().and_then(|state_dir| {
            let audit = Audit::open(state_dir);
            audit.map_err(|err| problems.push(format!("cannot open the audit: {err}"))).ok()
        });
        let way = way(&config).map_err(|problem| problems.push(problem)).ok();
        let page = StatusPage::bind(config.status).map_err(|problem| problems.push(problem)).ok();
        let (Some(state_dir), Some(audit), Some(page), Some((dialer, renewal))) =
            (state_dir, audit, page, way)
        else {
            return Err(ConfigError { problems });
        };
        let shares = Shares::new(&config.shared, Arc::new(state_dir));
        let instance = InstanceId::generate();
        let facts = Facts {
            id: config.id.to_string(),
            instance: instance.short(),
            version: env!("CARGO_PKG_VERSION"),
            server: config.server.to_string(),
        };
        let allowance = Allowance::new(config.rate_max, config.uploads_max);
        let hello = Hello {
            client: config.id,
            instance,
            jobs_max: config.uploads_max,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host_name: config.host_name,
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            allowed_roots: Vec::new(),
            policy_digest: None,
            audit_head: None,
            running: Vec::new(),
        };
        Ok(Self {
            dialer,
            hello,
            renewal,
            shared: config.shared,
            trusts_fingerprint: config.trusts_fingerprint,
            board: Arc::new(Board::new(facts, &shares, allowance.clone(), audit.clone())),
            shares: Arc::new(shares),
            audit,
            allowance,
            page,
        })
    }

    /// Returns where the status page is, if there is one.
    pub fn status_address(&self) -> Option<SocketAddr> {
        self.page.as_ref().map(StatusPage::address)
    }

    /// Returns what the site lets it use.
    pub fn allowance(&self) -> Arc<Allowance> {
        self.allowance.clone()
    }

    /// Returns what it shares, which may be replaced while it runs.
    pub fn shares(&self) -> Arc<Shares> {
        self.shares.clone()
    }

    /// Makes the demo file, if it is shared and not there; to be done before the sandbox forbids it.
    pub fn make_demo_file(&self) {
        if let Shared::DemoFile { path, size } = &self.shared {
            make_demo_file(path, *size);
        }
    }

    /// Shows on the status page what holds of the sandbox. If that is what files are read, no policy
    /// can add to it any more.
    pub fn show_sandbox(&self, held: Held) {
        if held.files {
            self.shares.confine();
        }
        self.board.sandbox(held);
    }

    /// Runs until `shutdown` drains; running uploads may finish until it aborts.
    pub async fn run(self, shutdown: Shutdown) {
        self.audit.start();
        self.audit.note(Event::Start {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            client: self.hello.client.to_string(),
            server: self.dialer.to_string(),
            policy: self.shares.now().policy().digest().into(),
        });
        let data = DataConnections::new(&self.dialer);
        let limiter = self.allowance.pace.clone();
        let instance = self.hello.instance;
        let (shares, audit) = (self.shares.changes(), self.audit.clone());
        let uploader = Uploader::new(shares, data.clone(), instance, limiter, audit)
            .of_client(self.hello.client.clone())
            .trusting_fingerprints(self.trusts_fingerprint);
        let standing = self.renewal.as_ref().map_or_else(Standing::without, Renewal::standing);
        let link = Link {
            jobs: Jobs::new(uploader, self.allowance, self.board.clone()),
            dialer: self.dialer,
            hello: self.hello,
            shares: self.shares.changes(),
            standing,
            audit: self.audit.clone(),
            board: self.board.clone(),
            shutdown: shutdown.clone(),
        };
        let board = self.board.clone();
        let renewal = async {
            match self.renewal {
                Some(renewal) => renewal.run(board).await,
                None => std::future::pending().await,
            }
        };
        let page = async {
            match self.page {
                Some(page) => page.serve(self.board).await,
                None => std::future::pending().await,
            }
        };
        let source = self.shares.now();
        tell_shared(&source);
        let work = async {
            prepare(self.shared, source, &shutdown).await;
            link.run().await;
        };
        let policies = note_policies(self.shares.changes(), &self.audit);
        // The others serve the first, and end with it.
        tokio::select! {
            () = work => {}
            () = data.close_when_idle() => {}
            () = renewal => {}
            () = policies => {}
            () = async { page.await; std::future::pending().await } => {}
        }
        self.audit.close().await;
    }
}

/// Notes each policy that takes the place of another one.
async fn note_policies(mut shares: watch::Receiver<Arc<Source>>, audit: &Audit) {
    while shares.changed().await.is_ok() {
        let policy = shares.borrow_and_update().policy().digest().into();
        audit.note(Event::Policy { policy });
    }
}

/// Returns how to dial the server, and what keeps the certificate for it good.
fn way(config: &ClientConfig) -> Result<(Dialer, Option<Renewal>), String> {
    if config.server.is_tls() {
        let renewal = Renewal::load(config)?;
        return Ok((Dialer::by(renewal.routes()), Some(renewal)));
    }
    let plain = Route::new(&config.server, &Trust::System, None, &config.proxies);
    let plain = plain.map_err(|err| err.to_string())?;
    Ok((Dialer::by(watch::channel(plain).1), None))
}

/// Logs which files the server may ask for.
fn tell_shared(source: &Source) {
    if let Some(path) = source.default_file() {
        let path = log_path(path.as_str());
        tracing::info!(%path, "shares one file, the default one");
    } else {
        let rules = source.policy().rules().iter();
        let roots: Vec<_> = rules.map(|rule| log_path(rule.path.as_str())).collect();
        tracing::info!(
            roots = %roots.join(":"),
            "shares what is beneath these roots, and has no default file"
        );
    }
}

fn make_demo_file(path: &RemotePath, size: u64) {
    let shown = log_path(path.as_str());
    match demo_file::make_once(Path::new(path.as_str()), size) {
        Ok(Made::New) => tracing::info!(path = %shown, size, "made the demo file"),
        Ok(Made::AlreadyThere) => {}
        Err(err) => tracing::warn!(path = %shown, error = %err, "cannot make the demo file"),
    }
}

/// Makes the demo file, or opens the roots. A disk that hangs holds up only what needs it.
async fn prepare(shared: Shared, source: Arc<Source>, shutdown: &Shutdown) {
    let preparing = spawn_blocking(move || match shared {
        Shared::DemoFile { path, size } => make_demo_file(&path, size),
        Shared::Policy(_) => source.hold_roots(),
    });
    tokio::select! {
        // Whatever is not ready by then is tried when it is asked for.
        prepared = timeout(limits::PREPARE_WAIT, preparing) => {
            if !matches!(prepared, Ok(Ok(()))) {
                tracing::warn!("the files to share are not ready yet");
            }
        }
        () = shutdown.draining().cancelled() => {}
    }
}

#[cfg(all(test, feature = "server"))] // For the fake server.
mod tests;
