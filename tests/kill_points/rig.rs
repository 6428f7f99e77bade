//! Plays one point: a pull under `strace` from a fresh copy of what the programs are to find, then
//! one without, to its end.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    check,
    common::process::{Process, pause},
    point::{Fault, Place, Point, Program, Site, Start},
    pull::{Patience, Stop, follow_break, follow_half, pull, queue},
    stage::{Asked, Stage, plan},
    trace::{self, Call, Tracer, is_sync},
};

pub struct Rig {
    strace: PathBuf,
    shared: TempDir,
    plan: Vec<Asked>,
    runtime: Runtime,
}

/// What became of a point.
#[derive(Debug)]
pub struct Played {
    /// The how many-th call of its site had the fault, over all threads; none if none had it.
    pub hit: Option<usize>,
    /// Why the pull under `strace` did not come to its end.
    pub stopped: Option<Stop>,
    pub problems: Vec<String>,
    /// Where to look, if there are problems.
    pub kept: Option<PathBuf>,
}

/// A pull under `strace`, after its program has ended.
struct Traced {
    pulled: Result<(), Stop>,
    /// How the program ended; `None` if it had to be ended.
    ended: Option<ExitStatus>,
    /// What it said until then.
    said: String,
    calls: Vec<Call>,
    /// The other program, if it was started.
    other: Option<Process>,
}

impl Rig {
    pub fn new(strace: PathBuf) -> Self {
        let rig = Self {
            strace,
            shared: TempDir::new().expect("a directory"),
            plan: plan(),
            runtime: Runtime::new().expect("a runtime"),
        };
        for asked in &rig.plan {
            fs::write(rig.shared.path().join(asked.name), &asked.data).expect("written");
        }
        rig
    }

    /// Makes what the programs are to find.
    pub fn prepare(&self, start: Start) -> Stage {
        // What is long to send is pulled in one of them.
        let names: &[&str] = match start {
            Start::Empty => &["SMALL"],
            Start::Queued => &["LARGE", "SMALL", "LIVE"],
            Start::Breaking | Start::Cut | Start::Published => &["LARGE"],
        };
        let plan = self.plan.iter().filter(|asked| names.contains(&asked.name)).cloned();
        let mut stage = Stage::empty(self.shared.path(), plan.collect(), start);
        if start == Start::Empty {
            return stage;
        }
        let mut server = stage.start_server(None);
        stage.listens(&mut server).expect("it starts");
        self.runtime.block_on(queue(&stage, &["LARGE", "SMALL"]));
        if start == Start::Cut {
            let client = stage.start_client(None, &SLOWLY);
            let half = follow_half(&stage, &stage.plan[0], &mut server, Patience::LONG);
            self.runtime.block_on(half).expect("it moves");
            client.kill();
            self.runtime.block_on(follow_break(&stage, "LARGE"));
        }
        server.signal(Signal::TERM);
        server.wait();
        if start == Start::Published {
            let kill = "queued:server:kill:fsync:data/files/of-LARGE:1".parse().expect("a point");
            let strace = Tracer::at(&self.strace, &stage.path("trace"), &kill, &stage.names());
            let traced = self.under(&mut stage, Program::Server, &strace);
            assert!(is_killed(traced.ended), "the large file was not published");
        }
        stage
    }

    /// Returns every point of a program and a fault, and how many calls each site has in all.
    pub fn points(
        &self,
        found: &Stage,
        start: Start,
        program: Program,
        fault: Fault,
    ) -> (Vec<Point>, BTreeMap<Site, usize>) {
        let mut stage = found.copy();
        // What is not known before is not known to a point either.
        let names = stage.names();
        let strace = Tracer::dry(&self.strace, &stage.path("trace"));
        let traced = self.under(&mut stage, program, &strace);
        traced.pulled.expect("a dry run delivers");
        let sites = trace::sites(&traced.calls, &names);
        let sites: Vec<_> = sites.into_iter().filter(|(site, _)| fault.befalls(site)).collect();
        let points = sites.iter().flat_map(|(site, (by_one_thread, _))| {
            let at = |nth| Point { start, program, fault, site: site.clone(), nth };
            (1..=*by_one_thread).map(at)
        });
        let points = points.collect();
        (points, sites.into_iter().map(|(site, (_, all))| (site, all)).collect())
    }

