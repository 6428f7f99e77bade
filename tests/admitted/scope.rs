//! What is out of an operator's scope is, for that operator, not there.

use std::collections::BTreeSet;

use fts::{
    ids::TransferId,
    limits::CHUNK_BYTES,
    server::access::{Role, Scope},
    status::{Reason, reason},
    token::Secret,
    transfer::{State, Transfer},
    wire::proto::{self, control_client::ControlClient, watch_transfers_response::Kind},
};
use tonic::{Code, Status, transport::Channel};

use super::{
    calls::{Http1, ask, http1, request},
    common::{
        bytes,
        raw::{chunks, finish},
        secured::{Secured, bearing},
    },
    machine::{Machine, record, trigger, until},
};

/// A server with two clients, and an operator who may see `/var/log` of one of them.
struct World {
    secured: Secured,
    alice: Secret,
    /// Of her scope.
    line3: Machine,
    line4: Machine,
    control: ControlClient<Channel>,
}

async fn world() -> World {
    let secured = Secured::start().await;
    let clients = ["line3-*".to_owned()];
    let scope = Scope::parse(&clients, &["/var/log".to_owned()]).expect("a scope");
    let alice = secured.operator("alice", Role::Operator, scope).await;
    let line3 = Machine::start(&secured, "line3-1").await;
    let line4 = Machine::start(&secured, "line4-1").await;
    let control = ControlClient::new(secured.channel(None).await);
    World { secured, alice, line3, line4, control }
}

impl World {
    /// Transfers that she must not see, each in another state.
    async fn hidden(&mut self) -> Vec<TransferId> {
        let secured = &self.secured;
        let complete = trigger(secured, "line4-1", "/var/log/complete").await;
        self.line4.deliver(secured, complete, b"secret").await;
        until(secured, complete, State::Complete).await;
        let cancelled = trigger(secured, "line4-1", "/var/log/cancelled").await;
        secured.server.coordinator.cancel(cancelled).await.expect("cancelled");
        let paused = trigger(secured, "line4-1", "/var/log/paused").await;
        secured.server.coordinator.pause(paused).await.expect("paused");
        let mut hidden = vec![complete, cancelled, paused];
        for path in ["/etc/passwd", "/var/logs/beside", "/var", ""] {
            hidden.push(trigger(secured, "line3-1", path).await);
        }
        // All commands have gone out: nothing changes by itself any more.
        for _ in 3..hidden.len() {
            self.line3.session.command().await;
        }
        self.line3.session.heard(Vec::new()).await;
        hidden
    }

    fn headers(&self) -> Vec<String> {
        vec![format!("Bearer {}", self.alice.reveal())]
    }

    async fn http(&self) -> Http1 {
        http1(&self.secured, self.secured.server.address.port(), None).await
    }
}

/// Everything that a refusal tells, but for the id that was asked for.
#[derive(Debug, PartialEq)]
struct Told {
    code: Code,
    text: String,
    reason: Option<Reason>,
    details: String,
    headers: BTreeSet<String>,
}

fn told(status: &Status, id: &str) -> Told {
    let headers = status.metadata().keys().map(|key| format!("{key:?}")).collect();
    Told {
        code: status.code(),
        text: status.message().replace(id, "ID"),
        reason: reason(status),
        details: String::from_utf8_lossy(status.details()).replace(id, "ID"),
        headers,
    }
}

