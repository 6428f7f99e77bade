//! The clients that hold a session on this server: who is there, when it was last heard, and the
//! bell that makes its session look at the queue. A bell carries no command: correctness never
//! depends on it being heard.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{questions::Questions, view::Presence};
use crate::{
    ids::{AttemptId, ClientId, InstanceId, SessionEpoch, UnixMs},
    limits,
    wire::session::UploadProgress,
};

/// The live sessions, one for each client at most.
#[derive(Debug)]
pub struct Sessions {
    heartbeat: Duration,
    live: Mutex<HashMap<ClientId, Arc<Session>>>,
    /// When those that have left were last heard, until that is on record: a fleet that leaves
    /// together must not cost a write each.
    left: Mutex<HashMap<ClientId, UnixMs>>,
}

/// One live session.
#[derive(Debug)]
pub struct Session {
    pub client: ClientId,
    pub epoch: SessionEpoch,
    pub instance: InstanceId,
    pub host_name: String,
    pub address: String,
    pub since: UnixMs,
    /// Rings when there may be something to do.
    pub bell: Notify,
    /// Fires when a newer session has taken over; by whom is in `successor`.
    pub superseded: CancellationToken,
    /// Fires when the identity of the client is good no longer.
    pub revoked: CancellationToken,
    /// Fires when it has left.
    pub ended: CancellationToken,
    successor: Mutex<Option<Arc<Self>>>,
    /// How many commands the client takes at a time, as it said last.
    jobs_max: AtomicU32,
    /// The last look at the queue found that the client has as much as it takes.
    full: AtomicBool,
    /// It waits for a place of the server.
    server_full: AtomicBool,
    /// Attempts that a cap of the client's, or their own, holds back, since when.
    throttled: Mutex<Vec<(AttemptId, UnixMs)>>,
    /// Attempts that the client must stop.
    stops: Mutex<VecDeque<AttemptId>>,
    /// What the client is asked beside the work.
    pub questions: Arc<Questions>,
    heard: Mutex<(Instant, UnixMs)>,
}

impl Session {
    pub fn new(
        client: ClientId,
        epoch: SessionEpoch,
        instance: InstanceId,
        host_name: String,
        address: String,
        jobs_max: u32,
    ) -> Self {
        let now = UnixMs::now();
        Self {
            client,
            epoch,
            instance,
            host_name,
            address,
            since: now,
            bell: Notify::new(),
            superseded: CancellationToken::new(),
            ended: CancellationToken::new(),
            revoked: CancellationToken::new(),
            successor: Mutex::new(None),
            jobs_max: AtomicU32::new(jobs_max),
            full: AtomicBool::new(false),
            server_full: AtomicBool::new(false),
            throttled: Mutex::default(),
            stops: Mutex::new(VecDeque::new()),
            questions: Arc::default(),
            heard: Mutex::new((Instant::now(), now)),
        }
    }

    /// Notes that the client was heard just now.
    pub fn note_heard(&self) {
        *lock(&self.heard) = (Instant::now(), UnixMs::now());
    }

    pub fn last_seen(&self) -> UnixMs {
        lock(&self.heard).1
    }

    /// Asks the session to stop an attempt at the client. When too many wait, the oldest is
    /// dropped: the upload itself is fenced by its epoch in any case.
    pub fn stop(&self, attempt: AttemptId) {
        let mut stops = lock(&self.stops);
        if stops.len() >= limits::JOBS_MAX as usize {
            stops.pop_front();
        }
        stops.push_back(attempt);
        self.bell.notify_one();
    }

    pub fn next_stop(&self) -> Option<AttemptId> {
        lock(&self.stops).pop_front()
    }

    pub fn note_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    pub fn note_server_full(&self, full: bool) {
        self.server_full.store(full, Ordering::Relaxed);
    }

    pub fn is_server_full(&self) -> bool {
        self.server_full.load(Ordering::Relaxed)
    }

