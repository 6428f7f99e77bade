//! How a file is divided into chunks, and how they are checked: a CRC-32C for each chunk, and one
//! BLAKE3 root for the file. Pure: no clock, no disk, no network.
//!
//! An aligned MiB is a whole BLAKE3 subtree. So each chunk is hashed by itself to a chaining value,
//! sibling values merge as soon as both are there, and the root of any file needs O(log n) values
//! and no second pass.

use blake3::{Hasher, hazmat::HasherExt as _};

use crate::{ids::Digest, limits::CHUNK_BYTES};

mod prefix;

pub use prefix::{Prefix, PrefixError, Value};

/// Returns the CRC-32C (Castagnoli) of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data);
    u32::try_from(crc).expect("a CRC of 32 bits fits 32 bits")
}

/// Returns the value of the chunk at `offset`, in a file of more than one.
pub fn value(offset: u64, data: &[u8]) -> Value {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(data);
    hasher.finalize_non_root()
}

/// Returns the length of the chunk at `offset` of a file of `size` bytes; zero at its end.
pub fn chunk_len(size: u64, offset: u64) -> usize {
    usize::try_from(size.saturating_sub(offset)).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES))
}

/// Why a chunk, or the end of a file, is refused. The bytes before it stay good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    #[error("the chunk begins at {got}, not at {expected}")]
    Offset { expected: u64, got: u64 },
    #[error("the chunk at {offset} has {got} bytes, not {expected}")]
    Length { offset: u64, expected: usize, got: usize },
    #[error("the chunk at {offset} does not have its CRC-32C")]
    Crc { offset: u64 },
    #[error("the file is at byte {got} of {expected}")]
    NotWhole { expected: u64, got: u64 },
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// The next bytes of the file, and their value; a file of one chunk or less has none.
    New(Option<Value>),
    /// The chunk before, sent again: to be ignored.
    Repeated,
}

/// Checks the chunks of one file in order, and computes its root.
#[derive(Debug)]
pub struct ChunkVerifier {
    size: u64,
    next: u64,
    /// Offset and CRC of the last chunk taken, to know it when it is repeated.
    last: Option<(u64, usize, u32)>,
    root: RootBuilder,
}

impl ChunkVerifier {
    /// Expects a file of `size` bytes, from its beginning.
    pub fn new(size: u64) -> Self {
        Self { size, next: 0, last: None, root: RootBuilder::new(size) }
    }

    /// Expects the rest of a file of `size` bytes, of which `kept` is there.
    pub fn resume(size: u64, kept: Prefix) -> Result<Self, PrefixError> {
        let next = kept.bytes();
        Ok(Self { size, next, last: None, root: RootBuilder::resume(size, kept)? })
    }

    /// Returns the offset that the next chunk must have.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Takes the chunk at `offset`, whose sender says that its CRC-32C is `crc`.
    pub fn accept(&mut self, offset: u64, crc: u32, data: &[u8]) -> Result<Accepted, ChunkError> {
        if self.last == Some((offset, data.len(), crc)) && crc32c(data) == crc {
            return Ok(Accepted::Repeated);
        }
        if offset != self.next || self.next == self.size {
            return Err(ChunkError::Offset { expected: self.next, got: offset });
        }
        let expected = chunk_len(self.size, offset);
        if data.len() != expected {
            return Err(ChunkError::Length { offset, expected, got: data.len() });
        }
        if crc32c(data) != crc {
            return Err(ChunkError::Crc { offset });
        }
        let value = self.root.push(data);
        self.next += data.len() as u64;
        self.last = Some((offset, data.len(), crc));
        Ok(Accepted::New(value))
    }

    /// Returns the root, once every byte is there.
    pub fn finish(self) -> Result<Digest, ChunkError> {
        if self.next != self.size {
            return Err(ChunkError::NotWhole { expected: self.size, got: self.next });
        }
        Ok(self.root.finish())
    }
}

/// Computes the BLAKE3 of a file of known size from its chunks, in order.
#[derive(Debug)]
pub struct RootBuilder {
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// A file of one chunk or less has no parent node: it is hashed plainly.
    Plain(Box<Hasher>),
    /// The last chunk is apart: the pair that completes the whole file must merge as the root, and
    /// only the next chunk proves that this one is not it.
    Tree { before: Prefix, last: Option<Value> },
}

impl RootBuilder {
    /// Expects a file of `size` bytes.
    pub fn new(size: u64) -> Self {
        let form = if size <= CHUNK_BYTES as u64 {
            Form::Plain(Box::new(Hasher::new()))
        } else {
            Form::Tree { before: Prefix::default(), last: None }
        };
        Self { form }
    }

