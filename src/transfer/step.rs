//! What can happen to a transfer.

use std::time::Duration;

use super::{FailReason, Finish, SourceFile, State};
use crate::ids::{Epoch, InstanceId, UnixMs};

/// When a step happens: the wall clock, and the dice for jitter, in [0, 1).
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub at: UnixMs,
    pub dice: f64,
}

impl Moment {
    pub fn now() -> Self {
        Self { at: UnixMs::now(), dice: fastrand::f64() }
    }
}

/// Why a client sends nothing for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Outside the hours of its policy, or that policy has just changed.
    PolicyWindow,
    /// It has sent as much in a day as its policy allows.
    BytesPerDay,
}

/// What broke an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The client, or the way to it, is gone: not the fault of the attempt. Due as soon as it is
    /// back.
    ClientLost,
    /// The server is ending, or was restarted. Due as soon as the client is back.
    ServerStopped,
    /// The server serves as many uploads as it can.
    ServerBusy,
    /// The server's disk is full (or read-only, or gone), or fails: not the fault of the attempt.
    ServerDisk { is_full: bool },
    /// The client ended it, and says no more.
    ClientStopped,
    /// The client's own policy lets it send nothing for so long: nobody's fault.
    ClientHolds { hold: Hold, pause: Duration },
    /// Counts as an attempt.
    Failed { reason: FailReason, detail: String },
}

/// One step of a transfer's life. Those that come from an attempt name its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The server takes it from the queue for this instance, and raises the epoch.
    Claimed {
        instance: InstanceId,
    },
    /// The client does as much as it takes.
    Busy {
        epoch: Epoch,
    },
    /// No Header came in time.
    OfferExpired {
        epoch: Epoch,
    },
    /// The client opened the file, and sends.
    Begun {
        epoch: Epoch,
        instance: InstanceId,
        file: SourceFile,
    },
    /// So much of the file is durably held now, of this attempt or an older one. It comes before
    /// the step that ends the attempt, or after it.
    Kept {
        epoch: Epoch,
        kept_bytes: u64,
    },
    /// The client begins from zero although bytes were kept.
    Restarted {
        epoch: Epoch,
        detail: String,
    },
    /// The attempt ended without a Finish that was taken.
    Broken {
        epoch: Epoch,
        cause: Cause,
        received_bytes: u64,
    },
    /// The client will not, or cannot, deliver.
    Refused {
        epoch: Epoch,
        reason: FailReason,
        detail: String,
    },
    /// Finish was taken.
    Finished {
        epoch: Epoch,
        finish: Finish,
        received_bytes: u64,
    },
    /// What was written does not have the announced root.
    Mismatched {
        epoch: Epoch,
    },
    /// The file could not be published. Only for whoever publishes: no report of a client ends
    /// VERIFYING.
    Unpublished {
        epoch: Epoch,
        cause: Cause,
    },
    /// The file is under its final name, on stable storage.
    Published {
        epoch: Epoch,
    },
    /// The client is back: no need to wait longer.
    MadeDue,
    DeadlinePassed {
        received_bytes: u64,
    },
    Cancelled {
        received_bytes: u64,
    },
    Retried,
    Paused {
        received_bytes: u64,
    },
    Resumed,
    ContentDeleted,
}

/// Why a step is not taken. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    #[error("attempt {got} is not the current one, {current}")]
    StaleEpoch { current: Epoch, got: Epoch },
    #[error("the attempt belongs to another instance of the client")]
    OtherInstance,
    #[error("not possible while it is {}", .0.as_str())]
    WrongState(State),
    #[error("not due yet")]
    NotDue,
    #[error("nothing would change")]
    Unchanged,
}
