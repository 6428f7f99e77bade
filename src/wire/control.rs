//! What operators and the server say to each other: their requests, checked, as our types, and our
//! views as messages.

use std::time::Duration;

use super::{
    proto,
    session::{Explained, WireError, consistency},
    signed::SignedRequest,
};
use crate::{
    ids::{RemotePath, TransferId, UnixMs},
    limits,
    rate::Rate,
    server::{
        coordinator::WatchQuery,
        store::TransferFilter,
        view::{ClientView, Presence, TransferView, WatchItem, WatchKind},
    },
    transfer::{Content, Failure, Request, Signed, State, Waiting, WaitingReason},
};

// === From messages ===

impl TryFrom<proto::TriggerDownloadRequest> for Request {
    type Error = WireError;

    fn try_from(message: proto::TriggerDownloadRequest) -> Result<Self, WireError> {
        // A later version's value must not be taken for the default: it may ask for more.
        let asked = proto::Consistency::try_from(message.consistency)
            .map_err(|_| WireError::Range("consistency"))?;
        let deadline = match message.deadline {
            Some(wait) => {
                let wait = Duration::try_from(wait).map_err(|_| WireError::Range("deadline"))?;
                deadline(wait)?
            }
            None => limits::DEADLINE,
        };
        let signed = signed(&message)?;
        let request = Self {
            client: message.client_id.parse()?,
            operator: None,
            path: path(&message.path)?,
            request_id: optional(&message.request_id)?,
            consistency: consistency(asked),
            rate_max: Rate::from_number(message.max_rate)?,
            signed,
            deadline,
        };
        check_signed(&request)?;
        Ok(request)
    }
}

/// A signature comes with the id that its signer chose, and no id without one.
fn signed(message: &proto::TriggerDownloadRequest) -> Result<Option<Signed>, WireError> {
    match (message.transfer_id.as_str(), &message.signature) {
        ("", None) => Ok(None),
        ("", Some(_)) => Err(WireError::Missing("transfer_id")),
        (_, None) => Err(WireError::Missing("signature")),
        (id, Some(signature)) => {
            let signature = signature.try_into().map_err(|_| WireError::Range("signature"))?;
            Ok(Some(Signed { transfer: TransferId::chosen(id)?, signature }))
        }
    }
}

/// What was signed must be what is asked for: the client, which alone can verify it, would refuse
/// anything else, and later.
fn check_signed(request: &Request) -> Result<(), WireError> {
    let Some(Signed { transfer, signature }) = &request.signed else { return Ok(()) };
    let Request { client, path, consistency, rate_max, .. } = request;
    let says = SignedRequest::decode(signature.request())?;
    match says.differs(*transfer, client, path.as_ref(), *consistency, *rate_max) {
        None => Ok(()),
        Some(what) => Err(WireError::SignedOther(what)),
    }
}

/// Returns which transfers a list is of.
pub fn filter(client_id: &str, state: i32) -> Result<TransferFilter, WireError> {
    let state = proto::State::try_from(state).map_err(|_| WireError::Range("state"))?;
    let states = State::ALL.into_iter().filter(|&each| proto::State::from(each) == state);
    Ok(TransferFilter { client: optional(client_id)?, states: states.collect() })
}

impl TryFrom<proto::WatchTransfersRequest> for WatchQuery {
    type Error = WireError;

    fn try_from(message: proto::WatchTransfersRequest) -> Result<Self, WireError> {
        let token = message.resume_token;
        Ok(Self {
            scope: None,
            transfer: optional(&message.transfer_id)?,
            client: optional(&message.client_id)?,
            resume_token: (!token.is_empty()).then_some(token),
        })
    }
}

/// Returns the path asked for; `None`, for the default file, if it is empty.
pub fn path(text: &str) -> Result<Option<RemotePath>, WireError> {
    optional(text)
}

/// Returns how long a transfer may take, if it is more than nothing and no longer than the longest.
pub fn deadline(wait: Duration) -> Result<Duration, WireError> {
    // The store counts milliseconds.
    if wait < Duration::from_millis(1) || wait > limits::DEADLINE_MAX {
        return Err(WireError::Range("deadline"));
    }
    Ok(wait)
}

