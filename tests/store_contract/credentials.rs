//! What both stores promise of the records of who is who.

use std::{collections::BTreeSet, sync::Arc};

use fts::{
    ids::{ClientId, OperatorName, UnixMs},
    server::{
        access::{Role, Scope},
        store::{
            Store, StoreError,
            credentials::{
                Changed, Credentials, Identity, JoinRefusal, JoinToken, Joined, Joining, Operator,
                Renewing, Standing,
            },
            memory::MemoryStore,
            sqlite::SqliteStore,
        },
    },
    token::{Sha256, TokenId},
};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::fixture::*;

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name(super::Arc::new(super::MemoryStore::new())).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let store = super::Arc::new(super::open(dir.path()).await);
                super::$name(store.clone()).await;
                super::Store::close(&*store).await;
            })*
        }
    };
}

promises!(
    a_join_token_reads_back_as_it_was_written,
    new_join_tokens_are_written_all_or_none,
    join_tokens_are_listed_by_id,
    a_join_token_is_revoked_once,
    a_join_makes_the_identity_and_uses_the_token_once,
    who_must_be_approved_is_pending,
    a_hundred_callers_use_a_one_use_token_once,
    a_join_that_is_asked_for_again_is_the_same_and_takes_no_use,
    of_a_hundred_clients_as_many_join_as_the_token_has_uses,
    a_token_that_is_not_good_joins_nobody,
    a_client_id_that_does_not_fit_does_not_join,
    a_taken_client_id_is_not_joined_again,
    only_a_replacing_token_gives_a_client_id_a_new_identity,
    a_deleted_client_id_is_never_joined_again,
    a_certificate_of_a_replaced_identity_is_not_renewed,
    only_the_latest_key_and_the_one_before_renew,
    what_is_newer_than_the_records_renews,
    only_an_identity_in_good_standing_is_renewed,
    a_standing_changes_only_as_it_may,
    identities_are_listed_by_client_id,
    an_operator_reads_back_as_it_was_written,
    an_operators_name_is_taken_for_good,
    an_operator_is_found_by_its_latest_token_alone,
    a_token_is_one_operators,
    an_operator_is_revoked_once,
    operators_are_listed_by_name,
);

// === Fixture ===

async fn open(dir: &std::path::Path) -> SqliteStore {
    SqliteStore::open(&format!("sqlite:{}/records.db", dir.display())).await.unwrap()
}

fn token_id(number: u8) -> TokenId {
    format!("{number:016x}").parse().unwrap()
}

/// Good for one use by any client, from the start of a test for a second.
fn token(number: u8) -> JoinToken {
    JoinToken {
        id: token_id(number),
        hash: Sha256::of(&[number]),
        pattern: "client-*".parse().unwrap(),
        uses_max: 1,
        uses: 0,
        created: at(0),
        expires: at(1000),
        revoked: None,
        needs_approval: false,
        replaces: false,
        creator: "älice".to_owned(),
    }
}

/// A token for one client.
fn replacing(number: u8, client: &ClientId) -> JoinToken {
    let pattern = client.as_str().parse().unwrap();
    JoinToken { pattern, replaces: true, ..token(number) }
}

fn joining(token: u8, client: &ClientId) -> Joining {
    let uid = Uuid::new_v4();
    Joining {
        token: token_id(token),
        client: client.clone(),
        uid,
        key: Sha256::of(uid.as_bytes()),
        begins: at(0),
        expires: at(500),
        host_name: "höst".to_owned(),
    }
}

/// Shows one key, for another one.
fn renewing(identity: &Identity, shown: Sha256, key: Sha256) -> Renewing {
    Renewing {
        client: identity.client.clone(),
        uid: identity.uid,
        shown,
        shown_begins: identity.begins,
        key,
        begins: identity.begins,
        expires: at(9),
    }
}

/// Adds a token, and joins by it.
async fn join(store: &dyn Credentials, token: JoinToken, client: &ClientId, ms: i64) -> Identity {
    let joining = Joining { token: token.id.clone(), ..joining(0, client) };
    store.add_join_tokens(&[token]).await.unwrap();
    match store.join(&joining, at(ms)).await.unwrap() {
        Joined::Done(identity) => identity,
        Joined::Refused(refusal) => panic!("{refusal}"),
    }
}

