//! What was refused behind the door is on record as what it is, also where the caller is told less;
//! who may do something may not do it without end; and rights are taken away whatever the audit's
//! disk says.

use fts::{
    audit_head::AuditHead,
    limits,
    server::{
        access::{Role, Scope},
        audit::read_dir,
    },
    status::{Reason, reason},
    transfer::FailReason,
    wire::{
        proto::{
            self, admin_client::AdminClient, control_client::ControlClient,
            enrolment_client::EnrolmentClient,
        },
        session::{FromClient, Hello, Outcome, Report, Upload},
    },
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

use super::{
    calls::{ask, http1},
    common::{
        raw::{RawSession, hello},
        secured::{Secured, bearing},
    },
    machine::{Machine, trigger},
};

/// Returns the lines of an audit, once its server has ended.
async fn lines(secured: Secured) -> Vec<Value> {
    let dir = secured.server.stop().await;
    let all = read_dir(dir.path(), None).expect("an audit");
    all.map(|line| serde_json::from_str(&line.expect("a line")).expect("JSON")).collect()
}

fn of<'a>(lines: &'a [Value], action: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["action"] == action).collect()
}

/// Returns how refusals are told: of whom, what, why, and about what.
fn refused(lines: &[Value], about: &str) -> Vec<[String; 4]> {
    let refused = lines.iter().filter(|line| line["log"] == "refused");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    refused
        .map(|line| {
            let [name, action, outcome] = ["name", "action", "outcome"].map(|key| text(&line[key]));
            [name, action, outcome, text(&line["target"][about])]
        })
        .collect()
}

#[tokio::test]
async fn who_speaks_for_another_client_is_on_record() {
    let secured = Secured::start().await;
    let mut victim = Machine::start(&secured, "victim").await;
    let mut mallory = Machine::start(&secured, "mallory").await;
    let transfer = trigger(&secured, "victim", "/raw").await;
    let attempt = victim.command(transfer).await;

    let channel = secured.channel(Some(&mallory.identity)).await;
    let hello = hello("victim", victim.session.instance);
    let not = RawSession::try_over(channel, hello).await.map(|_| ()).expect_err("refused");
    let mut upload = mallory.upload(&secured).await;
    upload.send(Upload::Header(victim.session.header(attempt, b"x"))).await;
    let unknown = upload.answer().await.expect_err("refused");
    let (outcome, detail) = (Outcome::Failed(FailReason::Io), String::new());
    mallory.session.say(FromClient::Report(Report { attempt, outcome, detail })).await;
    mallory.session.heard(Vec::new()).await;

    assert_eq!(reason(&not), Some(Reason::WrongClient));
    assert_eq!(reason(&unknown), Some(Reason::UnknownTransfer), "it is told no more");
    let lines = lines(secured).await;
    let id = transfer.to_string();
    let said = |action: &str, transfer: &str| {
        ["mallory", action, "WRONG_CLIENT", transfer].map(ToOwned::to_owned)
    };
    let wanted =
        [said("session.open", ""), said("transfer.upload", &id), said("transfer.report", &id)];
    assert_eq!(refused(&lines, "transfer"), wanted);
    let [.., text] = &refused(&lines, "text")[0];
    assert!(text.contains("victim"), "whom it named: {text}");
}

