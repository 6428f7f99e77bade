//! Where the verified chunks of one upload go. A small file is kept in memory until it is whole, and
//! then lands in one piece; a larger one is written as it comes, by a thread of its own.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    ids::AttemptId,
    limits,
    server::{
        coordinator::Coordinator,
        error::Error,
        landing::{Landing, LandingError, Partial},
    },
};

pub(super) enum Sink {
    Small { attempt: AttemptId, data: Bytes },
    Writer(Writer),
}

/// The thread that writes a partial file, and the way to it.
pub(super) struct Writer {
    chunks: mpsc::Sender<Bytes>,
    thread: JoinHandle<Result<Partial, LandingError>>,
}

/// Every chunk that came, not yet published.
pub(super) enum Written {
    Small { attempt: AttemptId, data: Bytes },
    Partial(Partial),
}

impl Sink {
    pub(super) async fn open(
        coordinator: &Coordinator,
        attempt: AttemptId,
        size: u64,
    ) -> Result<Self, Error> {
        if size <= limits::SMALL_FILE_BYTES_MAX {
            return Ok(Self::Small { attempt, data: Bytes::new() });
        }
        let partial = coordinator.on_disk(move |landing| landing.begin(attempt, size)).await?;
        Ok(Self::Writer(Writer::start(Arc::clone(&coordinator.landing), partial)))
    }

    /// Takes the next chunk; fails when the disk has failed.
    pub(super) async fn write(&mut self, chunk: Bytes) -> Result<(), ()> {
        match self {
            // There is no second one.
            Self::Small { data, .. } => *data = chunk,
            Self::Writer(writer) => writer.chunks.send(chunk).await.map_err(drop)?,
        }
        Ok(())
    }

    /// Waits until all is written.
    pub(super) async fn finish(self) -> Result<Written, Error> {
        match self {
            Self::Small { attempt, data } => Ok(Written::Small { attempt, data }),
            Self::Writer(Writer { chunks, thread }) => {
                drop(chunks);
                let written = thread.await.map_err(|err| Error::Internal(err.to_string()))?;
                Ok(Written::Partial(written?))
            }
        }
    }
}

impl Writer {
    fn start(landing: Arc<Landing>, mut partial: Partial) -> Self {
        let (chunks, mut queue) = mpsc::channel::<Bytes>(limits::CHUNKS_IN_FLIGHT_MAX);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(data) = queue.blocking_recv() {
                landing.append(&mut partial, &data)?;
            }
            Ok(partial)
        });
        Self { chunks, thread }
    }
}

impl Written {
    /// Publishes it: see [`Landing::publish`]. Blocks.
    pub(super) fn publish(self, landing: &Landing) -> Result<(), LandingError> {
        match self {
            Self::Partial(partial) => landing.publish(&partial),
            Self::Small { attempt, data } => {
                let mut partial = landing.begin(attempt, data.len() as u64)?;
                landing.append(&mut partial, &data)?;
                landing.publish(&partial)
            }
        }
    }
}
