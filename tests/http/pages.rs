//! Lists: page by page they have everything once, in order, whatever is added meanwhile.

use serde_json::Value;

use crate::{
    common::{
        http::{get, post},
        raw::RawSession,
        server::TestServer,
    },
    fixture::land,
};

/// Returns the page at `target`: its items' ids, and the next token.
async fn page(server: &TestServer, list: &str, query: &str, token: &str) -> (Vec<String>, String) {
    let json = get(server.address, &format!("/{list}?{query}&page_token={token}")).await.json();
    let items = json[list].as_array().unwrap_or_else(|| panic!("no list: {json}"));
    let ids = items.iter().map(|item| item["id"].as_str().expect("an id").to_owned());
    (ids.collect(), json["next_page_token"].as_str().expect("a token").to_owned())
}

async fn all(server: &TestServer, list: &str, query: &str) -> Vec<String> {
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let (ids, next) = page(server, list, query, &token).await;
        seen.extend(ids);
        if next.is_empty() {
            return seen;
        }
        token = next;
    }
}

#[tokio::test]
async fn transfers_come_newest_first_each_once() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let mut ids = Vec::new();
    for n in 0..25 {
        ids.push(server.trigger("client-1", &format!("/{n}")).await.id);
    }
    ids.reverse();

    let (first, token) = page(&server, "transfers", "page_size=10", "").await;
    // What is new stands before what was read, and moves nothing of the rest.
    for n in 25..30 {
        server.trigger("client-1", &format!("/{n}")).await;
    }
    let (second, token) = page(&server, "transfers", "page_size=10", &token).await;
    let (third, token) = page(&server, "transfers", "page_size=10", &token).await;

    assert_eq!([first, second, third].map(|page| page.len()), [10, 10, 5]);
    assert_eq!(token, "");
    for size in [1, 7, 30, 1000, 4_000_000_000_u32] {
        let seen = all(&server, "transfers", &format!("page_size={size}")).await;
        assert_eq!(seen.len(), 30, "page_size={size}");
        assert_eq!(seen[5..], ids, "page_size={size}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_page_continues_where_the_last_one_ended() {
    let server = TestServer::start().await;
    let _session = RawSession::open(&server, "client-1").await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(server.trigger("client-1", &format!("/{n}")).await.id);
    }
    ids.reverse();
    let (first, token) = page(&server, "transfers", "page_size=5", "").await;
    server.trigger("client-1", "/new").await;
    let (second, token) = page(&server, "transfers", "page_size=5", &token).await;
    let (third, _) = page(&server, "transfers", "page_size=5", &token).await;
    assert_eq!([first, second, third].concat(), ids);
    server.stop().await;
}

#[tokio::test]
async fn filters_hold_across_pages() {
    let server = TestServer::start().await;
    let mut session = RawSession::open(&server, "client-1").await;
    let _other = RawSession::open(&server, "client-2").await;
    let mut complete = Vec::new();
    for _ in 0..3 {
        complete.insert(0, land(&server, &mut session, "/raw", b"x").await.id);
    }
    let mut cancelled = Vec::new();
    for n in 0..5 {
        let id = server.trigger("client-2", &format!("/{n}")).await.id;
        post(server.address, &format!("/transfers/{id}/cancel")).await;
        cancelled.insert(0, id);
    }
    let query = |query: &str| format!("{query}&page_size=2");
    let seen = async |filter: &str| all(&server, "transfers", &query(filter)).await;

    assert_eq!(seen("state=COMPLETE").await, complete);
    assert_eq!(seen("client=client-1").await, complete);
    assert_eq!(seen("client=client-2").await, cancelled);
    assert_eq!(seen("client=client-2&state=CANCELLED").await, cancelled);
    assert_eq!(seen("client=client-2&state=COMPLETE").await, Vec::<String>::new());
    assert_eq!(seen("client=client-3").await, Vec::<String>::new());
    assert_eq!(seen("").await, [cancelled, complete].concat());
    server.stop().await;
}

#[tokio::test]
async fn clients_come_by_id_each_once() {
    let server = TestServer::start().await;
    let mut ids: Vec<String> =
        ["b", "a", "Z", "a.1", "a-1", "9", "client-10", "client-9"].map(ToOwned::to_owned).to_vec();
    let mut sessions = Vec::new();
    for id in &ids {
        sessions.push(RawSession::open(&server, id).await);
    }
    ids.sort();
    for size in [1, 3, 8, 100] {
        let seen = all(&server, "clients", &format!("page_size={size}")).await;
        assert_eq!(seen, ids, "page_size={size}");
    }
    // One that comes while another reads is met later, or not at all, and moves nobody.
    let (first, token) = page(&server, "clients", "page_size=4", "").await;
    sessions.push(RawSession::open(&server, "0").await);
    sessions.push(RawSession::open(&server, "zz").await);
    let (second, _) = page(&server, "clients", "page_size=5", &token).await;
    assert_eq!([first, second].concat(), [ids, vec!["zz".to_owned()]].concat());
    server.stop().await;
}

#[tokio::test]
async fn lists_are_empty_at_first() {
    let server = TestServer::start().await;
    for list in ["clients", "transfers"] {
        let json = get(server.address, &format!("/{list}")).await.json();
        assert_eq!(json[list], Value::Array(Vec::new()));
        assert_eq!(json["next_page_token"], "");
    }
    server.stop().await;
}
