//! The server's flags, as typed, and the keys of its file.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use serde::Deserialize;

use crate::server::command::AdminCommand;

/// Pulls files, verified, from machines behind NAT: the server.
///
/// It listens on loopback only, unless told otherwise. gRPC, HTTP/JSON, health, reflection and
/// metrics share one port.
#[allow(clippy::doc_markdown, rustdoc::bare_urls)] // the comments are the text of --help
#[derive(Debug, Parser)]
#[command(name = "fts-server", version, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(flatten)]
    pub args: Args,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Settle what a crash left, as every start does, and report what is wrong between the records
    /// and the files. No server may run on the data directory meanwhile.
    ///
    /// Exit codes: 0 all is well, 1 something is not, 78 bad configuration.
    Check(Check),
    /// Make this server ask for credentials: an authority, a certificate, and the first operator,
    /// whose token is printed once, on standard output
    Init(Init),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    #[command(flatten)]
    Admin(AdminCommand),
}

#[derive(Debug, clap::Args)]
pub struct Init {
    /// What clients and operators call this server: a host name or an address; repeatable. It is
    /// also known as localhost
    #[arg(long = "name", value_name = "NAME", required = true)]
    pub names: Vec<String>,
    #[command(flatten)]
    pub args: Args,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the effective values and where each came from; secrets are masked
    Check {
        #[command(flatten)]
        args: Box<Args>,
    },
}

#[derive(Debug, clap::Args)]
pub struct Check {
    /// Read every landed file again, and compare it with the BLAKE3 in its record
    #[arg(long)]
    pub scrub: bool,
    #[command(flatten)]
    pub args: Args,
}

