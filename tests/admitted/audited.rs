//! What is on record of what was done, and that no secret is in it, or anywhere else.

use std::path::Path;

use fts::{
    limits::CHUNK_BYTES,
    server::{
        access::{Role, Scope},
        audit::read_dir,
    },
    token::Secret,
    wire::{
        proto::{
            self, admin_client::AdminClient, control_client::ControlClient,
            enrolment_client::EnrolmentClient,
        },
        session::FromServer,
    },
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tonic::transport::Channel;

use super::{
    calls::{ask, http1},
    common::{
        bytes, files_beneath,
        secured::{Secured, bearing},
    },
    machine::{Machine, trigger},
};

/// Returns the lines of an action: who, and what came of it. Each says from where.
fn lines(secured: &Secured, action: &str) -> Vec<(String, String)> {
    let all = read_dir(secured.server.dir(), None).expect("an audit");
    let all = all.map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    all.filter(|line| line["action"] == action)
        .map(|line| {
            assert!(text(&line, "from").starts_with("127.0.0.1:"), "{line}");
            let who = format!("{} {}", text(&line, "actor"), text(&line, "name"));
            (who.trim().to_owned(), text(&line, "outcome"))
        })
        .collect()
}

fn said<const N: usize>(who: &str, outcomes: [&str; N]) -> Vec<(String, String)> {
    outcomes.map(|outcome| (who.to_owned(), outcome.to_owned())).to_vec()
}

fn csr() -> bytes::Bytes {
    let key = KeyPair::generate().expect("a key");
    let csr = CertificateParams::default().serialize_request(&key).expect("signed");
    csr.der().to_vec().into()
}

/// A server, an administrator, and a machine.
struct World {
    secured: Secured,
    admin: Secret,
    machine: Machine,
    control: ControlClient<Channel>,
}

async fn world() -> World {
    let secured = Secured::start().await;
    let admin = secured.operator("root", Role::Admin, Scope::default()).await;
    let machine = Machine::start(&secured, "web-1").await;
    let control = ControlClient::new(secured.channel(None).await);
    World { secured, admin, machine, control }
}

#[tokio::test]
async fn what_operators_ask_for_is_on_record_with_who_and_what_came_of_it() {
    let World { secured, admin, mut machine, mut control } = world().await;
    let ask_for = |client: &str| proto::TriggerDownloadRequest {
        client_id: client.to_owned(),
        path: "/raw".to_owned(),
        ..Default::default()
    };
    let asked = control.trigger_download(bearing(&admin, ask_for("web-1"))).await;
    let id = asked.expect("triggered").into_inner().transfer.expect("a transfer").id;
    control.trigger_download(bearing(&admin, ask_for("nobody"))).await.expect_err("refused");
    let data = bytes(2 * CHUNK_BYTES, 1);
    machine.deliver(&secured, id.parse().expect("an id"), &data).await;
    let read = proto::ReadFileRequest { transfer_id: id.clone(), ..Default::default() };
    let mut read = control.read_file(bearing(&admin, read)).await.expect("read").into_inner();
    while read.message().await.expect("no error").is_some() {}
    let cancel = proto::CancelTransferRequest { transfer_id: id };
    control.cancel_transfer(bearing(&admin, cancel)).await.expect_err("too late");
    let other = trigger(&secured, "web-1", "/other").await.to_string();
    let cancel = proto::CancelTransferRequest { transfer_id: other };
    control.cancel_transfer(bearing(&admin, cancel)).await.expect("cancelled");
    control.who_am_i(bearing(&admin, proto::WhoAmIRequest {})).await.expect("known");

    let root = "operator root";
    let triggered = said(root, ["asked", "done", "asked", "UNKNOWN_CLIENT"]);
    assert_eq!(lines(&secured, "transfer.trigger"), triggered);
    assert_eq!(lines(&secured, "content.read"), said(root, ["done"]));
    let cancelled = said(root, ["asked", "WRONG_STATE", "asked", "done"]);
    assert_eq!(lines(&secured, "transfer.cancel"), cancelled);
    assert_eq!(lines(&secured, "login"), said(root, ["done"]));
    secured.server.stop().await;
}

#[tokio::test]
async fn changes_of_the_authority_are_in_use_at_once_and_on_record() {
    let secured = Secured::start().await;
    let admin = secured.operator("root", Role::Admin, Scope::default()).await;
    let client = secured.identity("web-1").await;
    let old = secured.root();
    let mut calls = AdminClient::new(secured.channel(None).await);
    let finish = || bearing(&admin, proto::FinishRotationRequest {});
    let rotate = || bearing(&admin, proto::RotateAuthorityRequest {});
    let renew = || bearing(&admin, proto::RenewIntermediateRequest {});

    calls.finish_rotation(finish()).await.expect_err("none is under way");
    let rotated = calls.rotate_authority(rotate()).await.expect("rotated").into_inner();
    let rotated = rotated.authority.expect("an authority");
    assert_eq!(rotated.roots, 2);
    assert_ne!(rotated.root, old.to_string());
    assert_eq!(secured.tls.authority().root().to_string(), rotated.root);
    assert_eq!(secured.root(), old, "the server is known as before");
    calls.rotate_authority(rotate()).await.expect_err("one at a time");
    secured.channel(Some(&client)).await;
    calls.renew_intermediate(renew()).await.expect("renewed");
    let key = secured.pki().join("root.key");
    std::fs::remove_file(&key).expect("taken away");
    let missing = calls.renew_intermediate(renew()).await.expect_err("no key");
    assert!(missing.message().contains("root.key is not there"), "{missing:?}");
    let finished = calls.finish_rotation(finish()).await.expect("finished").into_inner();
    assert_eq!(finished.authority.expect("an authority").roots, 1);
    assert_eq!(secured.root().to_string(), rotated.root);
    secured.channel(None).await;

    let root = "operator root";
    let twice = ["asked", "done", "asked", "WRONG_STATE"];
    assert_eq!(lines(&secured, "ca.rotate"), said(root, twice));
    assert_eq!(lines(&secured, "ca.renew"), said(root, twice));
    let finished = ["asked", "WRONG_STATE", "asked", "done"];
    assert_eq!(lines(&secured, "ca.finish"), said(root, finished));
    secured.server.stop().await;
}

#[tokio::test]
async fn who_joins_renews_and_is_put_out_is_on_record() {
    let World { secured, admin, machine, .. } = world().await;
    let token = secured.join_token("web-2").await;
    let id = token.reveal().split('_').nth(2).expect("an id").to_owned();
    let mut enrolment = EnrolmentClient::new(secured.channel(None).await);
    let join = |client: &str| proto::JoinRequest {
        client_id: client.to_owned(),
        certificate_request: csr(),
        host_name: "host\nname".to_owned(),
    };
    enrolment.join(bearing(&token, join("web-9"))).await.expect_err("not for this id");
    enrolment.join(bearing(&token, join("web-2"))).await.expect("joined");
    enrolment.join(bearing(&token, join("web-2"))).await.expect_err("used up");
    let mut renewal = EnrolmentClient::new(machine.channel.clone());
    let renew = |request| proto::RenewRequest { certificate_request: request };
    renewal.renew(renew(csr())).await.expect("renewed");
    renewal.renew(renew(b"junk"[..].into())).await.expect_err("no request");
    let mut administrator = AdminClient::new(secured.channel(None).await);
    let revoke = || proto::RevokeClientRequest { client_id: "web-1".to_owned() };
    administrator.revoke_client(bearing(&admin, revoke())).await.expect("revoked");
    administrator.revoke_client(bearing(&admin, revoke())).await.expect_err("again");

    let mut joins = lines(&secured, "client.join");
    // What was refused at once is on record a little later.
    joins.retain(|(_, outcome)| matches!(outcome.as_str(), "asked" | "done"));
    assert_eq!(joins, said(&format!("token {id}"), ["asked", "done"]));
    let renewed = said("client web-1", ["asked", "done", "asked", "INVALID_ARGUMENT"]);
    assert_eq!(lines(&secured, "client.renew"), renewed);
    let revoked = said("operator root", ["asked", "done", "asked", "WRONG_STATE"]);
    assert_eq!(lines(&secured, "client.revoke"), revoked);
    let dir = secured.server.stop().await;
    let all = read_dir(dir.path(), None).expect("an audit").map(|line| line.expect("a line"));
    let joins: Vec<_> = all.filter(|line| line.contains("client.join")).collect();
    for refused in ["JOIN_REFUSED", "UNAUTHENTICATED"] {
        let count = joins.iter().filter(|line| line.contains(refused)).count();
        assert_eq!(count, 1, "{refused}: {joins:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_on_record_with_as_much_of_who_it_was_as_is_proved() {
    let World { secured, mut machine, mut control, .. } = world().await;
    let list = proto::ListClientsRequest::default;
    control.list_clients(list()).await.expect_err("refused");
    let viewer = secured.operator("eve", Role::Metrics, Scope::default()).await;
    control.list_clients(bearing(&viewer, list())).await.expect_err("refused");
    secured.administration.revoke(&machine.identity.client).await.expect("revoked");
    machine.session.end().await;
    let mut renewal = EnrolmentClient::new(machine.channel.clone());
    let renew = proto::RenewRequest { certificate_request: csr() };
    renewal.renew(renew).await.expect_err("refused");
    // The audit has all of it once the server has ended.
    let dir = secured.server.stop().await;

    let all = read_dir(dir.path(), None).expect("an audit");
    let all = all.map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
    let refused: Vec<_> = all.filter(|line| line["action"] == "refused").collect();
    let told: Vec<_> = refused
        .iter()
        .map(|line| {
            assert!(line["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")));
            (line["actor"].as_str(), line["name"].as_str(), line["outcome"].as_str())
        })
        .collect();
    let wanted = [
        (Some("unknown"), None, Some("UNAUTHENTICATED")),
        (Some("unknown"), None, Some("PERMISSION_DENIED")),
        (Some("client"), Some("web-1"), Some("REVOKED")),
    ];
    assert_eq!(told, wanted);
    assert_eq!(refused[0]["target"]["method"], "POST /fts.v1.Control/ListClients");
    assert!(refused[1]["target"]["token"].is_string(), "which token it was: {}", refused[1]);
}

#[tokio::test]
async fn no_secret_is_on_disk_or_among_the_metrics() {
    let World { secured, admin, mut control, machine } = world().await;
    let mut administrator = AdminClient::new(secured.channel(None).await);
    let wanted = proto::CreateJoinTokensRequest {
        patterns: vec!["web-2".to_owned(), "web-3".to_owned()],
        ..Default::default()
    };
    let made = administrator.create_join_tokens(bearing(&admin, wanted)).await.expect("made");
    let made = made.into_inner().tokens;
    let mut secrets: Vec<_> = made.into_iter().map(|token| Secret::new(token.text)).collect();
    let wanted = proto::CreateOperatorRequest {
        name: "bob".to_owned(),
        role: proto::Role::Viewer.into(),
        ..Default::default()
    };
    let bob = administrator.create_operator(bearing(&admin, wanted)).await.expect("made");
    secrets.push(Secret::new(bob.into_inner().token));
    let wanted = proto::RotateOperatorRequest { name: "bob".to_owned(), ttl: None };
    let bob = administrator.rotate_operator(bearing(&admin, wanted)).await.expect("made");
    let bob = Secret::new(bob.into_inner().token);
    let mut enrolment = EnrolmentClient::new(secured.channel(None).await);
    let join = proto::JoinRequest {
        client_id: "web-2".to_owned(),
        certificate_request: csr(),
        host_name: String::new(),
    };
    enrolment.join(bearing(&secrets[0], join)).await.expect("joined");
    control.who_am_i(bearing(&bob, proto::WhoAmIRequest {})).await.expect("known");
    // Refused ones too: of another kind, in another place, beside the point.
    let list = proto::ListClientsRequest::default;
    control.list_clients(bearing(&secrets[0], list())).await.expect_err("a join token");
    control.list_clients(bearing(&secrets[2], list())).await.expect_err("rotated away");
    secrets.extend([bob, admin.clone()]);
    let headers = [format!("Bearer {}", admin.reveal())];
    let mut http = http1(&secured, secured.server.address.port(), None).await;
    let metrics = ask(&mut http, "GET", "/metrics", &headers).await;
    assert_eq!(metrics.status, 200);
    let misplaced = format!("/clients?token={}", admin.reveal());
    ask(&mut http, "GET", &misplaced, &[]).await;
    drop((http, machine, control));
    let pki = secured.pki();
    let dir = secured.server.stop().await;

    let files = files_beneath(dir.path()).into_iter().filter(|path| !path.starts_with(&pki));
    let mut texts: Vec<_> = files
        .map(|path| (path.display().to_string(), std::fs::read(&path).expect("read")))
        .collect();
    texts.push(("/metrics".to_owned(), metrics.body));
    for token in &secrets {
        // The id is public: that it is there shows that this would find the rest.
        let parts: Vec<_> = token.reveal().split('_').collect();
        assert!(texts.iter().any(|(_, text)| has(text, parts[2])), "the id of a token");
        for (path, text) in &texts {
            assert!(!has(text, parts[3]), "the secret of {} is in {path}", parts[2]);
        }
    }
    assert!(texts.iter().any(|(path, _)| Path::new(path).ends_with("audit/audit.jsonl")));
}

fn has(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window == part.as_bytes())
}

#[tokio::test]
async fn a_machine_is_told_who_asks() {
    let World { secured, admin, mut machine, mut control } = world().await;
    let (client_id, path) = ("web-1".to_owned(), "/raw".to_owned());
    let ask = proto::TriggerDownloadRequest { client_id, path, ..Default::default() };
    control.trigger_download(bearing(&admin, ask)).await.expect("triggered");
    let command = machine.session.command().await;
    assert_eq!(command.operator.expect("a name").as_str(), "root");

    let (client_id, path) = ("web-1".to_owned(), "/raw".to_owned());
    let ask = bearing(&admin, proto::ExplainPathRequest { client_id, path });
    let hears = async {
        loop {
            if let FromServer::Explain { operator, .. } = machine.session.next().await {
                break operator;
            }
        }
    };
    let operator = tokio::select! {
        operator = hears => operator,
        answer = control.explain_path(ask) => panic!("nobody has answered: {answer:?}"),
    };
    assert_eq!(operator.expect("a name").as_str(), "root");
    secured.server.stop().await;
}
