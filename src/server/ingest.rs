//! One upload: chunks come in, are verified, and are written; only a Finish that proves the file
//! whole lands it.
//!
//! The stream task verifies, a blocking thread writes, and a short channel between them is the only
//! buffer, so that HTTP/2 flow control slows the client down when the disk is slow. The end of the
//! stream means nothing: tonic reports a cancelled or broken upload as a clean end.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tonic::Streaming;

use super::{
    coordinator::{Coordinator, attempt_of},
    error::Error,
    landing::{Landing, LandingError, Partial},
    uploads::Entered,
};
use crate::{
    chunk::{Accepted, ChunkError, ChunkVerifier},
    ids::Digest,
    limits,
    status::Reason,
    transfer::{Cause, Consistency, Delivered, FailReason, Fingerprint, Finish, Step, Transfer},
    wire::{
        proto::UploadFileRequest,
        session::{Header, Upload, WireError},
    },
};

/// What the client is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The file is on stable storage, and so is its record.
    Complete { size: u64, digest: Digest },
    /// The client gave the file up, and that is noted.
    Aborted,
}

/// Receives one upload, from its Header to its end.
pub async fn receive(
    coordinator: Arc<Coordinator>,
    mut stream: Streaming<UploadFileRequest>,
) -> Result<(Header, Received), Error> {
    let Next::Message(Upload::Header(header)) = next(&mut stream, limits::HELLO_WAIT).await? else {
        return Err(out_of_order("an upload begins with its Header"));
    };
    let (entered, transfer) = coordinator.begin(&header).await?;
    let span = tracing::Span::current();
    span.record("transfer_id", tracing::field::display(transfer.id));
    let _active = coordinator.metrics.upload_began();
    let run = Ingest { coordinator, entered, transfer, started: Instant::now() };
    let received = run.run(stream, header.size).await?;
    Ok((header, received))
}

/// One upload that has begun.
struct Ingest {
    coordinator: Arc<Coordinator>,
    entered: Entered,
    transfer: Transfer,
    started: Instant,
}

/// How the stream of an upload ended.
enum End {
    Finish {
        size: u64,
        finish: Finish,
        fingerprint: Fingerprint,
    },
    Abort {
        reason: FailReason,
        detail: String,
    },
    /// Told to stop: whoever told has noted why.
    Stopped,
    Drained,
    /// Without a word.
    Cut,
    Refused(Error),
}

impl Ingest {
    async fn run(self, stream: Streaming<UploadFileRequest>, size: u64) -> Result<Received, Error> {
        let attempt = attempt_of(&self.transfer);
        let begun = self.coordinator.on_disk(move |landing| landing.begin(attempt, size)).await;
        let partial = match begun {
            Ok(partial) => partial,
            Err(err) => return self.broken(0, disk_cause(&err), err).await,
        };
        let mut writer = Writer::start(Arc::clone(&self.coordinator.landing), partial);
        let mut verifier = ChunkVerifier::new(size);
        let end = self.take_chunks(stream, &mut verifier, &mut writer).await;
        let done = verifier.next_offset();
        // Whatever happened, the writer has let go of the file before anything else is done with
        // it.
        let written = writer.finish().await;
        let result = match end {
            End::Finish { size, finish, fingerprint } => {
                match self.check_consistency(&finish, &fingerprint) {
                    Ok(()) => self.finish(size, finish, verifier, written).await,
                    Err(detail) => {
                        let err = Error::refused(Reason::Integrity, detail);
                        let cause = failed(FailReason::SourceChanged, detail.to_owned());
                        self.broken(done, cause, err).await
                    }
                }
            }
            end => self.end(end, done, written).await,
        };
        // Nothing, if it was published: the name has gone from there.
        if let Err(err) = self.coordinator.on_disk(move |landing| landing.discard(attempt)).await {
            err.log();
        }
        result
    }

