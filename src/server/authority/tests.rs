use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

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
