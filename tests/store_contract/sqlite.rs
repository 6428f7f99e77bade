//! What only the store on a disk promises: nothing is lost, and a write that failed is not answered
//! as done.

use std::{
    future::{Future, poll_fn},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    pin::pin,
    process::Command,
    sync::Arc,
    task::Poll,
};

use fts::{
    ids::{TransferId, UnixMs},
    limits,
    server::store::{
        self, Applied, ClientRecord, Created, Events, Party, Store, StoreError, TransferFilter,
        Usage, sqlite::SqliteStore,
    },
    transfer::{Cause, FailReason, State, Step, Transfer},
};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesOrdered};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _, SqliteConnection,
    migrate::Migrator, sqlite::SqliteConnectOptions,
};

use super::fixture::*;

fn url(dir: &Path) -> String {
    format!("sqlite:{}", dir.join("records.db").display())
}

async fn open(dir: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(&url(dir)).await.unwrap())
}

/// The database, past the store.
async fn raw(dir: &Path) -> SqliteConnection {
    SqliteConnection::connect(&url(dir)).await.unwrap()
}

type Everything = (Vec<ClientRecord>, Vec<Transfer>, Events, u64);

async fn everything(store: &dyn Store) -> Everything {
    let clients = store.clients(None, 100).await.unwrap();
    let events = store.events_after(0, 1000).await.unwrap();
    (clients, all(store).await, events, store.last_event().await.unwrap())
}

#[tokio::test]
async fn nothing_is_lost_by_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let site = Site::open(&first, 1).await;
    for ms in 0..4 {
        site.create(ms).await;
    }
    site.deliver(1 << 30, 5).await;
    site.offer(6).await;
    let before = everything(&*first).await;

    // Neither by an orderly one, nor by one that closes nothing.
    let second = open(dir.path()).await;
    assert_eq!(everything(&*second).await, before);
    first.close().await;
    second.close().await;
    let third = open(dir.path()).await;
    assert_eq!(everything(&*third).await, before);

    let again = Site::open(&third, 1).await;
    assert!(again.session > site.session);
    third.close().await;
}

#[tokio::test]
async fn the_horizon_of_pruned_events_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let site = Site::open(&first, 1).await;
    let ended = site.create(0).await;
    site.done(ended.id, Step::Cancelled { received_bytes: 0 }, 1).await;
    first.prune_events(at(1000), 0).await.unwrap();
    first.close().await;

    let second = open(dir.path()).await;

    assert_eq!(second.events_after(0, 9).await.unwrap(), Events::Pruned);
    assert_eq!(second.last_event().await.unwrap(), 2);
    second.close().await;
}

#[tokio::test]
async fn pruning_takes_more_than_one_transaction_when_it_must() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;
    let ended = site.create(0).await;
    let ended = site.done(ended.id, Step::Cancelled { received_bytes: 0 }, 1).await;
    let events = limits::PRUNE_EVENTS_MAX * 2 + 10;
    let mut raw = raw(dir.path()).await;
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 3 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
         INSERT INTO events (transfer_id, revision, at_ms, is_final, snapshot)
         SELECT $2, i, $3 + i, TRUE, $4 FROM n",
    )
    .bind(i64::try_from(events).unwrap())
    .bind(ended.id.to_string())
    .bind(T0)
    .bind(serde_json::to_string(&ended).unwrap())
    .execute(&mut raw)
    .await
    .unwrap();

    let dropped = store.prune_events(at(0), 5).await.unwrap();

    assert_eq!(dropped, events - 5);
    let Events::After(left) = store.events_after(events - 5, 100).await.unwrap() else {
        panic!("the latest are kept");
    };
    assert_eq!(left.len(), 5);
    store.close().await;
}

