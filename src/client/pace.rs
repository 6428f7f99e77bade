//! Caps on what uploads send: a limiter, which shares its rate fairly and can be changed at any
//! time, and the body of a request that asks it before each piece. It knows nothing of files.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, transport::Channel};

use crate::{limits, rate::Rate, wire::upload_body::UploadBody};

/// Lets so many bytes through in a second, first come, first served, a piece at a time: uploads
/// that share it move at the same speed. Without a rate it lets everything through.
#[derive(Debug)]
pub(super) struct Limiter {
    rate: watch::Sender<Option<Rate>>,
    /// Whose turn it is: one at a time, in order.
    turn: Semaphore,
    /// What was let through has taken until then, at the rate.
    spent: Mutex<Instant>,
}

impl Limiter {
    pub(super) fn new(rate: Option<Rate>) -> Arc<Self> {
        let spent = Mutex::new(Instant::now());
        Arc::new(Self { rate: watch::Sender::new(rate), turn: Semaphore::new(1), spent })
    }

    pub(super) fn rate(&self) -> Option<Rate> {
        *self.rate.borrow()
    }

    /// Changes the rate, for whoever waits as well.
    pub(super) fn set(&self, rate: Option<Rate>) {
        self.rate.send_if_modified(|old| std::mem::replace(old, rate) != rate);
    }

    /// Waits until some of `want` bytes may be sent, and returns how many. Dropped, it has let
    /// nothing through.
    async fn take(&self, want: usize, held: &Held) -> usize {
        let mut rate = self.rate.subscribe();
        let mut waiting = None;
        let turn = if let Ok(turn) = self.turn.try_acquire() {
            Ok(turn)
        } else {
            waiting = Some(held.begin());
            self.turn.acquire().await
        };
        let _turn = turn.expect("the semaphore is never closed");
        loop {
            let Some(cap) = *rate.borrow_and_update() else { return want };
            let until = match self.grant(cap, want) {
                Ok(piece) => return piece,
                Err(until) => until,
            };
            waiting.get_or_insert_with(|| held.begin());
            tokio::select! {
                () = sleep_until(until) => {}
                // The sender is ours: it is not gone.
                _ = rate.changed() => {}
            }
        }
    }

    /// Lets a piece through, or returns when it may.
    fn grant(&self, cap: Rate, want: usize) -> Result<usize, Instant> {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if *spent > now {
            return Err(*spent);
        }
        let piece = want.min(piece_bytes(cap));
        // What was not used before the burst is lost.
        let from = (*spent + limits::RATE_BURST).max(now) - limits::RATE_BURST;
        *spent = from + cap.time_of(piece);
        Ok(piece)
    }
}

fn piece_bytes(cap: Rate) -> usize {
    let piece = cap.bytes_per_second() / limits::RATE_PIECES_PER_SECOND;
    let piece = usize::try_from(piece).unwrap_or(usize::MAX);
    piece.clamp(limits::RATE_PIECE_BYTES_MIN, limits::RATE_PIECE_BYTES_MAX)
}

/// Whether a cap holds an upload back.
#[derive(Debug, Default)]
pub(super) struct Held {
    now: AtomicBool,
    lately: AtomicBool,
}

impl Held {
    /// Returns whether a cap made the upload wait since the last look, or does so now.
    pub(super) fn look(&self) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        self.lately.swap(false, Ordering::Relaxed) || now
    }

    fn begin(&self) -> HeldNow<'_> {
        self.lately.store(true, Ordering::Relaxed);
        self.now.store(true, Ordering::Relaxed);
        HeldNow(self)
    }
}

/// A wait for a cap; dropped when it is over.
struct HeldNow<'a>(&'a Held);

impl Drop for HeldNow<'_> {
    fn drop(&mut self) {
        self.0.now.store(false, Ordering::Relaxed);
    }
}

/// The pace at which a thread reads what is not sent: what is sent has its pace on the way.
#[derive(Debug)]
pub(super) struct ReadPace {
    /// Of the rule. Without one, the disk decides.
    rule: Option<(Arc<Limiter>, Handle)>,
    held: Arc<Held>,
    /// Fires when nobody needs it any more.
    pub(super) over: CancellationToken,
}

