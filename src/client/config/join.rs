//! `fts-client join`: what it was told, checked.

use std::{
    fs::File,
    io::{Read as _, stdin},
    path::PathBuf,
};

use clap::Args;
use rustls::pki_types::CertificateDer;

use super::{
    Layers, Surroundings, ca, default_id, default_state_dir, directory, flags, id, proxies, root,
    server, shown,
};
use crate::{
    client::{
        joined::{self, Joined},
        policy::Policy,
    },
    ids::{ClientId, RemotePath},
    limits,
    route::{self, Proxies},
    server_url::ServerUrl,
    settings::{ConfigError, Picker},
    token::{Secret, Token, TokenKind},
};

#[allow(clippy::doc_markdown)] // The comments are the text of --help.
#[derive(Debug, Clone, Default, Args)]
pub struct JoinFlags {
    /// Address of the server, https://HOST:PORT [short variable: SERVER_URL].
    #[arg(long, value_name = "URL", env = "FTS_SERVER", hide_env_values = true)]
    pub server: Option<String>,
    /// File with the join token, or - for standard input; or give the token in FTS_JOIN_TOKEN.
    #[arg(long, value_name = "FILE", env = "FTS_JOIN_TOKEN_FILE", hide_env_values = true)]
    pub token_file: Option<String>,
    /// Name of this client [default: the one that the token is good for, if it is only one; else
    /// client-1 if the server is on this machine, else the host name] [short variable: CLIENT_ID].
    #[arg(long, value_name = "ID", env = "FTS_CLIENT_ID", hide_env_values = true)]
    pub client_id: Option<String>,
    /// A directory, or one file, that the server may read from now on; repeatable
    /// [env: FTS_ALLOW=].
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<String>,
    /// A policy file, instead of --allow, that holds from now on.
    #[arg(long, value_name = "FILE", env = "FTS_POLICY", hide_env_values = true)]
    pub policy: Option<String>,
    /// A PEM file with the root certificates to know the server by, if the token names none
    /// [default: those of this machine].
    #[arg(long, value_name = "FILE", env = "FTS_CA", hide_env_values = true)]
    pub ca: Option<String>,
    /// As for fts-client [env: FTS_PROXY=].
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// As for fts-client.
    #[arg(long, value_name = "DIR", env = "FTS_STATE_DIR", hide_env_values = true)]
    pub state_dir: Option<String>,
    /// Replace the identity that is there already.
    #[arg(long)]
    pub force: bool,
}

/// How to join, checked.
#[derive(Debug)]
pub struct JoinPlan {
    pub(in crate::client) server: ServerUrl,
    pub(in crate::client) token: Token,
    pub(in crate::client) id: ClientId,
    pub(in crate::client) host_name: String,
    pub(in crate::client) ca: Option<Vec<CertificateDer<'static>>>,
    pub(in crate::client) proxies: Proxies,
    pub(in crate::client) state_dir: PathBuf,
    pub(in crate::client) replaces: bool,
    /// For the starts that come after, and where.
    pub(in crate::client) joined: Joined,
    pub(in crate::client) joined_file: Option<PathBuf>,
}

impl JoinFlags {
    /// Returns the plan, or everything that is wrong with it. `token` is what `FTS_JOIN_TOKEN`
    /// says.
    pub fn resolve(
        self,
        around: &Surroundings,
        token: Option<Secret>,
    ) -> Result<JoinPlan, ConfigError> {
        let mut picker = Picker::new();
        let plan = self.pick(&mut picker, around, token);
        Ok(picker.finish(plan)?.expect("without a problem every part is there"))
    }

