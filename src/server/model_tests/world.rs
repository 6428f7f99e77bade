//! A server, what outlives it, and the clients and operators around it; after each verb it is
//! checked that what had to happen has, and nothing else.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    faults::{Faults, FaultyDisk, FaultyStore},
    files::Files,
    history::{Does, Older, Sent, Size, Verb, Whose},
    rules::{Change, Told, due},
    upload::{Source, Upload},
};
use crate::{
    ids::{AttemptId, ClientId, InstanceId, TEST_CLOCK, TransferId, UnixMs},
    limits,
    server::{
        coordinator::{Coordinator, Parts, Retention, attempt_of},
        landing::{Landing, Marks},
        metrics::Metrics,
        quotas::QuotaLimits,
        sessions::Session,
        store::memory::MemoryStore,
    },
    shutdown::Shutdown,
    transfer::{Content, Fingerprint, State, Transfer},
};

pub const UPLOADS_MAX: usize = 3;
pub const KEEP: Duration = Duration::from_secs(200);

pub struct World {
    /// `None` while one has died and the next has not begun.
    server: Option<Arc<Coordinator>>,
    pub records: Arc<MemoryStore>,
    pub faults: Arc<Faults>,
    pub told: Told,
    /// Of this life of the server, superseded and closed ones too.
    pub sessions: Vec<Arc<Session>>,
    /// Every attempt that a client was given.
    pub attempts: Vec<Given>,
    pub transfers: Vec<TransferId>,
    pub uploads: Vec<Upload>,
    /// What clients were told to stop, by the last verb.
    pub stops: Vec<AttemptId>,
    /// What was whole, and may land, by attempt.
    pub landed: HashMap<AttemptId, Source>,
    /// Of the clients' files.
    pub version: i64,
    /// Attempts whose newer call gave up while it waited: their place is kept for it for a while.
    pub replaced: HashSet<AttemptId>,
    /// Transfers of which less is kept than their record says; the next offer says it.
    pub overstated: HashSet<TransferId>,
    pub files: Files,
    metrics: Arc<Metrics>,
    pub dir: PathBuf,
}

/// An offer.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    pub attempt: AttemptId,
    pub instance: InstanceId,
    /// What need not be sent again, and of which version of the file.
    pub resume: Option<(Fingerprint, u64)>,
}

/// What a verb may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Nothing,
    /// Its upload may be told to stop.
    Stop(TransferId),
    /// What is noted to be kept of it, and no more.
    Kept(TransferId),
    Transfer(TransferId),
    Client(ClientId),
    Everything,
}

impl Scope {
    fn allows(&self, Change { before, after }: &Change) -> bool {
        match self {
            Self::Nothing | Self::Stop(_) => false,
            Self::Kept(id) => {
                let same = before.as_ref().map(|before| (before.state, before.waiting));
                *id == after.id && same == Some((after.state, after.waiting))
            }
            Self::Transfer(id) => *id == after.id,
            Self::Client(client) => *client == after.client,
            Self::Everything => true,
        }
    }

    /// Whether uploads of the transfer may be told to stop.
    fn may_stop(&self, transfer: &Transfer) -> bool {
        match self {
            Self::Nothing | Self::Kept(_) => false,
            Self::Stop(id) | Self::Transfer(id) => *id == transfer.id,
            Self::Client(client) => *client == transfer.client,
            Self::Everything => true,
        }
    }
}

pub fn now() -> UnixMs {
    UnixMs::now()
}

impl World {
    /// Begins with nothing, in an empty directory.
    pub fn new(dir: &Path, metrics: Arc<Metrics>) -> Result<Self> {
        TEST_CLOCK.set(Some(UnixMs(1_700_000_000_000)));
        fastrand::seed(1);
        let records = Arc::new(MemoryStore::new());
        let faults = Arc::new(Faults::default());
        let server = server(dir, &records, &faults, &metrics)?;
        Ok(Self {
            server: Some(server),
            records,
            faults,
            told: Told::default(),
            sessions: Vec::new(),
            attempts: Vec::new(),
            transfers: Vec::new(),
            uploads: Vec::new(),
            stops: Vec::new(),
            landed: HashMap::new(),
            version: 1,
            replaced: HashSet::new(),
            overstated: HashSet::new(),
            files: Files::default(),
            metrics,
            dir: dir.to_owned(),
        })
    }

    pub fn server(&self) -> &Arc<Coordinator> {
        self.server.as_ref().expect("between verbs there is one")
    }