#[tokio::test]
async fn a_client_may_have_only_so_many_unfinished_transfers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (site, other) = (Site::open(&store, 1).await, Site::open(&store, 2).await);
    let first = site.create(0).await;
    let mut raw = raw(dir.path()).await;
    sqlx::query(
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
         INSERT INTO transfers SELECT id || i, client_id, operator, request_id, path, consistency,
            created_ms, deadline_ms, deadline_wait_ms, updated_ms, revision, state, epoch,
            instance, waiting_reason, waiting_since_ms, waiting_until_ms, due_ms, failure_reason,
            failure_last_reason, failure_detail, attempts, attempts_barren, source_changes,
            mismatches, received_bytes, started_ms, ended_ms, rate_max,
            kept_bytes, restart_detail, signed_request, signature FROM transfers, n",
    )
    .bind(i64::try_from(limits::UNFINISHED_PER_CLIENT_MAX).unwrap())
    .execute(&mut raw)
    .await
    .unwrap();

    let refused = store.create(&transfer(&site.client, 1)).await.unwrap();

    assert_eq!(refused, Created::TooMany(limits::UNFINISHED_PER_CLIENT_MAX));
    other.create(1).await;
    site.done(first.id, Step::Cancelled { received_bytes: 0 }, 2).await;
    site.create(3).await;
    store.close().await;
}

#[tokio::test]
async fn records_of_the_first_version_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (old, migrations) = (dir.path().join("old"), Path::new("migrations"));
    std::fs::create_dir(&old).unwrap();
    let first = "0001_records.sql";
    std::fs::copy(migrations.join(first), old.join(first)).unwrap();
    let options = SqliteConnectOptions::new().filename(dir.path().join("records.db"));
    let mut raw = options.create_if_missing(true).connect().await.unwrap();
    Migrator::new(old).await.unwrap().run(&mut raw).await.unwrap();
    let id = TransferId::generate();
    sqlx::raw_sql(AssertSqlSafe(format!(
        "INSERT INTO clients VALUES ('client-1', 1, '{0}', 4, '', '', '', '', '[]', 1, 1);
         INSERT INTO transfers (id, client_id, operator, consistency, created_ms, deadline_ms,
            deadline_wait_ms, updated_ms, revision, state, epoch, due_ms, attempts,
            attempts_barren, source_changes, mismatches, received_bytes)
         VALUES ('{id}', 'client-1', '', 'AUTO', 1, 2, 1, 1, 1, 'QUEUED', 0, 1, 0, 0, 0, 0, 0);
         INSERT INTO files (transfer_id, file_index, content) VALUES ('{id}', 0, 'NONE');
         INSERT INTO attempts (transfer_id, epoch, instance, session_epoch, offered_ms,
            received_bytes) VALUES ('{id}', 1, '{0}', 1, 5, 42);",
        "00".repeat(16)
    )))
    .execute(&mut raw)
    .await
    .unwrap();
    raw.close().await.unwrap();

    let store = open(dir.path()).await;

    let transfer = store.transfer(id).await.unwrap().unwrap();
    assert_eq!((transfer.state, transfer.rate_max), (State::Queued, None));
    assert_eq!(transfer.operator, None);
    let usage = store.usage(&Party::Client(client(1)), UnixMs(1)).await.unwrap();
    assert_eq!(usage, Usage { transfers: 1, received_bytes: 42 });
    store.close().await;
}

#[tokio::test]
async fn the_files_are_for_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.ping().await.unwrap();

    for name in ["records.db", "records.db-wal", "records.db-shm"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    store.close().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    std::fs::write(&text, "this is no database, and long enough to be seen as none. ".repeat(99))
        .unwrap();
    let text = format!("sqlite:{}", text.display());
    let missing = format!("sqlite:{}/no/such/dir.db", dir.path().display());

    for url in [missing.as_str(), text.as_str(), "postgres://localhost/fts", "sqlite::memory:"] {
        let Err(StoreError::Open { url: named, reason }) = store::open(url).await.map(|_| ())
        else {
            panic!("{url} was opened");
        };
        assert_eq!(named, url);
        assert!(!reason.is_empty());
    }
}

#[tokio::test]
async fn a_damaged_row_is_said_to_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;
    let id = site.create(0).await.id;
    let mut raw = raw(dir.path()).await;

    for (damage, repair) in [
        ("state = 'LOST'", "state = 'QUEUED'"),
        ("epoch = -1", "epoch = 0"),
        ("path = 'relative'", "path = NULL"),
        ("revision = 'x'", "revision = 1"),
        ("operator = 'a b'", "operator = ''"),
    ] {
        let update = |set| AssertSqlSafe(format!("UPDATE transfers SET {set}"));
        sqlx::query(update(damage)).execute(&mut raw).await.unwrap();
        let read = store.transfer(id).await;
        assert!(matches!(read, Err(StoreError::Corrupt(_))), "{damage}: {read:?}");
        let step = store.apply(id, &[(Step::Paused { received_bytes: 0 }, moment(1))]).await;
        assert!(matches!(step, Err(StoreError::Corrupt(_))), "{damage}: {step:?}");
        sqlx::query(update(repair)).execute(&mut raw).await.unwrap();
    }
    assert_eq!(store.transfer(id).await.unwrap().unwrap().revision, 1);
    store.close().await;
}

