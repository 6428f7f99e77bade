//! The command line of `fts`, and the settings that come from it, the environment and a TOML file.

#![allow(
    clippy::doc_markdown,
    reason = "what documents an argument is its help text, read on a terminal"
)]

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};
use serde::Deserialize;

use super::{
    login::{self, Login},
    output::Form,
};
use crate::{
    ids::{ClientId, IdError, RemotePath, RequestId, TransferId},
    limits,
    rate::Rate,
    route::{Proxies, Route},
    server_url::ServerUrl,
    settings::{self, ConfigError, Picker},
    telemetry::LogFormat,
    tls::{self, TlsError, Trust},
    token::{Secret, Token, TokenKind},
    wire::proto::State,
};

const SERVER_DEFAULT: &str = "http://localhost:3000";

/// Pulls files from clients through an fts-server.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 69 server unreachable, 75 still waiting (--timeout), 77
/// not permitted, 78 bad configuration, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "fts", version)]
pub struct Args {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Args)]
struct Global {
    /// Address of the server [env short: SERVER_URL] [default: that of `fts login`, else
    /// http://localhost:3000]
    #[arg(long, global = true, env = "FTS_SERVER", value_name = "URL")]
    server: Option<String>,
    /// Root certificates of the server, PEM [default: what the token says, else the system's]
    #[arg(long, global = true, env = "FTS_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// File with the operator's token; - is standard input [default: FTS_TOKEN, else that of
    /// `fts login`]
    #[arg(long, global = true, env = "FTS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// HTTP proxy for https:// servers, or off [default: HTTPS_PROXY, NO_PROXY]
    #[arg(long, global = true, env = "FTS_PROXY", value_name = "URL", hide_env_values = true)]
    proxy: Option<String>,
    /// TOML file with the keys server, ca, token_file, insecure, json, log_format, timeout, deadline, max_rate
    #[arg(long, global = true, env = "FTS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one JSON object per line
    #[arg(long, global = true, env = "FTS_JSON", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    json: Option<String>,
    /// Talk in clear to a server on another machine (test networks)
    #[arg(long, global = true, env = "FTS_INSECURE", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    insecure: Option<String>,
    /// text or json; the filter is RUST_LOG [default: text on a terminal]
    #[arg(long, global = true, env = "FTS_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Keep the token for a server (0600), once it has proved good; it is asked for, or read from
    /// --token-file, FTS_TOKEN or standard input
    Login {
        /// Address of the server, https://HOST:PORT
        url: String,
    },
    /// Forget the token
    Logout,
    /// Show who the server takes you for
    Whoami,
    /// Print who did what, one JSON object a line (role admin)
    Audit {
        /// Only what happened since then ago, such as 1d
        #[arg(long, env = "FTS_SINCE", value_name = "TIME", value_parser = settings::duration)]
        since: Option<Duration>,
    },
    /// List the clients
    Clients,
    /// Show one client
    Client {
        /// Name of the client, as `fts clients` lists it
        id: ClientId,
    },
    /// Pull a file from a client to the server, and follow it until it is there
    Pull {
        /// Name of the client, as `fts clients` lists it
        client: ClientId,
        /// The file on the client, an absolute path [default: the client's default file]
        path: Option<RemotePath>,
        #[command(flatten)]
        ask: AskArgs,
        /// Print the transfer's id, and do not follow it
        #[arg(long, env = "FTS_DETACH", value_parser = boolish())]
        detach: bool,
    },
    /// Pull a file from a client, and copy it here, verified
    Cp {
        /// CLIENT:/PATH, or CLIENT: for its default file
        source: Source,
        /// A file, a directory, or - for standard output
        local: PathBuf,
        #[command(flatten)]
        ask: AskArgs,
        #[command(flatten)]
        copy: CopyArgs,
    },
    /// Copy a file here that a transfer has already brought to the server
    Get {
        /// Id of the transfer, as `fts transfers` lists it
        id: TransferId,
        /// A file, or - for standard output
        local: PathBuf,
        #[command(flatten)]
        copy: CopyArgs,
    },
    /// List transfers, newest first
    Transfers {
        /// Only those of this client
        #[arg(long, env = "FTS_CLIENT")]
        client: Option<ClientId>,
        /// queued, offered, receiving, verifying, interrupted, complete, failed or cancelled
        #[arg(long, env = "FTS_STATE", value_parser = state)]
        state: Option<State>,
        /// How many at most; 0: all
        #[arg(long, env = "FTS_LIMIT", default_value_t = 100)]
        limit: u64,
    },
    /// Show one transfer
    Show {
        /// Id of the transfer, as `fts transfers` lists it
        id: TransferId,
    },
    /// Follow one transfer until it ends, or all of them
    Watch {
        /// Id of the transfer, as `fts transfers` lists it [default: all transfers]
        id: Option<TransferId>,
        /// Without an id: only those of this client
        #[arg(long, env = "FTS_CLIENT")]
        client: Option<ClientId>,
        /// Stop watching after this long (exit code 75)
        #[arg(long, env = "FTS_TIMEOUT", value_name = "TIME")]
        timeout: Option<String>,
    },
    /// End a transfer
    Cancel {
        /// Id of the transfer, as `fts transfers` lists it
        id: TransferId,
    },
    /// Put a failed or cancelled transfer back into the queue
    Retry {
        /// Id of the transfer, as `fts transfers` lists it
        id: TransferId,
    },
    /// Stop a transfer until it is resumed
    Pause {
        /// Id of the transfer, as `fts transfers` lists it
        id: TransferId,
    },
    /// Let a paused transfer go on
    Resume {
        /// Id of the transfer, as `fts transfers` lists it
        id: TransferId,
    },
    /// Remove the bytes of an ended transfer from the server; its record stays
    Rm {
        /// Id of the transfer, as `fts transfers` lists it
        id: TransferId,
    },
}