/// The flags of a server, as typed.
#[allow(clippy::doc_markdown, rustdoc::bare_urls)] // the comments are the text of --help
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Address to listen on [default: 127.0.0.1:3000, or 127.0.0.1:$PORT]
    #[arg(long, value_name = "ADDR", env = "FTS_LISTEN")]
    pub listen: Option<String>,
    /// Listen here for operators (gRPC Control, HTTP, dashboard, metrics), and on --listen for clients
    /// alone [default: one address for both]
    #[arg(long, value_name = "ADDR", env = "FTS_CONTROL_LISTEN")]
    pub control_listen: Option<String>,
    /// The server's certificate and the chain behind it, PEM, if it is not of its own authority
    #[arg(long, value_name = "FILE", env = "FTS_TLS_CERT")]
    pub tls_cert: Option<String>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", env = "FTS_TLS_KEY")]
    pub tls_key: Option<String>,
    /// How long certificates of clients last; they renew themselves at two thirds [default: 7d]
    #[arg(long, value_name = "TIME", env = "FTS_CERTIFICATE_LIFE")]
    pub certificate_life: Option<String>,
    /// Directory of everything the server keeps (0700) [default: ./fts-data]
    #[arg(long, value_name = "DIR", env = "FTS_DATA_DIR")]
    pub data_dir: Option<String>,
    /// Record store: sqlite:PATH [default: sqlite:DATA_DIR/fts.db]
    #[arg(long, value_name = "URL", env = "FTS_STORE")]
    pub store: Option<String>,
    /// Where files land: file:///DIR [default: DATA_DIR/files]
    #[arg(long, value_name = "URL", env = "FTS_SINK")]
    pub sink: Option<String>,
    /// Pause between heartbeats of clients; the deadlines of sessions scale with it [default: 25s]
    #[arg(long, value_name = "TIME", env = "FTS_HEARTBEAT")]
    pub heartbeat: Option<String>,
    /// Delete the bytes of landed files after this long, such as 30d [default: never]
    #[arg(long, value_name = "TIME", env = "FTS_KEEP")]
    pub keep: Option<String>,
    /// Delete the oldest landed files beyond this much in total, such as 500GB [default: never]
    #[arg(long, value_name = "SIZE", env = "FTS_KEEP_BYTES")]
    pub keep_bytes: Option<String>,
    /// Free bytes below which nothing new is begun; waiting transfers say SERVER_DISK_LOW [default: the
    /// smaller of 1GiB and 5 % of the disk]
    #[arg(long, value_name = "SIZE", env = "FTS_DISK_LOW")]
    pub disk_low: Option<String>,
    /// Free bytes above which it goes on; needs --disk-low [default: twice --disk-low]
    #[arg(long, value_name = "SIZE", env = "FTS_DISK_HIGH")]
    pub disk_high: Option<String>,
    /// Take the directory of files as it is, although it is not the one of the records: what is not
    /// there counts as lost. For one start only: it also takes a mount point without its mount
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "FTS_NEW_FILES")]
    pub new_files: Option<String>,
    /// Most that one client may send in any 24 hours, such as 500GB; then its transfers wait with QUOTA
    /// [default: no limit]
    #[arg(long, value_name = "SIZE", env = "FTS_CLIENT_BYTES_PER_DAY")]
    pub client_bytes_per_day: Option<String>,
    /// Most transfers that may be asked of one client in any 24 hours [default: no limit]
    #[arg(long, value_name = "N", env = "FTS_CLIENT_TRANSFERS_PER_DAY")]
    pub client_transfers_per_day: Option<String>,
    /// Most that may come for one operator in any 24 hours, before it may ask for more [default: no
    /// limit]
    #[arg(long, value_name = "SIZE", env = "FTS_OPERATOR_BYTES_PER_DAY")]
    pub operator_bytes_per_day: Option<String>,
    /// Most transfers that one operator may ask for in any 24 hours [default: no limit]
    #[arg(long, value_name = "N", env = "FTS_OPERATOR_TRANSFERS_PER_DAY")]
    pub operator_transfers_per_day: Option<String>,
    /// Most transfers that one operator may ask for in a minute [default: 6000]
    #[arg(long, value_name = "N", env = "FTS_OPERATOR_TRIGGERS_PER_MINUTE")]
    pub operator_triggers_per_minute: Option<String>,
    /// Uploads taken at a time, 1 to 256; more transfers wait with SERVER_BUSY [default: 256]
    #[arg(long, value_name = "N", env = "FTS_MAX_UPLOADS")]
    pub max_uploads: Option<String>,
    /// Write the address that is listened on to this file, once it is (for scripts, with port 0)
    #[arg(long, value_name = "FILE", env = "FTS_PORT_FILE")]
    pub port_file: Option<String>,
    /// Listen beyond loopback in clear text, without credentials: test networks only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", env = "FTS_INSECURE")]
    pub insecure: Option<String>,
    /// Log lines: text or json [default: text on a terminal, else json]; RUST_LOG filters them
    #[arg(long, value_name = "FORMAT", env = "FTS_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// TOML file with any of these settings, spelled with underscores
    #[arg(long, value_name = "FILE", env = "FTS_CONFIG")]
    pub config: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
A flag wins over its FTS_ variable, that over a short one (PORT), and that over the file.
Exit codes: 0 stopped as asked, 1 failed, 2 usage, 78 bad configuration (every problem at once).";

/// The file's keys: as the flags, with underscores.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // the keys are the flags' names
pub(super) struct File {
    pub(super) listen: Option<String>,
    pub(super) control_listen: Option<String>,
    pub(super) tls_cert: Option<String>,
    pub(super) tls_key: Option<String>,
    pub(super) certificate_life: Option<String>,
    pub(super) data_dir: Option<String>,
    pub(super) store: Option<String>,
    pub(super) sink: Option<String>,
    pub(super) heartbeat: Option<String>,
    pub(super) keep: Option<String>,
    pub(super) keep_bytes: Option<String>,
    pub(super) disk_low: Option<String>,
    pub(super) disk_high: Option<String>,
    pub(super) client_bytes_per_day: Option<String>,
    pub(super) client_transfers_per_day: Option<u64>,
    pub(super) operator_bytes_per_day: Option<String>,
    pub(super) operator_transfers_per_day: Option<u64>,
    pub(super) operator_triggers_per_minute: Option<u64>,
    pub(super) max_uploads: Option<u32>,
    pub(super) port_file: Option<String>,
    pub(super) insecure: Option<bool>,
    pub(super) log_format: Option<String>,
}