/// Everything there is.
async fn everything(store: &dyn Credentials) -> (Vec<JoinToken>, Vec<Identity>, Vec<Operator>) {
    let tokens = store.join_tokens(None, 1000).await.unwrap();
    let identities = store.identities(None, 1000).await.unwrap();
    (tokens, identities, store.operators(None, 1000).await.unwrap())
}

/// Asserts that a join is refused, and that it changed nothing.
async fn assert_refused(store: &dyn Credentials, joining: &Joining, ms: i64, why: JoinRefusal) {
    let before = everything(store).await;
    let answer = store.join(joining, at(ms)).await.unwrap();
    assert_eq!(answer, Joined::Refused(why), "{joining:?}");
    assert_eq!(everything(store).await, before);
}

fn operator_record(number: u8) -> Operator {
    let clients = ["line-*".to_owned(), "a".to_owned()];
    Operator {
        name: operator(number),
        role: Role::Operator,
        scope: Scope::parse(&clients, &["/var/\"log\"".to_owned()]).unwrap(),
        token: token_id(number),
        hash: Sha256::of(&[number]),
        created: at(0),
        expires: Some(at(1000)),
        revoked: None,
    }
}

// === Join tokens ===

async fn a_join_token_reads_back_as_it_was_written(store: Arc<dyn Credentials>) {
    let odd = JoinToken {
        uses_max: u32::MAX,
        uses: u32::MAX - 1,
        revoked: Some(at(-1)),
        needs_approval: true,
        ..replacing(2, &client(7))
    };

    store.add_join_tokens(&[token(1), odd.clone()]).await.unwrap();
    store.add_join_tokens(&[]).await.unwrap();

    assert_eq!(store.join_token(&token_id(1)).await.unwrap(), Some(token(1)));
    assert_eq!(store.join_token(&token_id(2)).await.unwrap(), Some(odd));
    assert_eq!(store.join_token(&token_id(3)).await.unwrap(), None);
}

async fn new_join_tokens_are_written_all_or_none(store: Arc<dyn Credentials>) {
    store.add_join_tokens(&[token(5)]).await.unwrap();

    let clash = store.add_join_tokens(&[token(1), token(5), token(9)]).await;
    let twice = store.add_join_tokens(&[token(1), token(1)]).await;
    assert!(clash.is_err() && twice.is_err());
    assert_eq!(store.join_tokens(None, 9).await.unwrap(), [token(5)]);

    // More than fit in a statement.
    let many: Vec<_> = (0..1201u64)
        .map(|n| JoinToken { id: format!("{:016x}", n + 1000).parse().unwrap(), ..token(1) })
        .collect();
    store.add_join_tokens(&many).await.unwrap();
    let after = store.join_tokens(Some(&token_id(5)), 5000).await.unwrap();
    assert_eq!(after, many);
}

async fn join_tokens_are_listed_by_id(store: Arc<dyn Credentials>) {
    store.add_join_tokens(&[token(3), token(1), token(2)]).await.unwrap();

    let first = store.join_tokens(None, 2).await.unwrap();
    let rest = store.join_tokens(first.last().map(|token| &token.id), 2).await.unwrap();

    assert_eq!(first, [token(1), token(2)]);
    assert_eq!(rest, [token(3)]);
    assert_eq!(store.join_tokens(None, 0).await.unwrap(), []);
}

async fn a_join_token_is_revoked_once(store: Arc<dyn Credentials>) {
    store.add_join_tokens(&[token(1), token(2)]).await.unwrap();
    let revoked = JoinToken { revoked: Some(at(5)), ..token(1) };

    let first = store.revoke_join_token(&token_id(1), at(5)).await.unwrap();
    let again = store.revoke_join_token(&token_id(1), at(6)).await.unwrap();
    let unknown = store.revoke_join_token(&token_id(9), at(6)).await.unwrap();

    assert_eq!(first, Changed::Done(revoked.clone()));
    assert_eq!(again, Changed::WrongState(revoked.clone()));
    assert_eq!(unknown, Changed::Unknown);
    assert_eq!(everything(&*store).await.0, [revoked, token(2)]);
}

