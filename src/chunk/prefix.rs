//! The beginning of a file, as BLAKE3 values: one for each maximal aligned subtree of it. That is
//! all that is needed to go on and compute the file's root, and it is short at any size.

use blake3::hazmat::{ChainingValue, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::{ids::Digest, limits::CHUNK_BYTES};

/// The BLAKE3 chaining value of a chunk, or of an aligned run of them.
pub type Value = ChainingValue;

/// These values stand for no beginning of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are no whole chunks with a value for each subtree, and more to follow")]
pub struct PrefixError {
    pub bytes: u64,
}

/// So many whole chunks from a file's beginning, and never its last one: what follows proves that
/// none of the values is the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prefix {
    chunks: u64,
    /// Largest subtree first: as many as `chunks` has one-bits.
    values: Vec<Value>,
}

impl Prefix {
    /// Returns the beginning of `bytes` bytes that has these values, if there can be such a one.
    pub fn from_values(bytes: u64, values: Vec<Value>) -> Result<Self, PrefixError> {
        let chunks = bytes / CHUNK_BYTES as u64;
        let fits = bytes.is_multiple_of(CHUNK_BYTES as u64)
            && values.len() == chunks.count_ones() as usize;
        if fits { Ok(Self { chunks, values }) } else { Err(PrefixError { bytes }) }
    }

    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    pub fn bytes(&self) -> u64 {
        self.chunks * CHUNK_BYTES as u64
    }

    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// Left to right.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Appends a chunk. Siblings merge at once.
    pub fn push(&mut self, value: Value) {
        self.values.push(value);
        self.chunks += 1;
        while self.values.len() > self.chunks.count_ones() as usize {
            let right = self.values.pop().expect("there are more values than one-bits");
            let left = self.values.pop().expect("a value too many has a sibling");
            self.values.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
    }

    /// Returns the root of a file that has these chunks, and one more of this value.
    pub(super) fn root(mut self, last: Value) -> Digest {
        let mut right = last;
        while self.values.len() > 1 {
            let left = self.values.pop().expect("more than one is left");
            right = merge_subtrees_non_root(&left, &right, Mode::Hash);
        }
        let left = self.values.pop().expect("a file of more than one chunk has a left half");
        merge_subtrees_root(&left, &right, Mode::Hash).into()
    }
}
