//! What client and server say to each other, as types of our own: checked, and free of protobuf's optionals.

use std::time::Duration;

use bytes::Bytes;

use super::proto;
use crate::{
    ids::{
        AttemptId, ClientId, Digest, Epoch, IdError, InstanceId, RemotePath, SessionEpoch, bounded,
    },
    limits,
    transfer::{Consistency, Delivered, FailReason, Fingerprint, Finish},
};

/// The version of the protocol that this program speaks.
pub const PROTOCOL: u32 = 1;

/// Why a message is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("{0} is out of range")]
    Range(&'static str),
    #[error("protocol version {0} is not known; this program speaks {PROTOCOL}")]
    Protocol(u32),
}

/// From a client, on `Connect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromClient {
    Hello(Hello),
    Heartbeat {
        seq: u64,
        progress: Vec<(AttemptId, u64)>,
    },
    Reply {
        attempt: AttemptId,
        verdict: Verdict,
    },
    Report(Report),
    Goodbye {
        reason: String,
    },
    /// Of a later version: to be ignored.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub client: ClientId,
    pub instance: InstanceId,
    pub jobs_max: u32,
    pub version: String,
    pub host_name: String,
    pub os: String,
    pub allowed_roots: Vec<String>,
    pub running: Vec<AttemptId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Busy,
    StaleEpoch,
    Conflict,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub attempt: AttemptId,
    pub outcome: Outcome,
    /// For people.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The receipt came.
    Delivered,
    /// The client's own decision.
    Failed(FailReason),
    /// No answer, or a refusal of the server's.
    Broken,
    Stopped,
}

/// From the server, on `Connect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromServer {
    Welcome {
        session: SessionEpoch,
        heartbeat: Duration,
        silence: Duration,
    },
    HeartbeatAck {
        seq: u64,
    },
    Download(Command),
    Stop(AttemptId),
    ReportAck(AttemptId),
    Drain {
        reconnect_after: Duration,
    },
    Superseded {
        host_name: String,
        address: String,
        reconnect_after: Duration,
    },
    /// Of a later version: to be ignored.
    Unknown,
}

/// A command to deliver a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    pub attempt: AttemptId,
    /// `None` asks for the default file. An `Err` is a path that no honest server sends.
    pub path: Result<Option<RemotePath>, IdError>,
    pub consistency: Consistency,
    pub size_max: u64,
}

/// From a client, on `UploadFile`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upload {
    Header(Header),
    Chunk { offset: u64, crc32c: u32, data: Bytes },
    RangeEnd,
    Abort { reason: FailReason, detail: String },
    Finish { size: u64, finish: Finish, fingerprint: Fingerprint },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub attempt: AttemptId,
    pub instance: InstanceId,
    pub size: u64,
    pub fingerprint: Fingerprint,
    pub path: String,
}

// === From messages ===

impl TryFrom<Option<proto::Attempt>> for AttemptId {
    type Error = WireError;

    fn try_from(message: Option<proto::Attempt>) -> Result<Self, WireError> {
        let message = message.ok_or(WireError::Missing("attempt"))?;
        Ok(Self { transfer: message.transfer_id.parse()?, epoch: Epoch(message.epoch) })
    }
}

impl TryFrom<proto::ClientMessage> for FromClient {
    type Error = WireError;

