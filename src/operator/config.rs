//! The command line of `fts`, and the settings that come from it, the environment and a TOML file.

#![allow(
    clippy::doc_markdown,
    reason = "what documents an argument is its help text, read on a terminal"
)]

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};
use http::Uri;
use serde::Deserialize;

use super::output::Form;
use crate::{
    ids::{ClientId, IdError, RemotePath, RequestId, TransferId},
    limits,
    rate::Rate,
    settings::{self, ConfigError, Picker},
    telemetry::LogFormat,
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
    /// Address of the server [env short: SERVER_URL] [default: http://localhost:3000]
    #[arg(long, global = true, env = "FTS_SERVER", value_name = "URL")]
    server: Option<String>,
    /// TOML file with the keys server, insecure, json, log_format, timeout, deadline, max_rate
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
struct File {
    server: Option<String>,
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
    pub(super) server: Uri,
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
        let server = picker.pick(flag, Some("SERVER_URL"), file.server, server);
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

        let server = server.unwrap_or_else(|| Uri::from_static(SERVER_DEFAULT));
        if !is_loopback(&server) && insecure != Some(true) {
            picker.problem(format!(
                "{server} is on another machine, and there is no TLS in this version: file names \
                 and bytes would cross the network in clear. --insecure says that you know"
            ));
        }
        let form = if json == Some(true) { Form::Json } else { Form::Text };
        let log_format = log_format.unwrap_or_default();
        let timing = Timing::default();
        picker.finish(Self { server, form, log_format, timeout, deadline, rate_max, timing })
    }

    /// The server's address, for people.
    pub(super) fn address(&self) -> String {
        self.server.to_string().trim_end_matches('/').to_owned()
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

/// Parses the address of a server.
fn server(text: &str) -> Result<Uri, String> {
    let form = || "write it like http://host:3000".to_owned();
    let uri: Uri = text.parse().map_err(|_| form())?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(
                "there is no TLS in this version: use http:// on this machine, or through \
                        a tunnel that ends on it"
                    .to_owned(),
            );
        }
        _ => return Err(form()),
    }
    let authority = uri.authority().ok_or_else(form)?.as_str();
    if authority.contains('@') {
        return Err("no name or password belongs here".to_owned());
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err("nothing may follow the port".to_owned());
    }
    Ok(uri)
}

fn is_loopback(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
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
            "--server=https://localhost",
            "--json=x",
            "pull",
            "c",
            "--timeout=x",
            "--deadline=9y",
            "--max-rate=1B",
        ];
        let err = resolve(&line).expect_err("refused");
        assert_eq!(err.problems.len(), 5, "{err}");
        assert!(err.problems[0].contains("no TLS"), "{err}");
    }

    #[test]
    fn only_an_address_is_an_address() {
        for bad in ["localhost:3000", "http://a:b@localhost", "http://localhost/x", "ftp://h", ""] {
            assert!(server(bad).is_err(), "{bad}");
        }
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
