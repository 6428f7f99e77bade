//! What is offered to clients, and what they send.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Result, ensure};

use super::{
    history::{Does, Older, Sent, Size, Whose},
    upload::{Phase, Source, Upload},
    verbs::pick,
    world::{Given, Scope, World},
};
use crate::{
    ids::{AttemptId, InstanceId, TransferId},
    server::{
        coordinator::{Coordinator, attempt_of},
        error::Error,
    },
    status::Reason,
    transfer::{Cause, State, Transfer},
    wire::session::Header,
};

impl World {
    /// As a session does with what it has claimed.
    pub async fn offer(&mut self, transfer: &Transfer, instance: InstanceId) -> Result<()> {
        let attempt = attempt_of(transfer);
        let mut given = Given { attempt, instance, resume: None };
        if transfer.attempts > 0 {
            let server = Arc::clone(self.server());
            let older = self.take_upload(transfer.id);
            let came = older.as_ref().map_or(0, Upload::keeps_bytes);
            let ending = end_if_told(&server, older, &mut self.landed);
            let (resume, still) = tokio::join!(server.resume_point(transfer), ending);
            self.uploads.extend(still);
            match resume {
                Ok(resume) => {
                    let offered = resume.as_ref().map_or(0, |resume| resume.kept.bytes());
                    ensure!(offered >= came || !self.is_strict(), "{came} came, not {offered}");
                    given.resume = resume.map(|resume| (resume.fingerprint, resume.kept.bytes()));
                }
                Err(err) => {
                    ensure!(!self.is_strict(), "what is kept is not known: {err}");
                    let cause = match &err {
                        Error::Landing(err) => Cause::ServerDisk { is_full: err.is_unwritable() },
                        _ => Cause::ServerBusy,
                    };
                    drop(server.broken(attempt, cause, 0).await);
                    return Ok(());
                }
            }
        }
        let offered = given.resume.map_or(0, |(_, bytes)| bytes);
        let kept = self.kept_on_disk(transfer.id)?;
        ensure!(
            offered == kept || !self.is_strict(),
            "{kept} bytes are kept, and {offered} offered"
        );
        self.attempts.push(given);
        Ok(())
    }

    fn take_upload(&mut self, transfer: TransferId) -> Option<Upload> {
        let at = self.uploads.iter().position(|upload| upload.attempt.transfer == transfer)?;
        Some(self.uploads.remove(at))
    }

    pub async fn begin(
        &mut self,
        attempt: u8,
        whose: Whose,
        sent: Sent,
        older: Older,
    ) -> Result<Scope> {
        let Some(&given) = pick(&self.attempts, attempt) else { return Ok(Scope::Nothing) };
        let attempt = given.attempt;
        let instance = match whose {
            Whose::Its => given.instance,
            Whose::Others => InstanceId::from_bytes(&[99; 16])?,
        };
        self.version += i64::from(sent.is_changed);
        let source = Source { transfer: attempt.transfer, version: self.version, size: sent.size };
        let header = header(given, instance, source, sent.is_mixed);
        let before = self.told.transfers[&attempt.transfer].clone();
        let is_right = before.instance == Some(instance) && before.epoch == attempt.epoch;
        // One whose Finish was taken goes on to its end.
        let lets_go = |upload: &Upload| older == Older::LetsGo && upload.phase == Phase::Sending;
        let running = self.uploads.iter().find(|u| u.attempt.transfer == attempt.transfer);
        let is_free = running.is_none_or(lets_go);
        let is_told = is_right && older == Older::LetsGo;
        let running = if is_told { self.take_upload(attempt.transfer) } else { None };
        let server = Arc::clone(self.server());
        let ending = end_if_told(&server, running, &mut self.landed);
        let (begun, still) = tokio::join!(server.begin(&header, None), ending);
        self.uploads.extend(still);
        let is_open = matches!(before.state, State::Offered | State::Receiving);
        match begun {
            Ok(begun) => {
                ensure!(is_right, "an upload of {instance:?} began: {attempt}");
                ensure!(begun.transfer.state == State::Receiving, "{:#?}", begun.transfer);
                let upload = Upload::start(&server, attempt, begun, source, header.offset).await;
                self.uploads.extend(upload);
            }
            Err(err) => {
                let is_refused = !is_right || !is_open || !is_free;
                for older in self.uploads.iter().filter(|upload| upload.entered.is_replaced()) {
                    self.replaced.insert(older.attempt);
                }
                let is_full = err.reason() == Reason::ServerBusy;
                ensure!(is_refused || is_full || !self.is_strict(), "{err}");
            }
        }
        Ok(if is_right { Scope::Transfer(attempt.transfer) } else { Scope::Nothing })
    }