    fn try_from(message: proto::ClientMessage) -> Result<Self, WireError> {
        use proto::client_message::Body;
        let Some(body) = message.body else { return Ok(Self::Unknown) };
        Ok(match body {
            Body::Hello(hello) => Self::Hello(hello.try_into()?),
            Body::Heartbeat(beat) => {
                let at_most = limits::JOBS_MAX as usize;
                let each = beat.progress.into_iter().take(at_most);
                let progress = each.map(|p| Ok((p.attempt.try_into()?, p.bytes_sent)));
                Self::Heartbeat {
                    seq: beat.seq,
                    progress: progress.collect::<Result<_, WireError>>()?,
                }
            }
            Body::Reply(reply) => {
                let verdict = match reply.verdict() {
                    proto::command_reply::Verdict::Unspecified => return Ok(Self::Unknown),
                    proto::command_reply::Verdict::Accepted => Verdict::Accepted,
                    proto::command_reply::Verdict::Busy => Verdict::Busy,
                    proto::command_reply::Verdict::StaleEpoch => Verdict::StaleEpoch,
                    proto::command_reply::Verdict::Conflict => Verdict::Conflict,
                };
                Self::Reply { attempt: reply.attempt.try_into()?, verdict }
            }
            Body::Report(report) => Self::Report(report.try_into()?),
            Body::Goodbye(bye) => {
                Self::Goodbye { reason: bounded(bye.reason, limits::LABEL_BYTES_MAX) }
            }
        })
    }
}

impl TryFrom<proto::Hello> for Hello {
    type Error = WireError;