/// How a file is asked for.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AskArgs {
    /// Give up after this long, as 30s or 5m (exit code 75); the transfer goes on
    #[arg(long, env = "FTS_TIMEOUT", value_name = "TIME")]
    timeout: Option<String>,
    /// Fail the transfer if it has not ended by then [default: 7d]
    #[arg(long, env = "FTS_DEADLINE", value_name = "TIME")]
    deadline: Option<String>,
    /// Most that this transfer may use of the client's line, as 5MB/s or 500KB/s, besides the
    /// client's own cap; off: no cap [default: off]
    #[arg(long, env = "FTS_MAX_RATE", value_name = "RATE")]
    max_rate: Option<String>,
    /// Name of this request: repeated, it makes no second transfer [default: a new one]
    #[arg(long, env = "FTS_REQUEST_ID", value_name = "ID")]
    pub request_id: Option<RequestId>,
    /// Fail if the file changes while it is read, even if it only grows
    #[arg(long, env = "FTS_STRICT", value_parser = boolish())]
    pub strict: bool,
}

/// How a copy is written.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct CopyArgs {
    /// Replace the file if there is one
    #[arg(long, env = "FTS_FORCE", value_parser = boolish())]
    pub force: bool,
}

/// A file of a client, written as `CLIENT:/PATH`; `CLIENT:` is its default file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub client: ClientId,
    pub path: Option<RemotePath>,
}

/// Why a text is not a [`Source`].
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("write it as CLIENT:/PATH, or CLIENT: for the client's default file")]
    Form,
    #[error(transparent)]
    Id(#[from] IdError),
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (client, path) = text.split_once(':').ok_or(SourceError::Form)?;
        let path = if path.is_empty() { None } else { Some(path.parse()?) };
        Ok(Self { client: client.parse()?, path })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_ref().map_or("", RemotePath::as_str);
        write!(f, "{}:{path}", self.client)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // the keys are the flags' names
struct File {
    server: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    proxy: Option<String>,
    insecure: Option<bool>,
    json: Option<bool>,
    log_format: Option<String>,
    timeout: Option<String>,
    deadline: Option<String>,
    max_rate: Option<String>,
}

/// What holds for every command, wherever it was set.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) server: ServerUrl,
    /// What the server's certificate must lead to, if that was said.
    pub(super) ca: Option<PathBuf>,
    pub(super) proxies: Proxies,
    /// What to show; none in clear text.
    pub(super) token: Option<Secret>,
    pub(super) form: Form,
    pub log_format: LogFormat,
    /// How long the operator waits for a transfer to end.
    pub(super) timeout: Option<Duration>,
    /// How long a transfer has to end, if not as long as usual.
    pub(super) deadline: Option<Duration>,
    /// A cap for the transfer alone.
    pub(super) rate_max: Option<Rate>,
    pub(super) timing: Timing,
}

/// How long the tool bears with a server that is away, and how often it speaks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Between two tries: the first, and the longest.
    pub(super) pause_min: Duration,
    pub(super) pause_max: Duration,
    /// Without a server, a request is given up after this long …
    pub(super) ask_wait: Duration,
    /// … and one whose transfer is being followed after this long.
    pub(super) gone_wait: Duration,
    /// Off a terminal, progress is told this often.
    pub(super) progress_every: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            pause_min: limits::OPERATOR_PAUSE_MIN,
            pause_max: limits::OPERATOR_PAUSE_MAX,
            ask_wait: limits::OPERATOR_ASK_WAIT,
            gone_wait: limits::OPERATOR_GONE_WAIT,
            progress_every: limits::OPERATOR_PROGRESS_EVERY,
        }
    }
}

