//! Nothing is lost, whichever call the power is cut at: the real programs under `strace`, which
//! kills one of them at the n-th call of a kind, or lets that call fail; for every n. Then the
//! program is started again as if nothing had been, and each file must be there, equal, once; and of
//! each file of which a byte has left there is a line in the client's audit, which is whole.
//!
//! ```text
//! dry run: which calls there are, on which file, how many ──► a point for each n
//! a point: copy of a prepared directory ─► pull under strace, until it ends or waits
//!          ─► pull without strace, to COMPLETE ─► what is on disk and on record
//! ```
//!
//! `make test-all` plays a fixed sample, `make chaos-kills` all of them, and `KILL=POINT` with either
//! plays one again, such as `KILL=queued:server:kill:renameat2:data/files/of-LARGE:1`; the directory
//! of one that failed stays. `strace` counts the calls of each thread by themselves, so a point is
//! the n-th call of a thread on one file (all sockets are on one thread), and an error comes to each
//! thread that makes as many. How many of the calls were met is told.
//!
//! A kill takes nothing from the page cache, so no kill shows that a sync is missing: the order of
//! syncs is proved in `src/server/landing.rs`.

#[path = "../common/mod.rs"]
mod common;

mod check;
mod point;
mod pull;
mod rig;
mod stage;
mod sweep;
mod trace;

use point::{Fault, Program, Start};
use sweep::sweep;

#[test]
#[ignore = "test-all: needs strace"]
fn a_server_killed_at_any_call_delivers_once() {
    sweep("a_server_killed_at_any_call_delivers_once", Program::Server, Fault::Kill, &Start::ALL);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_client_killed_at_any_call_delivers_once() {
    let name = "a_client_killed_at_any_call_delivers_once";
    sweep(name, Program::Client, Fault::Kill, &Start::WITH_CLIENT);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_server_whose_disk_fails_at_any_call_delivers_once() {
    let name = "a_server_whose_disk_fails_at_any_call_delivers_once";
    sweep(name, Program::Server, Fault::Io, &Start::ALL);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_server_whose_disk_is_full_at_any_call_delivers_once() {
    let name = "a_server_whose_disk_is_full_at_any_call_delivers_once";
    sweep(name, Program::Server, Fault::Full, &Start::ALL);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_server_interrupted_at_any_call_delivers_once() {
    let name = "a_server_interrupted_at_any_call_delivers_once";
    sweep(name, Program::Server, Fault::Interrupted, &Start::ALL);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_server_whose_connections_break_at_any_call_delivers_once() {
    let name = "a_server_whose_connections_break_at_any_call_delivers_once";
    sweep(name, Program::Server, Fault::Reset, &[Start::Queued]);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_client_whose_disk_fails_at_any_call_delivers_once() {
    let name = "a_client_whose_disk_fails_at_any_call_delivers_once";
    sweep(name, Program::Client, Fault::Io, &Start::WITH_CLIENT);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_client_interrupted_at_any_call_delivers_once() {
    let name = "a_client_interrupted_at_any_call_delivers_once";
    sweep(name, Program::Client, Fault::Interrupted, &Start::WITH_CLIENT);
}

#[test]
#[ignore = "test-all: needs strace"]
fn a_client_whose_connections_break_at_any_call_delivers_once() {
    let name = "a_client_whose_connections_break_at_any_call_delivers_once";
    sweep(name, Program::Client, Fault::Reset, &[Start::Queued]);
}
