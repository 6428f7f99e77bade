//! Calls that run to their end even if whoever asked has gone: who joins, is revoked or deleted has
//! consequences beyond the record, and a caller that hangs up must not leave half of them.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use crate::shutdown::Shutdown;

/// A service whose calls are tasks of the server. A stream that one answers with is the caller's.
#[derive(Debug, Clone)]
pub(super) struct ToTheEnd<S> {
    pub(super) inner: S,
    pub(super) shutdown: Shutdown,
}

impl<S> Service<http::Request<Body>> for ToTheEnd<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = self.shutdown.spawn(self.inner.call(request));
        Box::pin(async move {
            call.await.unwrap_or_else(|err| {
                tracing::error!(error = %err, "a call did not end by itself");
                Ok(Status::internal("the call failed; the server's log says why").into_http())
            })
        })
    }
}

impl<S: NamedService> NamedService for ToTheEnd<S> {
    const NAME: &'static str = S::NAME;
}
