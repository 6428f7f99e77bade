//! The server's program as a child process: what it uses, by `/proc`, and what it says over HTTP.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fts::limits;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

/// To start, and to answer a request that does not wait.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// To stop. More than it takes by its own rules, so that a miss is measured.
const STOP_WAIT: Duration = Duration::from_secs(120);
/// For a delivery.
const DELIVERY_WAIT_S: u64 = 60;

/// Returns how many files a process may open, after raising that as far as it can be.
pub fn file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = (limits::CONNECTIONS_MAX * 4) as u64;
    let set = |current: u64, maximum| {
        let limit = Rlimit { current: Some(current), maximum };
        setrlimit(Resource::Nofile, limit).is_ok()
    };
    // Only root may raise the hard limit, and not everywhere.
    let is_set = set(wanted, Some(wanted.max(hard))) || set(wanted.min(hard), limit.maximum);
    let now = if is_set { getrlimit(Resource::Nofile).current } else { limit.current };
    now.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Returns how many connections the server holds at a time, on this machine.
pub fn places() -> usize {
    let files = file_limit();
    (files - limits::FILES_RESERVED_MAX.min(files / 2)).min(limits::CONNECTIONS_MAX)
}

/// Returns the resident memory of a process.
pub fn rss_kib_of(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("no VmRSS")?.trim().parse()?)
}

/// A running server.
pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it on `dir/data`, and waits until it serves; with `port` 0 it chooses one.
    pub async fn start(dir: &Path, port: u16) -> anyhow::Result<Self> {
        let port_file = dir.join("port");
        drop(fs::remove_file(&port_file));
        let log = File::options().append(true).create(true).open(dir.join("server.log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_fts-server"));
        // More than one loopback address.
        command.arg("--insecure").args(["--listen", &format!("0.0.0.0:{port}")]);
        command.arg("--data-dir").arg(dir.join("data")).arg("--port-file").arg(&port_file);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let mut server = Self { child, address: (Ipv4Addr::LOCALHOST, port).into() };
        let until = Instant::now() + ANSWER_WAIT;
        loop {
            if let Ok(address) = fs::read_to_string(&port_file) {
                server.address.set_port(address.parse::<SocketAddr>()?.port());
                if server.online().await.is_ok() {
                    return Ok(server);
                }
            }
            server.check()?;
            ensure!(Instant::now() < until, "the server did not start in {ANSWER_WAIT:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Fails once it has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the server ended: {status}"),
            None => Ok(()),
        }
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.check()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end, and returns how long that took.
    pub async fn stop(mut self) -> anyhow::Result<Duration> {
        self.check()?;
        let since = Instant::now();
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the server ended badly: {status}");
                return Ok(since.elapsed());
            }
            ensure!(since.elapsed() < STOP_WAIT, "the server did not end in {STOP_WAIT:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn rss_kib(&self) -> anyhow::Result<u64> {
        rss_kib_of(self.child.id())
    }

    /// Returns what it has used since its start.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, in brackets, may have blanks.
        let (_, rest) = stat.rsplit_once(')').context("no name in /proc/PID/stat")?;
        let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.sum::<Result<u64, _>>()?;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Returns how many clients are there.
    pub async fn online(&self) -> anyhow::Result<usize> {
        let ask = ask(self.address, "GET", "/metrics", "");
        let (status, text) = timeout(ANSWER_WAIT, ask).await.context("no answer in time")??;
        ensure!(status == 200, "/metrics answered {status}");
        let value = text.lines().find_map(|l| l.strip_prefix("fts_clients{presence=\"online\"} "));
        Ok(value.context("no online clients in /metrics")?.parse()?)
    }

    /// Asks a client for a file, and returns the transfer as it is in the end, or after a
    /// while.
    pub fn download(
        &self,
        client: &str,
        path: &Path,
    ) -> impl Future<Output = anyhow::Result<Value>> + Send + use<> {
        let address = self.address;
        let target = format!("/download/{client}?wait={DELIVERY_WAIT_S}");
        let body = json!({ "path": path }).to_string();
        async move {
            let (status, text) = ask(address, "POST", &target, &body).await?;
            ensure!(status == 200 || status == 202, "{target} answered {status}: {text}");
            Ok(serde_json::from_str(&text)?)
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Asks on a connection of its own, and returns status and body.
async fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    body: &str,
) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("half an answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}
