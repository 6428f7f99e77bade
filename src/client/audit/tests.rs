use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::*;
use crate::{
    client::{
        audit::verify::{Verified, verify},
        state_dir::StateDir,
    },
    ids::{Digest, TransferId},
};

/// A state directory, and the audit in it.
struct Site {
    dir: TempDir,
    state: StateDir,
    bounds: Bounds,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(&dir.path().join("state")).expect("free");
        Self { dir, state, bounds: Bounds { file_bytes: 1 << 20, files_max: 3 } }
    }

    fn log(&self) -> Log {
        Log::open(&self.state, self.bounds).expect("opened")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("state/audit").join(name)
    }

    fn current(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).expect("a directory");
        let name = |entry: io::Result<fs::DirEntry>| {
            entry.expect("an entry").file_name().into_string().expect("text")
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }

    fn verify(&self, told: Option<AuditHead>) -> Verified {
        verify(&self.dir.path().join("state"), told).expect("to be read")
    }

    /// Returns what the lines say, oldest first.
    fn events(&self) -> Vec<Event> {
        let all = self.names().into_iter().filter(|name| name.starts_with("audit"));
        let (closed, current): (Vec<_>, Vec<_>) = all.partition(|name| name != "audit.jsonl");
        let text = |name: &String| fs::read_to_string(self.path(name)).expect("text");
        let text: String = closed.iter().chain(&current).map(text).collect();
        let read = |line: &str| line::read(line.as_bytes()).expect("a line").event;
        text.lines().map(read).collect()
    }
}

fn event(path: &str) -> Event {
    let asked = Asked {
        transfer: TransferId::generate(),
        epoch: 1,
        path: path.to_owned(),
        operator: None,
        signer: None,
    };
    Event::Serve { asked, file: None, size: 1, from: 0, rule: "r".to_owned() }
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a file");
    change(&mut bytes);
    fs::write(path, bytes).expect("written");
}

// === Files ===

#[test]
fn the_chain_goes_on_over_files_and_restarts() {
    let mut site = Site::new();
    site.bounds = Bounds { file_bytes: 600, files_max: 100 };
    let mut head = AuditHead::NONE;
    for number in 0..10 {
        let mut log = site.log();
        assert_eq!(log.head(), head);
        for _ in 0..3 {
            log.append(&[event(&format!("/{number}"))]).expect("written");
        }
        head = log.head();
    }

    let found = site.verify(Some(head));

    assert!(site.names().len() > 5, "{:?}", site.names());
    assert!(found.is_whole(), "{found}");
    assert_eq!((found.first, found.head), (1, head));
    assert_eq!(head.seq, 30);
}

#[test]
fn the_oldest_files_go_and_that_is_on_record() {
    let mut site = Site::new();
    site.bounds = Bounds { file_bytes: 1, files_max: 2 };
    let mut log = site.log();
    for _ in 0..6 {
        log.append(&[event("/a")]).expect("written");
    }

    assert_eq!(site.names().len(), 3, "{:?}", site.names());
    let found = site.verify(None);
    assert!(found.is_whole(), "{found}");
    assert!(found.first > 1);
    let dropped = site.events().into_iter().filter_map(|event| match event {
        Event::Drop { next, .. } => Some(next),
        _ => None,
    });
    assert_eq!(dropped.max(), Some(found.first));
    // Without the files before, the next process goes on all the same.
    let next = site.log();
    assert_eq!(next.head(), log.head());
}

#[test]
fn a_torn_tail_is_cut_off_and_that_is_on_record() {
    let with_a_line_feed = [&b"\n\0"[..], &[b'x'; 4096]].concat();
    for torn in [&b"{\"seq\":3,"[..], b"\0\0\0\0", b"{\"seq\":3,\n\0", &with_a_line_feed[..]] {
        let site = Site::new();
        let mut log = site.log();
        log.append(&[event("/a"), event("/b")]).expect("written");
        let before = log.head();
        drop(log);
        edit(&site.current(), |bytes| bytes.extend_from_slice(torn));
        let found = site.verify(Some(before));
        assert!(found.is_whole(), "{found}");
        assert_eq!(found.torn_bytes, torn.len() as u64);

        // One that is killed before it has said so takes nothing away.
        drop(site.log());
        let mut log = site.log();
        log.append(&[event("/c")]).expect("written");

        assert_eq!(log.head().seq, 4);
        let found = site.verify(Some(before));
        assert!(found.is_whole(), "{found}");
        assert_eq!(site.events()[2], Event::Torn { bytes: torn.len() as u64 });
    }
}

