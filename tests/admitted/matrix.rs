//! Every method and every route, tried with every kind of credentials. What is right is written
//! here once more, by hand: nothing of it is asked of the server.

use std::time::Duration;

use fts::{
    server::access::Role,
    status::Reason,
    wire::{DESCRIPTORS, method::Method},
};
use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::{
    callers::{self, Standing},
    calls::{self, Http2, ask, call, http1, is_refusal, kept_out},
    common::{
        raw::{RawSession, hello},
        secured::Secured,
    },
};

/// The least that a caller must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Least {
    Nothing,
    JoinToken,
    Client,
    /// A client whose certificate may have expired, or that is to be approved.
    ClientToRenew,
    Role(Role),
}

use Least::{Client, ClientToRenew, JoinToken, Nothing};
const METRICS: Least = Least::Role(Role::Metrics);
const VIEWER: Least = Least::Role(Role::Viewer);
const OPERATOR: Least = Least::Role(Role::Operator);
const ADMIN: Least = Least::Role(Role::Admin);

pub const METHODS: &[(&str, Least)] = &[
    ("/fts.v1.FileTransfer/Connect", Client),
    ("/fts.v1.FileTransfer/UploadFile", Client),
    ("/fts.v1.Enrolment/Join", JoinToken),
    ("/fts.v1.Enrolment/Renew", ClientToRenew),
    ("/fts.v1.Control/TriggerDownload", OPERATOR),
    ("/fts.v1.Control/GetTransfer", VIEWER),
    ("/fts.v1.Control/ListTransfers", VIEWER),
    ("/fts.v1.Control/WatchTransfers", VIEWER),
    ("/fts.v1.Control/CancelTransfer", OPERATOR),
    ("/fts.v1.Control/RetryTransfer", OPERATOR),
    ("/fts.v1.Control/PauseTransfer", OPERATOR),
    ("/fts.v1.Control/ResumeTransfer", OPERATOR),
    ("/fts.v1.Control/DeleteTransfer", OPERATOR),
    ("/fts.v1.Control/ListClients", VIEWER),
    ("/fts.v1.Control/GetClient", VIEWER),
    ("/fts.v1.Control/ReadFile", VIEWER),
    ("/fts.v1.Control/ExplainPath", OPERATOR),
    ("/fts.v1.Control/WhoAmI", METRICS),
    ("/fts.v1.Admin/CreateJoinTokens", ADMIN),
    ("/fts.v1.Admin/ListJoinTokens", ADMIN),
    ("/fts.v1.Admin/RevokeJoinToken", ADMIN),
    ("/fts.v1.Admin/ListIdentities", ADMIN),
    ("/fts.v1.Admin/ApproveClient", ADMIN),
    ("/fts.v1.Admin/RevokeClient", ADMIN),
    ("/fts.v1.Admin/DeleteClient", ADMIN),
    ("/fts.v1.Admin/CreateOperator", ADMIN),
    ("/fts.v1.Admin/ListOperators", ADMIN),
    ("/fts.v1.Admin/RotateOperator", ADMIN),
    ("/fts.v1.Admin/RevokeOperator", ADMIN),
    ("/fts.v1.Admin/ReadAudit", ADMIN),
    ("/fts.v1.Admin/RotateAuthority", ADMIN),
    ("/fts.v1.Admin/FinishRotation", ADMIN),
    ("/fts.v1.Admin/RenewIntermediate", ADMIN),
    ("/grpc.health.v1.Health/Check", Nothing),
    ("/grpc.health.v1.Health/Watch", Nothing),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", VIEWER),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", VIEWER),
    // What is not there: that it is not is for those who may look.
    ("/grpc.health.v1.Health/List", VIEWER),
    ("/fts.v1.Control/Fly", VIEWER),
    ("/fts.v1.Control/", VIEWER),
    ("/fts.v1.control/listclients", VIEWER),
    ("/fts.v1.FileTransfer/connect", VIEWER),
    ("/fts.v1.FileTransfer/Connect/", VIEWER),
    ("//fts.v1.FileTransfer/Connect", VIEWER),
    ("/fts.v1.Admin/%52eadAudit", VIEWER),
    ("/fts.v2.Admin/ReadAudit", VIEWER),
];

