//! What operators say over plain HTTP: decode, call the coordinator, encode as JSON. Errors are
//! problems (RFC 9457) with a stable `code`.

use std::{
    error::Error as StdError,
    future::{Ready, ready},
    sync::Arc,
};

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post},
};
use serde::Deserialize;
use tower_http::set_header::SetResponseHeaderLayer;

use super::{
    access::{Need, Role, need as need_of},
    audit::Audit,
    coordinator::Readiness,
    desk::Desk,
    gate::Caller,
    guard,
    metrics::{self, Metrics},
};
use crate::{limits, status::Reason, wire::method::Method};

mod clients;
mod content;
mod download;
mod extract;
mod json;
mod problem;
mod transfers;

use extract::Params;
pub use problem::Problem;

/// What the handlers share.
#[derive(Clone)]
struct Api {
    desk: Arc<Desk>,
    metrics: Arc<Metrics>,
}

impl AsRef<Arc<Desk>> for Api {
    fn as_ref(&self) -> &Arc<Desk> {
        &self.desk
    }
}

/// Returns the HTTP routes, to be merged with those of gRPC. No timeout is over them: a `?wait`
/// lasts minutes, and a large file for as long as its reader takes.
pub fn router(desk: Arc<Desk>, metrics: Arc<Metrics>) -> Router {
    let routes = ROUTES
        .iter()
        .fold(Router::new(), |router, (_, path, _, handler)| router.route(path, handler()));
    finished(routes).with_state(Api { desk, metrics })
}

/// Answers what no route takes, of gRPC or HTTP.
#[allow(clippy::needless_pass_by_value)] // A handler owns its request.
pub fn fallback(request: Request) -> Ready<Response> {
    let text = "no such path; GET / says what there is";
    ready(if guard::is_grpc(request.headers()) {
        tonic::Status::unimplemented("no such method").into_http()
    } else {
        Problem::new(Reason::NotFound, text).into_response()
    })
}

/// Method, path, what it needs, handler.
type Route = (&'static str, &'static str, Door, fn() -> MethodRouter<Api>);

/// What a route needs.
#[derive(Debug, Clone, Copy)]
enum Door {
    /// Nothing: a bare status.
    Free,
    /// What this method needs, which does the same.
    As(Method),
    Role(Role),
}

/// Every route, as `openapi.json` has it.
const ROUTES: &[Route] = {
    use Door::{As, Free};
    const VIEWER: Door = Door::Role(Role::Viewer);
    &[
        ("get", "/", VIEWER, || get(index)),
        ("get", "/healthz", Free, || get(healthz)),
        ("get", "/readyz", Free, || get(readyz)),
        ("get", "/metrics", Door::Role(Role::Metrics), || get(metrics_text)),
        ("get", "/openapi.json", VIEWER, || get(openapi)),
        ("get", "/clients", As(Method::ControlListClients), || get(clients::list)),
        ("get", "/clients/{id}", As(Method::ControlGetClient), || get(clients::one)),
        ("post", "/download/{client_id}", As(Method::ControlTriggerDownload), || {
            post(download::download)
        }),
        ("get", "/transfers", As(Method::ControlListTransfers), || get(transfers::list)),
        ("get", "/transfers/{id}", As(Method::ControlGetTransfer), || get(transfers::one)),
        ("delete", "/transfers/{id}", As(Method::ControlDeleteTransfer), || {
            delete(transfers::remove)
        }),
        ("post", "/transfers/{id}/cancel", As(Method::ControlCancelTransfer), || {
            post(transfers::cancel)
        }),
        ("post", "/transfers/{id}/retry", As(Method::ControlRetryTransfer), || {
            post(transfers::retry)
        }),
        ("post", "/transfers/{id}/pause", As(Method::ControlPauseTransfer), || {
            post(transfers::pause)
        }),
        ("post", "/transfers/{id}/resume", As(Method::ControlResumeTransfer), || {
            post(transfers::resume)
        }),
        ("get", "/transfers/{id}/content", As(Method::ControlReadFile), || get(content::content)),
    ]
};

