//! The journal of a partial file: the BLAKE3 value of each chunk that is on stable storage. A record
//! is written only after the data that it speaks of was synced, so what it says can be believed
//! after any crash; what it does not say is received again.
//!
//! ```text
//! header  128 bytes   magic, id, size and fingerprint of the source, CRC-32C
//! record   64 bytes   number of the chunk, number of its batch's first chunk, value, id, CRC-32C
//! record …
//! ```
//!
//! Records are written in batches, and each batch is synced before the next. So a record that does
//! not read is either of the last batch, which a crash tore: it and what follows are dropped. Or a
//! later batch exists, and what was once durable has been damaged: then nothing is believed.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt as _,
};

use super::disk::Disk;
use crate::{
    chunk::{Prefix, Value, crc32c},
    limits::CHUNK_BYTES,
    transfer::Fingerprint,
};

/// What a partial file is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    pub size: u64,
    pub fingerprint: Fingerprint,
}

/// Why a journal is not believed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the journal is damaged: {0}")]
    Damaged(&'static str),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    id: u64,
    pub(super) whole: Whole,
}

/// A journal that is being written.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) file: File,
    header: Header,
    /// Those on stable storage.
    records: u64,
}

impl Journal {
    /// Begins a journal in an empty file. Its header is written with the first batch.
    pub(super) fn begin(file: File, whole: Whole) -> Self {
        Self { file, header: Header { id: fastrand::u64(..), whole }, records: 0 }
    }

    /// Goes on after `records` records. The rest must have been cut off.
    pub(super) fn resume(file: File, header: Header, records: u64) -> Self {
        Self { file, header, records }
    }

    /// Writes a batch, which counts once it has been synced. Call it once the data of these chunks
    /// has been.
    pub(super) fn write(&self, disk: &dyn Disk, values: &[Value]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + values.len() * RECORD_BYTES);
        if self.records == 0 {
            bytes.extend(encode_header(&self.header));
        }
        for (index, value) in (self.records..).zip(values) {
            bytes.extend(encode_record(self.header.id, self.records, index, value));
        }
        let offset = if self.records == 0 { 0 } else { end_of(self.records) };
        disk.write_at(&self.file, &bytes, offset)
    }

    /// Syncs a batch of so many records.
    pub(super) fn sync(&mut self, disk: &dyn Disk, records: usize) -> io::Result<()> {
        disk.sync_data(&self.file)?;
        self.records += records as u64;
        Ok(())
    }
}

/// Returns the length of a journal of so many records.
pub(super) fn end_of(records: u64) -> u64 {
    HEADER_BYTES as u64 + records * RECORD_BYTES as u64
}

/// Reads a journal: its header, and the values that can be believed.
pub(super) fn read(file: &File) -> Result<(Header, Vec<Value>), ReadError> {
    let mut reader = BufReader::with_capacity(READ_BYTES, At { file, offset: 0 });
    let mut bytes = [0; HEADER_BYTES];
    if !fill(&mut reader, &mut bytes)? {
        return Err(ReadError::Damaged("it has no header"));
    }
    let header = decode_header(&bytes).ok_or(ReadError::Damaged("its header does not read"))?;
    let mut values = Vec::new();
    let mut is_torn = false;
    let mut bytes = [0; RECORD_BYTES];
    let mut index = 0;
    while fill(&mut reader, &mut bytes)? {
        match decode_record(header.id, index, &bytes) {
            Some((_, value)) if !is_torn => values.push(value),
            Some((batch, _)) if batch > values.len() as u64 => {
                return Err(ReadError::Damaged("a record does not read, and later ones do"));
            }
            Some(_) => {}
            None => is_torn = true,
        }
        index += 1;
    }
    // The last chunk of a file is never journaled.
    if values.len() as u64 * CHUNK_BYTES as u64 >= header.whole.size && !values.is_empty() {
        return Err(ReadError::Damaged("it has more records than the file has chunks"));
    }
    Ok((header, values))
}

/// Merges the values of a file's first chunks.
pub(super) fn prefix(values: &[Value]) -> Prefix {
    let mut prefix = Prefix::default();
    for value in values {
        prefix.push(*value);
    }
    prefix
}

fn encode_header(header: &Header) -> [u8; HEADER_BYTES] {
    let Whole { size, fingerprint: f } = header.whole;
    let numbers = [
        size,
        f.device,
        f.inode,
        f.size_bytes,
        f.mtime_ns.cast_unsigned(),
        f.ctime_ns.cast_unsigned(),
    ];
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&header.id.to_le_bytes());
    for (field, number) in bytes[16..].chunks_exact_mut(8).zip(numbers) {
        field.copy_from_slice(&number.to_le_bytes());
    }
    seal(&mut bytes);
    bytes
}

fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
    let is_ours = is_sealed(bytes) && bytes.starts_with(MAGIC);
    let number = |field: usize| number(bytes, 16 + 8 * field);
    let fingerprint = Fingerprint {
        device: number(1),
        inode: number(2),
        size_bytes: number(3),
        mtime_ns: number(4).cast_signed(),
        ctime_ns: number(5).cast_signed(),
    };
    let whole = Whole { size: number(0), fingerprint };
    is_ours.then_some(Header { id: self::number(bytes, 8), whole })
}

