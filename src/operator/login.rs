//! Whose token the tool shows, and where it is kept: `login.toml` (0600) in the tool's directory
//! (0700), for one server. A token goes to the server that it was given for, and only in TLS.

use std::{
    env, fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
};

use crate::{
    limits, settings,
    token::{Secret, Token, TokenKind},
};

/// What a login keeps.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    pub(super) server: String,
    token: String,
    /// Of the server's certificate, if the token does not name it and the system does not know it.
    pub(super) ca: Option<PathBuf>,
}

impl Login {
    pub(super) fn new(server: String, token: &Token, ca: Option<PathBuf>) -> Self {
        Self { server, token: token.reveal().reveal().to_owned(), ca }
    }

    pub(super) fn token(&self) -> Secret {
        Secret::new(self.token.clone())
    }

    /// Reads the login of this user, if there is one.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, String> {
        if !path.exists() {
            return Ok(None);
        }
        let text = settings::read_regular(path)
            .map_err(|problem| format!("{}: {problem}", path.display()))?;
        // What the parser says quotes the line, and the token may be in it.
        let login = toml::from_str(&text);
        login
            .map(Some)
            .map_err(|_| format!("{}: damaged; log in again: fts login URL", path.display()))
    }

    /// Writes it, by rename, for this user alone.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let temporary = path.with_extension("new");
        match fs::remove_file(&temporary) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let text = toml::to_string(self).map_err(io::Error::other)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }
}

/// Returns where the login of this user is.
pub(super) fn file() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let config = absolute("XDG_CONFIG_HOME");
    let config = config.or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(config.join("fts").join("login.toml"))
}

/// Returns the token that the environment gives, if it does.
pub(super) fn from_environment() -> Result<Option<Secret>, String> {
    if let Some(text) = env::var("FTS_TOKEN").ok().filter(|text| !text.is_empty()) {
        return checked(&text).map(Some).map_err(|err| format!("FTS_TOKEN: {err}"));
    }
    match env::var("FTS_TOKEN_FILE").ok().filter(|text| !text.is_empty()) {
        Some(path) => {
            from_file(Path::new(&path)).map(Some).map_err(|err| format!("FTS_TOKEN_FILE: {err}"))
        }
        None => Ok(None),
    }
}

/// Reads a token from a file, or from standard input (`-`).
pub(super) fn from_file(path: &Path) -> Result<Secret, String> {
    if path == Path::new("-") {
        let mut text = String::new();
        let most = limits::TOKEN_BYTES_MAX as u64;
        let read = io::stdin().take(most).read_to_string(&mut text);
        read.map_err(|err| err.to_string())?;
        return checked(&text);
    }
    let text =
        settings::read_regular(path).map_err(|problem| format!("{}: {problem}", path.display()))?;
    checked(&text)
}

/// Asks for a token: without showing it, on a terminal.
pub(super) fn ask(server: &str) -> Result<Secret, String> {
    if !io::stdin().is_terminal() {
        return from_file(Path::new("-"));
    }
    let text = rpassword::prompt_password(format!("Token for {server}: "));
    checked(&text.map_err(|err| err.to_string())?)
}

fn checked(text: &str) -> Result<Secret, String> {
    let token = Token::parse(text, TokenKind::Operator).map_err(|err| err.to_string())?;
    Ok(token.reveal())
}

/// Shows the token with each call.
#[derive(Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    pub(super) fn new(token: Option<&Secret>) -> Self {
        let value = token.map(|token| {
            let text = format!("Bearer {}", token.reveal());
            let mut value: MetadataValue<Ascii> =
                text.parse().expect("a token is letters, digits and underscores");
            value.set_sensitive(true);
            value
        });
        Self(value)
    }
}

impl std::fmt::Debug for Bearer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bearer({})", if self.0.is_some() { "…" } else { "none" })
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_login_is_kept_for_its_user_alone_and_reads_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fts/login.toml");
        let token = Token::generate(TokenKind::Operator, None).expect("random");
        assert!(Login::read(&path).expect("read").is_none());

        let login = Login::new("https://h:1".into(), &token, Some("/a \"b\".pem".into()));
        login.write(&path).expect("written");
        login.write(&path).expect("written again");

        let read = Login::read(&path).expect("read").expect("there");
        assert_eq!(read.token(), token.reveal());
        assert_eq!((read.server, read.ca), (login.server, login.ca));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("one"))), (0o600, 0o700));
    }

    #[test]
    fn a_damaged_login_is_told_without_the_token() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("login.toml");
        fs::write(&path, "token = \"fts_op_secret\nserver").expect("written");
        let problem = Login::read(&path).err().expect("refused");
        assert!(problem.contains("fts login") && !problem.contains("fts_op_secret"), "{problem}");
    }
}