/// Epoch, when it was offered, started and ended, how, and its bytes.
type Attempt = (i64, i64, Option<i64>, Option<i64>, Option<String>, i64);

#[tokio::test]
async fn every_attempt_leaves_a_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;
    let id = site.create(0).await.id;
    let busy = site.offer(10).await.epoch;
    site.done(id, Step::Busy { epoch: busy }, 11).await;
    site.done(id, Step::MadeDue, 12).await;
    let broken = site.offer(20).await.epoch;
    site.done(id, begun(broken, site.instance, 100), 21).await;
    let cause = Cause::Failed { reason: FailReason::Io, detail: String::new() };
    site.done(id, Step::Broken { epoch: broken, cause, received_bytes: 40 }, 22).await;
    site.done(id, Step::MadeDue, 23).await;
    site.deliver(100, 30).await;
    let again = site.create(40).await.id;
    site.offer(40).await;
    let mut raw = raw(dir.path()).await;

    let rows = sqlx::query(
        "SELECT epoch, offered_ms - $1, started_ms - $1, ended_ms - $1, outcome, received_bytes,
            instance, session_epoch FROM attempts ORDER BY transfer_id, epoch",
    )
    .bind(T0)
    .fetch_all(&mut raw)
    .await
    .unwrap();

    let attempts: Vec<Attempt> =
        rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3), r.get(4), r.get(5))).collect();
    let outcome = |text: &str| Some(text.to_owned());
    assert_eq!(
        attempts,
        [
            (1, 10, None, Some(11), outcome("CLIENT_BUSY"), 0),
            (2, 20, Some(21), Some(22), outcome("IO"), 40),
            (3, 30, Some(30), Some(30), outcome("COMPLETE"), 100),
            (1, 40, None, None, None, 0),
        ]
    );
    assert!(rows.iter().all(|row| row.get::<String, _>(6) == site.instance.secret_text()));
    assert!(rows.iter().all(|row| row.get::<i64, _>(7).cast_unsigned() == site.session.0));
    assert_eq!(store.transfer(again).await.unwrap().unwrap().state, State::Offered);
    store.close().await;
}

#[tokio::test]
async fn an_attempt_is_ended_by_the_step_that_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;
    let id = site.create(0).await.id;
    let epoch = site.offer(10).await.epoch;

    let done = store
        .apply(id, &[(Step::Busy { epoch }, moment(11)), (Step::MadeDue, moment(12))])
        .await
        .unwrap();

    assert!(matches!(done, Applied::Done(_)), "{done:?}");
    let row = sqlx::query("SELECT ended_ms - $1, outcome FROM attempts")
        .bind(T0)
        .fetch_one(&mut raw(dir.path()).await)
        .await
        .unwrap();
    assert_eq!((row.get(0), row.get(1)), (11, "CLIENT_BUSY".to_owned()));
    store.close().await;
}

// === Writes that are dropped ===

#[derive(Clone, Copy)]
enum Dropped {
    /// While an answer is awaited.
    Waiting,
    /// When the answer has come, and nobody has looked at it.
    Answered,
}

