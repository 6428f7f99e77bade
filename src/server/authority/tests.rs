use std::{
    cell::Cell,
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, mpsc},
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa};

use super::*;
use crate::server::tls::Tls;

thread_local! {
    /// How many changes of files there may be before everything is broken off.
    static CHANGES: Cell<u32> = const { Cell::new(u32::MAX) };
}

pub(super) fn crash_here() -> io::Result<()> {
    let left = CHANGES.get().checked_sub(1);
    left.map(|left| CHANGES.set(left)).ok_or_else(|| io::Error::other("broken off"))
}

/// Breaks `change` off after each number of changes, until it comes to its end; `check` sees what
/// it left each time.
fn broken_off<T>(
    mut begin: impl FnMut() -> T,
    change: impl Fn(&T) -> Result<Authority, AuthorityError>,
    check: impl Fn(T, bool),
) {
    for count in 0.. {
        let world = begin();
        CHANGES.set(count);
        let changed = change(&world);
        CHANGES.set(u32::MAX);
        check(world, changed.is_ok());
        match changed {
            Ok(_) => {
                assert!(count > 2, "it was broken off here and there");
                return;
            }
            Err(err) => assert!(err.to_string().contains("broken off"), "{err}"),
        }
    }
}

fn opened(dir: &Path) -> Authority {
    Authority::open(&dir.join("pki")).expect("opened").expect("there")
}

/// The root that the server's certificate leads to. The whole chain must.
fn served(authority: &Authority) -> Sha256 {
    let chain = authority.files.certificates("server.pem").expect("there");
    let key = authority.files.key("server.key").expect("a key");
    let fits = identity::public_key(&chain[0]).ok() == Some(key.subject_public_key_info());
    assert!(fits, "the key is the leaf's");
    assert!(identity::is_signed_by(&chain[0], &chain[1]), "the intermediate signed the leaf");
    assert!(identity::is_signed_by(&chain[1], &chain[2]), "the root signed the intermediate");
    Sha256::of(&chain[2])
}

/// Lets the server's certificate be of an age at which it is renewed.
fn age(authority: &Authority) {
    let mut params = params(
        SystemTime::now() - limits::SERVER_CERTIFICATE_LIFE,
        SystemTime::now() + Duration::from_secs(3600),
        "fts",
    )
    .expect("parameters");
    params.subject_alt_names = Vec::new();
    let key = KeyPair::generate().expect("a key");
    let old = authority.old.as_ref().unwrap_or(&authority.signer);
    let leaf = params.signed_by(&key, &old.issuer).expect("signed").der().clone();
    let chain = [leaf, old.certificate.clone(), old.root.clone()];
    authority.files.write_pair(SERVER, &key, &chain).expect("written");
}

fn authority(dir: &Path) -> Authority {
    Authority::init(&dir.join("pki"), &["fts.example.com".to_owned()]).expect("made")
}

fn request() -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["evil.example.com".to_owned()]).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.serialize_request(&key).expect("signed").der().to_vec()
}

fn id(text: &str) -> ClientId {
    text.parse().expect("an id")
}

#[test]
fn a_certificate_has_nothing_of_its_request_but_the_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = authority(dir.path());
    let uid = Uuid::new_v4();

    let issued = authority
        .issue_client(&request(), &id("web-1"), uid, Duration::from_secs(3600))
        .expect("issued");

    let read = authority.identify(&issued.chain[0]).expect("a client");
    assert_eq!((read.client.clone(), read.uid, read.key), (id("web-1"), uid, issued.key));
    assert!(!read.is_expired(UnixMs::now()));
    let (_, parsed) = x509_parser::parse_x509_certificate(&issued.chain[0]).expect("parsed");
    assert!(!parsed.is_ca());
    let usage = parsed.extended_key_usage().expect("read").expect("there").value;
    assert!(usage.client_auth && !usage.server_auth && !usage.any);
    let names = &parsed.subject_alternative_name().expect("read").expect("there").value;
    assert_eq!(names.general_names.len(), 1, "{names:?}");
}

#[test]
fn a_request_that_does_not_prove_its_key_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = authority(dir.path());
    let good = request();
    let issue = |request: &[u8]| {
        authority.issue_client(request, &id("a"), Uuid::new_v4(), Duration::from_secs(60))
    };
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [&forged[..], &good[..50], b"", &[0; 9000]] {
        assert!(matches!(issue(bad), Err(AuthorityError::Request(_))));
    }
    issue(&good).expect("issued");
}