/// Tries every method that names a transfer, and returns how each is refused.
async fn refusals(
    control: &mut ControlClient<Channel>,
    token: &Secret,
    id: &str,
) -> Vec<(&'static str, Told)> {
    let mut all = Vec::new();
    macro_rules! tried {
        ($($method:ident: $request:ident,)*) => {$(
            let mut ask = proto::$request::default();
            id.clone_into(&mut ask.transfer_id);
            let answer = control.$method(bearing(token, ask)).await.map(drop);
            let status = answer.expect_err(stringify!($method));
            all.push((stringify!($method), told(&status, id)));
        )*};
    }
    tried! {
        get_transfer: GetTransferRequest,
        watch_transfers: WatchTransfersRequest,
        read_file: ReadFileRequest,
        cancel_transfer: CancelTransferRequest,
        retry_transfer: RetryTransferRequest,
        pause_transfer: PauseTransferRequest,
        resume_transfer: ResumeTransferRequest,
        delete_transfer: DeleteTransferRequest,
    }
    let ask = proto::WatchTransfersRequest {
        transfer_id: id.to_owned(),
        resume_token: "1".to_owned(),
        ..Default::default()
    };
    let status = control.watch_transfers(bearing(token, ask)).await.expect_err("refused");
    all.push(("watch_transfers, resumed", told(&status, id)));
    all
}

/// The same over HTTP.
async fn http_refusals(
    connection: &mut Http1,
    headers: &[String],
    id: &str,
) -> Vec<(String, u16, BTreeSet<String>, String)> {
    let routes = [
        ("GET", ""),
        ("HEAD", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("GET", "/content"),
        ("HEAD", "/content"),
    ];
    let mut all = Vec::new();
    for (verb, rest) in routes {
        let answer = ask(connection, verb, &format!("/transfers/{id}{rest}"), headers).await;
        let names = answer.head.lines().filter(|line| !line.starts_with("date: "));
        let names = names.map(str::to_owned).collect();
        let body = answer.text().replace(id, "ID");
        all.push((format!("{verb} {rest}"), answer.status, names, body));
    }
    all
}

#[tokio::test]
async fn a_transfer_out_of_scope_is_answered_exactly_as_one_that_is_not_there() {
    let mut world = world().await;
    let hidden = world.hidden().await;
    let before = records(&world.secured, &hidden).await;
    let (headers, mut http) = (world.headers(), world.http().await);
    let absent = TransferId::generate().to_string();

    let of_absent = refusals(&mut world.control, &world.alice, &absent).await;
    let of_absent_http = http_refusals(&mut http, &headers, &absent).await;

    assert!(of_absent.iter().all(|(_, told)| told.reason == Some(Reason::UnknownTransfer)));
    for id in &hidden {
        let id = id.to_string();
        let got = refusals(&mut world.control, &world.alice, &id).await;
        assert_eq!(got, of_absent);
        assert_eq!(http_refusals(&mut http, &headers, &id).await, of_absent_http);
    }
    assert_eq!(records(&world.secured, &hidden).await, before, "nothing was done to them");
    world.secured.server.stop().await;
}

async fn records(secured: &Secured, ids: &[TransferId]) -> Vec<Transfer> {
    let mut all = Vec::new();
    for id in ids {
        all.push(record(secured, *id).await);
    }
    all
}

#[tokio::test]
async fn lists_hold_what_is_in_scope_however_they_are_paged_and_filtered() {
    let mut world = world().await;
    world.hidden().await;
    let mut seen = BTreeSet::new();
    for path in ["/var/log/a", "/var/log", "/var/log/deep/b"] {
        seen.insert(trigger(&world.secured, "line3-1", path).await.to_string());
        world.line3.session.command().await;
        trigger(&world.secured, "line4-1", path).await;
    }

    for page_size in [0, 1, 2, 1000] {
        for (client_id, wanted) in [("", &seen), ("line3-1", &seen), ("line4-1", &BTreeSet::new())]
        {
            let listed = listed(&mut world, page_size, client_id).await;
            assert_eq!(listed, *wanted, "{page_size} {client_id:?}");
        }
    }
    let (headers, mut http) = (world.headers(), world.http().await);
    for query in ["?page_size=1", "?client=line4-1", "?state=COMPLETE", "?client=line3-1", ""] {
        let mut ids = BTreeSet::new();
        let join = if query.is_empty() { "?" } else { "&" };
        let mut token = String::new();
        loop {
            let target = format!("/transfers{query}{join}page_token={token}");
            let page = ask(&mut http, "GET", &target, &headers).await.json();
            let transfers = page["transfers"].as_array().expect("transfers");
            ids.extend(transfers.iter().map(|t| t["id"].as_str().expect("an id").to_owned()));
            page["next_page_token"].as_str().expect("a token").clone_into(&mut token);
            if token.is_empty() {
                break;
            }
            assert!(ids.contains(&id_in(&token)), "{query}: its token names one that is hidden");
        }
        let is_empty = query.contains("line4") || query.contains("COMPLETE");
        assert_eq!(ids, if is_empty { BTreeSet::new() } else { seen.clone() }, "{query}");
    }
    world.secured.server.stop().await;
}

/// Returns the id that whoever has a page token can read from it.
fn id_in(page_token: &str) -> String {
    let bytes = (0..page_token.len()).step_by(2);
    let bytes = bytes.map(|at| u8::from_str_radix(&page_token[at..at + 2], 16).expect("digits"));
    String::from_utf8(bytes.collect()).expect("text")
}

async fn listed(world: &mut World, page_size: u32, client_id: &str) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let client_id = client_id.to_owned();
        let ask =
            proto::ListTransfersRequest { client_id, page_size, page_token, ..Default::default() };
        let page = world.control.list_transfers(bearing(&world.alice, ask)).await;
        let page = page.expect("listed").into_inner();
        ids.extend(page.transfers.into_iter().map(|transfer| transfer.id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return ids;
        }
        assert!(ids.contains(&id_in(&page_token)), "its token names one that is hidden");
    }
}

