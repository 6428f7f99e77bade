//! What the server says over HTTP, and what it does then: a real one, asked on real connections.

#[path = "../common/mod.rs"]
mod common;

mod actions;
mod content;
mod documented;
mod download;
mod fixture;
mod guarded;
mod pages;
mod problems;
mod read_file;
mod retention;
mod service;
