//! One run: carries out a plan on a rig, and returns the history of it.

use std::{fs, path::Path, sync::Arc, time::Duration};

use anyhow::Result;
use fts::{shutdown::Shutdown, wire::proto};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    common,
    history::{Answer, Asked, History, Landed},
    operator::{Operator, is_final},
    plan::{Ask, Op, Plan},
    rig::Rig,
};

/// What a run was, beyond its history.
pub struct Outcome {
    pub history: History,
    /// For people.
    pub summary: String,
}

/// Runs `plan` in `dir`, which keeps its logs.
pub async fn run(plan: Plan, dir: &Path) -> Result<Outcome> {
    let plan = Arc::new(plan);
    fs::write(dir.join("plan.txt"), plan.to_string())?;
    let digests = Arc::new(make_sources(&plan, dir)?);
    let tasks = Shutdown::new();
    let rig = Arc::new(Rig::start(dir, &plan, &tasks).await?);
    let operator = Operator::new(rig.target.clone());
    let mut watching = JoinSet::new();
    watch(&mut watching, &operator);
    while !operator.seen().is_watching {
        sleep(Duration::from_millis(5)).await;
    }
    let mut asked = warm_up(&plan, dir, &operator, &digests).await;

    let begun = Instant::now();
    let mut stories = JoinSet::new();
    for nth in 0..plan.asks.len() {
        let (plan, operator, digests) = (plan.clone(), operator.clone(), digests.clone());
        let path = source_path(dir, plan.asks[nth].source);
        stories.spawn(async move {
            let ask = &plan.asks[nth];
            sleep_until(begun + ask.at).await;
            tell(&operator, format!("r{nth}"), ask, &plan, &digests, &path).await
        });
    }
    let mut faults = JoinSet::new();
    for nth in 0..plan.faults.len() {
        let (plan, rig) = (plan.clone(), rig.clone());
        faults.spawn(async move {
            let (at, fault) = &plan.faults[nth];
            sleep_until(begun + *at).await;
            rig.suffer(fault).await;
        });
    }
    faults.join_all().await;
    asked.extend(stories.join_all().await);
    rig.calm(plan.scale.fresh_clients).await;
    let calm = Instant::now();
    settle(&operator, calm + plan.scale.settle).await;
    let settled = calm.elapsed();

    let partials = partials_left(dir).await;
    rig.crash_server().await;
    let records = operator.list().await;
    catch_up(&operator, &records).await;
    watching.shutdown().await;
    let mut complaints = rig.stop().await;
    tasks.drain();
    tasks.ended().await;
    let mut seen = std::mem::take(&mut *operator.seen());
    complaints.append(&mut seen.complaints);
    let landed = landed(dir)?;
    let history = History {
        asked,
        events: seen.events,
        looks: seen.looks,
        rates: seen.rates,
        forged: rig.forged(),
        repeated: rig.repeated(),
        records,
        landed,
        partials,
        complaints,
    };
    let summary = summary(&history, &rig, settled);
    Ok(Outcome { history, summary })
}

fn watch(watching: &mut JoinSet<()>, operator: &Operator) {
    let (watcher, looker) = (operator.clone(), operator.clone());
    watching.spawn(async move { watcher.watch().await });
    watching.spawn(async move { looker.look().await });
}

fn source_path(dir: &Path, nth: usize) -> String {
    dir.join("shared").join(nth.to_string()).to_str().expect("text").to_owned()
}

/// Makes the sources, and returns their digests.
fn make_sources(plan: &Plan, dir: &Path) -> Result<Vec<String>> {
    fs::create_dir(dir.join("shared"))?;
    let each = plan.sources.iter().enumerate().map(|(nth, source)| {
        let data = common::bytes(source.size, source.seed);
        fs::write(source_path(dir, nth), &data)?;
        Ok(blake3::hash(&data).to_hex().to_string())
    });
    each.collect()
}

