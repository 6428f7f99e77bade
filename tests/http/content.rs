//! `GET /transfers/{id}/content`: the verified bytes of a COMPLETE transfer, and of no other.

use std::{fs, path::Path};

use fts::{
    limits::CHUNK_BYTES,
    transfer::FailReason,
    wire::{
        proto::State,
        session::{FromClient, Outcome, Report, Upload},
    },
};

use crate::{
    common::{
        bytes,
        http::{Answer, Connection, ask, get, post, request},
        raw::{RawSession, RawUpload, chunks},
        server::TestServer,
    },
    fixture::land,
};

async fn content(server: &TestServer, id: &str, headers: &[(&str, &str)]) -> Answer {
    ask(server.address, "GET", &format!("/transfers/{id}/content"), headers, "").await
}

#[tokio::test]
async fn the_whole_file_comes_as_it_was_proved() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(3 * CHUNK_BYTES + 17, 1);
    let id = land(&server, &mut session, "/var/log/a.log", &data).await.id;

    let answer = content(&server, &id, &[]).await;

    assert_eq!(answer.status, 200);
    assert!(answer.body == data);
    let etag = format!("\"{}\"", blake3::hash(&data).to_hex());
    let expected = [
        ("content-type", "application/octet-stream"),
        ("content-length", "3145745"),
        ("etag", &etag),
        ("accept-ranges", "bytes"),
        ("cache-control", "private, no-cache"),
        ("content-disposition", "attachment; filename=\"a.log\""),
        ("x-content-type-options", "nosniff"),
    ];
    for (name, value) in expected {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }

    let target = format!("/transfers/{id}/content");
    let mut connection = Connection::open(server.address).await;
    connection.send(&request(server.address, "HEAD", &target, &[], "")).await;
    let head = connection.answer("HEAD").await;
    assert_eq!(head.status, 200);
    for (name, value) in expected {
        assert_eq!(head.header(name), Some(value), "HEAD: {name}");
    }
    // Nothing followed the head: the next answer is the next one.
    connection.send(&request(server.address, "GET", "/healthz", &[], "")).await;
    assert_eq!(connection.answer("GET").await.text(), "ok\n");
    server.stop().await;
}

#[tokio::test]
async fn an_empty_file_comes_too() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = land(&server, &mut session, "/empty", b"").await.id;

    let answer = content(&server, &id, &[]).await;
    let beyond = content(&server, &id, &[("Range", "bytes=0-")]).await;

    assert_eq!((answer.status, answer.header("content-length")), (200, Some("0")));
    let etag = format!("\"{}\"", blake3::hash(b"").to_hex());
    assert_eq!(answer.header("etag"), Some(&*etag));
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */0")));
    server.stop().await;
}

