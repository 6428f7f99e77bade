//! What operators say over gRPC: decode, call the coordinator, encode. It decides nothing but how
//! much of it goes on at a time.

use std::{ops::Range, pin::Pin, sync::Arc};

use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{
    access::Role,
    coordinator::Content,
    desk::{Desk, Served},
    error::Error,
    file_stream::FileStream,
    gate::Caller,
    page::Page,
    watches::Watches,
};
use crate::{
    chunk::crc32c,
    ids::{ClientId, TransferId},
    limits,
    status::{self, Reason},
    wire::{
        control,
        proto::{self, control_server::Control},
        session::WireError,
    },
};

/// The service `fts.v1.Control`.
pub struct ControlApi {
    desk: Arc<Desk>,
    watches: Arc<Watches>,
}

impl ControlApi {
    pub fn new(desk: Arc<Desk>) -> Self {
        Self { desk, watches: Watches::new() }
    }

    fn serve<T>(&self, request: &Request<T>) -> Result<Served, Status> {
        self.desk.serve(request.extensions()).map_err(Error::into_status)
    }
}

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for ControlApi {
    async fn trigger_download(
        &self,
        request: Request<proto::TriggerDownloadRequest>,
    ) -> Answer<proto::TriggerDownloadResponse> {
        let desk = self.serve(&request)?;
        let ask = request.into_inner().try_into().map_err(malformed)?;
        let view = desk.trigger(ask).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::TriggerDownloadResponse { transfer: Some(view.into()) }))
    }

    async fn get_transfer(
        &self,
        request: Request<proto::GetTransferRequest>,
    ) -> Answer<proto::GetTransferResponse> {
        let id = transfer_id(&request.get_ref().transfer_id)?;
        let view = self.serve(&request)?.transfer(id).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::GetTransferResponse { transfer: Some(view.into()) }))
    }

    async fn list_transfers(
        &self,
        request: Request<proto::ListTransfersRequest>,
    ) -> Answer<proto::ListTransfersResponse> {
        let desk = self.serve(&request)?;
        let ask = request.into_inner();
        let filter = control::filter(&ask.client_id, ask.state).map_err(malformed)?;
        let page = Page::<TransferId>::parse(ask.page_size, &ask.page_token)
            .map_err(Error::into_status)?;
        let listed = desk.transfers(&filter, &page).await;
        let (views, next_page_token) = listed.map_err(Error::into_status)?;
        let transfers = views.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListTransfersResponse { transfers, next_page_token }))
    }

    type WatchTransfersStream = Answers<proto::WatchTransfersResponse>;

    async fn watch_transfers(
        &self,
        request: Request<proto::WatchTransfersRequest>,
    ) -> Answer<Self::WatchTransfersStream> {
        let desk = self.serve(&request)?;
        let query = request.into_inner().try_into().map_err(malformed)?;
        let operator = match desk.caller() {
            Caller::Operator(operator) => Some(&operator.name),
            _ => None,
        };
        let watching = self.watches.begin(operator).map_err(Error::into_status)?;
        let watch = desk.watch(query).await.map_err(Error::into_status)?;
        let items = watch.map(move |item| {
            // Held for as long as the stream is.
            let _ = &watching;
            item.map(Into::into).map_err(Error::into_status)
        });
        Ok(Response::new(Box::pin(items)))
    }

    async fn cancel_transfer(
        &self,
        request: Request<proto::CancelTransferRequest>,
    ) -> Answer<proto::CancelTransferResponse> {
        let id = transfer_id(&request.get_ref().transfer_id)?;
        let view = self.serve(&request)?.cancel(id).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::CancelTransferResponse { transfer: Some(view.into()) }))
    }

    async fn retry_transfer(
        &self,
        request: Request<proto::RetryTransferRequest>,
    ) -> Answer<proto::RetryTransferResponse> {
        let id = transfer_id(&request.get_ref().transfer_id)?;
        let view = self.serve(&request)?.retry(id).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::RetryTransferResponse { transfer: Some(view.into()) }))
    }

    async fn pause_transfer(
        &self,
        request: Request<proto::PauseTransferRequest>,
    ) -> Answer<proto::PauseTransferResponse> {
        let id = transfer_id(&request.get_ref().transfer_id)?;
        let view = self.serve(&request)?.pause(id).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::PauseTransferResponse { transfer: Some(view.into()) }))
    }

    async fn resume_transfer(
        &self,
        request: Request<proto::ResumeTransferRequest>,
    ) -> Answer<proto::ResumeTransferResponse> {
        let id = transfer_id(&request.get_ref().transfer_id)?;
        let view = self.serve(&request)?.resume(id).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::ResumeTransferResponse { transfer: Some(view.into()) }))
    }

    async fn delete_transfer(
        &self,
        request: Request<proto::DeleteTransferRequest>,
    ) -> Answer<proto::DeleteTransferResponse> {
        let id = transfer_id(&request.get_ref().transfer_id)?;
        let view = self.serve(&request)?.delete(id).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::DeleteTransferResponse { transfer: Some(view.into()) }))
    }

    async fn list_clients(
        &self,
        request: Request<proto::ListClientsRequest>,
    ) -> Answer<proto::ListClientsResponse> {
        let desk = self.serve(&request)?;
        let ask = request.into_inner();
        let page =
            Page::<ClientId>::parse(ask.page_size, &ask.page_token).map_err(Error::into_status)?;
        let (views, next_page_token) = desk.clients(&page).await.map_err(Error::into_status)?;
        let clients = views.into_iter().map(Into::into).collect();
        Ok(Response::new(proto::ListClientsResponse { clients, next_page_token }))
    }

    async fn get_client(
        &self,
        request: Request<proto::GetClientRequest>,
    ) -> Answer<proto::GetClientResponse> {
        let id = request.get_ref().client_id.parse().map_err(malformed)?;
        let view = self.serve(&request)?.client(&id).await.map_err(Error::into_status)?;
        Ok(Response::new(proto::GetClientResponse { client: Some(view.into()) }))
    }

    async fn explain_path(
        &self,
        request: Request<proto::ExplainPathRequest>,
    ) -> Answer<proto::ExplainPathResponse> {
        let desk = self.serve(&request)?;
        let ask = request.into_inner();
        let client = ask.client_id.parse().map_err(malformed)?;
        let path = ask.path.parse().map_err(malformed)?;
        let explained = desk.explain(client, path).await.map_err(Error::into_status)?;
        Ok(Response::new(explained.into()))
    }

    async fn who_am_i(
        &self,
        request: Request<proto::WhoAmIRequest>,
    ) -> Answer<proto::WhoAmIResponse> {
        let desk = self.serve(&request)?;
        desk.note_login().await.map_err(Error::into_status)?;
        let mut answer = proto::WhoAmIResponse {
            role: proto::Role::from(Role::Admin).into(),
            ..Default::default()
        };
        if let Caller::Operator(operator) = desk.caller() {
            operator.name.as_str().clone_into(&mut answer.name);
            answer.role = proto::Role::from(operator.role).into();
            answer.scope = Some(operator.scope.clone().into());
            answer.expire_time = operator.expires.map(control::timestamp);
        }
        Ok(Response::new(answer))
    }

    type ReadFileStream = Answers<proto::ReadFileResponse>;

    async fn read_file(
        &self,
        request: Request<proto::ReadFileRequest>,
    ) -> Answer<Self::ReadFileStream> {
        let desk = self.serve(&request)?;
        let ask = request.into_inner();
        let id = transfer_id(&ask.transfer_id)?;
        let content = desk.content(id).await.map_err(Error::into_status)?;
        let range = range(&ask, content.size)?;
        let messages = desk.until_over(file_messages(content, range), Error::into_status);
        Ok(Response::new(Box::pin(messages)))
    }
}