impl Settings {
    /// Looks for every setting where it may come from.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn resolve(args: &Args) -> Result<Self, ConfigError> {
        let mut picker = Picker::new();
        let global = &args.global;
        let file: File = picker.take(settings::read_file(global.config.as_deref()));
        let (timeout, deadline) = args.command.times();
        let bool_text = |value: Option<bool>| value.map(|b| b.to_string());

        let flag = ("server", global.server.clone());
        let server = picker.pick(flag, Some("SERVER_URL"), file.server, ServerUrl::parse);
        let server = match &args.command {
            Command::Login { url } => picker.pick(("url", Some(url.clone())), None, None, |text| {
                ServerUrl::parse(text).and_then(secure)
            }),
            _ => server,
        };
        let flag = ("insecure", global.insecure.clone());
        let insecure = picker.pick(flag, None, bool_text(file.insecure), settings::flag);
        let flag = ("json", global.json.clone());
        let json = picker.pick(flag, None, bool_text(file.json), settings::flag);
        let flag = ("log-format", global.log_format.clone());
        let log_format = picker.pick(flag, None, file.log_format, LogFormat::parse);
        let flag = ("timeout", timeout);
        let timeout = picker.pick(flag, None, file.timeout, settings::duration);
        let flag = ("deadline", deadline);
        let deadline = picker.pick(flag, None, file.deadline, deadline_within);
        let flag = ("max-rate", args.command.max_rate());
        let rate_max = picker.pick(flag, None, file.max_rate, settings::rate).flatten();

        let login = picker.take(
            login::file().map_or(Ok(None), |path| Login::read(&path).map_err(ConfigError::from)),
        );
        let kept = login.as_ref().and_then(|login| ServerUrl::parse(&login.server).ok());
        let server = server.or_else(|| kept.clone()).unwrap_or_else(|| {
            ServerUrl::parse(SERVER_DEFAULT).expect("the default is a server's URL")
        });
        // A token is shown to the server that it was given for, and to no other.
        let login = login.filter(|_| kept.as_ref() == Some(&server));
        if !server.is_tls() && !server.is_loopback() && insecure != Some(true) {
            picker.problem(format!(
                "{server} is on another machine: file names and bytes would cross the network in \
                 clear. Use https://; --insecure says that this is a test network"
            ));
        }
        let token =
            token(&args.command, global.token_file.clone().or(file.token_file), login.as_ref());
        let token = picker.take(token.map_err(ConfigError::from)).filter(|_| server.is_tls());
        let proxy = picker.pick(("proxy", global.proxy.clone()), None, file.proxy, Proxies::parse);
        let proxies = proxy.map_or_else(
            || Proxies::from_variables(|name| std::env::var(name).ok()).map_err(ConfigError::from),
            Ok,
        );
        let proxies = picker.take(proxies.map(Some)).unwrap_or_else(Proxies::off);
        let ca = global.ca.clone().or(file.ca).or_else(|| login.and_then(|login| login.ca));
        let form = if json == Some(true) { Form::Json } else { Form::Text };
        let log_format = log_format.unwrap_or_default();
        let timing = Timing::default();
        picker.finish(Self {
            server,
            ca,
            proxies,
            token,
            form,
            log_format,
            timeout,
            deadline,
            rate_max,
            timing,
        })
    }

    /// Returns the way to the server, and what is trusted on it: what was said, else the root that
    /// the token names, else the system's.
    pub(super) fn route(&self) -> Result<Route, TlsError> {
        let pinned = self.token.as_ref().and_then(|token| {
            Token::parse(token.reveal(), TokenKind::Operator).ok().and_then(|token| token.root)
        });
        let trust = match (&self.ca, pinned) {
            (Some(ca), _) => Trust::Roots(tls::read_pem_certificates(ca)?),
            (None, Some(root)) => Trust::Pinned(root),
            (None, None) => Trust::System,
        };
        Route::new(&self.server, &trust, None, &self.proxies)
    }

    /// The server's address, for people.
    #[cfg(test)]
    fn address(&self) -> String {
        self.server.to_string()
    }
}

impl Command {
    /// Returns the flags `--timeout` and `--deadline`.
    fn times(&self) -> (Option<String>, Option<String>) {
        match self {
            Self::Pull { ask, .. } | Self::Cp { ask, .. } => {
                (ask.timeout.clone(), ask.deadline.clone())
            }
            Self::Watch { timeout, .. } => (timeout.clone(), None),
            _ => (None, None),
        }
    }