#[tokio::test]
async fn what_is_out_of_scope_is_on_record_as_that() {
    let secured = Secured::start().await;
    let _machine = Machine::start(&secured, "line4-1").await;
    let scope = Scope::parse(&["line3-*".to_owned()], &[]).expect("a scope");
    let alice = secured.operator("alice", Role::Operator, scope).await;
    let mut control = ControlClient::new(secured.channel(None).await);
    let id = trigger(&secured, "line4-1", "/raw").await.to_string();
    let mut unknown = Vec::new();
    macro_rules! tried {
        ($($method:ident: $request:ident,)*) => {$(
            let mut ask = proto::$request::default();
            id.clone_into(&mut ask.transfer_id);
            let refused = control.$method(bearing(&alice, ask)).await.map(|_| ());
            unknown.push(reason(&refused.expect_err("refused")));
        )*};
    }
    tried! {
        get_transfer: GetTransferRequest,
        watch_transfers: WatchTransfersRequest,
        read_file: ReadFileRequest,
        cancel_transfer: CancelTransferRequest,
    }
    let client_id = "line4-1".to_owned();
    let get = proto::GetClientRequest { client_id: client_id.clone() };
    control.get_client(bearing(&alice, get)).await.expect_err("refused");
    let get = proto::TriggerDownloadRequest { client_id, path: "/x".into(), ..Default::default() };
    control.trigger_download(bearing(&alice, get)).await.expect_err("refused");

    assert_eq!(unknown, [Some(Reason::UnknownTransfer); 4], "she is told no more");
    let lines = lines(secured).await;
    let denied = refused(&lines, "transfer");
    let said = |action: &str, transfer: &str| {
        ["alice", action, "PERMISSION_DENIED", transfer].map(ToOwned::to_owned)
    };
    let wanted = [
        said("transfer.read", &id),
        said("transfer.read", &id),
        said("content.read", &id),
        said("transfer.cancel", &id),
        said("client.read", ""),
        said("transfer.trigger", ""),
    ];
    assert_eq!(denied, wanted);
    assert_eq!(refused(&lines, "client")[4][3], "line4-1");
    assert_eq!(of(&lines, "transfer.cancel").len(), 1, "nothing was asked of anybody");
}

#[tokio::test]
async fn the_sessions_of_clients_are_on_record() {
    let secured = Secured::start().await;
    let mut machine = Machine::start(&secured, "web-1").await;
    let instance = machine.session.instance;
    let head = |seq| AuditHead { seq, hash: blake3::hash(b"its last line").into() };
    machine.session.told(head(3)).await;
    let again = Hello { audit_head: Some(head(4)), ..hello("web-1", instance) };
    drop(machine.session);
    drop(RawSession::open_over(machine.channel.clone(), again).await);

    let lines = lines(secured).await;

    let [opened, ended] = ["session.open", "session.end"].map(|action| of(&lines, action));
    assert_eq!((opened.len(), ended.len()), (2, 2));
    for line in opened.iter().chain(&ended) {
        assert_eq!((&line["actor"], &line["name"]), (&"client".into(), &"web-1".into()));
        assert!(line["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")));
    }
    assert_eq!(opened[0]["target"]["session"], ended[0]["target"]["session"]);
    // What the client's own audit was, whatever becomes of it later.
    let heads =
        [opened[0], ended[0], opened[1], ended[1]].map(|line| &line["target"]["audit_head"]);
    let [three, four] = [3, 4].map(|seq| Value::from(head(seq).to_string()));
    assert_eq!(heads, [&Value::Null, &three, &four, &four]);
    assert_eq!(opened[0]["target"]["instance"], instance.short());
    assert!(ended[0]["target"]["text"].is_string(), "why: {}", ended[0]);
}

