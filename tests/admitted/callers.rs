//! Whoever may come to the door: every kind of certificate and token, good and bad.

use std::{sync::Arc, time::Duration};

use fts::{
    ids::{ClientId, UnixMs},
    server::{
        access::{Role, Scope},
        administration::Wanted,
        authority::Authority,
        store::credentials::{Joined, Joining},
    },
    token::{Secret, Token, TokenKind},
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use uuid::Uuid;

use super::common::secured::{Identity, LIFE, Secured, identity, issue};

/// Who calls, by what is shown.
#[derive(Clone)]
pub struct Caller {
    pub what: &'static str,
    pub identity: Option<Identity>,
    /// The values of `authorization`.
    pub headers: Vec<String>,
    /// What it is good for, and what it is told elsewhere.
    pub standing: Standing,
}

/// What a caller has, as the tables see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Nobody,
    Client,
    Expired,
    Pending,
    /// Revoked, deleted, or replaced.
    Out,
    Joiner,
    Role(Role),
    /// A good client's certificate, and the token of an administrator.
    ClientAndAdmin,
}

fn caller(what: &'static str, standing: Standing) -> Caller {
    Caller { what, identity: None, headers: Vec::new(), standing }
}

fn bearer(token: &Secret) -> String {
    format!("Bearer {}", token.reveal())
}

