//! The programs of a run, and what is between them: one server, some clients, a relay before each.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use fts::shutdown::Shutdown;
use rustix::process::Signal;
use tokio::{
    task::block_in_place,
    time::{sleep, timeout},
};

use crate::{
    common::process::Process,
    message_relay::MessageRelay,
    plan::{Fault, Plan, Trouble, Way},
    tcp_relay::{Target, TcpRelay},
};

pub struct Rig {
    dir: PathBuf,
    pub target: Target,
    server: tokio::sync::Mutex<Option<Process>>,
    sites: Vec<Site>,
    complaints: Arc<Mutex<Vec<String>>>,
}

/// A client, and its way to the server.
struct Site {
    id: String,
    relay: TcpRelay,
    messages: Option<MessageRelay>,
    process: tokio::sync::Mutex<Option<Process>>,
}

impl Rig {
    pub async fn start(dir: &Path, plan: &Plan, tasks: &Shutdown) -> Result<Self> {
        let (server, address) = start_server(dir).await?;
        let target = Target::new(address);
        let mut sites = Vec::new();
        for (nth, way) in plan.links.iter().enumerate() {
            let (messages, behind) = match way {
                Way::Bytes => (None, target.clone()),
                Way::Messages => {
                    let (relay, address) = MessageRelay::start(target.clone(), tasks).await?;
                    (Some(relay), Target::new(address))
                }
            };
            let relay = TcpRelay::start(behind, tasks).await?;
            let id = format!("client-{nth}");
            let client = start_client(dir, &id, &relay).await?;
            let process = tokio::sync::Mutex::new(Some(client));
            sites.push(Site { id, relay, messages, process });
        }
        let server = tokio::sync::Mutex::new(Some(server));
        Ok(Self { dir: dir.to_owned(), target, server, sites, complaints: Arc::default() })
    }

    /// Does it, and returns when it is over.
    pub async fn suffer(&self, fault: &Fault) {
        match fault {
            Fault::Server(trouble) => self.trouble_server(*trouble).await,
            Fault::Client(nth, trouble) => self.trouble_client(&self.sites[*nth], *trouble).await,
            Fault::Link(nth, fault) => self.sites[*nth].relay.suffer(*fault).await,
            Fault::Message(nth, fault) => {
                if let Some(messages) = &self.sites[*nth].messages {
                    messages.arm(*fault);
                }
            }
        }
    }

    async fn trouble_server(&self, trouble: Trouble) {
        let mut server = self.server.lock().await;
        let Some(process) = server.take() else { return };
        let left = self.trouble("server", process, trouble).await;
        *server = match left {
            Some(process) => Some(process),
            None => match start_server(&self.dir).await {
                Ok((process, address)) => {
                    self.target.set(address);
                    Some(process)
                }
                Err(err) => {
                    self.complain(format!("the server does not start: {err:#}"));
                    None
                }
            },
        };
    }

    async fn trouble_client(&self, site: &Site, trouble: Trouble) {
        let mut client = site.process.lock().await;
        let Some(process) = client.take() else { return };
        let left = self.trouble(&site.id, process, trouble).await;
        *client = match left {
            Some(process) => Some(process),
            None => match start_client(&self.dir, &site.id, &site.relay).await {
                Ok(process) => Some(process),
                Err(err) => {
                    self.complain(format!("{} does not start: {err:#}", site.id));
                    None
                }
            },
        };
    }

    /// Returns the process, if it lives on.
    async fn trouble(&self, name: &str, process: Process, trouble: Trouble) -> Option<Process> {
        match trouble {
            Trouble::Kill(down) => {
                self.kill(name, process);
                sleep(down).await;
                None
            }
            Trouble::Freeze(lasts) => {
                process.signal(Signal::STOP);
                sleep(lasts).await;
                process.signal(Signal::CONT);
                Some(process)
            }
            Trouble::FreezeThenKill(lasts) => {
                process.signal(Signal::STOP);
                sleep(lasts).await;
                self.kill(name, process);
                None
            }
            Trouble::Restart => {
                self.end(name, process);
                None
            }
        }
    }

    fn kill(&self, name: &str, process: Process) {
        process.signal(Signal::KILL);
        let (status, _) = block_in_place(|| process.wait());
        if std::os::unix::process::ExitStatusExt::signal(&status) != Some(9) {
            self.complain(format!("{name} had ended by itself: {status}"));
        }
    }

