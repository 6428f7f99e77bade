//! A machine that has joined: its certificate, its session, and uploads by hand; and what is on
//! record, seen past all doors.

use std::time::Duration;

use fts::{
    ids::{AttemptId, InstanceId, TransferId},
    transfer::{Request, State, Transfer},
    wire::session::{Header, Upload},
};
use tonic::transport::Channel;

use super::common::{
    raw::{RawSession, RawUpload, chunks, hello, receipt, upload},
    secured::{Identity, Secured},
    server::PATIENCE,
};

pub struct Machine {
    pub identity: Identity,
    /// What its session is on.
    pub channel: Channel,
    pub session: RawSession,
}

impl Machine {
    pub async fn start(secured: &Secured, client: &str) -> Self {
        let identity = secured.identity(client).await;
        let channel = secured.channel(Some(&identity)).await;
        let mut hello = hello(client, InstanceId::generate());
        hello.jobs_max = 16;
        let session = RawSession::open_over(channel.clone(), hello).await;
        Self { identity, channel, session }
    }

    /// Begins an upload on a connection of its own.
    pub async fn upload(&self, secured: &Secured) -> RawUpload {
        upload_as(secured, Some(&self.identity)).await
    }

    /// Waits for the command of a transfer.
    pub async fn command(&mut self, transfer: TransferId) -> AttemptId {
        loop {
            let attempt = self.session.command().await.attempt;
            if attempt.transfer == transfer {
                return attempt;
            }
        }
    }

    /// Obeys the command of a transfer with the beginning of the file.
    pub async fn begin(
        &mut self,
        secured: &Secured,
        transfer: TransferId,
        data: &[u8],
    ) -> (RawUpload, Header) {
        let attempt = self.command(transfer).await;
        let header = self.session.header(attempt, data);
        let mut raw = self.upload(secured).await;
        assert!(raw.send(Upload::Header(header.clone())).await, "the header was taken");
        assert!(raw.send(chunks(data).swap_remove(0)).await, "a chunk was taken");
        (raw, header)
    }

    /// Obeys the command of a transfer.
    pub async fn deliver(&mut self, secured: &Secured, transfer: TransferId, data: &[u8]) {
        let attempt = self.command(transfer).await;
        let header = self.session.header(attempt, data);
        let mut raw = self.upload(secured).await;
        raw.send_all(upload(&header, data)).await;
        let answer = raw.answer().await.expect("taken");
        assert_eq!(receipt(&answer), fts::wire::proto::receipt::Status::Complete);
    }
}

pub async fn upload_as(secured: &Secured, identity: Option<&Identity>) -> RawUpload {
    let io = secured.route(identity).connect().await.expect("connected");
    RawUpload::over(io, &secured.url()).await
}

/// Asks for a file, as the server's owner would.
pub async fn trigger(secured: &Secured, client: &str, path: &str) -> TransferId {
    let request = Request {
        client: client.parse().expect("an id"),
        operator: None,
        path: (!path.is_empty()).then(|| path.parse().expect("a path")),
        request_id: None,
        consistency: fts::transfer::Consistency::default(),
        deadline: fts::limits::DEADLINE,
        rate_max: None,
        signed: None,
    };
    secured.server.coordinator.trigger(request).await.expect("triggered").transfer.id
}

/// Returns what is on record.
pub async fn record(secured: &Secured, id: TransferId) -> Transfer {
    secured.server.coordinator.transfer(id).await.expect("known").transfer
}

/// Waits until it is on record that a transfer stands so.
pub async fn until(secured: &Secured, id: TransferId, state: State) -> Transfer {
    let wait = async {
        loop {
            let transfer = record(secured, id).await;
            if transfer.state == state {
                return transfer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it came to that")
}
