//! The bytes of an upload, counted as they come: a message of it is a chunk, and on a slow line that
//! takes longer than an upload may stand still.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};

use crate::ids::UnixMs;

/// How many bytes of a request's body have come, and when the last. Clones count the same.
#[derive(Debug, Clone)]
pub struct Arrived(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    bytes: AtomicU64,
    last_ms: AtomicI64,
}

impl Default for Arrived {
    fn default() -> Self {
        let last_ms = AtomicI64::new(UnixMs::now().0);
        Self(Arc::new(Counts { bytes: AtomicU64::new(0), last_ms }))
    }
}

impl Arrived {
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Returns when the last bytes came.
    pub fn last(&self) -> UnixMs {
        UnixMs(self.0.last_ms.load(Ordering::Relaxed))
    }

    fn note(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.last_ms.store(UnixMs::now().0, Ordering::Relaxed);
    }
}

/// Lets the body of a request be counted by the [`Arrived`] that it now carries.
pub fn counted(mut request: Request<Body>) -> Request<Body> {
    let arrived = Arrived::default();
    request.extensions_mut().insert(arrived.clone());
    request.map(|inner| Body::new(Counted { inner, arrived }))
}

struct Counted {
    inner: Body,
    arrived: Arrived,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(data) = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref()) {
            self.arrived.note(data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