    pub async fn upload(&mut self, upload: u8, does: Does) -> Result<Scope> {
        if self.uploads.is_empty() {
            return Ok(Scope::Nothing);
        }
        let at = self.uploads.len() - 1 - usize::from(upload) % self.uploads.len();
        let upload = self.uploads.remove(at);
        let attempt = upload.attempt;
        let before = self.told.transfers[&attempt.transfer].clone();
        let is_current = before.epoch == attempt.epoch && before.state.is_outstanding();
        let is_sending = upload.phase == Phase::Sending;
        let is_stopped = is_sending && upload.entered.stop.is_cancelled();
        let is_name_taken = upload.phase != Phase::Landed && self.is_published(attempt);
        let server = Arc::clone(self.server());
        let mut next = Some(upload);
        while let Some(upload) = next.take() {
            next = act(upload, &server, does, &mut self.landed).await;
            if does != Does::Deliver {
                break;
            }
        }
        self.uploads.extend(next);
        if !is_current {
            // What is kept of it may yet be noted.
            let may_note = is_sending && before.epoch == attempt.epoch;
            return Ok(if may_note { Scope::Kept(attempt.transfer) } else { Scope::Nothing });
        }
        if !is_stopped && !is_name_taken && self.is_strict() {
            let after = self.record(attempt).await?;
            let is_right = match does {
                Does::Deliver => after.state == State::Complete,
                Does::FinishOther if is_sending => after.mismatches == before.mismatches + 1,
                Does::Abort(_) | Does::Cut if is_sending => !after.state.is_outstanding(),
                _ => true,
            };
            ensure!(is_right, "{does:?} led to {after:#?}");
        }
        Ok(Scope::Transfer(attempt.transfer))
    }
}

/// What a client says of its file: it goes on where the offer says, if that is of the same version.
fn header(given: Given, instance: InstanceId, source: Source, is_mixed: bool) -> Header {
    let whole = source.whole();
    let is_same = |fingerprint| fingerprint == whole.fingerprint;
    let lies = is_mixed && source.size == Size::Chunks;
    let same = given.resume.filter(|(fingerprint, _)| lies || is_same(*fingerprint));
    let restarts = given.resume.is_some() && same.is_none();
    Header {
        attempt: given.attempt,
        instance,
        offset: same.map_or(0, |(_, bytes)| bytes),
        size: whole.size,
        fingerprint: whole.fingerprint,
        path: "/a".to_owned(),
        restart_detail: if restarts { "it changed".to_owned() } else { String::new() },
    }
}

/// Lets an older upload end, if it is told to.
async fn end_if_told(
    server: &Arc<Coordinator>,
    upload: Option<Upload>,
    landed: &mut HashMap<AttemptId, Source>,
) -> Option<Upload> {
    // The clock stands still while anything works, so this is when nothing else can go on.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut upload = upload;
    while let Some(told) = upload.take_if(|upload| upload.entered.stop.is_cancelled()) {
        upload = act(told, server, Does::Deliver, landed).await;
    }
    upload
}

/// Lets an upload go on, and notes what it is about to land.
async fn act(
    upload: Upload,
    server: &Arc<Coordinator>,
    does: Does,
    landed: &mut HashMap<AttemptId, Source>,
) -> Option<Upload> {
    let upload = upload.act(server, does).await?;
    if upload.phase != Phase::Sending {
        landed.insert(upload.attempt, upload.source);
    }
    Some(upload)
}
