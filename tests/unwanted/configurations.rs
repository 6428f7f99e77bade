//! Broken configurations: each is refused with exit code 78 and by name, and nothing listens.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use rcgen::KeyPair;
use tempfile::TempDir;

use crate::{
    child::PROGRAM,
    common::{process::pause, server::PATIENCE},
};

const EX_CONFIG: i32 = 78;

/// A data directory, a file of settings, and a certificate of somebody's own.
struct Site {
    dir: TempDir,
}

impl Site {
    /// Without an authority.
    fn bare() -> Self {
        let dir = TempDir::new().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
        let cert = params.self_signed(&key).expect("signed");
        fs::write(dir.path().join("own.pem"), cert.pem()).expect("written");
        fs::write(dir.path().join("own.key"), key.serialize_pem()).expect("written");
        let another = KeyPair::generate().expect("a key").serialize_pem();
        fs::write(dir.path().join("another.key"), another).expect("written");
        Self { dir }
    }

    fn secured() -> Self {
        let site = Self::bare();
        let made = site.command(&["init", "--name", "localhost"]).output().expect("it runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        site
    }

    fn pki(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("data/pki").join(name)
    }

    fn listened(&self) -> std::path::PathBuf {
        self.dir.path().join("port")
    }

    /// The program, in the directory: what is in it has short names.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).current_dir(self.dir.path()).env_clear();
        command.env("FTS_DATA_DIR", "data");
        command
    }

    /// Starts the server with these flags, and returns its exit code and what it says; `None`, if
    /// it serves.
    fn start(&self, args: &[&str]) -> (Option<i32>, String) {
        let port = self.listened();
        let mut command = self.command(args);
        // Where nothing else is said, on a port that is free.
        command.env("FTS_PORT_FILE", &port).env("PORT", "0");
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let until = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(status) = child.try_wait().expect("it is ours") {
                break status.code();
            }
            if port.exists() {
                child.kill().expect("it runs");
                child.wait().expect("it ended");
                break None;
            }
            assert!(Instant::now() < until, "it neither serves nor ends");
            pause();
        };
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        (code, said)
    }

    /// Asks whether the configuration is good, and returns the exit code and what was said.
    fn check(&self, args: &[&str]) -> (Option<i32>, String) {
        let checked = self.command(&[&["config", "check"], args].concat()).output();
        let checked = checked.expect("it runs");
        (checked.status.code(), String::from_utf8_lossy(&checked.stderr).into_owned())
    }

    /// Refuses these flags, and names each of these.
    fn refuses(&self, args: &[&str], named: &[&str]) {
        for (how, (code, said)) in [("bare", self.start(args)), ("check", self.check(args))] {
            assert_eq!(code, Some(EX_CONFIG), "{how} {args:?}: {said}");
            for name in named {
                assert!(said.contains(name), "{how} {args:?}: no {name:?} in: {said}");
            }
            assert!(!said.contains("PRIVATE KEY"), "{how} {args:?}: {said}");
        }
        assert!(!self.listened().exists(), "{args:?}: it listened");
        assert!(!self.dir.path().join("data/admin.sock").exists(), "{args:?}: it listened");
    }
}

#[test]
fn broken_flags_are_refused_by_name() {
    let (bare, secured) = (Site::bare(), Site::secured());
    let own = ["--tls-cert", "own.pem", "--tls-key", "own.key"];
    for (site, args, named) in [
        (&secured, &["--tls-cert", "own.pem"][..], &["--tls-cert", "--tls-key"][..]),
        (&secured, &["--tls-key", "own.key"], &["--tls-key", "--tls-cert"]),
        (&secured, &["--tls-cert", "no.pem", "--tls-key", "own.key"], &["no.pem"]),
        (&secured, &["--tls-cert", "own.pem", "--tls-key", "no.key"], &["no.key"]),
        (&secured, &["--tls-cert", "own.key", "--tls-key", "own.key"], &["own.key"]),
        (&secured, &["--tls-cert", "own.pem", "--tls-key", "own.pem"], &["own.pem"]),
        (&secured, &["--tls-cert", "own.pem", "--tls-key", "another.key"], &["another.key"]),
        (&secured, &["--tls-cert", "data", "--tls-key", "own.key"], &["data"]),
        (&secured, &["--insecure"], &["--insecure"]),
        (&secured, &["--certificate-life", "1s"], &["--certificate-life"]),
        (&secured, &["--certificate-life", "400d"], &["--certificate-life"]),
        (&secured, &["--certificate-life", "soon"], &["--certificate-life"]),
        (&secured, &["--control-listen", "nowhere"], &["--control-listen"]),
        (&bare, &own, &["--tls-cert"]),
        (&bare, &["--listen", "0.0.0.0:0"], &["--listen", "0.0.0.0:0"]),
        (&bare, &["--listen", "[::]:0"], &["--listen", "[::]:0"]),
        (&bare, &["--control-listen", "0.0.0.0:0"], &["--control-listen", "0.0.0.0:0"]),
        (&bare, &["--insecure=perhaps"], &["--insecure"]),
    ] {
        site.refuses(args, named);
    }
    // What is broken there is all that kept them from serving.
    assert_eq!(bare.start(&[]).0, None);
    fs::remove_file(secured.listened()).unwrap_or_default();
    assert_eq!(secured.start(&own).0, None);
}

