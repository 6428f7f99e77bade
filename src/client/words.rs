//! How errors and paths are told to people: in logs, on the status page, and to the server.

use std::{error::Error, fmt::Write as _};

use tonic::Status;

use crate::{ids::bounded, limits, status, tls};

/// Returns what a status says, for people: its stable reason, its text, and what is beneath it.
/// Escaped, because a peer wrote it.
pub(super) fn status_text(status: &Status) -> String {
    let mut text = status::reason(status)
        .map_or_else(|| format!("{:?}", status.code()), |reason| reason.as_str().to_owned());
    if !status.message().is_empty() {
        write!(text, ": {:?}", bounded(status.message().to_owned(), limits::DETAIL_BYTES_MAX))
            .expect("a string takes text");
    }
    match tls::explain(status) {
        Some(why) => text + ": " + &why,
        None => text + &causes(status, status.message()),
    }
}

/// Returns what is beneath an error. Many an error says what the next one says: that is told once,
/// and what was `said` is not told again.
pub(super) fn causes(err: &dyn Error, said: &str) -> String {
    let mut text = String::new();
    let mut last = said.to_owned();
    let mut next = err.source();
    while let Some(err) = next {
        let each = bounded(err.to_string(), limits::DETAIL_BYTES_MAX);
        if each != last {
            write!(text, ": {}", each.escape_debug()).expect("a string takes text");
            last = each;
        }
        next = err.source();
    }
    text
}

/// Returns a path as a log shows it: what could break a line is escaped.
pub(super) fn log_path(path: &str) -> String {
    if path.is_empty() { "(default file)".to_owned() } else { path.escape_debug().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_and_a_path_as_it_is() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Layer(&'static str, #[source] Option<Box<Self>>);
        let layer = |text, beneath| Some(Box::new(Layer(text, beneath)));
        let err = Layer("top", layer("refused", layer("refused", layer("deep\n", None))));
        assert_eq!(causes(&err, "top"), ": refused: deep\\n");
        assert_eq!(causes(&err, "refused"), ": deep\\n");

        assert_eq!(log_path("/var/log/a b"), "/var/log/a b");
        assert_eq!(log_path("/a\nb"), "/a\\nb");
        assert_eq!(log_path(""), "(default file)");
    }
}