fn encode_record(id: u64, batch: u64, index: u64, value: &Value) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&index.to_le_bytes());
    bytes[8..16].copy_from_slice(&batch.to_le_bytes());
    // Of this journal, and of none that was on the same blocks before.
    bytes[16..24].copy_from_slice(&id.to_le_bytes());
    bytes[24..56].copy_from_slice(value);
    seal(&mut bytes);
    bytes
}

/// Returns the number of its batch's first record, and the value.
fn decode_record(id: u64, index: u64, bytes: &[u8; RECORD_BYTES]) -> Option<(u64, Value)> {
    let is_ours = is_sealed(bytes) && number(bytes, 16) == id && number(bytes, 0) == index;
    let value = bytes[24..56].try_into().ok()?;
    is_ours.then(|| (number(bytes, 8), value))
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The last four bytes are the CRC of the rest.
fn seal(bytes: &mut [u8]) {
    let (rest, crc) = bytes.split_at_mut(bytes.len() - 4);
    crc.copy_from_slice(&crc32c(rest).to_le_bytes());
}

fn is_sealed(bytes: &[u8]) -> bool {
    let (rest, crc) = bytes.split_at(bytes.len() - 4);
    crc == crc32c(rest).to_le_bytes()
}

/// Fills `bytes`; returns false at the end, even if that is in the midst of them.
fn fill(reader: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(bytes) {
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        done => done.map(|()| true),
    }
}

/// Reads a file from its beginning, wherever its cursor is.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

const MAGIC: &[u8; 8] = b"fts-jrn1";
const HEADER_BYTES: usize = 128;
const RECORD_BYTES: usize = 64;
const READ_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::landing::RealDisk;

    fn whole() -> Whole {
        let fingerprint =
            Fingerprint { device: 1, inode: 2, size_bytes: 3, mtime_ns: -4, ctime_ns: 5 };
        Whole { size: 100 * CHUNK_BYTES as u64, fingerprint }
    }

    fn value(index: u8) -> Value {
        [index; 32]
    }

    fn append(journal: &mut Journal, values: &[Value]) {
        journal.write(&RealDisk, values).expect("written");
        journal.sync(&RealDisk, values.len()).expect("synced");
    }

    /// A journal of three batches: 0–3, 4–5, 6–8.
    fn journal() -> (Vec<u8>, Vec<Value>) {
        let file = tempfile::tempfile().expect("a file");
        let mut journal = Journal::begin(file, whole());
        let values: Vec<_> = (0..9).map(value).collect();
        for batch in [0..4, 4..6, 6..9] {
            append(&mut journal, &values[batch]);
        }
        assert_eq!(journal.records, 9);
        let mut bytes = vec![0; usize::try_from(end_of(9)).expect("small")];
        journal.file.read_exact_at(&mut bytes, 0).expect("as long as that");
        (bytes, values)
    }

    fn read_bytes(bytes: &[u8]) -> Result<(Header, Vec<Value>), ReadError> {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(bytes, 0).expect("written");
        read(&file)
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let (bytes, values) = journal();
        let (header, read) = read_bytes(&bytes).expect("it reads");
        assert_eq!((header.whole, read), (whole(), values));
    }

    #[test]
    fn a_torn_tail_is_dropped_and_the_rest_believed() {
        let (bytes, values) = journal();
        for len in HEADER_BYTES..bytes.len() {
            let (_, read) = read_bytes(&bytes[..len]).expect("it reads");
            assert_eq!(read, values[..(len - HEADER_BYTES) / RECORD_BYTES], "{len}");
        }
        assert!(matches!(read_bytes(&bytes[..HEADER_BYTES - 1]), Err(ReadError::Damaged(_))));
        // Blocks of the last batch may come to the disk in any order.
        let mut torn = bytes.clone();
        let end = |records| usize::try_from(end_of(records)).expect("small");
        torn[end(7)..end(8)].fill(0);
        assert_eq!(read_bytes(&torn).expect("it reads").1, values[..7]);
        // What an earlier file left on the blocks behind it is not taken for a record.
        let mut longer = bytes.clone();
        longer.extend(encode_record(77, 9, 9, &value(9)));
        assert_eq!(read_bytes(&longer).expect("it reads").1, values);
    }

    #[test]
    fn a_damaged_byte_is_never_believed() {
        let (bytes, values) = journal();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            match read_bytes(&damaged) {
                Err(ReadError::Damaged(_)) => {
                    assert!((at as u64) < end_of(6), "byte {at} is of the last batch");
                }
                Err(ReadError::Io(err)) => panic!("{err}"),
                Ok((header, read)) => {
                    assert!(at as u64 >= end_of(6), "byte {at} was durable");
                    assert_eq!(header.whole, whole());
                    assert_eq!(read, values[..(at - HEADER_BYTES) / RECORD_BYTES]);
                }
            }
        }
    }

    #[test]
    fn a_journal_of_more_than_the_file_is_damaged() {
        let file = tempfile::tempfile().expect("a file");
        let whole = Whole { size: 2 * CHUNK_BYTES as u64, ..whole() };
        let mut journal = Journal::begin(file, whole);
        append(&mut journal, &[value(0), value(1)]);
        assert!(matches!(read(&journal.file), Err(ReadError::Damaged(_))));
    }
}