// === Joining ===

async fn a_join_makes_the_identity_and_uses_the_token_once(store: Arc<dyn Credentials>) {
    store.add_join_tokens(&[JoinToken { uses_max: 3, ..token(1) }, token(2)]).await.unwrap();
    let joining = joining(1, &client(1));

    let joined = store.join(&joining, at(999)).await.unwrap();

    let identity = Identity {
        client: client(1),
        uid: joining.uid,
        standing: Standing::Active,
        standing_since: at(999),
        joined: at(999),
        token: token_id(1),
        previous_key: None,
        displaced_key: None,
        begins: at(0),
        key: joining.key,
        expires: at(500),
        host_name: "höst".to_owned(),
    };
    assert_eq!(joined, Joined::Done(identity.clone()));
    assert_eq!(store.identity(&client(1)).await.unwrap(), Some(identity));
    assert_eq!(store.identity(&client(2)).await.unwrap(), None);
    let used = JoinToken { uses_max: 3, uses: 1, ..token(1) };
    assert_eq!(everything(&*store).await.0, [used, token(2)]);
}

async fn who_must_be_approved_is_pending(store: Arc<dyn Credentials>) {
    let asks = JoinToken { needs_approval: true, ..token(1) };

    let identity = join(&*store, asks, &client(1), 1).await;

    assert_eq!(identity.standing, Standing::Pending);
    assert_eq!(store.identity(&client(1)).await.unwrap(), Some(identity));
}

/// Joins a hundred times at once, and returns who did.
async fn crowd(store: &Arc<dyn Credentials>, name: impl Fn(u8) -> ClientId) -> Vec<Identity> {
    let mut tasks = JoinSet::new();
    for number in 0..100 {
        let (store, joining) = (store.clone(), joining(1, &name(number)));
        tasks.spawn(async move { store.join(&joining, at(1)).await.unwrap() });
    }
    let joined = tasks.join_all().await.into_iter().filter_map(|answer| match answer {
        Joined::Done(identity) => Some(identity),
        Joined::Refused(refusal) => {
            assert_eq!(refusal, JoinRefusal::Token);
            None
        }
    });
    joined.collect()
}

async fn a_hundred_callers_use_a_one_use_token_once(store: Arc<dyn Credentials>) {
    // Half of them fight for one id: a replacing token, so that nothing but its uses stops them.
    let token = JoinToken { replaces: true, ..token(1) };
    store.add_join_tokens(std::slice::from_ref(&token)).await.unwrap();

    let joined = crowd(&store, |number| client(number.min(50))).await;

    assert_eq!(joined.len(), 1);
    let used = JoinToken { uses: 1, ..token };
    assert_eq!(everything(&*store).await, (vec![used], joined, Vec::new()));
}

async fn a_join_that_is_asked_for_again_is_the_same_and_takes_no_use(store: Arc<dyn Credentials>) {
    store.add_join_tokens(&[token(1), token(2)]).await.unwrap();
    let ask = joining(1, &client(1));
    let Joined::Done(first) = store.join(&ask, at(1)).await.unwrap() else { panic!("refused") };

    let later = Joining { expires: at(600), ..ask.clone() };
    let again = store.join(&later, at(2)).await.unwrap();

    let same = Identity { expires: at(600), ..first };
    assert_eq!(again, Joined::Done(same.clone()));
    let (tokens, identities, _) = everything(&*store).await;
    assert_eq!((tokens[0].uses, identities), (1, vec![same.clone()]));
    // Another key, another token are another join.
    let other = Sha256::of(b"other");
    assert_refused(&*store, &Joining { key: other, ..ask.clone() }, 3, JoinRefusal::Token).await;
    // A caller who did not see the first one has thought of another uid.
    let unaware = Joining { uid: Uuid::new_v4(), expires: at(600), ..ask.clone() };
    assert_eq!(store.join(&unaware, at(3)).await.unwrap(), Joined::Done(same));
    let token = token_id(2);
    assert_refused(&*store, &Joining { token, ..ask.clone() }, 3, JoinRefusal::Taken).await;
    // A token that has expired, and an identity that is good no longer, answer nobody.
    assert_refused(&*store, &ask, 1000, JoinRefusal::Token).await;
    store.set_standing(&client(1), Standing::Revoked, at(4)).await.unwrap();
    assert_refused(&*store, &ask, 5, JoinRefusal::Token).await;
}

