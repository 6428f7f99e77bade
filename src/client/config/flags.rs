//! The command line of `fts-client`, and what its file may say.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use super::{GenerateFile, JoinFlags};
use crate::audit_head::AuditHead;

/// Delivers files of this machine to an fts-server, which asks for them.
///
/// It dials the server, keeps one connection open, and uploads what the server asks for and the
/// policy (--allow) permits. It never ends because of what a server says, or because there is none.
#[derive(Debug, Parser)]
#[command(name = "fts-client", version, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<CliCommand>,
    #[command(flatten)]
    pub flags: Flags,
}

const AFTER_HELP: &str = "\
Each setting comes from its flag, else its FTS_ variable, else its short variable, else the file
(--config), else its default. FTS_ALLOW is a list, divided by colons; a list replaces the one that
it wins over.

Without --allow, and with a server on this machine, one file is shared:
$HOME/file_to_download.txt, which is made (100 MB) if it is not there.

On SIGHUP the files (--config, --policy) are read again: the policy, max_rate and max_uploads hold
at once, the rest after a restart; a bad file changes nothing. Without such a file SIGHUP ends the
client.

RUST_LOG filters the log (default: info), which goes to standard error.

For https:// the client needs an identity, which fts-client join makes, once, from a join token.
What join was told (server, client id, allow, policy, ca, proxy, state directory) then holds
wherever nothing else says otherwise: from then on it is just fts-client. A proxy comes from --proxy,
FTS_PROXY or the file, else from HTTPS_PROXY, ALL_PROXY and NO_PROXY; a password for it belongs
into one of the variables, or the file.

Exit codes: 0 ended by a signal, 1 failed, 2 usage, 69 server unreachable (join), 77 refused (join),
78 bad configuration.";

#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Makes the demo file.
    GenerateFile(GenerateFile),
    /// Makes this machine a client of a server, with a join token: makes a key, and has the server
    /// make a certificate for it.
    Join(JoinFlags),
    /// What the configuration says.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What a server may read here.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What was asked for, served and refused here, by whom: this client's own audit.
    #[command(subcommand)]
    Audit(AuditCommand),
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Shows each line, oldest first. The client may run meanwhile.
    Show(AuditShow),
    /// Follows the lines from the first to the last: each must follow from the one before it. Exit
    /// codes: 0 whole, 1 not, or not to be read.
    Verify(AuditVerify),
}

