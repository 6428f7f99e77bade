//! The command line of `fts`.

#![allow(
    clippy::doc_markdown,
    reason = "what documents an argument is its help text, read on a terminal"
)]

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};

use crate::{
    ids::{ClientId, IdError, RemotePath, RequestId, TransferId},
    settings,
    wire::proto::State,
};

/// Pulls files from clients through an fts-server.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 69 server unreachable, 75 still waiting (--timeout), 77
/// not permitted, 78 bad configuration, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "fts", version)]
pub struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Args)]
pub(super) struct Global {
    /// Address of the server [env short: SERVER_URL] [default: that of `fts login`, else
    /// http://localhost:3000]
    #[arg(long, global = true, env = "FTS_SERVER", value_name = "URL")]
    pub(super) server: Option<String>,
    /// Root certificates of the server, PEM [default: what the token says, else the system's]
    #[arg(long, global = true, env = "FTS_CA", value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// File with the operator's token; - is standard input [default: FTS_TOKEN, else that of
    /// `fts login`]
    #[arg(long, global = true, env = "FTS_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// HTTP proxy for https:// servers, or off [default: HTTPS_PROXY, NO_PROXY]
    #[arg(long, global = true, env = "FTS_PROXY", value_name = "URL", hide_env_values = true)]
    pub(super) proxy: Option<String>,
    /// TOML file with the keys server, ca, token_file, insecure, json, log_format, timeout, deadline, max_rate,
    /// sign_key, sign_for
    #[arg(long, global = true, env = "FTS_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Print one JSON object per line
    #[arg(long, global = true, env = "FTS_JSON", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) json: Option<String>,
    /// Talk in clear to a server on another machine (test networks)
    #[arg(long, global = true, env = "FTS_INSECURE", value_name = "BOOL",
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) insecure: Option<String>,
    /// text or json; the filter is RUST_LOG [default: text on a terminal]
    #[arg(long, global = true, env = "FTS_LOG_FORMAT", value_name = "FORMAT")]
    pub(super) log_format: Option<String>,
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
    /// Ask a client whether its own policy lets a file be read; no byte of it is (exit code 77: denied)
    Explain {
        /// CLIENT:/PATH
        source: Source,
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
    /// Keys to sign requests with, for clients whose policy wants that
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key (Ed25519, PKCS #8 in PEM, 0600), and print what a client's policy needs of it
    Generate {
        /// Where the key goes; a file that is there is never replaced
        file: PathBuf,
    },
    /// Print what a client's policy needs of a key
    Show {
        /// The key; `openssl genpkey -algorithm ed25519` makes them too
        file: PathBuf,
    },
}

/// How a file is asked for.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AskArgs {
    /// Give up after this long, as 30s or 5m (exit code 75); the transfer goes on
    #[arg(long, env = "FTS_TIMEOUT", value_name = "TIME")]
    timeout: Option<String>,
    /// Sign the request with this key, as `fts key generate` makes it; for clients whose policy
    /// says require_signature
    #[arg(long, env = "FTS_SIGN_KEY", value_name = "FILE")]
    sign_key: Option<PathBuf>,
    /// How long the signature holds, at most 30d [default: as the deadline]
    #[arg(long, env = "FTS_SIGN_FOR", value_name = "TIME")]
    sign_for: Option<String>,
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

impl Command {
    /// Returns the flags `--timeout` and `--deadline`.
    pub(super) fn times(&self) -> (Option<String>, Option<String>) {
        match self {
            Self::Pull { ask, .. } | Self::Cp { ask, .. } => {
                (ask.timeout.clone(), ask.deadline.clone())
            }
            Self::Watch { timeout, .. } => (timeout.clone(), None),
            _ => (None, None),
        }
    }

    /// Returns the flags `--sign-key` and `--sign-for`, of a command that asks for a file.
    pub(super) fn signing(&self) -> Option<(Option<PathBuf>, Option<String>)> {
        match self {
            Self::Pull { ask, .. } | Self::Cp { ask, .. } => {
                Some((ask.sign_key.clone(), ask.sign_for.clone()))
            }
            _ => None,
        }
    }

    pub(super) fn max_rate(&self) -> Option<String> {
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
