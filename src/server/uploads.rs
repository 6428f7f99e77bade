//! The uploads that run on this server: how far they are, and how they are stopped. One transfer
//! has one upload at a time; a newer one waits until the older one has let go.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    arrived::Arrived,
    places::{Place, Places},
};
use crate::{
    ids::{AttemptId, ClientId, Epoch, TransferId, UnixMs},
    limits,
    transfer::Cause,
};

/// The running uploads.
#[derive(Debug)]
pub struct Uploads {
    /// How many there may be.
    pub places: Places,
    running: Mutex<HashMap<TransferId, Arc<Upload>>>,
}

/// One running upload.
#[derive(Debug)]
pub struct Upload {
    pub attempt: AttemptId,
    /// `None`: nothing is received, the transfer is only held.
    client: Option<ClientId>,
    /// Fires when it must stop: cancelled, paused, or fenced by a newer one.
    pub stop: CancellationToken,
    /// A newer call of the same attempt goes on in its place: it is not for this one to say how the
    /// attempt ended.
    replaced: AtomicBool,
    /// What its client said of it before it had ended.
    cause: Mutex<Option<Cause>>,
    /// Fires when it has let go of its partial file.
    pub ended: CancellationToken,
    /// What has come, and when.
    arrived: OnceLock<Arrived>,
    /// It was told in the log that it stands still.
    told_stalled: AtomicBool,
    /// Of the file, with what was there when it began.
    done_bytes: AtomicU64,
    /// By this upload.
    received_bytes: AtomicU64,
    rate: Mutex<Rate>,
}

/// A moving average, in bytes a second.
#[derive(Debug)]
struct Rate {
    since: Instant,
    bytes: u64,
    average: Option<f64>,
}

/// Why an upload cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// By the same attempt or an older one: it was told to stop; wait for this, and try again.
    Stopping,
    /// By a newer attempt.
    Newer,
    /// No place was kept for it, and none is free.
    Full,
}

impl Uploads {
    pub fn new(uploads_max: usize) -> Self {
        Self { places: Places::new(uploads_max), running: Mutex::default() }
    }

    /// Enters an upload; it leaves when the returned value is dropped. What runs already is told to
    /// stop, if it is not newer.
    pub fn enter(
        self: &Arc<Self>,
        attempt: AttemptId,
        client: &ClientId,
    ) -> Result<Entered, (Occupied, CancellationToken)> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = running.get(&attempt.transfer) {
            if other.attempt.epoch > attempt.epoch {
                return Err((Occupied::Newer, other.ended.clone()));
            }
            if other.attempt.epoch == attempt.epoch {
                other.replaced.store(true, Ordering::Relaxed);
            }
            other.stop.cancel();
            return Err((Occupied::Stopping, other.ended.clone()));
        }
        let place = self.places.of(attempt).or_else(|| self.places.try_take());
        let Some(place) = place else { return Err((Occupied::Full, CancellationToken::new())) };
        let upload = Arc::new(Upload::new(attempt, Some(client.clone())));
        running.insert(attempt.transfer, Arc::clone(&upload));
        Ok(Entered { uploads: Arc::clone(self), upload, place: Some(place) })
    }

    /// Holds a transfer of which no upload runs, so that none begins. `None` if one runs.
    pub fn hold(self: &Arc<Self>, transfer: TransferId) -> Option<Entered> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.contains_key(&transfer) {
            return None;
        }
        // Older than any attempt.
        let upload = Arc::new(Upload::new(AttemptId { transfer, epoch: Epoch(0) }, None));
        running.insert(transfer, Arc::clone(&upload));
        Some(Entered { uploads: Arc::clone(self), upload, place: None })
    }

    pub fn find(&self, transfer: TransferId) -> Option<Arc<Upload>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(&transfer).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Upload>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().filter(|upload| upload.client.is_some()).cloned().collect()
    }

    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Tells the upload of this very attempt to stop, and why; returns whether there is one. It
    /// notes how the attempt ended, once it is at rest.
    pub fn stop_because(&self, attempt: AttemptId, cause: Cause) -> bool {
        let Some(upload) = self.find(attempt.transfer).filter(|u| u.attempt == attempt) else {
            return false;
        };
        upload.cause.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
        upload.stop.cancel();
        true
    }

    /// Tells the upload of this transfer to stop, if there is one of this attempt or an older one.
    pub fn stop(&self, attempt: AttemptId) {
        if let Some(upload) = self.find(attempt.transfer)
            && upload.attempt.epoch <= attempt.epoch
        {
            upload.stop.cancel();
        }
    }
}

impl Upload {
    fn new(attempt: AttemptId, client: Option<ClientId>) -> Self {
        Self {
            attempt,
            client,
            stop: CancellationToken::new(),
            replaced: AtomicBool::new(false),
            cause: Mutex::default(),
            ended: CancellationToken::new(),
            arrived: OnceLock::new(),
            told_stalled: AtomicBool::new(false),
            done_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            rate: Mutex::new(Rate { since: Instant::now(), bytes: 0, average: None }),
        }
    }

    /// Looks from now on at what has arrived of it.
    pub fn watch(&self, arrived: Arrived) {
        drop(self.arrived.set(arrived));
    }

    /// Returns since when nothing has come, if that is long ago.
    pub fn stalled_since(&self, now: UnixMs) -> Option<UnixMs> {
        self.silent_since(now, limits::STALLED_AFTER)
    }

    /// Returns when the last bytes came, if that was so long ago.
    pub fn silent_since(&self, now: UnixMs, long: Duration) -> Option<UnixMs> {
        let last = self.arrived.get()?.last();
        (now.since(last) >= long).then_some(last)
    }

