//! From messages: everything is checked, bounded and clamped here, on either side of the wire.

use std::time::Duration;

use super::{
    Command, Explained, FromClient, FromServer, Header, Hello, Outcome, PROTOCOL, PathVerdict,
    Report, Resume, Upload, UploadProgress, Verdict, WireError,
};
use crate::{
    audit_head::AuditHead,
    chunk::{Prefix, Value},
    ids::{AttemptId, Digest, Epoch, InstanceId, SessionEpoch, bounded},
    limits,
    rate::Rate,
    transfer::{Consistency, Delivered, FailReason, Fingerprint, Finish, Hold},
    wire::proto,
};

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
                let at_most = limits::JOBS_MAX as usize + limits::JOBS_WAITING_MAX;
                let each = beat.progress.into_iter().take(at_most);
                let progress = each.map(|p| {
                    let (sent_bytes, throttled) = (p.bytes_sent, p.throttled);
                    Ok(UploadProgress { attempt: p.attempt.try_into()?, sent_bytes, throttled })
                });
                if beat.jobs_max == Some(0) {
                    return Err(WireError::Range("jobs_max"));
                }
                Self::Heartbeat {
                    seq: beat.seq,
                    progress: progress.collect::<Result<_, WireError>>()?,
                    jobs_max: beat.jobs_max.map(|jobs| jobs.min(limits::JOBS_MAX)),
                    audit_head: beat.audit_head.map(AuditHead::try_from).transpose()?,
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
            Body::Explanation(answer) => {
                let verdict = match answer.verdict() {
                    proto::PathVerdict::Unspecified => return Ok(Self::Unknown),
                    proto::PathVerdict::Allowed => PathVerdict::Allowed,
                    proto::PathVerdict::Denied => PathVerdict::Denied,
                    proto::PathVerdict::Failed => PathVerdict::Failed,
                };
                let rule = bounded(answer.rule, limits::LABEL_BYTES_MAX);
                let detail = bounded(answer.detail, limits::DETAIL_BYTES_MAX);
                let explained = Explained { verdict, rule, detail };
                Self::Explanation { question: answer.question, explained }
            }
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
        let digest = &hello.policy_digest;
        let policy_digest =
            if digest.is_empty() { None } else { Some(Digest::from_bytes(digest)?) };
        let at_most = limits::JOBS_MAX as usize + limits::JOBS_WAITING_MAX;
        let running = hello.running.into_iter().take(at_most);
        Ok(Self {
            client: hello.client_id.parse()?,
            instance: InstanceId::from_bytes(&hello.instance_id)?,
            jobs_max: hello.jobs_max.min(limits::JOBS_MAX),
            version: label(hello.version),
            host_name: label(hello.host_name),
            os: label(hello.os),
            allowed_roots: roots.map(|root| bounded(root, limits::PATH_BYTES_MAX)).collect(),
            policy_digest,
            audit_head: hello.audit_head.map(AuditHead::try_from).transpose()?,
            running: running.map(|attempt| Some(attempt).try_into()).collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<proto::AuditHead> for AuditHead {
    type Error = WireError;

    fn try_from(head: proto::AuditHead) -> Result<Self, WireError> {
        Ok(Self { seq: head.seq, hash: Digest::from_bytes(&head.hash)? })
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
            // What a later client holds back for is worth another attempt.
            Wire::Held => held(report.hold(), report.retry_after_ms)
                .map_or(Outcome::Broken, |(hold, pause)| Outcome::Held(hold, pause)),
        };
        let detail = bounded(report.detail, limits::DETAIL_BYTES_MAX);
        Ok(Self { attempt: report.attempt.try_into()?, outcome, detail })
    }
}

fn held(hold: proto::Hold, retry_after_ms: u32) -> Option<(Hold, Duration)> {
    let hold = match hold {
        proto::Hold::Unspecified => return None,
        proto::Hold::PolicyWindow => Hold::PolicyWindow,
        proto::Hold::BytesPerDay => Hold::BytesPerDay,
    };
    let pause = Duration::from_millis(retry_after_ms.into());
    Some((hold, pause.clamp(limits::HOLD_MIN, limits::HOLD_MAX)))
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
            Body::Explain(ask) => Self::Explain {
                question: ask.question,
                path: ask.path.parse(),
                operator: ask.operator.parse().ok(),
            },
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
        // A cap that is out of bounds is no reason to have none.
        let rate_max = command.max_rate.clamp(limits::RATE_MIN_BYTES, limits::RATE_MAX_BYTES);
        let rate_max = Rate::try_from(rate_max).ok().filter(|_| command.max_rate > 0);
        // Nor is one that cannot be: everything may always be sent.
        let resume = command.resume.as_ref().and_then(resume);
        // A signature that cannot be one is none.
        let signature = command.signature.as_ref().and_then(|signed| signed.try_into().ok());
        // A name that cannot be one is none.
        let operator = command.operator.parse().ok();
        let attempt = command.attempt.try_into()?;
        Ok(Self { attempt, path, consistency, size_max, rate_max, signature, resume, operator })
    }
}

/// Returns what the server keeps, if it is what this version goes on with: one range, from zero.
fn resume(message: &proto::Resume) -> Option<Resume> {
    let fingerprint = message.fingerprint?.into();
    let [range] = message.ranges.as_slice() else { return None };
    let kept = range.range.as_ref().filter(|range| range.offset == 0)?.length;
    let values = range.subtree_values.iter().map(|value| Value::try_from(value.as_ref()).ok());
    let kept = Prefix::from_values(kept, values.collect::<Option<_>>()?).ok()?;
    (!kept.is_empty()).then_some(Resume { fingerprint, kept })
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
            Body::Abort(abort) => match held(abort.hold(), abort.retry_after_ms) {
                Some((hold, pause)) => Self::Held(hold, pause),
                None => Self::Abort {
                    reason: fail_reason(abort.reason()).unwrap_or(FailReason::Io),
                    detail: bounded(abort.detail, limits::DETAIL_BYTES_MAX),
                },
            },
            Body::Finish(finish) => {
                let delivered = match finish.delivered() {
                    proto::Delivered::Unspecified => return Err(WireError::Missing("delivered")),
                    proto::Delivered::Unchanged => Delivered::Unchanged,
                    proto::Delivered::Prefix => Delivered::Prefix,
                };
                Self::Finish {
                    size: finish.size,
                    finish: Finish {
                        digest: Digest::from_bytes(&finish.digest)?,
                        delivered,
                        trusted_bytes: finish.trusted_bytes,
                    },
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
        // Several files in a call, and other ranges than the rest of the file, are foreseen.
        if header.file != 0 {
            return Err(WireError::Range("file"));
        }
        let is_rest = range.offset.checked_add(range.length) == Some(header.size);
        let is_begun = range.offset > 0;
        let is_aligned = range.offset.is_multiple_of(limits::CHUNK_BYTES as u64);
        if !is_rest || !is_aligned || (is_begun && range.length == 0) {
            return Err(WireError::Range("range"));
        }
        Ok(Self {
            attempt: header.attempt.try_into()?,
            instance: InstanceId::from_bytes(&header.instance_id)?,
            offset: range.offset,
            size: header.size,
            fingerprint: header.fingerprint.ok_or(WireError::Missing("fingerprint"))?.into(),
            path: bounded(header.path, limits::PATH_BYTES_MAX),
            restart_detail: bounded(header.restart_detail, limits::DETAIL_BYTES_MAX),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TransferId;

    #[test]
    fn a_cap_that_is_out_of_bounds_is_one_all_the_same() {
        let rate = |max_rate| {
            let attempt = AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) };
            let attempt = Some(attempt.into());
            let command = proto::DownloadCommand { attempt, max_rate, ..Default::default() };
            Command::try_from(command).expect("a command").rate_max.map(Rate::bytes_per_second)
        };
        assert_eq!(rate(0), None);
        assert_eq!(rate(1), Some(limits::RATE_MIN_BYTES));
        assert_eq!(rate(5_000_000), Some(5_000_000));
        assert_eq!(rate(u64::MAX), Some(limits::RATE_MAX_BYTES));
    }

    #[test]
    fn a_client_takes_at_least_one_command_and_never_too_many() {
        let says = |jobs_max| {
            let beat = proto::Heartbeat { jobs_max, ..Default::default() };
            let body = Some(proto::client_message::Body::Heartbeat(beat));
            FromClient::try_from(proto::ClientMessage { body })
        };
        let heard = |jobs_max| FromClient::Heartbeat {
            seq: 0,
            progress: Vec::new(),
            jobs_max,
            audit_head: None,
        };
        assert_eq!(says(None), Ok(heard(None)));
        assert_eq!(says(Some(7)), Ok(heard(Some(7))));
        assert_eq!(says(Some(u32::MAX)), Ok(heard(Some(limits::JOBS_MAX))));
        assert_eq!(says(Some(0)), Err(WireError::Range("jobs_max")));
    }
}
