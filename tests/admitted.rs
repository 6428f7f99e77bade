//! Who gets in, how far, and what is left when somebody is put out.

mod common;

#[path = "admitted/callers.rs"]
mod callers;
#[path = "admitted/calls.rs"]
mod calls;
#[path = "admitted/doors.rs"]
mod doors;
#[path = "admitted/matrix.rs"]
mod matrix;