    async fn take_chunks(
        &self,
        mut stream: Streaming<UploadFileRequest>,
        verifier: &mut ChunkVerifier,
        writer: &mut Writer,
    ) -> End {
        loop {
            let message = tokio::select! {
                biased;
                () = self.entered.stop.cancelled() => return End::Stopped,
                () = self.coordinator.shutdown.aborting().cancelled() => return End::Drained,
                message = next(&mut stream, limits::UPLOAD_STALL) => message,
            };
            let (offset, crc32c, data) = match message {
                Ok(Next::Message(Upload::Chunk { offset, crc32c, data })) => (offset, crc32c, data),
                Ok(Next::Message(Upload::Finish { size, finish, fingerprint })) => {
                    let end = End::Finish { size, finish, fingerprint };
                    return self.nothing_after(&mut stream, end).await;
                }
                Ok(Next::Message(Upload::Abort { reason, detail })) => {
                    return End::Abort { reason, detail };
                }
                Ok(Next::Message(Upload::Header(_) | Upload::RangeEnd)) => {
                    return End::Refused(out_of_order("neither a chunk nor an end of the file"));
                }
                Ok(Next::End) => return End::Cut,
                Err(err) => return End::Refused(err),
            };
            let len = data.len() as u64;
            match verifier.accept(offset, crc32c, &data) {
                Ok(Accepted::Repeated) => continue,
                Ok(Accepted::New) => {}
                Err(err) => {
                    self.coordinator.metrics.chunk_refused(&err);
                    return End::Refused(refused_chunk(&err));
                }
            }
            self.coordinator.metrics.bytes_received(len);
            self.entered.note_done(verifier.next_offset());
            if writer.write(data).await.is_err() {
                // The writer says why when it is joined.
                return End::Stopped;
            }
        }
    }

    /// A Finish counts only as the last message.
    async fn nothing_after(&self, stream: &mut Streaming<UploadFileRequest>, end: End) -> End {
        match next(stream, limits::HELLO_WAIT).await {
            Ok(Next::End) => end,
            Ok(Next::Message(_)) => End::Refused(out_of_order("nothing may follow Finish")),
            Err(err) => End::Refused(err),
        }
    }

    /// What is delivered must be labelled as what it is, and be what was asked for.
    fn check_consistency(&self, finish: &Finish, after: &Fingerprint) -> Result<(), &'static str> {
        let before = self.transfer.file.as_ref().map(|file| file.fingerprint);
        match finish.delivered {
            Delivered::Unchanged if before == Some(*after) => Ok(()),
            Delivered::Unchanged => Err("the fingerprint at the end is not that of the beginning"),
            Delivered::Prefix if self.transfer.consistency == Consistency::Strict => {
                Err("a prefix was sent where STRICT was asked for")
            }
            Delivered::Prefix => Ok(()),
        }
    }

    /// Checks the whole and publishes it.
    async fn finish(
        &self,
        size: u64,
        finish: Finish,
        verifier: ChunkVerifier,
        written: Result<Partial, Error>,
    ) -> Result<Received, Error> {
        let done = verifier.next_offset();
        let partial = match written {
            Ok(partial) => partial,
            Err(err) => return self.broken(done, disk_cause(&err), err).await,
        };
        let digest = match verifier.finish() {
            Ok(digest) if size == done => digest,
            Ok(_) => {
                let err = ChunkError::NotWhole { expected: size, got: done };
                return self.broken(done, integrity_cause(&err), refused_chunk(&err)).await;
            }
            Err(err) => {
                return self.broken(done, integrity_cause(&err), refused_chunk(&err)).await;
            }
        };
        let attempt = attempt_of(&self.transfer);
        let epoch = attempt.epoch;
        let step = Step::Finished { epoch, finish, received_bytes: done };
        self.coordinator.apply(attempt.transfer, step).await?;
        if digest != finish.digest {
            self.coordinator.metrics.root_refused();
            self.coordinator.apply(attempt.transfer, Step::Mismatched { epoch }).await?;
            let text =
                format!("the bytes received have the BLAKE3 {digest}, not {}", finish.digest);
            return Err(Error::refused(Reason::Integrity, text));
        }
        let published = self.coordinator.on_disk(move |landing| landing.publish(&partial)).await;
        if let Err(err) = published {
            let step = Step::Unpublished { epoch, cause: disk_cause(&err) };
            self.coordinator.apply(attempt.transfer, step).await?;
            return Err(err);
        }
        let recorded = self.coordinator.apply(attempt.transfer, Step::Published { epoch }).await;
        if let Err(err @ Error::Step(_)) = recorded {
            // The record went another way, so nothing will ever name this file.
            self.coordinator.on_disk(move |landing| landing.remove(attempt)).await?;
            return Err(err);
        }
        // A store that failed may yet have written it: the orphan sweep settles that.
        recorded?;
        self.coordinator.metrics.file_verified(size, self.started.elapsed());
        Ok(Received::Complete { size, digest })
    }

    /// Notes an end that delivers nothing, and returns what the client is answered.
    async fn end(
        &self,
        end: End,
        done: u64,
        written: Result<Partial, Error>,
    ) -> Result<Received, Error> {
        if let Err(err) = written {
            return self.broken(done, disk_cause(&err), err).await;
        }
        match end {
            End::Abort { reason, detail } => {
                self.aborted(reason, detail, done).await?;
                Ok(Received::Aborted)
            }
            End::Stopped => {
                let err = Error::refused(Reason::StaleEpoch, "this attempt is over");
                if self.entered.is_replaced() {
                    return Err(err);
                }
                self.broken(done, Cause::ClientLost, err).await
            }
            End::Drained => {
                let err = Error::refused(Reason::Draining, "the server is shutting down");
                self.broken(done, Cause::ServerStopped, err).await
            }
            End::Cut => {
                let cause = self.coordinator.cause_of_cut(&self.transfer).await;
                let text = "the upload ended before its Finish";
                self.broken(done, cause, Error::refused(Reason::NotWhole, text)).await
            }
            End::Refused(err) => {
                let cause = match err.reason() {
                    Reason::Stalled => self.coordinator.cause_of_cut(&self.transfer).await,
                    Reason::ChunkCorrupt => failed(FailReason::Integrity, err.peer_text()),
                    _ => failed(FailReason::Io, err.peer_text()),
                };
                self.broken(done, cause, err).await
            }
            End::Finish { .. } => unreachable!("a Finish is taken by `finish`"),
        }
    }

    async fn aborted(&self, reason: FailReason, detail: String, done: u64) -> Result<(), Error> {
        let attempt = attempt_of(&self.transfer);
        if reason.is_worth_retrying() {
            return self.coordinator.broken(attempt, failed(reason, detail), done).await;
        }
        let step = Step::Refused { epoch: attempt.epoch, reason, detail };
        self.coordinator.refused(attempt, step).await
    }

    /// Notes that the attempt broke, and answers `err`.
    async fn broken(&self, done: u64, cause: Cause, err: Error) -> Result<Received, Error> {
        self.coordinator.broken(attempt_of(&self.transfer), cause, done).await?;
        Err(err)
    }
}