impl Caller {
    fn with(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    fn bearing(self, token: &Secret) -> Self {
        self.saying(&bearer(token))
    }

    fn saying(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }
}

/// Makes one of each.
pub async fn all(secured: &Secured) -> Vec<Caller> {
    let mut all = nobodies(secured).await;
    all.extend(clients(secured).await);
    all.extend(operators(secured).await);
    all
}

async fn nobodies(secured: &Secured) -> Vec<Caller> {
    use Standing::Nobody;
    let admin = secured.operator("twice", Role::Admin, Scope::default()).await;
    let join = secured.join_token("unused").await;
    let unknown = |kind| Token::generate(kind, None).expect("random").reveal();
    let parts: Vec<_> = admin.reveal().split('_').map(str::to_owned).collect();
    let other_secret = Secret::new(format!("fts_op_{}_{}", parts[2], "0".repeat(64)));
    let as_join = Secret::new(admin.reveal().replacen("fts_op_", "fts_join_", 1));
    let as_operator = Secret::new(join.reveal().replacen("fts_join_", "fts_op_", 1));
    let over = operator_for(secured, "over", Some(Duration::ZERO)).await;
    let revoked = operator_for(secured, "revoked", None).await;
    let name = "revoked".parse().expect("a name");
    secured.administration.revoke_operator(&name).await.expect("revoked");
    let rotated = operator_for(secured, "rotated", None).await;
    let name = "rotated".parse().expect("a name");
    secured.administration.rotate_operator(&name, None).await.expect("rotated");
    vec![
        caller("nothing", Nobody),
        caller("no token", Nobody).saying("Bearer"),
        caller("an empty token", Nobody).saying("Bearer "),
        caller("no token of ours", Nobody).saying("Bearer hunter2"),
        caller("a word before it", Nobody).saying(&format!("Bearer x {}", admin.reveal())),
        caller("another scheme", Nobody).saying(&format!("Basic {}", admin.reveal())),
        caller("an unknown operator's token", Nobody).bearing(&unknown(TokenKind::Operator)),
        caller("an unknown join token", Nobody).bearing(&unknown(TokenKind::Join)),
        caller("another secret", Nobody).bearing(&other_secret),
        caller("an operator's token, called a join token", Nobody).bearing(&as_join),
        caller("a join token, called an operator's", Nobody).bearing(&as_operator),
        caller("two headers", Nobody).bearing(&admin).bearing(&admin),
        caller("an expired operator", Nobody).bearing(&over),
        caller("a revoked operator", Nobody).bearing(&revoked),
        caller("a token that was rotated away", Nobody).bearing(&rotated),
    ]
}

async fn operator_for(secured: &Secured, name: &str, ttl: Option<Duration>) -> Secret {
    let name = name.parse().expect("a name");
    let made =
        secured.administration.create_operator(name, Role::Admin, Scope::default(), ttl).await;
    made.expect("made").1
}

async fn clients(secured: &Secured) -> Vec<Caller> {
    use Standing::{Client, ClientAndAdmin, Expired, Out, Pending};
    let administration = &secured.administration;
    let revoked = secured.identity("revoked").await;
    administration.revoke(&revoked.client).await.expect("revoked");
    let deleted = secured.identity("deleted").await;
    administration.delete(&deleted.client).await.expect("deleted");
    let replaced = secured.identity("replaced").await;
    let _now = join(secured, "replaced", |wanted| wanted.replaces = true).await;
    let pending = join(secured, "pending", |wanted| wanted.needs_approval = true).await;
    let both = secured.operator("both", Role::Admin, Scope::default()).await;
    vec![
        caller("a client", Client).with(secured.identity("good").await),
        caller("an expired certificate", Expired)
            .with(secured.identity_for("expired", Duration::ZERO).await),
        caller("a client to be approved", Pending).with(pending),
        caller("a revoked client", Out).with(revoked),
        caller("a deleted client", Out).with(deleted),
        caller("a replaced client", Out).with(replaced),
        caller("a client with an administrator's token", ClientAndAdmin)
            .with(secured.identity("both").await)
            .bearing(&both),
    ]
}

async fn operators(secured: &Secured) -> Vec<Caller> {
    let mut all = vec![
        caller("a join token", Standing::Joiner).bearing(&secured.join_token("somebody").await),
    ];
    for role in Role::ALL {
        let token = secured.operator(role.as_str(), role, Scope::default()).await;
        all.push(caller(role.as_str(), Standing::Role(role)).bearing(&token));
    }
    all
}

/// Makes a client that joined by a token as it is adjusted.
pub async fn join(secured: &Secured, client: &str, adjust: impl FnOnce(&mut Wanted)) -> Identity {
    let mut wanted = Wanted {
        patterns: vec![client.parse().expect("a pattern")],
        uses_max: 1,
        ttl: Duration::from_secs(600),
        needs_approval: false,
        replaces: false,
    };
    adjust(&mut wanted);
    let client: ClientId = client.parse().expect("an id");
    let made = secured.administration.create_join_tokens(wanted, "test").await.expect("made");
    let uid = Uuid::new_v4();
    let (key, issued) = issue(&secured.tls.authority(), &client, uid, LIFE);
    let joining = Joining {
        token: made[0].0.id.clone(),
        client: client.clone(),
        uid,
        key: issued.key,
        begins: issued.begins,
        expires: issued.expires,
        host_name: "test-host".to_owned(),
    };
    let joined = secured.credentials().join(&joining, UnixMs::now()).await.expect("written");
    assert!(matches!(joined, Joined::Done(_)), "{joined:?}");
    identity(client, &key, issued.chain)
}

/// Certificates with which there is no connection at all, for the id of a client in good standing.
pub async fn strangers(secured: &Secured) -> Vec<(&'static str, Identity)> {
    let good = secured.identity("stranger").await.client;
    let uid = secured.credentials().identity(&good).await.expect("read").expect("known").uid;
    let dir = tempfile::tempdir().expect("a directory");
    let other = Authority::init(dir.path(), &["localhost".to_owned()]).expect("made");
    let (key, issued) = issue(&other, &good, uid, LIFE);
    let of_another = identity(good.clone(), &key, issued.chain);
    vec![
        ("of another authority", of_another),
        (
            "not yet valid",
            signed_by_hand(secured, &good, uid, |params| {
                params.not_before += Duration::from_secs(86_400);
            }),
        ),
        (
            "expired for too long",
            signed_by_hand(secured, &good, uid, |params| {
                params.not_before -= Duration::from_secs(400 * 86_400);
                params.not_after -= Duration::from_secs(200 * 86_400);
            }),
        ),
        (
            "of a server",
            signed_by_hand(secured, &good, uid, |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
        ),
        (
            "with a second name",
            signed_by_hand(secured, &good, uid, |params| {
                params
                    .subject_alt_names
                    .push(SanType::DnsName("localhost".try_into().expect("ASCII")));
            }),
        ),
        (
            "without a name",
            signed_by_hand(secured, &good, uid, |params| {
                params.subject_alt_names.clear();
            }),
        ),
        (
            "of another domain",
            signed_by_hand(secured, &good, uid, |params| {
                let uri =
                    format!("spiffe://evil.example/client/{}/{}", good.as_str(), uid.simple());
                params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
            }),
        ),
    ]
}

/// Makes a certificate as the authority would, by an intermediate that is old enough for any life,
/// but for what `adjust` changes.
pub fn signed_by_hand(
    secured: &Secured,
    client: &ClientId,
    uid: Uuid,
    adjust: impl FnOnce(&mut CertificateParams),
) -> Identity {
    let read = |name: &str| std::fs::read(secured.pki().join(name)).expect("read");
    let pem = String::from_utf8(read("root.key")).expect("text");
    let root = CertificateDer::from_pem_slice(&read("roots.pem")).expect("a certificate");
    let root = Issuer::from_ca_cert_der(&root, KeyPair::from_pem(&pem).expect("a key"));
    let mut params = CertificateParams::default();
    params.not_before = (std::time::SystemTime::now() - Duration::from_secs(800 * 86_400)).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let ca = params.signed_by(&key, &root.expect("an authority")).expect("signed").der().clone();
    let issuer = Issuer::from_ca_cert_der(&ca, key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    let now = std::time::SystemTime::now();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + Duration::from_secs(2 * 86_400)).into();
    let uri = format!("spiffe://localhost/client/{}/{}", client.as_str(), uid.simple());
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    adjust(&mut params);
    let leaf = params.signed_by(&key, &issuer.expect("an authority")).expect("signed");
    identity(client.clone(), &key, vec![leaf.der().clone(), ca])
}

/// Shows its certificate, if it has one, when it is asked.
pub fn shown(identity: Option<&Identity>) -> Option<Arc<dyn rustls::client::ResolvesClientCert>> {
    identity.map(|identity| Arc::new(identity.clone()) as _)
}