/// Drops `write` after it was polled `polls` times. Returns whether it ended before.
async fn dropped_after<F: Future>(write: F, mut polls: u32, when: Dropped) -> bool {
    let mut write = pin!(write);
    poll_fn(|cx| {
        if polls == 0 {
            return Poll::Ready(false);
        }
        polls -= 1;
        match (write.as_mut().poll(cx), when) {
            (Poll::Ready(_), _) => Poll::Ready(true),
            (Poll::Pending, Dropped::Waiting) if polls == 0 => Poll::Ready(false),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
}

/// Drops the writes that `write` starts, each a little later than the one before, until one is not
/// dropped any more. After each, the next write works, and the records are whole.
async fn drop_everywhere<W>(site: &Site, mut write: W)
where
    W: AsyncFnMut(u32, Dropped) -> bool,
{
    let mut points_max = 0;
    // How often a write has to wait depends on how fast SQLite answers.
    for _ in 0..10 {
        for when in [Dropped::Waiting, Dropped::Answered] {
            let mut points = 0;
            while !write(points, when).await {
                site.store.ping().await.unwrap();
                points += 1;
            }
            points_max = points_max.max(points);
            assert_whole(&*site.store).await;
        }
    }
    assert!(points_max > 1, "only {points_max} points were tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_create_is_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;

    drop_everywhere(&site, async |polls, when| {
        let new = transfer(&site.client, 0);
        dropped_after(store.create(&new), polls, when).await
    })
    .await;

    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_claim_is_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;

    drop_everywhere(&site, async |polls, when| {
        site.create(0).await;
        dropped_after(site.claim(u32::MAX, 1), polls, when).await
    })
    .await;

    // Every offer has its attempt.
    let mut raw = raw(dir.path()).await;
    let attempts = sqlx::query("SELECT COUNT(*) FROM attempts").fetch_one(&mut raw).await.unwrap();
    let filter = TransferFilter { client: None, states: vec![State::Offered] };
    let offered = store.transfers(&filter, None, u32::MAX).await.unwrap();
    assert_eq!(attempts.get::<i64, _>(0), i64::try_from(offered.len()).unwrap());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_step_is_whole_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;

    drop_everywhere(&site, async |polls, when| {
        let id = site.create(0).await.id;
        dropped_after(
            store.apply(id, &[(Step::Cancelled { received_bytes: 0 }, moment(1))]),
            polls,
            when,
        )
        .await
    })
    .await;

    store.close().await;
}

// === Writes that come together ===

/// Holds the store's writer up until it is dropped, so that what is written meanwhile waits.
async fn hold_up(dir: &Path) -> SqliteConnection {
    let mut raw = raw(dir).await;
    sqlx::query("BEGIN IMMEDIATE").execute(&mut raw).await.unwrap();
    raw
}

/// Counts the commits in the write-ahead log: in each, the last frame tells the size of the database.
fn commits(dir: &Path) -> usize {
    let log = std::fs::read(dir.join("records.db-wal")).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap()) as usize;
    let (frame, salt) = (24 + number(8), number(16));
    let frames = (32..log.len().saturating_sub(frame - 1)).step_by(frame);
    frames.filter(|&at| number(at + 8) == salt && number(at + 4) != 0).count()
}

/// Begins writes, in order; from then on each waits for the writer.
fn all_waiting<T>(writes: &mut FuturesOrdered<impl Future<Output = T>>) {
    assert!(writes.next().now_or_never().is_none(), "the writer is not held up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_come_together_share_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;
    let before = commits(dir.path());
    let held = hold_up(dir.path()).await;
    let new: Vec<_> = (0..50).map(|ms| transfer(&site.client, ms)).collect();
    let mut writes: FuturesOrdered<_> = new.iter().map(|new| store.create(new)).collect();
    all_waiting(&mut writes);

    held.close().await.unwrap();
    let created: Vec<_> = writes.collect().await;

    assert!(created.iter().all(|created| matches!(created, Ok(Created::New(_)))));
    let made = commits(dir.path()) - before;
    // The first was alone in its transaction.
    assert!(made <= 2, "{made} commits");
    assert_eq!(all(&*store).await.len(), 50);
    assert_whole(&*store).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writes_that_come_together_one_that_fails_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;
    let damaged = site.create(0).await.id;
    let mut held = raw(dir.path()).await;
    sqlx::query("UPDATE transfers SET state = 'LOST'").execute(&mut held).await.unwrap();
    held.close().await.unwrap();
    let held = hold_up(dir.path()).await;
    let write = async |i: i64| {
        if i % 5 == 2 {
            let step = (Step::Paused { received_bytes: 0 }, moment(1));
            store.apply(damaged, &[step]).await.map(drop)
        } else {
            store.create(&transfer(&site.client, i)).await.map(drop)
        }
    };
    let mut writes: FuturesOrdered<_> = (0..20).map(write).collect();
    all_waiting(&mut writes);

    held.close().await.unwrap();
    let answers: Vec<_> = writes.collect().await;

    for (i, answer) in answers.iter().enumerate() {
        let is_damage = matches!(answer, Err(StoreError::Corrupt(_)));
        assert_eq!(is_damage, i % 5 == 2, "{i}: {answer:?}");
        assert!(is_damage || answer.is_ok(), "{i}: {answer:?}");
    }
    let filter = TransferFilter { client: None, states: vec![State::Queued] };
    assert_eq!(store.transfers(&filter, None, 100).await.unwrap().len(), 16);
    store.close().await;
}

#[tokio::test]
async fn a_write_dropped_before_its_turn_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let site = Site::open(&store, 1).await;
    let held = hold_up(dir.path()).await;
    let new: Vec<_> = (0..3).map(|ms| transfer(&site.client, ms)).collect();
    let mut first: FuturesOrdered<_> = [store.create(&new[0])].into_iter().collect();
    all_waiting(&mut first);
    // On this one thread the writer has its turn now, and takes what is there.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let mut dropped: FuturesOrdered<_> = [store.create(&new[1])].into_iter().collect();
    all_waiting(&mut dropped);
    let mut last: FuturesOrdered<_> = [store.create(&new[2])].into_iter().collect();
    all_waiting(&mut last);

    drop(dropped);
    held.close().await.unwrap();
    assert_eq!(first.collect::<Vec<_>>().await.len() + last.collect::<Vec<_>>().await.len(), 2);

    assert_eq!(store.transfer(new[1].id).await.unwrap(), None);
    assert_eq!(all(&*store).await.len(), 2);
    store.close().await;
}

// === A disk that is full ===

const FULL_DISK_DIR: &str = "FTS_TEST_FULL_DISK_DIR";

/// A full disk is played by the limit on the size of a file. The limit holds for a whole process,
/// and its signal must be ignored beforehand: so the test runs in a process of its own.
#[test]
fn a_commit_that_failed_is_not_answered_as_done() {
    let dir = tempfile::tempdir().unwrap();

    let output = Command::new("sh")
        .args(["-c", r#"trap '' XFSZ; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "sqlite::full_disk", "--nocapture"])
        .env(FULL_DISK_DIR, dir.path())
        .output()
        .unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs within a_commit_that_failed_is_not_answered_as_done"]
async fn full_disk() {
    // `--include-ignored` runs it by itself as well, without the limits that it needs.
    let Some(dir) = std::env::var_os(FULL_DISK_DIR) else { return };
    let dir = Path::new(&dir);
    let store = open(dir).await;
    let site = Site::open(&store, 1).await;
    let mut stored = vec![site.create(0).await];
    let wal_bytes = std::fs::metadata(dir.join("records.db-wal")).unwrap().len();

    let unlimited = limit_file_size(Some(wal_bytes + (64 << 10)));
    let mut refused = Vec::new();
    while refused.len() < 5 {
        let new = transfer(&site.client, 1);
        match store.create(&new).await {
            Ok(Created::New(new)) if refused.is_empty() => stored.push(new),
            Ok(other) => panic!("expected no answer, not {other:?}"),
            Err(StoreError::Unavailable(_)) => refused.push(new),
            Err(other) => panic!("{other}"),
        }
        assert!(stored.len() < 1000, "the disk never filled");
    }
    // Now even one page is too much.
    limit_file_size(Some(wal_bytes));
    store.ping().await.unwrap_err();
    let paused = (Step::Paused { received_bytes: 0 }, moment(1));
    store.apply(stored[0].id, &[paused]).await.unwrap_err();
    // What was there can still be read, and is as it was.
    assert_whole(&*store).await;

    // It clears by itself.
    limit_file_size(unlimited);
    stored.push(site.create(2).await);
    store.close().await;
    let store = open(dir).await;
    for Transfer { id, .. } in &refused {
        assert_eq!(store.transfer(*id).await.unwrap(), None);
    }
    stored.reverse();
    assert_eq!(all(&*store).await, stored);
    assert_whole(&*store).await;
    let check = sqlx::query("PRAGMA integrity_check").fetch_one(&mut raw(dir).await).await.unwrap();
    assert_eq!(check.get::<String, _>(0), "ok");
    store.close().await;
}

/// Sets how long a file may become, and returns how long it might before.
fn limit_file_size(bytes_max: Option<u64>) -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Fsize);
    let limit = Rlimit { current: bytes_max, maximum: before.maximum };
    setrlimit(Resource::Fsize, limit).unwrap();
    before.current
}
