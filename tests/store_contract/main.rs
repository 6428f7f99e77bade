//! What a store promises: one suite for all of them, a comparison of their answers, and what only
//! SQLite promises.

#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]

mod contract;
mod credentials;
mod fixture;
mod model;
mod sqlite;
