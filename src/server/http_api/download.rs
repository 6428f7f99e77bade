//! `POST /download/{client_id}`: asks a client for a file.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::rejection::BytesRejection,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;

use super::{
    Problem,
    extract::{Named, Params},
    json::{Json, TransferJson},
};
use crate::{
    ids::ClientId,
    limits,
    rate::{Rate, RateError},
    server::{desk::Served, view::TransferView},
    settings,
    transfer::{Consistency, Request},
    wire::control,
};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    path: Option<String>,
    max_rate: Option<String>,
    /// Seconds.
    wait: Option<u64>,
}

/// The body: all of it is optional.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    path: Option<String>,
    consistency: Option<Consistency>,
    deadline: Option<Deadline>,
    max_rate: Option<MaxRate>,
    request_id: Option<String>,
}

/// `"7d"`, or a number of seconds.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Deadline {
    Seconds(u64),
    Text(String),
}

/// `"5MB/s"`, or a number of bytes a second.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum MaxRate {
    Number(u64),
    Text(String),
}

/// The transfer is on record before the answer: who hangs up, while waiting or before, cancels
/// nothing.
pub(super) async fn download(
    desk: Served,
    Named(client): Named<ClientId>,
    Params(query): Params<Query>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let wait = wait(query.wait)?;
    let request = request(client, query, &headers, &body?)?;
    let mut view = desk.trigger(request).await?;
    let mut status = StatusCode::ACCEPTED;
    if let Some(wait) = wait {
        view = desk.wait(view.transfer.id, wait).await?;
        if view.transfer.state.is_final() {
            status = StatusCode::OK;
        }
    }
    Ok(answer(status, &view))
}

fn answer(status: StatusCode, view: &TransferView) -> Response {
    let location = [(header::LOCATION, format!("/transfers/{}", view.transfer.id))];
    (status, location, Json(TransferJson::from(view))).into_response()
}

fn wait(seconds: Option<u64>) -> Result<Option<Duration>, Problem> {
    let wait = seconds.map(Duration::from_secs);
    if wait.is_some_and(|wait| wait > limits::WAIT_MAX) {
        let most = limits::WAIT_MAX.as_secs();
        return Err(Problem::malformed(format!("wait is at most {most} seconds")));
    }
    Ok(wait)
}

/// Puts together what the query, the headers and the body ask for.
fn request(
    client: ClientId,
    query: Query,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Request, Problem> {
    let ask = parse(body)?;
    let path = one_of("path", query.path, ask.path)?;
    let request_id = one_of("request id", idempotency_key(headers)?, ask.request_id)?;
    let deadline = match ask.deadline {
        None => limits::DEADLINE,
        Some(Deadline::Seconds(seconds)) => control::deadline(Duration::from_secs(seconds))?,
        Some(Deadline::Text(text)) => {
            let wait = settings::duration(&text);
            let wait = wait.map_err(|what| Problem::malformed(format!("deadline: {what}")))?;
            control::deadline(wait)?
        }
    };
    Ok(Request {
        client,
        operator: None,
        path: control::path(&path.unwrap_or_default())?,
        request_id: request_id.map(|text| text.parse()).transpose()?,
        consistency: ask.consistency.unwrap_or_default(),
        rate_max: rate_max(query.max_rate.as_deref(), ask.max_rate.as_ref())?,
        // Over gRPC alone.
        signed: None,
        deadline,
    })
}

fn rate_max(query: Option<&str>, body: Option<&MaxRate>) -> Result<Option<Rate>, Problem> {
    let refused = |err: RateError| Problem::malformed(format!("max_rate: {err}"));
    // Empty, as everywhere: nothing was said.
    let parse = |text: &str| if text.is_empty() { Ok(None) } else { Rate::parse(text) };
    let body = match body {
        None => None,
        Some(MaxRate::Number(number)) => Some(Rate::from_number(*number).map_err(refused)?),
        Some(MaxRate::Text(text)) => Some(parse(text).map_err(refused)?),
    };
    match (query.map(parse).transpose().map_err(refused)?, body) {
        (Some(one), Some(other)) if one != other => {
            Err(Problem::malformed("there are two values of max_rate, and they differ"))
        }
        (one, other) => Ok(one.or(other).flatten()),
    }
}

/// Reads the body, whatever its content type: `curl -d` calls JSON a form.
fn parse(body: &[u8]) -> Result<Ask, Problem> {
    let body = body.trim_ascii();
    match body.first() {
        None => Ok(Ask::default()),
        Some(b'{') => serde_json::from_slice(body)
            .map_err(|err| Problem::malformed(format!("the body: {err}"))),
        // serde would take an array for the fields in order.
        Some(_) => Err(Problem::malformed("the body is a JSON object, or empty")),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Problem::malformed("there is more than one Idempotency-Key"));
    }
    let text = first.map(|value| value.to_str().map(ToOwned::to_owned)).transpose();
    text.map_err(|_| Problem::malformed("Idempotency-Key is not ASCII"))
}

