//! Lines of the audit: what each says, and how one is chained to the one before it.
//!
//! ```text
//! {"seq":2,"time":"…","event":"serve",…,"prev":"HASH of line 1","hash":"HASH"}
//!  └────────────── BLAKE3 of these bytes, up to here ───────────┘
//! ```
//!
//! So the hash of a line covers every line before it, and whoever knows one hash knows whether
//! anything up to it was changed, removed or added.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{
    audit_head::AuditHead,
    ids::{Digest, OperatorName, TransferId, UnixMs},
};

/// What is noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(in crate::client) enum Event {
    /// A process begins.
    Start { version: String, client: String, server: String, policy: Digest },
    /// Another policy is in force.
    Policy { policy: Digest },
    /// The next bytes that leave are of this file.
    Serve {
        #[serde(flatten)]
        asked: Asked,
        /// What was opened, if links lead there from what was asked for, or nothing was.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        size: u64,
        /// Where it begins: the server has what is before that.
        from: u64,
        rule: String,
    },
    /// What came of a file that was served.
    End {
        #[serde(flatten)]
        asked: Asked,
        outcome: String,
        /// Up to where bytes were sent.
        sent: u64,
        /// Of the whole file, if it was read to its end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        blake3: Option<Digest>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
    },
    /// Nothing was sent.
    Refuse {
        #[serde(flatten)]
        asked: Asked,
        why: String,
    },
    /// It was asked whether a path may be read.
    Explain {
        path: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operator: Option<OperatorName>,
        verdict: String,
        why: String,
    },
    /// Lines that came too fast to be noted, or for which there was no disk.
    LeftOut { count: u64 },
    /// What a crash left of lines that nobody had been told of was cut off.
    Torn { bytes: u64 },
    /// The file did not follow from the lines before it; it was put aside.
    Broken { file: String },
    /// The oldest file is removed, to make room.
    Drop {
        file: String,
        /// The number of the first line after it.
        next: u64,
    },
}

impl Event {
    /// Returns how many lines are missing, if this one is.
    pub(super) fn count(&self) -> u64 {
        if let Self::LeftOut { count } = self { *count } else { 1 }
    }
}

/// What was asked for, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::client) struct Asked {
    pub(in crate::client) transfer: TransferId,
    pub(in crate::client) epoch: u64,
    /// Empty: the default file.
    pub(in crate::client) path: String,
    /// Who asked, as the server says: it proves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::client) operator: Option<OperatorName>,
    /// Who signed the request, where that was asked for; otherwise the server alone vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::client) signer: Option<String>,
}

/// A line without its own hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) seq: u64,
    pub(super) time: String,
    #[serde(flatten)]
    pub(super) event: Event,
    /// The hash of the line before it.
    pub(super) prev: Digest,
}

/// What chains a line to the one before it; read of any line, also of a later version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) prev: AuditHead,
    pub(super) head: AuditHead,
}

/// Why a line is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineError {
    #[error("it is not as fts-client writes it")]
    Form,
    #[error("it is not what its hash was made of")]
    Hash,
}

const HASH: &str = ",\"hash\":\"";
const END: &str = "\"}";
/// A hash in hex.
const HEX_BYTES: usize = 64;

/// Adds the line that follows `head`, and returns the head that it makes.
pub(super) fn write(event: &Event, head: AuditHead, now: UnixMs, to: &mut String) -> AuditHead {
    let line =
        Line { seq: head.seq + 1, time: now.rfc3339(), event: event.clone(), prev: head.hash };
    let text = quiet(json(&line));
    let body = text.strip_suffix('}').expect("an object ends so");
    let hash = Digest::from(blake3::hash(body.as_bytes()));
    to.push_str(body);
    to.push_str(HASH);
    to.push_str(&hash.to_string());
    to.push_str(END);
    to.push('\n');
    AuditHead { seq: line.seq, hash }
}

/// Returns how long what is said of it is.
pub(super) fn bytes(event: &Event) -> usize {
    quiet(json(event)).len()
}

fn json(of: &impl Serialize) -> String {
    serde_json::to_string(of).expect("text and numbers can be written")
}

