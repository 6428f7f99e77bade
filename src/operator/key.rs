//! `fts key`: keys to sign requests with, each in a file that nobody else may read; and signing
//! with them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

use super::{
    error::Error,
    output::{Form, Output},
};
use crate::{
    ids::{ClientId, RemotePath, TransferId, UnixMs},
    limits,
    rate::Rate,
    settings,
    signature::{PublicKey, SigningKey},
    token::Secret,
    transfer::{Consistency, Signed},
    wire::signed::SignedRequest,
};

/// Signs requests, each for so long.
#[derive(Debug)]
pub(super) struct Signing {
    pub(super) key: SigningKey,
    pub(super) lasts: Duration,
}

impl Signing {
    /// Makes the id of a new transfer, and signs the request for it.
    pub(super) fn sign(
        &self,
        client: &ClientId,
        path: Option<&RemotePath>,
        consistency: Consistency,
        rate_max: Option<Rate>,
    ) -> Signed {
        let transfer = TransferId::generate();
        let request = SignedRequest {
            transfer,
            client: client.clone(),
            path: path.cloned(),
            consistency,
            rate_max,
            expires: UnixMs::now().plus(self.lasts),
        };
        let signature = self.key.sign(&request.encode());
        Signed { transfer, signature: signature.expect("names and paths have their limits") }
    }
}

/// How long a signature holds: as was said, else as long as the transfer may take.
pub(super) fn lasts(said: Option<Duration>, deadline: Option<Duration>) -> Duration {
    let usual = || deadline.unwrap_or(limits::SIGNED_FOR).min(limits::SIGNED_FOR_MAX);
    said.unwrap_or_else(usual)
}

pub(super) fn parse_lasts(text: &str) -> Result<Duration, String> {
    let lasts = settings::duration(text)?;
    if lasts.is_zero() || lasts > limits::SIGNED_FOR_MAX {
        return Err("a signature holds for more than nothing and at most 30d".to_owned());
    }
    Ok(lasts)
}

/// Reads a key, which nobody but its owner may read.
pub(super) fn read(path: &Path) -> Result<SigningKey, String> {
    let failed = |problem: String| format!("{}: {problem}", path.display());
    let stat = fs::metadata(path).map_err(|err| failed(err.to_string()))?;
    if stat.mode() & 0o077 != 0 {
        return Err(failed("others may read it: run chmod 600 on it".to_owned()));
    }
    let text = settings::read_regular(path).map_err(failed)?;
    SigningKey::from_pem(&Secret::new(text)).map_err(|err| failed(err.to_string()))
}

/// `fts key generate`
pub(super) async fn generate(path: PathBuf, output: &Output) -> Result<(), Error> {
    let (key, pem) = SigningKey::generate().map_err(|err| Error::Failed(err.to_string()))?;
    let file = path.clone();
    let written = tokio::task::spawn_blocking(move || write(&file, &pem)).await;
    written.map_err(|err| Error::Failed(format!("a task of ours died: {err}")))??;
    tell(&path, key.public(), output).await
}

/// `fts key show`
pub(super) async fn show(path: PathBuf, output: &Output) -> Result<(), Error> {
    let file = path.clone();
    let key = tokio::task::spawn_blocking(move || read(&file)).await;
    let key = key.map_err(|err| Error::Failed(format!("a task of ours died: {err}")))?;
    tell(&path, key.map_err(Error::Failed)?.public(), output).await
}