/// Returns the reason why a caller is kept out of what needs so much; `None`: it gets in.
fn wanted(least: Least, standing: Standing) -> Option<Reason> {
    let certificate = match standing {
        Standing::Client | Standing::ClientAndAdmin => None,
        Standing::Expired => Some(Reason::CertificateExpired),
        Standing::Pending => Some(Reason::PendingApproval),
        Standing::Out => Some(Reason::Revoked),
        Standing::Nobody | Standing::Joiner | Standing::Role(_) => Some(Reason::Unauthenticated),
    };
    match (least, standing) {
        (Nothing, _)
        | (JoinToken, Standing::Joiner)
        | (ClientToRenew, Standing::Expired | Standing::Pending)
        | (Least::Role(_), Standing::ClientAndAdmin) => None,
        (Client | ClientToRenew, _) => certificate,
        (Least::Role(least), Standing::Role(role)) => {
            let order = [Role::Metrics, Role::Viewer, Role::Operator, Role::Admin];
            let rank = |role| order.iter().position(|each| *each == role);
            (rank(role) < rank(least)).then_some(Reason::PermissionDenied)
        }
        (JoinToken | Least::Role(_), _) => Some(Reason::Unauthenticated),
    }
}

/// Every method that the descriptors of the server have, and those of others that it serves.
fn described() -> Vec<String> {
    let mut sets = vec![FileDescriptorSet::decode(DESCRIPTORS).expect("descriptors")];
    let others = [
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    sets.extend(others.map(|set| FileDescriptorSet::decode(set).expect("descriptors")));
    let files = sets.iter().flat_map(|set| &set.file);
    let services = files.flat_map(|file| file.service.iter().map(|each| (file.package(), each)));
    services
        .flat_map(|(package, service)| {
            let path = move |name: &str| format!("/{package}.{}/{name}", service.name());
            service.method.iter().map(move |method| path(method.name()))
        })
        .collect()
}

#[test]
fn the_table_has_every_method_that_there_is() {
    let described = described();
    assert!(described.len() >= METHODS.len() - 10, "{described:?}");
    let known = |path: &str| METHODS.iter().any(|(each, _)| *each == path);
    for path in described.iter().map(String::as_str).chain(Method::ALL.iter().map(|m| m.path())) {
        assert!(known(path), "{path} is not in the table of this test");
    }
}

#[tokio::test]
async fn every_method_answers_those_who_have_the_least_for_it_and_nobody_else() {
    let secured = Secured::start().await;
    let mut wrong = Vec::new();
    for caller in callers::all(&secured).await {
        for (path, least) in METHODS {
            // Nobody who is kept out keeps a connection for long.
            let channel = secured.channel(caller.identity.as_ref()).await;
            let answer = call(&channel, &caller.headers, path).await;
            let (got, wanted) = (kept_out(&answer), wanted(*least, caller.standing));
            if got != wanted {
                wrong.push(format!("{}, {path}: {got:?} instead of {wanted:?}", caller.what));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    secured.server.stop().await;
}

#[tokio::test]
async fn a_certificate_that_is_not_ours_or_of_no_client_gets_no_answer_at_all() {
    let secured = Secured::start().await;
    let admin = secured.operator("alice", Role::Admin, Default::default()).await;
    let headers = [format!("Bearer {}", admin.reveal())];
    for (what, identity) in callers::strangers(&secured).await {
        let mut connection = http1(&secured, secured.server.address.port(), Some(&identity)).await;
        connection.send(&calls::request("GET", "/healthz", &headers)).await;
        let bytes = connection.until_end().await;
        assert!(bytes.is_empty(), "{what}: {}", String::from_utf8_lossy(&bytes));

        let route = secured.route(Some(&identity));
        let dialled = route.endpoint().connect_with_connector(route.connector()).await;
        let Ok(channel) = dialled else { continue };
        for path in ["/grpc.health.v1.Health/Check", "/fts.v1.FileTransfer/Connect"] {
            let status = call(&channel, &headers, path).await.expect_err("no answer");
            assert!(status.metadata().is_empty(), "{what}: {status:?}");
        }
    }
    secured.server.stop().await;
}

#[tokio::test]
async fn a_certificate_signed_by_hand_as_the_authority_does_is_good() {
    // Else the test before would show nothing.
    let secured = Secured::start().await;
    let client = secured.identity("by-hand").await.client;
    let uid = secured.credentials().identity(&client).await.expect("read").expect("known").uid;
    let identity = callers::signed_by_hand(&secured, &client, uid, |_| ());
    let channel = secured.channel(Some(&identity)).await;
    let instance = fts::ids::InstanceId::generate();
    RawSession::open_over(channel, hello("by-hand", instance)).await;

    let late = callers::signed_by_hand(&secured, &client, uid, |params| {
        params.not_before -= Duration::from_secs(400 * 86_400);
        params.not_after -= Duration::from_secs(170 * 86_400);
    });
    let channel = secured.channel(Some(&late)).await;
    let connected = call(&channel, &[], "/fts.v1.FileTransfer/Connect").await;
    let renewed = call(&channel, &[], "/fts.v1.Enrolment/Renew").await;
    assert_eq!(kept_out(&connected), Some(Reason::CertificateExpired));
    // It got as far as the records, which know nothing of its key.
    assert_eq!(kept_out(&renewed), Some(Reason::Revoked));
    secured.server.stop().await;
}

// === HTTP ===

/// A route, an example of it, and what each method needs that it takes.
type Route = (&'static str, &'static str, &'static [(&'static str, Least)]);

const ROUTES: &[Route] = &[
    ("/", "/", &[("GET", VIEWER)]),
    ("/healthz", "/healthz", &[("GET", Nothing), ("HEAD", Nothing)]),
    ("/readyz", "/readyz", &[("GET", Nothing), ("HEAD", Nothing)]),
    ("/metrics", "/metrics", &[("GET", METRICS), ("HEAD", METRICS)]),
    ("/openapi.json", "/openapi.json", &[("GET", VIEWER)]),
    ("/clients", "/clients", &[("GET", VIEWER)]),
    ("/clients/{id}", "/clients/nobody", &[("GET", VIEWER)]),
    ("/download/{client_id}", "/download/nobody", &[("POST", OPERATOR)]),
    ("/transfers", "/transfers", &[("GET", VIEWER)]),
    ("/transfers/{id}", TRANSFER, &[("GET", VIEWER), ("DELETE", OPERATOR)]),
    ("/transfers/{id}/cancel", CANCEL, &[("POST", OPERATOR)]),
    ("/transfers/{id}/retry", RETRY, &[("POST", OPERATOR)]),
    ("/transfers/{id}/pause", PAUSE, &[("POST", OPERATOR)]),
    ("/transfers/{id}/resume", RESUME, &[("POST", OPERATOR)]),
    ("/transfers/{id}/content", CONTENT, &[("GET", VIEWER)]),
];
const TRANSFER: &str = "/transfers/01890a5d-ac96-774b-bcce-b302099a8057";
const CANCEL: &str = "/transfers/01890a5d-ac96-774b-bcce-b302099a8057/cancel";
const RETRY: &str = "/transfers/01890a5d-ac96-774b-bcce-b302099a8057/retry";
const PAUSE: &str = "/transfers/01890a5d-ac96-774b-bcce-b302099a8057/pause";
const RESUME: &str = "/transfers/01890a5d-ac96-774b-bcce-b302099a8057/resume";
const CONTENT: &str = "/transfers/01890a5d-ac96-774b-bcce-b302099a8057/content";

/// Nothing of this is a route; it is for those who may look.
const ODD: &[&str] = &[
    "/healthz/",
    "//healthz",
    "/HEALTHZ",
    "/healthz%2f",
    "/%68ealthz",
    "/healthz/..",
    "/./healthz",
    "/%2e/healthz",
    "/healthz/../clients",
    "/healthz/%2e%2e/clients",
    "/healthz%00",
    "/readyz/verbose",
    "/clients/",
    "//clients",
    "/Clients",
    "/%63lients",
    "/metrics/",
    "/METRICS",
    "/nowhere",
    "/fts.v1.Control/",
    "/grpc.health.v1.Health/",
    "/grpc.health.v1.Health/check",
];

const VERBS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];

fn least_of(path: &str, verb: &str) -> Least {
    let route = ROUTES.iter().find(|(_, example, _)| *example == path);
    let least = route.and_then(|(.., takes)| takes.iter().find(|(each, _)| *each == verb));
    least.map_or(VIEWER, |(_, least)| *least)
}

/// Every target, and what a method needs there.
fn asked(verb: &str) -> Vec<(&'static str, Least)> {
    let mut all: Vec<_> = ROUTES.iter().map(|(_, path, _)| (*path, least_of(path, verb))).collect();
    all.extend(ODD.iter().map(|path| (*path, VIEWER)));
    // What follows the path is no part of the route.
    all.push(("/readyz?verbose", least_of("/readyz", verb)));
    all.push(("/clients?x=/healthz", VIEWER));
    all.push(("/clients?/healthz", VIEWER));
    all
}

/// Returns what is wrong with an answer, if anything.
fn judge(wanted: Option<Reason>, verb: &str, status: u16, body: &[u8]) -> Option<String> {
    let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let code = problem["code"].as_str().filter(|code| is_refusal(code));
    // A HEAD has no body; PENDING_APPROVAL, the only other status, no route answers.
    let is_out = if verb == "HEAD" { matches!(status, 401 | 403) } else { code.is_some() };
    let right = match wanted {
        None => !is_out,
        Some(reason) => {
            status == reason.http_status() && (verb == "HEAD" || code == Some(reason.as_str()))
        }
    };
    (!right).then(|| format!("{status} {code:?} instead of {wanted:?}"))
}

#[test]
fn the_table_has_every_route_that_is_documented() {
    let document = include_str!("../../src/server/http_api/openapi.json");
    let document: serde_json::Value = serde_json::from_str(document).expect("JSON");
    for (path, item) in document["paths"].as_object().expect("paths") {
        let route = ROUTES.iter().find(|(each, ..)| each == path);
        let (.., takes) = route.unwrap_or_else(|| panic!("{path} is not in this table"));
        for verb in item.as_object().expect("an object").keys().filter(|key| *key != "parameters") {
            let is_known = takes.iter().any(|(each, _)| each.eq_ignore_ascii_case(verb));
            assert!(is_known, "{verb} {path} is not in this table");
        }
    }
}

#[tokio::test]
async fn every_route_answers_those_who_have_the_least_for_it_and_nobody_else() {
    let secured = Secured::start().await;
    let port = secured.server.address.port();
    let mut wrong = Vec::new();
    for caller in callers::all(&secured).await {
        for verb in VERBS {
            // Nobody who is kept out keeps a connection for long.
            let mut one = http1(&secured, port, caller.identity.as_ref()).await;
            let mut two = Http2::open(&secured, caller.identity.as_ref()).await;
            for (target, least) in asked(verb) {
                let wanted = wanted(least, caller.standing);
                let answer = ask(&mut one, verb, target, &caller.headers).await;
                let absolute = format!("https://localhost:{port}{target}");
                let again = ask(&mut one, verb, &absolute, &caller.headers).await;
                let (status, body) = two.ask(verb, target, &caller.headers).await;
                let answers = [
                    ("1.1", answer.status, answer.body),
                    ("1.1, absolute", again.status, again.body),
                    ("2", status, body),
                ];
                let judged = answers.iter().filter_map(|(version, status, body)| {
                    let what = judge(wanted, verb, *status, body)?;
                    Some(format!("HTTP/{version}: {}, {verb} {target}: {what}", caller.what))
                });
                wrong.extend(judged);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of them: {wrong:#?}", wrong.len());
    secured.server.stop().await;
}

#[tokio::test]
async fn without_credentials_readiness_is_a_bare_word() {
    let secured = Secured::start().await;
    let port = secured.server.address.port();
    let mut connection = http1(&secured, port, None).await;
    for target in ["/readyz", "/readyz?verbose", "/readyz?verbose=1"] {
        let answer = ask(&mut connection, "GET", target, &[]).await;
        assert_eq!((answer.status, answer.text()), (200, "ready\n"), "{target}");
    }
    // Credentials that are good for nothing add nothing.
    let token = secured.operator("gone", Role::Admin, Default::default()).await;
    let name = "gone".parse().expect("a name");
    secured.administration.revoke_operator(&name).await.expect("revoked");
    let headers = [format!("Bearer {}", token.reveal())];
    let answer = ask(&mut connection, "GET", "/readyz?verbose", &headers).await;
    assert_eq!(answer.text(), "ready\n");
    secured.server.stop().await;
}
