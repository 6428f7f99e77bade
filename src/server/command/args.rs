//! The command line of what `fts-server` does besides serving.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Commands of whoever owns the server.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Say who may join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Say which clients are good
    #[command(subcommand)]
    Clients(ClientsCommand),
    /// Say who may ask for files
    #[command(subcommand)]
    Operators(OperatorsCommand),
    /// Print who did what, one JSON object a line
    Audit {
        /// Only what happened since then ago, such as 1d
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// Change the authority
    #[command(subcommand)]
    Ca(CaCommand),
}

/// Which server is meant.
#[derive(Debug, Args)]
pub struct At {
    /// Its data directory [default: ./fts-data]
    #[arg(long, value_name = "DIR", env = "FTS_DATA_DIR")]
    pub(super) data_dir: Option<String>,
    /// Its record store, if that is not in the data directory
    #[arg(long, value_name = "URL", env = "FTS_STORE")]
    pub(super) store: Option<String>,
    /// Its TOML file
    #[arg(long, value_name = "FILE", env = "FTS_CONFIG")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token, and print it: `fts-client join` exchanges it for a certificate
    Create {
        /// The client id it is good for, or a pattern with *; repeatable, one token each
        #[arg(long = "id", value_name = "ID")]
        ids: Vec<String>,
        /// A file with a client id on each line: one token each
        #[arg(long = "ids", value_name = "FILE")]
        file: Option<PathBuf>,
        /// How often it may be used
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// How long it is good, at most 30d
        #[arg(long, value_name = "TIME", default_value = "1h")]
        ttl: String,
        /// Who joins by it waits for `fts-server clients approve`
        #[arg(long)]
        approve: bool,
        /// It may take the id of a client that joined before, whose certificate is good for nothing
        /// then
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        at: At,
    },
    /// List the join tokens; their secrets are nowhere
    List {
        #[command(flatten)]
        at: At,
    },
    /// Let nobody join by a token any more
    Revoke {
        /// The token's id, as `fts-server token list` has it
        id: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Subcommand)]
pub enum ClientsCommand {
    /// List the clients that have joined
    List {
        #[command(flatten)]
        at: At,
    },
    /// Let a client in that joined by a token made with --approve
    Approve {
        id: String,
        #[command(flatten)]
        at: At,
    },
    /// Make a client's certificate good for nothing; its session and uploads end at once
    Revoke {
        id: String,
        #[command(flatten)]
        at: At,
    },
    /// Revoke a client for good: nobody can join under its id again
    Delete {
        id: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Subcommand)]
pub enum OperatorsCommand {
    /// Make an operator, and print the token
    Create {
        name: String,
        /// metrics, viewer, operator or admin
        #[arg(long, default_value = "operator")]
        role: String,
        /// Only these clients: an id, or a pattern with *; repeatable
        #[arg(long = "client", value_name = "ID")]
        clients: Vec<String>,
        /// Only paths at or beneath this one; repeatable
        #[arg(long = "path", value_name = "PATH")]
        paths: Vec<String>,
        /// How long the token is good [default: for ever]
        #[arg(long, value_name = "TIME")]
        ttl: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// List the operators
    List {
        #[command(flatten)]
        at: At,
    },
    /// Make a new token for an operator, and print it; the old one is good for nothing
    Rotate {
        name: String,
        /// How long the token is good [default: for ever]
        #[arg(long, value_name = "TIME")]
        ttl: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// Make an operator's token good for nothing
    Revoke {
        name: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Begin to sign with a new root. Clients learn it as they renew; until `finish` the server's own
    /// certificate is of the old root, and both are trusted. The new root's key is in pki/root.key
    /// then: take it away, and keep it offline
    Rotate {
        #[command(flatten)]
        at: At,
    },
    /// End a rotation: the server's certificate is of the new root, and the old one is not trusted
    /// any more. Do it when every client has renewed (`fts-server clients list`)
    Finish {
        #[command(flatten)]
        at: At,
    },
    /// Renew the intermediate, which signs every day and is good for 5 years. Put the root's key
    /// back into pki/root.key for it, and take it away again
    Renew {
        #[command(flatten)]
        at: At,
    },
}