    /// Notes whether it stands still; returns whether that is news, and bad.
    pub fn note_stalled(&self, is_stalled: bool) -> bool {
        !self.told_stalled.swap(is_stalled, Ordering::Relaxed) && is_stalled
    }

    /// Notes that the upload goes on at byte `offset`.
    pub fn begin_at(&self, offset: u64) {
        self.done_bytes.store(offset, Ordering::Relaxed);
        self.rate.lock().unwrap_or_else(PoisonError::into_inner).bytes = offset;
    }

    /// Notes that a chunk has come, whether it is good or not.
    pub fn note_received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Returns what the client said of it, if it did.
    pub fn cause(&self) -> Option<Cause> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that the upload is at byte `done`.
    pub fn note_done(&self, done: u64) {
        self.done_bytes.store(done, Ordering::Relaxed);
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = rate.since.elapsed().as_secs_f64();
        if elapsed >= RATE_SAMPLE_SECONDS {
            let bytes = u32::try_from((done - rate.bytes) >> 10).unwrap_or(u32::MAX);
            let sample = f64::from(bytes) * 1024.0 / elapsed;
            rate.average =
                Some(rate.average.map_or(sample, |average| f64::midpoint(average, sample)));
            rate.since = Instant::now();
            rate.bytes = done;
        }
    }

    /// Returns who sends it.
    pub fn client(&self) -> Option<&ClientId> {
        self.client.as_ref()
    }

    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Returns bytes a second, once there is a sample.
    pub fn rate(&self) -> Option<u64> {
        let rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // a rate is small and positive
        rate.average.map(|average| average as u64)
    }
}

/// Holds the place of a running upload.
#[derive(Debug)]
pub struct Entered {
    uploads: Arc<Uploads>,
    upload: Arc<Upload>,
    /// Until it is dropped.
    place: Option<Place>,
}

impl std::ops::Deref for Entered {
    type Target = Upload;

    fn deref(&self) -> &Upload {
        &self.upload
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut running = self.uploads.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.upload.attempt.transfer);
        if let Some(place) = self.place.take_if(|_| self.upload.is_replaced()) {
            // The call that goes on in its place has it.
            self.uploads.places.keep(self.upload.attempt, place);
        }
        self.upload.ended.cancel();
    }
}

const RATE_SAMPLE_SECONDS: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    fn attempt() -> AttemptId {
        AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) }
    }

    #[test]
    fn a_newer_attempt_stops_the_older_one_and_never_the_reverse() {
        let uploads = Arc::new(Uploads::new(2));
        let client: ClientId = "c".parse().expect("an id");
        let transfer = TransferId::generate();
        let attempt = |epoch| AttemptId { transfer, epoch: Epoch(epoch) };
        let first = uploads.enter(attempt(1), &client).expect("free");

        let (why, ended) = uploads.enter(attempt(2), &client).expect_err("occupied");
        assert_eq!(why, Occupied::Stopping);
        assert!(first.stop.is_cancelled() && !ended.is_cancelled());
        drop(first);
        assert!(ended.is_cancelled());

        let second = uploads.enter(attempt(2), &client).expect("free again");
        let (why, _) = uploads.enter(attempt(1), &client).expect_err("occupied");
        assert_eq!(why, Occupied::Newer);
        uploads.stop(attempt(1));
        assert!(!second.stop.is_cancelled());
    }

    #[test]
    fn more_than_there_are_places_for_are_refused_and_a_second_call_inherits_its_place() {
        let uploads = Arc::new(Uploads::new(1));
        let client: ClientId = "c".parse().expect("an id");
        let one = attempt();
        let entered = uploads.enter(one, &client).expect("free");
        assert_eq!(uploads.enter(attempt(), &client).expect_err("full").0, Occupied::Full);

        assert_eq!(uploads.enter(one, &client).expect_err("occupied").0, Occupied::Stopping);
        drop(entered);
        assert_eq!(uploads.enter(attempt(), &client).expect_err("full").0, Occupied::Full);
        let entered = uploads.enter(one, &client).expect("its place");
        drop(entered);
        uploads.enter(attempt(), &client).expect("free");
    }

    #[test]
    fn an_upload_of_which_nothing_comes_is_stalled_until_something_does() {
        let uploads = Arc::new(Uploads::new(1));
        let client: ClientId = "c".parse().expect("an id");
        let entered = uploads.enter(attempt(), &client).expect("free");
        let now = UnixMs::now();
        assert_eq!(entered.stalled_since(now.plus(limits::STALLED_AFTER)), None, "not begun");

        entered.watch(Arrived::default());

        assert_eq!(entered.stalled_since(now), None);
        let later = now.plus(limits::STALLED_AFTER * 2);
        let since = entered.stalled_since(later).expect("nothing came");
        assert!(since >= now && since < now.plus(limits::STALLED_AFTER));
        assert!(entered.note_stalled(true));
        assert!(!entered.note_stalled(true), "told once");
        assert!(!entered.note_stalled(false));
        assert!(entered.note_stalled(true), "and when it happens again");
    }

    #[test]
    fn a_transfer_that_is_held_begins_no_upload_until_it_is_let_go() {
        let uploads = Arc::new(Uploads::new(1));
        let client: ClientId = "c".parse().expect("an id");
        let attempt = attempt();
        let held = uploads.hold(attempt.transfer).expect("free");
        assert!(uploads.hold(attempt.transfer).is_none());
        assert_eq!(uploads.count(), 0, "it is no upload");
        let (why, ended) = uploads.enter(attempt, &client).expect_err("held");
        assert_eq!(why, Occupied::Stopping);
        drop(held);
        assert!(ended.is_cancelled());
        let _entered = uploads.enter(attempt, &client).expect("free again");
        assert!(uploads.hold(attempt.transfer).is_none(), "an upload runs");
    }
}