#[tokio::test]
async fn a_client_out_of_scope_is_answered_as_one_that_is_not_there() {
    let mut world = world().await;
    // Before hers, between them, and after.
    let _more = [
        Machine::start(&world.secured, "line1-1").await,
        Machine::start(&world.secured, "line3-2").await,
        Machine::start(&world.secured, "line2-1").await,
    ];
    let (headers, mut http) = (world.headers(), world.http().await);

    for page_size in [1, 2, 1000] {
        let mut ids = Vec::new();
        let mut ask = proto::ListClientsRequest { page_size, ..Default::default() };
        loop {
            let page = world.control.list_clients(bearing(&world.alice, ask)).await;
            let page = page.expect("listed").into_inner();
            ids.extend(page.clients.into_iter().map(|client| client.id));
            if page.next_page_token.is_empty() {
                break;
            }
            let named = id_in(&page.next_page_token);
            assert!(ids.contains(&named), "a token names {named}, which is hidden");
            ask = proto::ListClientsRequest { page_size, page_token: page.next_page_token };
        }
        assert_eq!(ids, ["line3-1", "line3-2"]);
    }
    let page = ask(&mut http, "GET", "/clients", &headers).await.json();
    assert_eq!(page["clients"].as_array().expect("clients").len(), 2);

    let mut refused = Vec::new();
    for id in ["line4-1", "line4-none"] {
        let get = proto::GetClientRequest { client_id: id.to_owned() };
        let status = world.control.get_client(bearing(&world.alice, get)).await;
        let answer = ask(&mut http, "GET", &format!("/clients/{id}"), &headers).await;
        let told = told(&status.map(drop).expect_err("refused"), id);
        refused.push((told, answer.status, answer.text().replace(id, "ID")));
    }
    assert_eq!(refused[0], refused[1]);
    world.secured.server.stop().await;
}

