//! Where the verified chunks of one upload go. A small file is kept in memory until it is whole, and
//! then lands in one piece; a larger one is written as it comes, by a thread of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    chunk::{Prefix, Value},
    ids::{AttemptId, TransferId},
    limits,
    server::{
        coordinator::Coordinator,
        error::Error,
        landing::{Landing, LandingError, Partial, Resumed, Unproved, Whole},
    },
};

pub(super) enum Sink {
    Small { attempt: AttemptId, whole: Whole, data: Bytes },
    Writer(Writer),
}

/// The thread that writes a partial file, and the way to it.
pub(super) struct Writer {
    chunks: mpsc::Sender<(Bytes, Option<Value>)>,
    thread: JoinHandle<(Partial, Result<(), LandingError>)>,
    recheck: Option<Recheck>,
}

/// Every chunk that came, at rest and not yet published.
pub(super) struct Sunk {
    pub(super) written: Written,
    /// Why not every chunk is written.
    pub(super) failed: Option<LandingError>,
    pub(super) recheck: Option<Recheck>,
}

pub(super) enum Written {
    Small { attempt: AttemptId, whole: Whole, data: Bytes },
    Partial(Partial),
}

impl Sink {
    /// Opens what takes the chunks from `offset` on, and returns what is there before it.
    pub(super) async fn open(
        coordinator: &Coordinator,
        attempt: AttemptId,
        whole: Whole,
        offset: u64,
    ) -> Result<(Self, Prefix), Error> {
        if whole.size <= limits::SMALL_FILE_BYTES_MAX {
            return Ok((Self::Small { attempt, whole, data: Bytes::new() }, Prefix::default()));
        }
        let landing = Arc::clone(&coordinator.landing);
        if offset == 0 {
            let partial = coordinator.on_disk(move |landing| landing.begin(attempt, whole)).await?;
            return Ok((Self::Writer(Writer::start(landing, partial)), Prefix::default()));
        }
        let resume = move |landing: &Landing| landing.resume(attempt, whole, offset);
        let Some(resumed) = coordinator.on_disk(resume).await? else {
            return Err(Error::WrongOffset { expected: 0 });
        };
        let Resumed { partial, prefix, unproved } = resumed;
        let recheck = match unproved {
            Some(unproved) => Some(Recheck::start(Arc::clone(&landing), unproved)?),
            None => None,
        };
        let writer = Writer { recheck, ..Writer::start(landing, partial) };
        Ok((Self::Writer(writer), prefix))
    }

    /// Takes the next chunk; fails when the disk has failed.
    pub(super) async fn write(&mut self, chunk: Bytes, value: Option<Value>) -> Result<(), ()> {
        match self {
            // There is no second one.
            Self::Small { data, .. } => *data = chunk,
            Self::Writer(writer) => writer.chunks.send((chunk, value)).await.map_err(drop)?,
        }
        Ok(())
    }

    /// Waits until nothing writes any more.
    pub(super) async fn finish(self) -> Result<Sunk, Error> {
        match self {
            Self::Small { attempt, whole, data } => {
                let written = Written::Small { attempt, whole, data };
                Ok(Sunk { written, failed: None, recheck: None })
            }
            Self::Writer(Writer { chunks, thread, recheck }) => {
                drop(chunks);
                let (partial, done) =
                    thread.await.map_err(|err| Error::Internal(err.to_string()))?;
                Ok(Sunk { written: Written::Partial(partial), failed: done.err(), recheck })
            }
        }
    }
}

impl Writer {
    fn start(landing: Arc<Landing>, mut partial: Partial) -> Self {
        let (chunks, mut queue) = mpsc::channel::<(Bytes, _)>(limits::CHUNKS_IN_FLIGHT_MAX);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some((data, value)) = queue.blocking_recv() {
                if let Err(err) = landing.append(&mut partial, &data, value) {
                    return (partial, Err(err));
                }
            }
            (partial, Ok(()))
        });
        Self { chunks, thread, recheck: None }
    }
}

/// A thread that reads again what an earlier process kept, while the rest comes. Dropped, it ends.
pub(super) struct Recheck {
    stop: Arc<AtomicBool>,
    result: oneshot::Receiver<Result<bool, LandingError>>,
}

impl Recheck {
    /// Not on a thread of the runtime's: after a restart there may be as many of these as uploads,
    /// and they take long.
    fn start(landing: Arc<Landing>, unproved: Unproved) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (tell, result) = oneshot::channel();
        let thread = thread::Builder::new().name("fts-recheck".to_owned());
        let spawned = thread.spawn(move || {
            // Whoever asked may have gone.
            drop(tell.send(landing.recheck(&unproved, &stopped)));
        });
        spawned.map_err(|err| Error::Internal(err.to_string()))?;
        Ok(Self { stop, result })
    }

    /// Returns whether what was kept is what the journal says.
    pub(super) async fn is_good(&mut self) -> Result<bool, Error> {
        let done = (&mut self.result).await;
        Ok(done.map_err(|_| Error::Internal("a recheck panicked".to_owned()))??)
    }
}

impl Drop for Recheck {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Written {
    /// Publishes it: see [`Landing::publish`]. Blocks.
    pub(super) fn publish(self, landing: &Landing) -> Result<(), LandingError> {
        match self {
            Self::Partial(partial) => landing.publish(partial),
            Self::Small { attempt, whole, data } => {
                let mut partial = landing.begin(attempt, whole)?;
                landing.append(&mut partial, &data, None)?;
                landing.publish(partial)
            }
        }
    }

    /// Removes it, once nothing writes for it any more. Blocks.
    pub(super) fn abandon(
        self,
        landing: &Landing,
        transfer: TransferId,
    ) -> Result<(), LandingError> {
        if let Self::Partial(mut partial) = self {
            // How the last sync went does not matter; that it has ended does: a late one would
            // write its journal beside the file of the next attempt.
            drop(partial.settle());
        }
        landing.discard(transfer)
    }

    /// Puts it at rest until the next attempt, and returns how many bytes are kept. Blocks.
    pub(super) fn rest(self, landing: &Landing) -> Result<u64, LandingError> {
        match self {
            Self::Partial(partial) => landing.rest(partial),
            Self::Small { .. } => Ok(0),
        }
    }
}