async fn of_a_hundred_clients_as_many_join_as_the_token_has_uses(store: Arc<dyn Credentials>) {
    store.add_join_tokens(&[JoinToken { uses_max: 7, ..token(1) }]).await.unwrap();

    let joined = crowd(&store, client).await;

    let (tokens, identities, _) = everything(&*store).await;
    assert_eq!((joined.len(), tokens[0].uses), (7, 7));
    let uids = |of: &[Identity]| of.iter().map(|identity| identity.uid).collect::<BTreeSet<_>>();
    assert_eq!(uids(&identities), uids(&joined));
}

async fn a_token_that_is_not_good_joins_nobody(store: Arc<dyn Credentials>) {
    let used = JoinToken { uses_max: 2, uses: 2, ..token(1) };
    store.add_join_tokens(&[used, token(2), token(3)]).await.unwrap();
    store.revoke_join_token(&token_id(2), at(1)).await.unwrap();

    for (number, ms) in [(1, 1), (2, 1), (3, 1000), (3, 1001), (4, 1)] {
        assert_refused(&*store, &joining(number, &client(1)), ms, JoinRefusal::Token).await;
    }
}

async fn a_client_id_that_does_not_fit_does_not_join(store: Arc<dyn Credentials>) {
    store.add_join_tokens(&[token(1), replacing(2, &client(1))]).await.unwrap();
    let stranger: ClientId = "x-client-1".parse().unwrap();

    assert_refused(&*store, &joining(1, &stranger), 1, JoinRefusal::Pattern).await;
    assert_refused(&*store, &joining(2, &client(11)), 1, JoinRefusal::Pattern).await;
}

async fn a_taken_client_id_is_not_joined_again(store: Arc<dyn Credentials>) {
    join(&*store, token(1), &client(1), 1).await;
    join(&*store, JoinToken { needs_approval: true, ..token(2) }, &client(2), 1).await;
    join(&*store, token(3), &client(3), 1).await;
    store.set_standing(&client(3), Standing::Revoked, at(2)).await.unwrap();
    store.add_join_tokens(&[token(4)]).await.unwrap();

    for number in 1..4 {
        assert_refused(&*store, &joining(4, &client(number)), 3, JoinRefusal::Taken).await;
    }
}

async fn only_a_replacing_token_gives_a_client_id_a_new_identity(store: Arc<dyn Credentials>) {
    for (number, standing) in [(1, None), (2, Some(Standing::Revoked))] {
        let client = client(number);
        let first = join(&*store, token(number), &client, 1).await;
        if let Some(standing) = standing {
            store.set_standing(&client, standing, at(2)).await.unwrap();
        }

        let second = join(&*store, replacing(10 + number, &client), &client, 3).await;

        assert_ne!(second.uid, first.uid);
        assert_eq!((second.standing, second.standing_since), (Standing::Active, at(3)));
        assert_eq!((second.joined, &second.token), (at(3), &token_id(10 + number)));
        assert_eq!(store.identity(&client).await.unwrap(), Some(second));
    }
}

async fn a_deleted_client_id_is_never_joined_again(store: Arc<dyn Credentials>) {
    join(&*store, token(1), &client(1), 1).await;
    store.set_standing(&client(1), Standing::Deleted, at(2)).await.unwrap();
    store.add_join_tokens(&[token(2), replacing(3, &client(1))]).await.unwrap();

    for number in [2, 3] {
        assert_refused(&*store, &joining(number, &client(1)), 3, JoinRefusal::Deleted).await;
    }
}

