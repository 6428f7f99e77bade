//! To messages.

use std::time::Duration;

use bytes::Bytes;

use super::{
    Command, Explained, FromClient, FromServer, Hello, Outcome, PROTOCOL, PathVerdict, Report,
    Resume, Upload, UploadProgress, Verdict,
};
use crate::{
    audit_head::AuditHead,
    ids::AttemptId,
    rate::Rate,
    transfer::{Consistency, Delivered, FailReason, Fingerprint, Hold},
    wire::proto,
};

impl From<AttemptId> for proto::Attempt {
    fn from(id: AttemptId) -> Self {
        Self { transfer_id: id.transfer.to_string(), epoch: id.epoch.0 }
    }
}

impl From<AuditHead> for proto::AuditHead {
    fn from(head: AuditHead) -> Self {
        Self { seq: head.seq, hash: Bytes::copy_from_slice(head.hash.as_bytes()) }
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
            FromClient::Heartbeat { seq, progress, jobs_max, audit_head } => {
                let progress = progress.into_iter().map(Into::into).collect();
                let audit_head = audit_head.map(Into::into);
                Some(Body::Heartbeat(proto::Heartbeat { seq, progress, jobs_max, audit_head }))
            }
            FromClient::Reply { attempt, verdict } => {
                let verdict = proto::command_reply::Verdict::from(verdict).into();
                Some(Body::Reply(proto::CommandReply { attempt: Some(attempt.into()), verdict }))
            }
            FromClient::Report(report) => Some(Body::Report(report.into())),
            FromClient::Explanation { question, explained } => {
                let verdict = proto::PathVerdict::from(explained.verdict).into();
                let Explained { rule, detail, .. } = explained;
                Some(Body::Explanation(proto::Explanation { question, verdict, rule, detail }))
            }
            FromClient::Goodbye { reason } => Some(Body::Goodbye(proto::Goodbye { reason })),
            FromClient::Unknown => None,
        };
        Self { body }
    }
}

impl From<UploadProgress> for proto::Progress {
    fn from(progress: UploadProgress) -> Self {
        let UploadProgress { attempt, sent_bytes, throttled } = progress;
        Self { attempt: Some(attempt.into()), bytes_sent: sent_bytes, throttled }
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
            policy_digest: hello
                .policy_digest
                .map(|digest| Bytes::copy_from_slice(digest.as_bytes()))
                .unwrap_or_default(),
            audit_head: hello.audit_head.map(Into::into),
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
            Outcome::Held(..) => (Wire::Held, proto::FailReason::Unspecified),
        };
        let (hold, retry_after_ms) = match report.outcome {
            Outcome::Held(hold, pause) => (hold.into(), millis(pause)),
            _ => (proto::Hold::Unspecified, 0),
        };
        Self {
            attempt: Some(report.attempt.into()),
            outcome: outcome.into(),
            reason: reason.into(),
            detail: report.detail,
            hold: hold.into(),
            retry_after_ms,
        }
    }
}

impl From<PathVerdict> for proto::PathVerdict {
    fn from(verdict: PathVerdict) -> Self {
        match verdict {
            PathVerdict::Allowed => Self::Allowed,
            PathVerdict::Denied => Self::Denied,
            PathVerdict::Failed => Self::Failed,
        }
    }
}

impl From<Hold> for proto::Hold {
    fn from(hold: Hold) -> Self {
        match hold {
            Hold::PolicyWindow => Self::PolicyWindow,
            Hold::BytesPerDay => Self::BytesPerDay,
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
            FromServer::Explain { question, path, operator } => {
                // Ours is a path; what is none is sent as an empty one, which nobody allows.
                let path = path.map(String::from).unwrap_or_default();
                let operator = operator.map(String::from).unwrap_or_default();
                Some(Body::Explain(proto::ExplainCommand { question, path, operator }))
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
            resume: command.resume.map(Into::into),
            max_rate: command.rate_max.map(Rate::bytes_per_second).unwrap_or_default(),
            signature: command.signature.as_ref().map(Into::into),
            operator: command.operator.map(String::from).unwrap_or_default(),
        }
    }
}

impl From<Resume> for proto::Resume {
    fn from(resume: Resume) -> Self {
        let values = resume.kept.values().iter().map(|value| Bytes::copy_from_slice(value));
        let range = proto::KeptRange {
            range: Some(proto::Range { offset: 0, length: resume.kept.bytes() }),
            subtree_values: values.collect(),
        };
        Self { fingerprint: Some(resume.fingerprint.into()), ranges: vec![range] }
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
                range: Some(proto::Range {
                    offset: header.offset,
                    length: header.size - header.offset,
                }),
                size: header.size,
                fingerprint: Some(header.fingerprint.into()),
                path: header.path,
                restart_detail: header.restart_detail,
            }),
            Upload::Chunk { offset, crc32c, data } => {
                Body::Chunk(proto::Chunk { offset, crc32c, data })
            }
            Upload::RangeEnd => Body::RangeEnd(proto::RangeEnd {}),
            Upload::Abort { reason, detail } => {
                let reason = proto::FailReason::from(reason).into();
                Body::Abort(proto::Abort { reason, detail, ..Default::default() })
            }
            Upload::Held(hold, pause) => Body::Abort(proto::Abort {
                reason: proto::FailReason::Io.into(),
                detail: "the client's policy holds it back".to_owned(),
                hold: proto::Hold::from(hold).into(),
                retry_after_ms: millis(pause),
            }),
            Upload::Finish { size, finish, fingerprint } => Body::Finish(proto::Finish {
                size,
                digest: Bytes::copy_from_slice(finish.digest.as_bytes()),
                fingerprint: Some(fingerprint.into()),
                delivered: proto::Delivered::from(finish.delivered).into(),
                trusted_bytes: finish.trusted_bytes,
            }),
        };
        Self { body: Some(body) }
    }
}

fn millis(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)
}