impl ReadPace {
    /// With a limiter only on a runtime.
    pub(super) fn new(
        rule: Option<Arc<Limiter>>,
        held: Arc<Held>,
        over: CancellationToken,
    ) -> Self {
        Self { rule: rule.map(|limiter| (limiter, Handle::current())), held, over }
    }

    /// Waits until some of `want` bytes may be read, and returns how many; `None` after a `stop`. It
    /// blocks.
    pub(super) fn take(&self, want: usize, stop: &CancellationToken) -> Option<usize> {
        let Some((limiter, runtime)) = &self.rule else {
            return (!stop.is_cancelled()).then_some(want);
        };
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => None,
                piece = limiter.take(want, &self.held) => Some(piece),
            }
        })
    }
}

/// What one upload obeys.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Shared by all uploads of the client.
    pub(super) client: Arc<Limiter>,
    /// Shared by all uploads that one rule of the policy allows.
    pub(super) rule: Option<Arc<Limiter>>,
    /// Of this transfer alone.
    pub(super) own: Option<Rate>,
    pub(super) held: Arc<Held>,
}

/// A channel for one request, which has a body of ours in place of tonic's, and sends it at a pace.
#[derive(Debug)]
pub(super) struct Paced {
    channel: Channel,
    body: Option<UploadBody>,
    pace: Pace,
}

impl Paced {
    pub(super) fn new(channel: Channel, body: UploadBody, pace: Pace) -> Self {
        Self { channel, body: Some(body), pace }
    }
}

impl tower::Service<http::Request<Body>> for Paced {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = tonic::transport::channel::ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.channel, cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Pace { client, rule, own, held } = self.pace.clone();
        let (parts, _) = request.into_parts();
        let body = self.body.take().expect("one request is sent");
        // The narrowest first: an upload that waits for that holds up nobody at the next one.
        let own = own.map(|rate| Limiter::new(Some(rate)));
        let body = match (own, rule) {
            (None, None) => Body::new(PacedBody::new(body, client, held)),
            (Some(one), None) | (None, Some(one)) => {
                let slowed = PacedBody::new(body, one, Arc::clone(&held));
                Body::new(PacedBody::new(slowed, client, held))
            }
            (Some(own), Some(rule)) => {
                let slowed = PacedBody::new(body, own, Arc::clone(&held));
                let slowed = PacedBody::new(slowed, rule, Arc::clone(&held));
                Body::new(PacedBody::new(slowed, client, held))
            }
        };
        tower::Service::call(&mut self.channel, http::Request::from_parts(parts, body))
    }
}

/// A body that is cut into pieces, each of which waits for a limiter. While that has no rate, every
/// frame passes as it is.
struct PacedBody<B> {
    inner: B,
    limiter: Arc<Limiter>,
    held: Arc<Held>,
    /// Of the frame that is being cut.
    rest: Bytes,
    waiting: Option<Taking>,
}

/// A wait for the limiter; how many bytes may go.
type Taking = Pin<Box<dyn Future<Output = usize> + Send>>;

impl<B> PacedBody<B> {
    fn new(inner: B, limiter: Arc<Limiter>, held: Arc<Held>) -> Self {
        Self { inner, limiter, held, rest: Bytes::new(), waiting: None }
    }

    fn take(&self) -> Taking {
        let (limiter, held, want) =
            (Arc::clone(&self.limiter), Arc::clone(&self.held), self.rest.len());
        Box::pin(async move { limiter.take(want, &held).await })
    }
}

