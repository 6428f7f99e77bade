//! What `fts-client policy` says of a policy, by the program itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
};

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
fn a_rule_that_wants_signatures_says_whose_and_not_what_is_there() {
    let site = Site::new();
    let (key, _) = fts::signature::SigningKey::generate().expect("random");
    site.write(&format!(
        "[[root]]\nname = 'logs'\npath = 'DIR/logs'\nrequire_signature = true\n\
         [[signer]]\nname = 'alice'\nkey = '{}'\n",
        key.public()
    ));

    let (code, text) = site.policy("check", &["logs/a.log", "logs/b"]);

    assert_eq!(code, 77, "{text}");
    let signer = format!("signer alice  {}", key.public());
    for part in ["(require_signature)", signer.as_str()] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    for name in ["a.log", "b"] {
        let part = format!("logs/{name}: it needs a request signed by one of: alice");
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