#[derive(Debug, Args)]
pub struct AuditShow {
    /// The lines as they are written: JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(Debug, Args)]
pub struct AuditVerify {
    /// The line that the server was told of last, as NUMBER:HASH: fts client NAME, on the operator's
    /// side, shows it. It must be there, and be that one.
    #[arg(long, value_name = "HEAD")]
    pub head: Option<AuditHead>,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Shows each rule of the policy, and what is wrong; and what would become of a request for
    /// each PATH. Nothing is read. Exit codes: 0 good, 1 a PATH cannot be opened, 77 a PATH is
    /// denied, 78 bad policy.
    Check(PolicyPaths),
    /// Says whether a file may be read, and by which rule. Exit codes as of check.
    Explain(PolicyPath),
}

#[derive(Debug, Args)]
pub struct PolicyPaths {
    /// Absolute paths.
    #[arg(value_name = "PATH")]
    pub paths: Vec<String>,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(Debug, Args)]
pub struct PolicyPath {
    /// An absolute path.
    #[arg(value_name = "PATH")]
    pub path: String,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Shows each setting with where it came from, and everything that is wrong. Exit codes: 0
    /// good, 78 not.
    Check(Flags),
}

/// The flags, as typed.
#[allow(clippy::doc_markdown)] // The comments are the text of --help.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Address of the server [default: http://localhost:3000] [short variable: SERVER_URL].
    #[arg(long, value_name = "URL", env = "FTS_SERVER", hide_env_values = true)]
    pub server: Option<String>,
    /// Name of this client [default: client-1 if the server is on this machine, else the host name]
    /// [short variable: CLIENT_ID].
    #[arg(long, value_name = "ID", env = "FTS_CLIENT_ID", hide_env_values = true)]
    pub client_id: Option<String>,
    /// Port of the status page, on loopback; 0: none [default: 8080, or none if that is busy]
    /// [short variable: CLIENT_PORT].
    #[arg(long, value_name = "PORT", env = "FTS_STATUS_PORT", hide_env_values = true)]
    pub status_port: Option<String>,
    /// A directory, or one file, that may be read; repeatable. Needed if the server is not on this
    /// machine [env: FTS_ALLOW=].
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<String>,
    /// A TOML file that says what may be read, with a rule for each directory; instead of --allow.
    /// README has its keys; fts-client policy check reads it.
    #[arg(long, value_name = "FILE", env = "FTS_POLICY", hide_env_values = true)]
    pub policy: Option<String>,
    /// The client's own directory (0700) [default: $XDG_STATE_HOME/fts-client/ID, or
    /// $HOME/.local/state/fts-client/ID].
    #[arg(long, value_name = "DIR", env = "FTS_STATE_DIR", hide_env_values = true)]
    pub state_dir: Option<String>,
    /// Most that all uploads together may send, in bytes a second, such as 5MB/s, 500KB/s or off; at
    /// least 64KB/s [default: off].
    #[arg(long, value_name = "RATE", env = "FTS_MAX_RATE", hide_env_values = true)]
    pub max_rate: Option<String>,
    /// Files delivered at a time, 1 to 64 [default: 4].
    #[arg(long, value_name = "N", env = "FTS_MAX_UPLOADS", hide_env_values = true)]
    pub max_uploads: Option<String>,
    /// Lower the priority of the client's threads, 0 to 19, as nice(1) does [default: 0].
    #[arg(long, value_name = "N", env = "FTS_NICE", hide_env_values = true)]
    pub nice: Option<String>,
    /// What the kernel holds the client to, on Linux: on, as much as it has; require, no start
    /// without files, calls and privileges; off, nothing [default: on].
    #[arg(long, value_name = "MODE", env = "FTS_SANDBOX", hide_env_values = true)]
    pub sandbox: Option<String>,
    /// Go on with a file that broke before this process began without reading what was sent of it
    /// again, if its inode, size and times are the same; the result says so.
    #[arg(long, value_name = "BOOL", env = "FTS_TRUST_FINGERPRINT", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub trust_fingerprint: Option<String>,
    /// A PEM file with the root certificates to know the server by, if its join token or its
    /// answer named none [default: those of this machine].
    #[arg(long, value_name = "FILE", env = "FTS_CA", hide_env_values = true)]
    pub ca: Option<String>,
    /// http://HOST:PORT of a proxy to reach an https:// server through, or off [default: as
    /// HTTPS_PROXY, ALL_PROXY and NO_PROXY say] [env: FTS_PROXY=].
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// Send files in clear text to an http:// server that is not on this machine: for test
    /// networks.
    #[arg(long, value_name = "BOOL", env = "FTS_INSECURE", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<String>,
    /// text or json [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT", env = "FTS_LOG_FORMAT", hide_env_values = true)]
    pub log_format: Option<String>,
    /// A TOML file with these settings: the flags' names, with _ for -.
    #[arg(long, value_name = "FILE", env = "FTS_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) server: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) status_port: Option<u16>,
    pub(super) allow: Option<Vec<String>>,
    pub(super) policy: Option<String>,
    pub(super) ca: Option<String>,
    pub(super) proxy: Option<String>,
    pub(super) state_dir: Option<String>,
    pub(super) max_rate: Option<String>,
    pub(super) max_uploads: Option<u32>,
    pub(super) nice: Option<u8>,
    pub(super) sandbox: Option<String>,
    pub(super) trust_fingerprint: Option<bool>,
    pub(super) insecure: Option<bool>,
    pub(super) log_format: Option<String>,
}
