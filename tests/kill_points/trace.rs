//! `strace` around a program: what it is told, and what its log says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    common::{process::pause, server::PATIENCE},
    point::{self, Fault, Place, Point, Site},
    stage::Names,
};

/// A program to be started under `strace`.
#[derive(Debug, Clone)]
pub struct Tracer {
    program: PathBuf,
    log: PathBuf,
    filter: Vec<String>,
    fault: Option<Fault>,
}

/// One line: a call as it began.
#[derive(Debug)]
pub struct Call {
    pub thread: String,
    pub name: String,
    /// The text between its brackets, with the path of each descriptor.
    pub arguments: String,
    pub paths: BTreeSet<PathBuf>,
    pub is_injected: bool,
}

impl Tracer {
    /// Notes every call that a point may be made of.
    pub fn dry(program: &Path, log: &Path) -> Self {
        let calls: Vec<_> = point::calls().collect();
        let filter = vec!["-e".to_owned(), format!("trace={}", calls.join(","))];
        Self { program: program.to_owned(), log: log.to_owned(), filter, fault: None }
    }

    /// Injects the fault of a point, and notes only the calls of its site, and what else is done
    /// with that file.
    pub fn at(program: &Path, log: &Path, point: &Point, names: &Names) -> Self {
        let (call, fault, nth) = (&point.site.call, point.fault.injection(), point.nth);
        let mut filter = vec!["-e".to_owned()];
        match &point.site.place {
            Place::Sockets => filter.push(format!("trace={call}")),
            Place::File(name) => {
                let path = names.path(name).to_str().expect("text").to_owned();
                let also = if is_sync(call) { ",fsync,fdatasync,close" } else { "" };
                filter.extend([format!("trace={call}{also}"), "-P".to_owned(), path]);
            }
        }
        filter.extend(["-e".to_owned(), format!("inject={call}:{fault}:when={nth}")]);
        let fault = Some(point.fault);
        Self { program: program.to_owned(), log: log.to_owned(), filter, fault }
    }

    pub fn program(&self) -> &str {
        self.program.to_str().expect("text")
    }

    /// Returns what goes before the program and its arguments. The tracer is the grandchild, so that
    /// the child is the program.
    pub fn arguments(&self) -> Vec<&str> {
        let log = self.log.to_str().expect("text");
        let mut arguments = vec!["-D", "-f", "-y", "-s", "0", "-o", log];
        // Where seccomp stops a call, `strace` cannot send a signal with it.
        if self.fault != Some(Fault::Kill) {
            arguments.push("--seccomp-bpf");
        }
        arguments.extend(self.filter.iter().map(String::as_str));
        arguments
    }

    pub fn breaks_sockets(&self) -> bool {
        self.fault == Some(Fault::Reset)
    }

    /// Reads the log of a program that has ended.
    pub fn calls(&self, process: i32) -> Vec<Call> {
        let until = Instant::now() + PATIENCE;
        // The tracer may be the last to hear of it.
        let last = format!("{process} +++ ");
        let log = loop {
            let log = fs::read_to_string(&self.log).expect("a log");
            if log.lines().any(|line| squeezed(line).starts_with(&last)) {
                break log;
            }
            assert!(Instant::now() < until, "no end in {}", self.log.display());
            pause();
        };
        parse(&log)
    }
}

pub fn is_sync(call: &str) -> bool {
    matches!(call, "fsync" | "fdatasync")
}

/// `strace` pads process ids.
fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn parse(log: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let rest = rest.trim_start();
        let is_injected = rest.ends_with("(INJECTED)");
        if rest.starts_with("<... ") {
            let begun = calls.iter_mut().rev().find(|call| call.thread == thread);
            begun.expect("what is resumed has begun").is_injected |= is_injected;
            continue;
        }
        let Some((name, rest)) = rest.split_once('(') else { continue };
        if name.starts_with(['+', '-']) {
            continue;
        }
        let arguments = rest.rsplit_once(") = ").or_else(|| rest.rsplit_once(" <unfinished"));
        let arguments = arguments.map_or(rest, |(arguments, _)| arguments).to_owned();
        calls.push(Call {
            thread: thread.to_owned(),
            name: name.to_owned(),
            paths: paths(&arguments),
            arguments,
            is_injected,
        });
    }
    calls
}

/// Returns the paths that `strace -P` would find: of descriptors, and as arguments.
fn paths(arguments: &str) -> BTreeSet<PathBuf> {
    let of_descriptors = arguments.split('<').skip(1).filter_map(|rest| rest.split('>').next());
    let quoted = arguments.split('"').skip(1).step_by(2);
    let all = of_descriptors.chain(quoted).filter(|text| text.starts_with('/'));
    all.map(PathBuf::from).collect()
}

/// Returns how often a thread makes each call, at most, and how often all of them do.
pub fn sites(calls: &[Call], names: &Names) -> BTreeMap<Site, (usize, usize)> {
    let mut counts: BTreeMap<Site, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut count = |place, call: &Call, thread| {
        let site = Site { place, call: call.name.clone() };
        *counts.entry(site).or_default().entry(thread).or_default() += 1;
    };
    for call in calls {
        let thread = call.thread.as_str();
        if point::is_socket_call(&call.name) {
            count(Place::Sockets, call, thread);
        } else {
            let places = call.paths.iter().filter_map(|path| names.name(path));
            places.for_each(|name| count(Place::File(name), call, thread));
        }
    }
    let sums = |threads: BTreeMap<&str, usize>| {
        (threads.values().copied().max().unwrap_or(0), threads.values().sum())
    };
    counts.into_iter().map(|(site, threads)| (site, sums(threads))).collect()
}

/// Returns the first sync of a descriptor on which one has failed.
pub fn synced_again(calls: &[Call]) -> Option<&Call> {
    let failed = calls.iter().position(|call| call.is_injected && is_sync(&call.name))?;
    let descriptor = |call: &Call| call.arguments.split('<').next().map(str::to_owned);
    let of_failed = |call: &&Call| descriptor(call) == descriptor(&calls[failed]);
    let next = calls[failed + 1..].iter().find(of_failed)?;
    is_sync(&next.name).then_some(next)
}

#[test]
fn a_log_is_read() {
    let log = "\
100   openat(3</d/files>, \"partial\", O_RDONLY) = 4</d/files/partial>
101   fdatasync(5</d/x> <unfinished ...>
100   recvfrom(9<socket:[1]>, \"\"..., 3, 0, NULL, NULL) = 3
101   <... fdatasync resumed>)              = -1 EIO (Input/output error) (INJECTED)
101   fdatasync(5</d/x>) = 0
100   +++ killed by SIGKILL +++
";
    let calls = parse(log);
    let names: Vec<_> = calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!(names, ["openat", "fdatasync", "recvfrom", "fdatasync"]);
    assert_eq!(calls[0].paths, BTreeSet::from(["/d/files".into()]));
    assert!(calls[1].is_injected && !calls[3].is_injected);
    assert!(synced_again(&calls).is_some());
    let closed = log.replace("101   fdatasync(5</d/x>) = 0", "101   close(5</d/x>) = 0");
    assert!(synced_again(&parse(&closed)).is_none());
}
