//! The audit on a disk that notes each call, waits, or fails.

use std::{
    collections::HashSet, fs, io, os::unix::fs::PermissionsExt as _, pin::pin,
    sync::mpsc as sync_mpsc,
};

use futures_util::future::join_all;
use serde_json::Value;
use tempfile::TempDir;
use tokio_stream::StreamExt as _;

use super::*;

mod disk;

use disk::{Fault, TestDisk};

/// Nothing that is waited for here takes as long.
const PATIENCE: Duration = Duration::from_secs(10);

struct Test {
    dir: TempDir,
    disk: TestDisk,
    settings: Settings,
}

impl Test {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir, disk: TestDisk::default(), settings: Settings::default() }
    }

    fn with_small_files(file_bytes: u64, files_max: usize) -> Self {
        let mut test = Self::new();
        test.settings.actions = Bounds { file_bytes, files_max };
        test
    }

    fn open(&self) -> Audit {
        self.try_open().expect("opened")
    }

    fn try_open(&self) -> Result<Audit, AuditError> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        Audit::open_on(self.dir.path(), &disk, self.settings)
    }

    /// Opens it, with one line on its way that waits for its sync.
    async fn open_held(&self) -> Held {
        let audit = self.open();
        let (is_here, go) = self.disk.hold();
        let first = audit.clone();
        let mut first: Waiting = Box::pin(async move { first.write(vec![entry(0)]).await });
        begin(&mut first.as_mut()).await;
        is_here.recv_timeout(PATIENCE).expect("it syncs");
        Held { audit, first, go }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(DIRECTORY).join(name)
    }

    fn lines(&self) -> Vec<Value> {
        let lines = read_dir(self.dir.path(), None).expect("opened");
        lines.map(|line| serde_json::from_str(&line.expect("read")).expect("JSON")).collect()
    }

    /// The lines of a series; that of actions has no name.
    fn lines_of(&self, log: Option<&str>) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["log"].as_str() == log).collect()
    }

    /// The marks of the entries, in the order of the lines, which are numbered without a gap.
    fn marks(&self) -> Vec<u64> {
        let lines = self.lines_of(None);
        for pair in lines.windows(2) {
            assert_eq!(pair[0]["seq"].as_u64().map(|seq| seq + 1), pair[1]["seq"].as_u64());
        }
        lines.iter().filter_map(|line| line["target"]["bytes"].as_u64()).collect()
    }
}

type Waiting = std::pin::Pin<Box<dyn Future<Output = Result<(), AuditError>>>>;

struct Held {
    audit: Audit,
    first: Waiting,
    /// Lets it go on.
    go: sync_mpsc::Sender<()>,
}

impl Held {
    fn go(&self) {
        self.go.send(()).expect("it waits");
    }
}

fn refused(action: Action) -> Entry {
    Entry::new(Actor::Unknown, "192.0.2.1:1", action, Outcome::Not("UNAUTHENTICATED"))
}

fn revoked() -> Entry {
    Entry::new(Actor::Local, "", Action::ClientRevoke, Outcome::Asked)
}

fn entry(mark: u64) -> Entry {
    Entry::new(Actor::Local, "192.0.2.1:1", Action::ContentRead, Outcome::Asked)
        .with(Detail::Bytes(mark))
}

fn full() -> io::Error {
    rustix::io::Errno::NOSPC.into()
}

fn broken() -> io::Error {
    rustix::io::Errno::IO.into()
}

/// Polls once; it must not be ready.
async fn begin<F: Future + ?Sized>(future: &mut std::pin::Pin<&mut F>) {
    std::future::poll_fn(|cx| {
        assert!(future.as_mut().poll(cx).is_pending(), "it waits");
        std::task::Poll::Ready(())
    })
    .await;
}

#[tokio::test]
async fn an_answer_comes_after_the_sync() {
    let test = Test::new();
    let audit = test.open();
    let (is_here, go) = test.disk.hold();

    let mut write = pin!(audit.write(vec![entry(1)]));
    begin(&mut write).await;
    is_here.recv_timeout(PATIENCE).expect("it syncs");
    begin(&mut write).await;
    assert_eq!(audit.read(None).collect::<Vec<_>>().await.len(), 0, "it may be cut off yet");
    go.send(()).expect("it waits");
    write.await.expect("written");

    assert_eq!(audit.read(None).collect::<Vec<_>>().await.len(), 1);
    let calls = &test.disk.plan().calls;
    assert_eq!(calls[..3], ["sync directory", "create", "sync directory"]);
    assert!(calls.ends_with(&["write", "sync"]), "{calls:?}");
}

