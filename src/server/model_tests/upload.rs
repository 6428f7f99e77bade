//! One upload as `ingest` runs it, cut where something may come between: before each chunk, after
//! Finish, after the file has landed. Of a chunk only its first bytes are written, which name the
//! transfer, the version of its source and the chunk: so a file that was put together of other parts
//! than it should be shows.

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc};

use anyhow::{Result, ensure};

use super::history::{Does, Size};
use crate::{
    ids::{AttemptId, Digest, TransferId},
    limits::CHUNK_BYTES,
    server::{
        coordinator::{Begun, Coordinator, ignore_late},
        error::Error,
        landing::{LandingError, Partial, Whole},
        uploads::Entered,
    },
    transfer::{Cause, Delivered, FailReason, Fingerprint, Finish, Moment, State, Step, Transfer},
};

/// One version of the file that a transfer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    pub transfer: TransferId,
    pub version: i64,
    pub size: Size,
}

impl Source {
    pub fn bytes(self) -> u64 {
        match self.size {
            Size::Small => 100,
            Size::OneChunk => 65_537,
            Size::Chunks => 2 * CHUNK_BYTES as u64 + 100,
        }
    }

    pub fn whole(self) -> Whole {
        let (size, mtime_ns) = (self.bytes(), self.version);
        let fingerprint =
            Fingerprint { device: 1, inode: 2, size_bytes: size, mtime_ns, ctime_ns: 4 };
        Whole { size, fingerprint }
    }

    fn chunks(self) -> u64 {
        self.bytes().div_ceil(CHUNK_BYTES as u64)
    }

    fn head(self, chunk: u64) -> Vec<u8> {
        format!("{} version {} chunk {chunk};", self.transfer, self.version).into_bytes()
    }

    fn chunk(self, chunk: u64) -> Vec<u8> {
        let len = (self.bytes() - chunk * CHUNK_BYTES as u64).min(CHUNK_BYTES as u64);
        let mut data = vec![0; usize::try_from(len).expect("a chunk")];
        let head = self.head(chunk);
        data[..head.len()].copy_from_slice(&head);
        data
    }

    /// Stands for the root.
    pub fn digest(self) -> Digest {
        let heads: Vec<_> = (0..self.chunks()).map(|chunk| self.head(chunk)).collect();
        Digest::from(blake3::hash(&heads.concat()))
    }

    /// Checks that this is the file.
    pub fn check(self, file: &File) -> Result<()> {
        ensure!(file.metadata()?.len() == self.bytes(), "the file has another size");
        for chunk in 0..self.chunks() {
            let mut head = self.head(chunk);
            file.read_exact_at(&mut head, chunk * CHUNK_BYTES as u64)?;
            let text = String::from_utf8_lossy(&head);
            ensure!(head == self.head(chunk), "chunk {chunk} of {self:?} is {text:?}");
        }
        Ok(())
    }
}

pub struct Upload {
    pub attempt: AttemptId,
    pub entered: Entered,
    pub phase: Phase,
    pub source: Source,
    transfer: Transfer,
    unrecorded: Vec<(Step, Moment)>,
    /// `None` of a small file, and once it has gone on.
    partial: Option<Partial>,
    /// The next to be sent.
    chunk: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Sending,
    /// Its Finish was taken: it is no longer told to stop.
    Finished,
    /// The file is there, and the record does not say so.
    Landed,
}

/// What is durably held after an attempt; `None` if that could not be found out.
type Keep = Option<u64>;

