//! Two listeners: what clients speak on the one, what operators speak on the other, and neither
//! answers what is the other's.

use fts::{
    server::access::{Role, Scope},
    status::{Reason, reason},
};
use tokio::net::TcpListener;

use super::{
    calls::{ask, call, channel_to, http1},
    common::{
        raw::{RawSession, hello},
        secured::Secured,
        server::Setup,
    },
    matrix::{Least, METHODS},
};

/// A server with a door for clients and one for operators; the ports of both.
async fn two_doors() -> (Secured, u16, u16) {
    let control = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let operators = control.local_addr().expect("an address").port();
    let setup = Setup { control: Some(control), ..Setup::default() };
    let secured = Secured::start_with(setup).await;
    let clients = secured.server.address.port();
    (secured, clients, operators)
}

/// Whether a method is somewhere else, by what the server answers.
fn is_elsewhere(answer: &Result<(), tonic::Status>) -> bool {
    let Err(status) = answer else { return false };
    reason(status) == Some(Reason::NotFound) && status.message() == "not on this listener"
}

#[tokio::test]
async fn each_listener_answers_its_own_methods_and_nothing_else() {
    let (secured, clients, operators) = two_doors().await;
    let identity = secured.identity("web-1").await;
    let admin = secured.operator("alice", Role::Admin, Scope::default()).await;
    let join = secured.join_token("web-2").await;

    for (path, least) in METHODS {
        let token = if *least == Least::JoinToken { &join } else { &admin };
        let headers = [format!("Bearer {}", token.reveal())];
        let to_clients = channel_to(&secured, clients, Some(&identity)).await;
        let to_operators = channel_to(&secured, operators, Some(&identity)).await;

        let with_clients = is_elsewhere(&call(&to_clients, &headers, path).await);
        let with_operators = is_elsewhere(&call(&to_operators, &headers, path).await);

        let elsewhere = match least {
            Least::Nothing => (false, false),
            Least::JoinToken | Least::Client | Least::ClientToRenew => (false, true),
            Least::Role(_) => (true, false),
        };
        assert_eq!((with_clients, with_operators), elsewhere, "{path}");
    }
    secured.server.stop().await;
}

#[tokio::test]
async fn http_is_for_operators_and_health_for_everybody() {
    let (secured, clients, operators) = two_doors().await;
    let admin = secured.operator("alice", Role::Admin, Scope::default()).await;
    let headers = [format!("Bearer {}", admin.reveal())];
    let mut to_clients = http1(&secured, clients, None).await;
    let mut to_operators = http1(&secured, operators, None).await;

    for target in ["/healthz", "/readyz"] {
        assert_eq!(ask(&mut to_clients, "GET", target, &[]).await.status, 200, "{target}");
        assert_eq!(ask(&mut to_operators, "GET", target, &[]).await.status, 200, "{target}");
    }
    for target in ["/", "/metrics", "/openapi.json", "/clients", "/transfers", "/nowhere"] {
        let answer = ask(&mut to_clients, "GET", target, &headers).await;
        assert_eq!((answer.status, answer.problem().as_str()), (404, "NOT_FOUND"), "{target}");
        assert!(answer.text().contains("not on this listener"), "{target}");
        if target != "/nowhere" {
            let answer = ask(&mut to_operators, "GET", target, &headers).await;
            assert_eq!(answer.status, 200, "{target}");
        }
    }
    secured.server.stop().await;
}

#[tokio::test]
async fn a_client_works_at_its_own_door_and_an_operator_at_the_other() {
    let (secured, clients, operators) = two_doors().await;
    let identity = secured.identity("web-1").await;
    let instance = fts::ids::InstanceId::generate();
    let channel = channel_to(&secured, clients, Some(&identity)).await;
    let mut session = RawSession::open_over(channel, hello("web-1", instance)).await;

    let admin = secured.operator("alice", Role::Admin, Scope::default()).await;
    let headers = [format!("Bearer {}", admin.reveal())];
    let mut connection = http1(&secured, operators, None).await;
    let asked = ask(&mut connection, "POST", "/download/web-1?path=/raw", &headers).await;

    assert_eq!(asked.status, 202, "{}", asked.text());
    let command = session.command().await;
    assert_eq!(asked.json()["id"], command.attempt.transfer.to_string());
    secured.server.stop().await;
}