#[tokio::test]
async fn how_tokens_and_operators_were_made_is_on_record() {
    let secured = Secured::start().await;
    let admin = secured.operator("root", Role::Admin, Scope::default()).await;
    let mut administrator = AdminClient::new(secured.channel(None).await);
    let hour = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let wanted = proto::CreateJoinTokensRequest {
        patterns: vec!["web-1".to_owned(), "web-2".to_owned()],
        uses_max: 3,
        ttl: hour(3600),
        needs_approval: true,
        replaces: true,
    };
    administrator.create_join_tokens(bearing(&admin, wanted)).await.expect("made");
    let wanted = proto::CreateOperatorRequest {
        name: "bob".to_owned(),
        role: proto::Role::Viewer.into(),
        scope: Some(proto::Scope { clients: vec!["web-*".to_owned()], paths: Vec::new() }),
        ttl: hour(7200),
    };
    administrator.create_operator(bearing(&admin, wanted)).await.expect("made");
    let wanted = proto::RotateOperatorRequest { name: "bob".to_owned(), ttl: hour(60) };
    administrator.rotate_operator(bearing(&admin, wanted)).await.expect("made");

    let lines = lines(secured).await;

    for made in of(&lines, "token.create") {
        let target = &made["target"];
        assert_eq!(target["patterns"], serde_json::json!(["web-1", "web-2"]));
        assert_eq!((&target["uses"], &target["ttl_seconds"]), (&3.into(), &3600.into()));
        assert_eq!((&target["approval"], &target["replaces"]), (&true.into(), &true.into()));
        let ids = target["tokens"].as_array().map(Vec::len);
        assert_eq!(ids, (made["outcome"] == "done").then_some(2));
    }
    for (action, ttl) in [("operator.create", 7200), ("operator.rotate", 60)] {
        let done = of(&lines, action);
        let target = &done.iter().find(|line| line["outcome"] == "done").expect("done")["target"];
        assert_eq!((&target["operator"], &target["role"]), (&"bob".into(), &"viewer".into()));
        assert_eq!(target["scope"]["clients"], serde_json::json!(["web-*"]));
        assert_eq!(target["ttl_seconds"], ttl, "{action}");
        assert!(target["expires"].is_string() && target["token"].is_string(), "{target}");
    }
}

#[tokio::test]
async fn rights_are_taken_away_also_when_the_audit_cannot_be_written() {
    let secured = Secured::start().await;
    let admin = secured.operator("root", Role::Admin, Scope::default()).await;
    secured.operator("bob", Role::Viewer, Scope::default()).await;
    let mut machine = Machine::start(&secured, "web-1").await;
    let token = secured.join_token("web-2").await;
    let token_id = token.reveal().split('_').nth(2).expect("an id").to_owned();
    let mut control = ControlClient::new(secured.channel(None).await);
    let mut administrator = AdminClient::new(secured.channel(None).await);
    let mut http = http1(&secured, secured.server.address.port(), None).await;
    let headers = [format!("Bearer {}", admin.reveal())];
    // As a disk would that is full: whatever is tried fails.
    let (audit, aside) = ["audit", "aside"].map(|name| secured.server.dir().join(name)).into();
    std::fs::rename(&audit, &aside).expect("moved");
    std::fs::write(&audit, b"in the way").expect("written");

    let (client_id, name) = ("web-1".to_owned(), "bob".to_owned());
    let ask_for =
        proto::TriggerDownloadRequest { client_id: client_id.clone(), ..Default::default() };
    let granted = control.trigger_download(bearing(&admin, ask_for)).await.map(|_| ());
    let wanted = proto::CreateOperatorRequest {
        name: "eve".to_owned(),
        role: proto::Role::Admin.into(),
        ..Default::default()
    };
    let made = administrator.create_operator(bearing(&admin, wanted)).await.map(|_| ());
    let revoke = proto::RevokeClientRequest { client_id: client_id.clone() };
    administrator.revoke_client(bearing(&admin, revoke)).await.expect("revoked");
    let delete = proto::DeleteClientRequest { client_id };
    administrator.delete_client(bearing(&admin, delete)).await.expect("deleted");
    let rotate = proto::RotateOperatorRequest { name: name.clone(), ttl: None };
    let rotated = administrator.rotate_operator(bearing(&admin, rotate)).await.map(|_| ());
    let revoke = proto::RevokeOperatorRequest { name };
    administrator.revoke_operator(bearing(&admin, revoke)).await.expect("revoked");
    let revoke = proto::RevokeJoinTokenRequest { token_id };
    administrator.revoke_join_token(bearing(&admin, revoke)).await.expect("revoked");
    let down = ask(&mut http, "GET", "/metrics", &headers).await;
    let ended = machine.session.end().await.expect("a reason");
    std::fs::remove_file(&audit).expect("removed");
    std::fs::rename(&aside, &audit).expect("moved");

    for refused in [granted, made, rotated] {
        assert_eq!(reason(&refused.expect_err("refused")), Some(Reason::Unavailable));
    }
    assert_eq!(reason(&ended), Some(Reason::Revoked));
    let down = String::from_utf8(down.body).expect("text");
    assert!(down.contains("\nfts_audit_up 0\n") && down.contains("\nfts_audit_owed 8\n"), "{down}");
    let lines = lines(secured).await;
    for action in ["client.revoke", "client.delete", "operator.revoke", "token.revoke"] {
        let outcomes: Vec<_> = of(&lines, action).iter().map(|line| &line["outcome"]).collect();
        assert_eq!(outcomes, ["asked", "done"], "{action}");
    }
    for action in ["operator.create", "operator.rotate"] {
        assert!(of(&lines, action).is_empty(), "{action}");
    }
}