    /// Lets a history happen, and then all go well.
    pub async fn live(&mut self, history: &[Verb]) -> Result<()> {
        for (at, verb) in history.iter().enumerate() {
            self.step(verb).await.with_context(|| format!("verb {at}, {verb:?}"))?;
        }
        self.heal().await.context("in the end, when all goes well")
    }

    pub async fn step(&mut self, verb: &Verb) -> Result<()> {
        let stopped = self.stopped();
        let scope = self.perform(verb).await?;
        let changes = self.told.read_on(&self.records, now()).await?;
        for change in &changes {
            let Change { before, after } = change;
            ensure!(scope.allows(change), "it changed what it must not: {before:#?} to {after:#?}");
        }
        for upload in &self.uploads {
            let is_new = upload.entered.stop.is_cancelled() && !stopped.contains(&upload.attempt);
            let record = &self.told.transfers[&upload.attempt.transfer];
            ensure!(!is_new || scope.may_stop(record), "it stopped the upload {}", upload.attempt);
        }
        self.check_ends(&changes)?;
        self.check_files()?;
        self.check_places()?;
        self.stops.clear();
        if self.faults.is_dead() {
            self.crash().await.context("the server died")?;
        }
        self.faults.take_fired();
        Ok(())
    }

    /// Returns the attempts whose upload is told to stop.
    fn stopped(&self) -> Vec<AttemptId> {
        let stopped = self.uploads.iter().filter(|upload| upload.entered.stop.is_cancelled());
        stopped.map(|upload| upload.attempt).collect()
    }

    /// What ends a transfer well is the whole file of that very attempt.
    fn check_ends(&self, changes: &[Change]) -> Result<()> {
        for Change { after, .. } in changes.iter().filter(|c| c.after.content == Content::Kept) {
            let attempt = attempt_of(after);
            let source = self.landed.get(&attempt).context("COMPLETE, and nothing landed")?;
            let there = std::fs::File::open(self.server().landing.location(attempt));
            source.check(&there.context("COMPLETE, and there is no file")?)?;
            let whole = after.file.as_ref().map(|f| (f.size_bytes, f.fingerprint));
            ensure!(whole == Some((source.bytes(), source.whole().fingerprint)), "of {after:#?}");
            let root = after.finish.map(|finish| finish.digest);
            ensure!(root == Some(source.digest()), "the root is another");
        }
        Ok(())
    }

    /// Only who was offered one, or uploads, holds a place.
    fn check_places(&self) -> Result<()> {
        let offered = |t: &&Transfer| t.state == State::Offered;
        let offered = self.told.transfers.values().filter(offered).count();
        let places = || self.server().uploads.places.try_take();
        let free = std::iter::from_fn(places).take(UPLOADS_MAX).count();
        let held = offered + self.uploads.len() + self.replaced.len();
        ensure!(self.faults.has_fired() || free + held >= UPLOADS_MAX, "{free} free, {held} held");
        Ok(())
    }

    /// The server dies, and the next one repairs what it left.
    pub async fn crash(&mut self) -> Result<()> {
        self.uploads.clear();
        self.sessions.clear();
        self.replaced.clear();
        // It holds the lock of its directory.
        self.server = None;
        for tries in 0.. {
            ensure!(tries < 4, "it cannot be repaired");
            self.faults.revive();
            let Ok(server) = server(&self.dir, &self.records, &self.faults, &self.metrics) else {
                continue;
            };
            if server.repair().await.is_ok() && !self.faults.is_dead() {
                self.server = Some(server);
                break;
            }
        }
        let before = self.told.transfers.clone();
        let changes = self.told.read_on(&self.records, now()).await?;
        self.files.at = None;
        self.look_at_files()?;
        let partial = &self.files.partial;
        let gone = |t: &&Transfer| t.kept_bytes > 0 && !partial.contains_key(&t.id.to_string());
        self.overstated.extend(self.told.transfers.values().filter(gone).map(|t| t.id));
        for Change { before, after } in &changes {
            let was_out = before.as_ref().is_none_or(|before| before.state.is_outstanding());
            let kept = |t: &Transfer| t.kept_bytes;
            let is_kept = before.as_ref().is_some_and(|before| kept(before) != kept(after));
            ensure!(was_out || is_kept, "a repair changed {before:#?} to {after:#?}");
        }
        for t in self.told.transfers.values() {
            let name = attempt_of(t).to_string();
            ensure!(!t.state.is_outstanding(), "after a repair, {t:#?}");
            let was_whole = before.get(&t.id).is_some_and(|t| t.state == State::Verifying);
            let is_there = self.files.published.contains(&name);
            ensure!(!was_whole || (t.state == State::Complete) == is_there, "of {t:#?}");
        }
        self.check_ends(&changes)?;
        for t in self.told.transfers.values() {
            let is_over = matches!(t.state, State::Complete | State::Cancelled);
            let is_left = self.files.partial.contains_key(&t.id.to_string());
            ensure!(!is_left || !is_over, "a partial file is left of {t:#?}");
        }
        // From here on it is strict again.
        let fired = self.faults.has_fired();
        ensure!(!fired || self.faults.is_dead(), "a fault went by");
        self.check_files()
    }

