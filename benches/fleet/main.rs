//! Holds a fleet of idle clients on one server, and says what they cost: how soon all are there,
//! the server's memory for each, its CPU while nothing happens, how soon they are back after it
//! crashed, and whether they still deliver.
//!
//! The server is the real program, so its memory and CPU are its own. The clients are the real
//! client too, many to a process: as many processes as the limit of open files demands.
//!
//! `N=20000 WINDOW=60 DOWN=5 make fleet`: how many clients, for how many seconds the CPU is
//! measured, and for how many the crashed server stays away. Linux only.

#![allow(clippy::cast_precision_loss, reason = "no figure here has 52 bits")]

mod crowd;
mod report;
mod server;

use std::{
    env, fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use crowd::Crowd;
use fts::limits;
use report::{Goal, Report, say};
use server::Server;
use tokio::{task::JoinSet, time::sleep};

/// Clients that are asked for a file in the end.
const DELIVERIES: usize = 20;
/// Connections of this program, and of uploads, besides those of idle clients.
const OTHER_CONNECTIONS: usize = 100;
const SMALL_FILE_BYTES: usize = 10_000;
/// From the start of the fleet, or the server's return, until all must be there.
const ALL_WAIT: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(200);

fn main() -> anyhow::Result<ExitCode> {
    let mut args = env::args().skip(1);
    if args.next().as_deref() == Some(crowd::ROLE) {
        crowd::run(args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure())?;
    report.show()?;
    report.write(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How it is to be measured.
struct Plan {
    clients: usize,
    window: Duration,
    down: Duration,
}

impl Plan {
    fn of_environment() -> anyhow::Result<Self> {
        let asked = number("N", 20_000)?;
        let places = server::places().saturating_sub(OTHER_CONNECTIONS);
        let clients = asked.min(places);
        ensure!(clients > 0, "N is the number of clients, 1 at least");
        if clients < asked {
            say(&format!(
                "{clients} clients instead of {asked}: this machine lets a process open {files} \
                 files, of which the server keeps {kept} for its disk; raise `ulimit -Hn`",
                files = server::file_limit(),
                kept = limits::FILES_RESERVED_MAX,
            ));
        }
        let seconds = |name, default| number(name, default).map(|s| Duration::from_secs(s as u64));
        Ok(Self { clients, window: seconds("WINDOW", 60)?, down: seconds("DOWN", 5)? })
    }
}

fn number(name: &str, default: usize) -> anyhow::Result<usize> {
    let Ok(text) = env::var(name) else { return Ok(default) };
    text.parse().with_context(|| format!("{name}={text} is no number"))
}

async fn measure() -> anyhow::Result<Report> {
    let plan = Plan::of_environment()?;
    let dir = tempfile::tempdir()?;
    let small_file = dir.path().join("small.bin");
    fs::write(&small_file, vec![7; SMALL_FILE_BYTES])?;
    let mut report = Report::new(plan.clients, plan.window, plan.down);

    let mut server = Server::start(dir.path(), 0).await?;
    let rss_empty_kib = server.rss_kib()?;
    let began = Instant::now();
    let mut fleet = Crowd::start_all(dir.path(), server.port(), &small_file, plan.clients)?;
    let there = all_online(&mut server, &mut fleet, &plan, began).await?;
    report.tell("all clients are there after", there.all.as_secs_f64(), "s", None);
    idle(&mut report, &server, &fleet, &plan, rss_empty_kib).await?;

    let port = server.port();
    server.kill()?;
    sleep(plan.down).await;
    let mut server = Server::start(dir.path(), port).await?;
    let back = all_online(&mut server, &mut fleet, &plan, Instant::now()).await?;
    let (most, all) = (back.most.as_secs_f64(), back.all.as_secs_f64());
    report.tell("95 % are back after a crash within", most, "s", Some(Goal::AtMost(30.0)));
    report.tell("all are back after a crash within", all, "s", Some(Goal::AtMost(90.0)));

    let landed = deliver(&server, plan.clients, &small_file).await? as f64;
    let goal = Goal::AtLeast(DELIVERIES.min(plan.clients) as f64);
    report.tell("files of random clients that landed", landed, "", Some(goal));
    let stopped = server.stop().await?.as_secs_f64();
    report.tell("the server stops, with all there, in", stopped, "s", Some(Goal::AtMost(45.0)));
    fleet.end()?;
    Ok(report)
}

/// How long it took until so many were online.
struct There {
    /// 95 %.
    most: Duration,
    all: Duration,
}

/// Waits until every client is online.
async fn all_online(
    server: &mut Server,
    fleet: &mut Crowd,
    plan: &Plan,
    since: Instant,
) -> anyhow::Result<There> {
    let mut most = None;
    loop {
        let online = server.online().await?;
        if online * 100 >= plan.clients * 95 {
            most.get_or_insert(since.elapsed());
        }
        if let Some(most) = most.filter(|_| online >= plan.clients) {
            return Ok(There { most, all: since.elapsed() });
        }
        server.check()?;
        fleet.check()?;
        let clients = plan.clients;
        ensure!(since.elapsed() < ALL_WAIT, "{online} of {clients} are there after {ALL_WAIT:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// Measures what a fleet costs that does nothing.
async fn idle(
    report: &mut Report,
    server: &Server,
    fleet: &Crowd,
    plan: &Plan,
    rss_empty_kib: u64,
) -> anyhow::Result<()> {
    let cpu_percent = idle_cpu_percent(server, plan.window).await?;
    let (clients, rss_kib) = (plan.clients as f64, server.rss_kib()?);
    let each_kib = rss_kib.saturating_sub(rss_empty_kib) as f64 / clients;
    let mib = |kib: u64| kib as f64 / 1024.0;
    report.tell("server memory without clients", mib(rss_empty_kib), "MiB", None);
    report.tell("server memory with all, idle", mib(rss_kib), "MiB", None);
    report.tell("server memory for each client", each_kib, "KiB", Some(Goal::AtMost(40.0)));
    report.tell("server CPU, idle, of one core", cpu_percent, "%", Some(Goal::AtMost(10.0)));
    report.tell("fleet memory for each client", fleet.rss_kib()? as f64 / clients, "KiB", None);
    report.tell("processes of the fleet", fleet.processes() as f64, "", None);
    Ok(())
}

async fn idle_cpu_percent(server: &Server, window: Duration) -> anyhow::Result<f64> {
    // Who has just come is busy for a moment.
    sleep(limits::KNOWN_WITHIN).await;
    let (began, cpu_before) = (Instant::now(), server.cpu_seconds()?);
    sleep(window).await;
    let cpu = server.cpu_seconds()? - cpu_before;
    Ok(cpu / began.elapsed().as_secs_f64() * 100.0)
}

/// Asks random clients for a small file, all at once, and returns how many have delivered it.
async fn deliver(server: &Server, clients: usize, small_file: &Path) -> anyhow::Result<usize> {
    let mut numbers: Vec<usize> = (1..=clients).collect();
    fastrand::shuffle(&mut numbers);
    let mut waits = JoinSet::new();
    for number in numbers.into_iter().take(DELIVERIES) {
        waits.spawn(server.download(&crowd::id(number), small_file));
    }
    let digest = blake3::hash(&fs::read(small_file)?).to_string();
    let mut landed = 0;
    while let Some(done) = waits.join_next().await {
        let transfer = done??;
        if transfer["state"] == "COMPLETE" && transfer["blake3"] == digest {
            landed += 1;
        } else {
            say(&format!("not delivered: {transfer}"));
        }
    }
    Ok(landed)
}