#[tokio::test]
async fn who_may_join_renew_or_log_in_may_not_do_so_without_end() {
    let secured = Secured::start().await;
    let [web, other] =
        [Machine::start(&secured, "web-1").await, Machine::start(&secured, "web-2").await];
    let viewer = secured.operator("eve", Role::Viewer, Scope::default()).await;
    let mut control = ControlClient::new(secured.channel(None).await);
    let mut renewal = EnrolmentClient::new(web.channel.clone());
    // What it asks for does not matter: this is before anything is looked at.
    let junk = || proto::RenewRequest { certificate_request: b"junk"[..].into() };
    let (mut renewals, mut logins) = (0, 0);

    let over = loop {
        let status = renewal.renew(junk()).await.expect_err("junk");
        if reason(&status) != Some(Reason::InvalidArgument) {
            break status;
        }
        renewals += 1;
        assert!(renewals < 2 * limits::CERTIFICATES_PER_MINUTE, "it renews without end");
    };
    let denied = loop {
        match control.who_am_i(bearing(&viewer, proto::WhoAmIRequest {})).await {
            Ok(_) => logins += 1,
            Err(status) => break status,
        }
        assert!(logins < 2 * limits::LOGINS_PER_MINUTE, "it logs in without end");
    };

    assert_eq!(reason(&over), Some(Reason::OverQuota), "{over}");
    assert!(over.message().contains("more of it in"), "it is told when: {over}");
    assert_eq!(reason(&denied), Some(Reason::OverQuota), "{denied}");
    let joins = joins_until_refused(&secured).await;
    // There may be a few more if this took long.
    let most = limits::CERTIFICATES_PER_MINUTE;
    assert!(renewals >= most && joins >= most, "{renewals} renewals, {joins} joins");
    assert!(logins >= limits::LOGINS_PER_MINUTE, "{logins} logins");
    let others = EnrolmentClient::new(other.channel.clone()).renew(junk()).await;
    assert_eq!(reason(&others.expect_err("junk")), Some(Reason::InvalidArgument));
    let lines = lines(secured).await;
    let refused = refused(&lines, "client");
    assert_eq!(refused[0][..3], ["web-1", "client.renew", "OVER_QUOTA"]);
    assert_eq!(refused[1][..3], ["eve", "login", "OVER_QUOTA"]);
    assert_eq!(refused[2][1..], ["client.join", "OVER_QUOTA", "web-3"]);
}

/// Joins as one that loses each answer, and returns how often that went well.
async fn joins_until_refused(secured: &Secured) -> u32 {
    let token = secured.join_token("web-3").await;
    let key = KeyPair::generate().expect("a key");
    let request = CertificateParams::default().serialize_request(&key).expect("signed");
    let ask = proto::JoinRequest {
        client_id: "web-3".to_owned(),
        certificate_request: request.der().to_vec().into(),
        host_name: String::new(),
    };
    let mut enrolment = EnrolmentClient::new(secured.channel(None).await);
    let mut joins = 0;
    loop {
        match enrolment.join(bearing(&token, ask.clone())).await {
            Ok(_) => joins += 1,
            Err(status) => {
                assert_eq!(reason(&status), Some(Reason::OverQuota), "{status}");
                return joins;
            }
        }
        assert!(joins < 2 * limits::CERTIFICATES_PER_MINUTE, "it joins without end");
    }
}