#[test]
fn a_full_file_is_not_closed_with_a_torn_tail() {
    let mut site = Site::new();
    site.bounds = Bounds { file_bytes: 1, files_max: 3 };
    site.log().append(&[event("/a")]).expect("written");
    edit(&site.current(), |bytes| bytes.extend_from_slice(b"torn"));
    let mut log = site.log();
    for _ in 0..2 {
        log.append(&[event("/b")]).expect("written");
    }

    let found = site.verify(Some(log.head()));
    assert!(found.is_whole(), "{found}");
    assert_eq!(site.events()[1], Event::Torn { bytes: 4 });
}

#[test]
fn what_was_changed_is_put_aside_and_never_goes_unseen() {
    let site = Site::new();
    let mut log = site.log();
    let head = (0..4).map(|_| {
        log.append(&[event("/var/log/a")]).expect("written");
        log.head()
    });
    let heads: Vec<_> = head.collect();
    drop(log);
    edit(&site.current(), |bytes| {
        let at = bytes.windows(5).position(|at| at == b"log/a").expect("there");
        bytes[at + 4] = b'b';
    });
    assert!(!site.verify(None).is_whole());

    let mut log = site.log();
    log.append(&[event("/c")]).expect("written");

    assert!(site.names().iter().any(|name| name.starts_with("broken-")), "{:?}", site.names());
    let found = site.verify(None);
    assert!(!found.is_whole(), "{found}");
    assert!(!heads[3].may_become(log.head()), "the server sees it too");
}

#[test]
fn the_last_line_is_none_of_a_crash_if_it_was_changed() {
    let site = Site::new();
    let mut log = site.log();
    log.append(&[event("/a"), event("/b")]).expect("written");
    drop(log);
    edit(&site.current(), |bytes| {
        let at = bytes.windows(2).rposition(|at| at == b"/b").expect("there");
        bytes[at + 1] = b'c';
    });
    assert!(!site.verify(None).is_whole());

    site.log().append(&[event("/d")]).expect("written");

    let found = site.verify(None);
    assert!(!found.is_whole(), "{found}");
}

#[test]
fn what_was_put_aside_is_told_by_verify_also_after_a_kill() {
    let site = Site::new();
    let mut log = site.log();
    log.append(&[event("/a"), event("/b")]).expect("written");
    drop(log);
    edit(&site.current(), |bytes| bytes[20] ^= 1);

    // Killed before it has written a line of it.
    drop(site.log());

    assert!(site.names().iter().any(|name| name.starts_with("broken-")), "{:?}", site.names());
    let found = site.verify(None);
    assert!(!found.is_whole(), "{found}");
}

#[test]
fn a_file_is_removed_once_a_line_says_so() {
    let mut site = Site::new();
    site.bounds = Bounds { file_bytes: 1, files_max: 2 };
    let mut log = site.log();
    for _ in 0..3 {
        log.append(&[event("/a")]).expect("written");
    }
    // It cannot be removed.
    let oldest = site.names().swap_remove(0);
    fs::remove_file(site.path(&oldest)).expect("removed");
    fs::create_dir(site.path(&oldest)).expect("made");

    log.append(&[event("/b")]).expect("written");

    fs::remove_dir(site.path(&oldest)).expect("still there");
    let drop = Event::Drop { file: oldest, next: 2 };
    assert!(site.events().contains(&drop), "{:?}", site.events());
}

