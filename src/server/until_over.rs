//! Streams of an operator end when its credentials do.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio_stream::Stream;

use super::{
    error::Error,
    gate::{self, Caller},
    store::credentials::Credentials,
};
use crate::limits;

/// A stream that ends early when something comes first.
pub struct UntilOver<S, E> {
    stream: Pin<Box<S>>,
    /// `None`: it has come.
    over: Option<Pin<Box<dyn Future<Output = E> + Send>>>,
}

impl<S, E> UntilOver<S, E> {
    /// `err` makes of the reason what the stream ends with.
    pub fn new(
        stream: S,
        caller: &Caller,
        credentials: &Arc<dyn Credentials>,
        err: impl FnOnce(Error) -> E + Send + 'static,
    ) -> Self {
        let (caller, credentials) = (caller.clone(), Arc::clone(credentials));
        let over = async move { err(over(&caller, credentials.as_ref()).await) };
        Self { stream: Box::pin(stream), over: Some(Box::pin(over)) }
    }
}

impl<S: Stream<Item = Result<T, E>>, T, E> Stream for UntilOver<S, E> {
    type Item = Result<T, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(over) = &mut self.over else { return Poll::Ready(None) };
        if let Poll::Ready(err) = over.as_mut().poll(cx) {
            self.over = None;
            return Poll::Ready(Some(Err(err)));
        }
        self.stream.as_mut().poll_next(cx)
    }
}

/// Returns, with the reason, once the caller's credentials are good no longer.
pub(super) async fn over(caller: &Caller, credentials: &dyn Credentials) -> Error {
    let Caller::Operator(operator) = caller else { return std::future::pending().await };
    loop {
        tokio::time::sleep(limits::RECHECK).await;
        match gate::recheck(credentials, operator).await {
            Ok(()) => {}
            // A record that cannot be read now says nothing of the operator.
            Err(Error::Store(err)) => Error::Store(err).log(),
            Err(err) => return err,
        }
    }
}
