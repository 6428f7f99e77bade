//! `POST /download/{client_id}`: what is asked for is on record, once, whatever becomes of who
//! asked.

use std::collections::HashSet;

use fts::wire::proto::{CancelTransferRequest, State};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    common::{
        http::{Answer, Connection, ask, get, post, request},
        raw::{RawSession, RawUpload, upload},
        server::{PATIENCE, Setup, TestServer},
    },
    fixture::offline,
};

async fn ask_for(server: &TestServer, query: &str, body: &str) -> Answer {
    ask(server.address, "POST", &format!("/download/client-1{query}"), &[], body).await
}

async fn with_key(server: &TestServer, key: &str, body: &str) -> Answer {
    let key = [("Idempotency-Key", key)];
    ask(server.address, "POST", "/download/client-1", &key, body).await
}

async fn transfers(server: &TestServer) -> Vec<Value> {
    let json = get(server.address, "/transfers").await.json();
    json["transfers"].as_array().expect("a list").clone()
}

#[tokio::test]
async fn the_path_comes_in_the_query_or_the_body_or_in_both_alike() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let json = json!({ "path": "/var/a b" }).to_string();
    for (query, body) in [
        ("?path=/var/a%20b", ""),
        ("?path=%2Fvar%2Fa+b", ""),
        ("", &*json),
        ("?path=/var/a%20b", &*json),
        ("?path=", &*json),
        ("?path=/var/a%20b", "{\"path\":\"\"}"),
        ("", &*format!("\r\n {json}\n")),
    ] {
        let answer = ask_for(&server, query, body).await;
        assert_eq!(answer.status, 202, "{query} {body}: {}", answer.text());
        assert_eq!(answer.json()["path"], "/var/a b", "{query} {body}");
    }
    let answer = ask_for(&server, "?path=/other", &json).await;
    assert_eq!((answer.status, &*answer.problem()), (400, "INVALID_ARGUMENT"));
    assert_eq!(transfers(&server).await.len(), 7, "a contradiction asks for nothing");
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_understood_asks_for_nothing() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let long = format!("?path=/{}", "a".repeat(5000));
    for (query, body) in [
        ("?path=relative", ""),
        ("?path=/a/../b", ""),
        ("?path=/nul%00", ""),
        (&*long, ""),
        ("?pth=/a", ""),
        ("?wait=-1", ""),
        ("?wait=soon", ""),
        ("?wait=301", ""),
        ("?max_rate=5", ""),
        ("?max_rate=5Mb/s", ""),
        ("", "{\"max_rate\":63999}"),
        ("", "{\"path\":\"/a\""),
        ("", "{\"pth\":\"/a\"}"),
        ("", "{\"path\":7}"),
        ("", "[\"/a\"]"),
        ("", "path=/a"),
        ("", "null"),
        ("", "{\"consistency\":\"MAYBE\"}"),
        ("", "{\"deadline\":\"yesterday\"}"),
        ("", "{\"deadline\":0}"),
        ("", "{\"deadline\":\"9999d\"}"),
        ("", "{\"request_id\":\"\\u0007\"}"),
    ] {
        let answer = ask_for(&server, query, body).await;
        let got = (answer.status, answer.problem());
        assert_eq!(got, (400, "INVALID_ARGUMENT".to_owned()), "{query} {body}");
    }
    let two = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")];
    let answer = ask(server.address, "POST", "/download/client-1", &two, "").await;
    assert_eq!(answer.problem(), "INVALID_ARGUMENT");
    let answer = with_key(&server, "a", "{\"request_id\":\"b\"}").await;
    assert_eq!(answer.problem(), "INVALID_ARGUMENT");
    assert_eq!(transfers(&server).await, Vec::<Value>::new());
    server.stop().await;
}

#[tokio::test]
async fn the_body_chooses_consistency_deadline_and_cap() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let body = "{\"consistency\":\"STRICT\",\"deadline\":\"2h\",\"request_id\":\"r 1\",\
                \"max_rate\":\"5MB/s\"}";

    let json = ask_for(&server, "", body).await.json();

    assert_eq!(json["consistency"], "STRICT");
    assert_eq!(json["request_id"], "r 1");
    assert_eq!(json["max_rate_bytes_per_second"], 5_000_000);
    // Elsewhere, and in other words, it is the same request.
    let query = "?max_rate=5000KB/s";
    let same = "{\"consistency\":\"STRICT\",\"deadline\":\"2h\",\"request_id\":\"r 1\"}";
    assert_eq!(ask_for(&server, query, same).await.json()["id"], json["id"]);
    assert_eq!(ask_for(&server, "", same).await.problem(), "REQUEST_ID_CONFLICT");
    let time = |key: &str| humantime::parse_rfc3339(json[key].as_str().expect("a time"));
    let (from, to) = (time("create_time").expect("a time"), time("deadline").expect("a time"));
    assert_eq!(to.duration_since(from).expect("later").as_secs(), 7200);
    server.stop().await;
}