/// Every client delivers one file before anything happens: so each is known, and the watch has a
/// place to go on from.
async fn warm_up(plan: &Plan, dir: &Path, operator: &Operator, digests: &[String]) -> Vec<Asked> {
    let mut asked = Vec::new();
    for client in 0..plan.links.len() {
        let request = proto::TriggerDownloadRequest {
            client_id: format!("client-{client}"),
            path: source_path(dir, 0),
            request_id: format!("warm-{client}"),
            ..Default::default()
        };
        // Until it has registered nobody knows it.
        let id = loop {
            let known = operator.seen().complaints.len();
            if let Some(id) = operator.ask(&request).await {
                break id;
            }
            operator.seen().complaints.truncate(known);
            sleep(Duration::from_millis(20)).await;
        };
        let size = plan.sources[0].size as u64;
        let (digest, request_id) = (digests[0].clone(), request.request_id);
        asked.push(Asked { request_id, size, digest, ids: vec![id], ops: Vec::new() });
    }
    settle(operator, Instant::now() + common::server::PATIENCE).await;
    asked
}

/// Asks for a file, and does with its transfer what the plan says.
async fn tell(
    operator: &Operator,
    request_id: String,
    ask: &Ask,
    plan: &Plan,
    digests: &[String],
    path: &str,
) -> Asked {
    let request = proto::TriggerDownloadRequest {
        client_id: format!("client-{}", ask.client),
        path: path.to_owned(),
        request_id: request_id.clone(),
        max_rate: ask.rate_max,
        ..Default::default()
    };
    let size = plan.sources[ask.source].size as u64;
    let digest = digests[ask.source].clone();
    let mut asked = Asked { request_id, size, digest, ids: Vec::new(), ops: Vec::new() };
    asked.ids.extend(operator.ask(&request).await);
    for (after, op) in &ask.then {
        sleep(*after).await;
        let Some(id) = asked.ids.first().cloned() else { break };
        let answer = if *op == Op::AskAgain {
            asked.ids.extend(operator.ask(&request).await);
            Some(Answer::Taken)
        } else {
            operator.act(*op, &id).await
        };
        asked.ops.extend(answer.map(|answer| (*op, answer)));
    }
    asked
}

/// Waits until every transfer has ended, but not for ever: the checker says which did not.
async fn settle(operator: &Operator, until: Instant) {
    while Instant::now() < until {
        let all = operator.list().await;
        if all.iter().all(|transfer| is_final(transfer.state())) {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Returns the partial files that stay, when every transfer has ended.
async fn partials_left(dir: &Path) -> Vec<String> {
    let until = Instant::now() + PARTIALS_WAIT;
    loop {
        let left = common::files_beneath(&dir.join("data/files/partial"));
        if left.is_empty() || Instant::now() > until {
            return left.iter().map(|path| path.display().to_string()).collect();
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the watch has told what the records say.
async fn catch_up(operator: &Operator, records: &[proto::Transfer]) {
    let until = Instant::now() + common::server::PATIENCE;
    let is_told = |record: &proto::Transfer| {
        let seen = operator.seen();
        let mut events = seen.events.iter().rev();
        events.any(|event| event.id == record.id && event.revision >= record.revision)
    };
    while Instant::now() < until && !records.iter().all(is_told) {
        sleep(Duration::from_millis(50)).await;
    }
}

fn landed(dir: &Path) -> Result<Vec<Landed>> {
    let files = dir.join("data/files");
    let all = common::files_beneath(&files).into_iter();
    let whole = all.filter(|path| !path.starts_with(files.join("partial")));
    let each = whole.map(|path| {
        let data = fs::read(&path)?;
        let digest = blake3::hash(&data).to_hex().to_string();
        // As the server names it.
        let path = path.canonicalize()?.display().to_string();
        Ok(Landed { path, size: data.len() as u64, digest })
    });
    each.collect()
}

fn summary(history: &History, rig: &Rig, settled: Duration) -> String {
    use proto::State::{Cancelled, Complete};
    let count = |state| history.records.iter().filter(|each| each.state() == state).count();
    let attempts: u32 = history.records.iter().map(|each| each.attempts).sum();
    let (mut bytes, mut received) = (0, 0);
    for record in history.records.iter().filter(|each| each.state() == Complete) {
        bytes += record.size.unwrap_or_default();
        received += record.bytes_received;
    }
    format!(
        "{} transfers: {} COMPLETE, {} CANCELLED, {attempts} attempts, {} events, {} looks, {} MB \
         landed, {} MB received, settled in {settled:?}; message faults: {:?}",
        history.records.len(),
        count(Complete),
        count(Cancelled),
        history.events.len(),
        history.looks.len(),
        bytes / 1_000_000,
        received / 1_000_000,
        rig.hits(),
    )
}

/// The server sweeps every minute.
const PARTIALS_WAIT: Duration = Duration::from_secs(70);