/// Never over another key: what it signed would be lost.
fn write(path: &Path, pem: &Secret) -> Result<(), Error> {
    let failed = |err| Error::Failed(format!("cannot write {}: {err}", path.display()));
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(pem.reveal().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

#[derive(Serialize)]
struct KeyView {
    name: String,
    key: String,
}

/// Prints what a site puts into its policy.
async fn tell(path: &Path, key: PublicKey, output: &Output) -> Result<(), Error> {
    let view = KeyView { name: name_of(path), key: key.to_string() };
    match output.form {
        Form::Json => output.json(&view).await,
        Form::Text => {
            for line in [
                "[[signer]]".to_owned(),
                format!("name = \"{}\"", view.name),
                format!("key = \"{}\"", view.key),
            ] {
                output.line(&line).await?;
            }
            Ok(())
        }
    }
}

/// A name that a policy takes, from that of the file.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
    let name: String = stem.unwrap_or_default().chars().filter(is_plain).collect();
    if name.is_empty() { "operator".to_owned() } else { name }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        operator::fake::{self, Fake, Script},
        wire::proto::{State, TriggerDownloadRequest},
    };

    fn temp() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("alice.pem").to_str().expect("text").to_owned();
        (dir, file)
    }

    async fn run(line: &[&str]) -> fake::Ran {
        // Nobody is there: none of this needs a server.
        fake::run_at("http://127.0.0.1:1", line, std::future::pending()).await
    }

    #[tokio::test]
    async fn a_new_key_is_its_owners_alone_and_never_replaces_one() {
        let (_dir, file) = temp();
        let made = run(&["key", "generate", &file]).await;
        assert_eq!(made.code, 0, "{made:?}");
        assert!(made.out().starts_with("[[signer]]\nname = \"alice\"\nkey = \"ed25519:"));
        assert_eq!(fs::metadata(&file).expect("there").mode() & 0o777, 0o600);
        let kept = fs::read_to_string(&file).expect("read");
        assert!(kept.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!(run(&["key", "show", &file]).await.out(), made.out());

        let again = run(&["key", "generate", &file]).await;
        assert_eq!(again.code, 1, "{again:?}");
        assert_eq!(fs::read_to_string(&file).expect("read"), kept);
    }

    #[tokio::test]
    async fn a_key_that_others_may_read_signs_nothing() {
        let (_dir, file) = temp();
        run(&["key", "generate", &file]).await;
        for (mode, is_good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("changed");
            assert_eq!(read(Path::new(&file)).is_ok(), is_good, "{mode:o}");
        }
        let shown = run(&["key", "show", &file]).await;
        assert!(shown.code == 1 && shown.stderr.contains("chmod 600"), "{shown:?}");
    }

    /// Asks with a key, and returns what the server was asked, and the key.
    async fn asked(more: &[&str]) -> (TriggerDownloadRequest, PublicKey) {
        let (_dir, file) = temp();
        run(&["key", "generate", &file]).await;
        let triggers = [Ok(fake::complete(b"x"))].into();
        let fake = Fake::start(Script { triggers, ..Script::default() }).await;
        let line = ["pull", "web-1", "/a", "--sign-key", &file];
        let ran = fake.run(&[&line, more].concat()).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let request = fake.script().asked_triggers[0].clone();
        (request, read(Path::new(&file)).expect("a key").public())
    }

    #[tokio::test]
    async fn what_is_asked_for_is_what_is_signed() {
        let (request, key) = asked(&["--strict", "--max-rate=5MB/s", "--deadline=2h"]).await;
        let signed = request.signature.expect("signed");
        let signed = (&signed).try_into().expect("a signature");
        assert!(key.has_signed(&signed));
        let says = SignedRequest::decode(signed.request()).expect("a request");
        assert_eq!(TransferId::chosen(&request.transfer_id), Ok(says.transfer));
        let (client, path) = ("web-1".parse().expect("an id"), "/a".parse().ok());
        let rate = Rate::from_number(5_000_000).expect("a rate");
        let strict = Consistency::Strict;
        assert_eq!(says.differs(says.transfer, &client, path.as_ref(), strict, rate), None);
        let left = says.expires.since(UnixMs::now());
        assert!(left <= Duration::from_hours(2) && left > Duration::from_mins(119), "{left:?}");
    }

    #[tokio::test]
    async fn a_signature_holds_as_long_as_was_said() {
        let lasts = async |more: &[&str]| {
            let signed = asked(more).await.0.signature.expect("signed");
            let says = SignedRequest::decode(&signed.request).expect("a request");
            says.expires.since(UnixMs::now()).as_secs().div_ceil(60)
        };
        assert_eq!(lasts(&["--sign-for=1h", "--deadline=2h"]).await, 60);
        assert_eq!(lasts(&[]).await, 7 * 24 * 60);
        assert_eq!(lasts(&["--deadline=90d"]).await, 30 * 24 * 60);
    }

    #[tokio::test]
    async fn without_a_key_nothing_is_signed() {
        let triggers = [Ok(fake::transfer(State::Complete, 1))].into();
        let fake = Fake::start(Script { triggers, ..Script::default() }).await;
        fake.run(&["pull", "web-1", "/a"]).await;
        let request = fake.script().asked_triggers[0].clone();
        assert_eq!((request.transfer_id.as_str(), request.signature), ("", None));
    }
}