    /// From here on nothing goes wrong: everything that is unfinished is delivered, soon.
    async fn heal(&mut self) -> Result<()> {
        self.faults.disarm();
        while let Some(upload) = self.uploads.pop() {
            self.uploads.push(upload);
            self.step(&Verb::Upload { upload: 0, does: Does::Deliver }).await?;
        }
        self.step(&Verb::SettleOrphans).await?;
        self.step(&Verb::CollectAbandoned).await?;
        // Offers of which no client knows.
        self.wait(limits::OFFER_WAIT + Duration::from_secs(1)).await;
        for id in self.transfers.clone() {
            let t = &self.told.transfers[&id];
            if t.is_paused() {
                self.server().resume(id).await?;
            }
        }
        self.told.read_on(&self.records, now()).await?;
        self.step(&Verb::Sweep).await?;
        for client in 0..2 {
            self.deliver_all(client).await?;
        }
        for t in self.told.transfers.values() {
            ensure!(t.state.is_final(), "it is stuck: {t:#?}");
        }
        // A place whose offer ended in an unlucky moment is free after this.
        self.wait(limits::OFFER_WAIT * 2).await;
        let places = || self.server().uploads.places.try_take();
        let free = std::iter::from_fn(places).take(UPLOADS_MAX).count();
        ensure!(free == UPLOADS_MAX, "only {free} places are free");
        Ok(())
    }

    /// A client that works takes all there is for it.
    async fn deliver_all(&mut self, client: u8) -> Result<()> {
        let id = client_id(client);
        let waiting = self.told.of(&id).filter(|t| t.state.is_waiting()).count();
        if waiting == 0 {
            return Ok(());
        }
        for _ in 0..=2 * waiting + 1 {
            if self.server().sessions.find(&id).is_none() {
                self.step(&Verb::Connect { client, instance: 0, mentions: 0 }).await?;
            }
            let offers = self.attempts.len();
            let session = self.sessions.iter().rev().position(|session| session.client == id);
            let session = u8::try_from(session.context("no session")?)?;
            self.step(&Verb::Claim { session, jobs_max: 1, offers_max: 1 }).await?;
            if self.attempts.len() == offers {
                let next = self.told.of(&id).filter_map(due).min();
                let Some(next) = next else { break };
                self.wait(next.since(now())).await;
                continue;
            }
            let source = Sent { size: Size::Chunks, is_changed: false, is_mixed: false };
            let (whose, older) = (Whose::Its, Older::LetsGo);
            let begin = Verb::Begin { attempt: 0, whose, source, older };
            self.step(&begin).await?;
            while !self.uploads.is_empty() {
                self.step(&Verb::Upload { upload: 0, does: Does::Deliver }).await?;
            }
        }
        Ok(())
    }

    pub async fn wait(&self, wait: Duration) {
        TEST_CLOCK.set(Some(now().plus(wait)));
        // The deadlines of the runtime are of tens of seconds.
        tokio::time::advance(wait.min(Duration::from_secs(120))).await;
    }
}

fn server(
    dir: &Path,
    records: &Arc<MemoryStore>,
    faults: &Arc<Faults>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Coordinator>> {
    let disk = FaultyDisk(Arc::clone(faults));
    let landing = Landing::open_on(&dir.join("files"), Box::new(disk))?.with_marks(Marks::NONE);
    let store = FaultyStore { records: Arc::clone(records), faults: Arc::clone(faults) };
    Ok(Coordinator::new(Parts {
        store: Arc::new(store),
        credentials: Arc::new(MemoryStore::new()),
        landing: Arc::new(landing),
        metrics: Arc::clone(metrics),
        shutdown: Shutdown::new(),
        heartbeat: limits::HEARTBEAT,
        quotas: QuotaLimits::default(),
        retention: Retention { keep: Some(KEEP), keep_bytes: None },
        uploads_max: UPLOADS_MAX,
    }))
}

pub fn client_id(number: u8) -> ClientId {
    format!("client-{number}").parse().expect("an id")
}

/// The processes that a client runs as, one after the other or at a time.
pub fn instance_id(client: u8, number: u8) -> InstanceId {
    InstanceId::from_bytes(&[client * 16 + number + 1; 16]).expect("16 bytes")
}
