//! What was seen of one run: what the checker judges, and nothing else.

use std::collections::{HashMap, HashSet};

use fts::wire::proto;

use crate::plan::Op;

#[derive(Debug, Default)]
pub struct History {
    pub asked: Vec<Asked>,
    /// Every change of every transfer, in the order in which the server told them.
    pub events: Vec<proto::Transfer>,
    /// What was shown of unfinished transfers, look by look.
    pub looks: Vec<Vec<Shown>>,
    /// The fastest that each transfer was shown to move, by id, in bytes a second.
    pub rates: HashMap<String, u64>,
    /// Transfers of which a relay forged a byte, and its checksum.
    pub forged: HashSet<String>,
    /// How many bytes of which transfers a relay said twice.
    pub repeated: HashMap<String, u64>,
    /// How everything ended, as a server told that was started anew for it.
    pub records: Vec<proto::Transfer>,
    /// Landed files.
    pub landed: Vec<Landed>,
    /// Names of partial files that were left when everything had ended.
    pub partials: Vec<String>,
    /// What was wrong at once: a program that ended by itself, an answer that must not be.
    pub complaints: Vec<String>,
}

/// A request, and every answer to it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub request_id: String,
    pub size: u64,
    /// BLAKE3 of the source, hex.
    pub digest: String,
    /// The id of the transfer, of each answer.
    pub ids: Vec<String>,
    pub ops: Vec<(Op, Answer)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Taken,
    /// Not possible in its state; or it had been taken before, and the answer was lost.
    WrongState,
}

/// An unfinished transfer, as a look found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub id: String,
    pub revision: u64,
    pub state: proto::State,
    pub waits: bool,
}

/// A file under its final name.
#[derive(Debug, Clone)]
pub struct Landed {
    pub path: String,
    pub size: u64,
    /// BLAKE3 of what is in it, hex.
    pub digest: String,
}