fn transfer_id(text: &str) -> Result<TransferId, Status> {
    text.parse().map_err(malformed)
}

fn malformed(err: impl Into<WireError>) -> Status {
    status::status(Reason::InvalidArgument, err.into().to_string())
}

/// Returns which bytes of a file of `size` bytes are asked for.
fn range(ask: &proto::ReadFileRequest, size: u64) -> Result<Range<u64>, Status> {
    if ask.offset > size {
        let text = format!("offset {} is beyond the end, {size}", ask.offset);
        return Err(status::status(Reason::RangeNotSatisfiable, text));
    }
    let left = size - ask.offset;
    let length = if ask.length == 0 { left } else { ask.length.min(left) };
    Ok(ask.offset..ask.offset + length)
}

/// Returns the messages of a range: the first says what the whole is, even if there is nothing to
/// read.
fn file_messages(content: Content, range: Range<u64>) -> Answers<proto::ReadFileResponse> {
    let (size, digest) = (content.size, content.digest.to_string());
    if range.is_empty() {
        let only = proto::ReadFileResponse { size, digest, offset: range.start, ..empty() };
        return Box::pin(tokio_stream::once(Ok(only)));
    }
    let pieces = FileStream::new(content.file, range, limits::CHUNK_BYTES, |offset, data| {
        proto::ReadFileResponse { offset, crc32c: crc32c(&data), data: data.into(), ..empty() }
    });
    let mut head = Some((size, digest));
    Box::pin(pieces.map(move |piece| {
        let mut message = piece.map_err(|err| unreadable(&err))?;
        if let Some((size, digest)) = head.take() {
            (message.size, message.digest) = (size, digest);
        }
        Ok(message)
    }))
}

