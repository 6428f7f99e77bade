//! Which points are played, and what is told of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::{Duration, Instant},
};

use crate::{
    common::tools,
    point::{Fault, Point, Program, Site, Start},
    rig::Rig,
    stage::Stage,
    trace::is_sync,
};

/// What is asked of a run of the tests.
enum Wanted {
    Sample,
    All,
    One(Point),
}

/// Plays every point of a program and a fault that is wanted.
pub fn sweep(test: &str, program: Program, fault: Fault, starts: &[Start]) {
    let Some(strace) = tools::tool(test, "strace") else { return };
    let wanted = match env::var("KILL").as_deref() {
        Err(_) => Wanted::Sample,
        Ok("all") => Wanted::All,
        Ok(point) => Wanted::One(point.parse().expect("KILL=all, or a point")),
    };
    let rig = Rig::new(strace);
    let mut tally = Tally::default();
    for &start in starts {
        if let Wanted::One(point) = &wanted {
            if (point.start, point.program, point.fault) == (start, program, fault) {
                tally.play(&rig, &rig.prepare(start), point);
            }
            continue;
        }
        let found = rig.prepare(start);
        let (all, calls) = rig.points(&found, start, program, fault);
        tally.calls += calls.values().sum::<usize>();
        let points = match wanted {
            Wanted::Sample => sample(&all, start),
            _ => all.iter().collect(),
        };
        for point in points {
            tally.play(&rig, &found, point);
        }
    }
    tally.tell(test, matches!(wanted, Wanted::All));
}

/// Returns always the same ones of the points of a start: one of each site that the start is about,
/// but every sync of what is kept, and a few of the other sites.
fn sample(points: &[Point], start: Start) -> Vec<&Point> {
    let sites = points.chunk_by(|one, next| one.site == next.site);
    let (about, others): (Vec<_>, Vec<_>) = sites.partition(|points| match start {
        Start::Queued => points[0].site.is_of_files() || points[0].site.is_of_audit(),
        Start::Breaking => points[0].site.is_of_partial(),
        Start::Empty | Start::Cut | Start::Published => false,
    });
    let middle = |points: &&'_ [Point]| points.len() / 2;
    let others: Vec<_> = others.iter().map(|points| &points[middle(points)]).collect();
    let about = about.iter().flat_map(|points| {
        let is_each = points[0].site.is_of_partial() && is_sync(&points[0].site.call);
        if is_each { points.iter() } else { points[middle(points)..=middle(points)].iter() }
    });
    about.chain(spread(&others, SAMPLE)).collect()
}

/// So many points are taken where not all are.
const SAMPLE: usize = 3;

/// Returns at most `some` points, evenly spread.
fn spread<'a>(points: &[&'a Point], some: usize) -> Vec<&'a Point> {
    let some = some.min(points.len());
    (0..some).map(|index| points[(index * points.len() + points.len() / 2) / some]).collect()
}

/// What came of all points.
#[derive(Default)]
struct Tally {
    played: usize,
    /// Calls that a dry run made.
    calls: usize,
    /// Of which the fault met these.
    hit: BTreeSet<(String, Site, usize)>,
    /// The pull under `strace` did not come to its end, by what it said.
    stopped: BTreeMap<String, Vec<String>>,
    longest: (Duration, String),
    failed: Vec<String>,
}

impl Tally {
    fn play(&mut self, rig: &Rig, found: &Stage, point: &Point) {
        let began = Instant::now();
        let played = rig.play(found, point);
        self.played += 1;
        let point_text = point.to_string();
        self.longest = self.longest.clone().max((began.elapsed(), point_text.clone()));
        if let Some(ordinal) = played.hit {
            self.hit.insert((format!("{:?}", point.start), point.site.clone(), ordinal));
        }
        if let Some(stop) = played.stopped {
            self.stopped.entry(stop.to_string()).or_default().push(point_text.clone());
        }
        if let Some(kept) = played.kept {
            let problems = played.problems.join("\n  ");
            let text = format!("KILL={point_text} ({})\n  {problems}", kept.display());
            eprintln!("FAILED {text}");
            self.failed.push(text);
        }
    }

    fn tell(self, test: &str, all: bool) {
        let (played, hit, calls) = (self.played, self.hit.len(), self.calls);
        let failed = self.failed.len();
        eprintln!("{test}: {played} points, {hit} of {calls} calls met, {failed} failed");
        eprintln!("  the longest: {:?} {}", self.longest.0, self.longest.1);
        if all {
            for (why, points) in &self.stopped {
                eprintln!("  {} were stopped by: {why}; such as {}", points.len(), points[0]);
            }
        }
        assert!(self.failed.is_empty(), "to run one again:\n{}", self.failed.join("\n"));
        // Not every run makes as many calls as the dry one; but a sweep that meets nothing proves
        // nothing.
        assert!(hit > 0 || played == 0, "none of {played} points was met");
    }
}