// === Identities ===

async fn a_certificate_of_a_replaced_identity_is_not_renewed(store: Arc<dyn Credentials>) {
    let first = join(&*store, token(1), &client(1), 1).await;
    let second = join(&*store, replacing(2, &client(1)), &client(1), 2).await;
    let key = Sha256::of(b"new");

    // Also with the key that is good now.
    let of_first = Renewing { uid: first.uid, ..renewing(&second, second.key, key) };
    let old = store.renew(&of_first).await.unwrap();
    assert_eq!(old, Changed::WrongState(second.clone()));
    assert_eq!(store.identity(&client(1)).await.unwrap(), Some(second.clone()));

    let new = store.renew(&renewing(&second, second.key, key)).await.unwrap();
    let previous_key = Some(second.key);
    assert_eq!(new, Changed::Done(Identity { key, previous_key, expires: at(9), ..second }));
}

async fn only_the_latest_key_and_the_one_before_renew(store: Arc<dyn Credentials>) {
    let keys = [1, 2, 3, 4].map(|n| Sha256::of(&[n]));
    let first = join(&*store, token(1), &client(1), 1).await;
    let renew = async |shown, key| store.renew(&renewing(&first, shown, key)).await.unwrap();
    let known = async || store.identity(&client(1)).await.unwrap().unwrap();

    let strange = renew(keys[3], keys[0]).await;
    assert_eq!(strange, Changed::WrongState(first.clone()));
    assert_eq!(known().await, first);
    // The answer was lost: asked again with what it has.
    assert!(matches!(renew(first.key, keys[0]).await, Changed::Done(_)));
    assert!(matches!(renew(first.key, keys[1]).await, Changed::Done(_)));
    let after = known().await;
    assert_eq!((after.key, after.previous_key), (keys[1], Some(first.key)));
    // The answers may have come in another order: nobody here knows which one was lost.
    assert_eq!(after.displaced_key, Some(keys[0]));
    assert!(matches!(renew(keys[0], keys[2]).await, Changed::Done(_)));
    // From here on it is known: what came before the last two is good for nothing any more.
    let after = known().await;
    assert_eq!((after.previous_key, after.displaced_key), (Some(keys[0]), None));
    for stale in [first.key, keys[1]] {
        assert_eq!(renew(stale, keys[3]).await, Changed::WrongState(after.clone()));
    }
    assert_eq!(known().await, after);
}

async fn what_is_newer_than_the_records_renews(store: Arc<dyn Credentials>) {
    let first = join(&*store, token(1), &client(1), 1).await;
    // A client that renewed after the backup that these records are of.
    let (lost, new) = (Sha256::of(b"lost"), Sha256::of(b"new"));
    let later = Renewing { shown_begins: at(5), begins: at(7), ..renewing(&first, lost, new) };

    let renewed = store.renew(&later).await.unwrap();

    let Changed::Done(after) = renewed else { panic!("{renewed:?}") };
    assert_eq!((after.key, after.begins), (new, at(7)));
    // What is older than the records is not believed.
    let older = Renewing { shown_begins: at(6), ..renewing(&after, Sha256::of(b"x"), lost) };
    assert_eq!(store.renew(&older).await.unwrap(), Changed::WrongState(after));
}

async fn only_an_identity_in_good_standing_is_renewed(store: Arc<dyn Credentials>) {
    let key = Sha256::of(b"new");
    let pending = JoinToken { needs_approval: true, ..token(1) };
    let mut identity = join(&*store, pending, &client(1), 1).await;
    let of_nobody = Renewing { client: client(2), ..renewing(&identity, identity.key, key) };
    assert_eq!(store.renew(&of_nobody).await.unwrap(), Changed::Unknown);

    for (standing, is_good) in [
        (Standing::Pending, true),
        (Standing::Active, true),
        (Standing::Revoked, false),
        (Standing::Deleted, false),
    ] {
        if standing != Standing::Pending {
            let change = store.set_standing(&client(1), standing, at(2)).await.unwrap();
            identity = Identity { standing, standing_since: at(2), ..identity };
            assert_eq!(change, Changed::Done(identity.clone()));
        }
        let answer = store.renew(&renewing(&identity, identity.key, key)).await.unwrap();
        if is_good {
            let previous_key = Some(identity.key);
            identity = Identity { key, previous_key, expires: at(9), ..identity };
            assert_eq!(answer, Changed::Done(identity.clone()));
        } else {
            assert_eq!(answer, Changed::WrongState(identity.clone()));
        }
        assert_eq!(store.identity(&client(1)).await.unwrap(), Some(identity.clone()));
    }
}

