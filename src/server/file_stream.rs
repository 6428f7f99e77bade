//! Reads a file that has landed, piece by piece, off the reactor. At most two pieces are in memory,
//! and no thread is held while the reader is slow.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::task::{JoinHandle, spawn_blocking};
use tokio_stream::Stream;

/// The bytes of a range, in order. Nothing is read before the first poll. After an error it ends.
#[derive(Debug)]
pub struct FileStream<T> {
    file: Arc<File>,
    /// What is not yet being read.
    left: Range<u64>,
    piece_bytes: usize,
    make: fn(u64, Vec<u8>) -> T,
    reading: Option<JoinHandle<io::Result<T>>>,
}

impl<T: Send + 'static> FileStream<T> {
    /// Returns the stream of `range`, which must lie within the file. `make` turns an offset and
    /// its bytes into an item, on the thread that read them.
    pub fn new(
        file: File,
        range: Range<u64>,
        piece_bytes: usize,
        make: fn(u64, Vec<u8>) -> T,
    ) -> Self {
        assert!(piece_bytes > 0, "a stream of empty pieces never ends");
        Self { file: Arc::new(file), left: range, piece_bytes, make, reading: None }
    }

    fn read_next(&mut self) -> Option<JoinHandle<io::Result<T>>> {
        let offset = self.left.start;
        let left = self.left.end.saturating_sub(offset);
        if left == 0 {
            return None;
        }
        let len = usize::try_from(left).map_or(self.piece_bytes, |left| left.min(self.piece_bytes));
        self.left.start += len as u64;
        let (file, make) = (Arc::clone(&self.file), self.make);
        Some(spawn_blocking(move || {
            let mut bytes = vec![0; len];
            // An end before the range's end is an error, not an end.
            file.read_exact_at(&mut bytes, offset)?;
            Ok(make(offset, bytes))
        }))
    }
}

impl<T: Send + 'static> Stream for FileStream<T> {
    type Item = io::Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.reading.is_none() {
            self.reading = self.read_next();
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let piece = ready!(Pin::new(reading).poll(cx)).unwrap_or_else(|err| Err(err.into()));
        // The next piece is read while this one is sent.
        self.reading = None;
        match &piece {
            Ok(_) => self.reading = self.read_next(),
            Err(_) => self.left.start = self.left.end,
        }
        Poll::Ready(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio_stream::StreamExt as _;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file
    }

    async fn read(bytes: &[u8], range: Range<u64>) -> Vec<io::Result<(u64, Vec<u8>)>> {
        let pieces = FileStream::new(file(bytes), range, 4, |offset, bytes| (offset, bytes));
        pieces.collect().await
    }

    #[tokio::test]
    async fn every_byte_of_the_range_comes_once_and_in_order() {
        let bytes: Vec<u8> = (0..23).collect();
        for start in 0..23_u64 {
            for end in start..=23 {
                let pieces = read(&bytes, start..end).await;
                let mut at = start;
                for piece in pieces {
                    let (offset, piece) = piece.expect("read");
                    assert_eq!(offset, at);
                    let from = usize::try_from(offset).expect("small");
                    assert_eq!(piece, &bytes[from..from + piece.len()]);
                    at += piece.len() as u64;
                }
                assert_eq!(at, end);
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error_and_then_the_end() {
        let pieces = read(&[7; 10], 0..12).await;
        assert_eq!(pieces.len(), 3);
        assert!(pieces[..2].iter().all(Result::is_ok));
        let err = pieces[2].as_ref().expect_err("cut");
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    }
}
