//! Dials the server: where the channels of both connections come from, and how they are set.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Error as TransportError};

use crate::route::{self, Io, Route, RouteError};

type Dialling = Pin<Box<dyn Future<Output = Result<Box<dyn Io>, RouteError>> + Send>>;

/// Makes connections to one server. Clones dial the same.
#[derive(Clone)]
pub(super) struct Dialer {
    uri: Uri,
    dial: Arc<dyn Fn() -> Dialling + Send + Sync>,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("uri", &self.uri).finish_non_exhaustive()
    }
}

impl fmt::Display for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.to_string().trim_end_matches('/'))
    }
}

impl Dialer {
    /// Dials by the route of the moment.
    pub(super) fn by(routes: watch::Receiver<Route>) -> Self {
        let uri = routes.borrow().server().uri().clone();
        Self::new(uri, move || {
            let route = routes.borrow().clone();
            Box::pin(async move { route.connect().await })
        })
    }

    pub(super) fn new(uri: Uri, dial: impl Fn() -> Dialling + Send + Sync + 'static) -> Self {
        Self { uri, dial: Arc::new(dial) }
    }

    /// Dials for `Connect`. Its heartbeats are messages, so it needs no pings.
    pub(super) async fn control(&self) -> Result<Channel, TransportError> {
        self.endpoint().connect_with_connector(self.connector()).await
    }

    /// Returns a channel for uploads, which dials when it is first used and again when it broke.
    pub(super) fn data(&self) -> Channel {
        self.endpoint()
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .connect_with_connector_lazy(self.connector())
    }

    fn endpoint(&self) -> Endpoint {
        route::endpoint(&self.uri)
    }

    fn connector(
        &self,
    ) -> impl tower::Service<Uri, Response = TokioIo<Box<dyn Io>>, Error = RouteError, Future: Send>
    + Send
    + 'static {
        let dial = self.dial.clone();
        tower::service_fn(move |_: Uri| {
            let dialling = dial();
            async move { Ok(TokioIo::new(dialling.await?)) }
        })
    }
}

/// Pings of the data connection, while an upload runs. More often, and some servers take it for an
/// attack.
const PING: Duration = Duration::from_secs(20);
