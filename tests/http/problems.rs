//! Whatever is refused is a problem (RFC 9457) with a stable code, and carries the headers of every
//! answer.

use fts::{
    ids::TransferId,
    limits::{CHUNK_BYTES, HTTP_BODY_BYTES_MAX},
};
use serde_json::Value;

use crate::{
    common::{
        bytes,
        http::{Connection, ask, get, post, request},
        raw::{RawSession, RawUpload, upload},
        server::TestServer,
    },
    fixture::land,
};

/// Method, target, headers, body; status and code.
type Case<'a> = (&'a str, String, &'a [(&'a str, &'a str)], &'a str, u16, &'a str);

#[tokio::test]
async fn every_kind_has_its_status_and_its_code() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let whole = land(&server, &mut session, "/raw", b"data").await.id;
    let queued = server.trigger("client-1", "/raw").await.id;
    let unknown = TransferId::generate();
    let too_large = "x".repeat(HTTP_BODY_BYTES_MAX + 1);
    let cases: &[Case<'_>] = &[
        ("GET", "/transfers?page=2".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/transfers?state=DONE".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/transfers?client=a/b".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/transfers?page_size=-1".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/transfers?page_token=7".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/clients?page_token=zz".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/readyz?loud".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/transfers/7".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/clients/.hidden".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("POST", "/download/a%20b".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("POST", "/download/%FF".to_owned(), &[], "", 400, "INVALID_ARGUMENT"),
        ("GET", "/clients".to_owned(), &[("Host", "evil.com")], "", 403, "NOT_LOCAL"),
        ("GET", "/clients/nobody".to_owned(), &[], "", 404, "UNKNOWN_CLIENT"),
        ("POST", "/download/nobody".to_owned(), &[], "", 404, "UNKNOWN_CLIENT"),
        ("GET", format!("/transfers/{unknown}"), &[], "", 404, "UNKNOWN_TRANSFER"),
        ("DELETE", format!("/transfers/{unknown}"), &[], "", 404, "UNKNOWN_TRANSFER"),
        ("POST", format!("/transfers/{unknown}/retry"), &[], "", 404, "UNKNOWN_TRANSFER"),
        ("GET", format!("/transfers/{unknown}/content"), &[], "", 404, "UNKNOWN_TRANSFER"),
        ("GET", "/nowhere".to_owned(), &[], "", 404, "NOT_FOUND"),
        ("GET", "/clients/".to_owned(), &[], "", 404, "NOT_FOUND"),
        ("GET", "/clients/../metrics".to_owned(), &[], "", 404, "NOT_FOUND"),
        ("POST", format!("/transfers/{whole}/cancel"), &[], "", 409, "WRONG_STATE"),
        ("DELETE", format!("/transfers/{queued}"), &[], "", 409, "WRONG_STATE"),
        ("GET", format!("/transfers/{queued}/content"), &[], "", 409, "NO_CONTENT"),
        ("POST", "/download/client-1".to_owned(), &[], &too_large, 413, "TOO_LARGE"),
        (
            "GET",
            format!("/transfers/{whole}/content"),
            &[("Range", "bytes=4-")],
            "",
            416,
            "RANGE_NOT_SATISFIABLE",
        ),
    ];
    for (method, target, headers, body, status, code) in cases {
        let answer = ask(server.address, method, target, headers, body).await;
        assert_eq!((answer.status, &*answer.problem()), (*status, *code), "{method} {target}");
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{method} {target}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{method} {target}");
    }
    server.stop().await;
}

#[tokio::test]
async fn another_method_is_told_which_ones_there_are() {
    let server = TestServer::start().await;
    let document = get(server.address, "/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths");
    for (path, item) in paths {
        let target = path.replace("{id}", &TransferId::generate().to_string());
        let target = target.replace("{client_id}", "client-1");
        let methods = item.as_object().expect("an object").keys().map(|key| key.to_uppercase());
        let mut documented: Vec<String> = methods.filter(|key| key != "PARAMETERS").collect();
        if documented.contains(&"GET".to_owned()) {
            documented.push("HEAD".to_owned());
        }
        documented.sort();
        for method in ["PUT", "PATCH", "OPTIONS", "GET", "POST", "DELETE"] {
            if documented.iter().any(|each| each == method) {
                continue;
            }
            let answer = ask(server.address, method, &target, &[], "").await;
            let what = format!("{method} {target}");
            assert_eq!((answer.status, &*answer.problem()), (405, "METHOD_NOT_ALLOWED"), "{what}");
            let allow = answer.header("allow").unwrap_or_else(|| panic!("no Allow: {what}"));
            let mut allowed: Vec<&str> = allow.split(',').map(str::trim).collect();
            allowed.sort_unstable();
            assert_eq!(allowed, documented, "{what}");
        }
    }
    server.stop().await;
}

/// What is asked for is repeated as text, never as markup: a browser that shows an answer runs
/// nothing of it.
#[tokio::test]
async fn no_answer_is_markup() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let script = "%3Cscript%3Ealert(1)%3C/script%3E";
    for target in [
        format!("/{script}"),
        format!("/clients/{script}"),
        format!("/clients?{script}=1"),
        format!("/transfers?state={script}"),
        "/".to_owned(),
        "/clients".to_owned(),
    ] {
        let answer = get(server.address, &target).await;
        let kind = answer.header("content-type").expect("a content type");
        assert!(kind.starts_with("application/") || kind.starts_with("text/plain"), "{kind}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{target}");
    }
    server.stop().await;
}

