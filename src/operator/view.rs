//! Transfers and clients as JSON: the names of the server's HTTP answers, whatever the names of the
//! protocol.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use serde::Serialize;

use crate::wire::proto;

/// The last second that RFC 3339 can write.
const UNIX_SECONDS_MAX: i64 = 253_402_300_799;

#[derive(Debug, Serialize)]
pub(super) struct TransferView<'a> {
    id: &'a str,
    client_id: &'a str,
    path: Option<&'a str>,
    state: String,
    revision: u64,
    epoch: u64,
    waiting: Option<WaitingView>,
    failure: Option<FailureView<'a>>,
    size_bytes: Option<u64>,
    done_bytes: u64,
    received_bytes: u64,
    kept_bytes: u64,
    blake3: Option<&'a str>,
    consistency: String,
    delivered: Option<String>,
    trusted_bytes: Option<u64>,
    restart_detail: Option<&'a str>,
    fingerprint: Option<FingerprintView>,
    source_path: Option<&'a str>,
    location: Option<&'a str>,
    content_deleted: bool,
    attempts: u32,
    create_time: Option<String>,
    update_time: Option<String>,
    deadline: Option<String>,
    start_time: Option<String>,
    end_time: Option<String>,
    duration_ms: Option<u64>,
    rate_bytes_per_second: Option<u64>,
    max_rate_bytes_per_second: Option<u64>,
    request_id: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct WaitingView {
    reason: String,
    since: Option<String>,
    next_attempt_time: Option<String>,
}

#[derive(Debug, Serialize)]
struct FailureView<'a> {
    reason: String,
    last_reason: Option<String>,
    detail: &'a str,
}

#[derive(Debug, Serialize)]
struct FingerprintView {
    device: u64,
    inode: u64,
    size_bytes: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

#[derive(Debug, Serialize)]
pub(super) struct ClientView<'a> {
    id: &'a str,
    presence: String,
    last_seen: Option<String>,
    connected_since: Option<String>,
    first_seen: Option<String>,
    host_name: &'a str,
    os: &'a str,
    version: &'a str,
    address: &'a str,
    allowed_roots: &'a [String],
    policy_digest: Option<&'a str>,
    jobs_max: u32,
    active_transfers: u32,
    queued_transfers: u32,
    session_epoch: u64,
    audit_head: Option<&'a str>,
    audit_back_time: Option<String>,
}

/// A transfer, and what made it worth a line.
#[derive(Debug, Serialize)]
pub(super) struct EventView<'a> {
    pub(super) event: &'static str,
    #[serde(flatten)]
    pub(super) transfer: TransferView<'a>,
    /// Where a copy was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) saved_to: Option<String>,
}

impl<'a> EventView<'a> {
    pub(super) fn new(event: &'static str, transfer: &'a proto::Transfer) -> Self {
        Self { event, transfer: transfer.into(), saved_to: None }
    }
}

impl<'a> From<&'a proto::Transfer> for TransferView<'a> {
    fn from(t: &'a proto::Transfer) -> Self {
        Self {
            id: &t.id,
            client_id: &t.client_id,
            path: some(&t.path),
            state: state(t.state),
            revision: t.revision,
            epoch: t.epoch,
            waiting: t.waiting.as_ref().map(WaitingView::from),
            failure: t.failure.as_ref().map(FailureView::from),
            size_bytes: t.size,
            done_bytes: t.bytes_done,
            received_bytes: t.bytes_received,
            kept_bytes: t.bytes_kept,
            blake3: some(&t.digest),
            consistency: consistency(t.consistency),
            delivered: delivered(t.delivered),
            trusted_bytes: (t.state() == proto::State::Complete).then_some(t.bytes_trusted),
            restart_detail: some(&t.restart_detail),
            fingerprint: t.fingerprint.as_ref().map(FingerprintView::from),
            source_path: some(&t.source_path),
            location: some(&t.location),
            content_deleted: t.content_deleted,
            attempts: t.attempts,
            create_time: rfc3339(t.create_time.as_ref()),
            update_time: rfc3339(t.update_time.as_ref()),
            deadline: rfc3339(t.deadline.as_ref()),
            start_time: rfc3339(t.start_time.as_ref()),
            end_time: rfc3339(t.end_time.as_ref()),
            duration_ms: duration(t).map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            rate_bytes_per_second: (t.rate > 0).then_some(t.rate),
            max_rate_bytes_per_second: (t.max_rate > 0).then_some(t.max_rate),
            request_id: some(&t.request_id),
        }
    }
}

impl From<&proto::Waiting> for WaitingView {
    fn from(waiting: &proto::Waiting) -> Self {
        Self {
            reason: waiting_reason(waiting.reason),
            since: rfc3339(waiting.since.as_ref()),
            next_attempt_time: rfc3339(waiting.next_attempt_time.as_ref()),
        }
    }
}

impl<'a> From<&'a proto::Failure> for FailureView<'a> {
    fn from(failure: &'a proto::Failure) -> Self {
        let last = (failure.last_reason != 0).then(|| fail_reason(failure.last_reason));
        Self { reason: fail_reason(failure.reason), last_reason: last, detail: &failure.detail }
    }
}

impl From<&proto::Fingerprint> for FingerprintView {
    fn from(f: &proto::Fingerprint) -> Self {
        Self {
            device: f.device,
            inode: f.inode,
            size_bytes: f.size,
            mtime_ns: f.mtime_ns,
            ctime_ns: f.ctime_ns,
        }
    }
}