#[test]
fn a_server_certificate_names_no_client() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = authority(dir.path());
    let server = authority.files.certificates("server.pem").expect("there");
    assert_eq!(authority.identify(&server[0]), Err(IdentityError::NotAClient));
    assert_eq!(server.len(), 3, "the leaf, the intermediate, the root");
    assert_eq!(Sha256::of(&server[2]), authority.root());
}

#[test]
fn keys_are_for_their_owner_alone_and_a_second_authority_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(authority(dir.path()));
    for entry in fs::read_dir(dir.path().join("pki")).expect("listed") {
        let entry = entry.expect("an entry");
        let mode = entry.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
    }
    let again = Authority::init(&dir.path().join("pki"), &["x".to_owned()]);
    assert!(matches!(again, Err(AuthorityError::Exists(_))));
    let elsewhere = Authority::open(&dir.path().join("other")).expect("looked");
    assert!(elsewhere.is_none());
}

#[test]
fn it_signs_without_the_key_of_the_root() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(authority(dir.path()));
    fs::remove_file(dir.path().join("pki/root.key")).expect("taken away");
    let authority = Authority::open(&dir.path().join("pki")).expect("opened").expect("there");
    let life = Duration::from_secs(60);
    authority.issue_client(&request(), &id("a"), Uuid::new_v4(), life).expect("issued");
}

#[test]
fn a_rotation_trusts_both_roots_until_it_is_finished() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = authority(dir.path());
    let served = old.files.certificates("server.pem").expect("there");

    let between = old.rotate().expect("rotated");

    assert_eq!(between.roots().len(), 2);
    assert_ne!(between.root(), old.root());
    assert_eq!(between.files.certificates("server.pem").expect("there"), served);
    let new = between.finish().expect("finished");
    assert_eq!(new.roots().len(), 1);
    assert_eq!(new.root(), between.root());
    let served = new.files.certificates("server.pem").expect("there");
    assert_eq!(Sha256::of(&served[2]), new.root());
}

