//! Who gets in, how far, and what is left when somebody is put out.

// A table reads better with a line for each case.
#![allow(clippy::format_collect, clippy::match_same_arms, clippy::type_complexity)]

mod common;

#[path = "admitted/audited.rs"]
mod audited;
#[path = "admitted/callers.rs"]
mod callers;
#[path = "admitted/calls.rs"]
mod calls;
#[path = "admitted/doors.rs"]
mod doors;
#[path = "admitted/enrolled.rs"]
mod enrolled;
#[path = "admitted/machine.rs"]
mod machine;
#[path = "admitted/matrix.rs"]
mod matrix;
#[path = "admitted/refused.rs"]
mod refused;
#[path = "admitted/revoked.rs"]
mod revoked;
#[path = "admitted/scope.rs"]
mod scope;
#[path = "admitted/spoofed.rs"]
mod spoofed;
