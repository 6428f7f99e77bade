//! How a machine becomes a client and stays one, when answers are lost, callers hang up, and keys
//! are copied.

use fts::{
    ids::UnixMs,
    server::{
        access::{Role, Scope},
        audit::read_dir,
        store::credentials::Standing,
    },
    status::{Reason, reason},
    wire::proto::{self, admin_client::AdminClient, enrolment_client::EnrolmentClient},
};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use sqlx::{Connection as _, SqliteConnection};
use tokio::time::timeout;
use tonic::{Status, transport::Channel};
use uuid::Uuid;

use super::{
    common::{
        secured::{Identity, Secured, bearing, identity},
        server::PATIENCE,
    },
    machine::Machine,
};

fn join(client: &str, key: &KeyPair) -> proto::JoinRequest {
    proto::JoinRequest {
        client_id: client.to_owned(),
        certificate_request: request(key),
        host_name: "test-host".to_owned(),
    }
}

fn request(key: &KeyPair) -> bytes::Bytes {
    let request = CertificateParams::default().serialize_request(key).expect("signed");
    request.der().to_vec().into()
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

/// Returns the client and the identity that an answer names.
fn named(secured: &Secured, certificate: Option<proto::Certificate>) -> (String, Uuid) {
    let chain = certificate.expect("a certificate").chain;
    let leaf = CertificateDer::from(chain[0].to_vec());
    let named = secured.tls.authority().identify(&leaf).expect("a client");
    (named.client.to_string(), named.uid)
}

async fn renew(secured: &Secured, with: &Identity) -> Result<Identity, Status> {
    let mut enrolment = EnrolmentClient::new(secured.channel(Some(with)).await);
    let key = new_key();
    let ask = proto::RenewRequest { certificate_request: request(&key) };
    let chain = enrolment.renew(ask).await?.into_inner().certificate.expect("one").chain;
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    Ok(identity(with.client.clone(), &key, chain))
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_is_answered_again_to_who_holds_the_key() {
    let secured = Secured::start().await;
    let token = secured.join_token("web-1").await;
    let mut enrolment = EnrolmentClient::new(secured.channel(None).await);
    let key = new_key();

    let lost = enrolment.join(bearing(&token, join("web-1", &key))).await.expect("joined");
    let again = enrolment.join(bearing(&token, join("web-1", &key))).await.expect("answered");
    let other = enrolment.join(bearing(&token, join("web-1", &new_key()))).await;

    let (lost, again) = (lost.into_inner(), again.into_inner());
    assert_eq!(named(&secured, lost.certificate), named(&secured, again.certificate.clone()));
    assert_eq!(reason(&other.expect_err("used up")), Some(Reason::Unauthenticated));
    let chain = again.certificate.expect("one").chain;
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let identity = identity("web-1".parse().expect("an id"), &key, chain);
    renew(&secured, &identity).await.expect("it is good");
    secured.server.stop().await;
}

#[tokio::test]
async fn a_token_that_is_good_no_longer_is_refused_at_the_door() {
    let secured = Secured::start().await;
    let revoked = secured.join_token("web-1").await;
    let id = revoked.reveal().split('_').nth(2).expect("an id").parse().expect("an id");
    secured.administration.revoke_join_token(&id).await.expect("revoked");
    let mut enrolment = EnrolmentClient::new(secured.channel(None).await);

    // Nothing of the request is looked at.
    let junk = proto::JoinRequest { client_id: "web-1".to_owned(), ..Default::default() };
    let refused = enrolment.join(bearing(&revoked, junk)).await.expect_err("refused");

    assert_eq!(reason(&refused), Some(Reason::Unauthenticated));
    assert_eq!(refused.message(), "the join token is not good, or no longer");
    let dir = secured.server.stop().await;
    let lines = read_dir(dir.path(), None).expect("an audit").map(|line| line.expect("a line"));
    let joins: Vec<_> = lines.filter(|line| line.contains("client.join")).collect();
    assert!(joins.is_empty(), "{joins:?}");
}

#[tokio::test]
async fn refused_joins_are_counted_and_not_written_one_by_one() {
    let secured = Secured::start().await;
    let token = secured.join_token("web-1").await;
    let key = new_key();
    let (connections, each) = (fts::limits::AUDIT_REFUSALS_PER_MINUTE / 20 + 3, 20);

    // Whoever only joins stays unknown, and is heard for a while only.
    for _ in 0..connections {
        let mut enrolment = EnrolmentClient::new(secured.channel(None).await);
        for _ in 0..each {
            let refused = enrolment.join(bearing(&token, join("web-2", &key))).await;
            assert_eq!(reason(&refused.expect_err("refused")), Some(Reason::JoinRefused));
        }
    }

    let dir = secured.server.stop().await;
    let lines = read_dir(dir.path(), None).expect("an audit").map(|line| line.expect("a line"));
    let joins = lines.filter(|line| line.contains("client.join")).count();
    assert!(joins < connections * each, "{joins} lines");
}

#[tokio::test]
async fn a_key_that_was_renewed_twice_since_renews_nothing() {
    let secured = Secured::start().await;
    let first = secured.identity("web-1").await;
    let second = renew(&secured, &first).await.expect("renewed");
    // As if that answer had been lost.
    let third = renew(&secured, &first).await.expect("renewed again");
    let fourth = renew(&secured, &third).await.expect("renewed by the new one");

    for (stale, what) in [(&second, "never used"), (&first, "a copy from long ago")] {
        let refused = renew(&secured, stale).await.expect_err(what);
        assert_eq!(reason(&refused), Some(Reason::Revoked), "{what}");
        assert!(refused.message().contains("renewed twice since"), "{}", refused.message());
    }
    // Nor does who holds one keep the client from renewing, or fill the audit.
    for _ in 0..fts::limits::CERTIFICATES_PER_MINUTE {
        renew(&secured, &first).await.expect_err("refused");
    }
    renew(&secured, &fourth).await.expect("the latest");
    let dir = secured.server.stop().await;
    let lines = read_dir(dir.path(), None).expect("an audit").map(|line| line.expect("a line"));
    let asked = lines.filter(|line| line.contains("client.renew") && line.contains("\"asked\""));
    assert_eq!(asked.count(), 4);
}

/// Asks as an administrator, and hangs up while the records cannot be written.
async fn ask_and_hang_up<F>(
    secured: &Secured,
    action: &str,
    ask: impl FnOnce(AdminClient<Channel>) -> F,
) where
    F: Future<Output = ()>,
{
    let url = format!("sqlite:{}", secured.server.dir().join("fts.db").display());
    let mut other = SqliteConnection::connect(&url).await.expect("connected");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.expect("held");
    let begun = async {
        let dir = secured.server.dir();
        let on_record = |line: &str| line.contains(action) && line.contains("asked");
        while !read_dir(dir, None).expect("an audit").any(|l| l.is_ok_and(|l| on_record(&l))) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let admin = AdminClient::new(secured.channel(None).await);
    tokio::select! {
        () = ask(admin) => panic!("it was done though nothing can be written"),
        begun = timeout(PATIENCE, begun) => begun.expect("asked for"),
    }
    sqlx::query("ROLLBACK").execute(&mut other).await.expect("released");
}

#[tokio::test]
async fn a_revocation_comes_to_its_end_though_whoever_asked_has_hung_up() {
    let secured = Secured::start().await;
    let root = secured.operator("root", Role::Admin, Scope::default()).await;
    let mut machine = Machine::start(&secured, "web-1").await;

    ask_and_hang_up(&secured, "client.revoke", async |mut admin| {
        let ask = proto::RevokeClientRequest { client_id: "web-1".to_owned() };
        drop(admin.revoke_client(bearing(&root, ask)).await);
    })
    .await;

    let ended = timeout(PATIENCE, machine.session.end()).await.expect("the session ends");
    assert_eq!(reason(&ended.expect("a reason")), Some(Reason::Revoked));
    secured.server.stop().await;
}

#[tokio::test]
async fn deleting_what_was_deleted_finishes_what_was_left() {
    let secured = Secured::start().await;
    let mut machine = Machine::start(&secured, "web-1").await;
    let client = machine.identity.client.clone();
    let transfer = super::machine::trigger(&secured, "web-1", "/offered").await;
    machine.command(transfer).await;
    // As if the server had ended between the record and what follows from it.
    let now = UnixMs::now();
    let credentials = secured.credentials();
    credentials.set_standing(&client, Standing::Deleted, now).await.expect("written");

    let again = secured.administration.delete(&client).await.expect_err("deleted before");

    assert_eq!(again.reason(), Reason::WrongState);
    let record = super::machine::record(&secured, transfer).await;
    assert_eq!(record.state, fts::transfer::State::Cancelled);
    let ended = timeout(PATIENCE, machine.session.end()).await.expect("the session ends");
    assert_eq!(reason(&ended.expect("a reason")), Some(Reason::Revoked));
    secured.server.stop().await;
}
