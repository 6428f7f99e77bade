//! What the tests of the whole share: a real server on port 0, operators' calls, and a raw client
//! that speaks the protocol by hand and so can misbehave.
#![allow(dead_code, clippy::missing_panics_doc)] // each test file uses its own part of this

pub mod client;
pub mod http;
pub mod process;
pub mod raw;
pub mod secured;
pub mod server;
pub mod tools;

use std::path::{Path, PathBuf};

use fts::limits::CHUNK_BYTES;

/// Returns `len` bytes that look like nothing, the same for the same `seed`.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut data = vec![0; len];
    rng.fill(&mut data);
    data
}

/// Returns the sizes at which chunking could go wrong.
pub fn edge_sizes() -> Vec<usize> {
    vec![0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17]
}

/// Returns every regular file beneath `dir`, but the marker of a directory of files.
pub fn files_beneath(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_beneath(&path));
        } else if !path.ends_with(fts::server::landing::MARKER) {
            found.push(path);
        }
    }
    found
}