impl<'a> From<&'a proto::Client> for ClientView<'a> {
    fn from(c: &'a proto::Client) -> Self {
        Self {
            id: &c.id,
            presence: presence(c.presence),
            last_seen: rfc3339(c.last_seen.as_ref()),
            connected_since: rfc3339(c.connected_since.as_ref()),
            first_seen: rfc3339(c.first_seen.as_ref()),
            host_name: &c.host_name,
            os: &c.os,
            version: &c.version,
            address: &c.address,
            allowed_roots: &c.allowed_roots,
            policy_digest: Some(c.policy_digest.as_str()).filter(|digest| !digest.is_empty()),
            jobs_max: c.jobs_max,
            active_transfers: c.active_transfers,
            queued_transfers: c.queued_transfers,
            session_epoch: c.session_epoch,
            audit_head: Some(c.audit_head.as_str()).filter(|head| !head.is_empty()),
            audit_back_time: rfc3339(c.audit_back_time.as_ref()),
        }
    }
}

/// Returns the name of a state, as `COMPLETE`.
pub(super) fn state(number: i32) -> String {
    name(number, "STATE_", proto::State::try_from(number).map(|s| s.as_str_name()))
}

pub(super) fn waiting_reason(number: i32) -> String {
    let known = proto::WaitingReason::try_from(number).map(|r| r.as_str_name());
    name(number, "WAITING_REASON_", known)
}

pub(super) fn fail_reason(number: i32) -> String {
    name(number, "FAIL_REASON_", proto::FailReason::try_from(number).map(|r| r.as_str_name()))
}

pub(super) fn presence(number: i32) -> String {
    name(number, "PRESENCE_", proto::Presence::try_from(number).map(|p| p.as_str_name()))
}

fn delivered(number: i32) -> Option<String> {
    let known = proto::Delivered::try_from(number).map(|d| d.as_str_name());
    (number != 0).then(|| name(number, "DELIVERED_", known))
}

/// Unspecified is AUTO.
fn consistency(number: i32) -> String {
    let number = if number == 0 { proto::Consistency::Auto.into() } else { number };
    name(number, "CONSISTENCY_", proto::Consistency::try_from(number).map(|c| c.as_str_name()))
}

/// A newer server may know more names than we do: those are numbers.
fn name<E>(number: i32, prefix: &str, known: Result<&'static str, E>) -> String {
    known.map_or_else(
        |_| format!("UNKNOWN_{number}"),
        |name| name.strip_prefix(prefix).unwrap_or(name).to_owned(),
    )
}

fn some(text: &str) -> Option<&str> {
    if text.is_empty() { None } else { Some(text) }
}

/// Returns a moment as RFC 3339 in UTC; nothing for a moment that it cannot write.
pub(super) fn rfc3339(at: Option<&Timestamp>) -> Option<String> {
    moment(at).map(|at| humantime::format_rfc3339_millis(at).to_string())
}

/// Returns a moment that was checked: a peer's number can be anything.
pub(super) fn moment(at: Option<&Timestamp>) -> Option<SystemTime> {
    let at = at?;
    let seconds = u64::try_from(at.seconds).ok().filter(|_| at.seconds <= UNIX_SECONDS_MAX)?;
    let nanos = u32::try_from(at.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

/// Returns how long it took, with COMPLETE.
pub(super) fn duration(transfer: &proto::Transfer) -> Option<Duration> {
    Duration::try_from(transfer.duration?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_names_of_the_contract() {
        let transfer = proto::Transfer {
            id: "t".into(),
            state: proto::State::Queued.into(),
            create_time: Some(Timestamp { seconds: 1_700_000_000, nanos: 5_000_000 }),
            duration: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            waiting: Some(proto::Waiting {
                reason: proto::WaitingReason::ClientOffline.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let json = serde_json::to_value(TransferView::from(&transfer)).expect("JSON");
        let names: Vec<&str> =
            json.as_object().expect("object").keys().map(String::as_str).collect();
        let mut contract = "id client_id path state revision epoch waiting failure size_bytes \
            done_bytes received_bytes kept_bytes blake3 consistency delivered trusted_bytes \
            restart_detail fingerprint source_path \
            location content_deleted attempts create_time update_time deadline start_time \
            end_time duration_ms rate_bytes_per_second max_rate_bytes_per_second request_id"
            .split_whitespace()
            .collect::<Vec<_>>();
        contract.sort_unstable();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, contract);
        assert_eq!(json["state"], "QUEUED");
        assert_eq!(json["consistency"], "AUTO");
        assert_eq!(json["waiting"]["reason"], "CLIENT_OFFLINE");
        assert_eq!(json["create_time"], "2023-11-14T22:13:20.005Z");
        assert_eq!(json["duration_ms"], 1500);
        assert_eq!(json["path"], serde_json::Value::Null);
    }

    #[test]
    fn the_json_of_a_client_has_the_names_of_the_contract() {
        let client = proto::Client { presence: 1, ..Default::default() };
        let json = serde_json::to_value(ClientView::from(&client)).expect("JSON");
        let mut names: Vec<_> = json.as_object().expect("object").keys().collect();
        names.sort_unstable();
        let mut contract = "id presence last_seen connected_since first_seen host_name os version \
            address allowed_roots policy_digest jobs_max active_transfers queued_transfers session_epoch audit_head audit_back_time"
            .split_whitespace()
            .collect::<Vec<_>>();
        contract.sort_unstable();
        assert_eq!(names, contract);
        assert_eq!(json["presence"], "ONLINE");
    }

    #[test]
    fn moments_that_make_no_sense_are_none() {
        for (seconds, nanos) in [(-1, 0), (i64::MAX, 0), (0, -1), (0, i32::MAX)] {
            assert_eq!(rfc3339(Some(&Timestamp { seconds, nanos })), None);
        }
    }

    #[test]
    fn a_state_of_a_newer_server_is_a_number() {
        assert_eq!(state(99), "UNKNOWN_99");
    }
}