#[tokio::test]
async fn callers_who_wait_share_a_sync() {
    let test = Test::new();
    let held = test.open_held().await;

    let others = (1..=50).map(|mark| held.audit.write(vec![entry(mark)]));
    let mut others = pin!(join_all(others));
    begin(&mut others).await;
    held.go();

    held.first.await.expect("written");
    assert!(others.await.iter().all(Result::is_ok));
    assert_eq!(test.disk.count("sync"), 2);
    assert_eq!(test.marks(), (0..=50).collect::<Vec<_>>());
}

#[tokio::test]
async fn everybody_who_waits_gets_the_error_and_later_calls_work() {
    // The write fails, and the sync behind it.
    for (calls, fault) in [(1, full as Fault), (2, broken)] {
        let test = Test::new();
        let held = test.open_held().await;
        let audit = &held.audit;
        test.disk.fail_in(calls, fault);
        let mut others = pin!(join_all((2..12).map(|mark| audit.write(vec![entry(mark)]))));
        begin(&mut others).await;
        held.go();

        held.first.await.expect("written");
        let others = others.await;

        assert_eq!(others.len(), 10);
        for failed in others {
            let Err(AuditError::Io { source, .. }) = failed else { panic!("{failed:?}") };
            assert_eq!(source.kind(), fault().kind());
        }
        let read: Vec<_> = audit.read(None).collect().await;
        assert_eq!(read.len(), 1, "nothing is read that failed");
        audit.write(vec![entry(20)]).await.expect("it works again");
        assert_eq!(test.marks(), [0, 20]);
        assert!(!test.disk.plan().has_tried_again, "a failed sync is tried on another descriptor");
    }
}

#[tokio::test]
async fn whichever_call_fails_what_was_answered_is_there_once() {
    for fault in [full as Fault, broken] {
        for nth in 0.. {
            let test = Test::with_small_files(700, 2);
            test.open().close().await;
            test.disk.fail_in(nth, fault);
            let mut answered = Vec::new();
            let mut failed = 0;

            let audit = test.try_open().unwrap_or_else(|_| {
                failed += 1;
                test.open()
            });
            for mark in 0.. {
                if mark >= 20 && answered.last() == Some(&(mark - 1)) {
                    break;
                }
                match audit.write(vec![entry(mark)]).await {
                    Ok(()) => answered.push(mark),
                    Err(_) => failed += 1,
                }
            }
            audit.close().await;

            let had_fault = test.disk.plan().had_fault;
            assert!(failed <= usize::from(had_fault), "call {nth}");
            let marks = test.marks();
            // The oldest files are gone.
            assert!(marks.len() > 3 && answered.ends_with(&marks), "call {nth}: {marks:?}");
            assert!(!test.disk.plan().has_tried_again, "call {nth}");
            if !had_fault {
                assert!(nth > 50, "only {nth} calls were made");
                break;
            }
        }
    }
}

#[tokio::test]
async fn numbers_and_order_go_on_over_new_files_and_restarts() {
    let test = Test::with_small_files(1000, 100);
    for round in 0..4 {
        let audit = test.open();
        for mark in 0..10 {
            audit.write(vec![entry(round * 10 + mark)]).await.expect("written");
        }
        audit.close().await;
    }

    assert_eq!(test.marks(), (0..40).collect::<Vec<_>>());
    assert_eq!(test.lines()[0]["seq"], 1);
    let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&test.path("")), 0o700);
    let files: Vec<_> = fs::read_dir(test.path("")).expect("listed").collect();
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let path = file.expect("listed").path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
        assert!(path.metadata().expect("there").len() <= 1000, "{path:?}");
    }
}

