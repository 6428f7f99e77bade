//! What every server has: health, readiness, metrics, its own description.

use std::{collections::BTreeSet, time::Duration};

use fts::{ids::TransferId, server::coordinator::Retention};

use crate::{
    common::{
        bytes, files_beneath,
        http::{Answer, ask, get},
        raw::RawSession,
        server::{Setup, TestServer},
    },
    fixture::land,
};

#[tokio::test]
async fn the_index_says_what_to_type_on_this_server() {
    let server = TestServer::start().await;
    let answer = get(server.address, "/").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    let text = answer.text();
    assert!(text.contains(&format!("curl http://{}/clients\n", server.address)), "{text}");
    let port = server.address.port();
    let host = format!("localhost:{port}");
    let answer = ask(server.address, "GET", "/", &[("Host", &host)], "").await;
    assert!(answer.text().contains(&format!("curl http://localhost:{port}/clients\n")));
    server.stop().await;
}

#[tokio::test]
async fn health_and_readiness_are_bare() {
    let server = TestServer::start().await;
    let health = get(server.address, "/healthz").await;
    let ready = get(server.address, "/readyz").await;
    assert_eq!((health.status, health.text()), (200, "ok\n"));
    assert_eq!((ready.status, ready.text()), (200, "ready\n"));
    assert_eq!(ready.header("cache-control"), Some("no-store"));
    server.stop().await;
}

#[tokio::test]
async fn verbose_readiness_shows_checks_and_settings() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let off = get(server.address, "/readyz?verbose").await;
    server.stop().await;
    let keep = Some(Duration::from_secs(30 * 24 * 3600));
    let retention = Retention { keep, keep_bytes: Some(500_000_000_000) };
    let server = TestServer::start_with(Setup { retention, ..Setup::default() }).await;
    let on = get(server.address, "/readyz?verbose=1").await;
    server.stop().await;

    let expected = "ready\nstore: ok\nsink: ok\ndraining: false\nsessions: 1\nuploads: 0\n\
                    keep: off\nkeep-bytes: off\ndisk: ok\ndisk-free: ";
    assert!(off.text().starts_with(expected), "{}", off.text());
    assert!(off.text().contains(" bytes\ndisk-low: "), "{}", off.text());
    assert!(
        on.text().contains("\nkeep: 30days\nkeep-bytes: 500000000000 bytes\n"),
        "{}",
        on.text()
    );
}

/// Returns the value of a series, written with its labels.
fn value(metrics: &Answer, series: &str) -> f64 {
    let mut lines = metrics.text().lines().filter_map(|line| line.rsplit_once(' '));
    let found = lines.find(|(name, _)| *name == series);
    let (_, value) = found.unwrap_or_else(|| panic!("no {series} in {}", metrics.text()));
    value.parse().expect("a number")
}