impl Upload {
    /// Goes on from what the coordinator began. `None`: it is over already.
    pub async fn start(
        server: &Arc<Coordinator>,
        attempt: AttemptId,
        begun: Begun,
        source: Source,
        offset: u64,
    ) -> Option<Self> {
        let Begun { entered, transfer, unrecorded } = begun;
        let chunk = offset / CHUNK_BYTES as u64;
        let (phase, partial) = (Phase::Sending, None);
        let mut upload =
            Self { attempt, entered, phase, source, transfer, unrecorded, partial, chunk };
        let whole = source.whole();
        let opened = match (source.size, offset) {
            (Size::Small, _) => return Some(upload),
            (_, 0) => server.landing.begin(attempt, whole).map(Some),
            _ => {
                let resumed = server.landing.resume(attempt, whole, offset);
                resumed.map(|resumed| resumed.map(|resumed| resumed.partial))
            }
        };
        let cause = match opened {
            Ok(Some(partial)) => {
                upload.partial = Some(partial);
                return Some(upload);
            }
            Ok(None) => {
                let detail = "not so much is kept".to_owned();
                Cause::Failed { reason: FailReason::Io, detail }
            }
            Err(err) => disk_cause(&err),
        };
        let keep = server.landing.settle_partial(attempt.transfer).ok();
        upload.broken(server, keep, cause).await;
        None
    }

    pub fn has_partial(&self) -> bool {
        self.partial.is_some()
    }

    /// How much of it is to be kept if it is told to stop now.
    pub fn keeps_bytes(&self) -> u64 {
        let is_kept = self.source.size == Size::Chunks && self.phase == Phase::Sending;
        if is_kept { self.chunk.min(self.source.chunks() - 1) * CHUNK_BYTES as u64 } else { 0 }
    }

    /// Does the next thing, which is `does` if it is still sending. Returns it unless it is over.
    pub async fn act(mut self, server: &Arc<Coordinator>, does: Does) -> Option<Self> {
        let goes_on = match self.phase {
            Phase::Sending if self.entered.stop.is_cancelled() => {
                let keep = Some(self.keep(server));
                if !self.entered.is_replaced() {
                    let cause = self.entered.cause().unwrap_or(Cause::ClientLost);
                    self.broken(server, keep, cause).await;
                }
                false
            }
            Phase::Sending => self.send(server, does).await,
            Phase::Finished => self.publish(server).await,
            Phase::Landed => {
                let step = Step::Published { epoch: self.attempt.epoch };
                if self.record(server, step).await.is_err() {
                    server.doubt(self.attempt);
                    // The sweeper tries again.
                    drop(server.settle_doubtful().await);
                }
                false
            }
        };
        goes_on.then_some(self)
    }

    /// Returns whether it goes on.
    async fn send(&mut self, server: &Arc<Coordinator>, does: Does) -> bool {
        match does {
            Does::Send | Does::Publish | Does::Record => {
                let is_last = self.chunk + 1 >= self.source.chunks();
                is_last || self.send_chunk(server).await
            }
            Does::Deliver | Does::Finish | Does::FinishOther => {
                while self.chunk < self.source.chunks() {
                    if !self.send_chunk(server).await {
                        return false;
                    }
                }
                self.finish(server, does == Does::FinishOther).await
            }
            Does::Abort(reason) => {
                let detail = "given up".to_owned();
                if !reason.is_worth_retrying() {
                    self.discard(server);
                    let epoch = self.attempt.epoch;
                    self.ended(server, Step::Refused { epoch, reason, detail }, Some(0)).await;
                    return false;
                }
                let keep = if reason == FailReason::Io {
                    Some(self.keep(server))
                } else {
                    self.discard(server);
                    Some(0)
                };
                self.broken(server, keep, Cause::Failed { reason, detail }).await;
                false
            }
            Does::Cut => {
                let cause = server.cause_of_cut(&self.transfer).await;
                let keep = Some(self.keep(server));
                self.broken(server, keep, cause).await;
                false
            }
        }
    }

    async fn send_chunk(&mut self, server: &Arc<Coordinator>) -> bool {
        let data = self.source.chunk(self.chunk);
        let value = *blake3::hash(&self.source.head(self.chunk)).as_bytes();
        self.entered.note_received(data.len() as u64);
        self.chunk += 1;
        let Some(partial) = &mut self.partial else { return true };
        let Err(err) = server.landing.append(partial, &data, Some(value)) else { return true };
        let keep = if err.leaves_kept() {
            Some(self.keep(server))
        } else {
            self.partial = None;
            self.discard(server);
            Some(0)
        };
        self.broken(server, keep, disk_cause(&err)).await;
        false
    }