    /// Notes how many commands the client takes; returns whether that is another number.
    pub fn note_jobs_max(&self, jobs_max: u32) -> bool {
        self.jobs_max.swap(jobs_max, Ordering::Relaxed) != jobs_max
    }

    pub fn jobs_max(&self) -> u32 {
        self.jobs_max.load(Ordering::Relaxed)
    }

    /// Notes which attempts a cap holds back now. Kept here, and not with the upload, because the
    /// client may say so before the first byte of the upload has come.
    pub fn note_throttled(&self, progress: &[UploadProgress]) {
        let now = UnixMs::now();
        let mut throttled = lock(&self.throttled);
        let since = |attempt: AttemptId| {
            throttled.iter().find(|(each, _)| *each == attempt).map_or(now, |(_, since)| *since)
        };
        let held = progress.iter().filter(|each| each.throttled);
        let held = held.map(|each| (each.attempt, since(each.attempt))).collect();
        *throttled = held;
    }

    /// Returns since when a cap holds this attempt back; `None` if none does.
    pub fn throttled_since(&self, attempt: AttemptId) -> Option<UnixMs> {
        lock(&self.throttled).iter().find(|(each, _)| *each == attempt).map(|(_, since)| *since)
    }

    pub fn successor(&self) -> Option<Arc<Self>> {
        lock(&self.successor).clone()
    }
}

