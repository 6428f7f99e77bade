//! What the relay does to uploads, message by message.

use std::time::Duration;

use fts::{
    chunk::crc32c,
    wire::proto::{
        Attempt, UploadFileRequest, file_transfer_client::FileTransferClient, upload_file_request,
    },
};
use tokio::{sync::mpsc, time::sleep};
use tonic::Streaming;

use super::MessageRelay;
use crate::plan::MessageFault;

impl MessageRelay {
    /// Carries an upload's messages; returns what has passed, if that is little.
    pub(super) async fn carry_upload(
        &self,
        mut from_client: Streaming<UploadFileRequest>,
        to_server: mpsc::Sender<UploadFileRequest>,
    ) -> Vec<UploadFileRequest> {
        let (mut passed, mut bytes) = (Vec::new(), 0);
        let mut transfer = String::new();
        // An error of the client's half ends the upload cleanly, as proxies do.
        while let Ok(Some(mut message)) = from_client.message().await {
            let mut twice = false;
            match &mut message.body {
                Some(upload_file_request::Body::Header(header)) => {
                    transfer = header.attempt.clone().unwrap_or_default().transfer_id;
                }
                Some(upload_file_request::Body::Chunk(chunk)) => {
                    bytes += chunk.data.len();
                    let may_forge = !self.memory().forged.contains(&transfer);
                    match self.take(|fault| match fault {
                        MessageFault::ChunkCorrupt | MessageFault::ChunkTwice => true,
                        MessageFault::ChunkForged => may_forge,
                        _ => false,
                    }) {
                        Some(MessageFault::ChunkCorrupt) => spoil(&mut chunk.data),
                        Some(MessageFault::ChunkForged) => {
                            spoil(&mut chunk.data);
                            chunk.crc32c = crc32c(&chunk.data);
                            self.memory().forged.insert(transfer.clone());
                        }
                        Some(_) => {
                            twice = true;
                            let bytes = chunk.data.len() as u64;
                            *self.memory().repeated.entry(transfer.clone()).or_default() += bytes;
                        }
                        None => {}
                    }
                }
                Some(upload_file_request::Body::Finish(_))
                    if self.take(|fault| *fault == MessageFault::FinishLost).is_some() =>
                {
                    break;
                }
                _ => {}
            }
            let is_little = bytes <= REMEMBERED_BYTES_MAX;
            if is_little {
                passed.push(message.clone());
            }
            let is_finish = matches!(message.body, Some(upload_file_request::Body::Finish(_)));
            if is_finish
                && is_little
                && let Some(MessageFault::FinishLate(by)) =
                    self.take(|fault| matches!(fault, MessageFault::FinishLate(_)))
            {
                self.upload_again(passed, by);
                self.arm(MessageFault::CommandLate(by));
                return Vec::new();
            }
            let copies = 1 + usize::from(twice);
            for copy in std::iter::repeat_n(message, copies) {
                if to_server.send(copy).await.is_err() {
                    return Vec::new();
                }
            }
        }
        if bytes <= REMEMBERED_BYTES_MAX { passed } else { Vec::new() }
    }

    /// Calls once more, with the same messages. Once the next attempt has been offered, that must be
    /// refused.
    pub(super) fn upload_again(&self, messages: Vec<UploadFileRequest>, after: Duration) {
        let relay = self.clone();
        drop(self.tasks.spawn(async move {
            sleep(after).await;
            let Attempt { transfer_id, epoch } = attempt_of(&messages);
            let offered = relay.memory().offered.get(&transfer_id).copied().unwrap_or_default();
            let mut server = FileTransferClient::new(relay.channel());
            let again = server.upload_file(tokio_stream::iter(messages)).await;
            if again.is_ok() && offered > epoch {
                let text = format!("{transfer_id}: took epoch {epoch}, and had offered {offered}");
                relay.memory().complaints.push(text);
            }
        }));
    }
}

fn attempt_of(messages: &[UploadFileRequest]) -> Attempt {
    let header = messages.iter().find_map(|message| match &message.body {
        Some(upload_file_request::Body::Header(header)) => header.attempt.clone(),
        _ => None,
    });
    header.unwrap_or_default()
}

fn spoil(data: &mut bytes::Bytes) {
    let mut wrong = data.to_vec();
    if let Some(byte) = wrong.last_mut() {
        *byte ^= 0x20;
    }
    *data = wrong.into();
}

/// Of an upload that may come again.
const REMEMBERED_BYTES_MAX: usize = 2 << 20;
