//! What operators are shown: records, completed by what only the running server knows.

use std::{path::PathBuf, time::Duration};

use super::store::ClientRecord;
use crate::{
    ids::UnixMs,
    transfer::{Failure, Finish, State, Transfer, Waiting},
};

/// Whether a client can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// It holds a session, and its heartbeats come.
    Online,
    /// It holds a session; a heartbeat is late.
    Stale,
    Offline,
}

/// A transfer, as operators see it.
#[derive(Debug, Clone, PartialEq)]
pub struct TransferView {
    pub transfer: Transfer,
    /// Set in QUEUED and INTERRUPTED, and in RECEIVING while a cap holds it back or nothing comes;
    /// `transfer.waiting` is only what the record knows.
    pub waiting: Option<Waiting>,
    /// Bytes of the current attempt.
    pub done_bytes: u64,
    /// Bytes received over all attempts, the current one included.
    pub received_bytes: u64,
    /// Bytes a second: of the whole with COMPLETE, of late while RECEIVING.
    pub rate: Option<u64>,
    /// Where the bytes are on the server's disk, while they are kept.
    pub location: Option<PathBuf>,
}

impl TransferView {
    /// Returns why it failed, or why the last attempt broke, in the states that say so.
    pub fn failure(&self) -> Option<&Failure> {
        let said = matches!(self.transfer.state, State::Failed | State::Interrupted);
        self.transfer.failure.as_ref().filter(|_| said)
    }

    /// Returns the digest, and how the file was delivered, once they are proved: with COMPLETE.
    pub fn proof(&self) -> Option<Finish> {
        self.transfer.finish.filter(|_| self.transfer.state == State::Complete)
    }

    /// Returns how long it took from start to end, with COMPLETE.
    pub fn duration(&self) -> Option<Duration> {
        let (started, ended) = (self.transfer.started?, self.transfer.ended?);
        (self.transfer.state == State::Complete).then(|| ended.since(started))
    }

    /// Returns about how many bytes it is, written as a message.
    pub fn bytes(&self) -> usize {
        let transfer = &self.transfer;
        let paths = [
            transfer.path.as_ref().map(|path| path.as_str().len()),
            transfer.file.as_ref().map(|file| file.path.len()),
            transfer.failure.as_ref().map(|failure| failure.detail.len()),
            self.location.as_ref().map(|location| location.as_os_str().len()),
        ];
        FIXED_BYTES + paths.into_iter().flatten().sum::<usize>()
    }
}

/// A client, as operators see it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientView {
    pub record: ClientRecord,
    pub presence: Presence,
    pub last_seen: UnixMs,
    pub connected_since: Option<UnixMs>,
}

impl ClientView {
    /// Returns about how many bytes it is, written as a message.
    pub fn bytes(&self) -> usize {
        let opening = &self.record.opening;
        let labels = opening.host_name.len() + opening.os.len() + opening.version.len();
        FIXED_BYTES
            + labels
            + opening.allowed_roots.iter().map(|root| root.len() + 4).sum::<usize>()
    }
}

/// Everything in a view but its long texts.
const FIXED_BYTES: usize = 512;

/// One message of a watch.
#[derive(Debug, Clone, PartialEq)]
pub struct WatchItem {
    pub kind: WatchKind,
    pub transfer: TransferView,
    /// Resumes after this item.
    pub token: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchKind {
    Current,
    Changed,
    Progress,
}

/// Views for the tests of those who write them.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use crate::{
        audit_head::AuditHead,
        ids::{Epoch, InstanceId, SessionEpoch, TransferId},
        limits,
        rate::Rate,
        server::store::SessionOpening,
        transfer::{
            Consistency, Content, Delivered, FailReason, Fingerprint, Request, SourceFile,
            WaitingReason,
        },
    };

    pub(crate) fn queued() -> TransferView {
        let request = Request {
            client: "client-1".parse().expect("an id"),
            operator: Some("alice".parse().expect("a name")),
            path: Some("/var/log/a b.log".parse().expect("a path")),
            request_id: Some("r-1".parse().expect("an id")),
            consistency: Consistency::Auto,
            rate_max: None,
            signed: None,
            deadline: limits::DEADLINE,
        };
        let id = TransferId::generate();
        TransferView {
            transfer: Transfer::new(id, request, UnixMs(1_700_000_000_123)),
            waiting: Some(Waiting {
                reason: WaitingReason::ClientOffline,
                since: UnixMs(1_700_000_000_123),
                next_attempt: None,
            }),
            done_bytes: 0,
            received_bytes: 0,
            rate: None,
            location: None,
        }
    }

    pub(crate) fn complete() -> TransferView {
        let mut view = queued();
        let transfer = &mut view.transfer;
        transfer.state = State::Complete;
        transfer.epoch = Epoch(2);
        transfer.instance = Some(InstanceId::generate());
        transfer.attempts = 2;
        transfer.started = Some(UnixMs(1_700_000_000_500));
        transfer.ended = Some(UnixMs(1_700_000_002_000));
        transfer.file = Some(SourceFile {
            path: "/var/log/a b.log".to_owned(),
            size_bytes: 1_048_577,
            fingerprint: Fingerprint {
                device: 1,
                inode: 2,
                size_bytes: 1_048_577,
                mtime_ns: -3,
                ctime_ns: 4,
            },
        });
        transfer.rate_max = Some(Rate::try_from(5_000_000).expect("enough"));
        transfer.finish = Some(Finish {
            digest: blake3::hash(b"x").into(),
            delivered: Delivered::Unchanged,
            trusted_bytes: 0,
        });
        transfer.content = Content::Kept;
        view.waiting = None;
        view.done_bytes = 1_048_577;
        view.received_bytes = 1_048_600;
        view.rate = Some(699_051);
        view.location = Some(PathBuf::from("/data/files/x"));
        view
    }

    pub(crate) fn interrupted() -> TransferView {
        let mut view = queued();
        view.transfer.state = State::Interrupted;
        view.transfer.kept_bytes = 1 << 20;
        view.transfer.restart_detail = Some("another inode".to_owned());
        view.transfer.failure =
            Some(Failure { reason: FailReason::Io, last_reason: None, detail: "cut".to_owned() });
        view.waiting = Some(Waiting {
            reason: WaitingReason::Backoff,
            since: UnixMs(1_700_000_001_000),
            next_attempt: Some(UnixMs(1_700_000_010_000)),
        });
        view
    }

    pub(crate) fn client() -> ClientView {
        let opening = SessionOpening {
            client: "client-1".parse().expect("an id"),
            instance: InstanceId::generate(),
            jobs_max: 4,
            version: "0.1.0".to_owned(),
            host_name: "pi".to_owned(),
            os: "linux".to_owned(),
            address: "192.0.2.1:4711".to_owned(),
            allowed_roots: vec!["/var/log".to_owned()],
            policy_digest: Some(blake3::hash(b"a policy").into()),
        };
        ClientView {
            record: ClientRecord {
                opening,
                session_epoch: SessionEpoch(7),
                first_seen: UnixMs(1_700_000_000_000),
                last_seen: UnixMs(1_700_000_000_000),
                active_transfers: 1,
                queued_transfers: 2,
                audit_head: Some(AuditHead::NONE),
                audit_back: Some(UnixMs(1_700_000_002_000)),
            },
            presence: Presence::Online,
            last_seen: UnixMs(1_700_000_005_000),
            connected_since: Some(UnixMs(1_700_000_001_000)),
        }
    }
}
