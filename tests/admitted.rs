//! Who gets in.

mod common;

use common::secured::{Secured, bearing};
use fts::{
    server::access::{Role, Scope},
    wire::proto::{ListClientsRequest, control_client::ControlClient},
};

#[tokio::test]
async fn an_operator_with_a_good_token_is_answered_and_nobody_else() {
    let secured = Secured::start().await;
    let token = secured.operator("alice", Role::Viewer, Scope::default()).await;
    let mut control = ControlClient::new(secured.channel(None).await);

    let without = control.list_clients(ListClientsRequest::default()).await;
    let with = control.list_clients(bearing(&token, ListClientsRequest::default())).await;

    assert_eq!(without.expect_err("refused").code(), tonic::Code::Unauthenticated);
    with.expect("answered");
    secured.server.stop().await;
}