#[test]
fn a_broken_file_of_settings_is_refused_with_its_lines() {
    for (text, named) in [
        ("listen = \"127.0.0.1:0\"\nlisen = \"x\"\n", &["line 2", "lisen"][..]),
        ("\n\ntls_cert = 7\n", &["line 3"]),
        ("insecure = \"yes\"\n", &["line 1"]),
        ("certificate_life = 60\nmax_uploads = \"many\"\n", &["line 1", "line 2"]),
        ("[tls]\ncert = \"own.pem\"\n", &["line 1", "tls"]),
        ("tls_cert = \n", &["line 1"]),
        ("tls_cert = \"own.pem\"\n", &["--tls-cert", "--tls-key"]),
        ("certificate_life = \"1s\"\n", &["'certificate_life' in the file"]),
        ("insecure = true\n", &["--insecure"]),
    ] {
        let site = Site::secured();
        fs::write(site.dir.path().join("fts.toml"), text).expect("written");
        site.refuses(&["--config", "fts.toml"], named);
    }
    let site = Site::secured();
    site.refuses(&["--config", "no.toml"], &["no.toml"]);
    site.refuses(&["--config", "data"], &["data"]);
}

/// Removes what is there, if anything is.
fn clear(path: &Path) {
    if path.is_dir() {
        fs::remove_dir(path).expect("removed");
    } else if path.exists() {
        fs::remove_file(path).expect("removed");
    }
}

#[test]
fn a_damaged_authority_is_refused_by_its_file_and_never_served_in_clear() {
    for name in
        ["names", "roots.pem", "intermediate.pem", "intermediate.key", "server.pem", "server.key"]
    {
        let site = Site::secured();
        let path = site.pki(name);
        let good = fs::read(&path).expect("there");
        let damages: [&dyn Fn(); 5] = [
            &|| (),
            &|| fs::create_dir(&path).expect("made"),
            &|| fs::write(&path, "").expect("written"),
            &|| fs::write(&path, [0xff, 0xfe, 0, 1]).expect("written"),
            &|| fs::write(&path, "-----BEGIN NOTHING-----\n").expect("written"),
        ];
        // Any word is a name.
        let count = if name == "names" { 4 } else { 5 };
        for damage in &damages[..count] {
            clear(&path);
            damage();
            site.refuses(&[], &[name]);
        }
        clear(&path);
        fs::write(&path, &good).expect("mended");
        assert_eq!(site.start(&[]).0, None, "{name} is whole again");
    }
}

#[test]
fn files_of_an_authority_that_do_not_fit_are_refused() {
    let another = KeyPair::generate().expect("a key").serialize_pem();
    for name in ["server.key", "intermediate.key"] {
        let site = Site::secured();
        fs::write(site.pki(name), &another).expect("written");
        site.refuses(&[], &[name]);
    }
}

#[test]
fn what_is_left_of_an_authority_is_never_served_in_clear() {
    let lefts: [&dyn Fn(&Path); 4] = [
        &|pki| fs::create_dir(pki).expect("made"),
        &|pki| fs::write(pki, "").expect("written"),
        &|pki| std::os::unix::fs::symlink("nowhere", pki).expect("made"),
        &|pki| std::os::unix::fs::symlink("pki", pki).expect("made"),
    ];
    for left in lefts {
        let site = Site::bare();
        fs::create_dir(site.dir.path().join("data")).expect("made");
        left(&site.dir.path().join("data/pki"));
        site.refuses(&[], &["pki"]);
        site.refuses(&["--insecure"], &["--insecure"]);
    }
}