impl Sessions {
    /// `heartbeat` is what clients are told; the other deadlines scale with it.
    pub fn new(heartbeat: Duration) -> Self {
        Self { heartbeat, live: Mutex::default(), left: Mutex::default() }
    }

    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
    }

    /// Returns after how long clients that are sent away are to come back; each adds up to as long
    /// again at random.
    pub fn drain_pause(&self) -> Duration {
        let seconds = self.count() / limits::DRAIN_CLIENTS_PER_SECOND;
        let pause = Duration::from_secs(seconds as u64);
        pause.clamp(limits::DRAIN_RECONNECT_AFTER, limits::RECONNECT_HINT_MAX)
    }

    /// A client that was not heard for this long is OFFLINE.
    pub fn silence_max(&self) -> Duration {
        self.heartbeat * limits::CLIENT_SILENCE_PERCENT / 100
    }

    /// Enters a session and supersedes the older one of the client. An older session than the live
    /// one is returned as an error, with the live one.
    pub fn enter(&self, session: Arc<Session>) -> Result<Option<Arc<Session>>, Arc<Session>> {
        let mut live = lock(&self.live);
        if let Some(other) = live.get(&session.client)
            && other.epoch >= session.epoch
        {
            return Err(Arc::clone(other));
        }
        let older = live.insert(session.client.clone(), Arc::clone(&session));
        if let Some(older) = &older {
            *lock(&older.successor) = Some(session);
            older.superseded.cancel();
        }
        Ok(older)
    }

    /// Takes a session out, if it is still the live one. Returns whether it was.
    pub fn leave(&self, session: &Session) -> bool {
        session.ended.cancel();
        let mut live = lock(&self.live);
        let is_live = live.get(&session.client).is_some_and(|other| other.epoch == session.epoch);
        if is_live {
            live.remove(&session.client);
            lock(&self.left).insert(session.client.clone(), session.last_seen());
        }
        is_live
    }

    pub fn find(&self, client: &ClientId) -> Option<Arc<Session>> {
        lock(&self.live).get(client).cloned()
    }

    /// Makes the client's session look at the queue, if it has one here.
    pub fn wake(&self, client: &ClientId) {
        if let Some(session) = self.find(client) {
            session.bell.notify_one();
        }
    }

    /// Makes every session look at its queue.
    pub fn wake_all(&self) {
        for session in lock(&self.live).values() {
            session.bell.notify_one();
        }
    }

    pub fn count(&self) -> usize {
        lock(&self.live).len()
    }

    /// Returns when each client was last heard: the live ones, and those that have left since that
    /// was noted.
    pub fn seen(&self) -> Vec<(ClientId, UnixMs)> {
        let sessions: Vec<_> = lock(&self.live).values().cloned().collect();
        let live = sessions.iter().map(|session| (session.client.clone(), session.last_seen()));
        let left = lock(&self.left);
        live.chain(left.iter().map(|(client, at)| (client.clone(), *at))).collect()
    }

    /// Takes note that these times are on record.
    pub fn noted(&self, seen: &[(ClientId, UnixMs)]) {
        let mut left = lock(&self.left);
        for (client, at) in seen {
            if left.get(client).is_some_and(|left| left <= at) {
                left.remove(client);
            }
        }
    }

    /// Returns when a client that has left was last heard, unless that is on record.
    pub fn left(&self, client: &ClientId) -> Option<UnixMs> {
        lock(&self.left).get(client).copied()
    }

    /// Returns how many clients are online, and how many are stale.
    pub fn presences(&self) -> (u64, u64) {
        let sessions: Vec<_> = lock(&self.live).values().cloned().collect();
        let online = |s: &Arc<Session>| self.presence_of(s) == Presence::Online;
        let online = sessions.iter().filter(|session| online(session)).count() as u64;
        (online, sessions.len() as u64 - online)
    }

    pub fn presence_of(&self, session: &Session) -> Presence {
        let silent = lock(&session.heard).0.elapsed();
        if silent < self.heartbeat * limits::CLIENT_STALE_PERCENT / 100 {
            Presence::Online
        } else {
            Presence::Stale
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that holds one of these can leave it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, TransferId};

    fn session(epoch: u64) -> Arc<Session> {
        let client = "c".parse().expect("an id");
        let address = "127.0.0.1:1".to_owned();
        let instance = InstanceId::generate();
        Arc::new(Session::new(client, SessionEpoch(epoch), instance, "host".to_owned(), address, 4))
    }

    #[test]
    fn a_superseded_session_cannot_take_its_successor_out() {
        let sessions = Sessions::new(limits::HEARTBEAT);
        let (old, new) = (session(1), session(2));
        sessions.enter(Arc::clone(&old)).expect("entered");
        sessions.enter(Arc::clone(&new)).expect("entered");

        assert!(old.superseded.is_cancelled() && !new.superseded.is_cancelled());
        assert!(!sessions.leave(&old), "the older one is not the live one");
        assert_eq!(sessions.find(&new.client).map(|s| s.epoch), Some(SessionEpoch(2)));
        assert!(sessions.leave(&new));
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn what_a_cap_holds_back_is_noted_since_it_began_until_it_is_over() {
        let session = session(1);
        let attempt = |epoch| AttemptId { transfer: TransferId::generate(), epoch: Epoch(epoch) };
        let (one, two) = (attempt(1), attempt(2));
        let says = |attempt, throttled| UploadProgress { attempt, sent_bytes: 0, throttled };
        session.note_throttled(&[says(one, true), says(two, false)]);
        let since = session.throttled_since(one).expect("held back");
        assert_eq!(session.throttled_since(two), None);
        assert_eq!(session.throttled_since(AttemptId { epoch: Epoch(9), ..one }), None);

        session.note_throttled(&[says(one, true), says(two, true)]);
        assert_eq!(session.throttled_since(one), Some(since), "since it began");
        session.note_throttled(&[says(one, false), says(two, true)]);
        assert_eq!(session.throttled_since(one), None);
        session.note_throttled(&[]);
        assert_eq!(session.throttled_since(two), None);
    }

    #[test]
    fn an_older_session_does_not_replace_a_newer_one() {
        let sessions = Sessions::new(limits::HEARTBEAT);
        sessions.enter(session(2)).expect("entered");
        assert!(sessions.enter(session(1)).is_err());
        assert_eq!(sessions.count(), 1);
    }
}