#[test]
fn lines_that_are_gone_from_the_begin_are_missed() {
    let mut site = Site::new();
    site.bounds = Bounds { file_bytes: 1, files_max: 2 };
    let mut log = site.log();
    for _ in 0..6 {
        log.append(&[event("/a")]).expect("written");
    }
    assert!(site.verify(None).is_whole());
    fs::remove_file(site.path(&site.names()[0])).expect("removed");
    let found = site.verify(Some(log.head()));
    assert!(!found.is_whole(), "{found}");

    for take_away in [fs::remove_file as fn(PathBuf) -> _, |path| fs::write(path, "")] {
        let site = Site::new();
        let mut log = site.log();
        log.append(&[event("/a")]).expect("written");
        take_away(site.current()).expect("taken away");
        log.append(&[event("/b")]).expect("written");
        let found = site.verify(Some(log.head()));
        assert!(!found.is_whole(), "{found}");
        assert_eq!((found.first, found.head), (2, log.head()));
        assert_eq!(site.log().head(), log.head());
    }
}

#[test]
fn a_closed_file_that_was_damaged_costs_no_line_after_it() {
    let mut site = Site::new();
    site.bounds = Bounds { file_bytes: 900, files_max: 9 };
    let mut log = site.log();
    for _ in 0..5 {
        log.append(&[event("/a")]).expect("written");
    }
    let names = site.names();
    assert_eq!(names.len(), 2, "{names:?}");
    edit(&site.path(&names[0]), |bytes| {
        let mut of_paths = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"/a"));
        let second = of_paths.nth(1).expect("there");
        bytes[second + 1] = b'b';
    });
    let again = site.log();
    assert_eq!((again.head(), site.names()), (log.head(), names));
    assert!(!site.verify(None).is_whole());
}

#[test]
fn verify_finds_lines_that_were_changed_removed_added_or_never_written() {
    type Change = fn(&mut Vec<String>);
    let changes: [(&str, Change); 6] = [
        ("one byte", |lines| lines[2] = lines[2].replace("/c", "/x")),
        ("one line less", |lines| drop(lines.remove(2))),
        ("another order", |lines| lines.swap(1, 2)),
        ("one line twice", |lines| lines.insert(2, lines[2].clone())),
        ("something else", |lines| lines.insert(2, "{}".to_owned())),
        ("the end", |lines| lines.truncate(3)),
    ];
    for (name, change) in changes {
        let site = Site::new();
        let mut log = site.log();
        let events: Vec<_> = ["/a", "/b", "/c", "/d"].map(event).to_vec();
        log.append(&events).expect("written");
        let head = log.head();
        assert!(site.verify(Some(head)).is_whole());
        let text = fs::read_to_string(site.current()).expect("text");
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();

        change(&mut lines);
        fs::write(site.current(), lines.join("\n") + "\n").expect("written");

        assert!(!site.verify(Some(head)).is_whole(), "{name}");
    }
}

#[test]
fn a_chain_made_anew_is_whole_and_not_the_one_that_was_told() {
    let site = Site::new();
    let mut log = site.log();
    log.append(&[event("/secret"), event("/b")]).expect("written");
    let told = log.head();
    drop(log);
    fs::remove_file(site.current()).expect("removed");
    let mut log = site.log();
    log.append(&[event("/harmless"), event("/b"), event("/c")]).expect("written");

    assert!(site.verify(None).is_whole());
    let found = site.verify(Some(told));
    assert!(!found.is_whole(), "{found}");
    let beyond = AuditHead { seq: 9, hash: told.hash };
    assert!(!site.verify(Some(beyond)).is_whole());
}

#[test]
fn a_file_that_is_taken_away_or_replaced_while_it_is_written_breaks_nothing() {
    let site = Site::new();
    let mut log = site.log();
    log.append(&[event("/a")]).expect("written");
    fs::remove_file(site.current()).expect("removed");
    log.append(&[event("/b")]).expect("written");
    fs::rename(site.current(), site.path("x")).expect("moved");
    fs::write(site.current(), "no line of ours\n").expect("written");
    log.append(&[event("/c")]).expect("written");

    assert_eq!(log.head().seq, 4, "and one of what was cut off");
    assert!(matches!(&site.events()[..], [Event::Torn { bytes: 16 }, Event::Serve { .. }]));
    assert_eq!(site.log().head(), log.head());
}

