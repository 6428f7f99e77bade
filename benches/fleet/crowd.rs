//! The clients of the fleet: real ones, many to a process. This program starts itself again for
//! each part of the fleet; such a part ends when its standard input does.

use std::{
    env,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use fts::{
    client::{
        Client,
        config::{ClientConfig, Shared, StatusPort},
        policy::Policy,
    },
    limits,
    route::Proxies,
    server_url::ServerUrl,
    shutdown::Shutdown,
    telemetry::{self, LogFormat},
};

use crate::{
    report::say,
    server::{file_limit, rss_kib_of},
};

/// The first argument of a part of the fleet.
pub const ROLE: &str = "crowd";

/// Open files of a client that does nothing: its connection, its state directory and the lock in
/// it. (An allowed file, unlike a directory, is not held open.)
const FILES_EACH: usize = 3;
/// Files of the process itself, and of clients that deliver.
const FILES_RESERVED: usize = 200;
/// A destination has some 28,000 ports of origin.
const ADDRESSES: usize = 8;

/// Returns the id of a client, from 1.
pub fn id(number: usize) -> String {
    format!("fleet-{number:05}")
}

/// The processes that hold the clients.
pub struct Crowd {
    parts: Vec<Child>,
}

impl Crowd {
    /// Starts every client: `shared` is what each of them delivers.
    pub fn start_all(dir: &Path, port: u16, shared: &Path, clients: usize) -> anyhow::Result<Self> {
        let part_max = (file_limit() - FILES_RESERVED) / FILES_EACH;
        let parts = clients.div_ceil(part_max);
        if parts > 1 {
            say(&format!(
                "{parts} processes of clients instead of one: a client has {FILES_EACH} open \
                 files, and a process {} at most",
                file_limit()
            ));
        }
        let mut crowd = Self { parts: Vec::new() };
        let numbers: Vec<usize> = (1..=clients).collect();
        for part in numbers.chunks(clients.div_ceil(parts)) {
            let mut command = Command::new(env::current_exe()?);
            command.arg(ROLE).arg(part[0].to_string()).arg(part.len().to_string());
            command.arg(port.to_string()).arg(dir).arg(shared);
            crowd.parts.push(command.stdin(Stdio::piped()).spawn()?);
        }
        Ok(crowd)
    }

    pub fn processes(&self) -> usize {
        self.parts.len()
    }

    pub fn rss_kib(&self) -> anyhow::Result<u64> {
        self.parts.iter().map(|part| rss_kib_of(part.id())).sum()
    }

    /// Fails once a part has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for part in &mut self.parts {
            if let Some(status) = part.try_wait()? {
                bail!("a part of the fleet ended: {status}");
            }
        }
        Ok(())
    }

    /// Ends all of them.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.check()?;
        for part in &mut self.parts {
            drop(part.stdin.take());
        }
        for part in &mut self.parts {
            part.wait()?;
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for part in &mut self.parts {
            // It may have ended already.
            drop(part.kill());
            drop(part.wait());
        }
    }
}

/// Runs a part of the fleet until standard input ends.
pub fn run(mut args: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut next = || args.next().context("an argument is missing");
    let (first, count): (usize, usize) = (next()?.parse()?, next()?.parse()?);
    let (port, dir, shared): (u16, _, _) = (next()?.parse()?, PathBuf::from(next()?), next()?);
    if env::var_os("RUST_LOG").is_some() {
        telemetry::init(LogFormat::Text).map_err(anyhow::Error::msg)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = Shutdown::new();
        for number in first..first + count {
            let client = Client::new(config(number, port, &dir, &shared)?)?;
            drop(shutdown.spawn(client.run(shutdown.clone())));
        }
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        ended.await??;
        shutdown.abort();
        shutdown.ended().await;
        Ok(())
    })
}

fn config(number: usize, port: u16, dir: &Path, shared: &str) -> anyhow::Result<ClientConfig> {
    let url = format!("http://127.0.0.{}:{port}", 1 + number % ADDRESSES);
    let id = id(number);
    Ok(ClientConfig {
        server: ServerUrl::parse(&url).map_err(anyhow::Error::msg)?,
        host_name: id.clone(),
        status: StatusPort::None,
        shared: Shared::Policy(Policy::of_roots(vec![shared.parse()?])),
        policy_file: None,
        ca_file: None,
        sandbox: fts::client::sandbox::Mode::Off,
        ca: None,
        proxies: Proxies::off(),
        state_dir: dir.join("clients").join(&id),
        rate_max: None,
        uploads_max: limits::JOBS,
        nice: 0,
        trusts_fingerprint: false,
        log_format: LogFormat::Text,
        id: id.parse()?,
    })
}
