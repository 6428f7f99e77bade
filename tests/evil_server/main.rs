//! A stolen server against a real client: whatever it says, on the real protocol and beside it, it
//! gets no more than the policy shares, and the client goes on.

#[path = "../common/mod.rs"]
mod common;

mod asked;
mod floods;
mod paths;
mod peer;
mod said;

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use tempfile::TempDir;

const SECRET: &[u8] = b"3f9a1c0bb77e4d52a6180e9dcb4f27a1";

/// A root beside what nobody may know of.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let site = Self { dir };
        for dir in ["root", "root/sub", "vault", "root-secret"] {
            fs::create_dir(site.path(dir)).expect("made");
        }
        for secret in ["canary", "vault/canary", "vault/open", "root-secret/canary", "shut"] {
            fs::write(site.path(secret), SECRET).expect("written");
        }
        fs::write(site.path("root/open"), "open").expect("written");
        for (link, target) in [
            ("root/out", "../canary"),
            ("root/out-dir", "../vault"),
            ("root/up", ".."),
            ("root/sub/back", ".."),
            ("root/magic", "/proc/self/root"),
        ] {
            symlink(target, site.path(link)).expect("linked");
        }
        site
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.dir.path().join(rest)
    }

    /// Names everything in it and in its root.
    fn files(&self) -> Vec<PathBuf> {
        let entries =
            |dir| fs::read_dir(dir).expect("there").map(|entry| entry.expect("one").path());
        let mut files: Vec<_> =
            [self.path(""), self.path("root")].into_iter().flat_map(entries).collect();
        files.sort();
        files
    }

    fn text(&self, rest: &str) -> String {
        self.path(rest).to_str().expect("text").to_owned()
    }
}
