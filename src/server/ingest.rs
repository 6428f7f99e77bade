//! One upload: chunks come in, are verified, and are written; only a Finish that proves the file
//! whole lands it.
//!
//! The stream task verifies, a blocking thread writes ([`sink`]), and a short channel between them is
//! the only buffer, so that HTTP/2 flow control slows the client down when the disk is slow. The end
//! of the stream means nothing: tonic reports a cancelled or broken upload as a clean end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tonic::Streaming;

use super::{
    arrived::Arrived,
    authority::ClientCertificate,
    coordinator::{Begun, Coordinator, attempt_of},
    error::Error,
    landing::Whole,
    uploads::Entered,
};
use crate::{
    chunk::{Accepted, ChunkError, ChunkVerifier},
    ids::Digest,
    limits,
    status::Reason,
    transfer::{
        Consistency, Delivered, FailReason, Fingerprint, Finish, Hold, Moment, Step, Transfer,
    },
    wire::{
        proto::UploadFileRequest,
        session::{Header, Upload, WireError},
    },
};

mod ending;
mod sink;

use ending::{Keep, disk_cause, failed_with, integrity_cause};
use sink::{Recheck, Sink, Sunk, Written};

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
    arrived: Arrived,
    certificate: Option<Arc<ClientCertificate>>,
) -> Result<(Header, Received), Error> {
    let Next::Message(Upload::Header(header)) = next(&mut stream, limits::UPLOAD_STALL).await?
    else {
        return Err(out_of_order("an upload begins with its Header"));
    };
    let begun = coordinator.begin(&header, certificate.as_deref()).await?;
    let Begun { entered, transfer, unrecorded } = begun;
    entered.watch(arrived.clone());
    let span = tracing::Span::current();
    span.record("transfer_id", tracing::field::display(transfer.id));
    let _active = coordinator.metrics.upload_began();
    let started = Instant::now();
    let run = Ingest { coordinator, entered, transfer, unrecorded, arrived, started };
    let received = run.run(stream, &header).await?;
    Ok((header, received))
}

/// One upload that has begun.
struct Ingest {
    coordinator: Arc<Coordinator>,
    entered: Entered,
    transfer: Transfer,
    /// Steps that are recorded with the next one. A small file begins, finishes and is published in
    /// one commit.
    unrecorded: Vec<(Step, Moment)>,
    arrived: Arrived,
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
    /// The client's own policy lets it send no more for so long.
    Held(Hold, Duration),
    /// Told to stop: whoever told has noted why.
    Stopped,
    Drained,
    /// Without a word.
    Cut,
    /// What was kept is not what it was.
    Damaged,
    Refused(Error),
}

impl Ingest {
    async fn run(
        mut self,
        stream: Streaming<UploadFileRequest>,
        header: &Header,
    ) -> Result<Received, Error> {
        let attempt = attempt_of(&self.transfer);
        let whole = Whole { size: header.size, fingerprint: header.fingerprint };
        if header.size <= limits::SMALL_FILE_BYTES_MAX && self.transfer.attempts > 1 {
            // It was larger before.
            self.discard().await;
        }
        let opened = Sink::open(&self.coordinator, attempt, whole, header.offset).await;
        let (mut sink, prefix) = match opened {
            Ok(opened) => opened,
            Err(err) => return self.not_opened(err).await,
        };
        let mut verifier = ChunkVerifier::resume(header.size, prefix)
            .map_err(|err| Error::Internal(err.to_string()))?;
        let end = self.take_chunks(stream, &mut verifier, &mut sink).await;
        // Whatever happened, nothing writes to the file any more before anything else is done with
        // it.
        let Sunk { written, failed, recheck } = match sink.finish().await {
            Ok(finished) => finished,
            Err(err) => return self.broken(Keep::Nothing, disk_cause(&err), err).await,
        };
        if let Some(err) = failed.map(Error::from) {
            let keep = self.keep_after(&err, written).await;
            return self.broken(keep, disk_cause(&err), err).await;
        }
        match self.rechecked(end, recheck).await {
            End::Finish { size, finish, fingerprint } => {
                match self.check_consistency(&finish, &fingerprint) {
                    Ok(()) => self.finish(size, finish, verifier, written).await,
                    Err(detail) => {
                        let err = Error::refused(Reason::Integrity, detail);
                        let cause = failed_with(FailReason::SourceChanged, detail.to_owned());
                        self.abandon(written).await;
                        self.broken(Keep::Nothing, cause, err).await
                    }
                }
            }
            end => self.end(end, written).await,
        }
    }

