//! Reads ahead of TLS. rustls asks its socket for 4 KiB at a time; a stream that is busy is read in
//! large pieces instead, which saves a system call for each of these. An idle stream keeps no
//! buffer: a server has tens of thousands of them.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits;

/// A socket that is read ahead while it is busy; writes pass through.
#[derive(Debug)]
pub struct ReadAhead<S> {
    socket: S,
    /// What was read and not yet taken: from `taken` on. Empty while the stream is idle.
    ahead: Vec<u8>,
    taken: usize,
    /// The last read filled all that it was given.
    is_busy: bool,
}

impl<S> ReadAhead<S> {
    pub fn new(socket: S) -> Self {
        Self { socket, ahead: Vec::new(), taken: 0, is_busy: false }
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    /// Fills the buffer, which is empty.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ahead.resize(limits::TLS_READ_AHEAD_BYTES, 0);
        self.taken = 0;
        let mut buf = ReadBuf::new(&mut self.ahead);
        let read = Pin::new(&mut self.socket).poll_read(cx, &mut buf);
        let len = buf.filled().len();
        self.ahead.truncate(len);
        if len < limits::TLS_READ_AHEAD_BYTES / 4 {
            self.is_busy = false;
        }
        read
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.taken == this.ahead.len() {
            if !this.is_busy {
                // Its memory goes back when the stream has come to rest.
                this.ahead = Vec::new();
                this.taken = 0;
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
                this.is_busy = buf.remaining() == 0 && buf.filled().len() - before >= BUSY_BYTES;
                return Poll::Ready(Ok(()));
            }
            ready!(this.fill(cx))?;
        }
        let left = &this.ahead[this.taken..];
        let len = left.len().min(buf.remaining());
        buf.put_slice(&left[..len]);
        this.taken += len;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A read that brings so many, which is all that was asked for, may have left more.
const BUSY_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_read_ahead_is_what_was_sent_whatever_the_sizes() {
        let sent: Vec<u8> = (0..=250).cycle().take(3 * limits::TLS_READ_AHEAD_BYTES + 7).collect();
        let (mut writer, reader) = duplex(limits::TLS_READ_AHEAD_BYTES * 2);
        let mut reader = ReadAhead::new(reader);
        let write = async {
            for piece in sent.chunks(100_003) {
                writer.write_all(piece).await.expect("written");
            }
            drop(writer);
        };
        let read = async {
            let mut got = Vec::new();
            let mut piece = vec![0; 4096];
            for len in (1..=4096).rev().step_by(13).cycle() {
                match reader.read(&mut piece[..len]).await.expect("read") {
                    0 => break,
                    len => got.extend_from_slice(&piece[..len]),
                }
            }
            got
        };

        let ((), got) = tokio::join!(write, read);

        assert!(got == sent, "the bytes came in order");
    }

    #[tokio::test]
    async fn a_stream_at_rest_keeps_no_buffer() {
        let (mut writer, reader) = duplex(limits::TLS_READ_AHEAD_BYTES * 2);
        let mut reader = ReadAhead::new(reader);
        let mut piece = [0; 4096];
        writer.write_all(&[1; 3 * 4096]).await.expect("written");
        for _ in 0..3 {
            reader.read_exact(&mut piece).await.expect("read");
        }
        assert!(reader.ahead.capacity() > 0, "it was busy");

        writer.write_all(&[2; 10]).await.expect("written");
        reader.read_exact(&mut piece[..10]).await.expect("read");
        writer.write_all(&[3; 10]).await.expect("written");
        reader.read_exact(&mut piece[..10]).await.expect("read");

        assert_eq!(reader.ahead.capacity(), 0);
    }
}