/// New connections are refused then; what was on its way is answered.
#[tokio::test]
async fn a_draining_server_takes_nothing_new_and_says_so() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    // An upload that runs keeps the server there until the end of this test.
    let data = bytes(2 * CHUNK_BYTES, 1);
    let id = server.trigger("client-1", "/raw").await.id;
    let header = session.command().await.attempt;
    let header = session.header(header, &data);
    let mut messages = upload(&header, &data);
    let rest = messages.split_off(2);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(messages).await;
    server.follow(&id, |t| t.state() == fts::wire::proto::State::Receiving).await;
    let mut begun = Vec::new();
    for (method, target) in [
        ("GET", "/readyz".to_owned()),
        ("GET", "/readyz?verbose".to_owned()),
        ("GET", "/healthz".to_owned()),
        ("GET", format!("/transfers/{id}")),
        ("POST", "/download/client-1".to_owned()),
    ] {
        let text = request(server.address, method, &target, &[], "");
        let (first, second) = text.split_at(text.len() - 2);
        let mut connection = Connection::open(server.address).await;
        connection.send(first).await;
        begun.push((connection, method, second.to_owned()));
    }
    // All of this runs on one thread, and in order: whoever is served now came later than those
    // that have begun.
    for _ in 0..3 {
        get(server.address, "/healthz").await;
    }

    server.shutdown.drain();

    let mut answers = Vec::new();
    for (mut connection, method, rest) in begun {
        connection.send(&rest).await;
        answers.push(connection.answer(method).await);
    }
    let [ready, verbose, health, transfer, download] = &answers[..] else { panic!("five") };
    assert_eq!((ready.status, ready.text()), (503, "not ready\n"));
    assert_eq!(verbose.status, 503);
    assert!(verbose.text().contains("draining: true\n"), "{}", verbose.text());
    assert_eq!((health.status, health.text()), (200, "ok\n"));
    assert_eq!(transfer.json()["state"], "RECEIVING");
    assert_eq!((download.status, &*download.problem()), (503, "DRAINING"));
    raw.send_all(rest).await;
    raw.answer().await.expect("taken");
    server.stop().await;
}

/// A peer that breaks the rules of HTTP itself harms nobody else.
#[tokio::test]
async fn what_is_not_http_is_refused_and_the_server_goes_on() {
    let server = TestServer::start().await;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X-A: b\r\n".repeat(5000));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    for text in ["\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", &many, &long] {
        let mut connection = Connection::open(server.address).await;
        connection.send(text).await;
        let answer = connection.answer_or_end("GET").await;
        assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)));
    }
    let answer = get(server.address, "/clients").await;
    assert_eq!(answer.json()["clients"], Value::Array(Vec::new()));
    assert_eq!(post(server.address, "/clients").await.status, 405);
    server.stop().await;
}