/// The thread that writes a partial file, and the way to it.
struct Writer {
    chunks: mpsc::Sender<Bytes>,
    thread: JoinHandle<Result<Partial, LandingError>>,
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

    /// Hands a chunk to the thread; fails when the thread has failed.
    async fn write(&mut self, data: Bytes) -> Result<(), ()> {
        self.chunks.send(data).await.map_err(drop)
    }

    /// Waits until all is written.
    async fn finish(self) -> Result<Partial, Error> {
        drop(self.chunks);
        let written = self.thread.await.map_err(|err| Error::Internal(err.to_string()))?;
        Ok(written?)
    }
}

enum Next {
    Message(Upload),
    End,
}

/// Reads the next message. A transport error is an end like any other; only a message that is not
/// one of ours, or silence, is refused.
async fn next(
    stream: &mut Streaming<UploadFileRequest>,
    wait: std::time::Duration,
) -> Result<Next, Error> {
    let message = match timeout(wait, stream.message()).await {
        Err(_) => return Err(Error::refused(Reason::Stalled, "no data came for too long")),
        Ok(Ok(Some(message))) => message,
        Ok(Ok(None)) => return Ok(Next::End),
        Ok(Err(status)) if status.code() == tonic::Code::OutOfRange => {
            return Err(Error::refused(Reason::ChunkMalformed, "a message is too large"));
        }
        Ok(Err(status)) => {
            tracing::debug!(code = ?status.code(), "an upload was cut");
            return Ok(Next::End);
        }
    };
    let malformed = |err: WireError| Error::refused(Reason::ChunkMalformed, err.to_string());
    Ok(Next::Message(message.try_into().map_err(malformed)?))
}

fn out_of_order(text: &str) -> Error {
    Error::refused(Reason::OutOfOrder, text)
}

fn refused_chunk(err: &ChunkError) -> Error {
    let reason = match err {
        ChunkError::Offset { expected, .. } => return Error::WrongOffset { expected: *expected },
        ChunkError::Length { .. } => Reason::ChunkMalformed,
        ChunkError::Crc { .. } => Reason::ChunkCorrupt,
        ChunkError::NotWhole { .. } => Reason::NotWhole,
    };
    Error::refused(reason, err.to_string())
}

fn failed(reason: FailReason, detail: String) -> Cause {
    Cause::Failed { reason, detail }
}

fn disk_cause(err: &Error) -> Cause {
    Cause::ServerDisk { is_full: matches!(err, Error::Landing(err) if err.is_full()) }
}

fn integrity_cause(err: &ChunkError) -> Cause {
    failed(FailReason::Integrity, err.to_string())
}
