//! What operators ask for of a transfer, and what the sweeper does by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::timeout;

use super::{
    history::{Verb, Wish},
    rules::due,
    verbs::pick,
    world::{KEEP, Scope, World, client_id, now},
};
use crate::{
    ids::AttemptId,
    limits,
    server::coordinator::attempt_of,
    transfer::{Content, State},
};

impl World {
    pub async fn operate(&mut self, transfer: u8, does: Wish) -> Result<Scope> {
        let Some(&id) = pick(&self.transfers, transfer) else { return Ok(Scope::Nothing) };
        let before = self.told.transfers[&id].clone();
        let ends_itself = before.state == State::Verifying;
        let (done, may) = match does {
            Wish::Cancel => {
                let done = self.server().cancel(id).await;
                self.wait_for_collection(id).await;
                (done, !before.state.is_final() && !ends_itself)
            }
            Wish::Pause => {
                let may = !before.state.is_final() && !ends_itself && !before.is_paused();
                (self.server().pause(id).await, may)
            }
            Wish::Resume => (self.server().resume(id).await, before.is_paused()),
            Wish::Retry => {
                let may = matches!(before.state, State::Failed | State::Cancelled);
                (self.server().retry(id).await, may)
            }
            Wish::Delete => (self.server().delete(id).await, before.content == Content::Kept),
        };
        let scope = if may { Scope::Transfer(id) } else { Scope::Nothing };
        if !self.is_strict() {
            return Ok(scope);
        }
        let view = match done {
            Err(err) => {
                ensure!(!may, "{err}");
                return Ok(scope);
            }
            Ok(view) => view.transfer,
        };
        ensure!(may, "{does:?} was taken");
        let is_done = match does {
            Wish::Cancel => view.state == State::Cancelled,
            Wish::Pause => view.is_paused(),
            Wish::Resume => due(&view).is_some_and(|due| due <= now()),
            Wish::Retry => view.state == State::Queued && due(&view).is_some(),
            Wish::Delete => view.content == Content::Deleted,
        };
        ensure!(is_done, "{does:?} did {view:#?}");
        self.check_collected(&view)?;
        self.hear_stops();
        let session = self.server().sessions.find(&before.client);
        let is_heard = session.is_none() || self.stops.contains(&attempt_of(&before));
        let must_stop = matches!(does, Wish::Cancel | Wish::Pause) && before.state.is_outstanding();
        ensure!(!must_stop || is_heard, "its client was not told to stop");
        let mut running = self.uploads.iter().filter(|upload| upload.attempt.transfer == id);
        let is_stopped = running.all(|upload| upload.entered.stop.is_cancelled());
        ensure!(!must_stop || is_stopped, "its upload was not told to stop");
        Ok(scope)
    }

    /// What the sweeper does.
    pub async fn tend(&mut self, verb: &Verb) -> Result<Scope> {
        let server = self.server();
        if let Verb::RingDue = verb {
            return self.ring().await;
        }
        let done = match verb {
            Verb::Sweep => server.sweep().await,
            Verb::SettleOrphans => server.settle_orphans().await,
            Verb::CollectAbandoned => server.collect_abandoned().await,
            _ => server.retain().await,
        };
        if !self.is_strict() {
            return Ok(Scope::Everything);
        }
        done?;
        for id in self.transfers.clone() {
            let t = self.record(AttemptId { transfer: id, epoch: <_>::default() }).await?;
            let is_running = self.is_running(attempt_of(&t));
            let is_right = match verb {
                Verb::Sweep => {
                    let ends_itself = t.state.is_final() || t.state == State::Verifying;
                    let is_late = t.updated < now().minus(limits::OFFER_WAIT);
                    let is_old_offer = t.state == State::Offered && is_late && !is_running;
                    (ends_itself || t.deadline > now()) && !is_old_offer
                }
                Verb::SettleOrphans => {
                    let is_out = matches!(t.state, State::Receiving | State::Verifying);
                    // What works on one says itself how it ends.
                    let is_same = t.revision == self.told.transfers[&id].revision;
                    if is_running { is_same } else { !is_out }
                }
                Verb::CollectAbandoned => self.check_collected(&t).is_ok(),
                _ => t.content != Content::Kept || t.ended >= Some(now().minus(KEEP)),
            };
            ensure!(is_right, "{verb:?} left {t:#?}");
        }
        Ok(Scope::Everything)
    }

    /// Every client that is here, and has something due, is rung for.
    pub async fn ring(&mut self) -> Result<Scope> {
        for session in &self.sessions {
            drop(timeout(Duration::ZERO, session.bell.notified()).await);
        }
        let rung = self.server().ring_due().await;
        ensure!(rung.is_ok() || !self.is_strict(), "{rung:?}");
        for number in (0..2).filter(|_| rung.is_ok()) {
            let client = client_id(number);
            let Some(session) = self.server().sessions.find(&client) else { continue };
            let heard = timeout(Duration::ZERO, session.bell.notified()).await.is_ok();
            let is_due = self.told.of(&client).any(|t| due(t).is_some_and(|due| due <= now()));
            ensure!(heard == is_due, "something is due: {is_due}, and it rang: {heard}");
        }
        Ok(Scope::Nothing)
    }
}