    fn end(&self, name: &str, process: Process) {
        process.signal(Signal::TERM);
        let (status, took) = block_in_place(|| process.wait());
        if !status.success() || took > STOP_MAX {
            self.complain(format!("{name}, asked to end, ended after {took:?}: {status}"));
        }
    }

    /// Lets messages alone, and if `fresh`, starts every client anew.
    pub async fn calm(&self, fresh: bool) {
        for site in &self.sites {
            site.messages.iter().for_each(MessageRelay::calm);
            if fresh {
                self.trouble_client(site, Trouble::Kill(Duration::ZERO)).await;
            }
        }
    }

    /// Kills the server, and starts it once more.
    pub async fn crash_server(&self) {
        self.trouble_server(Trouble::Kill(Duration::ZERO)).await;
    }

    /// Asks all to end, and returns what was wrong with any of them.
    pub async fn stop(&self) -> Vec<String> {
        for site in &self.sites {
            if let Some(process) = site.process.lock().await.take() {
                self.end(&site.id, process);
            }
        }
        if let Some(process) = self.server.lock().await.take() {
            self.end("server", process);
        }
        let relays = self.sites.iter().filter_map(|site| site.messages.as_ref());
        relays.flat_map(MessageRelay::complaints).for_each(|text| self.complain(text));
        std::mem::take(&mut *self.complaints.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often which message fault has happened.
    pub fn hits(&self) -> std::collections::BTreeMap<String, u32> {
        let mut all = std::collections::BTreeMap::new();
        let relays = self.sites.iter().filter_map(|site| site.messages.as_ref());
        for (name, count) in relays.flat_map(MessageRelay::hits) {
            *all.entry(name).or_default() += count;
        }
        all
    }

    pub fn forged(&self) -> std::collections::HashSet<String> {
        let relays = self.sites.iter().filter_map(|site| site.messages.as_ref());
        relays.flat_map(MessageRelay::forged).collect()
    }

    pub fn repeated(&self) -> std::collections::HashMap<String, u64> {
        let relays = self.sites.iter().filter_map(|site| site.messages.as_ref());
        relays.flat_map(MessageRelay::repeated).collect()
    }

    fn complain(&self, text: String) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

async fn start_server(dir: &Path) -> Result<(Process, std::net::SocketAddr)> {
    let text = |name: &str| dir.join(name).to_str().expect("text").to_owned();
    let (data, port_file) = (text("data"), text("port"));
    drop(fs::remove_file(&port_file));
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--port-file",
        &port_file,
        "--heartbeat",
        HEARTBEAT,
        "--log-format",
        "text",
    ];
    let program = env!("CARGO_BIN_EXE_fts-server");
    let process = Process::start(program, &dir.join("server.log"), &args, LOG);
    let begun = Instant::now();
    let listens = async {
        loop {
            if let Ok(address) = fs::read_to_string(&port_file)
                && let Ok(address) = address.trim().parse()
            {
                return address;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    let address = timeout(START_MAX, listens).await;
    let address = address.with_context(|| format!("no address after {:?}", begun.elapsed()))?;
    Ok((process, address))
}

async fn start_client(dir: &Path, id: &str, relay: &TcpRelay) -> Result<Process> {
    let text = |name: &str| dir.join(name).to_str().expect("text").to_owned();
    let (shared, state) = (text("shared"), text(&format!("state-{id}")));
    let url = format!("http://{}", relay.address);
    let args = [
        "--server",
        &url,
        "--client-id",
        id,
        "--allow",
        &shared,
        "--state-dir",
        &state,
        "--status-port",
        "0",
        "--log-format",
        "text",
    ];
    let log = dir.join(format!("{id}.log"));
    let process = Process::start(env!("CARGO_BIN_EXE_fts-client"), &log, &args, LOG);
    // Before that, SIGTERM ends it as it ends any program.
    let is_listening = async {
        while !catches_term(&process).unwrap_or_default() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(START_MAX, is_listening).await.with_context(|| format!("{id} catches no SIGTERM"))?;
    Ok(process)
}

fn catches_term(process: &Process) -> Option<bool> {
    let pid = process.id().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
    Some(caught >> (Signal::TERM.as_raw() - 1) & 1 == 1)
}

/// The shortest deadlines that two busy cores do not trip over by themselves.
const HEARTBEAT: &str = "1s";
const LOG: &[(&str, &str)] = &[("RUST_LOG", "info,fts=debug"), ("NO_COLOR", "1")];
const START_MAX: Duration = Duration::from_secs(20);
/// What is promised of a program that is told to stop.
const STOP_MAX: Duration = Duration::from_secs(45);
