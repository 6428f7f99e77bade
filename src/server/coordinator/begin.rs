//! How an upload begins: what its Header names must be the current attempt, of the instance that was
//! asked, and an older upload must have let go.

use std::{sync::Arc, time::Duration};

use super::{Coordinator, attempt_of, ignore_late};
use crate::{
    limits,
    server::{
        authority::ClientCertificate,
        error::Error,
        uploads::{Entered, Occupied},
    },
    status::Reason,
    transfer::{Cause, Moment, SourceFile, Step, StepError, Transfer},
    wire::session::{Header, Resume},
};

impl Coordinator {
    /// Begins an upload: what its Header names must be the current attempt, of this very instance.
    /// An older call of the same attempt is stopped first.
    pub async fn begin(
        self: &Arc<Self>,
        header: &Header,
        certificate: Option<&ClientCertificate>,
    ) -> Result<Begun, Error> {
        let attempt = header.attempt;
        // Checked before anything is stopped, so that nobody can stop the upload of another.
        let transfer = self.record(attempt.transfer).await?;
        if certificate.is_some_and(|certificate| certificate.client != transfer.client) {
            // As if it were not there.
            return Err(Error::Hidden { transfer: attempt.transfer, why: Reason::WrongClient });
        }
        if transfer.instance != Some(header.instance) {
            return Err(StepError::OtherInstance.into());
        }
        if transfer.epoch != attempt.epoch {
            let current = transfer.epoch;
            return Err(StepError::StaleEpoch { current, got: attempt.epoch }.into());
        }
        if header.size > limits::FILE_BYTES_MAX {
            return Err(Error::refused(Reason::TooLarge, "the file is too large for this server"));
        }
        let entered = self.enter(&transfer).await?;
        // Now that a revocation would find the upload.
        self.check_standing(certificate).await?;
        self.remove_unrecorded(attempt).await?;
        let file = SourceFile {
            path: header.path.clone(),
            size_bytes: header.size,
            fingerprint: header.fingerprint,
        };
        entered.begin_at(header.offset);
        let begun = Step::Begun { epoch: attempt.epoch, instance: header.instance, file };
        // Once more, now that no older upload can change it.
        let transfer = self.record(attempt.transfer).await?;
        let steps = kept_at_begin(&transfer, header).into_iter().chain([begun]);
        let steps: Vec<_> = steps.map(|step| (step, Moment::now())).collect();
        if header.size > limits::SMALL_FILE_BYTES_MAX {
            let transfer = self.apply_all(attempt.transfer, steps).await?;
            return Ok(Begun { entered, transfer, unrecorded: Vec::new() });
        }
        let after = transfer.apply_all(&steps)?;
        let transfer = after.last().cloned().unwrap_or(transfer);
        Ok(Begun { entered, transfer, unrecorded: steps })
    }

    /// Returns what a client need not send again of a transfer that was just offered to it.
    pub async fn resume_point(
        self: &Arc<Self>,
        transfer: &Transfer,
    ) -> Result<Option<Resume>, Error> {
        let attempt = attempt_of(transfer);
        if let Some(older) = self.uploads.find(transfer.id) {
            older.stop.cancel();
            if tokio::time::timeout(OLDER_UPLOAD_WAIT, older.ended.cancelled()).await.is_err() {
                return Err(Error::refused(Reason::ServerBusy, NOT_AT_REST));
            }
        }
        let kept = self.on_disk(move |landing| landing.kept(attempt.transfer)).await?;
        let kept_bytes = kept.as_ref().map_or(0, |kept| kept.prefix.bytes());
        if kept_bytes != transfer.kept_bytes {
            let step = Step::Kept { epoch: attempt.epoch, kept_bytes };
            ignore_late(self.apply(transfer.id, step).await)?;
        }
        Ok(kept.map(|kept| Resume { fingerprint: kept.whole.fingerprint, kept: kept.prefix }))
    }

    async fn enter(self: &Arc<Self>, transfer: &Transfer) -> Result<Entered, Error> {
        let attempt = attempt_of(transfer);
        let until = tokio::time::Instant::now() + OLDER_UPLOAD_WAIT;
        loop {
            match self.uploads.enter(attempt, &transfer.client) {
                Ok(entered) => return Ok(entered),
                Err((Occupied::Full, _)) => {
                    self.broken(attempt, Cause::ServerBusy, 0).await?;
                    let text = "the server serves as many uploads as it can";
                    return Err(Error::refused(Reason::ServerBusy, text));
                }
                Err((Occupied::Newer, _)) => {
                    let text = "a newer attempt is running";
                    return Err(Error::refused(Reason::StaleEpoch, text));
                }
                Err((Occupied::Stopping, ended)) => {
                    let waited = tokio::time::timeout_at(until, ended.cancelled()).await;
                    if waited.is_err() {
                        return Err(Error::refused(Reason::ServerBusy, NOT_AT_REST));
                    }
                }
            }
        }
    }
}

/// An upload that may go on.
pub struct Begun {
    pub entered: Entered,
    /// RECEIVING.
    pub transfer: Transfer,
    /// How it came to that, if the record does not say so yet: for a small file that waits for its
    /// next step.
    pub unrecorded: Vec<(Step, Moment)>,
}

/// Returns how what is kept changes when an upload begins: it goes on from somewhere, or from zero.
fn kept_at_begin(transfer: &Transfer, header: &Header) -> Option<Step> {
    let epoch = transfer.epoch;
    // More than is on record is for the disk to refuse.
    if header.offset >= transfer.kept_bytes {
        return None;
    }
    if header.offset > 0 {
        return Some(Step::Kept { epoch, kept_bytes: header.offset });
    }
    let detail = match header.restart_detail.as_str() {
        "" => "the client did not say why",
        detail => detail,
    };
    Some(Step::Restarted { epoch, detail: detail.to_owned() })
}

const NOT_AT_REST: &str = "an older upload of this transfer has not let go of the disk yet";
/// An older upload of the same transfer has this long to let go of its partial file.
const OLDER_UPLOAD_WAIT: Duration = Duration::from_secs(15);
