//! The way to the server: how it is dialled, what is asked over it, and for how long a missing
//! server is borne with. Knows gRPC; knows nothing of what is printed.

use std::{future::Future, time::Duration};

use tokio::time::Instant;
use tonic::{
    Response, Status, Streaming, service::interceptor::InterceptedService, transport::Channel,
};

use super::{config::Timing, error::Error, login::Bearer};
use crate::{
    backoff::Backoff,
    limits,
    route::Route,
    wire::proto::{
        Client, ExplainPathRequest, ExplainPathResponse, GetClientRequest, GetTransferRequest,
        ReadAuditRequest, ReadAuditResponse, ReadFileRequest, ReadFileResponse, Transfer,
        TriggerDownloadRequest, WatchTransfersRequest, WatchTransfersResponse, WhoAmIRequest,
        WhoAmIResponse, admin_client::AdminClient, control_client::ControlClient,
    },
};

/// The way of a call: the token is added to it.
pub(super) type Way = InterceptedService<Channel, Bearer>;

/// Asks one server. Dials when first asked, and again whenever the connection is gone.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    control: ControlClient<Way>,
    admin: AdminClient<Way>,
    address: String,
}

impl Connection {
    pub(super) fn new(route: &Route, bearer: Bearer) -> Self {
        let address = route.server().to_string();
        let channel = route
            .endpoint()
            .connect_timeout(limits::CONNECT_WAIT)
            // A server that vanished is noticed, also while a watch is silent for hours.
            .http2_keep_alive_interval(limits::OPERATOR_PING)
            .keep_alive_timeout(limits::OPERATOR_PING)
            .initial_stream_window_size(limits::HTTP2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::HTTP2_CONNECTION_WINDOW_BYTES)
            .max_frame_size(limits::HTTP2_FRAME_BYTES)
            .connect_with_connector_lazy(route.connector());
        let way = InterceptedService::new(channel, bearer);
        let control = ControlClient::new(way.clone())
            .max_decoding_message_size(limits::OPERATOR_MESSAGE_BYTES_MAX);
        let admin = AdminClient::new(way);
        Self { control, admin, address }
    }

    /// Begins to read the audit.
    pub(super) async fn audit(
        &self,
        request: ReadAuditRequest,
    ) -> Result<Streaming<ReadAuditResponse>, Error> {
        let answer = self.admin.clone().read_audit(request).await;
        answer.map(Response::into_inner).map_err(|status| self.error(&status))
    }

    pub(super) async fn who_am_i(&self) -> Result<WhoAmIResponse, Error> {
        let call = async |mut control: ControlClient<Way>| control.who_am_i(WhoAmIRequest {}).await;
        self.ask(call).await
    }