/// Protobuf has no absent text: an empty one stands for it.
fn optional<T>(text: &str) -> Result<Option<T>, WireError>
where
    T: std::str::FromStr,
    WireError: From<T::Err>,
{
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

// === To messages ===

impl From<TransferView> for proto::Transfer {
    fn from(view: TransferView) -> Self {
        let duration = view.duration().map(wire_duration);
        let failure = view.failure().map(Into::into);
        let proof = view.proof();
        let TransferView { transfer, waiting, done_bytes, received_bytes, rate, location } = view;
        let delivered = proof.map_or(proto::Delivered::Unspecified, |f| f.delivered.into());
        let file = transfer.file;
        Self {
            id: transfer.id.to_string(),
            client_id: transfer.client.into(),
            path: transfer.path.map(String::from).unwrap_or_default(),
            state: proto::State::from(transfer.state).into(),
            revision: transfer.revision,
            epoch: transfer.epoch.0,
            waiting: waiting.map(Into::into),
            failure,
            size: file.as_ref().map(|file| file.size_bytes),
            bytes_done: done_bytes,
            bytes_received: received_bytes,
            digest: proof.map(|finish| finish.digest.to_string()).unwrap_or_default(),
            consistency: proto::Consistency::from(transfer.consistency).into(),
            delivered: delivered.into(),
            fingerprint: file.as_ref().map(|file| file.fingerprint.into()),
            source_path: file.map(|file| file.path).unwrap_or_default(),
            location: location.map(|at| at.to_string_lossy().into_owned()).unwrap_or_default(),
            content_deleted: transfer.content == Content::Deleted,
            attempts: transfer.attempts,
            create_time: Some(timestamp(transfer.created)),
            update_time: Some(timestamp(transfer.updated)),
            deadline: Some(timestamp(transfer.deadline)),
            start_time: transfer.started.map(timestamp),
            end_time: transfer.ended.map(timestamp),
            duration,
            rate: rate.unwrap_or_default(),
            request_id: transfer.request_id.map(String::from).unwrap_or_default(),
            max_rate: transfer.rate_max.map(Rate::bytes_per_second).unwrap_or_default(),
            bytes_kept: transfer.kept_bytes,
            bytes_trusted: proof.map(|finish| finish.trusted_bytes).unwrap_or_default(),
            restart_detail: transfer.restart_detail.unwrap_or_default(),
            operator: transfer.operator.map(String::from).unwrap_or_default(),
        }
    }
}

impl From<ClientView> for proto::Client {
    fn from(view: ClientView) -> Self {
        let ClientView { record, presence, last_seen, connected_since } = view;
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        // The instance stays here: whoever knows it may upload as the client.
        let opening = record.opening;
        Self {
            id: opening.client.into(),
            presence: proto::Presence::from(presence).into(),
            last_seen: Some(timestamp(last_seen)),
            connected_since: connected_since.map(timestamp),
            first_seen: Some(timestamp(record.first_seen)),
            host_name: opening.host_name,
            os: opening.os,
            version: opening.version,
            address: opening.address,
            allowed_roots: opening.allowed_roots,
            policy_digest: opening.policy_digest.map(|d| d.to_string()).unwrap_or_default(),
            jobs_max: opening.jobs_max,
            active_transfers: count(record.active_transfers),
            queued_transfers: count(record.queued_transfers),
            session_epoch: record.session_epoch.0,
            audit_head: record.audit_head.map(|head| head.to_string()).unwrap_or_default(),
            audit_back_time: record.audit_back.map(timestamp),
        }
    }
}

impl From<Explained> for proto::ExplainPathResponse {
    fn from(explained: Explained) -> Self {
        let Explained { verdict, rule, detail } = explained;
        Self { verdict: proto::PathVerdict::from(verdict).into(), rule, detail }
    }
}

impl From<WatchItem> for proto::WatchTransfersResponse {
    fn from(item: WatchItem) -> Self {
        use proto::watch_transfers_response::Kind;
        let kind = match item.kind {
            WatchKind::Current => Kind::Current,
            WatchKind::Changed => Kind::Changed,
            WatchKind::Progress => Kind::Progress,
        };
        Self { kind: kind.into(), transfer: Some(item.transfer.into()), resume_token: item.token }
    }
}

impl From<&Failure> for proto::Failure {
    fn from(failure: &Failure) -> Self {
        let last = failure.last_reason.map_or(proto::FailReason::Unspecified, Into::into);
        Self {
            reason: proto::FailReason::from(failure.reason).into(),
            last_reason: last.into(),
            detail: failure.detail.clone(),
        }
    }
}

impl From<Waiting> for proto::Waiting {
    fn from(waiting: Waiting) -> Self {
        Self {
            reason: proto::WaitingReason::from(waiting.reason).into(),
            since: Some(timestamp(waiting.since)),
            next_attempt_time: waiting.next_attempt.map(timestamp),
        }
    }
}

impl From<State> for proto::State {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Offered => Self::Offered,
            State::Receiving => Self::Receiving,
            State::Verifying => Self::Verifying,
            State::Interrupted => Self::Interrupted,
            State::Complete => Self::Complete,
            State::Failed => Self::Failed,
            State::Cancelled => Self::Cancelled,
        }
    }
}