    pub fn play(&self, found: &Stage, point: &Point) -> Played {
        let mut stage = found.copy();
        let strace = Tracer::at(&self.strace, &stage.path("trace"), point, &stage.names());
        let traced = self.under(&mut stage, point.program, &strace);
        let hit = hit(point, traced.ended, &traced.calls);
        let mut problems: Vec<_> = misconduct(point, hit, &traced).into_iter().collect();
        // Before anybody goes on: what has left must be on record now.
        problems.extend(check::unrecorded(&stage));
        let Traced { pulled, calls, other, .. } = traced;
        if let Some(call) = trace::synced_again(&calls).filter(|_| may_not_sync_again(point)) {
            problems.push(format!("synced again after that failed: {call:?}"));
        }
        if let Err(why) = self.mend(&mut stage, point.program, other) {
            problems.push(format!("without strace: {why}"));
        }
        problems.extend(self.runtime.block_on(check::problems(&stage)));
        problems.extend(check::unrecorded(&stage));
        if problems.is_empty() {
            problems.extend(self.misworked(found, &stage, point, hit));
        }
        let kept = (!problems.is_empty()).then(|| stage.keep());
        Played { hit, stopped: pulled.err(), problems, kept }
    }

    /// Returns what was done too little or too much.
    fn misworked(
        &self,
        found: &Stage,
        stage: &Stage,
        point: &Point,
        hit: Option<usize>,
    ) -> Option<String> {
        let work = |stage| self.runtime.block_on(check::work(stage, "LARGE")).expect("a record");
        if hit.is_some() && forbids_to_land(point) && work(stage).epoch == 1 {
            return Some("the attempt whose sync failed is COMPLETE".to_owned());
        }
        if hit.is_some() && forbids_to_keep(point) {
            // Half of it came, and then all of it.
            let came = work(stage).received_bytes * 4;
            let is_new = came >= i64::try_from(stage.plan[0].data.len()).expect("small") * 5;
            return (!is_new).then(|| "kept although its sync failed".to_owned());
        }
        // What a disk fails to read or to write is not kept.
        let is_kept = matches!(point.fault, Fault::Kill | Fault::Interrupted);
        if point.start == Start::Breaking && is_kept {
            let why = work(stage).restart_detail?;
            return Some(format!("it began from zero: {why}"));
        }
        if point.start == Start::Cut && is_kept {
            // Opened only once the run is over, so that each run finds the same files.
            return check::sent_again(&stage.plan[0], &work(&found.copy()), &work(stage));
        }
        None
    }

    /// Pulls under `strace`, then ends the program: softly, unless it is in the middle.
    fn under(&self, stage: &mut Stage, program: Program, strace: &Tracer) -> Traced {
        let pulled = |stage: &Stage, mortal: &mut Process| {
            self.runtime.block_on(pull(stage, mortal, Patience::SHORT))
        };
        let (mut mortal, other, mut pulled) = match program {
            Program::Server => {
                let mut server = stage.start_server(Some(strace));
                if let Err(status) = stage.listens(&mut server) {
                    (server, None, Err(Stop::Ended(status)))
                } else {
                    let client = self.client_of(stage, &mut server);
                    let pulled = pulled(stage, &mut server);
                    (server, Some(client), pulled)
                }
            }
            Program::Client => {
                let mut server = stage.start_server(None);
                stage.listens(&mut server).expect("it starts");
                let mut client = stage.start_client(Some(strace), &[]);
                let pulled = pulled(stage, &mut client);
                (client, Some(server), pulled)
            }
        };
        let said = mortal.read_log();
        let process = mortal.id().as_raw_nonzero().get();
        let mut ended = mortal.ended();
        // A signal reaches the runtime over a socket of its own, which no fault is meant for.
        if ended.is_none() && pulled.is_ok() && !strace.breaks_sockets() {
            mortal.signal(Signal::TERM);
            ended = ended_in_time(&mut mortal);
            if ended.is_none() {
                pulled = Err(Stop::Stays("it was told to stop, and did not".to_owned()));
            }
        }
        if mortal.ended().is_none() {
            mortal.kill();
        }
        Traced { pulled, ended, said, calls: strace.calls(process), other }
    }

    /// Starts a client; one that is to be killed in the middle is killed, and the next one started.
    fn client_of(&self, stage: &Stage, server: &mut Process) -> Process {
        if stage.start() == Start::Breaking {
            let client = stage.start_client(None, &SLOWLY);
            let half = follow_half(stage, &stage.plan[0], server, Patience::SHORT);
            // Without a half there is nothing to break.
            drop(self.runtime.block_on(half));
            client.kill();
        }
        stage.start_client(None, &[])
    }