#[tokio::test]
async fn metrics_are_openmetrics_and_move_with_a_transfer() {
    let server = TestServer::start().await;
    let before = get(server.address, "/metrics").await;
    let mut session = RawSession::open(&server, "client-1").await;
    let data = bytes(1_500_000, 1);
    land(&server, &mut session, "/raw", &data).await;
    let after = get(server.address, "/metrics").await;

    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(before.header("content-type"), Some(kind));
    assert!(before.text().ends_with("# EOF\n"));
    let types = before.text().lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: Vec<&str> = types.collect();
    let expected = [
        "fts_build info",
        "fts_clients gauge",
        "fts_transfers gauge",
        "fts_store_up gauge",
        "fts_audit_up gauge",
        "fts_audit_owed gauge",
        "fts_disk_free_bytes gauge",
        "fts_disk_low gauge",
        "fts_sessions_open gauge",
        "fts_uploads_active gauge",
        "fts_sessions counter",
        "fts_reconnects counter",
        "fts_received_bytes counter",
        "fts_verified_bytes counter",
        "fts_chunk_failures counter",
        "fts_transfers_ended counter",
        "fts_upload_seconds histogram",
    ];
    assert_eq!(families, expected);
    for (series, from, to) in [
        ("fts_store_up", 1.0, 1.0),
        ("fts_audit_up", 1.0, 1.0),
        ("fts_audit_owed", 0.0, 0.0),
        ("fts_clients{presence=\"online\"}", 0.0, 1.0),
        ("fts_clients{presence=\"offline\"}", 0.0, 0.0),
        ("fts_transfers{state=\"complete\"}", 0.0, 1.0),
        ("fts_transfers{state=\"queued\"}", 0.0, 0.0),
        ("fts_sessions_open", 0.0, 1.0),
        ("fts_sessions_total", 0.0, 1.0),
        ("fts_reconnects_total", 0.0, 0.0),
        ("fts_received_bytes_total", 0.0, 1_500_000.0),
        ("fts_verified_bytes_total", 0.0, 1_500_000.0),
        ("fts_chunk_failures_total{reason=\"crc\"}", 0.0, 0.0),
        ("fts_transfers_ended_total{state=\"complete\"}", 0.0, 1.0),
        ("fts_transfers_ended_total{state=\"failed\"}", 0.0, 0.0),
        ("fts_upload_seconds_count", 0.0, 1.0),
    ] {
        let got = (value(&before, series), value(&after, series));
        assert!(got == (from, to), "{series}: {got:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn no_text_of_a_peer_is_ever_in_a_metric() {
    let server = TestServer::start().await;
    let mut hello = crate::common::raw::hello("canary-id", fts::ids::InstanceId::generate());
    hello.host_name = "canary-host".to_owned();
    hello.os = "canary-os".to_owned();
    hello.version = "canary-version".to_owned();
    hello.allowed_roots = vec!["/canary-root".to_owned()];
    let _session = RawSession::open_as(&server, hello).await;
    let mut session = RawSession::open(&server, "client-1").await;
    land(&server, &mut session, "/canary-source", b"x").await;
    server.trigger("canary-id", "/canary-path").await;
    for target in ["/canary-target", "/clients/canary", "/transfers?state=canary"] {
        get(server.address, target).await;
    }

    let metrics = get(server.address, "/metrics").await;

    assert!(metrics.text().contains("fts_clients{presence=\"online\"} 2\n"));
    for text in ["canary", "client-1", "/raw", "127.0.0.1"] {
        assert!(!metrics.text().contains(text), "{text} is in {}", metrics.text());
    }
    let before: BTreeSet<&str> = metrics.text().lines().filter_map(name).collect();
    let labels: BTreeSet<&str> = before
        .iter()
        .filter_map(|name| name.split_once('{')?.1.split_once('='))
        .map(|(key, _)| key)
        .collect();
    assert_eq!(labels, BTreeSet::from(["le", "presence", "reason", "state", "version"]));
    server.stop().await;
}

fn name(line: &str) -> Option<&str> {
    line.rsplit_once(' ').map(|(name, _)| name).filter(|_| !line.starts_with('#'))
}

/// No name on the server's disk has anything of a client's text either.
#[tokio::test]
async fn no_text_of_a_peer_is_ever_in_a_file_name() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    land(&server, &mut session, "/canary/../../x", b"x").await;
    let files = files_beneath(&server.dir().join("files"));
    assert_eq!(files.len(), 1);
    assert!(!files[0].to_string_lossy().contains("canary"));
    server.stop().await;
}

#[tokio::test]
async fn openapi_describes_what_the_server_answers() {
    let server = TestServer::start().await;
    let answer = get(server.address, "/openapi.json").await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let routes: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").keys().filter(|m| *m != "parameters");
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let named = |(method, path): (&str, &str)| (method.to_owned(), path.to_owned());
    let expected = [
        ("GET", "/"),
        ("GET", "/clients"),
        ("GET", "/clients/{id}"),
        ("POST", "/download/{client_id}"),
        ("GET", "/transfers"),
        ("GET", "/transfers/{id}"),
        ("DELETE", "/transfers/{id}"),
        ("POST", "/transfers/{id}/cancel"),
        ("POST", "/transfers/{id}/retry"),
        ("POST", "/transfers/{id}/pause"),
        ("POST", "/transfers/{id}/resume"),
        ("GET", "/transfers/{id}/content"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ];
    assert_eq!(routes, expected.into_iter().map(named).collect());
    // None of them is a route that only the document has.
    for (method, path) in routes {
        let target = path.replace("{id}", &TransferId::generate().to_string());
        let target = target.replace("{client_id}", "nobody");
        let answer = ask(server.address, &method, &target, &[], "").await;
        let missing = matches!(answer.status, 405)
            || (answer.status == 404 && answer.problem() == "NOT_FOUND");
        assert!(!missing, "{method} {target}: {}", answer.head);
    }
    server.stop().await;
}
