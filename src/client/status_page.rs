//! The status page: read-only, on loopback, for whoever is on this machine. A web page of somebody
//! else cannot read it: `Host` must be a loopback name with our port, so that a name that was
//! rebound to 127.0.0.1 does not do.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::{board::Board, config::StatusPort};
use crate::{limits, status::Reason};

/// The page, bound to its port.
#[derive(Debug)]
pub(super) struct StatusPage {
    listener: TcpListener,
    address: SocketAddr,
}

impl StatusPage {
    /// Binds the port; `None` if there shall be no page.
    pub(super) fn bind(port: StatusPort) -> Result<Option<Self>, String> {
        let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = match port {
            StatusPort::None => return Ok(None),
            StatusPort::Bound(listener) => listener,
            StatusPort::Chosen(port) => bind(port)
                .map_err(|err| format!("--status-port {port}: cannot listen there: {err}"))?,
            StatusPort::Default => match bind(limits::STATUS_PORT) {
                Ok(listener) => listener,
                Err(err) => {
                    let port = limits::STATUS_PORT;
                    tracing::warn!(port, error = %err, "no status page: choose a --status-port");
                    return Ok(None);
                }
            },
        };
        let ready = || {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            if address.ip().is_loopback() {
                Ok(address)
            } else {
                Err(io::Error::other("the status page is for loopback only"))
            }
        };
        let address = ready().map_err(|err| format!("the status page: {err}"))?;
        Ok(Some(Self { listener, address }))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until it is dropped. Few connections at a time, each for a short while: it is no way
    /// to exhaust the client.
    pub(super) async fn serve(self, board: Arc<Board>) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(err) => {
                tracing::warn!(error = %err, "no status page");
                return;
            }
        };
        let port = self.address.port();
        let mut connections = JoinSet::new();
        loop {
            let full = connections.len() >= limits::STATUS_CONNECTIONS_MAX;
            tokio::select! {
                _ = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept(), if !full => match accepted {
                    Ok((socket, _)) => {
                        connections.spawn(serve_one(socket, board.clone(), port));
                    }
                    // No descriptors left, say: again when a connection has ended, or a little
                    // later.
                    Err(err) => {
                        tracing::warn!(error = %err, "the status page cannot accept");
                        tokio::time::sleep(limits::DIAL_PAUSE_MIN).await;
                    }
                },
            }
        }
    }
}

