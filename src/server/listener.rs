//! Accepted connections: as many as the server holds, and cut when it aborts. Accept errors (such as too many open
//! files) pause the loop instead of spinning it.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{limits, shutdown::Shutdown};

/// Accepts connections until the server drains.
pub fn accept(
    listener: TcpListener,
    shutdown: &Shutdown,
) -> ReceiverStream<io::Result<Connection>> {
    let (accepted, stream) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let (draining, abort) = (shutdown.draining().clone(), shutdown.aborting().clone());
    let run = async move {
        let accept = async {
            loop {
                // Never closed, so there is always a place in the end.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let connection = next(&listener, place, &abort).await;
                if accepted.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = draining.cancelled() => {}
            () = accept => {}
        }
    };
    // It ends with the drain, and the shutdown waits for it.
    drop(shutdown.spawn(run));
    ReceiverStream::new(stream)
}

async fn next(
    listener: &TcpListener,
    place: OwnedSemaphorePermit,
    abort: &CancellationToken,
) -> Connection {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small messages must not wait for an acknowledgement.
                if let Err(err) = stream.set_nodelay(true) {
                    tracing::debug!(error = %err, "a connection was gone before it was served");
                    continue;
                }
                let aborted = Box::pin(abort.clone().cancelled_owned());
                return Connection { stream, aborted, _place: place };
            }
            Err(err) => {
                tracing::warn!(error = %err, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection of a client or an operator.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Fires when the server aborts: then reads and writes fail, so nothing that holds this can go on for ever.
    aborted: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.aborted.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