async fn a_standing_changes_only_as_it_may(store: Arc<dyn Credentials>) {
    use Standing::{Active, Deleted, Pending, Revoked};
    let allowed = [
        (Pending, Active),
        (Pending, Revoked),
        (Pending, Deleted),
        (Active, Revoked),
        (Active, Deleted),
        (Revoked, Deleted),
    ];
    let mut number = 0;
    for from in Standing::ALL {
        for to in Standing::ALL {
            number += 1;
            let token = JoinToken { needs_approval: from == Pending, ..token(number) };
            let mut before = join(&*store, token, &client(number), 1).await;
            if !matches!(from, Active | Pending) {
                store.set_standing(&client(number), from, at(2)).await.unwrap();
                before = Identity { standing: from, standing_since: at(2), ..before };
            }

            let answer = store.set_standing(&client(number), to, at(3)).await.unwrap();

            let (expected, now) = if allowed.contains(&(from, to)) {
                let after = Identity { standing: to, standing_since: at(3), ..before };
                (Changed::Done(after.clone()), after)
            } else {
                (Changed::WrongState(before.clone()), before)
            };
            assert_eq!(answer, expected, "{from:?} to {to:?}");
            assert_eq!(store.identity(&client(number)).await.unwrap(), Some(now));
        }
    }
    let unknown = store.set_standing(&client(0), Deleted, at(3)).await.unwrap();
    assert_eq!(unknown, Changed::Unknown);
    assert_eq!(store.identity(&client(0)).await.unwrap(), None);
}

async fn identities_are_listed_by_client_id(store: Arc<dyn Credentials>) {
    for number in [3, 1, 2] {
        join(&*store, token(number), &client(number), 1).await;
    }
    let ids = |page: &[Identity]| page.iter().map(|i| i.client.clone()).collect::<Vec<_>>();

    let first = ids(&store.identities(None, 2).await.unwrap());
    let rest = ids(&store.identities(first.last(), 2).await.unwrap());

    assert_eq!(first, [client(1), client(2)]);
    assert_eq!(rest, [client(3)]);
}

// === Operators ===

async fn an_operator_reads_back_as_it_was_written(store: Arc<dyn Credentials>) {
    let mut written = Vec::new();
    for (role, number) in Role::ALL.into_iter().zip(1..) {
        written.push(Operator { role, ..operator_record(number) });
    }
    written[1].scope = Scope::default();
    written[1].expires = None;
    written[2].revoked = Some(at(7));

    for operator in &written {
        assert!(store.add_operator(operator).await.unwrap());
    }

    for operator in &written {
        assert_eq!(store.operator(&operator.name).await.unwrap().as_ref(), Some(operator));
        let found = store.operator_of_token(&operator.token).await.unwrap();
        assert_eq!(found.as_ref(), Some(operator));
    }
    assert_eq!(store.operator(&operator(9)).await.unwrap(), None);
    assert_eq!(store.operator_of_token(&token_id(9)).await.unwrap(), None);
}

async fn an_operators_name_is_taken_for_good(store: Arc<dyn Credentials>) {
    let first = operator_record(1);
    let other = Operator { name: operator(1), role: Role::Admin, ..operator_record(2) };
    assert!(store.add_operator(&first).await.unwrap());

    assert!(!store.add_operator(&other).await.unwrap());
    assert_eq!(store.operators(None, 9).await.unwrap(), [first]);

    store.revoke_operator(&operator(1), at(1)).await.unwrap();
    let revoked = store.operators(None, 9).await.unwrap();
    assert!(!store.add_operator(&other).await.unwrap());
    assert_eq!(store.operators(None, 9).await.unwrap(), revoked);
}

