//! What must be true when all is over, whatever happened: each file is there, equal, once, on disk
//! and on record, and nothing else is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sqlx::{Connection as _, SqliteConnection};

use crate::{
    common::files_beneath,
    stage::{Asked, Stage},
};

/// Returns everything that is wrong.
pub async fn problems(stage: &Stage) -> Vec<String> {
    let mut problems = Vec::new();
    for log in ["server.log", "client.log"] {
        let text = fs::read_to_string(stage.path(log)).expect("a log");
        if let Some(line) = text.lines().find(|line| line.contains("panicked")) {
            problems.push(format!("{log}: {line}"));
        }
    }
    let mut landed = BTreeSet::new();
    match records(stage, &mut landed).await {
        Ok(mut wrong) => problems.append(&mut wrong),
        Err(err) => problems.push(format!("the records cannot be read: {err}")),
    }
    let on_disk: BTreeSet<_> = files_beneath(&stage.data().join("files")).into_iter().collect();
    if on_disk != landed {
        problems.push(format!("on disk are {on_disk:?}, on record {landed:?}"));
    }
    problems
}

/// Compares the records with the plan, and the files that they name with the sources.
async fn records(stage: &Stage, landed: &mut BTreeSet<PathBuf>) -> sqlx::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let url = format!("sqlite:{}", stage.data().join("fts.db").display());
    let mut store = SqliteConnection::connect(&url).await?;
    let integrity: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut store).await?;
    if integrity != "ok" {
        wrong.push(format!("integrity_check: {integrity}"));
    }
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM transfers").fetch_one(&mut store).await?;
    if count != i64::try_from(stage.plan.len()).expect("small") {
        wrong.push(format!("{count} transfers for {} requests", stage.plan.len()));
    }
    for asked in &stage.plan {
        let name = asked.name;
        let Some(id) = stage.ids.borrow().get(name).cloned() else {
            wrong.push(format!("{name} was never asked for"));
            continue;
        };
        let record: Option<(String, i64)> =
            sqlx::query_as("SELECT state, epoch FROM transfers WHERE id = $1 AND request_id = $2")
                .bind(&id)
                .bind(name)
                .fetch_optional(&mut store)
                .await?;
        let Some((stands, epoch)) = record else {
            wrong.push(format!("{name} was answered, and has no record"));
            continue;
        };
        let completed: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM events
             WHERE transfer_id = $1 AND is_final AND snapshot LIKE '%\"COMPLETE\"%'",
        )
        .bind(&id)
        .fetch_one(&mut store)
        .await?;
        if stands != "COMPLETE" || completed != 1 {
            wrong.push(format!("{name} is {stands}, and was COMPLETE {completed} times"));
        }
        let path =
            stage.data().join("files").join(&id[id.len() - 2..]).join(format!("{id}.{epoch}"));
        match fs::read(&path) {
            Ok(data) if data == asked.data => drop(landed.insert(path)),
            Ok(data) => wrong.push(format!("{name} landed with {} other bytes", data.len())),
            Err(err) => wrong.push(format!("{name} is not where the record says: {err}")),
        }
    }
    store.close().await?;
    Ok(wrong)
}

/// Returns of which files there is a byte at the server, or more, and no line in the client's audit;
/// and whether its chain has a gap.
pub fn unrecorded(stage: &Stage) -> Vec<String> {
    let mut wrong = Vec::new();
    let audit = stage.state().join("audit");
    if !audit.exists() {
        let came = files_beneath(&stage.data().join("files")).into_iter();
        let came = came.filter(|path| transfer_of(path).is_some() && holds_bytes(path));
        return came.map(|path| format!("no audit, and {} came", path.display())).collect();
    }
    let mut verify = Command::new(env!("CARGO_BIN_EXE_fts-client"));
    verify.args(["audit", "verify", "--state-dir"]).arg(stage.state());
    let verified = verify.output().expect("it runs");
    if !verified.status.success() {
        let told = [verified.stdout, verified.stderr].concat();
        wrong.push(format!("the audit: {}", String::from_utf8_lossy(&told)));
    }
    let mut served = BTreeSet::new();
    for path in files_beneath(&audit) {
        let text = fs::read(path).expect("to be read");
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
            if line["event"] == "serve" {
                served.insert(line["transfer"].as_str().expect("an id").to_owned());
            }
        }
    }
    for path in files_beneath(&stage.data().join("files")) {
        let Some(transfer) = transfer_of(&path).filter(|_| holds_bytes(&path)) else { continue };
        if !served.contains(&transfer) {
            wrong.push(format!("{} came, and is not in the client's audit", path.display()));
        }
    }
    wrong
}

/// Returns whose file, or partial file, it is.
fn transfer_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.split('.').next()?;
    (name.len() == 36).then(|| name.to_owned())
}

fn holds_bytes(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0)
}

/// What the record says of the work that a file took.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Work {
    pub epoch: i64,
    pub attempts: i64,
    pub received_bytes: i64,
    pub kept_bytes: i64,
    pub restart_detail: Option<String>,
}

pub async fn work(stage: &Stage, name: &str) -> sqlx::Result<Work> {
    let url = format!("sqlite:{}", stage.data().join("fts.db").display());
    let mut store = SqliteConnection::connect(&url).await?;
    let work = sqlx::query_as(
        "SELECT epoch, attempts, received_bytes, kept_bytes, restart_detail
         FROM transfers WHERE request_id = $1",
    )
    .bind(name)
    .fetch_one(&mut store)
    .await?;
    store.close().await?;
    Ok(work)
}

/// Returns what was sent again although it was kept, if anything was: `before` is what the record
/// said when the upload had been cut.
pub fn sent_again(asked: &Asked, before: &Work, after: &Work) -> Option<String> {
    if let Some(why) = &after.restart_detail {
        return Some(format!("it began from zero: {why}"));
    }
    let size = i64::try_from(asked.data.len()).expect("small");
    let rests = (after.attempts - before.attempts) * (size - before.kept_bytes);
    let most = before.received_bytes + rests;
    (after.received_bytes > most).then(|| format!("sent again: {before:?}, then {after:?}"))
}