    /// Before a file is taken for whole, what an earlier process kept of it has been read again.
    async fn rechecked(&self, end: End, recheck: Option<Recheck>) -> End {
        let (End::Finish { .. }, Some(mut recheck)) = (&end, recheck) else { return end };
        tokio::select! {
            biased;
            () = self.entered.stop.cancelled() => End::Stopped,
            () = self.coordinator.shutdown.aborting().cancelled() => End::Drained,
            good = recheck.is_good() => match good {
                Ok(true) => end,
                Ok(false) => End::Damaged,
                Err(err) => {
                    // What cannot be read will not be delivered either.
                    err.log();
                    End::Damaged
                }
            }
        }
    }

    async fn take_chunks(
        &self,
        mut stream: Streaming<UploadFileRequest>,
        verifier: &mut ChunkVerifier,
        sink: &mut Sink,
    ) -> End {
        loop {
            let message = tokio::select! {
                biased;
                () = self.entered.stop.cancelled() => return End::Stopped,
                () = self.coordinator.shutdown.aborting().cancelled() => return End::Drained,
                message = next_moving(&mut stream, &self.arrived) => message,
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
                Ok(Next::Message(Upload::Held(hold, pause))) => return End::Held(hold, pause),
                Ok(Next::Message(Upload::Header(_) | Upload::RangeEnd)) => {
                    return End::Refused(out_of_order("neither a chunk nor an end of the file"));
                }
                Ok(Next::End) => return End::Cut,
                Err(err) => return End::Refused(err),
            };
            let len = data.len() as u64;
            let value = match verifier.accept(offset, crc32c, &data) {
                // A sign of life, and no waste.
                Ok(Accepted::Repeated) => continue,
                Ok(Accepted::New(value)) => value,
                Err(err) => {
                    self.entered.note_received(len);
                    self.coordinator.metrics.chunk_refused(&err);
                    return End::Refused(refused_chunk(&err));
                }
            };
            self.entered.note_received(len);
            let (client, operator) = (&self.transfer.client, self.transfer.operator.as_ref());
            self.coordinator.quotas.note_bytes(client, operator, len);
            self.coordinator.metrics.bytes_received(len);
            self.entered.note_done(verifier.next_offset());
            if sink.write(data, value).await.is_err() {
                // It says why when it is finished.
                return End::Stopped;
            }
        }
    }

    /// A Finish counts only as the last message.
    async fn nothing_after(&self, stream: &mut Streaming<UploadFileRequest>, end: End) -> End {
        match next(stream, limits::UPLOAD_STALL).await {
            Ok(Next::End) => end,
            Ok(Next::Message(_)) => End::Refused(out_of_order("nothing may follow Finish")),
            Err(err) => End::Refused(err),
        }
    }

    /// What is delivered must be labelled as what it is, and be what was asked for.
    fn check_consistency(&self, finish: &Finish, after: &Fingerprint) -> Result<(), &'static str> {
        let before = self.transfer.file.as_ref().map(|file| file.fingerprint);
        if finish.trusted_bytes > self.transfer.kept_bytes {
            return Err("more bytes were trusted than were kept");
        }
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
        &mut self,
        size: u64,
        finish: Finish,
        verifier: ChunkVerifier,
        written: Written,
    ) -> Result<Received, Error> {
        let got = verifier.next_offset();
        let digest = match verifier.finish() {
            Ok(_) if size != got => Err(ChunkError::NotWhole { expected: size, got }),
            digest => digest,
        };
        let digest = match digest {
            Ok(digest) => digest,
            Err(err) => {
                let keep = self.keep(written).await;
                return self.broken(keep, integrity_cause(&err), refused_chunk(&err)).await;
            }
        };
        let attempt = attempt_of(&self.transfer);
        let epoch = attempt.epoch;
        let received_bytes = self.entered.received_bytes();
        let finished = Step::Finished { epoch, finish, received_bytes };
        if let Err(err) = self.finished(finished, &written).await {
            // Cancelled at the last moment; or the record could not be written.
            let keep = self.keep(written).await;
            self.note_kept(keep).await;
            return Err(err);
        }
        if digest != finish.digest {
            self.coordinator.metrics.root_refused();
            self.abandon(written).await;
            self.record(Step::Mismatched { epoch }).await?;
            let text =
                format!("the bytes received have the BLAKE3 {digest}, not {}", finish.digest);
            return Err(Error::refused(Reason::Integrity, text));
        }
        let published = self.coordinator.on_disk(move |landing| written.publish(landing)).await;
        if let Err(err) = published {
            let keep = self.keep_after_publish(&err).await;
            self.record(Step::Unpublished { epoch, cause: disk_cause(&err) }).await?;
            self.note_kept(keep).await;
            return Err(err);
        }
        let recorded = self.record(Step::Published { epoch }).await;
        if recorded.is_err() {
            // If the record went another way, nothing will ever name this file; a store that failed
            // may yet have written it.
            self.coordinator.doubt(attempt);
            if let Err(err) = self.coordinator.settle_doubtful().await {
                err.log();
            }
        }
        recorded?;
        self.coordinator.metrics.file_verified(size, self.started.elapsed());
        Ok(Received::Complete { size, digest })
    }

    /// Notes that Finish was taken. Of a small file that is recorded when it has landed: until then
    /// it may be cancelled, and nothing has happened.
    async fn finished(&mut self, step: Step, written: &Written) -> Result<(), Error> {
        match written {
            Written::Small { .. } => self.unrecorded.push((step, Moment::now())),
            Written::Partial(_) => drop(self.record(step).await?),
        }
        Ok(())
    }

    /// Records a step, after those that wait for it.
    async fn record(&mut self, step: Step) -> Result<Transfer, Error> {
        let mut steps = std::mem::take(&mut self.unrecorded);
        steps.push((step, Moment::now()));
        self.coordinator.apply_all(self.transfer.id, steps).await
    }
}