/// Returns what is said once, or twice the same. An empty text says nothing, as in protobuf.
fn one_of(
    what: &str,
    one: Option<String>,
    other: Option<String>,
) -> Result<Option<String>, Problem> {
    let said = |text: &String| !text.is_empty();
    match (one.filter(said), other.filter(said)) {
        (Some(one), Some(other)) if one != other => {
            Err(Problem::malformed(format!("there are two values of {what}, and they differ")))
        }
        (one, other) => Ok(one.or(other)),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::{server::view::samples, status::Reason};

    fn read(path: Option<&str>, keys: &[&str], body: &str) -> Result<Request, Problem> {
        let mut headers = HeaderMap::new();
        for key in keys {
            let value = HeaderValue::from_bytes(key.as_bytes()).expect("a header");
            headers.append("idempotency-key", value);
        }
        let client = "client-1".parse().expect("an id");
        let query = Query { path: path.map(ToOwned::to_owned), ..Query::default() };
        request(client, query, &headers, body.as_bytes())
    }

    #[test]
    fn nothing_asks_for_the_default_file() {
        for body in ["", " \n", "{}", r#"{"path":null}"#, r#"{"path":"","request_id":""}"#] {
            let request = read(None, &[], body).expect("valid");
            assert_eq!(request.path, None, "{body}");
            assert_eq!(request.request_id, None);
            assert_eq!(request.consistency, Consistency::Auto);
            assert_eq!(request.deadline, limits::DEADLINE);
        }
    }

    #[test]
    fn everything_can_be_asked_for() {
        let body = r#" {"path":"/a/ü b", "consistency":"STRICT",
            "deadline":"2h", "request_id":"r"} "#;
        let request = read(None, &[], body).expect("valid");
        assert_eq!(request.path.map(String::from).as_deref(), Some("/a/ü b"));
        assert_eq!(request.request_id.map(String::from).as_deref(), Some("r"));
        assert_eq!(request.consistency, Consistency::Strict);
        assert_eq!(request.deadline, Duration::from_hours(2));

        let request = read(Some("/q"), &["key 1"], r#"{"deadline":90}"#).expect("valid");
        assert_eq!(request.path.map(String::from).as_deref(), Some("/q"));
        assert_eq!(request.request_id.map(String::from).as_deref(), Some("key 1"));
        assert_eq!(request.deadline, Duration::from_secs(90));
    }

    #[test]
    fn what_is_said_twice_must_agree() {
        assert!(read(Some("/a"), &["k"], r#"{"path":"/a","request_id":"k"}"#).is_ok());
        assert!(read(Some(""), &[], r#"{"path":"/a"}"#).is_ok());
        for (path, keys, body) in [
            (Some("/a"), &[][..], r#"{"path":"/b"}"#),
            (None, &["k"][..], r#"{"request_id":"l"}"#),
            (None, &["k", "k"][..], ""),
            (None, &[][..], r#"{"path":"/a","path":"/a"}"#),
        ] {
            let problem = read(path, keys, body).expect_err("refused");
            assert_eq!(problem.reason(), Reason::InvalidArgument, "{body}");
        }
    }

    #[test]
    fn what_does_not_read_is_refused() {
        for body in [
            r#"{"pth":"/a"}"#,
            r#"["/a"]"#,
            r#""/a""#,
            "path=/a",
            "null",
            "{",
            "{} {}",
            r#"{"path":"a"}"#,
            r#"{"path":"/a/../b"}"#,
            r#"{"path":"/a\u0000"}"#,
            r#"{"path":1}"#,
            r#"{"consistency":"LAX"}"#,
            r#"{"consistency":"auto"}"#,
            r#"{"deadline":0}"#,
            r#"{"deadline":-1}"#,
            r#"{"deadline":1.5}"#,
            r#"{"deadline":"0s"}"#,
            r#"{"deadline":"soon"}"#,
            r#"{"deadline":"100000d"}"#,
            r#"{"deadline":18446744073709551615}"#,
            r#"{"request_id":"a\nb"}"#,
        ] {
            let problem = read(None, &[], body).expect_err(body);
            assert_eq!(problem.reason(), Reason::InvalidArgument, "{body}");
        }
        assert!(read(None, &["ü"], "").is_err());
        assert!(read(None, &[&"k".repeat(129)], "").is_err());
        assert!(read(Some("relative"), &[], "").is_err());
    }

    fn read_rate(query: Option<&str>, body: &str) -> Result<Option<u64>, Problem> {
        let client = "client-1".parse().expect("an id");
        let query = Query { max_rate: query.map(ToOwned::to_owned), ..Query::default() };
        let request = request(client, query, &HeaderMap::new(), body.as_bytes())?;
        Ok(request.rate_max.map(Rate::bytes_per_second))
    }

    #[test]
    fn a_cap_is_a_number_or_a_text_in_query_or_body() {
        let five = Some(5_000_000);
        assert_eq!(read_rate(None, ""), Ok(None));
        assert_eq!(read_rate(Some("5MB/s"), ""), Ok(five));
        assert_eq!(read_rate(Some("5000000"), ""), Ok(five));
        assert_eq!(read_rate(None, r#"{"max_rate":"5MB"}"#), Ok(five));
        assert_eq!(read_rate(None, r#"{"max_rate":5000000}"#), Ok(five));
        assert_eq!(read_rate(Some("5MB/s"), r#"{"max_rate":5000000}"#), Ok(five));
        for none in [r#"{"max_rate":0}"#, r#"{"max_rate":"off"}"#, r#"{"max_rate":null}"#] {
            assert_eq!(read_rate(None, none), Ok(None), "{none}");
        }
        for (query, body) in [
            (Some("5"), ""),
            (Some("fast"), ""),
            (Some("5MB/s"), r#"{"max_rate":"6MB/s"}"#),
            (Some("off"), r#"{"max_rate":"6MB/s"}"#),
            (None, r#"{"max_rate":63999}"#),
            (None, r#"{"max_rate":-1}"#),
            (None, r#"{"max_rate":1.5e6}"#),
            (None, r#"{"max_rate":true}"#),
            (None, r#"{"max_rate":"5Mb/s"}"#),
        ] {
            let problem = read_rate(query, body).expect_err(body);
            assert_eq!(problem.reason(), Reason::InvalidArgument, "{query:?} {body}");
        }
    }

    #[test]
    fn a_wait_is_bounded() {
        assert_eq!(wait(None), Ok(None));
        assert_eq!(wait(Some(0)), Ok(Some(Duration::ZERO)));
        assert_eq!(wait(Some(300)), Ok(Some(limits::WAIT_MAX)));
        assert!(wait(Some(301)).is_err());
        assert!(wait(Some(u64::MAX)).is_err());
    }

    #[test]
    fn the_answer_says_where_the_transfer_is() {
        let view = samples::queued();
        let response = answer(StatusCode::ACCEPTED, &view);
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let expected = format!("/transfers/{}", view.transfer.id);
        assert_eq!(response.headers()["location"], expected.as_str());
    }
}