#[tokio::test]
async fn nothing_can_be_asked_for_out_of_scope() {
    let mut world = world().await;
    let (headers, mut http) = (world.headers(), world.http().await);
    let out = [
        ("line4-1", "/var/log/a"),
        ("line4-none", "/var/log/a"),
        ("xline3-1", "/var/log/a"),
        ("line3-1", "/etc/passwd"),
        ("line3-1", "/var/logs"),
        ("line3-1", "/var"),
        ("line3-1", "/"),
        ("line3-1", ""),
    ];
    for (client, path) in out {
        let status = ask_for(&mut world, client, path, "").await.expect_err("refused");
        assert_eq!(reason(&status), Some(Reason::PermissionDenied), "{client} {path}: {status:?}");
        if !path.is_empty() {
            let ask = proto::ExplainPathRequest { client_id: client.into(), path: path.into() };
            let answer = world.control.explain_path(bearing(&world.alice, ask)).await;
            let status = answer.expect_err("refused");
            assert_eq!(reason(&status), Some(Reason::PermissionDenied), "{client} {path}");
        }
        let target = format!("/download/{client}?path={path}");
        let answer = ask(&mut http, "POST", &target, &headers).await;
        assert_eq!((answer.status, answer.problem().as_str()), (403, "PERMISSION_DENIED"));
    }
    // A way out of it is no path at all.
    for path in ["/var/log/../../etc/passwd", "var/log/a"] {
        let status = ask_for(&mut world, "line3-1", path, "").await.expect_err("refused");
        assert_eq!(reason(&status), Some(Reason::InvalidArgument), "{path}");
    }
    // The body says where, too.
    let body = r#"{"path":"/etc/passwd"}"#;
    let text = request("POST", "/download/line3-1", &headers);
    let length = format!("Content-Length: {}", body.len());
    http.send(&(text.replace("Content-Length: 0", &length) + body)).await;
    assert_eq!(http.answer("POST").await.problem(), "PERMISSION_DENIED");

    ask_for(&mut world, "line3-1", "/var/log/a", "").await.expect("in scope");
    assert_eq!(world.line3.session.command().await.attempt.epoch.0, 1);
    let all = secured_transfers(&world.secured).await;
    assert_eq!(all, 1, "nothing else was put on record");
    world.secured.server.stop().await;
}

async fn secured_transfers(secured: &Secured) -> usize {
    let admin = secured.operator("counts", Role::Admin, Scope::default()).await;
    let mut control = ControlClient::new(secured.channel(None).await);
    let all = control.list_transfers(bearing(&admin, proto::ListTransfersRequest::default())).await;
    all.expect("listed").into_inner().transfers.len()
}

async fn ask_for(
    world: &mut World,
    client: &str,
    path: &str,
    request_id: &str,
) -> Result<proto::Transfer, Status> {
    let alice = world.alice.clone();
    ask_as(&mut world.control, &alice, client, path, request_id).await
}

async fn ask_as(
    control: &mut ControlClient<Channel>,
    token: &Secret,
    client: &str,
    path: &str,
    request_id: &str,
) -> Result<proto::Transfer, Status> {
    let ask = proto::TriggerDownloadRequest {
        client_id: client.to_owned(),
        path: path.to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    };
    let answer = control.trigger_download(bearing(token, ask)).await?;
    Ok(answer.into_inner().transfer.expect("a transfer"))
}

#[tokio::test]
async fn request_ids_of_two_operators_do_not_meet() {
    let mut world = world().await;
    let bob = world.secured.operator("bob", Role::Operator, Scope::default()).await;

    let hers = ask_for(&mut world, "line3-1", "/var/log/a", "r-1").await.expect("triggered");
    let other = ask_as(&mut world.control, &bob, "line4-1", "/etc/x", "r-1").await;
    let same = ask_as(&mut world.control, &bob, "line3-1", "/var/log/a", "r-2").await;
    let again = ask_for(&mut world, "line3-1", "/var/log/a", "r-1").await.expect("the same");
    let conflict = ask_for(&mut world, "line3-1", "/var/log/b", "r-1").await;
    // What she asks for under an id of his tells her nothing of his.
    let under_his = ask_for(&mut world, "line3-1", "/var/log/c", "r-2").await.expect("her own");

    let other = other.expect("his own, and no conflict");
    let same = same.expect("his own");
    assert_eq!(again.id, hers.id);
    assert_eq!((hers.operator.as_str(), other.operator.as_str()), ("alice", "bob"));
    let ids = BTreeSet::from([&hers.id, &other.id, &same.id, &under_his.id]);
    assert_eq!(ids.len(), 4, "four transfers");
    let conflict = conflict.expect_err("refused");
    assert_eq!(reason(&conflict), Some(Reason::RequestIdConflict));
    world.secured.server.stop().await;
}

