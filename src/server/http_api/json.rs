//! Transfers and clients as JSON: absent fields are left out, times are RFC 3339, numbers have
//! their unit in their name.

use std::{borrow::Cow, time::Duration};

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde::{Serialize, Serializer};

use crate::{
    ids::{Digest, OperatorName, RemotePath, RequestId, UnixMs},
    rate::Rate,
    server::view::{ClientView, Presence, TransferView},
    transfer::{Consistency, Content, Delivered, FailReason, Fingerprint, State, WaitingReason},
};

/// An answer as JSON. It ends its line, for those who read it on a terminal.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let mut body = serde_json::to_vec(&self.0).expect("our own types are always JSON");
        body.push(b'\n');
        ([(CONTENT_TYPE, "application/json")], body).into_response()
    }
}

#[derive(Serialize)]
pub(super) struct TransferJson<'a> {
    id: String,
    client_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    state: State,
    revision: u64,
    epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<WaitingJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    done_bytes: u64,
    received_bytes: u64,
    kept_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    consistency: Consistency,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<Delivered>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Fingerprint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<Cow<'a, str>>,
    content_deleted: bool,
    attempts: u32,
    create_time: Time,
    update_time: Time,
    deadline: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_rate_bytes_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct WaitingJson {
    reason: WaitingReason,
    since: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt_time: Option<Time>,
}

#[derive(Serialize)]
struct FailureJson<'a> {
    reason: FailReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_reason: Option<FailReason>,
    detail: &'a str,
}

impl<'a> From<&'a TransferView> for TransferJson<'a> {
    fn from(view: &'a TransferView) -> Self {
        let transfer = &view.transfer;
        let file = transfer.file.as_ref();
        let proof = view.proof();
        Self {
            id: transfer.id.to_string(),
            client_id: transfer.client.as_str(),
            operator: transfer.operator.as_ref().map(OperatorName::as_str),
            path: transfer.path.as_ref().map(RemotePath::as_str),
            state: transfer.state,
            revision: transfer.revision,
            epoch: transfer.epoch.0,
            waiting: view.waiting.map(|waiting| WaitingJson {
                reason: waiting.reason,
                since: Time(waiting.since),
                next_attempt_time: waiting.next_attempt.map(Time),
            }),
            failure: view.failure().map(|failure| FailureJson {
                reason: failure.reason,
                last_reason: failure.last_reason,
                detail: &failure.detail,
            }),
            size_bytes: file.map(|file| file.size_bytes),
            done_bytes: view.done_bytes,
            received_bytes: view.received_bytes,
            kept_bytes: transfer.kept_bytes,
            blake3: proof.map(|finish| finish.digest.to_string()),
            consistency: transfer.consistency,
            delivered: proof.map(|finish| finish.delivered),
            trusted_bytes: proof.map(|finish| finish.trusted_bytes),
            restart_detail: transfer.restart_detail.as_deref(),
            fingerprint: file.map(|file| file.fingerprint),
            source_path: file.map(|file| file.path.as_str()),
            location: view.location.as_ref().map(|location| location.to_string_lossy()),
            content_deleted: transfer.content == Content::Deleted,
            attempts: transfer.attempts,
            create_time: Time(transfer.created),
            update_time: Time(transfer.updated),
            deadline: Time(transfer.deadline),
            start_time: transfer.started.map(Time),
            end_time: transfer.ended.map(Time),
            duration_ms: view.duration().map(millis),
            rate_bytes_per_second: view.rate,
            max_rate_bytes_per_second: transfer.rate_max.map(Rate::bytes_per_second),
            request_id: transfer.request_id.as_ref().map(RequestId::as_str),
        }
    }
}

/// A client. Its instance is not in it: whoever knows that may upload as the client.
#[derive(Serialize)]
pub(super) struct ClientJson<'a> {
    id: &'a str,
    presence: &'static str,
    last_seen: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_since: Option<Time>,
    first_seen: Time,
    host_name: &'a str,
    os: &'a str,
    version: &'a str,
    address: &'a str,
    allowed_roots: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_digest: Option<Digest>,
    jobs_max: u32,
    active_transfers: u64,
    queued_transfers: u64,
    session_epoch: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_head: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_back_time: Option<Time>,
}