/// Escapes what a terminal obeys and JSON lets through, for whoever shows the file as it is: control
/// characters above the first 32, and those that change the order of a text. All are in strings.
fn quiet(json: String) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}')
    };
    if !json.contains(obeyed) {
        return json;
    }
    let mut quiet = String::with_capacity(2 * json.len());
    for c in json.chars() {
        if obeyed(c) {
            write!(quiet, "\\u{:04x}", u32::from(c)).expect("a string takes all");
        } else {
            quiet.push(c);
        }
    }
    quiet
}

/// Checks a line, which comes without its line feed, by itself.
pub(super) fn check(line: &[u8]) -> Result<Link, LineError> {
    /// Of a line of any version.
    #[derive(Deserialize)]
    struct Links {
        seq: u64,
        prev: Digest,
        hash: Digest,
    }
    let links: Links = serde_json::from_slice(line).map_err(|_| LineError::Form)?;
    let body = line.len().checked_sub(HASH.len() + HEX_BYTES + END.len()).ok_or(LineError::Form)?;
    let (body, end) = line.split_at(body);
    if end != format!("{HASH}{}{END}", links.hash).as_bytes() || links.seq == 0 {
        return Err(LineError::Form);
    }
    if Digest::from(blake3::hash(body)) != links.hash {
        return Err(LineError::Hash);
    }
    let prev = AuditHead { seq: links.seq - 1, hash: links.prev };
    Ok(Link { prev, head: AuditHead { seq: links.seq, hash: links.hash } })
}

/// Reads what a line says; `None`, if it is of a later version.
pub(super) fn read(line: &[u8]) -> Option<Line> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(path: &str) -> Event {
        let transfer = TransferId::generate();
        let asked =
            Asked { transfer, epoch: 3, path: path.to_owned(), operator: None, signer: None };
        Event::Serve { asked, file: None, size: 7, from: 0, rule: "logs".to_owned() }
    }

    fn lines(events: &[Event]) -> Vec<Vec<u8>> {
        let (mut text, mut head) = (String::new(), AuditHead::NONE);
        for event in events {
            head = write(event, head, UnixMs::now(), &mut text);
        }
        text.lines().map(|line| line.as_bytes().to_vec()).collect()
    }

    #[test]
    fn each_line_follows_from_the_one_before_it_and_reads_back() {
        let events = [event("/a"), event("/b\n\"},\u{202e}"), Event::Torn { bytes: 9 }];
        let lines = lines(&events);
        let mut before = AuditHead::NONE;
        for (line, event) in lines.iter().zip(&events) {
            let link = check(line).expect("a line");
            assert_eq!(link.prev, before);
            assert_eq!(&read(line).expect("known").event, event);
            before = link.head;
        }
    }

    #[test]
    fn a_line_has_nothing_that_a_terminal_obeys() {
        let path = "/\u{1b}[2J\u{7f}\u{9b}31m\u{202e}\u{2066}\u{2028}é\n";
        let line = &lines(&[event(path)])[0];

        let text = std::str::from_utf8(line).expect("text");
        let all = text.chars().filter(|c| !(' '..='~').contains(c));
        assert_eq!(all.collect::<String>(), "é");
        assert!(check(line).is_ok());
        let Event::Serve { asked, .. } = read(line).expect("known").event else { panic!("other") };
        assert_eq!(asked.path, path);
    }

    #[test]
    fn a_line_in_which_one_byte_was_changed_is_none() {
        let line = &lines(&[event("/var/log/a")])[0];
        for at in 0..line.len() {
            let mut changed = line.clone();
            changed[at] ^= 1;
            assert!(check(&changed).is_err(), "byte {at}");
        }
        for len in 0..line.len() {
            assert!(check(&line[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_line_of_a_later_version_is_checked_all_the_same() {
        let hash = Digest::from(blake3::hash(b"before"));
        let body = format!("{{\"seq\":4,\"event\":\"new\",\"prev\":\"{hash}\"");
        let own = Digest::from(blake3::hash(body.as_bytes()));
        let line = format!("{body},\"hash\":\"{own}\"}}");
        assert_eq!(check(line.as_bytes()).expect("chained").prev, AuditHead { seq: 3, hash });
        assert_eq!(read(line.as_bytes()), None);
    }
}