#[tokio::test]
async fn twenty_at_once_with_one_idempotency_key_are_one_transfer() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        let address = server.address;
        asking.spawn(async move {
            let key = [("Idempotency-Key", "once")];
            ask(address, "POST", "/download/client-1?path=/a", &key, "").await
        });
    }

    let answers = asking.join_all().await;

    assert!(answers.iter().all(|answer| answer.status == 202));
    let ids: HashSet<String> =
        answers.iter().map(|answer| answer.json()["id"].to_string()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(transfers(&server).await.len(), 1);
    // By another way, it is still the same request.
    let again = ask_for(&server, "?path=/a", "{\"request_id\":\"once\"}").await;
    assert!(ids.contains(&again.json()["id"].to_string()));
    server.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_stands_for_one_request_only() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    assert_eq!(with_key(&server, "k", "{\"path\":\"/a\"}").await.status, 202);

    for other in ["{\"path\":\"/b\"}", "", "{\"path\":\"/a\",\"consistency\":\"STRICT\"}"] {
        let answer = with_key(&server, "k", other).await;
        assert_eq!((answer.status, &*answer.problem()), (409, "REQUEST_ID_CONFLICT"), "{other}");
    }

    assert_eq!(transfers(&server).await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_never_came_is_not_found() {
    let server = TestServer::start().await;
    let answer = post(server.address, "/download/nobody").await;
    assert_eq!((answer.status, &*answer.problem()), (404, "UNKNOWN_CLIENT"));
    assert_eq!(transfers(&server).await, Vec::<Value>::new());
    server.stop().await;
}

#[tokio::test]
async fn what_an_offline_client_is_asked_for_is_queued_and_says_why() {
    let server = TestServer::start().await;
    offline(&server, RawSession::open(&server, "client-1").await).await;

    let answer = post(server.address, "/download/client-1?path=/raw").await;

    assert_eq!(answer.status, 202);
    let json = answer.json();
    assert_eq!(json["state"], "QUEUED");
    assert_eq!(json["waiting"]["reason"], "CLIENT_OFFLINE");
    assert_eq!(json["waiting"]["since"], json["create_time"]);
    let client = get(server.address, "/clients/client-1").await.json();
    assert_eq!(client["presence"], "OFFLINE");
    assert_eq!(client["queued_transfers"], 1);
    assert!(client.get("connected_since").is_none());
    let mut session = RawSession::open(&server, "client-1").await;
    let attempt = session.command().await.attempt;
    assert_eq!(json["id"], attempt.transfer.to_string());
    server.stop().await;
}

#[tokio::test]
async fn who_waits_too_briefly_gets_the_transfer_as_it_is() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    for wait in ["0", "1"] {
        let answer = post(server.address, &format!("/download/client-1?wait={wait}")).await;
        assert_eq!(answer.status, 202);
        let json = answer.json();
        let here = format!("/transfers/{}", json["id"].as_str().expect("an id"));
        assert_eq!(answer.header("location"), Some(&*here));
        assert!(["QUEUED", "OFFERED"].map(Value::from).contains(&json["state"]), "{json}");
    }
    server.stop().await;
}

#[tokio::test]
async fn who_waits_gets_the_end_whatever_it_is() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let mut waiting = Connection::open(server.address).await;
    let ask = request(server.address, "POST", "/download/client-1?wait=300", &[], "");
    waiting.send(&ask).await;
    let id = session.command().await.attempt.transfer.to_string();

    let cancel = CancelTransferRequest { transfer_id: id.clone() };
    server.control().await.cancel_transfer(cancel).await.expect("cancelled");

    let answer = waiting.answer("POST").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["id"], id);
    assert_eq!(answer.json()["state"], "CANCELLED");
    server.stop().await;
}

#[tokio::test]
async fn hanging_up_cancels_nothing() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let mut waiting = Connection::open(server.address).await;
    let ask = request(server.address, "POST", "/download/client-1?wait=300", &[], "");
    waiting.send(&ask).await;
    let attempt = session.command().await.attempt;

    drop(waiting);

    let header = session.header(attempt, b"data");
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, b"data")).await;
    raw.answer().await.expect("taken");
    let (transfer, landed) = server.landed(&attempt.transfer.to_string()).await;
    assert_eq!(transfer.state(), State::Complete);
    assert_eq!(landed, b"data");
    server.stop().await;
}

#[tokio::test]
async fn who_waits_is_answered_when_the_server_drains() {
    let server = TestServer::start().await;
    offline(&server, RawSession::open(&server, "client-1").await).await;
    let mut waiting = Connection::open(server.address).await;
    let ask = request(server.address, "POST", "/download/client-1?path=/b&wait=300", &[], "");
    waiting.send(&ask).await;
    let asked = async {
        while get(server.address, "/transfers?state=QUEUED").await.json()["transfers"][0].is_null()
        {
        }
    };
    timeout(PATIENCE, asked).await.expect("it is on record");

    server.shutdown.drain();

    let answer = waiting.answer("POST").await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json()["waiting"]["reason"], "DRAINING");
    let dir = server.stop().await;
    let server = TestServer::start_in(dir, Setup::default(), 0).await;
    let kept = get(server.address, answer.header("location").expect("a location")).await;
    assert_eq!(kept.json()["state"], "QUEUED");
    server.stop().await;
}