#[tokio::test]
async fn a_range_is_part_of_the_whole() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(2 * CHUNK_BYTES + 5, 2);
    let size = data.len();
    let id = land(&server, &mut session, "/raw", &data).await.id;
    let across = format!("bytes={}-{}", CHUNK_BYTES - 1, CHUNK_BYTES);
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=0-", 0..size),
        ("bytes=-5", size - 5..size),
        ("bytes=-99999999999999999999", 0..size),
        ("bytes=7-99999999999999999999", 7..size),
        (&*across, CHUNK_BYTES - 1..CHUNK_BYTES + 1),
    ] {
        let answer = content(&server, &id, &[("Range", range)]).await;
        assert_eq!(answer.status, 206, "{range}");
        assert!(answer.body == data[expected.clone()], "{range}");
        let line = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
        assert_eq!(answer.header("content-range"), Some(&*line));
        assert!(answer.header("etag").is_some(), "{range}");
    }
    for range in ["bytes=2097157-", "bytes=99999999999999999999-", "bytes=-0"] {
        let answer = content(&server, &id, &[("Range", range)]).await;
        assert_eq!((answer.status, &*answer.problem()), (416, "RANGE_NOT_SATISFIABLE"), "{range}");
        assert_eq!(answer.header("content-range"), Some("bytes */2097157"), "{range}");
    }
    // What is not one range of bytes is passed over.
    for range in ["bytes=5-1", "bytes=0-1,3-4", "lines=1-2", "bytes", "bytes=a-b"] {
        let answer = content(&server, &id, &[("Range", range)]).await;
        assert_eq!(answer.status, 200, "{range}");
        assert!(answer.body == data, "{range}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_reader_that_has_it_is_told_so() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let id = land(&server, &mut session, "/raw", b"0123456789").await.id;
    let etag = format!("\"{}\"", blake3::hash(b"0123456789").to_hex());
    let weak = format!("\"other\", W/{etag}");

    for tags in [&*etag, &weak, "*"] {
        let answer = content(&server, &id, &[("If-None-Match", tags)]).await;
        assert_eq!((answer.status, answer.header("etag")), (304, Some(&*etag)), "{tags}");
    }
    let other = content(&server, &id, &[("If-None-Match", "\"other\"")]).await;
    assert_eq!((other.status, &*other.body), (200, &b"0123456789"[..]));

    // Goes on with what it has, if it is still the same.
    let range = ("Range", "bytes=5-");
    let same = content(&server, &id, &[range, ("If-Range", &etag)]).await;
    assert_eq!((same.status, &*same.body), (206, &b"56789"[..]));
    let other = content(&server, &id, &[range, ("If-Range", "\"other\"")]).await;
    assert_eq!((other.status, &*other.body), (200, &b"0123456789"[..]));
    server.stop().await;
}

#[tokio::test]
async fn the_name_to_save_it_under_is_harmless_whatever_the_source_is_called() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let long = format!("/{}", "n".repeat(4000));
    for source in [
        "/etc/../../passwd",
        "/a/..",
        "/",
        "",
        "/a\r\nSet-Cookie: x=1",
        "/a\"; filename=\"evil.sh",
        "/C:\\Windows\\evil.exe",
        "/\u{202e}txt.exe",
        "/.bashrc",
        "/ünïcödé-文件.txt",
        "/%2e%2e%2fpasswd",
        "/<script>",
        &long,
    ] {
        let id = land(&server, &mut session, source, b"x").await.id;

        let answer = content(&server, &id, &[]).await;

        assert_eq!((answer.status, &*answer.body), (200, &b"x"[..]), "{source:?}");
        assert!(!answer.head.to_lowercase().contains("\nset-cookie"), "{}", answer.head);
        let said = answer.header("content-disposition").expect("a name");
        let quoted = said.strip_prefix("attachment; filename=\"").expect("an attachment");
        let (name, rest) = quoted.split_once('"').expect("an end of the name");
        assert!(rest.is_empty() || rest.starts_with("; filename*=UTF-8''"), "{said}");
        assert!(!rest.contains(['"', '/', '\\']) && !rest.contains("%2F"), "{said}");
        assert!(!name.is_empty() && !name.starts_with('.') && name.len() <= 255, "{said}");
        let plain = |c: char| c.is_ascii() && !c.is_ascii_control() && !"/\\:<>%".contains(c);
        assert!(name.chars().all(plain), "{said}");
    }
    server.stop().await;
}

#[tokio::test]
async fn only_a_complete_transfer_has_bytes() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let refused = async |id: &str| {
        let answer = content(&server, id, &[]).await;
        assert_eq!((answer.status, &*answer.problem()), (409, "NO_CONTENT"));
    };
    // Offered, receiving, interrupted.
    let data = bytes(2 * CHUNK_BYTES, 3);
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    refused(&id).await;
    let header = session.header(attempt, &data);
    let mut raw = RawUpload::open(server.address).await;
    raw.send(Upload::Header(header)).await;
    raw.send(chunks(&data).swap_remove(0)).await;
    server.follow(&id, |t| t.state() == State::Receiving && t.bytes_done > 0).await;
    refused(&id).await;
    let json = get(server.address, &format!("/transfers/{id}")).await.json();
    assert!(json.get("blake3").is_none() && json.get("location").is_none(), "{json}");
    raw.answer().await.expect_err("cut");
    server.follow(&id, |t| t.state() != State::Receiving).await;
    refused(&id).await;
    // Cancelled.
    post(server.address, &format!("/transfers/{id}/cancel")).await;
    refused(&id).await;
    // Failed.
    let id = server.trigger("client-1", "/gone").await.id;
    let attempt = loop {
        let attempt = session.command().await.attempt;
        if attempt.transfer.to_string() == id {
            break attempt;
        }
    };
    let outcome = Outcome::Failed(FailReason::SourceNotFound);
    let report = Report { attempt, outcome, detail: "no such file".to_owned() };
    session.say(FromClient::Report(report)).await;
    let failed = server.ended(&id).await;
    assert_eq!(failed.state(), State::Failed);
    refused(&id).await;
    server.stop().await;
}

