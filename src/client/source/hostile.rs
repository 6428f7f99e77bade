//! A hostile server against [`Source`]: paths without number, and names that change while they are
//! opened.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, RenameFlags};
use tempfile::TempDir;

use super::*;
use crate::{
    chunk::{self, Prefix},
    client::{
        pace::ReadPace,
        reader::{Pool, Reading},
        resume::Plan,
    },
    limits,
    transfer::Consistency,
    wire::session::{Resume, Upload},
};

#[path = "../../../tests/evil_server/paths.rs"]
mod paths;

use paths::Paths;

const SECRET: &str = "3f9a1c0bb77e4d52a6180e9dcb4f27a1";
const DENIED: &str = "DeniedByPolicy: not allowed by the client's policy";

/// A root that all links lead out of, beside what nobody may know of.
struct Site {
    temp: TempDir,
    state_dir: Arc<StateDir>,
}

impl Site {
    fn new() -> Self {
        let temp = tempfile::tempdir().expect("a directory");
        let state_dir = StateDir::open(&temp.path().join("state")).expect("free");
        let site = Self { temp, state_dir: Arc::new(state_dir) };
        for dir in ["root", "root/sub", "vault", "root-secret"] {
            fs::create_dir(site.path(dir)).expect("made");
        }
        for secret in ["canary", "vault/canary", "vault/open", "root-secret/canary", "shut"] {
            fs::write(site.path(secret), SECRET).expect("written");
        }
        fs::set_permissions(site.path("shut"), fs::Permissions::from_mode(0o000)).expect("set");
        fs::write(site.path("root/open"), "open").expect("written");
        let absolute = site.path("canary").display().to_string();
        let links = [
            ("root/out", "../canary"),
            ("root/out-dir", "../vault"),
            ("root/absolute", absolute.as_str()),
            ("root/up", ".."),
            ("root/sub/back", ".."),
            ("root/magic", "/proc/self/root"),
            ("root/fd", "/proc/self/fd"),
            ("root/circle", "circle"),
        ];
        for (link, target) in links {
            symlink(target, site.path(link)).expect("linked");
        }
        site
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.temp.path().join(rest)
    }

    /// By a policy of one root, with more keys.
    fn source(&self, more: &str) -> Source {
        let root = self.path("root");
        let policy = format!("[[root]]\nname = 'root'\npath = {root:?}\n{more}\n");
        let policy = Policy::parse(&policy).expect("a policy");
        Source::new(&Shared::Policy(policy), self.state_dir.clone())
    }
}

/// Returns all that a server could learn.
fn learnt(source: &Source, path: &str) -> String {
    match source.open(&path.parse().map(Some)) {
        Ok(opened) => {
            let size = opened.fingerprint.size_bytes;
            let mut text = String::new();
            opened.file().read_to_string(&mut text).expect("read");
            format!("{size} bytes: {text}")
        }
        Err(err) => format!("{:?}: {err}", err.reason()),
    }
}

/// Judges by itself whether a path may be looked at: it has another way to find out than `Policy`.
fn is_beneath(path: &str, root: &Path) -> bool {
    use std::path::Component;
    let mut components = Path::new(path).components();
    let is_up = components.any(|part| part == Component::ParentDir);
    let is_path = path.len() <= limits::PATH_BYTES_MAX && !path.contains('\0') && !is_up;
    // What `components` leaves out is the same path: `//`, and `.`.
    is_path && Path::new(path).starts_with(root)
}

fn ask_many(pairs: u32, seed: u64) {
    let site = Site::new();
    let root = site.path("root");
    let source = site.source("");
    let of_outside = site.source("");
    let mut paths = Paths::new(site.temp.path().to_str().expect("text"), seed);
    let (mut outside, mut delivered) = (0_u32, 0_u32);
    for _ in 0..pairs {
        let (path, twin) = paths.pair();
        let told = learnt(&source, &path);
        assert!(!told.contains(SECRET) && !told.starts_with("32 bytes"), "{path:?}: {told}");
        assert_eq!(told, learnt(&source, &twin), "{path:?} and {twin:?}");
        if is_beneath(&path, &root) {
            delivered += u32::from(told == "4 bytes: open");
        } else {
            outside += 1;
            assert_eq!(told, DENIED, "{path:?}");
            assert_eq!(learnt(&of_outside, &path), DENIED, "{path:?}");
        }
    }
    assert!(outside > pairs / 4 && delivered > pairs / 1000, "{outside} out, {delivered} open");
    // Names alone were compared, which take as long whatever is there: not even the root was opened.
    assert!(of_outside.held[0].is_empty());
}

#[test]
fn nothing_is_learnt_of_what_is_outside() {
    ask_many(20_000, 1);
}

#[test]
#[ignore = "test-all: a million paths take a minute"]
fn nothing_is_learnt_of_what_is_outside_from_a_million_paths() {
    ask_many(1_000_000, 2);
}

/// What two threads exchange for as long as a third one opens.
type Flip<'a> = dyn Fn() + Sync + 'a;

fn exchange(a: &Path, b: &Path) {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).expect("exchanged");
}

