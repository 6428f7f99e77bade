//! Logs, through `tracing`: where they go, in which form, and the spans whose fields are spelled
//! once.

use std::io::{self, IsTerminal as _};

use tracing::Span;
use tracing_subscriber::EnvFilter;

use crate::ids::{ClientId, SessionEpoch, TransferId};

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    /// Parses `text` or `json`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("neither text nor json".to_owned()),
        }
    }
}

impl Default for LogFormat {
    /// Text on a terminal, else JSON.
    fn default() -> Self {
        if io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Begins to log on standard error, filtered by `RUST_LOG` (`info` without it). Text from a peer is
/// escaped: it is logged by `Debug`, or as a JSON string.
///
/// # Errors
/// `RUST_LOG` does not parse.
pub fn init(format: LogFormat) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) => EnvFilter::try_new(text).map_err(|err| format!("RUST_LOG: {err}"))?,
        Err(_) => EnvFilter::new("info"),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// The span of one session.
pub fn session_span(client: &ClientId, epoch: SessionEpoch) -> Span {
    tracing::info_span!("session", client_id = %client, epoch = epoch.0)
}

/// The span of whatever is done for one transfer.
pub fn transfer_span(id: TransferId) -> Span {
    tracing::info_span!("transfer", transfer_id = %id)
}
