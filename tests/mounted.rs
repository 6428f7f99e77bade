//! Roots that are mounted while the client runs: what is mounted there is what may be read, and
//! without it nothing is.

mod common;

use std::{fs, path::PathBuf, process::Command};

use common::{client::TestClient, server::TestServer, tools};
use fts::wire::proto::{FailReason, State};
use tempfile::TempDir;

/// A directory that file systems are mounted on.
struct MountPoint {
    _dir: TempDir,
    path: PathBuf,
}

impl MountPoint {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("root");
        fs::create_dir(&path).expect("made");
        fs::write(path.join("file"), "beneath").expect("written");
        Self { _dir: dir, path }
    }

    /// Mounts a new file system with a file in it.
    fn mount(&self, text: &str) -> Result<(), String> {
        let at = self.path.to_str().expect("text");
        run("mount", &["-t", "tmpfs", "fts-test", at])?;
        fs::write(self.path.join("file"), text).map_err(|err| err.to_string())
    }

    /// Also while it is held.
    fn unmount(&self) {
        run("umount", &["-l", self.path.to_str().expect("text")]).expect("unmounted");
    }

    fn file(&self) -> String {
        self.path.join("file").to_str().expect("text").to_owned()
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let done = Command::new(program).args(args).output().map_err(|err| err.to_string())?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if done.status.success() { Ok(()) } else { Err(said) }
}

async fn pulled(server: &TestServer, path: &str) -> Result<Vec<u8>, FailReason> {
    let id = server.trigger("client-1", path).await.id;
    let transfer = server.ended(&id).await;
    match transfer.state() {
        State::Complete => Ok(fs::read(&transfer.location).expect("landed")),
        _ => Err(transfer.failure.expect("a reason").reason()),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "test-all: needs root"]
async fn what_is_mounted_later_is_read_and_what_is_beneath_it_never() {
    let test = "what_is_mounted_later_is_read_and_what_is_beneath_it_never";
    let point = MountPoint::new();
    if let Err(why) = point.mount("first") {
        return tools::skipped(test, &format!("root that may mount ({why})"));
    }
    point.unmount();
    let server = TestServer::start().await;
    // Without the sandbox: what was mounted after the start is not of what the kernel was told.
    let client = TestClient::start(&server, "client-1", &[&point.path]).await;
    assert_eq!(pulled(&server, &point.file()).await.as_deref(), Ok(&b"beneath"[..]));

    point.mount("second").expect("mounted");
    assert_eq!(pulled(&server, &point.file()).await.as_deref(), Ok(&b"second"[..]));
    point.unmount();
    assert_eq!(pulled(&server, &point.file()).await, Err(FailReason::SourceNotFound));
    point.mount("third").expect("mounted");
    assert_eq!(pulled(&server, &point.file()).await.as_deref(), Ok(&b"third"[..]));

    point.unmount();
    client.stop().await;
    server.stop().await;
}