    /// Makes one call that has one answer.
    pub(super) async fn ask<T, F>(
        &self,
        call: impl FnOnce(ControlClient<Way>) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        match tokio::time::timeout(limits::OPERATOR_CALL_WAIT, call(self.control.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => {
                let seconds = limits::OPERATOR_CALL_WAIT.as_secs();
                let detail = format!("nothing was heard for {seconds} s");
                Err(Error::unreachable(&self.address, &detail, true))
            }
        }
    }

    pub(super) async fn trigger(&self, request: TriggerDownloadRequest) -> Result<Transfer, Error> {
        let call = async |mut control: ControlClient<Way>| control.trigger_download(request).await;
        required(self.ask(call).await?.transfer)
    }

    pub(super) async fn transfer(&self, id: &str) -> Result<Transfer, Error> {
        let request = GetTransferRequest { transfer_id: id.to_owned() };
        let call = async |mut control: ControlClient<Way>| control.get_transfer(request).await;
        required(self.ask(call).await?.transfer)
    }

    pub(super) async fn client(&self, id: &str) -> Result<Client, Error> {
        let request = GetClientRequest { client_id: id.to_owned() };
        let call = async |mut control: ControlClient<Way>| control.get_client(request).await;
        let client = self.ask(call).await?.client;
        client.ok_or_else(|| Error::strange("it has no client"))
    }

    pub(super) async fn explain(
        &self,
        client: &str,
        path: &str,
    ) -> Result<ExplainPathResponse, Error> {
        let request = ExplainPathRequest { client_id: client.to_owned(), path: path.to_owned() };
        let call = async |mut control: ControlClient<Way>| control.explain_path(request).await;
        self.ask(call).await
    }

    /// Begins a watch. No time limit: the server may have nothing to say.
    pub(super) async fn watch(
        &self,
        request: WatchTransfersRequest,
    ) -> Result<Streaming<WatchTransfersResponse>, Error> {
        let answer = self.control.clone().watch_transfers(request).await;
        answer.map(Response::into_inner).map_err(|status| self.error(&status))
    }

    /// Begins to read the bytes of a transfer.
    pub(super) async fn read(
        &self,
        request: ReadFileRequest,
    ) -> Result<Streaming<ReadFileResponse>, Error> {
        let answer = self.control.clone().read_file(request).await;
        answer.map(Response::into_inner).map_err(|status| self.error(&status))
    }

    pub(super) fn error(&self, status: &Status) -> Error {
        Error::from_status(status, &self.address)
    }

    /// The other end is gone, or says nothing, in the middle of a stream.
    pub(super) fn lost(&self, detail: &str) -> Error {
        Error::unreachable(&self.address, detail, true)
    }
}

/// Every answer about a transfer has one.
pub(super) fn required(transfer: Option<Transfer>) -> Result<Transfer, Error> {
    transfer.ok_or_else(|| Error::strange("it has no transfer"))
}

/// What came of listening to a stream.
#[derive(Debug)]
pub(super) enum Heard<T> {
    Got(T),
    /// The stream broke, in these words. Listening again begins another one.
    Lost(String),
}

/// How long to go on without a server, and when to try again.
#[derive(Debug)]
pub(super) struct Patience {
    backoff: Backoff,
    /// For so long after the first failure in a row.
    wait: Duration,
    since: Option<Instant>,
    next_try: Option<Instant>,
    was_reached: bool,
}

impl Patience {
    /// Gives up after `wait` without a success; at once, if no server was ever there: then the
    /// address is wrong.
    pub(super) fn new(timing: &Timing, wait: Duration) -> Self {
        Self {
            backoff: Backoff::new(timing.pause_min, timing.pause_max),
            wait,
            since: None,
            next_try: None,
            was_reached: false,
        }
    }

    /// The server has answered.
    pub(super) fn reached(mut self) -> Self {
        self.was_reached = true;
        self
    }

    pub(super) fn succeeded(&mut self) {
        self.backoff.reset();
        self.since = None;
        self.next_try = None;
        self.was_reached = true;
    }

    /// Returns the failure if another try has no point; else its first line, and [`Self::pause`]
    /// waits for the try.
    pub(super) fn failed(&mut self, err: Error) -> Result<String, Error> {
        let now = Instant::now();
        let since = *self.since.get_or_insert(now);
        let in_vain = err.is_unsent() && !self.was_reached;
        if !err.is_transient() || in_vain || now.duration_since(since) >= self.wait {
            return Err(err);
        }
        self.was_reached = true;
        self.next_try = Some(now + self.backoff.next_pause());
        Ok(err.to_string().lines().next().unwrap_or_default().to_owned())
    }

    /// Waits until the next try is due. Dropped and called again, it waits for the same moment.
    pub(super) async fn pause(&self) {
        if let Some(at) = self.next_try {
            tokio::time::sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing() -> Timing {
        Timing { pause_min: Duration::ZERO, pause_max: Duration::ZERO, ..Timing::default() }
    }

    fn gone(was_sent: bool) -> Error {
        Error::unreachable("http://h", "gone", was_sent)
    }

    #[test]
    fn a_server_that_never_was_is_given_up_at_once() {
        let mut patience = Patience::new(&timing(), Duration::from_secs(9));
        assert!(patience.failed(gone(false)).is_err());
        let mut patience = Patience::new(&timing(), Duration::from_secs(9)).reached();
        assert!(patience.failed(gone(false)).is_ok());
    }

    #[test]
    fn a_server_that_stays_away_is_given_up_in_the_end() {
        let mut patience = Patience::new(&timing(), Duration::ZERO).reached();
        assert!(patience.failed(gone(true)).is_err());
    }

    #[test]
    fn what_is_refused_for_good_is_not_tried_again() {
        let mut patience = Patience::new(&timing(), Duration::from_secs(9)).reached();
        assert!(patience.failed(Error::Failed("no".into())).is_err());
    }
}