    async fn finish(&mut self, server: &Arc<Coordinator>, is_other: bool) -> bool {
        let digest =
            if is_other { Digest::from(blake3::hash(b"other")) } else { self.source.digest() };
        let finish = Finish { digest, delivered: Delivered::Unchanged, trusted_bytes: 0 };
        let epoch = self.attempt.epoch;
        let received_bytes = self.entered.received_bytes();
        let step = Step::Finished { epoch, finish, received_bytes };
        self.phase = Phase::Finished;
        if self.partial.is_none() {
            self.unrecorded.push((step, Moment::now()));
        } else if self.record(server, step).await.is_err() {
            let keep = Some(self.keep(server));
            self.note_kept(server, keep).await;
            return false;
        }
        if is_other {
            self.discard(server);
            drop(self.record(server, Step::Mismatched { epoch }).await);
        }
        !is_other
    }

    async fn publish(&mut self, server: &Arc<Coordinator>) -> bool {
        let Err(err) = self.land(server) else {
            self.phase = Phase::Landed;
            return true;
        };
        let keep = if err.leaves_kept() {
            server.landing.settle_partial(self.attempt.transfer).ok()
        } else {
            self.discard(server);
            Some(0)
        };
        let step = Step::Unpublished { epoch: self.attempt.epoch, cause: disk_cause(&err) };
        if self.record(server, step).await.is_ok() {
            self.note_kept(server, keep).await;
        }
        false
    }

    fn land(&mut self, server: &Arc<Coordinator>) -> Result<(), LandingError> {
        if let Some(partial) = self.partial.take() {
            return server.landing.publish(partial);
        }
        let mut partial = server.landing.begin(self.attempt, self.source.whole())?;
        server.landing.append(&mut partial, &self.source.chunk(0), None)?;
        server.landing.publish(partial)
    }

    async fn record(&mut self, server: &Arc<Coordinator>, step: Step) -> Result<Transfer, Error> {
        let mut steps = std::mem::take(&mut self.unrecorded);
        steps.push((step, Moment::now()));
        server.apply_all(self.attempt.transfer, steps).await
    }

    async fn broken(&mut self, server: &Arc<Coordinator>, keep: Keep, cause: Cause) {
        let epoch = self.attempt.epoch;
        let received_bytes = self.entered.received_bytes();
        self.ended(server, Step::Broken { epoch, cause, received_bytes }, keep).await;
    }

    async fn ended(&mut self, server: &Arc<Coordinator>, step: Step, keep: Keep) {
        if let Some(kept) = self.news(keep) {
            self.unrecorded.push((kept, Moment::now()));
        }
        if let Err(Error::Step(_)) = self.record(server, step).await {
            self.note_kept(server, keep).await;
        }
    }

    fn news(&self, keep: Keep) -> Option<Step> {
        let kept_bytes = keep.filter(|bytes| *bytes != self.transfer.kept_bytes)?;
        Some(Step::Kept { epoch: self.attempt.epoch, kept_bytes })
    }

    async fn note_kept(&self, server: &Arc<Coordinator>, keep: Keep) {
        let id = self.attempt.transfer;
        if let Some(step) = self.news(keep) {
            drop(ignore_late(server.apply(id, step).await));
        }
        if let Ok(Some(now)) = server.store.transfer(id).await
            && matches!(now.state, State::Cancelled | State::Complete)
        {
            self.discard(server);
        }
    }

    /// Puts what was written at rest.
    fn keep(&mut self, server: &Arc<Coordinator>) -> u64 {
        self.partial.take().map_or(0, |partial| server.landing.rest(partial).unwrap_or(0))
    }

    fn discard(&self, server: &Arc<Coordinator>) {
        // What cannot be removed now is removed by the next start.
        drop(server.landing.discard(self.attempt.transfer));
    }
}

fn disk_cause(err: &LandingError) -> Cause {
    Cause::ServerDisk { is_full: err.is_unwritable() }
}