async fn an_operator_is_found_by_its_latest_token_alone(store: Arc<dyn Credentials>) {
    for number in [1, 2] {
        store.add_operator(&operator_record(number)).await.unwrap();
    }
    let (token, hash) = (token_id(11), Sha256::of(b"new"));
    let rotate = async |name| store.rotate_operator(&name, &token, &hash, None).await.unwrap();

    let rotated = rotate(operator(1)).await;

    let after = Operator { token: token.clone(), hash, expires: None, ..operator_record(1) };
    assert_eq!(rotated, Changed::Done(after.clone()));
    assert_eq!(store.operator_of_token(&token_id(1)).await.unwrap(), None);
    assert_eq!(store.operator_of_token(&token).await.unwrap(), Some(after.clone()));
    assert_eq!(store.operators(None, 9).await.unwrap(), [after, operator_record(2)]);
    assert_eq!(rotate(operator(9)).await, Changed::Unknown);
    store.revoke_operator(&operator(2), at(1)).await.unwrap();
    let revoked = Operator { revoked: Some(at(1)), ..operator_record(2) };
    let token = token_id(12);
    let refused = store.rotate_operator(&operator(2), &token, &hash, None).await.unwrap();
    assert_eq!(refused, Changed::WrongState(revoked.clone()));
    assert_eq!(store.operator(&operator(2)).await.unwrap(), Some(revoked));
}

async fn a_token_is_one_operators(store: Arc<dyn Credentials>) {
    for number in [1, 2] {
        store.add_operator(&operator_record(number)).await.unwrap();
    }
    let before = everything(&*store).await;
    let clash = Operator { token: token_id(1), ..operator_record(3) };
    let hash = Sha256::of(b"new");

    let added = store.add_operator(&clash).await;
    let rotated = store.rotate_operator(&operator(2), &token_id(1), &hash, None).await;

    assert!(matches!(added, Err(StoreError::Unavailable(_))), "{added:?}");
    assert!(matches!(rotated, Err(StoreError::Unavailable(_))), "{rotated:?}");
    assert_eq!(everything(&*store).await, before);
}

async fn an_operator_is_revoked_once(store: Arc<dyn Credentials>) {
    store.add_operator(&operator_record(1)).await.unwrap();
    let revoked = Operator { revoked: Some(at(5)), ..operator_record(1) };

    let first = store.revoke_operator(&operator(1), at(5)).await.unwrap();
    let again = store.revoke_operator(&operator(1), at(6)).await.unwrap();
    let unknown = store.revoke_operator(&operator(2), at(6)).await.unwrap();

    assert_eq!(first, Changed::Done(revoked.clone()));
    assert_eq!(again, Changed::WrongState(revoked.clone()));
    assert_eq!(unknown, Changed::Unknown);
    // Its token still leads to it: who shows it is told that it was revoked.
    assert_eq!(store.operator_of_token(&token_id(1)).await.unwrap(), Some(revoked));
}

async fn operators_are_listed_by_name(store: Arc<dyn Credentials>) {
    for number in [3, 1, 2] {
        store.add_operator(&operator_record(number)).await.unwrap();
    }
    let names = |page: Vec<Operator>| -> Vec<OperatorName> {
        page.into_iter().map(|operator| operator.name).collect()
    };

    let first = names(store.operators(None, 2).await.unwrap());
    let rest = names(store.operators(first.last(), 2).await.unwrap());

    assert_eq!(first, [operator(1), operator(2)]);
    assert_eq!(rest, [operator(3)]);
}

// === On a disk ===