#[tokio::test]
async fn a_watch_tells_of_what_is_in_scope_and_of_nothing_else() {
    let mut world = world().await;
    world.hidden().await;
    let data = bytes(3 * CHUNK_BYTES, 1);
    let hers = trigger(&world.secured, "line3-1", "/var/log/a").await;
    let (mut her_upload, her_header) = world.line3.begin(&world.secured, hers, &data).await;
    let not_hers = trigger(&world.secured, "line4-1", "/var/log/a").await;
    let (mut other, other_header) = world.line4.begin(&world.secured, not_hers, &data).await;
    until(&world.secured, not_hers, State::Receiving).await;
    until(&world.secured, hers, State::Receiving).await;

    let ask = proto::WatchTransfersRequest::default();
    let watch = world.control.watch_transfers(bearing(&world.alice, ask)).await;
    let mut watch = watch.expect("watched").into_inner();
    let first = watch.message().await.expect("no error").expect("an event");
    assert_eq!((first.kind(), id_of(&first)), (Kind::Current, hers.to_string()));
    // Both move, the other one first; then both end.
    other.send(chunks(&data).swap_remove(1)).await;
    other.send_all([chunks(&data).swap_remove(2), finish(&other_header, &data)]).await;
    other.answer().await.expect("taken");
    her_upload.send(chunks(&data).swap_remove(1)).await;
    loop {
        let event = watch.message().await.expect("no error").expect("an event");
        assert_eq!(id_of(&event), hers.to_string(), "{event:?}");
        if event.kind() == Kind::Progress {
            break;
        }
    }
    her_upload.send_all([chunks(&data).swap_remove(2), finish(&her_header, &data)]).await;
    her_upload.answer().await.expect("taken");
    until_complete(&mut watch, hers).await;

    // What is told again after a token is no more, from the very first event.
    let token = |token: &str| proto::WatchTransfersRequest {
        resume_token: token.to_owned(),
        ..Default::default()
    };
    for resume in ["0", "1", first.resume_token.as_str()] {
        let again = world.control.watch_transfers(bearing(&world.alice, token(resume))).await;
        until_complete(&mut again.expect("watched").into_inner(), hers).await;
    }
    // Of a client that is not hers there is nothing to tell.
    let ask = proto::WatchTransfersRequest {
        client_id: "line4-1".to_owned(),
        resume_token: "0".to_owned(),
        ..Default::default()
    };
    let silent = world.control.watch_transfers(bearing(&world.alice, ask)).await;
    let mut silent = silent.expect("watched").into_inner();
    trigger(&world.secured, "line4-1", "/var/log/b").await;
    world.line4.session.command().await;
    let fence = trigger(&world.secured, "line3-1", "/var/log/fence").await;
    let told = watch.message().await.expect("no error").expect("an event");
    assert_eq!(id_of(&told), fence.to_string());
    world.secured.server.shutdown.drain();
    let none = silent.message().await;
    assert!(matches!(none, Ok(None)), "{none:?}");
    drop(watch);
    world.secured.server.stop().await;
}

fn id_of(event: &proto::WatchTransfersResponse) -> String {
    event.transfer.as_ref().expect("a transfer").id.clone()
}

async fn until_complete(
    watch: &mut tonic::Streaming<proto::WatchTransfersResponse>,
    id: TransferId,
) {
    loop {
        let event = watch.message().await.expect("no error").expect("an event");
        assert_eq!(id_of(&event), id.to_string(), "{event:?}");
        if event.transfer.expect("a transfer").state() == proto::State::Complete {
            return;
        }
    }
}