impl From<WaitingReason> for proto::WaitingReason {
    fn from(reason: WaitingReason) -> Self {
        match reason {
            WaitingReason::ClientOffline => Self::ClientOffline,
            WaitingReason::ClientBusy => Self::ClientBusy,
            WaitingReason::ServerBusy => Self::ServerBusy,
            WaitingReason::Backoff => Self::Backoff,
            WaitingReason::ServerDiskLow => Self::ServerDiskLow,
            WaitingReason::Throttled => Self::Throttled,
            WaitingReason::Stalled => Self::Stalled,
            WaitingReason::Quota => Self::Quota,
            WaitingReason::Due => Self::Due,
            WaitingReason::Paused => Self::Paused,
            WaitingReason::ClientPolicyWindow => Self::ClientPolicyWindow,
            WaitingReason::Draining => Self::Draining,
        }
    }
}

impl From<Presence> for proto::Presence {
    fn from(presence: Presence) -> Self {
        match presence {
            Presence::Online => Self::Online,
            Presence::Stale => Self::Stale,
            Presence::Offline => Self::Offline,
        }
    }
}

pub(crate) fn timestamp(at: UnixMs) -> prost_types::Timestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1000) * 1_000_000);
    prost_types::Timestamp {
        seconds: at.0.div_euclid(1000),
        nanos: nanos.expect("less than a second of nanoseconds fits"),
    }
}