/// Returns what a request for this route needs; `None` if there is no such route.
pub(super) fn need(method: &http::Method, matched: &str) -> Option<Need> {
    // A HEAD is answered as a GET is.
    let method = if method == http::Method::HEAD { "GET" } else { method.as_str() };
    let is_it = |(name, path, ..): &&Route| name.eq_ignore_ascii_case(method) && *path == matched;
    ROUTES.iter().find(is_it).map(|(_, _, door, _)| match door {
        Door::Free => Need::Nothing,
        Door::As(method) => need_of(*method),
        Door::Role(role) => Need::Role(*role),
    })
}

fn method_not_allowed() -> Ready<Problem> {
    let text = "this path takes other methods; see Allow";
    ready(Problem::new(Reason::MethodNotAllowed, text))
}

/// Adds what every route has.
fn finished<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    let header =
        |name, value| SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value));
    routes
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(limits::HTTP_BODY_BYTES_MAX))
        .layer(header(header::CACHE_CONTROL, "no-store"))
        .layer(header(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
}

// === What every server has ===

async fn index(uri: Uri, headers: HeaderMap) -> String {
    index_text(guard::host(&uri, &headers))
}

fn index_text(host: Option<&str>) -> String {
    // It is made to be pasted into a shell: another's text must be nothing there.
    let plain = |host: &&str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':');
        host.bytes().all(plain)
    };
    let host = host.filter(plain).unwrap_or("localhost:3000");
    format!(
        "fts-server {version}

curl http://{host}/clients
curl -X POST 'http://{host}/download/client-1'
curl -X POST 'http://{host}/download/client-1?path=/var/log/syslog&wait=60'
curl http://{host}/transfers
curl -OJ http://{host}/transfers/ID/content

All of it: http://{host}/openapi.json   Metrics: http://{host}/metrics
gRPC, with reflection, is on the same port: grpcurl -plaintext {host} list
",
        version = env!("CARGO_PKG_VERSION")
    )
}

async fn healthz() -> &'static str {
    "ok\n"
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Verbosity {
    /// There, with any value.
    verbose: Option<String>,
}

/// Who shows no credentials, where they are asked for, gets a bare status.
async fn readyz(
    State(api): State<Api>,
    Params(query): Params<Verbosity>,
    caller: Option<Extension<Caller>>,
) -> (StatusCode, String) {
    let verbose = query.verbose.is_some() && caller.is_some();
    readiness_text(&api.desk.coordinator.readiness().await, verbose)
}

fn readiness_text(readiness: &Readiness, verbose: bool) -> (StatusCode, String) {
    let (status, mut text) = if readiness.ready {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned())
    };
    if verbose {
        // One line each, whatever is in a value.
        let line = |(name, value): &(_, String)| format!("{name}: {}\n", value.replace('\n', " "));
        text.extend(readiness.details.iter().map(line));
    }
    (status, text)
}