#[test]
fn a_link_is_not_followed() {
    let site = Site::new();
    drop(site.log());
    let elsewhere = site.dir.path().join("elsewhere");
    fs::write(&elsewhere, "mine").expect("written");
    fs::remove_file(site.current()).expect("removed");
    std::os::unix::fs::symlink(&elsewhere, site.current()).expect("linked");

    assert!(Log::open(&site.state, site.bounds).is_err());
    assert_eq!(fs::read(&elsewhere).expect("there"), b"mine");
}

// === The desk ===

#[tokio::test]
async fn what_is_served_is_in_the_file_when_that_is_answered() {
    let site = Site::new();
    let audit = Audit::open(&site.state).expect("opened");
    audit.start();
    for path in ["/a", "/b"] {
        let served = event(path);
        audit.serve(served.clone()).await.expect("written");
        assert_eq!(site.events().last(), Some(&served));
        assert!(site.verify(Some(audit.head())).is_whole());
    }
    audit.close().await;
    assert!(matches!(audit.serve(event("/c")).await, Err(AuditError::Closed)));
}

#[tokio::test]
async fn without_a_file_nothing_is_served_and_with_one_it_goes_on() {
    let site = Site::new();
    let audit = Audit::open(&site.state).expect("opened");
    audit.start();
    audit.serve(event("/a")).await.expect("written");
    fs::remove_file(site.current()).expect("removed");
    fs::create_dir(site.current()).expect("made");

    let refused = audit.serve(event("/b")).await;

    assert!(matches!(refused, Err(AuditError::Io(_))), "{refused:?}");
    assert!(!audit.is_up());
    assert_eq!(audit.head().seq, 1);
    fs::remove_dir(site.current()).expect("removed");
    audit.serve(event("/c")).await.expect("written");
    assert!(audit.is_up());
    audit.close().await;
}

#[tokio::test]
async fn notes_are_written_together_and_at_the_end() {
    let site = Site::new();
    let audit = Audit::open(&site.state).expect("opened");
    for _ in 0..3 {
        let policy = Digest::ZERO;
        audit.note(Event::Policy { policy });
    }
    audit.start();

    audit.close().await;

    assert_eq!(site.events().len(), 3);
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_hides_nothing() {
    let site = Site::new();
    let audit = Audit::open(&site.state).expect("opened");
    audit.start();
    let flood = 10 * limits::CLIENT_AUDIT_NOTES_PER_MINUTE;
    for _ in 0..flood {
        let path = "/etc/shadow".to_owned();
        let (verdict, why) = ("denied".to_owned(), String::new());
        audit.note_some(Event::Explain { path, operator: None, verdict, why });
    }
    audit.serve(event("/a")).await.expect("written");
    audit.close().await;

    let events = site.events();
    let told = events.iter().filter(|event| matches!(event, Event::Explain { .. })).count();
    let left_out: u64 = events
        .iter()
        .map(|event| if let Event::LeftOut { count } = event { *count } else { 0 })
        .sum();
    assert_eq!(told, limits::CLIENT_AUDIT_NOTES_PER_MINUTE);
    assert_eq!(told as u64 + left_out, flood as u64);
    assert!(events.iter().any(|event| matches!(event, Event::Serve { .. })));
}

#[test]
fn a_flood_of_long_names_fills_no_files() {
    let (mut minute, now) = (Minute::default(), Instant::now());
    let path = format!("/{}", "\u{1}".repeat(limits::PATH_BYTES_MAX - 1));
    let explain = |path: &str| {
        let (path, verdict, why) = (path.to_owned(), "denied".to_owned(), String::new());
        Event::Explain { path, operator: None, verdict, why }
    };
    let most = limits::CLIENT_AUDIT_NOTES_PER_MINUTE;
    let taken = (0..most).filter(|_| minute.take(&explain(&path), now)).count();
    assert!((1..4).contains(&taken), "{taken}");
    assert_eq!(minute.left_out, (most - taken) as u64);
    assert!(minute.take(&explain("/short"), now));
    assert!(minute.take(&explain(&path), now + Minute::LENGTH));
}