    fn try_from(hello: proto::Hello) -> Result<Self, WireError> {
        if hello.protocol != PROTOCOL {
            return Err(WireError::Protocol(hello.protocol));
        }
        if hello.jobs_max == 0 {
            return Err(WireError::Range("jobs_max"));
        }
        let label = |text| bounded(text, limits::LABEL_BYTES_MAX);
        let roots = hello.allowed_roots.into_iter().take(limits::ALLOWED_ROOTS_MAX);
        let running = hello.running.into_iter().take(limits::JOBS_MAX as usize);
        Ok(Self {
            client: hello.client_id.parse()?,
            instance: InstanceId::from_bytes(&hello.instance_id)?,
            jobs_max: hello.jobs_max.min(limits::JOBS_MAX),
            version: label(hello.version),
            host_name: label(hello.host_name),
            os: label(hello.os),
            allowed_roots: roots.map(|root| bounded(root, limits::PATH_BYTES_MAX)).collect(),
            running: running.map(|attempt| Some(attempt).try_into()).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<proto::AttemptReport> for Report {
    type Error = WireError;

    fn try_from(report: proto::AttemptReport) -> Result<Self, WireError> {
        use proto::attempt_report::Outcome as Wire;
        let outcome = match report.outcome() {
            Wire::Delivered => Outcome::Delivered,
            // What a later client reports, and this server does not know, is worth another attempt.
            Wire::Failed => fail_reason(report.reason()).map_or(Outcome::Broken, Outcome::Failed),
            Wire::Broken | Wire::Unspecified => Outcome::Broken,
            Wire::Stopped => Outcome::Stopped,
        };
        let detail = bounded(report.detail, limits::DETAIL_BYTES_MAX);
        Ok(Self { attempt: report.attempt.try_into()?, outcome, detail })
    }
}

impl TryFrom<proto::ServerMessage> for FromServer {
    type Error = WireError;

    fn try_from(message: proto::ServerMessage) -> Result<Self, WireError> {
        use proto::server_message::Body;
        let Some(body) = message.body else { return Ok(Self::Unknown) };
        // No hint of a server may keep a client away for ever.
        let pause = |ms: u32| Duration::from_millis(ms.into()).min(limits::RECONNECT_HINT_MAX);
        let label = |text| bounded(text, limits::LABEL_BYTES_MAX);
        Ok(match body {
            Body::Welcome(welcome) => {
                let beat = Duration::from_millis(welcome.heartbeat_ms.into());
                let heartbeat = beat.clamp(limits::HEARTBEAT_MIN, limits::HEARTBEAT_MAX);
                let silence = Duration::from_millis(welcome.silence_ms.into());
                let longest = limits::HEARTBEAT_MAX * limits::SERVER_SILENCE_PERCENT / 100;
                Self::Welcome {
                    session: SessionEpoch(welcome.session_epoch),
                    heartbeat,
                    silence: silence.clamp(heartbeat * 3 / 2, longest),
                }
            }
            Body::HeartbeatAck(ack) => Self::HeartbeatAck { seq: ack.seq },
            Body::Download(command) => Self::Download(command.try_into()?),
            Body::Stop(stop) => Self::Stop(stop.attempt.try_into()?),
            Body::ReportAck(ack) => Self::ReportAck(ack.attempt.try_into()?),
            Body::Drain(drain) => Self::Drain { reconnect_after: pause(drain.reconnect_after_ms) },
            Body::Superseded(by) => Self::Superseded {
                host_name: label(by.host_name),
                address: label(by.address),
                reconnect_after: pause(by.reconnect_after_ms),
            },
        })
    }
}

impl TryFrom<proto::DownloadCommand> for Command {
    type Error = WireError;

    fn try_from(command: proto::DownloadCommand) -> Result<Self, WireError> {
        let consistency = consistency(command.consistency());
        let path = match command.path.as_str() {
            "" => Ok(None),
            path => path.parse().map(Some),
        };
        let size_max = command.size_max.min(limits::FILE_BYTES_MAX);
        Ok(Self { attempt: command.attempt.try_into()?, path, consistency, size_max })
    }
}

impl TryFrom<proto::UploadFileRequest> for Upload {
    type Error = WireError;

    fn try_from(message: proto::UploadFileRequest) -> Result<Self, WireError> {
        use proto::upload_file_request::Body;
        Ok(match message.body.ok_or(WireError::Missing("body"))? {
            Body::Header(header) => Self::Header(header.try_into()?),
            Body::Chunk(chunk) => {
                Self::Chunk { offset: chunk.offset, crc32c: chunk.crc32c, data: chunk.data }
            }
            Body::RangeEnd(_) => Self::RangeEnd,
            Body::Abort(abort) => Self::Abort {
                reason: fail_reason(abort.reason()).unwrap_or(FailReason::Io),
                detail: bounded(abort.detail, limits::DETAIL_BYTES_MAX),
            },
            Body::Finish(finish) => {
                let delivered = match finish.delivered() {
                    proto::Delivered::Unspecified => return Err(WireError::Missing("delivered")),
                    proto::Delivered::Unchanged => Delivered::Unchanged,
                    proto::Delivered::Prefix => Delivered::Prefix,
                };
                Self::Finish {
                    size: finish.size,
                    finish: Finish { digest: Digest::from_bytes(&finish.digest)?, delivered },
                    fingerprint: finish
                        .fingerprint
                        .ok_or(WireError::Missing("fingerprint"))?
                        .into(),
                }
            }
        })
    }
}

impl TryFrom<proto::Header> for Header {
    type Error = WireError;

    fn try_from(header: proto::Header) -> Result<Self, WireError> {
        let range = header.range.ok_or(WireError::Missing("range"))?;
        // Several files in a call, and other ranges than the whole file, are foreseen.
        if header.file != 0 {
            return Err(WireError::Range("file"));
        }
        if range.offset != 0 || range.length != header.size {
            return Err(WireError::Range("range"));
        }
        Ok(Self {
            attempt: header.attempt.try_into()?,
            instance: InstanceId::from_bytes(&header.instance_id)?,
            size: header.size,
            fingerprint: header.fingerprint.ok_or(WireError::Missing("fingerprint"))?.into(),
            path: bounded(header.path, limits::PATH_BYTES_MAX),
        })
    }
}

impl From<proto::Fingerprint> for Fingerprint {
    fn from(f: proto::Fingerprint) -> Self {
        Self {
            device: f.device,
            inode: f.inode,
            size_bytes: f.size,
            mtime_ns: f.mtime_ns,
            ctime_ns: f.ctime_ns,
        }
    }
}

/// Returns the reason that a message names; `None` if it is not known.
pub fn fail_reason(reason: proto::FailReason) -> Option<FailReason> {
    Some(match reason {
        proto::FailReason::Unspecified => return None,
        proto::FailReason::SourceNotFound => FailReason::SourceNotFound,
        proto::FailReason::SourceUnreadable => FailReason::SourceUnreadable,
        proto::FailReason::SourceNotRegular => FailReason::SourceNotRegular,
        proto::FailReason::DeniedByPolicy => FailReason::DeniedByPolicy,
        proto::FailReason::SourceChanged => FailReason::SourceChanged,
        proto::FailReason::TooLarge => FailReason::TooLarge,
        proto::FailReason::Integrity => FailReason::Integrity,
        proto::FailReason::Io => FailReason::Io,
        proto::FailReason::Attempts => FailReason::Attempts,
        proto::FailReason::Deadline => FailReason::Deadline,
    })
}

/// Returns what a message asks for; AUTO unless it says otherwise.
pub fn consistency(consistency: proto::Consistency) -> Consistency {
    match consistency {
        proto::Consistency::Unspecified | proto::Consistency::Auto => Consistency::Auto,
        proto::Consistency::Strict => Consistency::Strict,
    }
}

// === To messages ===

impl From<AttemptId> for proto::Attempt {
    fn from(id: AttemptId) -> Self {
        Self { transfer_id: id.transfer.to_string(), epoch: id.epoch.0 }
    }
}

impl From<Fingerprint> for proto::Fingerprint {
    fn from(f: Fingerprint) -> Self {
        Self {
            device: f.device,
            inode: f.inode,
            size: f.size_bytes,
            mtime_ns: f.mtime_ns,
            ctime_ns: f.ctime_ns,
        }
    }
}

impl From<FailReason> for proto::FailReason {
    fn from(reason: FailReason) -> Self {
        match reason {
            FailReason::SourceNotFound => Self::SourceNotFound,
            FailReason::SourceUnreadable => Self::SourceUnreadable,
            FailReason::SourceNotRegular => Self::SourceNotRegular,
            FailReason::DeniedByPolicy => Self::DeniedByPolicy,
            FailReason::SourceChanged => Self::SourceChanged,
            FailReason::TooLarge => Self::TooLarge,
            FailReason::Integrity => Self::Integrity,
            FailReason::Io => Self::Io,
            FailReason::Attempts => Self::Attempts,
            FailReason::Deadline => Self::Deadline,
        }
    }
}

impl From<Consistency> for proto::Consistency {
    fn from(consistency: Consistency) -> Self {
        match consistency {
            Consistency::Auto => Self::Auto,
            Consistency::Strict => Self::Strict,
        }
    }
}

impl From<Delivered> for proto::Delivered {
    fn from(delivered: Delivered) -> Self {
        match delivered {
            Delivered::Unchanged => Self::Unchanged,
            Delivered::Prefix => Self::Prefix,
        }
    }
}

impl From<Verdict> for proto::command_reply::Verdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accepted => Self::Accepted,
            Verdict::Busy => Self::Busy,
            Verdict::StaleEpoch => Self::StaleEpoch,
            Verdict::Conflict => Self::Conflict,
        }
    }
}

impl From<FromClient> for proto::ClientMessage {
    fn from(message: FromClient) -> Self {
        use proto::client_message::Body;
        let body = match message {
            FromClient::Hello(hello) => Some(Body::Hello(hello.into())),
            FromClient::Heartbeat { seq, progress } => {
                let each = |(attempt, bytes_sent): (AttemptId, u64)| proto::Progress {
                    attempt: Some(attempt.into()),
                    bytes_sent,
                };
                let progress = progress.into_iter().map(each).collect();
                Some(Body::Heartbeat(proto::Heartbeat { seq, progress }))
            }
            FromClient::Reply { attempt, verdict } => {
                let verdict = proto::command_reply::Verdict::from(verdict).into();
                Some(Body::Reply(proto::CommandReply { attempt: Some(attempt.into()), verdict }))
            }
            FromClient::Report(report) => Some(Body::Report(report.into())),
            FromClient::Goodbye { reason } => Some(Body::Goodbye(proto::Goodbye { reason })),
            FromClient::Unknown => None,
        };
        Self { body }
    }
}

impl From<Hello> for proto::Hello {
    fn from(hello: Hello) -> Self {
        Self {
            client_id: hello.client.into(),
            instance_id: Bytes::copy_from_slice(hello.instance.as_bytes()),
            protocol: PROTOCOL,
            jobs_max: hello.jobs_max,
            version: hello.version,
            host_name: hello.host_name,
            os: hello.os,
            allowed_roots: hello.allowed_roots,
            running: hello.running.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Report> for proto::AttemptReport {
    fn from(report: Report) -> Self {
        use proto::attempt_report::Outcome as Wire;
        let (outcome, reason) = match report.outcome {
            Outcome::Delivered => (Wire::Delivered, proto::FailReason::Unspecified),
            Outcome::Failed(reason) => (Wire::Failed, reason.into()),
            Outcome::Broken => (Wire::Broken, proto::FailReason::Unspecified),
            Outcome::Stopped => (Wire::Stopped, proto::FailReason::Unspecified),
        };
        Self {
            attempt: Some(report.attempt.into()),
            outcome: outcome.into(),
            reason: reason.into(),
            detail: report.detail,
        }
    }
}

impl From<FromServer> for proto::ServerMessage {
    fn from(message: FromServer) -> Self {
        use proto::server_message::Body;
        let body = match message {
            FromServer::Welcome { session, heartbeat, silence } => {
                Some(Body::Welcome(proto::Welcome {
                    session_epoch: session.0,
                    heartbeat_ms: millis(heartbeat),
                    silence_ms: millis(silence),
                }))
            }
            FromServer::HeartbeatAck { seq } => {
                Some(Body::HeartbeatAck(proto::HeartbeatAck { seq }))
            }
            FromServer::Download(command) => Some(Body::Download(command.into())),
            FromServer::Stop(attempt) => {
                Some(Body::Stop(proto::StopCommand { attempt: Some(attempt.into()) }))
            }
            FromServer::ReportAck(attempt) => {
                Some(Body::ReportAck(proto::ReportAck { attempt: Some(attempt.into()) }))
            }
            FromServer::Drain { reconnect_after } => {
                Some(Body::Drain(proto::Drain { reconnect_after_ms: millis(reconnect_after) }))
            }
            FromServer::Superseded { host_name, address, reconnect_after } => {
                let reconnect_after_ms = millis(reconnect_after);
                Some(Body::Superseded(proto::Superseded { host_name, address, reconnect_after_ms }))
            }
            FromServer::Unknown => None,
        };
        Self { body }
    }
}

impl From<Command> for proto::DownloadCommand {
    fn from(command: Command) -> Self {
        Self {
            attempt: Some(command.attempt.into()),
            path: command.path.ok().flatten().map(String::from).unwrap_or_default(),
            consistency: proto::Consistency::from(command.consistency).into(),
            size_max: command.size_max,
            resume: None,
        }
    }
}

impl From<Upload> for proto::UploadFileRequest {
    fn from(message: Upload) -> Self {
        use proto::upload_file_request::Body;
        let body = match message {
            Upload::Header(header) => Body::Header(proto::Header {
                attempt: Some(header.attempt.into()),
                instance_id: Bytes::copy_from_slice(header.instance.as_bytes()),
                file: 0,
                range: Some(proto::Range { offset: 0, length: header.size }),
                size: header.size,
                fingerprint: Some(header.fingerprint.into()),
                path: header.path,
            }),
            Upload::Chunk { offset, crc32c, data } => {
                Body::Chunk(proto::Chunk { offset, crc32c, data })
            }
            Upload::RangeEnd => Body::RangeEnd(proto::RangeEnd {}),
            Upload::Abort { reason, detail } => {
                let reason = proto::FailReason::from(reason).into();
                Body::Abort(proto::Abort { reason, detail })
            }
            Upload::Finish { size, finish, fingerprint } => Body::Finish(proto::Finish {
                size,
                digest: Bytes::copy_from_slice(finish.digest.as_bytes()),
                fingerprint: Some(fingerprint.into()),
                delivered: proto::Delivered::from(finish.delivered).into(),
            }),
        };
        Self { body: Some(body) }
    }
}

fn millis(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)
}