#[tokio::test]
async fn a_closed_file_is_named_by_its_first_line() {
    let test = Test::with_small_files(200, 100);
    let audit = test.open();
    let at = |ms| entry(0).at(UnixMs(ms));
    for ms in [1_795_342_272_999, 1_795_342_280_000, 1_795_342_290_000] {
        audit.write(vec![at(ms)]).await.expect("written");
    }

    for name in ["audit-20261122T101112Z-1.jsonl", "audit-20261122T101120Z-2.jsonl", "audit.jsonl"]
    {
        assert!(test.path(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn numbers_go_on_when_the_current_file_is_gone() {
    let test = Test::with_small_files(200, 100);
    let audit = test.open();
    for mark in 0..3 {
        audit.write(vec![entry(mark)]).await.expect("written");
    }
    audit.close().await;
    fs::remove_file(test.path("audit.jsonl")).expect("removed");

    test.open().write(vec![entry(3)]).await.expect("written");

    let seqs: Vec<_> = test.lines().iter().map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, [Some(1), Some(2), Some(3)]);
}

#[tokio::test]
async fn the_oldest_file_is_removed_with_a_line_that_says_so() {
    let test = Test::with_small_files(200, 2);
    let audit = test.open();
    for mark in 0..4 {
        audit.write(vec![entry(mark).at(UnixMs(0))]).await.expect("written");
    }

    let lines = test.lines();
    assert_eq!(test.marks(), [1, 2, 3]);
    let last = lines.last().expect("some");
    assert_eq!((&last["action"], &last["actor"]), (&"audit.drop".into(), &"server".into()));
    assert_eq!(last["target"]["file"], "audit-19700101T000000Z-1.jsonl");
    assert!(!test.path("audit-19700101T000000Z-1.jsonl").exists());
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_when_it_is_opened() {
    let test = Test::new();
    let audit = test.open();
    audit.write(vec![entry(1), entry(2)]).await.expect("written");
    audit.close().await;
    let whole = fs::read(test.path("audit.jsonl")).expect("read");
    let second = whole.iter().position(|b| *b == b'\n').expect("two lines") + 1;

    for len in second..whole.len() {
        fs::write(test.path("audit.jsonl"), &whole[..len]).expect("torn");
        let audit = test.open();
        audit.write(vec![entry(3)]).await.expect("written");
        audit.close().await;
        assert_eq!(test.marks(), [1, 3], "{len} bytes");
    }
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_begun_anew() {
    let test = Test::new();
    let audit = test.open();
    audit.write(vec![entry(1)]).await.expect("written");
    fs::rename(test.path("audit.jsonl"), test.path("elsewhere")).expect("moved");
    audit.write(vec![entry(2)]).await.expect("written");
    assert_eq!(test.marks(), [2]);
    assert_eq!(test.lines()[0]["seq"], 2);

    fs::remove_dir_all(test.path("")).expect("removed");
    audit.write(vec![entry(3)]).await.expect("written");
    assert_eq!(test.marks(), [3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writers_at_once_lose_nothing() {
    let test = Test::with_small_files(20_000, 100);
    let audit = test.open();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let audit = audit.clone();
        writers.spawn(async move {
            for n in 0..10 {
                audit.write(vec![entry(writer * 10 + n)]).await.expect("written");
            }
        });
    }
    writers.join_all().await;
    audit.close().await;

    let marks = test.marks();
    assert_eq!(marks.len(), 1000);
    assert_eq!(marks.iter().collect::<HashSet<_>>().len(), 1000);
    for writer in 0..100 {
        assert!(marks.iter().filter(|mark| *mark / 10 == writer).is_sorted(), "each in its order");
    }
    assert!(test.disk.count("sync") < 1000, "they share");
}

#[tokio::test]
async fn entries_of_a_caller_who_went_away_are_written() {
    let test = Test::new();
    let Held { audit, first, go } = test.open_held().await;
    {
        let mut second = pin!(audit.write(vec![entry(1)]));
        begin(&mut second).await;
    }
    drop(first);
    go.send(()).expect("it waits");

    audit.write(vec![entry(2)]).await.expect("written");
    assert_eq!(test.marks(), [0, 1, 2]);
}

#[tokio::test]
async fn a_closed_audit_has_written_what_it_took_and_takes_nothing_more() {
    let test = Test::new();
    let held = test.open_held().await;
    let audit = &held.audit;
    let mut second = pin!(audit.write(vec![entry(1)]));
    begin(&mut second).await;
    let mut close = pin!(audit.close());
    begin(&mut close).await;

    assert!(matches!(audit.write(vec![entry(2)]).await, Err(AuditError::Closed)));
    assert!(matches!(audit.write_or_keep(revoked()).await, Err(AuditError::Closed)));
    held.go();
    close.await;

    assert_eq!(test.marks(), [0, 1]);
    held.first.await.expect("written");
    second.await.expect("written");
    audit.close().await;
}

#[tokio::test]
async fn who_comes_while_it_closes_is_told_so() {
    let test = Test::new();
    let audit = test.open();
    let desk = &audit.shared.0;
    let place = Arc::clone(&desk.places).acquire_owned().await.expect("there are many");
    audit.close().await;

    let (answer, _answered) = oneshot::channel();
    let taken = desk.take_in(Job { entries: vec![entry(1)], answer, place });

    assert!(matches!(taken, Err(AuditError::Closed)));
}

#[tokio::test]
async fn without_its_owners_it_ends() {
    let test = Test::new();
    let audit = test.open();
    let desk = Arc::clone(&audit.shared.0);
    drop(audit.clone());
    audit.write(vec![entry(1)]).await.expect("a clone is gone, not all");
    drop(audit);
    let ended = timeout(PATIENCE, desk.ended.cancelled()).await;
    ended.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_holds_up_its_callers_and_nobody_else() {
    let test = Test::new();
    let held = test.open_held().await;
    let audit = &held.audit;
    let began = tokio::time::Instant::now();

    let many = (0..limits::AUDIT_QUEUE_MAX as u64 + 5).map(|mark| audit.write(vec![entry(mark)]));
    let answers = join_all(many).await;
    for _ in 0..=limits::AUDIT_REFUSALS_PER_MINUTE {
        audit.refused(refused(Action::Refused));
    }

    assert!(answers.iter().all(|answer| matches!(answer, Err(AuditError::Slow))));
    assert_eq!(began.elapsed(), limits::AUDIT_WAIT);
    held.go();
    audit.close().await;
    let lines = test.lines();
    let queued = limits::AUDIT_QUEUE_MAX;
    assert_eq!(test.marks().len(), queued, "no more than the queue holds has waited");
    assert_eq!(lines.len(), queued + limits::AUDIT_REFUSALS_PER_MINUTE + 1);
    assert!(matches!(held.first.await, Ok(()) | Err(AuditError::Slow)));
}

fn left_out(lines: &[Value]) -> Vec<Value> {
    let is_told = |line: &&Value| line["action"] == "audit.left_out";
    lines.iter().filter(is_told).map(|line| line["target"]["left_out"].clone()).collect()
}

#[tokio::test]
async fn refusals_have_so_many_lines_and_the_rest_is_told() {
    let mut test = Test::new();
    test.settings.refusals_per_minute = 5;
    let audit = test.open();

    for _ in 0..100 {
        audit.refused(refused(Action::Refused));
    }
    audit.refused(refused(Action::Login));
    // The second comes after all that came before the first.
    audit.write(vec![entry(1)]).await.expect("written");
    audit.write(vec![entry(2)]).await.expect("written");
    assert_eq!(test.lines_of(Some("refused")).len(), 5, "before the minute is over");
    audit.close().await;

    let lines = test.lines_of(Some("refused"));
    assert_eq!(lines.len(), 6);
    assert_eq!(left_out(&lines), [serde_json::json!({"refused": 95, "login": 1})]);
}

#[tokio::test]
async fn refusals_that_cannot_be_written_are_told_later() {
    let test = Test::new();
    let audit = test.open();
    let (is_here, go) = test.disk.hold();
    test.disk.fail_in(1, broken);
    audit.refused(refused(Action::Refused));
    is_here.recv_timeout(PATIENCE).expect("it syncs");
    go.send(()).expect("it waits");

    audit.write(vec![entry(1)]).await.expect("it works again");
    audit.close().await;

    assert_eq!(test.marks(), [1]);
    assert_eq!(left_out(&test.lines()), [serde_json::json!({"refused": 1})]);
}

#[tokio::test]
async fn what_was_left_out_is_told_when_its_minute_is_over() {
    let mut test = Test::new();
    test.settings.refusals_per_minute = 5;
    test.settings.minute = Duration::from_millis(50);
    let audit = test.open();
    let (mut is_here, mut go) = test.disk.hold();

    for _ in 0..100 {
        audit.refused(refused(Action::Refused));
    }

    // Nobody writes anything else.
    while left_out(&test.lines()).is_empty() {
        is_here.recv_timeout(PATIENCE).expect("it writes by itself");
        let next = test.disk.hold();
        go.send(()).expect("it waits");
        (is_here, go) = next;
    }
    assert!(go.send(()).is_ok());
    audit.close().await;
}

#[tokio::test]
async fn refusals_and_sessions_push_out_nothing_that_was_done() {
    let mut test = Test::new();
    let small = Bounds { file_bytes: 400, files_max: 1 };
    (test.settings.refused, test.settings.sessions) = (small, small);
    let audit = test.open();
    audit.write(vec![entry(1)]).await.expect("written");

    for mark in 2..20 {
        audit.refused(refused(Action::Refused));
        audit.session(refused(Action::SessionOpen));
        audit.write(vec![entry(mark)]).await.expect("written");
    }
    audit.close().await;

    assert_eq!(test.marks(), (1..20).collect::<Vec<_>>());
    for log in ["refused", "sessions"] {
        let lines = test.lines_of(Some(log));
        assert!(lines[0]["seq"].as_u64() > Some(1), "{log}: the oldest are gone");
        let is_told = lines.iter().any(|line| line["action"] == "audit.drop");
        assert!(is_told, "{log}: and that is told");
        let seqs: Vec<_> = lines.iter().filter_map(|line| line["seq"].as_u64()).collect();
        assert!(seqs.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{log}: {seqs:?}");
    }
}

#[tokio::test]
async fn all_series_are_read_as_one_by_time() {
    let test = Test::new();
    let audit = test.open();
    let at = |entry: Entry, ms: i64| entry.at(UnixMs(1_795_342_272_000 + ms));
    audit.refused(at(refused(Action::Refused), 2));
    audit.session(at(refused(Action::SessionOpen), 4));
    audit.refused(at(refused(Action::Refused), 6));
    audit.write(vec![at(entry(1), 1), at(entry(3), 3), at(entry(5), 5)]).await.expect("written");
    audit.close().await;

    let said: Vec<_> = test
        .lines()
        .iter()
        .map(|line| (line["log"].as_str().map(ToOwned::to_owned), line["seq"].as_u64()))
        .collect();
    let (done, refused, sessions) = (None, Some("refused"), Some("sessions"));
    let wanted = [(done, 1), (refused, 1), (done, 2), (sessions, 1), (done, 3), (refused, 2)];
    assert_eq!(said, wanted.map(|(log, seq)| (log.map(ToOwned::to_owned), Some(seq))));
    let since = read_dir(test.dir.path(), Some(UnixMs(1_795_342_272_004))).expect("opened");
    assert_eq!(since.count(), 3);
}

#[tokio::test]
async fn what_is_done_in_any_case_is_on_record_once_it_can_be() {
    let test = Test::new();
    let audit = test.open();
    test.disk.fail_in(0, full);

    let failed = audit.write_or_keep(revoked()).await;

    assert!(matches!(failed, Err(AuditError::Io { .. })), "{failed:?}");
    assert_eq!(audit.standing().1, 1);
    audit.write(vec![entry(1)]).await.expect("it works again");
    let actions: Vec<_> = test.lines().into_iter().map(|line| line["action"].clone()).collect();
    assert_eq!(actions, ["client.revoke", "content.read"]);
    audit.write_or_keep(revoked()).await.expect("at once");
    assert_eq!(audit.standing().1, 0);
}

#[tokio::test]
async fn what_is_owed_is_tried_again_without_anybody_else() {
    let mut test = Test::new();
    test.settings.retry = Duration::from_millis(20);
    let audit = test.open();
    test.disk.fail_in(0, full);
    audit.write_or_keep(revoked()).await.expect_err("full");

    let written = async {
        while audit.standing() != (true, 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };

    timeout(PATIENCE, written).await.expect("it is tried again");
    audit.close().await;
    assert_eq!(test.lines().len(), 1);
    assert_eq!(audit.standing(), (false, 0), "closed: nothing is written any more");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_holds_nobody_up_who_takes_rights_away() {
    let test = Test::new();
    let held = test.open_held().await;
    let began = tokio::time::Instant::now();

    let slow = held.audit.write_or_keep(revoked()).await;

    assert!(matches!(slow, Err(AuditError::Slow)), "{slow:?}");
    assert_eq!(began.elapsed(), limits::AUDIT_OWED_WAIT);
    held.go();
    held.audit.close().await;
    let actions: Vec<_> = test.lines().into_iter().map(|line| line["action"].clone()).collect();
    assert_eq!(actions, ["content.read", "client.revoke"], "once each");
}
