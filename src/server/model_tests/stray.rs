//! Steps that come at another time than they should: none of them may be taken.

use anyhow::{Result, ensure};

use super::{
    history::{Size, Stray},
    upload::Source,
    verbs::pick,
    world::{Scope, World},
};
use crate::{
    ids::Epoch,
    transfer::{Cause, Delivered, FailReason, Finish, SourceFile, State, Step, Transfer},
};

impl World {
    pub async fn stray(&mut self, transfer: u8, stray: Stray, is_late: bool) -> Result<Scope> {
        let Some(id) = pick(&self.transfers, transfer) else { return Ok(Scope::Nothing) };
        let before = &self.told.transfers[id];
        // At the right time it is an upload's, or a session's.
        if is_late || !is_timely(stray, before.state) {
            let epoch = Epoch(before.epoch.0.saturating_sub(u64::from(is_late)));
            if epoch == before.epoch && is_late {
                return Ok(Scope::Nothing);
            }
            let taken = self.server().apply(*id, step(stray, before, epoch)).await;
            ensure!(taken.is_err(), "{stray:?} was taken of {before:#?}");
        }
        Ok(Scope::Nothing)
    }
}

/// When a step of the current attempt may be taken.
fn is_timely(stray: Stray, state: State) -> bool {
    match stray {
        Stray::Busy | Stray::OfferExpired => state == State::Offered,
        Stray::Begun | Stray::Broken | Stray::Refused => {
            matches!(state, State::Offered | State::Receiving)
        }
        Stray::Finished => state == State::Receiving,
        Stray::Mismatched | Stray::Unpublished | Stray::Published => state == State::Verifying,
        // It may come after the end.
        Stray::Kept => true,
    }
}

fn step(stray: Stray, of: &Transfer, epoch: Epoch) -> Step {
    let detail = "astray".to_owned();
    let source = Source { transfer: of.id, version: 0, size: Size::OneChunk };
    let cause = Cause::ClientLost;
    match stray {
        Stray::Busy => Step::Busy { epoch },
        Stray::OfferExpired => Step::OfferExpired { epoch },
        Stray::Begun => {
            let (path, size_bytes) = ("/a".to_owned(), source.bytes());
            let fingerprint = source.whole().fingerprint;
            let file = SourceFile { path, size_bytes, fingerprint };
            let instance = of.instance.unwrap_or_else(|| super::world::instance_id(0, 0));
            Step::Begun { epoch, instance, file }
        }
        Stray::Broken => Step::Broken { epoch, cause, received_bytes: 1 },
        Stray::Refused => Step::Refused { epoch, reason: FailReason::Io, detail },
        Stray::Finished => {
            let (digest, delivered) = (source.digest(), Delivered::Unchanged);
            let finish = Finish { digest, delivered, trusted_bytes: 0 };
            Step::Finished { epoch, finish, received_bytes: 1 }
        }
        Stray::Mismatched => Step::Mismatched { epoch },
        Stray::Unpublished => Step::Unpublished { epoch, cause },
        Stray::Published => Step::Published { epoch },
        Stray::Kept => Step::Kept { epoch, kept_bytes: 7 << 20 },
    }
}