#[tokio::test]
async fn deleted_bytes_are_gone_and_their_record_says_so() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let landed = land(&server, &mut session, "/raw", b"data").await;
    let here = format!("/transfers/{}", landed.id);
    assert!(Path::new(&landed.location).exists());

    let answer = ask(server.address, "DELETE", &here, &[], "").await;

    assert_eq!(answer.status, 200);
    assert!(!Path::new(&landed.location).exists());
    for json in [answer.json(), get(server.address, &here).await.json()] {
        assert_eq!(json["content_deleted"], true);
        assert_eq!(json["state"], "COMPLETE");
        assert_eq!(json["size_bytes"], 4);
        assert_eq!(json["blake3"], blake3::hash(b"data").to_hex().as_str());
        assert!(json.get("location").is_none(), "{json}");
    }
    let etag = format!("\"{}\"", landed.digest);
    for headers in [&[][..], &[("If-None-Match", &*etag)], &[("Range", "bytes=0-1")]] {
        let answer = content(&server, &landed.id, headers).await;
        assert_eq!((answer.status, &*answer.problem()), (409, "NO_CONTENT"));
    }
    let again = ask(server.address, "DELETE", &here, &[], "").await;
    assert_eq!((again.status, &*again.problem()), (409, "WRONG_STATE"));
    server.stop().await;
}

#[tokio::test]
async fn a_reader_keeps_what_it_reads_even_when_it_is_deleted_meanwhile() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    // More than all the buffers between hold.
    let data = bytes(24 * CHUNK_BYTES, 4);
    let landed = land(&server, &mut session, "/raw", &data).await;
    let mut reader = Connection::open(server.address).await;
    let target = format!("/transfers/{}/content", landed.id);
    reader.send(&request(server.address, "GET", &target, &[], "")).await;
    reader.begun().await;

    ask(server.address, "DELETE", &format!("/transfers/{}", landed.id), &[], "").await;

    assert!(fs::metadata(&landed.location).is_err());
    let answer = reader.answer("GET").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == data);
    server.stop().await;
}

/// Somebody took the file away under the server, or a part of it.
#[tokio::test]
async fn bytes_that_are_not_there_are_never_an_answer_that_looks_whole() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(3 * CHUNK_BYTES, 5);
    let landed = land(&server, &mut session, "/raw", &data).await;
    let file = fs::File::options().write(true).open(&landed.location).expect("there");
    file.set_len(CHUNK_BYTES as u64 + 5).expect("cut");

    let mut reader = Connection::open(server.address).await;
    let target = format!("/transfers/{}/content", landed.id);
    reader.send(&request(server.address, "GET", &target, &[], "")).await;
    let short = reader.until_end().await;
    fs::remove_file(&landed.location).expect("removed");
    let none = content(&server, &landed.id, &[]).await;

    let text = String::from_utf8_lossy(&short);
    assert!(text.contains("content-length: 3145728\r\n"), "the length was promised");
    assert!(short.len() < data.len(), "the connection ended before that");
    assert_eq!((none.status, &*none.problem()), (410, "CONTENT_LOST"));
    assert!(!none.text().contains(&landed.location), "{}", none.text());
    server.stop().await;
}