async fn metrics_text(State(api): State<Api>) -> Result<Response, Problem> {
    match api.desk.coordinator.counts().await {
        Ok(counts) => {
            api.metrics.set_transfers(&counts.transfers);
            api.metrics.set_clients(&counts.clients);
            api.metrics.store_answered();
        }
        // What this process counts itself is worth a scrape all the same.
        Err(err) => {
            err.log();
            api.metrics.store_failed();
        }
    }
    // Without one there is nothing that could fail.
    let (is_up, owed) = api.desk.audit.as_ref().map_or((true, 0), Audit::standing);
    api.metrics.set_audit(is_up, owed);
    let text = api.metrics.encode().map_err(|err| {
        tracing::error!(error = &err as &dyn StdError, "could not write the metrics");
        Problem::new(Reason::Internal, "internal error")
    })?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

const OPENAPI: &str = include_str!("http_api/openapi.json");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::{
        body::{Body, Bytes, to_bytes},
        extract::rejection::BytesRejection,
    };
    use serde_json::Value;
    use tower::ServiceExt as _;

    use super::*;

    fn openapi() -> Value {
        serde_json::from_str(OPENAPI).expect("openapi.json is JSON")
    }

    async fn ask(request: Request) -> (Response<()>, Value) {
        let take = async |body: Result<Bytes, BytesRejection>| match body {
            Ok(_) => Ok("taken"),
            Err(err) => Err(Problem::from(err)),
        };
        let app = finished(Router::new().route("/x", post(take))).fallback(fallback);
        let (head, body) = app.oneshot(request).await.expect("infallible").into_parts();
        let body = to_bytes(body, 4096).await.expect("read");
        (Response::from_parts(head, ()), serde_json::from_slice(&body).unwrap_or_default())
    }

    #[test]
    fn openapi_has_every_route_and_no_other() {
        let document = openapi();
        let paths = document["paths"].as_object().expect("paths");
        let documented: BTreeSet<_> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("an object").keys();
                let methods = methods.filter(|key| *key != "parameters");
                methods.map(move |method| (method.as_str(), path.as_str()))
            })
            .collect();
        let routes: BTreeSet<_> =
            ROUTES.iter().map(|(method, path, ..)| (*method, *path)).collect();
        assert_eq!(documented, routes);
    }

    #[test]
    fn openapi_has_every_code_and_no_other() {
        let document = openapi();
        let codes = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
        let documented: BTreeSet<_> =
            codes.as_array().expect("codes").iter().filter_map(Value::as_str).collect();
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(documented, codes);
    }

    #[test]
    fn openapi_refers_only_to_what_it_has() {
        let document = openapi();
        for part in OPENAPI.split("\"$ref\": \"#").skip(1) {
            let pointer = part.split('"').next().expect("a reference");
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[tokio::test]
    async fn another_method_is_a_problem_that_names_the_right_ones() {
        let request = Request::get("/x").body(Body::empty()).expect("valid");
        let (response, problem) = ask(request).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["allow"], "POST");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert_eq!(problem["code"], "METHOD_NOT_ALLOWED");
    }

    #[tokio::test]
    async fn an_unknown_path_is_a_problem() {
        let request = Request::get("/nowhere").body(Body::empty()).expect("valid");
        let (response, problem) = ask(request).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(problem["code"], "NOT_FOUND");
        assert_eq!(problem["title"], "Not Found");
    }

    #[tokio::test]
    async fn an_unknown_grpc_method_is_unimplemented() {
        let request =
            Request::post("/fts.v9.Control/Fly").header("content-type", "application/grpc");
        let (response, _) = ask(request.body(Body::empty()).expect("valid")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "12");
    }

    #[tokio::test]
    async fn a_large_body_is_a_problem() {
        let body = |bytes| Body::from(vec![b' '; bytes]);
        let request = Request::post("/x").body(body(limits::HTTP_BODY_BYTES_MAX + 1));
        let (response, problem) = ask(request.expect("valid")).await;
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(problem["code"], "TOO_LARGE");

        let request = Request::post("/x").body(body(limits::HTTP_BODY_BYTES_MAX));
        let (response, _) = ask(request.expect("valid")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    }

    #[test]
    fn readiness_is_bare_unless_details_are_asked_for() {
        let details = vec![("store", "ok".to_owned()), ("disk", "1 GB\nfree".to_owned())];
        let mut readiness = Readiness { ready: true, details };
        assert_eq!(readiness_text(&readiness, false), (StatusCode::OK, "ready\n".to_owned()));
        readiness.ready = false;
        let (status, text) = readiness_text(&readiness, true);
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "not ready\nstore: ok\ndisk: 1 GB free\n");
    }

    #[test]
    fn what_to_type_names_this_server_but_never_a_strange_host() {
        assert!(index_text(Some("127.0.0.1:4000")).contains("curl http://127.0.0.1:4000/clients"));
        for strange in ["$(reboot)", "a b", "a'b", "[::1]:1"] {
            assert!(index_text(Some(strange)).contains("curl http://localhost:3000/clients"));
        }
    }
}