async fn serve_one(socket: TcpStream, board: Arc<Board>, port: u16) {
    let service = tower::service_fn(move |request: Request<_>| {
        let response = answer(request.method(), request.uri(), request.headers(), port, &board);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    server.http1().keep_alive(false).timer(TokioTimer::new());
    let service = TowerToHyperService::new(service);
    let connection = server.serve_connection(TokioIo::new(socket), service);
    // Whoever is too slow, or hangs up, gets nothing; that is not our trouble.
    let _ = timeout(limits::STATUS_REQUEST_WAIT, connection).await;
}

fn answer(method: &Method, uri: &Uri, headers: &HeaderMap, port: u16, board: &Board) -> Response {
    if !is_local(uri, headers, port) {
        let detail = "the status page answers on this machine only, as localhost";
        return problem(Reason::NotLocal, detail);
    }
    if method != Method::GET {
        return problem(Reason::MethodNotAllowed, "the status page is read-only");
    }
    match uri.path() {
        "/status" => axum::Json(board.page()).into_response(),
        "/healthz" => "ok\n".into_response(),
        _ => problem(Reason::NotFound, "there are /status and /healthz"),
    }
}

fn is_local(uri: &Uri, headers: &HeaderMap, port: u16) -> bool {
    let foreign = headers.keys().any(|name| {
        *name == header::FORWARDED
            || *name == header::VIA
            || name.as_str().starts_with("x-forwarded-")
    });
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let host = host.to_str().is_ok_and(|host| is_ours(host, port));
    let target = uri.authority().is_none_or(|host| is_ours(host.as_str(), port));
    let ours =
        |origin: &str| origin.strip_prefix("http://").is_some_and(|host| is_ours(host, port));
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.all(|origin| origin.to_str().is_ok_and(ours));
    !foreign && host && target && origin
}

fn is_ours(host: &str, port: u16) -> bool {
    let (name, said) = match host.rsplit_once(':') {
        // The last colon of a bare IPv6 address is none before a port.
        Some((name, said)) if !said.ends_with(']') => (name, said.parse().ok()),
        _ => (host, Some(80)),
    };
    let name_is_ours =
        name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]";
    name_is_ours && said == Some(port)
}

/// An error as RFC 9457 has it.
fn problem(reason: Reason, detail: &str) -> Response {
    let status = StatusCode::from_u16(reason.http_status()).expect("reasons have HTTP statuses");
    let body = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "code": reason.as_str(),
        "detail": detail,
    });
    let headers = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, headers, Body::from(body.to_string())).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{
        client::{
            allowance::Allowance, audit::Audit, board::Facts, config::Shared, policy::Policy,
            shares::Shares, state_dir::StateDir,
        },
        ids::SessionEpoch,
    };

    fn board() -> Arc<Board> {
        let facts = Facts {
            id: "client-1".into(),
            instance: "0123abcd".into(),
            version: "1",
            server: "http://localhost:3000".into(),
        };
        let temp = tempfile::tempdir().expect("a directory");
        let state = StateDir::open(&temp.path().join("state")).expect("free");
        let audit = Audit::open(&state).expect("opened");
        let policy = Policy::of_roots(vec!["/srv".parse().expect("a path")]);
        let shares = Shares::new(&Shared::Policy(policy), Arc::new(state));
        Arc::new(Board::new(facts, &shares, Allowance::new(None, 4), audit))
    }

    fn status(method: &Method, path: &str, headers: &[(&'static str, &str)]) -> StatusCode {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        let uri = path.parse().expect("a target");
        answer(method, &uri, &map, 8080, &board()).status()
    }

    #[test]
    fn only_this_machine_is_answered_and_only_as_itself() {
        let get = |headers: &[(&'static str, &str)]| status(&Method::GET, "/status", headers);
        for host in ["localhost:8080", "LocalHost:8080", "127.0.0.1:8080", "[::1]:8080"] {
            assert_eq!(get(&[("host", host)]), 200, "{host}");
        }
        let hosts = [
            "evil.com",
            "evil.com:8080",
            "localhost",
            "localhost:80",
            "localhost:8081",
            "127.0.0.1.evil.com:8080",
            "localhost.evil.com:8080",
            "localhost:8080@evil.com",
            "",
            "0.0.0.0:8080",
            "[::1]",
            "::1:8080",
        ];
        for host in hosts {
            assert_eq!(get(&[("host", host)]), 403, "{host}");
        }
        assert_eq!(get(&[]), 403);
        assert_eq!(get(&[("host", "localhost:8080"), ("host", "evil.com")]), 403);
        let also = [
            ("origin", "http://evil.com"),
            ("origin", "null"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-for", "1.1.1.1"),
            ("via", "1.1 proxy"),
        ];
        for also in also {
            assert_eq!(get(&[("host", "localhost:8080"), also]), 403, "{also:?}");
        }
        assert_eq!(get(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]), 200);
        let proxied = status(&Method::GET, "http://evil.com/status", &[("host", "localhost:8080")]);
        assert_eq!(proxied, 403);
    }

    #[test]
    fn it_is_read_only_and_says_what_there_is() {
        let host = [("host", "localhost:8080")];
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS] {
            assert_eq!(status(&method, "/status", &host), 405, "{method}");
        }
        assert_eq!(status(&Method::GET, "/", &host), 404);
        assert_eq!(status(&Method::GET, "/healthz", &host), 200);
    }

    #[tokio::test]
    async fn it_tells_the_state_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let page = StatusPage::bind(StatusPort::Bound(listener)).expect("bound").expect("a page");
        let (address, board) = (page.address(), board());
        board.connected(SessionEpoch(7));
        let mut set = JoinSet::new();
        set.spawn(page.serve(board));
        let mut socket = TcpStream::connect(address).await.expect("connected");
        let request = format!("GET /status HTTP/1.1\r\nHost: {address}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut response = String::new();
        socket.read_to_string(&mut response).await.expect("answered");
        let (head, body) = response.split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body["id"], "client-1");
        assert_eq!(body["session"]["connected"], true);
        assert_eq!(body["session"]["epoch"], 7);
        assert!(body["default_file"].is_null());
        assert_eq!(body["jobs_max"], 4);
        assert!(body.get("max_rate_bytes_per_second").is_none());
        assert_eq!(body["transfers"], json!([]));
    }

    #[test]
    fn an_error_is_told_with_its_time() {
        let board = board();
        let page = || serde_json::to_value(board.page()).expect("JSON");
        assert!(page()["last_error_time"].is_null());
        board.disconnected("gone");
        assert_eq!(page()["last_error"], "gone");
        let at = page()["last_error_time"].as_str().map(humantime::parse_rfc3339);
        assert!(matches!(at, Some(Ok(_))), "{at:?}");
    }

    #[test]
    fn a_chosen_port_that_is_busy_is_an_error() {
        let busy = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = busy.local_addr().expect("an address").port();
        let err = StatusPage::bind(StatusPort::Chosen(port)).expect_err("busy");
        assert!(err.contains("--status-port"), "{err}");
        assert!(StatusPage::bind(StatusPort::None).expect("none").is_none());
    }
}