    /// Starts again what has ended, as if nothing had been, and pulls to the end.
    fn mend(
        &self,
        stage: &mut Stage,
        program: Program,
        other: Option<Process>,
    ) -> Result<(), String> {
        let (server, client) = match program {
            Program::Server => (None, other),
            Program::Client => (other, None),
        };
        let mut server = server.unwrap_or_else(|| stage.start_server(None));
        if let Err(status) = stage.listens(&mut server) {
            return Err(format!("the server does not start again: {status}"));
        }
        let _client = client.unwrap_or_else(|| stage.start_client(None, &[]));
        let pulled = self.runtime.block_on(pull(stage, &mut server, Patience::LONG));
        if server.ended().is_none() {
            server.signal(Signal::TERM);
            server.wait();
        }
        pulled.map_err(|stop| stop.to_string())
    }
}

/// Returns what a program did that no fault excuses. From an error it recovers, or a transfer says
/// when it is tried again; only one that has not begun to serve may end, and then it says why.
fn misconduct(point: &Point, hit: Option<usize>, traced: &Traced) -> Option<String> {
    let Err(stop) = &traced.pulled else { return None };
    if hit.is_none() {
        return Some(format!("without a fault: {stop}"));
    }
    let is_refusal = match stop {
        Stop::Waits(_) => return None,
        // `strace` counts by thread: each new connection to the store may meet the fault again.
        Stop::Stays(_) if traced.calls.iter().filter(|call| call.is_injected).count() > 1 => {
            return None;
        }
        Stop::Stays(_) => return Some(stop.to_string()),
        Stop::Ended(status) => status.code().is_some_and(|code| code == 1 || code == 78),
    };
    let serves = ["\"message\":\"serving\"", "\"message\":\"registered\""];
    let has_served = serves.iter().any(|text| traced.said.contains(text));
    let is_said = traced.said.contains("error") || traced.said.contains("cannot");
    let is_fine = point.fault == Fault::Kill || (is_refusal && !has_served && is_said);
    (!is_fine).then(|| format!("{stop}, and said: {}", traced.said))
}

fn ended_in_time(process: &mut Process) -> Option<ExitStatus> {
    let until = Instant::now() + STOP_WAIT;
    while Instant::now() < until {
        if let Some(status) = process.ended() {
            return Some(status);
        }
        pause();
    }
    None
}

/// Either program, told to stop, ends in this time.
const STOP_WAIT: Duration = Duration::from_secs(45);

/// For a client that is to be killed in the middle of a file.
const SLOWLY: [&str; 2] = ["--max-rate", "8MB/s"];

fn is_killed(ended: Option<ExitStatus>) -> bool {
    ended.and_then(|status| status.signal()) == Some(Signal::KILL.as_raw())
}

/// Returns which call of its site had the fault.
fn hit(point: &Point, ended: Option<ExitStatus>, calls: &[Call]) -> Option<usize> {
    let of_site: Vec<_> = calls.iter().filter(|call| call.name == point.site.call).collect();
    if point.fault == Fault::Kill {
        return is_killed(ended).then_some(of_site.len());
    }
    of_site.iter().position(|call| call.is_injected).map(|index| index + 1)
}

/// Whether what could not be synced may be lost, and so must be written again. An interrupted sync
/// has lost nothing; and SQLite syncs its log once more before it moves what was committed, and so
/// synced, before.
fn may_not_sync_again(point: &Point) -> bool {
    let must_last = point.site.is_of_files() || point.site.is_of_audit();
    must_last && matches!(point.fault, Fault::Io | Fault::Full)
}

/// Whether the large file must not be COMPLETE by the attempt that met this: its data or its name
/// is not known to be on the disk.
fn forbids_to_land(point: &Point) -> bool {
    let Place::File(name) = &point.site.place else { return false };
    let is_of_file = name.contains("LARGE") && point.start == Start::Queued;
    is_of_file && is_sync(&point.site.call) && may_not_sync_again(point)
}

/// Whether what came of the large file must not be kept: it is not known to be on the disk.
fn forbids_to_keep(point: &Point) -> bool {
    let Place::File(name) = &point.site.place else { return false };
    let is_of_data = point.start == Start::Breaking && name == "data/files/partial/LARGE";
    is_of_data && is_sync(&point.site.call) && may_not_sync_again(point)
}
