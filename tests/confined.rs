//! A client reads what its own policy allows, and nothing else leaves: not a byte, not a size, not
//! an existence.

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use common::{client::TestClient, files_beneath, server::TestServer};
use fts::wire::proto::{
    FailReason::{self, DeniedByPolicy, SourceNotFound, SourceNotRegular},
    State, Transfer,
};
use tempfile::TempDir;

const CANARY: &[u8] = b"the canary that must never sing: 3f9a1c";

/// A root with things in it that lead out, and a canary beside it.
struct Site {
    dir: TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let site = Self { dir };
        let (root, beside) = (site.root(), site.dir.path());
        fs::create_dir_all(root.join("sub")).expect("made");
        fs::create_dir_all(beside.join("root-secret")).expect("made");
        fs::write(root.join("open"), b"open").expect("written");
        for canary in [beside.join("canary"), beside.join("root-secret/canary")] {
            fs::write(canary, CANARY).expect("written");
        }
        symlink("open", root.join("inside")).expect("linked");
        symlink("../canary", root.join("out")).expect("linked");
        symlink(beside.join("canary"), root.join("out-absolute")).expect("linked");
        symlink("..", root.join("sub/up")).expect("linked");
        symlink("../..", root.join("sub/up-up")).expect("linked");
        symlink("/proc/self/root", root.join("magic")).expect("linked");
        let fifo = root.join("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).expect("made");
        site
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }
}

async fn outcome(server: &TestServer, path: &str) -> Transfer {
    let transfer = server.trigger("client-1", path).await;
    server.ended(&transfer.id).await
}

fn reason(transfer: &Transfer) -> Option<FailReason> {
    transfer.failure.as_ref().map(fts::wire::proto::Failure::reason)
}

#[tokio::test]
async fn nothing_outside_the_roots_leaves() {
    let server = TestServer::start().await;
    let site = Site::new();
    let root = site.root();
    let client = TestClient::start(&server, "client-1", &[&root]).await;
    let inside = |name: &str| root.join(name).display().to_string();
    let beside = |name: &str| site.dir.path().join(name).display().to_string();
    let cases = [
        (beside("canary"), DeniedByPolicy),
        (beside("absent"), DeniedByPolicy),
        // A name that only begins like the root.
        (beside("root-secret/canary"), DeniedByPolicy),
        ("/etc/shadow".to_owned(), DeniedByPolicy),
        ("/".to_owned(), DeniedByPolicy),
        ("/proc/self/environ".to_owned(), DeniedByPolicy),
        (inside("out"), DeniedByPolicy),
        (inside("out-absolute"), DeniedByPolicy),
        (inside("sub/up-up/canary"), DeniedByPolicy),
        (inside("magic/etc/passwd"), DeniedByPolicy),
        (inside("absent"), SourceNotFound),
        (inside("fifo"), SourceNotRegular),
        (inside("sub"), SourceNotRegular),
        (inside(&"n".repeat(256)), SourceNotFound),
    ];
    for (path, expected) in cases {
        let transfer = outcome(&server, &path).await;
        assert_eq!(transfer.state(), State::Failed, "{path}");
        assert_eq!(reason(&transfer), Some(expected), "{path}: {transfer:?}");
        assert!(transfer.size.is_none() && transfer.fingerprint.is_none(), "{path}");
    }
    for good in ["open", "inside", "sub/up/open", "./sub/.//up/open"] {
        let path = inside(good);
        let transfer = server.trigger("client-1", &path).await;
        assert_eq!(server.landed(&transfer.id).await.1, b"open", "{path}");
    }
    assert_no_canary(server.dir());
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn outside_and_absent_look_the_same() {
    let server = TestServer::start().await;
    let site = Site::new();
    let client = TestClient::start(&server, "client-1", &[&site.root()]).await;

    let there = outcome(&server, &site.dir.path().join("canary").display().to_string()).await;
    let absent = outcome(&server, &site.dir.path().join("absent").display().to_string()).await;

    let failure = |t: &Transfer| t.failure.clone().expect("a reason");
    assert_eq!(failure(&there), failure(&absent));
    let text = format!("{:?}", failure(&there));
    assert!(!text.contains("canary") && !text.contains("--allow"), "{text}");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_path_that_is_none_is_refused_at_the_trigger() {
    let server = TestServer::start().await;
    let site = Site::new();
    let client = TestClient::start(&server, "client-1", &[&site.root()]).await;
    let long = format!("/{}", "x".repeat(5000));
    for path in ["relative", "../up", "/a/../b", "/a/..", "/nul\0", long.as_str()] {
        let request = fts::wire::proto::TriggerDownloadRequest {
            client_id: "client-1".to_owned(),
            path: path.to_owned(),
            ..Default::default()
        };
        let refused = server.control().await.trigger_download(request).await.expect_err(path);
        assert_eq!(fts::status::reason(&refused), Some(fts::status::Reason::InvalidArgument));
    }
    client.stop().await;
    server.stop().await;
}

/// The canary is in no file of the server: not landed, not in a record.
fn assert_no_canary(dir: &Path) {
    for file in files_beneath(dir) {
        let data = fs::read(&file).expect("read");
        let sings = data.windows(CANARY.len()).any(|window| window == CANARY);
        assert!(!sings, "{}", file.display());
    }
}
