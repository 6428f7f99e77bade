//! In clear text the server answers this machine only, and only as itself, over HTTP/1.1 as over
//! gRPC.

use fts::{
    server::guard::ClearText,
    status::{self, Reason},
    wire::proto::{
        ListClientsRequest, UploadFileRequest, control_client::ControlClient,
        file_transfer_client::FileTransferClient,
    },
};
use http::Uri;
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::common::{
    http::{Answer, ask},
    raw::RawSession,
    server::{Setup, TestServer},
};

async fn with(server: &TestServer, headers: &[(&str, &str)]) -> Answer {
    ask(server.address, "POST", "/download/client-1", headers, "").await
}

#[tokio::test]
async fn http_from_elsewhere_is_refused_and_does_nothing() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let port = server.address.port();
    let foreign_port = format!("http://localhost:{}", if port == 1 { 2 } else { 1 });
    let cases: &[&[(&str, &str)]] = &[
        &[("Host", "evil.com")],
        &[("Host", "localhost.evil.com:80")],
        &[("Host", "127.0.0.1.nip.io")],
        &[("Host", "")],
        &[("Host", "localhost"), ("Host", "localhost")],
        &[("X-Forwarded-For", "10.0.0.1")],
        &[("X-Forwarded-Host", "localhost")],
        &[("Forwarded", "for=127.0.0.1")],
        &[("Via", "1.1 proxy")],
        &[("Origin", "http://evil.com")],
        &[("Origin", "null")],
        &[("Origin", &foreign_port)],
        &[("Sec-Fetch-Site", "cross-site")],
    ];
    for headers in cases {
        let answer = with(&server, headers).await;
        assert_eq!((answer.status, &*answer.problem()), (403, "NOT_LOCAL"), "{headers:?}");
        // A page of another site may not read it either.
        assert!(answer.header("access-control-allow-origin").is_none(), "{headers:?}");
    }
    let list = ask(server.address, "GET", "/transfers", &[], "").await;
    assert_eq!(list.json()["transfers"], serde_json::json!([]));
    server.stop().await;
}

#[tokio::test]
async fn every_path_is_guarded() {
    let server = TestServer::start().await;
    let paths = ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/clients", "/nowhere"];
    for path in paths {
        let answer = ask(server.address, "GET", path, &[("Host", "evil.com")], "").await;
        assert_eq!((answer.status, &*answer.problem()), (403, "NOT_LOCAL"), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn this_machine_is_answered_by_every_loopback_name() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let port = server.address.port();
    for host in ["localhost", "127.0.0.1", "[::1]", "LOCALHOST"] {
        let (host, origin) = (format!("{host}:{port}"), format!("http://{host}:{port}"));
        let answer = with(&server, &[("Host", &host)]).await;
        assert_eq!(answer.status, 202, "{host}");
        let answer = with(&server, &[("Host", &host), ("Origin", &origin)]).await;
        assert_eq!(answer.status, 202, "{origin}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_insecure_server_answers_other_names_but_no_other_sites_page() {
    let setup = Setup { clear_text: ClearText::Insecure, ..Setup::default() };
    let server = TestServer::start_with(setup).await;
    let _session = RawSession::open(&server, "client-1").await;
    let host = ("Host", "files.example.com:3000");
    let via = ("Via", "1.1 proxy");
    assert_eq!(with(&server, &[host, via, ("X-Forwarded-For", "10.0.0.1")]).await.status, 202);
    let own = ("Origin", "http://files.example.com:3000");
    assert_eq!(with(&server, &[host, own]).await.status, 202);
    let answer = with(&server, &[host, ("Origin", "http://evil.com")]).await;
    assert_eq!((answer.status, &*answer.problem()), (403, "NOT_LOCAL"));
    server.stop().await;
}

fn assert_not_local(refused: &Status, what: &str) {
    assert_eq!(refused.code(), Code::PermissionDenied, "{what}: {refused:?}");
    assert_eq!(status::reason(refused), Some(Reason::NotLocal), "{what}: {refused:?}");
}

/// Returns a connection to the server that takes it for somebody else.
async fn channel_to(server: &TestServer, authority: &'static str) -> Channel {
    let endpoint = Endpoint::from_shared(server.url()).expect("an address");
    endpoint.origin(Uri::from_static(authority)).connect().await.expect("connected")
}

#[tokio::test]
async fn grpc_with_a_foreign_authority_is_refused() {
    let server = TestServer::start().await;
    for authority in ["http://evil.com", "http://127.0.0.1.nip.io:3000", "http://10.0.0.1:3000"] {
        let mut control = ControlClient::new(channel_to(&server, authority).await);

        let refused = control.list_clients(ListClientsRequest::default()).await;

        assert_not_local(&refused.expect_err("refused"), authority);
    }
    let mut control = ControlClient::new(channel_to(&server, "http://localhost:3000").await);
    control.list_clients(ListClientsRequest::default()).await.expect("answered");
    server.stop().await;
}

#[tokio::test]
async fn clients_are_guarded_like_operators() {
    let server = TestServer::start().await;
    let mut client = FileTransferClient::new(channel_to(&server, "http://evil.com").await);

    let connect = client.connect(tokio_stream::pending()).await.expect_err("refused");
    let upload = tokio_stream::iter([UploadFileRequest::default()]);
    let upload = client.upload_file(upload).await.expect_err("refused");

    assert_not_local(&connect, "Connect");
    assert_not_local(&upload, "UploadFile");
    server.stop().await;
}

#[tokio::test]
async fn grpc_through_a_proxy_or_from_a_page_is_refused() {
    let server = TestServer::start().await;
    let mut control = server.control().await;
    for (name, value) in [
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("via", "1.1 proxy"),
        ("origin", "http://evil.com"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let refused = ask_with(&mut control, name, value).await.expect_err("refused");
        assert_not_local(&refused, name);
    }
    ask_with(&mut control, "x-request-id", "7").await.expect("answered");
    server.stop().await;
}

async fn ask_with(
    control: &mut ControlClient<Channel>,
    name: &'static str,
    value: &'static str,
) -> Result<(), Status> {
    let mut request = Request::new(ListClientsRequest::default());
    request.metadata_mut().insert(name, MetadataValue::from_static(value));
    control.list_clients(request).await.map(drop)
}