#[tokio::test]
async fn who_is_who_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    join(&first, token(1), &client(1), 1).await;
    let identity = join(&first, token(2), &client(2), 1).await;
    let renewing = renewing(&identity, identity.key, Sha256::of(b"new"));
    first.renew(&Renewing { expires: UnixMs(i64::MAX), ..renewing }).await.unwrap();
    first.set_standing(&client(1), Standing::Deleted, at(2)).await.unwrap();
    first.add_join_tokens(&[token(3), replacing(4, &client(1))]).await.unwrap();
    first.revoke_join_token(&token_id(3), at(2)).await.unwrap();
    for number in [1, 2] {
        first.add_operator(&operator_record(number)).await.unwrap();
    }
    first.rotate_operator(&operator(1), &token_id(9), &Sha256::of(b"9"), None).await.unwrap();
    first.revoke_operator(&operator(2), at(3)).await.unwrap();
    let before = everything(&first).await;

    // Neither by one that closes nothing, nor by an orderly one.
    let second = open(dir.path()).await;
    assert_eq!(everything(&second).await, before);
    first.close().await;
    second.close().await;
    let third = open(dir.path()).await;
    assert_eq!(everything(&third).await, before);
    assert_refused(&third, &joining(4, &client(1)), 4, JoinRefusal::Deleted).await;
    third.close().await;
}

#[tokio::test]
async fn a_damaged_record_of_who_is_who_is_said_to_be_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    join(&store, JoinToken { uses_max: 9, ..replacing(1, &client(1)) }, &client(1), 1).await;
    store.add_operator(&operator_record(1)).await.unwrap();
    let before = everything(&store).await;
    let url = format!("sqlite:{}/records.db", dir.path().display());
    let mut raw = SqliteConnection::connect(&url).await.unwrap();

    for (table, column, damage) in [
        ("join_tokens", "hash", "'00'"),
        ("join_tokens", "pattern", "''"),
        ("join_tokens", "uses", "-1"),
        ("join_tokens", "uses_max", "4294967296"),
        ("join_tokens", "expires_ms", "'x'"),
        ("identities", "uid", "'x'"),
        ("identities", "standing", "'active'"),
        ("identities", "token_id", "''"),
        ("identities", "key_hash", "upper(key_hash)"),
        ("operators", "role", "'root'"),
        ("operators", "scope", "'{}'"),
        ("operators", "scope", "'{\"clients\":[\"/\"],\"paths\":[]}'"),
        ("operators", "hash", "''"),
        ("operators", "expires_ms", "'x'"),
    ] {
        let sql = |text: String| sqlx::query(AssertSqlSafe(text));
        sql(format!("CREATE TABLE kept AS SELECT * FROM {table}")).execute(&mut raw).await.unwrap();
        sql(format!("UPDATE {table} SET {column} = {damage}")).execute(&mut raw).await.unwrap();
        let corrupt = |result: Result<(), StoreError>| {
            assert!(matches!(result, Err(StoreError::Corrupt(_))), "{table}.{column}: {result:?}");
        };
        match table {
            "operators" => {
                corrupt(store.operator(&operator(1)).await.map(drop));
                corrupt(store.operator_of_token(&token_id(1)).await.map(drop));
                corrupt(store.operators(None, 9).await.map(drop));
                corrupt(store.revoke_operator(&operator(1), at(2)).await.map(drop));
            }
            "identities" => {
                corrupt(store.identity(&client(1)).await.map(drop));
                corrupt(store.identities(None, 9).await.map(drop));
                let standing = Standing::Revoked;
                corrupt(store.set_standing(&client(1), standing, at(2)).await.map(drop));
                corrupt(store.join(&joining(1, &client(1)), at(2)).await.map(drop));
            }
            _ => {
                corrupt(store.join_token(&token_id(1)).await.map(drop));
                corrupt(store.join_tokens(None, 9).await.map(drop));
                corrupt(store.join(&joining(1, &client(1)), at(2)).await.map(drop));
            }
        }
        sql(format!("DELETE FROM {table}")).execute(&mut raw).await.unwrap();
        let restore = format!("INSERT INTO {table} SELECT * FROM kept");
        sql(restore).execute(&mut raw).await.unwrap();
        sql("DROP TABLE kept".to_owned()).execute(&mut raw).await.unwrap();
        assert_eq!(everything(&store).await, before);
    }
    store.close().await;
}