    fn pick(
        self,
        picker: &mut Picker,
        around: &Surroundings,
        token: Option<Secret>,
    ) -> Option<JoinPlan> {
        let (file, nothing) = (flags::File::default(), Joined::default());
        let layers = Layers { file: &file, joined: &nothing, joined_file: None };
        let server = server(picker, self.server, &layers);
        if !server.is_tls() {
            picker.problem(format!(
                "--server: {server} is no https:// server, and only such a one can be joined"
            ));
        }
        let token = read_token(self.token_file.as_deref(), token);
        let token = token.map_err(|problem| picker.problem(problem)).ok();
        let flag = ("client-id", self.client_id);
        let id = picker.pick(flag, Some("CLIENT_ID"), None, id);
        let only = token.as_ref().and_then(|token| token.client.clone());
        if let (Some(id), Some(only)) = (&id, &only)
            && id != only
        {
            picker.problem(format!("--client-id: the token is good for {only}, and not for {id}"));
        }
        let id = id.or(only).or_else(|| default_id(picker, &server, around));
        let allow = allowed(picker, self.allow, around);
        let policy = picker.pick(("policy", self.policy), None, None, directory);
        if policy.is_some() && !allow.is_empty() {
            picker.problem("--allow and --policy: one of them says what is shared");
        }
        if let Some(Err(problems)) = policy.as_deref().map(Policy::read) {
            for problem in problems {
                picker.problem(format!("--policy: {problem}"));
            }
        }
        let ca_file = self.ca.as_deref().and_then(|text| std::path::absolute(text).ok());
        let ca_file = ca_file.map(|path| path.to_string_lossy().into_owned());
        let ca = ca(picker, self.ca, &layers);
        let proxy = self.proxy.clone().or_else(|| std::env::var("FTS_PROXY").ok());
        let proxies = proxies(picker, &server, self.proxy, &layers, around);
        let state_dir = picker.pick(("state-dir", self.state_dir), None, None, directory);
        let own_dir = state_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned());
        let state_dir = state_dir.or_else(|| default_state_dir(picker, id.as_ref(), around));
        let joined = Joined {
            server: Some(server.to_string()),
            client_id: id.as_ref().map(ToString::to_string),
            policy: policy.map(|path| path.to_string_lossy().into_owned()),
            allow: (!allow.is_empty()).then(|| allow.into_iter().map(String::from).collect()),
            ca: ca_file,
            proxy: proxy.as_deref().map(route::without_credentials),
            state_dir: own_dir,
        };
        Some(JoinPlan {
            server,
            token: token?,
            id: id?,
            host_name: around.host_name.clone(),
            ca,
            proxies: proxies?,
            state_dir: state_dir?,
            replaces: self.force,
            joined,
            joined_file: joined::path(around),
        })
    }
}

fn allowed(picker: &mut Picker, flags: Vec<String>, around: &Surroundings) -> Vec<RemotePath> {
    let variable = around.allow.iter().flat_map(|list| list.split(':')).map(str::to_owned);
    let texts = if flags.is_empty() { variable.collect() } else { flags };
    let mut good = Vec::new();
    for text in texts.iter().filter(|text| !text.is_empty()) {
        match directory(text).and_then(|path| root(&path.to_string_lossy())) {
            Ok(root) => good.push(root),
            Err(err) => picker.problem(format!("--allow: {}: {err}", shown(text))),
        }
    }
    good
}

/// Reads the token. No problem holds its text.
fn read_token(file: Option<&str>, variable: Option<Secret>) -> Result<Token, String> {
    let mut text = String::new();
    let origin = match (file, variable) {
        (Some("-"), _) => {
            let input = stdin().lock().take(limits::TOKEN_FILE_BYTES_MAX);
            read(input, &mut text).map_err(|err| format!("--token-file -: {err}"))?;
            "standard input".to_owned()
        }
        (Some(path), _) => {
            let file = File::open(path)
                .and_then(|file| read(file.take(limits::TOKEN_FILE_BYTES_MAX), &mut text));
            file.map_err(|err| format!("--token-file {path}: {err}"))?;
            format!("--token-file {path}")
        }
        (None, Some(token)) => {
            token.reveal().clone_into(&mut text);
            "FTS_JOIN_TOKEN".to_owned()
        }
        (None, None) => {
            return Err(
                "give the join token with --token-file FILE (- for standard input), or in \
                        FTS_JOIN_TOKEN: fts-server token create makes one"
                    .to_owned(),
            );
        }
    };
    Token::parse(&text, TokenKind::Join).map_err(|err| format!("{origin}: {err}"))
}

fn read(mut from: impl std::io::Read, text: &mut String) -> std::io::Result<()> {
    from.read_to_string(text).map(drop)
}