fn empty() -> proto::ReadFileResponse {
    proto::ReadFileResponse::default()
}

fn unreadable(err: &std::io::Error) -> Status {
    tracing::error!(error = err as &dyn std::error::Error, "could not read a landed file");
    status::status(Reason::ServerIo, "the server's disk cannot serve this now")
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use super::*;
    use crate::ids::Digest;

    fn content(bytes: &[u8]) -> Content {
        let mut file: File = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        let digest = Digest::from(blake3::hash(bytes));
        Content { file, size: bytes.len() as u64, digest }
    }

    fn ask(offset: u64, length: u64) -> proto::ReadFileRequest {
        proto::ReadFileRequest { transfer_id: String::new(), offset, length }
    }

    async fn messages(content: Content, range: Range<u64>) -> Vec<proto::ReadFileResponse> {
        let all: Vec<_> = file_messages(content, range).collect().await;
        all.into_iter().map(|message| message.expect("read")).collect()
    }

    #[tokio::test]
    async fn a_file_comes_in_messages_of_a_chunk_each_with_its_crc() {
        let bytes: Vec<u8> = (0..=250).cycle().take(2 * limits::CHUNK_BYTES + 5).collect();
        let size = bytes.len() as u64;

        let all = messages(content(&bytes), 0..size).await;

        assert_eq!(all.len(), 3);
        assert_eq!(all[0].size, size);
        assert_eq!(all[0].digest, blake3::hash(&bytes).to_hex().as_str());
        assert!(all[1..].iter().all(|message| message.digest.is_empty()));
        assert!(all.iter().all(|message| message.crc32c == crc32c(&message.data)));
        let joined: Vec<u8> = all.iter().flat_map(|message| message.data.to_vec()).collect();
        assert!(joined == bytes, "the bytes came in order");
        assert_eq!(all[2].offset, 2 * limits::CHUNK_BYTES as u64);
    }

    #[tokio::test]
    async fn an_empty_file_is_one_message_that_says_so() {
        let all = messages(content(b""), 0..0).await;
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].digest, blake3::hash(b"").to_hex().as_str());
        assert!(all[0].data.is_empty());
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_ends_with_an_error() {
        let mut cut = content(b"0123456789");
        cut.size = 20;
        let all: Vec<_> = file_messages(cut, 0..20).collect().await;
        let status = all.last().expect("a message").as_ref().expect_err("cut");
        assert_eq!(status::reason(status), Some(Reason::ServerIo));
    }

    #[test]
    fn a_range_is_cut_at_the_end_and_refused_beyond_it() {
        assert_eq!(range(&ask(0, 0), 10).ok(), Some(0..10));
        assert_eq!(range(&ask(4, 0), 10).ok(), Some(4..10));
        assert_eq!(range(&ask(4, 3), 10).ok(), Some(4..7));
        assert_eq!(range(&ask(4, u64::MAX), 10).ok(), Some(4..10));
        assert_eq!(range(&ask(10, 1), 10).ok(), Some(10..10));
        let status = range(&ask(11, 0), 10).expect_err("beyond");
        assert_eq!(status::reason(&status), Some(Reason::RangeNotSatisfiable));
    }
}