enum Next {
    Message(Upload),
    End,
}

/// Reads the next message, for as long as its bytes come: a chunk may take long on a slow line.
async fn next_moving(
    stream: &mut Streaming<UploadFileRequest>,
    arrived: &Arrived,
) -> Result<Next, Error> {
    loop {
        let before = arrived.bytes();
        let message = next(stream, limits::UPLOAD_STALL).await;
        let is_silence = matches!(&message, Err(err) if err.reason() == Reason::Stalled);
        if !is_silence || arrived.bytes() - before < limits::UPLOAD_STALL_BYTES {
            return message;
        }
    }
}

/// Reads the next message. A transport error is an end like any other; only a message that is not
/// one of ours, or silence, is refused.
async fn next(stream: &mut Streaming<UploadFileRequest>, wait: Duration) -> Result<Next, Error> {
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

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use axum::body::Body;
    use bytes::Bytes;
    use http::Request;
    use prost::Message as _;
    use tokio::{sync::mpsc, time};
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::codec::Codec as _;
    use tonic_prost::ProstCodec;

    use super::*;
    use crate::{server::arrived, wire::proto::UploadFileResponse};

    type Pieces = mpsc::Sender<io::Result<Bytes>>;

    /// An upload whose bytes come as the test sends them.
    fn upload() -> (Pieces, Streaming<UploadFileRequest>, Arrived) {
        let (pieces, queue) = mpsc::channel(1);
        let request = Request::new(Body::from_stream(ReceiverStream::new(queue)));
        let request = arrived::counted(request);
        let arrived = request.extensions().get::<Arrived>().cloned().expect("counted");
        let decoder = ProstCodec::<UploadFileResponse, UploadFileRequest>::default().decoder();
        let stream = Streaming::new_request(decoder, request.into_body(), None, None);
        (pieces, stream, arrived)
    }

    /// A whole chunk, as gRPC frames it.
    fn chunk() -> Bytes {
        let data = Bytes::from(vec![7; limits::CHUNK_BYTES]);
        let message = UploadFileRequest::from(Upload::Chunk { offset: 0, crc32c: 0, data });
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).expect("small").to_be_bytes();
        [&[0], &length[..], &message[..]].concat().into()
    }

    /// Sends the chunk in pieces, one every `pause`, and returns what is read, and when.
    async fn read_slowly(piece: u64, pause: Duration) -> (Result<Next, Error>, Duration) {
        let (pieces, mut stream, arrived) = upload();
        let mut left = chunk();
        let begun = time::Instant::now();
        let sending = async {
            while !left.is_empty() {
                time::sleep(pause).await;
                let piece = left.len().min(usize::try_from(piece).expect("small"));
                pieces.send(Ok(left.split_to(piece))).await.expect("it is read");
            }
            std::future::pending::<()>().await;
        };
        let read = tokio::select! {
            read = next_moving(&mut stream, &arrived) => read,
            () = sending => unreachable!("it never ends"),
        };
        (read, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_upload_is_none_that_stands_still() {
        let pause = limits::UPLOAD_STALL.mul_f64(0.98);
        let (read, took) = read_slowly(limits::UPLOAD_STALL_BYTES, pause).await;
        assert!(matches!(read, Ok(Next::Message(Upload::Chunk { .. }))));
        assert!(took > limits::UPLOAD_STALL * 60, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_a_stall() {
        for (piece, pause) in [(100, 1), (limits::UPLOAD_STALL_BYTES - 1, 59), (1, 3600)] {
            let (read, took) = read_slowly(piece, Duration::from_secs(pause)).await;
            let err = read.err().expect("refused");
            assert_eq!(err.reason(), Reason::Stalled);
            assert!(took <= limits::UPLOAD_STALL * 2, "{piece} {pause}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_ends_is_an_end_at_once() {
        let (pieces, mut stream, arrived) = upload();
        drop(pieces);
        assert!(matches!(next_moving(&mut stream, &arrived).await, Ok(Next::End)));
    }
}