impl<'a> From<&'a ClientView> for ClientJson<'a> {
    fn from(view: &'a ClientView) -> Self {
        let record = &view.record;
        let opening = &record.opening;
        Self {
            id: opening.client.as_str(),
            presence: match view.presence {
                Presence::Online => "ONLINE",
                Presence::Stale => "STALE",
                Presence::Offline => "OFFLINE",
            },
            last_seen: Time(view.last_seen),
            connected_since: view.connected_since.map(Time),
            first_seen: Time(record.first_seen),
            host_name: &opening.host_name,
            os: &opening.os,
            version: &opening.version,
            address: &opening.address,
            allowed_roots: &opening.allowed_roots,
            policy_digest: opening.policy_digest,
            jobs_max: opening.jobs_max,
            active_transfers: record.active_transfers,
            queued_transfers: record.queued_transfers,
            session_epoch: record.session_epoch.0,
            audit_head: record.audit_head.map(|head| head.to_string()),
            audit_back_time: record.audit_back.map(Time),
        }
    }
}

/// In RFC 3339.
struct Time(UnixMs);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.rfc3339())
    }
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json, to_value};

    use super::*;
    use crate::server::{http_api::OPENAPI, view::samples};

    fn transfer(view: &TransferView) -> Value {
        to_value(TransferJson::from(view)).expect("JSON")
    }

    #[test]
    fn a_complete_transfer_shows_its_proof() {
        let view = samples::complete();
        let expected = json!({
            "id": view.transfer.id.to_string(),
            "client_id": "client-1",
            "operator": "alice",
            "path": "/var/log/a b.log",
            "state": "COMPLETE",
            "revision": 1,
            "epoch": 2,
            "size_bytes": 1_048_577,
            "done_bytes": 1_048_577,
            "received_bytes": 1_048_600,
            "kept_bytes": 0,
            "trusted_bytes": 0,
            "blake3": blake3::hash(b"x").to_hex().as_str(),
            "consistency": "AUTO",
            "delivered": "UNCHANGED",
            "fingerprint": {
                "device": 1, "inode": 2, "size_bytes": 1_048_577, "mtime_ns": -3, "ctime_ns": 4,
            },
            "source_path": "/var/log/a b.log",
            "location": "/data/files/x",
            "content_deleted": false,
            "attempts": 2,
            "create_time": "2023-11-14T22:13:20.123Z",
            "update_time": "2023-11-14T22:13:20.123Z",
            "deadline": "2023-11-21T22:13:20.123Z",
            "start_time": "2023-11-14T22:13:20.500Z",
            "end_time": "2023-11-14T22:13:22.000Z",
            "duration_ms": 1500,
            "rate_bytes_per_second": 699_051,
            "max_rate_bytes_per_second": 5_000_000,
            "request_id": "r-1",
        });
        assert_eq!(transfer(&view), expected);
    }

    #[test]
    fn an_interrupted_transfer_says_why_and_when_next() {
        let json = transfer(&samples::interrupted());
        assert_eq!(json["failure"], json!({ "reason": "IO", "detail": "cut" }));
        let waiting = json!({
            "reason": "BACKOFF",
            "since": "2023-11-14T22:13:21.000Z",
            "next_attempt_time": "2023-11-14T22:13:30.000Z",
        });
        assert_eq!(json["waiting"], waiting);
        assert!(json.get("blake3").is_none());
    }

    #[test]
    fn an_unproved_digest_is_not_shown() {
        let mut view = samples::complete();
        view.transfer.state = State::Verifying;
        let json = transfer(&view);
        for absent in ["blake3", "delivered", "duration_ms"] {
            assert!(json.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn no_instance_is_shown() {
        let client = samples::client();
        let text = serde_json::to_string(&ClientJson::from(&client)).expect("JSON");
        assert!(!text.contains(&client.record.opening.instance.short()), "{text}");
        let view = samples::complete();
        let text = transfer(&view).to_string();
        let instance = view.transfer.instance.expect("an instance");
        assert!(!text.contains(&instance.short()), "{text}");
    }

    #[test]
    fn openapi_has_every_field_of_every_view() {
        let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
        let documented = |schema: &str| -> BTreeSet<String> {
            let properties = &document["components"]["schemas"][schema]["properties"];
            properties.as_object().expect("properties").keys().cloned().collect()
        };
        let keys = |value: &Value| -> BTreeSet<String> {
            value.as_object().expect("an object").keys().cloned().collect()
        };

        let client = to_value(ClientJson::from(&samples::client())).expect("JSON");
        assert_eq!(keys(&client), documented("Client"));
        let complete = transfer(&samples::complete());
        let interrupted = transfer(&samples::interrupted());
        let fields = &keys(&complete) | &keys(&interrupted);
        assert_eq!(fields, documented("Transfer"));
        assert_eq!(keys(&complete["fingerprint"]), documented("Fingerprint"));
        assert_eq!(keys(&interrupted["waiting"]), documented("Waiting"));
    }

    #[test]
    fn a_time_beyond_the_format_is_its_last() {
        let time = |ms| to_value(Time(UnixMs(ms))).expect("JSON");
        assert_eq!(time(-5), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(i64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
