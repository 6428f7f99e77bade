//! What `fts-client policy` says of a policy, by the program itself.

mod common;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use common::tools::{python, skipped};
use tempfile::TempDir;

struct Site {
    dir: TempDir,
}

impl Site {
    /// A directory with two files, one of which is excluded.
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        fs::create_dir(dir.path().join("logs")).expect("made");
        fs::write(dir.path().join("logs/a.log"), "12345").expect("written");
        fs::write(dir.path().join("logs/a.key"), "secret").expect("written");
        let site = Self { dir };
        site.write("[[root]]\nname = 'logs'\npath = 'DIR/logs'\nexclude = ['*.key']\n");
        site
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("text").to_owned()
    }

    fn write(&self, policy: &str) {
        let policy = policy.replace("DIR", &self.path(""));
        let path = self.dir.path().join("policy.toml");
        fs::write(&path, policy).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
    }

    fn policy(&self, command: &str, paths: &[&str]) -> (i32, String) {
        let paths = paths.iter().map(|name| self.path(name));
        let policy = self.path("policy.toml");
        let args = ["policy", command, "--policy", &policy].map(str::to_owned);
        let output = run(self.dir.path(), args.into_iter().chain(paths));
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().expect("an exit"), String::from_utf8(text).expect("text"))
    }
}

fn run(home: &Path, args: impl Iterator<Item = String>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fts-client"))
        .args(args)
        .env_clear()
        .env("HOME", home)
        .output()
        .expect("run")
}

#[test]
fn check_shows_rules_and_verdicts_and_reads_nothing() {
    let site = Site::new();

    let (code, text) = site.policy("check", &["logs/a.log", "logs/a.key", "logs/b", "elsewhere"]);

    assert_eq!(code, 77, "{text}");
    for part in [
        "1 rule; digest ",
        "(exclude *.key)",
        "logs/a.log: by the rule \"logs\" (5 bytes)",
        "logs/a.key: the rule \"logs\" excludes \"*.key\"",
        "logs/b: no such file",
        "elsewhere: it is beneath no root of the policy",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    // Not even the state directory was made.
    assert!(!site.dir.path().join(".local").exists());
}

#[test]
fn explain_ends_as_the_verdict_is() {
    let site = Site::new();
    let explain = |name| site.policy("explain", &[name]).0;
    assert_eq!(explain("logs/a.log"), 0);
    assert_eq!(explain("logs/a.key"), 77);
    assert_eq!(explain("logs/absent"), 1);
}

#[test]
fn a_rule_that_wants_signatures_says_whose_and_what_they_are_good_for() {
    let site = Site::new();
    let (key, _) = fts::signature::SigningKey::generate().expect("random");
    site.write(&format!(
        "[[root]]\nname = 'logs'\npath = 'DIR/logs'\nrequire_signature = true\n\
         [[signer]]\nname = 'alice'\nkey = '{}'\n",
        key.public()
    ));

    let (code, text) = site.policy("check", &["logs/a.log", "logs/b", "logs/absent"]);

    assert_eq!(code, 77, "{text}");
    let signer = format!("signer alice  {}", key.public());
    for part in ["(require_signature)", signer.as_str()] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let by_alice = "it needs a request signed by one of: alice; this one is not signed";
    for (name, signed) in [("a.log", "allowed: by the rule"), ("absent", "failed: no such file")] {
        let part = format!("logs/{name}: {by_alice}; signed, it is {signed}");
        assert!(text.contains(&part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn check_tells_everything_that_is_wrong_at_once() {
    let site = Site::new();
    site.write("[[root]]\nname = 'a b'\npath = 'relative'\nlinks = 'some'\n");

    let (code, text) = site.policy("check", &[]);

    assert_eq!(code, 78, "{text}");
    for part in ["a name is letters", "path:", "links:"] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn a_root_that_is_absent_is_a_problem_and_no_error() {
    let site = Site::new();
    site.write("[[root]]\nname = 'later'\npath = 'DIR/later'\n");

    let (code, text) = site.policy("check", &[]);

    assert_eq!(code, 0, "{text}");
    assert!(text.contains("PROBLEM: no such file"), "{text}");
}

#[test]
fn a_policy_file_and_a_list_are_not_taken_together() {
    let site = Site::new();
    let args = ["policy", "check", "--policy", &site.path("policy.toml"), "--allow", "/srv"];

    let output = run(site.dir.path(), args.map(str::to_owned).into_iter());

    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8(output.stderr).expect("text");
    assert!(told.contains("one of them says what is shared"), "{told}");
}

/// `tests/explained/folding.py`, mounted.
struct Folding {
    program: Child,
    at: PathBuf,
}

impl Folding {
    fn mount(test: &str, at: &Path) -> Option<Self> {
        let python = python(test, &["ctypes"])?;
        fs::create_dir(at).expect("made");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/explained/folding.py");
        let mut program = Command::new(python);
        program.arg(script).arg(at).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut folding = Self { program: program.spawn().expect("run"), at: at.to_owned() };
        let told = folding.program.stdout.take().expect("piped");
        let mut line = String::new();
        BufReader::new(told).read_line(&mut line).expect("text");
        if line.is_empty() {
            skipped(test, "root that may mount a FUSE");
            return None;
        }
        Some(folding)
    }
}

impl Drop for Folding {
    fn drop(&mut self) {
        // Which ends the program; if it was not mounted it has ended.
        drop(Command::new("umount").arg("-l").arg(&self.at).output());
        drop(self.program.wait());
    }
}

#[test]
#[ignore = "test-all: needs root"]
fn another_spelling_leads_around_no_rule_and_tells_nothing() {
    let test = "another_spelling_leads_around_no_rule_and_tells_nothing";
    let site = Site::new();
    let Some(_folding) = Folding::mount(test, &site.dir.path().join("fat")) else { return };
    let root = "[[root]]\nname = 'fat'\npath = 'DIR/fat'\n";
    // Where every name is as good, another spelling is too.
    site.write(root);
    let (code, told) = site.policy("explain", &["fat/SECRET.txt"]);
    assert_eq!(code, 0, "{told}");

    let nested = "[[root]]\nname = 'none'\npath = 'DIR/fat/private'\ninclude = ['none']\n\
                  [[root]]\nname = 'nor'\npath = 'DIR/fat/secret.txt'\nmax_size = '1B'\n";
    for links in ["inside", "never"] {
        let links = format!("{root}links = '{links}'\n");
        for policy in
            [format!("{links}exclude = ['secret.txt', 'private']\n"), format!("{links}{nested}")]
        {
            site.write(&policy);
            let (code, told) = site.policy("explain", &["fat/open.txt"]);
            assert_eq!(code, 0, "{policy}{told}");
            for name in ["fat/secret.txt", "fat/private/f.txt"] {
                let (code, told) = site.policy("explain", &[name]);
                assert_eq!(code, 77, "{policy}{told}");
            }
            let spellings =
                ["SECRET.txt", "Private/f.txt", "PRIVATE/absent", "ABSENT.txt", "Open.txt"];
            for name in spellings.map(|name| format!("fat/{name}")) {
                let (code, told) = site.policy("explain", &[&name]);
                assert_eq!(code, 77, "{policy}{told}");
                assert!(told.contains("its directory does not list this name"), "{told}");
            }
        }
    }
}