/// Opens `path` for so long, and until it has met both sides, while `flips` go on. Only `refusal` may
/// be said of what is not the open file.
fn race(source: &Source, path: &Path, flips: [&Flip<'_>; 2], length: Duration, refusal: &str) {
    let path = path.to_str().expect("text");
    race_of(&|| learnt(source, path), "4 bytes: open", flips, length, refusal);
}

/// The same, with another way to look.
fn race_of(
    look: &dyn Fn() -> String,
    open: &str,
    flips: [&Flip<'_>; 2],
    length: Duration,
    refusal: &str,
) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for flip in flips {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    flip();
                }
            });
        }
        let begun = Instant::now();
        let (mut good, mut refused, mut bad) = (0_u64, 0_u64, None);
        // No assert in here: it would leave the other threads running.
        let is_enough = |good, refused| good > 0 && refused > 0 && begun.elapsed() >= length;
        while !is_enough(good, refused) && bad.is_none() && begun.elapsed() < 20 * length {
            match look() {
                told if told == open => good += 1,
                told if told == refusal => refused += 1,
                told => bad = Some(told),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let (tries, taken) = (good + refused, begun.elapsed());
        assert_eq!(bad, None, "after {tries} tries, {taken:?}");
        assert!(good > 0 && refused > 0, "{good} good, {refused} refused: no race");
        eprintln!("{good} good, {refused} refused in {taken:?}");
    });
}

/// A directory and a link out; in it a file and a link out.
fn race_with_links_out(length: Duration) {
    let site = Site::new();
    fs::create_dir(site.path("root/dir")).expect("made");
    fs::write(site.path("root/dir/open"), "open").expect("written");
    symlink("../../canary", site.path("root/dir/link")).expect("linked");
    let dir = File::open(site.path("root/dir")).expect("open");
    let (real, link) = (site.path("root/dir"), site.path("root/out-dir"));
    let dirs = || exchange(&real, &link);
    // By its descriptor, so that it is this directory whatever its name.
    let files = || {
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(&dir, "open", &dir, "link", flags).expect("exchanged");
    };
    race(&site.source(""), &site.path("root/dir/open"), [&dirs, &files], length, DENIED);
}

/// A directory, and a link to one that is excluded.
fn race_with_links_to_excluded(length: Duration) {
    let site = Site::new();
    for dir in ["root/dir", "root/private"] {
        fs::create_dir(site.path(dir)).expect("made");
    }
    fs::write(site.path("root/dir/open"), "open").expect("written");
    fs::write(site.path("root/private/open"), SECRET).expect("written");
    symlink("private", site.path("root/link")).expect("linked");
    let (real, link) = (site.path("root/dir"), site.path("root/link"));
    let dirs = || exchange(&real, &link);
    // The other one only rests the disk: two threads that undo each other show less.
    let idle = || thread::yield_now();
    let source = site.source("exclude = ['private']");
    race(&source, &site.path("root/dir/open"), [&dirs, &idle], length, DENIED);
}

/// A file, and a FIFO, on which a careless open would hang.
fn race_with_a_fifo(length: Duration) {
    let site = Site::new();
    let (file, fifo) = (site.path("root/open"), site.path("root/fifo"));
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("made");
    let files = || exchange(&file, &fifo);
    let idle = || thread::yield_now();
    let refusal = "SourceNotRegular: it is a FIFO, not a regular file";
    race(&site.source(""), &file, [&files, &idle], length, refusal);
}

/// A file of which the server keeps the beginning, and a link out to one that is as long.
fn race_on_resume(length: Duration) {
    const SIZE: usize = 2 * limits::CHUNK_BYTES + 1;
    let site = Site::new();
    let (file, link) = (site.path("root/open"), site.path("root/out"));
    fs::write(&file, vec![b'o'; SIZE]).expect("written");
    fs::write(site.path("canary"), vec![b'c'; SIZE]).expect("written");
    let source = site.source("");
    let path = Ok(Some(file.to_str().expect("text").parse().expect("a path")));
    let inode = source.open(&path).expect("there").fingerprint.inode;
    let mut kept = Prefix::default();
    kept.push(chunk::value(0, &vec![b'o'; limits::CHUNK_BYTES]));
    let look = || match source.open(&path) {
        Ok(file) => {
            // The flips change its ctime, so that it would begin anew: here it goes on.
            let offered = Resume { fingerprint: file.fingerprint, kept: kept.clone() };
            if file.fingerprint.inode != inode {
                return "another file".to_owned();
            }
            sent(&file, &Plan::new(Some(&offered), &file.fingerprint, None, false))
        }
        Err(err) => format!("{:?}: {err}", err.reason()),
    };
    let files = || exchange(&file, &link);
    let idle = || thread::yield_now();
    race_of(&look, "only o", [&files, &idle], length, DENIED);
}

/// Says what is sent of a file by a plan.
fn sent(file: &OpenFile, plan: &Plan) -> String {
    let (consistency, pool) = (Consistency::Auto, Pool::default());
    let again = ReadPace::new(None, Arc::default(), CancellationToken::new());
    let mut other = None;
    let reading = Reading { file, consistency, plan, pool: &pool, again: &again };
    reading.read(&mut |message| {
        if let Upload::Chunk { data, .. } = message {
            other = other.or(data.iter().copied().find(|byte| *byte != b'o'));
        }
        true
    });
    other.map_or_else(|| "only o".to_owned(), |byte| format!("a byte {byte}"))
}

const SAMPLE: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(15);

#[test]
fn no_race_of_links_leads_out() {
    race_with_links_out(SAMPLE);
}

#[test]
fn no_race_of_links_leads_to_what_is_excluded() {
    race_with_links_to_excluded(SAMPLE);
}

#[test]
fn no_race_opens_what_is_no_file() {
    race_with_a_fifo(SAMPLE);
}

#[test]
fn no_race_leads_out_when_an_upload_goes_on() {
    race_on_resume(SAMPLE);
}

#[test]
#[ignore = "test-all: each race takes 15 s"]
fn no_race_shows_anything_for_long() {
    race_with_links_out(LONG);
    race_with_links_to_excluded(LONG);
    race_with_a_fifo(LONG);
    race_on_resume(LONG);
}