    fn max_rate(&self) -> Option<String> {
        match self {
            Self::Pull { ask, .. } | Self::Cp { ask, .. } => ask.max_rate.clone(),
            _ => None,
        }
    }
}

/// Takes `1`, `yes` and the like from the environment too.
fn boolish() -> clap::builder::BoolishValueParser {
    clap::builder::BoolishValueParser::new()
}

fn state(text: &str) -> Result<State, String> {
    let name = format!("STATE_{}", text.to_ascii_uppercase());
    State::from_str_name(&name)
        .filter(|state| *state != State::Unspecified)
        .ok_or_else(|| "not the name of a state".to_owned())
}

fn deadline_within(text: &str) -> Result<Duration, String> {
    let deadline = settings::duration(text)?;
    if deadline.is_zero() || deadline > limits::DEADLINE_MAX {
        return Err("a deadline is more than nothing and at most 366d".to_owned());
    }
    Ok(deadline)
}

/// Returns the token to show: of the file that was named, of the environment, of the login.
fn token(
    command: &Command,
    file: Option<PathBuf>,
    login: Option<&Login>,
) -> Result<Option<Secret>, String> {
    if let Some(path) = file {
        let read = login::from_file(&path);
        return read.map(Some).map_err(|err| format!("--token-file: {err}"));
    }
    let of_login = || login.map(Login::token);
    match command {
        Command::Logout => Ok(None),
        Command::Login { .. } => login::from_environment(),
        _ => Ok(login::from_environment()?.or_else(of_login)),
    }
}

/// Refuses to send a token in clear text.
fn secure(server: ServerUrl) -> Result<ServerUrl, String> {
    if server.is_tls() {
        Ok(server)
    } else {
        Err("a token is never sent in clear text: log in to https://".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(line: &[&str]) -> Result<Settings, ConfigError> {
        let args = Args::try_parse_from([&["fts"], line].concat()).expect("parses");
        Settings::resolve(&args)
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn help_is_given_for_every_command_and_describes_every_argument() {
        use clap::CommandFactory as _;
        let err = Args::try_parse_from(["fts", "help", "pull"]).expect_err("help");
        assert_eq!(err.kind(), clap::error::ErrorKind::DisplayHelp);
        for command in Args::command().get_subcommands() {
            for argument in command.get_arguments() {
                let (name, of) = (argument.get_id(), command.get_name());
                assert!(argument.get_help().is_some(), "{name} of {of}");
            }
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fts.toml");
        let text = "server = \"http://127.0.0.1:9\"\njson = true\ntimeout = \"5m\"\n";
        std::fs::write(&path, text).expect("written");
        let config = format!("--config={}", path.display());

        let settings = resolve(&[&config, "pull", "c"]).expect("good");
        assert_eq!(settings.timeout, Some(Duration::from_mins(5)));
        assert_eq!(settings.form, Form::Json);

        let line =
            [&config, "--server=http://[::1]:7", "--json=false", "pull", "c", "--timeout=1s"];
        let settings = resolve(&line).expect("good");
        assert_eq!(settings.address(), "http://[::1]:7");
        assert_eq!(settings.form, Form::Text);
        assert_eq!(settings.timeout, Some(Duration::from_secs(1)));
    }

    #[test]
    fn clear_text_leaves_this_machine_only_when_told_to() {
        let err = resolve(&["--server=http://example.com:3000", "clients"]).expect_err("refused");
        assert!(err.problems[0].contains("--insecure"), "{err}");
        let line = ["--server=http://example.com:3000", "--insecure", "clients"];
        assert!(resolve(&line).is_ok());
        for near in ["http://localhost:3000", "http://127.1.2.3:1", "http://[::1]:1"] {
            assert!(resolve(&["--server", near, "clients"]).is_ok(), "{near}");
        }
        for far in ["http://localhost.example.com:1", "http://128.0.0.1:1", "http://[::2]:1"] {
            assert!(resolve(&["--server", far, "clients"]).is_err(), "{far}");
        }
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let line = [
            "--server=ftp://localhost",
            "--json=x",
            "pull",
            "c",
            "--timeout=x",
            "--deadline=9y",
            "--max-rate=1B",
        ];
        let err = resolve(&line).expect_err("refused");
        assert_eq!(err.problems.len(), 5, "{err}");
        assert!(err.problems[0].contains("--server"), "{err}");
    }

    #[test]
    fn a_source_is_a_client_and_perhaps_a_path() {
        let source: Source = "web-1:/var/log/a:b".parse().expect("a source");
        assert_eq!(source.path.expect("a path").as_str(), "/var/log/a:b");
        assert_eq!("web-1:".parse::<Source>().expect("a source").path, None);
        for bad in ["web-1", ":/x", "web-1:x", "web-1:/../x", "we b:/x"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }
}