impl<B: HttpBody<Data = Bytes, Error = Status> + Unpin> HttpBody for PacedBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        loop {
            if let Some(waiting) = &mut this.waiting {
                let piece = ready!(waiting.as_mut().poll(cx));
                this.waiting = None;
                return Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(piece)))));
            }
            if !this.rest.is_empty() {
                this.waiting = Some(this.take());
                continue;
            }
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) if this.limiter.rate().is_some() => frame,
                other => return Poll::Ready(other),
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, time::Duration};

    use tokio::{task::JoinSet, time::sleep};

    use super::*;

    fn rate(bytes_per_second: u64) -> Rate {
        Rate::try_from(bytes_per_second).expect("enough")
    }

    /// What was sent: when, by which upload, how much.
    type Log = Arc<Mutex<Vec<(Duration, usize, usize)>>>;

    /// A body of so many frames of a chunk each.
    struct Frames(VecDeque<Bytes>);

    impl Frames {
        fn new(count: usize) -> Self {
            let chunk = Bytes::from(vec![7; limits::CHUNK_BYTES + 9]);
            Self(std::iter::repeat_n(chunk, count).collect())
        }
    }

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
        }
    }

    async fn next(
        body: &mut (impl HttpBody<Data = Bytes, Error = Status> + Unpin),
    ) -> Option<Bytes> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.expect("no error").into_data().expect("data"))
    }

    /// Sends frames at the pace of `limiter` until the log has been dropped.
    fn upload(
        set: &mut JoinSet<()>,
        name: usize,
        limiter: &Arc<Limiter>,
        log: &Log,
        held: &Arc<Held>,
    ) {
        let mut body = PacedBody::new(Frames::new(100_000), Arc::clone(limiter), Arc::clone(held));
        let (begun, log) = (Instant::now(), Arc::clone(log));
        set.spawn(async move {
            while let Some(piece) = next(&mut body).await {
                log.lock().expect("whole").push((begun.elapsed(), name, piece.len()));
                // As a socket does: without a cap it is the network that makes it wait.
                tokio::task::yield_now().await;
            }
        });
    }

    /// Returns the least and the most that was sent in any five seconds between two moments.
    fn any_five_seconds(log: &Log, from: Duration, to: Duration) -> (usize, usize) {
        let log = log.lock().expect("whole");
        let window = Duration::from_secs(5);
        let sent = |from: Duration| {
            let within = log.iter().filter(|(at, ..)| (from..from + window).contains(at));
            within.map(|(.., bytes)| bytes).sum::<usize>()
        };
        let starts = log.iter().map(|(at, ..)| *at).filter(|at| *at >= from && *at + window <= to);
        let each: Vec<usize> = starts.map(sent).collect();
        (*each.iter().min().expect("windows"), *each.iter().max().expect("windows"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_cap_is_held_within_five_per_cent_over_any_five_seconds_and_shared_fairly() {
        for (bytes_per_second, uploads) in
            [(64_000, 1), (64_000, 64), (5_000_000, 4), (200_000_000, 7)]
        {
            let (limiter, log) = (Limiter::new(Some(rate(bytes_per_second))), Log::default());
            let mut set = JoinSet::new();
            for name in 0..uploads {
                upload(&mut set, name, &limiter, &log, &Arc::default());
            }
            sleep(Duration::from_secs(12)).await;

            let (least, most) = any_five_seconds(&log, Duration::ZERO, Duration::from_secs(12));
            let should = usize::try_from(5 * bytes_per_second).expect("small");
            assert!(least >= should / 100 * 95, "{bytes_per_second}: {least}");
            assert!(most <= should / 100 * 105, "{bytes_per_second}: {most}");
            let log = log.lock().expect("whole");
            let of = |name| log.iter().filter(|(_, each, _)| *each == name).map(|e| e.2).sum();
            let shares: Vec<usize> = (0..uploads).map(of).collect();
            let (least, most) = (shares.iter().min(), shares.iter().max());
            let unfair = most.zip(least).map(|(most, least)| most - least).expect("uploads");
            assert!(unfair <= piece_bytes(rate(bytes_per_second)), "{shares:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_up() {
        let limiter = Limiter::new(Some(rate(1_000_000)));
        sleep(Duration::from_secs(60)).await;
        let log = Log::default();
        let mut set = JoinSet::new();
        upload(&mut set, 0, &limiter, &log, &Arc::default());
        sleep(Duration::from_secs(6)).await;
        let (_, most) = any_five_seconds(&log, Duration::ZERO, Duration::from_secs(6));
        assert!(most <= 5_250_000, "{most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_holds_at_once_for_those_that_wait() {
        let (limiter, log) = (Limiter::new(Some(rate(limits::RATE_MIN_BYTES))), Log::default());
        let mut set = JoinSet::new();
        for name in 0..64 {
            upload(&mut set, name, &limiter, &log, &Arc::default());
        }
        let seconds = Duration::from_secs;
        sleep(seconds(10)).await;
        limiter.set(Some(rate(50_000_000)));
        sleep(seconds(10)).await;
        limiter.set(Some(rate(limits::RATE_MIN_BYTES)));
        sleep(seconds(10)).await;

        let (least, most) = any_five_seconds(&log, seconds(10), seconds(20));
        assert!((237_500_000..=262_500_000).contains(&least), "{least}");
        assert!((237_500_000..=262_500_000).contains(&most), "{most}");
        let (least, most) = any_five_seconds(&log, seconds(20), seconds(30));
        // One large piece was on its way.
        let should = 304_000..=336_000 + limits::RATE_PIECE_BYTES_MAX;
        assert!(should.contains(&least) && should.contains(&most), "{least} {most}");
        let (_, most) = any_five_seconds(&log, seconds(22), seconds(30));
        assert!(most <= 336_000, "{most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cap_that_goes_lets_those_that_wait_go_and_one_that_comes_holds_them() {
        let limiter = Limiter::new(Some(rate(limits::RATE_MIN_BYTES)));
        let mut body = PacedBody::new(Frames::new(9), Arc::clone(&limiter), Arc::default());
        let piece = next(&mut body).await.expect("a piece");
        assert_eq!(piece.len(), limits::RATE_PIECE_BYTES_MIN);
        let mut others = JoinSet::new();
        for _ in 0..8 {
            let mut body = PacedBody::new(Frames::new(1), Arc::clone(&limiter), Arc::default());
            others.spawn(async move { while next(&mut body).await.is_some() {} });
        }
        sleep(Duration::from_secs(1)).await;

        let begun = Instant::now();
        limiter.set(None);
        others.join_all().await;
        next(&mut body).await.expect("the rest of the frame");
        let whole = next(&mut body).await.expect("a frame");
        assert_eq!(whole.len(), limits::CHUNK_BYTES + 9, "it passes as it is");
        assert_eq!(begun.elapsed(), Duration::ZERO);

        limiter.set(Some(rate(limits::RATE_MIN_BYTES)));
        while begun.elapsed() < Duration::from_secs(5) {
            assert!(next(&mut body).await.expect("a piece").len() <= limits::RATE_PIECE_BYTES_MIN);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_dropped_while_it_waits_holds_up_nobody() {
        let limiter = Limiter::new(Some(rate(limits::RATE_MIN_BYTES)));
        let held = Arc::new(Held::default());
        let mut set = JoinSet::new();
        let log = Log::default();
        for name in 0..4 {
            let held = if name == 0 { Arc::clone(&held) } else { Arc::default() };
            upload(&mut set, name, &limiter, &log, &held);
        }
        sleep(Duration::from_secs(1)).await;
        assert!(held.look() && held.look(), "it waits");
        drop(set);
        tokio::task::yield_now().await;
        assert!(!held.look(), "nothing waits any more");
        let mut set = JoinSet::new();
        let log = Log::default();
        upload(&mut set, 9, &limiter, &log, &held);
        sleep(Duration::from_secs(6)).await;
        let (least, _) = any_five_seconds(&log, Duration::ZERO, Duration::from_secs(6));
        assert!(least >= 304_000, "{least}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_waits_for_the_cap_is_held_back() {
        let held = Arc::new(Held::default());
        let limiter = Limiter::new(Some(rate(100_000_000)));
        let mut body = PacedBody::new(Frames::new(3), limiter, Arc::clone(&held));
        // The network takes a piece in 50 ms: far less than the cap would let through.
        while next(&mut body).await.is_some() {
            sleep(Duration::from_millis(50)).await;
        }
        assert!(!held.look());

        let mut free = PacedBody::new(Frames::new(3), Limiter::new(None), Arc::clone(&held));
        while next(&mut free).await.is_some() {}
        assert!(!held.look());
    }
}