#[test]
fn only_what_can_be_a_name_is_one() {
    for good in ["fts.example.com", "FTS", "10.0.0.1", "::1", "[fd00::1]", "a-b.c"] {
        checked_name(good).expect(good);
    }
    let long = "a".repeat(64);
    for bad in ["", "a b", "a..b", "-a", "a-", "a/b", "*.x", "é", "a_b", &long] {
        assert!(checked_name(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_left_of_an_authority_is_not_taken_for_none() {
    for name in ["names", "roots.pem", "intermediate.pem", "intermediate.key"] {
        let dir = tempfile::tempdir().expect("a directory");
        drop(authority(dir.path()));
        let path = dir.path().join("pki").join(name);
        for text in [None, Some(""), Some("nonsense")] {
            match text {
                None => fs::remove_file(&path).expect("removed"),
                Some(text) => fs::write(&path, text).expect("written"),
            }
            let opened = Authority::open(&dir.path().join("pki"));
            // Any word is a name.
            assert!(
                opened.is_err() || (name, text) == ("names", Some("nonsense")),
                "{name} {text:?}"
            );
            assert!(crate::server::config::has_authority(dir.path()));
        }
    }
}

#[test]
fn a_change_of_keys_that_a_crash_broke_off_leaves_a_pair_that_fits() {
    for (key_name, name) in [("intermediate.key", "intermediate.pem"), ("server.key", "server.pem")]
    {
        let dir = tempfile::tempdir().expect("a directory");
        let old = authority(dir.path());
        let pki = dir.path().join("pki");
        let read = |name: &str| fs::read(pki.join(name)).expect("there");
        let before = (read(key_name), read(name));
        drop(old.rotate().expect("rotated").finish().expect("finished"));
        let after = (read(key_name), read(name));
        let roots = [old.roots(), opened(dir.path()).roots()].concat();
        old.files.write_certificates("roots.pem", &roots).expect("written");
        let waiting = pki.join(format!("{name}.next"));

        // Broken off before the key was written, and after.
        for (key, is_done) in [(&before.0, false), (&after.0, true)] {
            fs::write(pki.join(key_name), key).expect("written");
            fs::write(pki.join(name), &before.1).expect("written");
            fs::write(&waiting, &after.1).expect("written");

            Authority::open(&pki).expect("opened").expect("there");

            let expected = if is_done { &after.1 } else { &before.1 };
            assert_eq!(&read(name), expected, "{name}");
        }
    }
}

#[test]
fn a_rotation_broken_off_anywhere_leaves_a_server_that_everybody_knows() {
    broken_off(
        || {
            let dir = tempfile::tempdir().expect("a directory");
            let old = authority(dir.path());
            let life = Duration::from_secs(3600);
            age(&old);
            let client = old.issue_client(&request(), &id("a"), Uuid::new_v4(), life);
            (dir, old, client.expect("issued"))
        },
        |(_, old, _)| old.rotate(),
        |(dir, old, _), is_done| {
            let now = opened(dir.path());
            assert!(now.roots().contains(&old.roots()[0]), "who came before is known");
            assert!(now.renew_server().expect("renewed"));
            assert_eq!(served(&now), old.root(), "the one that everybody knows");
            now.issue_client(&request(), &id("a"), Uuid::new_v4(), Duration::from_secs(60))
                .expect("issued");
            assert!(!is_done || now.root() != old.root());

            // It goes on from there: forward if it had begun, from the start if not.
            let has_begun = now.is_rotating;
            let between = if has_begun { now } else { now.rotate().expect("rotated") };
            assert_eq!(between.roots().len(), 2);
            let key = between.files.key("root.key").expect("there");
            let root = identity::public_key(&between.roots()[0]).expect("read");
            assert_eq!(root, key.subject_public_key_info(), "its key is there to be taken away");
            let new = between.finish().expect("finished");
            assert_eq!((served(&new), new.roots().len()), (new.root(), 1));
        },
    );
}

#[test]
fn the_end_of_a_rotation_broken_off_anywhere_can_be_ended() {
    broken_off(
        || {
            let dir = tempfile::tempdir().expect("a directory");
            let between = authority(dir.path()).rotate().expect("rotated");
            (dir, between)
        },
        |(_, between)| between.finish(),
        |(dir, between), _| {
            let now = opened(dir.path());
            assert!(between.roots().iter().any(|root| Sha256::of(root) == served(&now)));
            let new = if now.is_rotating { now.finish().expect("finished") } else { now };
            assert_eq!(served(&new), new.root());
            assert_eq!((new.root(), new.roots().len()), (between.root(), 1));
            let again = new.rotate().expect("rotated").finish().expect("finished");
            assert_eq!(served(&again), again.root());
        },
    );
}

#[test]
fn an_authority_whose_making_was_broken_off_anywhere_can_be_made() {
    broken_off(
        || tempfile::tempdir().expect("a directory"),
        |dir| Authority::init(&dir.path().join("pki"), &["localhost".to_owned()]),
        |dir, is_done| {
            let pki = dir.path().join("pki");
            assert_eq!(Authority::open(&pki).expect("opened").is_some(), is_done);
            if !is_done {
                Authority::init(&pki, &["localhost".to_owned()]).expect("made");
            }
            let made = opened(dir.path());
            assert_eq!(served(&made), made.root());
            assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing is left");
        },
    );
}

#[test]
fn one_rotation_at_a_time_and_none_ends_that_did_not_begin() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = authority(dir.path());
    assert!(matches!(old.finish(), Err(AuthorityError::WrongState(_))));

    let between = old.rotate().expect("rotated");
    assert!(matches!(between.rotate(), Err(AuthorityError::WrongState(_))));
    assert_eq!(opened(dir.path()).root(), between.root());

    let new = between.finish().expect("finished");
    assert!(matches!(new.finish(), Err(AuthorityError::WrongState(_))));
    assert!(!dir.path().join("pki/intermediate.old.key").exists());
}

#[test]
fn an_intermediate_is_renewed_with_the_key_of_its_root_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let old = authority(dir.path());
    let path = dir.path().join("pki/root.key");
    let key = fs::read(&path).expect("there");
    fs::remove_file(&path).expect("taken away");
    let err = old.renew_intermediate().err().expect("no key").to_string();
    assert!(err.contains("root.key is not there"), "{err}");
    fs::write(&path, KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    let err = old.renew_intermediate().err().expect("another key").to_string();
    assert!(err.contains("not the key of the current root"), "{err}");
    fs::write(&path, key).expect("put back");

    let new = old.renew_intermediate().expect("renewed");

    assert_ne!(new.signer.certificate, old.signer.certificate);
    assert_eq!((new.root(), new.roots().len()), (old.root(), 1));
    assert_eq!(served(&new), old.root());
    new.issue_client(&request(), &id("a"), Uuid::new_v4(), Duration::from_secs(60))
        .expect("issued");
}

/// Gives the authority an intermediate that is good for so long, and began as long ago.
fn with_intermediate(dir: &Path, life: Duration) -> Authority {
    let authority = authority(dir);
    let key = authority.files.key("root.key").expect("there");
    let root = authority.roots()[0].clone();
    let now = SystemTime::now();
    let issuer = rcgen::Issuer::from_ca_cert_der(&root, key).expect("an issuer");
    let mut params = params(now - life, now + life, "short").expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().expect("a key");
    let signed = params.signed_by(&key, &issuer).expect("signed").der().clone();
    authority.files.write_pair(INTERMEDIATE, &key, &[signed]).expect("written");
    opened(dir)
}

#[test]
fn nothing_outlives_what_signs_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let hour = Duration::from_secs(3600);
    let authority = with_intermediate(dir.path(), hour);

    let issued = authority.issue_client(&request(), &id("a"), Uuid::new_v4(), 10 * hour);
    assert_eq!(issued.expect("issued").expires, authority.expires());
    authority.issue_server(SystemTime::now(), &authority.signer).expect("issued");
    let leaf = authority.files.certificates("server.pem").expect("there").swap_remove(0);
    assert_eq!(life(&leaf).expect("read").1, authority.expires());

    let late = SystemTime::now() + limits::ROOT_LIFE - hour;
    let key = authority.files.key("root.key").expect("there");
    let root = &authority.roots()[0];
    let (intermediate, _) = make_intermediate(root, key, late).expect("made");
    assert_eq!(life(&intermediate).expect("read").1, life(root).expect("read").1);
    let over = authority.issue_server(SystemTime::now() + 2 * hour, &authority.signer);
    assert!(matches!(over, Err(AuthorityError::Expired("intermediate"))));
}

#[test]
fn an_intermediate_is_old_when_less_than_a_fifth_of_its_life_is_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = authority(dir.path());
    let (begins, ends) = life(&authority.signer.certificate).expect("read");
    let at = |tenths: i64| UnixMs(begins.0 + (ends.0 - begins.0) / 10 * tenths);
    assert!(!authority.is_ageing(UnixMs::now()) && !authority.is_ageing(at(7)));
    assert!(authority.is_ageing(at(9)) && authority.is_ageing(at(11)));
}

#[test]
fn a_certificate_that_cannot_be_renewed_does_not_keep_others_from_being_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let pki = dir.path().join("pki");
    let tls = Tls::open(pki.clone(), authority(dir.path()), None).expect("TLS");
    let root = tls.root();
    // It is renewed at each look, and there is no room for it.
    opened(dir.path()).rotate().expect("rotated").finish().expect("finished");
    age(&opened(dir.path()));
    fs::create_dir_all(pki.join("server.pem.next.new/full")).expect("made");

    assert!(tls.look().expect("looked"));
    assert_ne!(tls.root(), root);
    assert_eq!(tls.authority().root(), opened(dir.path()).root());
    let begins = |authority: &Authority| {
        life(&authority.files.certificates("server.pem").expect("there")[0]).expect("read").0
    };
    let aged = begins(&tls.authority());

    fs::remove_dir_all(pki.join("server.pem.next.new")).expect("removed");
    assert!(tls.look().expect("looked"));
    assert!(begins(&tls.authority()) > aged);
    assert!(!tls.look().expect("looked"));
}

#[test]
fn a_look_waits_for_a_change_of_the_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    let pki = dir.path().join("pki");
    let tls = Arc::new(Tls::open(pki, authority(dir.path()), None).expect("TLS"));
    let (looked, heard) = mpsc::channel();
    let looking = Arc::clone(&tls);

    let changed = tls.change(|authority| {
        thread::spawn(move || looked.send(looking.look().expect("looked")));
        let early = heard.recv_timeout(Duration::from_millis(300));
        assert!(early.is_err(), "it looked in the middle of a change");
        authority.rotate()
    });

    assert_eq!(changed.expect("changed").roots().len(), 2);
    let looked = heard.recv_timeout(Duration::from_secs(30)).expect("it went on");
    assert!(!looked, "the change is in use already");
}
