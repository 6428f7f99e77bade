//! Leaves the page cache of the machine as it was: reading a large file would push out what others
//! work with. A chunk that was not cached before it was read is dropped afterwards; one that was
//! there stays.
//!
//! Whether it was there is asked well before it is read, and before the kernel reads it ahead of
//! us. A chunk stands or falls by its first byte. Asking costs a system call for each MiB.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::IoSliceMut,
    num::NonZeroU64,
};

use rustix::{
    fs::{Advice, major, minor},
    io::{Errno, ReadWriteFlags},
};

use crate::{chunk, limits};

/// The chunks of a part of a file that are about to be read, in order.
#[derive(Debug)]
pub(super) struct Footprint<'a> {
    file: &'a File,
    /// Where the part ends.
    end: u64,
    /// Whether each of the next chunks was cached: those from `asked_to` backwards.
    was_cached: VecDeque<bool>,
    /// Where the next question is about.
    asked_to: u64,
    /// The chunk that is asked about is so many after the one that is read.
    chunks_ahead: usize,
}

impl<'a> Footprint<'a> {
    pub(super) fn new(file: &'a File, begin: u64, end: u64) -> Self {
        let chunks_ahead = chunks_ahead(read_ahead_kib(file).unwrap_or(READ_AHEAD_KIB));
        Self { file, end, was_cached: VecDeque::new(), asked_to: begin, chunks_ahead }
    }

    /// Before the next chunk is read.
    pub(super) fn before_read(&mut self) {
        if self.chunks_ahead > CHUNKS_AHEAD_MAX {
            return;
        }
        while self.was_cached.len() <= self.chunks_ahead && self.asked_to < self.end {
            self.was_cached.push_back(is_cached(self.file, self.asked_to));
            self.asked_to += chunk::chunk_len(self.end, self.asked_to) as u64;
        }
    }

    /// After the chunk at `offset` has been read.
    pub(super) fn after_read(&mut self, offset: u64, len: usize) {
        if self.was_cached.pop_front() == Some(false) {
            let len = NonZeroU64::new(len as u64);
            // Only advice: a file system that does not take it keeps the pages.
            let _ = rustix::fs::fadvise(self.file, offset, len, Advice::DontNeed);
        }
    }
}

/// Whether the byte at `offset` can be had without waiting for a disk. Where the kernel cannot
/// tell, it counts as cached, so that nothing is dropped that may be of use.
fn is_cached(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    let mut buffer = [IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut buffer, offset, ReadWriteFlags::NOWAIT);
    read != Err(Errno::AGAIN)
}

/// Returns how far the kernel reads ahead in this file, if it says so: for a disk, a partition of
/// one, or a network file system.
fn read_ahead_kib(file: &File) -> Option<usize> {
    let device = rustix::fs::fstat(file).ok()?.st_dev;
    let device = format!("{}:{}", major(device), minor(device));
    let places = [
        format!("/sys/class/bdi/{device}/read_ahead_kb"),
        format!("/sys/dev/block/{device}/../bdi/read_ahead_kb"),
    ];
    let text = places.iter().find_map(|place| fs::read_to_string(place).ok())?;
    text.trim().parse().ok()
}

/// Returns the distance at which the kernel has read nothing on our behalf.
fn chunks_ahead(read_ahead_kib: usize) -> usize {
    // Twice as far in a file that is read in sequence.
    1 + (2 * read_ahead_kib).div_ceil(limits::CHUNK_BYTES >> 10)
}

/// Where the kernel does not say: Btrfs, which reads farther ahead than others.
const READ_AHEAD_KIB: usize = 4096;
/// Beyond this, asking would cost more than it is worth, and nothing is dropped.
const CHUNKS_AHEAD_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_farther_ahead_than_the_kernel_reads() {
        for (kib, chunks) in [(0, 1), (128, 2), (512, 2), (4096, 9), (8192, 17)] {
            assert_eq!(chunks_ahead(kib), chunks, "{kib}");
        }
        assert!(chunks_ahead(READ_AHEAD_KIB) <= CHUNKS_AHEAD_MAX);
    }

    #[test]
    fn every_chunk_is_asked_about_once_and_in_time() {
        let file = tempfile::tempfile().expect("a file");
        let size = 5 * limits::CHUNK_BYTES as u64 + 3;
        file.set_len(size).expect("grown");
        let mut footprint = Footprint { chunks_ahead: 2, ..Footprint::new(&file, 0, size) };
        let mut asked = Vec::new();
        for chunk in 0..6 {
            footprint.before_read();
            asked.push(footprint.asked_to.div_ceil(limits::CHUNK_BYTES as u64));
            let offset = chunk * limits::CHUNK_BYTES as u64;
            footprint.after_read(offset, chunk::chunk_len(size, offset));
        }
        assert_eq!(asked, [3, 4, 5, 6, 6, 6]);
        assert!(footprint.was_cached.is_empty());
    }
}
