//! What these tests share: a client with a demo file and a status page, transfers that are
//! delivered by hand, and answers with everything replaced that differs from run to run.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use fts::{
    client::{
        Client,
        config::{ClientConfig, Shared, StatusPort},
    },
    limits,
    route::Proxies,
    server_url::ServerUrl,
    shutdown::Shutdown,
    telemetry::LogFormat,
    wire::proto::{Transfer, receipt::Status},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::common::{
    http::Answer,
    process::pause,
    raw::{RawSession, RawUpload, receipt, upload},
    server::TestServer,
};

/// The client as it is without any settings: it shares one file, and has a status page.
pub struct DemoClient {
    pub file: PathBuf,
    pub status: SocketAddr,
    shutdown: Shutdown,
    running: JoinHandle<()>,
    _dir: TempDir,
}

impl DemoClient {
    /// Starts `client-1`, whose demo file is `data`.
    pub async fn start(server: &TestServer, data: &[u8]) -> Self {
        let dir = TempDir::new().expect("a directory");
        let file = dir.path().join("file_to_download.txt");
        fs::write(&file, data).expect("written");
        let path = file.to_str().expect("text").parse().expect("a path");
        let config = ClientConfig {
            server: ServerUrl::parse(&server.url()).expect("a URL"),
            id: "client-1".parse().expect("an id"),
            host_name: "test-host".to_owned(),
            status: StatusPort::Bound(TcpListener::bind("127.0.0.1:0").expect("a port")),
            shared: Shared::DemoFile { path, size: data.len() as u64 },
            policy_file: None,
            ca_file: None,
            sandbox: fts::client::sandbox::Mode::Off,
            ca: None,
            proxies: Proxies::off(),
            state_dir: dir.path().join("state"),
            rate_max: None,
            uploads_max: limits::JOBS,
            nice: 0,
            trusts_fingerprint: false,
            log_format: LogFormat::Text,
        };
        let client = Client::new(config).expect("a client");
        let status = client.status_address().expect("a page");
        let shutdown = Shutdown::new();
        let running = shutdown.spawn(client.run(shutdown.clone()));
        // It has said where its audit stands, and that is on record.
        while server.online("client-1").await.audit_head.is_empty() {
            pause();
        }
        Self { file, status, shutdown, running, _dir: dir }
    }

    pub async fn stop(self) {
        self.shutdown.drain();
        self.running.await.expect("no panic");
    }
}

/// Delivers `data` as the client of `session`, which is `client-1`, and says that it was read from
/// `path`.
pub async fn land(
    server: &TestServer,
    session: &mut RawSession,
    path: &str,
    data: &[u8],
) -> Transfer {
    let id = server.trigger("client-1", "/raw").await.id;
    let attempt = session.command().await.attempt;
    let mut header = session.header(attempt, data);
    path.clone_into(&mut header.path);
    let mut raw = RawUpload::open(server.address).await;
    raw.send_all(upload(&header, data)).await;
    let answer = raw.answer().await.expect("taken");
    assert_eq!(receipt(&answer), Status::Complete);
    server.transfer(&id).await
}

/// Waits until a client that hung up is OFFLINE.
pub async fn offline(server: &TestServer, session: RawSession) {
    drop(session);
    let probe = server.trigger("client-1", "/probe").await;
    let gone = |t: &Transfer| {
        let waiting = t.waiting.as_ref().map(fts::wire::proto::Waiting::reason);
        waiting == Some(fts::wire::proto::WaitingReason::ClientOffline)
    };
    server.follow(&probe.id, gone).await;
    let cancel = fts::wire::proto::CancelTransferRequest { transfer_id: probe.id };
    server.control().await.cancel_transfer(cancel).await.expect("cancelled");
}

/// Returns an answer as text, with `known` texts, times, ports and the length of the body replaced;
/// the length has been compared with the body.
pub fn normal(answer: &Answer, known: &[(&str, &str)]) -> String {
    let length = answer.header("content-length").expect("a length");
    assert_eq!(length, answer.body.len().to_string());
    let date = answer.header("date").expect("a date");
    let head = answer.head.replace(&format!("content-length: {length}"), "content-length: LENGTH");
    let head = head.replace(date, "DATE");
    let mut text = format!("{head}\n{}", answer.text());
    for (each, name) in known {
        text = text.replace(each, name);
    }
    without_ports(&without_times(&text))
}

fn without_times(text: &str) -> String {
    const LIKE: &str = "0000-00-00T00:00:00.000Z";
    let mut normal = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let is_time = rest.get(..LIKE.len()).is_some_and(|text| {
            let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
            text.chars().map(digits).eq(LIKE.chars())
        });
        let taken = if is_time {
            normal.push_str("TIME");
            LIKE.len()
        } else {
            normal.push(c);
            c.len_utf8()
        };
        rest = &rest[taken..];
    }
    normal
}

fn without_ports(text: &str) -> String {
    let mut parts = text.split("127.0.0.1:");
    let mut normal = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        normal.push_str("127.0.0.1:PORT");
        normal.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    normal
}

/// Replaces a number that is measured, where it is written as JSON.
pub fn without_number(text: &str, key: &str) -> String {
    let key = format!("\"{key}\":");
    let (before, after) = text.split_once(&key).unwrap_or_else(|| panic!("no {key} in {text}"));
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    assert!(rest.len() < after.len(), "a number: {after}");
    format!("{before}{key}N{rest}")
}
