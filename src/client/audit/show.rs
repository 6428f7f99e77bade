//! `fts-client audit show`: the lines of the audit, oldest first, for people or as they are.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{
    line::{self, Asked, Event, Line},
    log::Lines,
    verify::{Files, LookError},
};
use crate::{client::words::log_path, ids::OperatorName};

/// Why the audit was not shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShowError {
    #[error(transparent)]
    Look(#[from] LookError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Writes all lines: one for each, of words, or the JSON that is in the file.
pub fn show(state_dir: &Path, as_json: bool, to: &mut dyn Write) -> Result<(), ShowError> {
    for (_, file) in Files::open(state_dir)?.all {
        let mut lines = Lines::new(file);
        while let Some(line) = lines.next_line()? {
            if !line.whole {
                continue;
            }
            match line::read(line.text) {
                _ if as_json => {
                    to.write_all(line.text)?;
                    to.write_all(b"\n")?;
                }
                Some(line) => writeln!(to, "{}", words(&line))?,
                // Of a later version, or none of ours: verify tells.
                None => writeln!(to, "{}", String::from_utf8_lossy(line.text).escape_debug())?,
            }
        }
    }
    Ok(())
}

/// Returns a line for people. What others have written is escaped.
fn words(line: &Line) -> String {
    let (what, said) = match &line.event {
        Event::Start { version, client, server, policy } => {
            let [version, client, server] = [version, client, server].map(|s| s.escape_debug());
            ("start", format!("fts-client {version} as {client} for {server}; policy {policy}"))
        }
        Event::Policy { policy } => ("policy", policy.to_string()),
        Event::Serve { asked, file, size, from, rule } => {
            let file = file.as_ref().map(|file| format!("; it is {}", log_path(file)));
            let (about, file) = (about(asked), file.unwrap_or_default());
            ("serve", format!("{about}{file}; {size} bytes from {from}, by the rule {rule:?}"))
        }
        Event::End { asked, outcome, sent, blake3, detail } => {
            let digest = blake3.map(|digest| format!("; BLAKE3 {digest}")).unwrap_or_default();
            let outcome = outcome.escape_debug();
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail:?}") };
            ("end", format!("{}; {outcome} at {sent} bytes{digest}{detail}", about(asked)))
        }
        Event::Refuse { asked, why } => ("refuse", format!("{}; {why:?}", about(asked))),
        Event::Explain { path, operator, verdict, why } => {
            let (path, by) = (log_path(path), asked_by(operator.as_ref()));
            ("explain", format!("{path}{by}; {}: {why:?}", verdict.escape_debug()))
        }
        Event::LeftOut { count } => ("left_out", format!("{count} lines had no room")),
        Event::Torn { bytes } => {
            ("torn", format!("a crash left {bytes} bytes, which were cut off"))
        }
        Event::Broken { file } => {
            ("broken", format!("did not follow, and was put aside: {file:?}"))
        }
        Event::Drop { file, next } => {
            ("drop", format!("removed to make room, the lines before {next}: {file:?}"))
        }
    };
    format!("{} {} {what} {said}", line.seq, line.time.escape_debug())
}

fn about(asked: &Asked) -> String {
    let by = asked.signer.as_ref().map(|signer| format!(" signed by {signer:?}"));
    let by = by.unwrap_or_default() + &asked_by(asked.operator.as_ref());
    format!("{} for {}/{}{by}", log_path(&asked.path), asked.transfer, asked.epoch)
}

fn asked_by(operator: Option<&OperatorName>) -> String {
    operator
        .map(|name| format!(" asked by {:?}, says the server", name.as_str()))
        .unwrap_or_default()
}
