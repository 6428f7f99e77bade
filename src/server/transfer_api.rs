//! `fts.v1.FileTransfer`, as clients call it: decode, call, encode.

use std::sync::Arc;

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::{
    arrived::Arrived,
    audit::{Action, Audit},
    audited::Audited,
    authority::ClientCertificate,
    connection::Peer,
    coordinator::Coordinator,
    error::Error,
    gate::Caller,
    ingest::{self, Received},
    outbox::{self, Outgoing},
    session,
};
use crate::{
    status::{self, Reason},
    wire::{
        proto::{
            ClientMessage, Range, Receipt, UploadFileRequest, UploadFileResponse,
            file_transfer_server::FileTransfer, receipt,
        },
        session::Header,
    },
};

/// The service; clones share the coordinator.
#[derive(Clone)]
pub struct TransferApi {
    coordinator: Arc<Coordinator>,
    audit: Option<Audit>,
}

impl TransferApi {
    pub fn new(coordinator: Arc<Coordinator>, audit: Option<Audit>) -> Self {
        Self { coordinator, audit }
    }

    fn audited<T>(&self, request: &Request<T>) -> Audited {
        let caller = request.extensions().get::<Caller>().unwrap_or(&Caller::Anyone);
        let from = request.extensions().get::<Peer>().map(|peer| peer.address.clone());
        Audited::new(self.audit.clone(), caller, from.unwrap_or_default())
    }
}

#[tonic::async_trait]
impl FileTransfer for TransferApi {
    type ConnectStream = Outgoing;

    async fn connect(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let address = request.extensions().get::<Peer>();
        let address = address.map_or_else(String::new, |peer| peer.address.clone());
        let certificate = certificate(&request)?;
        let audited = self.audited(&request);
        let (outbox, stream) = outbox::channel();
        let coordinator = Arc::clone(&self.coordinator);
        let inbound = request.into_inner();
        let caller = session::Dialled { address, certificate, audited };
        let serve = session::serve(coordinator, inbound, outbox, caller);
        // It ends with its stream, and the shutdown waits for it.
        drop(self.coordinator.shutdown.spawn(serve));
        Ok(Response::new(stream))
    }

    async fn upload_file(
        &self,
        request: Request<Streaming<UploadFileRequest>>,
    ) -> Result<Response<UploadFileResponse>, Status> {
        let span = tracing::info_span!("transfer", transfer_id = tracing::field::Empty);
        let coordinator = Arc::clone(&self.coordinator);
        // A task of its own: when the call is dropped, it still notes how the attempt ended.
        let arrived = request.extensions().get::<Arrived>().cloned();
        let arrived = arrived.ok_or_else(|| internal("the bytes are not counted"))?;
        let certificate = certificate(&request)?;
        let audited = self.audited(&request);
        let receive = ingest::receive(coordinator, request.into_inner(), arrived, certificate);
        let receive = async move {
            receive.await.inspect_err(|err| {
                if err.is_of_rights() {
                    audited.refuse(Action::TransferUpload, &[], err);
                }
            })
        };
        let receive = receive.instrument(span);
        let received = self.coordinator.shutdown.spawn(receive).await;
        let received = received.unwrap_or_else(|err| Err(Error::Internal(err.to_string())));
        let (header, received) = received.map_err(Error::into_status)?;
        Ok(Response::new(UploadFileResponse { receipts: vec![receipt(&header, received)] }))
    }
}

/// Returns the certificate that a caller is known by; `None` where nobody asks for one.
fn certificate<T>(request: &Request<T>) -> Result<Option<Arc<ClientCertificate>>, Status> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Client(certificate)) => Ok(Some(Arc::clone(certificate))),
        Some(Caller::Anyone) => Ok(None),
        _ => Err(status::status(Reason::PermissionDenied, "only clients speak this")),
    }
}

fn internal(text: &str) -> Status {
    Error::Internal(text.to_owned()).into_status()
}

fn receipt(header: &Header, received: Received) -> Receipt {
    let (status, digest) = match received {
        Received::Complete { digest, .. } => {
            (receipt::Status::Complete, Bytes::copy_from_slice(digest.as_bytes()))
        }
        Received::Aborted => (receipt::Status::Aborted, Bytes::new()),
    };
    Receipt {
        attempt: Some(header.attempt.into()),
        file: 0,
        range: Some(Range { offset: header.offset, length: header.size - header.offset }),
        status: status.into(),
        size: header.size,
        digest,
    }
}