    /// Expects the rest of a file of `size` bytes that begins with `kept`.
    pub fn resume(size: u64, kept: Prefix) -> Result<Self, PrefixError> {
        if kept.is_empty() {
            return Ok(Self::new(size));
        }
        if kept.bytes() >= size {
            return Err(PrefixError { bytes: kept.bytes() });
        }
        Ok(Self { form: Form::Tree { before: kept, last: None } })
    }

    /// Takes the next chunk, and returns its value. All but the last of a file have
    /// [`CHUNK_BYTES`].
    pub fn push(&mut self, data: &[u8]) -> Option<Value> {
        match &mut self.form {
            Form::Plain(hasher) => {
                hasher.update(data);
                None
            }
            Form::Tree { before, last } => {
                if let Some(value) = last.take() {
                    before.push(value);
                }
                let value = value(before.bytes(), data);
                *last = Some(value);
                Some(value)
            }
        }
    }

    /// Returns the root of what was pushed.
    pub fn finish(self) -> Digest {
        match self.form {
            Form::Plain(hasher) => hasher.finalize().into(),
            Form::Tree { before, last } => {
                before.root(last.expect("a file of more than one chunk has a last one"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(len as u64);
        std::iter::repeat_with(|| rng.u8(..)).take(len).collect()
    }

    fn root(data: &[u8]) -> Digest {
        let mut builder = RootBuilder::new(data.len() as u64);
        for chunk in data.chunks(CHUNK_BYTES) {
            builder.push(chunk);
        }
        builder.finish()
    }

    fn verify(data: &[u8]) -> Result<Digest, ChunkError> {
        let mut verifier = ChunkVerifier::new(data.len() as u64);
        for (i, chunk) in data.chunks(CHUNK_BYTES).enumerate() {
            verifier.accept((i * CHUNK_BYTES) as u64, crc32c(chunk), chunk)?;
        }
        verifier.finish()
    }

    #[test]
    fn the_crc_is_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_root_is_what_b3sum_prints_at_every_edge() {
        let edges = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16].map(|n| n * CHUNK_BYTES);
        let all = bytes(16 * CHUNK_BYTES + 1025);
        for edge in edges {
            for around in [-1025, -1024, -1023, -1, 0, 1, 1023, 1024, 1025] {
                let Some(len) = edge.checked_add_signed(around) else { continue };
                assert_eq!(root(&all[..len]), blake3::hash(&all[..len]).into(), "{len} bytes");
            }
        }
    }

    #[test]
    fn a_repeated_chunk_is_ignored_and_any_other_offset_is_refused() {
        let data = bytes(3 * CHUNK_BYTES);
        let chunk = |i: usize| &data[i * CHUNK_BYTES..(i + 1) * CHUNK_BYTES];
        let at = |i: usize| (i * CHUNK_BYTES) as u64;
        let mut verifier = ChunkVerifier::new(data.len() as u64);
        let new = |i| Ok(Accepted::New(Some(value(at(i), chunk(i)))));
        assert_eq!(verifier.accept(at(0), crc32c(chunk(0)), chunk(0)), new(0));

        assert_eq!(verifier.accept(at(0), crc32c(chunk(0)), chunk(0)), Ok(Accepted::Repeated));
        let other = ChunkError::Offset { expected: at(1), got: at(0) };
        assert_eq!(verifier.accept(at(0), crc32c(chunk(1)), chunk(1)), Err(other));
        let gap = ChunkError::Offset { expected: at(1), got: at(2) };
        assert_eq!(verifier.accept(at(2), crc32c(chunk(2)), chunk(2)), Err(gap));

        for i in [1, 2] {
            assert_eq!(verifier.accept(at(i), crc32c(chunk(i)), chunk(i)), new(i));
        }
        assert_eq!(verifier.finish(), Ok(blake3::hash(&data).into()));
    }

    #[test]
    fn an_unfinished_file_has_no_root() {
        let mut verifier = ChunkVerifier::new(CHUNK_BYTES as u64 + 1);
        let data = bytes(CHUNK_BYTES);
        verifier.accept(0, crc32c(&data), &data).expect("the first chunk is good");
        let expected = CHUNK_BYTES as u64 + 1;
        let not_whole = ChunkError::NotWhole { expected, got: CHUNK_BYTES as u64 };
        assert_eq!(verifier.finish(), Err(not_whole));
    }

    #[test]
    fn nothing_is_taken_after_the_last_byte() {
        let mut verifier = ChunkVerifier::new(1);
        verifier.accept(0, crc32c(b"x"), b"x").expect("the only chunk");
        let after = ChunkError::Offset { expected: 1, got: 1 };
        assert_eq!(verifier.accept(1, crc32c(b"y"), b"y"), Err(after));
        let mut empty = ChunkVerifier::new(0);
        let none = ChunkError::Offset { expected: 0, got: 0 };
        assert_eq!(empty.accept(0, crc32c(b""), b""), Err(none));
        assert_eq!(empty.finish(), Ok(blake3::hash(b"").into()));
    }

    /// The values of the chunks before `kept`, merged.
    fn prefix(data: &[u8], kept: usize) -> Prefix {
        let mut prefix = Prefix::default();
        for (i, chunk) in data.chunks(CHUNK_BYTES).take(kept).enumerate() {
            prefix.push(value((i * CHUNK_BYTES) as u64, chunk));
        }
        prefix
    }

    #[test]
    fn a_file_that_goes_on_anywhere_has_the_plain_root() {
        let all = bytes(9 * CHUNK_BYTES + 7);
        for size in
            (2..=9).flat_map(|n| [n * CHUNK_BYTES - 1, n * CHUNK_BYTES, n * CHUNK_BYTES + 7])
        {
            let data = &all[..size];
            for kept in 0..size.div_ceil(CHUNK_BYTES) {
                let prefix = prefix(data, kept);
                let sent = Prefix::from_values(prefix.bytes(), prefix.values().to_vec());
                assert_eq!(sent, Ok(prefix.clone()));
                let mut verifier = ChunkVerifier::resume(size as u64, prefix).expect("fits");
                for (i, chunk) in data.chunks(CHUNK_BYTES).enumerate().skip(kept) {
                    let offset = (i * CHUNK_BYTES) as u64;
                    verifier.accept(offset, crc32c(chunk), chunk).expect("the next one");
                }
                assert_eq!(verifier.finish(), Ok(blake3::hash(data).into()), "{size} at {kept}");
            }
        }
    }

    #[test]
    fn a_beginning_that_cannot_be_is_refused() {
        let mib = CHUNK_BYTES as u64;
        let refused = |bytes| Err(PrefixError { bytes });
        for (bytes, values) in [(mib + 1, 1), (3 * mib, 1), (3 * mib, 3), (0, 1), (mib, 0)] {
            assert_eq!(Prefix::from_values(bytes, vec![[0; 32]; values]), refused(bytes));
        }
        let whole = Prefix::from_values(2 * mib, vec![[0; 32]]).expect("fits");
        assert_eq!(
            ChunkVerifier::resume(2 * mib, whole).err(),
            Some(PrefixError { bytes: 2 * mib })
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_size_has_the_plain_root(len in 0usize..5 * CHUNK_BYTES) {
            let data = bytes(len);
            prop_assert_eq!(verify(&data), Ok(blake3::hash(&data).into()));
        }

        #[test]
        fn the_root_is_plain_around_every_edge(
            len in prop_oneof![
                (0i64..6 * 1024, -2i64..=2).prop_map(|(n, around)| n * 1024 + around),
                (0i64..6, -1025i64..=1025).prop_map(|(n, around)| (n << 20) + around),
            ],
        ) {
            let data = bytes(usize::try_from(len.max(0)).expect("not negative"));
            let plain = Digest::from(blake3::hash(&data));
            prop_assert_eq!(root(&data), plain);
            prop_assert_eq!(verify(&data), Ok(plain));
        }

        #[test]
        fn one_flipped_bit_is_found(len in 1usize..3 * CHUNK_BYTES, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let data = bytes(len);
            let at = at.index(len);
            let chunk_at = at / CHUNK_BYTES * CHUNK_BYTES;
            let mut chunk = data[chunk_at..].chunks(CHUNK_BYTES).next().unwrap_or_default().to_vec();
            let crc = crc32c(&chunk);
            chunk[at - chunk_at] ^= 1 << bit;
            let mut verifier = ChunkVerifier::new(len as u64);
            for (i, good) in data[..chunk_at].chunks(CHUNK_BYTES).enumerate() {
                verifier.accept((i * CHUNK_BYTES) as u64, crc32c(good), good).expect("good");
            }
            let refused = Err(ChunkError::Crc { offset: chunk_at as u64 });
            prop_assert_eq!(verifier.accept(chunk_at as u64, crc, &chunk), refused);
        }
    }
}