fn wire_duration(wait: Duration) -> prost_types::Duration {
    let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(wait.subsec_nanos());
    let nanos = nanos.expect("less than a second of nanoseconds fits");
    prost_types::Duration { seconds, nanos }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::IdError,
        rate::RateError,
        server::view::samples,
        transfer::{Consistency, FailReason},
    };

    fn ask() -> proto::TriggerDownloadRequest {
        proto::TriggerDownloadRequest { client_id: "client-1".to_owned(), ..Default::default() }
    }

    fn wait(seconds: i64, nanos: i32) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos }
    }

    #[test]
    fn a_client_id_alone_asks_for_the_default_file() {
        let request = Request::try_from(ask()).expect("valid");
        assert_eq!(request.client.as_str(), "client-1");
        assert_eq!(request.path, None);
        assert_eq!(request.request_id, None);
        assert_eq!(request.consistency, Consistency::Auto);
        assert_eq!((request.deadline, request.rate_max), (limits::DEADLINE, None));
        let message = proto::TriggerDownloadRequest { max_rate: 64_000, ..ask() };
        let request = Request::try_from(message).expect("valid");
        assert_eq!(request.rate_max.map(Rate::bytes_per_second), Some(64_000));
    }

    #[test]
    fn a_request_is_refused_for_what_is_wrong_with_it() {
        let refused = |message| Request::try_from(message).expect_err("refused");
        let message = proto::TriggerDownloadRequest { client_id: "../x".to_owned(), ..ask() };
        assert_eq!(refused(message), WireError::Id(IdError::ClientId));
        let message = proto::TriggerDownloadRequest { path: "a/b".to_owned(), ..ask() };
        assert_eq!(refused(message), WireError::Id(IdError::PathRelative));
        let message = proto::TriggerDownloadRequest { path: "/a/../b".to_owned(), ..ask() };
        assert_eq!(refused(message), WireError::Id(IdError::PathParent));
        let message = proto::TriggerDownloadRequest { request_id: "x".repeat(129), ..ask() };
        assert_eq!(refused(message), WireError::Id(IdError::RequestId));
        let message = proto::TriggerDownloadRequest { consistency: 9, ..ask() };
        assert_eq!(refused(message), WireError::Range("consistency"));
        let message = proto::TriggerDownloadRequest { max_rate: 63_999, ..ask() };
        assert_eq!(refused(message), WireError::Rate(RateError::TooSmall));
        for deadline in [wait(0, 0), wait(-1, 0), wait(0, 999_999), wait(i64::MAX, 0)] {
            let message = proto::TriggerDownloadRequest { deadline: Some(deadline), ..ask() };
            assert_eq!(refused(message), WireError::Range("deadline"), "{deadline:?}");
        }
        let message =
            proto::TriggerDownloadRequest { deadline: Some(wait(1, 500_000_000)), ..ask() };
        let request = Request::try_from(message).expect("valid");
        assert_eq!(request.deadline, Duration::from_millis(1500));
    }

    #[test]
    fn a_filter_names_one_state_or_none() {
        assert_eq!(filter("", 0), Ok(TransferFilter::default()));
        for state in State::ALL {
            let got = filter("c", proto::State::from(state).into()).expect("valid");
            assert_eq!(got.states, [state]);
            assert_eq!(got.client.map(String::from), Some("c".to_owned()));
        }
        assert_eq!(filter("", 99), Err(WireError::Range("state")));
        assert_eq!(filter("-", 0), Err(WireError::Id(IdError::ClientId)));
    }

    #[test]
    fn a_complete_transfer_shows_its_proof() {
        let view = samples::complete();
        let message = proto::Transfer::from(view.clone());
        assert_eq!(message.state(), proto::State::Complete);
        assert_eq!(message.size, Some(1_048_577));
        assert_eq!(message.digest, blake3::hash(b"x").to_hex().as_str());
        assert_eq!(message.delivered(), proto::Delivered::Unchanged);
        assert_eq!(message.duration, Some(wait(1, 500_000_000)));
        assert_eq!(message.end_time.map(|t| (t.seconds, t.nanos)), Some((1_700_000_002, 0)));
        assert_eq!(message.create_time.map(|t| t.nanos), Some(123_000_000));
        assert_eq!(message.failure, None);
        assert_eq!(message.waiting, None);
        assert_eq!((message.rate, message.max_rate), (699_051, 5_000_000));
        assert_eq!(message.operator, "alice");
    }

    #[test]
    fn an_unproved_digest_is_not_shown() {
        let mut view = samples::complete();
        view.transfer.state = State::Verifying;
        let message = proto::Transfer::from(view);
        assert_eq!(message.digest, "");
        assert_eq!(message.delivered(), proto::Delivered::Unspecified);
        assert_eq!(message.duration, None);
    }

    #[test]
    fn an_interrupted_transfer_says_why_and_when_next() {
        let message = proto::Transfer::from(samples::interrupted());
        let waiting = message.waiting.expect("it waits");
        assert_eq!(waiting.reason(), proto::WaitingReason::Backoff);
        assert_eq!(waiting.next_attempt_time.map(|t| t.seconds), Some(1_700_000_010));
        let failure = message.failure.expect("it broke");
        assert_eq!(failure.reason(), proto::FailReason::from(FailReason::Io));
        assert_eq!(failure.last_reason(), proto::FailReason::Unspecified);
    }

    #[test]
    fn a_client_is_shown_without_its_instance() {
        let view = samples::client();
        let secret = view.record.opening.instance;
        let message = proto::Client::from(view);
        assert_eq!(message.presence(), proto::Presence::Online);
        assert_eq!(message.session_epoch, 7);
        assert_eq!(message.active_transfers, 1);
        let shown = format!("{message:?}");
        assert!(!shown.contains(&secret.short()), "{shown}");
    }

    #[test]
    fn times_before_1970_keep_positive_nanos() {
        let at = timestamp(UnixMs(-1));
        assert_eq!((at.seconds, at.nanos), (-1, 999_000_000));
    }
}
