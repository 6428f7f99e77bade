//! One entry of the audit, and the line that it is: a JSON object of printable characters, whatever
//! the texts in it are.

use std::fmt::{self, Write as _};

use serde::{Serialize, Serializer};

use super::detail::Detail;
use crate::{
    ids::{ClientId, OperatorName, UnixMs, bounded},
    limits,
    server::audit::Series,
    status::Reason,
    token::TokenId,
};

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    Operator(OperatorName),
    Client(ClientId),
    /// Whoever holds a join token.
    Token(TokenId),
    /// Whoever may open the server's own socket, or its data directory.
    Local,
    /// The server itself.
    Server,
    /// Somebody whose credentials were not good, or who had none.
    Unknown,
}

impl Actor {
    fn kind(&self) -> &'static str {
        match self {
            Self::Operator(_) => "operator",
            Self::Client(_) => "client",
            Self::Token(_) => "token",
            Self::Local => "local",
            Self::Server => "server",
            Self::Unknown => "unknown",
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Operator(name) => Some(name.as_str()),
            Self::Client(client) => Some(client.as_str()),
            Self::Token(token) => Some(token.as_str()),
            Self::Local | Self::Server | Self::Unknown => None,
        }
    }
}

macro_rules! actions {
    ($($name:ident = $text:literal;)*) => {
        /// What was done, or asked for. Programs match on the words, so they stay.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action {
            $($name,)*
        }

        impl Action {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

actions! {
    Login = "login";
    Refused = "refused";
    SessionOpen = "session.open";
    SessionEnd = "session.end";
    // A client speaks of a transfer on its session, or sends one.
    TransferReport = "transfer.report";
    TransferUpload = "transfer.upload";
    // An operator looks at a transfer, or at a client.
    TransferRead = "transfer.read";
    ClientRead = "client.read";
    // An operator asks a client whether a path may be read.
    PathExplain = "path.explain";
    TransferTrigger = "transfer.trigger";
    TransferCancel = "transfer.cancel";
    TransferRetry = "transfer.retry";
    TransferPause = "transfer.pause";
    TransferResume = "transfer.resume";
    TransferDelete = "transfer.delete";
    ContentRead = "content.read";
    TokenCreate = "token.create";
    TokenRevoke = "token.revoke";
    ClientJoin = "client.join";
    ClientRenew = "client.renew";
    ClientApprove = "client.approve";
    ClientRevoke = "client.revoke";
    ClientDelete = "client.delete";
    // The client's own audit lacks what the client had told of, or has something else in its place.
    ClientAuditBack = "client.audit_back";
    OperatorCreate = "operator.create";
    OperatorRotate = "operator.rotate";
    OperatorRevoke = "operator.revoke";
    AuditRead = "audit.read";
    CaRotate = "ca.rotate";
    CaFinish = "ca.finish";
    CaRenew = "ca.renew";
    // The server uses other certificates.
    TlsReload = "tls.reload";
    // The oldest file was removed, to make room.
    AuditDrop = "audit.drop";
    // Refusals that came too fast to be written one by one.
    AuditLeftOut = "audit.left_out";
}

impl Action {
    /// Whether it takes rights away, and gives none, so that it goes ahead also when it cannot be put
    /// on record.
    pub fn takes_away(self) -> bool {
        matches!(
            self,
            Self::TokenRevoke | Self::ClientRevoke | Self::ClientDelete | Self::OperatorRevoke
        )
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Written before it is done; what comes of it is another entry, or the transfer's own record.
    Asked,
    Done,
    /// It was not done; the word is that of a reason in `status`, or of a failure.
    Not(&'static str),
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Done => "done",
            Self::Not(reason) => reason,
        }
    }
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self::Not(reason.as_str())
    }
}

/// Who did what, from where, to what, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    at: UnixMs,
    actor: Actor,
    from: String,
    action: Action,
    outcome: Outcome,
    target: Vec<Detail>,
}

impl Entry {
    /// Makes an entry of now; `from` is the address of the peer.
    pub fn new(actor: Actor, from: impl Into<String>, action: Action, outcome: Outcome) -> Self {
        let from = bounded(from.into(), limits::LABEL_BYTES_MAX);
        Self { at: UnixMs::now(), actor, from, action, outcome, target: Vec::new() }
    }

    /// Makes an entry of the server's own doing.
    pub(in crate::server) fn own(action: Action, detail: Detail) -> Self {
        Self::new(Actor::Server, "", action, Outcome::Done).with(detail)
    }

    #[must_use]
    pub fn at(self, at: UnixMs) -> Self {
        Self { at, ..self }
    }

    /// Adds what it was about; another one of the same kind is replaced.
    #[must_use]
    pub fn with(mut self, detail: Detail) -> Self {
        self.target.retain(|other| other.key() != detail.key());
        self.target.push(detail.bounded());
        self
    }

    pub fn action(&self) -> Action {
        self.action
    }

    /// Writes its line, with the end.
    pub(super) fn write_line(&self, series: Series, seq: u64, to: &mut String) {
        let line = Line {
            seq,
            log: Some(series.name()).filter(|_| series != Series::Actions),
            time: self.at.rfc3339(),
            actor: self.actor.kind(),
            name: self.actor.name(),
            from: Some(self.from.as_str()).filter(|from| !from.is_empty()),
            action: self.action.as_str(),
            outcome: self.outcome.as_str(),
            target: Target(&self.target),
        };
        let json = serde_json::to_string(&line).expect("texts and numbers, with texts for keys");
        write_printable(&json, to);
        to.push('\n');
    }
}

/// What a log says of it.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, name) = (self.actor.kind(), self.actor.name().unwrap_or_default());
        let (action, outcome) = (self.action.as_str(), self.outcome.as_str());
        let target = serde_json::to_string(&Target(&self.target)).map_err(|_| fmt::Error)?;
        let mut line = String::new();
        write_printable(
            &format!("{who} {name} from {:?}: {action} {outcome} {target}", self.from),
            &mut line,
        );
        f.write_str(&line)
    }
}

/// An entry as it is written. [`super::read`] finds these two again: `seq`, `time`.
#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    /// The series, if it is not that of actions: each has numbers of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<&'static str>,
    time: String,
    actor: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'a str>,
    action: &'static str,
    outcome: &'static str,
    target: Target<'a>,
}

struct Target<'a>(&'a [Detail]);

impl Serialize for Target<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|detail| (detail.key(), detail)))
    }
}

/// Writes a JSON text so that it stays one line, and shows what it is: outside of strings it has
/// none of the characters that are escaped here.
pub(super) fn write_printable(json: &str, to: &mut String) {
    to.reserve(json.len() + 1);
    for c in json.chars() {
        if is_unprintable(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(to, "\\u{unit:04x}").expect("a String takes all");
            }
        } else {
            to.push(c);
        }
    }
}

/// C0, DEL, C1; marks of direction; separators of lines; what has no width.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        ids::{InstanceId, SessionEpoch, TransferId},
        server::access::{Role, Scope},
    };

    fn line(entry: &Entry) -> String {
        let mut line = String::new();
        entry.write_line(Series::Actions, 7, &mut line);
        line
    }

    #[test]
    fn a_line_says_who_did_what_from_where_and_what_came_of_it() {
        let operator = Actor::Operator("alice".parse().expect("a name"));
        let outcome = Outcome::from(Reason::OverQuota);
        let entry = Entry::new(operator, "192.0.2.1:4711", Action::TransferTrigger, outcome)
            .at(UnixMs(1_795_342_272_123))
            .with(Detail::Client("web-1".parse().expect("an id")))
            .with(Detail::Bytes(1))
            .with(Detail::Bytes(2))
            .with(Detail::Path("/var/log/x".to_owned()));

        let expected = concat!(
            r#"{"seq":7,"time":"2026-11-22T10:11:12.123Z","actor":"operator","name":"alice","#,
            r#""from":"192.0.2.1:4711","action":"transfer.trigger","outcome":"OVER_QUOTA","#,
            r#""target":{"client":"web-1","bytes":2,"path":"/var/log/x"}}"#,
            "\n"
        );
        assert_eq!(line(&entry), expected);
    }

    #[test]
    fn every_detail_has_a_key_of_its_own_and_the_words_of_actions_differ() {
        let token: TokenId = "0".repeat(16).parse().expect("an id");
        let scope = Scope::parse(&["a-*".to_owned()], &["/x".to_owned()]).expect("a scope");
        let details = [
            Detail::Client("c".parse().expect("an id")),
            Detail::Path("/p".to_owned()),
            Detail::Transfer(TransferId::generate()),
            Detail::Token(token),
            Detail::Operator("o".parse().expect("a name")),
            Detail::Role(Role::Viewer),
            Detail::Scope(scope),
            Detail::Tokens(vec!["1".repeat(16).parse().expect("an id")]),
            Detail::Patterns(vec!["x-*".parse().expect("a pattern")]),
            Detail::Uses(3),
            Detail::Replaces(true),
            Detail::Approval(false),
            Detail::Ttl(Duration::from_secs(90)),
            Detail::Instance(InstanceId::generate()),
            Detail::Session(SessionEpoch(2)),
            Detail::Expires(UnixMs(0)),
            Detail::Bytes(u64::MAX),
            Detail::Offset(5),
            Detail::Method("m".to_owned()),
            Detail::Host("h".to_owned()),
            Detail::File("f".to_owned()),
            Detail::LeftOut(BTreeMap::from([(Action::Refused, 9)])),
            Detail::Text("t".to_owned()),
        ];
        let count = details.len();
        let empty = Entry::new(Actor::Local, "", Action::Login, Outcome::Done);
        let entry = details.into_iter().fold(empty, Entry::with);

        let line: Value = serde_json::from_str(&line(&entry)).expect("JSON");

        let target = line["target"].as_object().expect("an object");
        assert_eq!(target.len(), count);
        assert_eq!(target["scope"], json!({"clients": ["a-*"], "paths": ["/x"]}));
        assert_eq!(target["patterns"], json!(["x-*"]));
        assert_eq!(target["ttl_seconds"], json!(90));
        assert_eq!(target["left_out"], json!({"refused": 9}));
        assert_eq!(target["bytes"], json!(u64::MAX));
        assert_eq!(target["expires"], json!("1970-01-01T00:00:00.000Z"));
        let words: std::collections::HashSet<_> = Action::ALL.iter().map(|a| a.as_str()).collect();
        assert_eq!(words.len(), Action::ALL.len());
    }

    #[test]
    fn the_longest_line_is_within_its_limit() {
        let path = |n: usize| format!("/{n:03}{}", "\u{1}".repeat(limits::PATH_BYTES_MAX - 4));
        let paths: Vec<String> = (0..limits::SCOPE_ITEMS_MAX).map(path).collect();
        let long = || "\u{1}".repeat(100_000);
        let entry = Entry::new(Actor::Unknown, long(), Action::OperatorCreate, Outcome::Done)
            .with(Detail::Scope(Scope::parse(&[], &paths).expect("a scope")))
            .with(Detail::Path(long()))
            .with(Detail::Method(long()))
            .with(Detail::Host(long()))
            .with(Detail::File(long()))
            .with(Detail::Text(long()));

        let line = line(&entry);

        assert!(line.len() <= limits::AUDIT_LINE_BYTES_MAX, "{}", line.len());
        let value: Value = serde_json::from_str(&line).expect("JSON");
        let paths = value["target"]["scope"]["paths"].as_array().expect("a list");
        assert_eq!(paths.last().expect("one"), "… and 240 more");
        assert_eq!(paths.len(), 17);
    }

    #[test]
    fn a_time_that_has_no_year_is_written_all_the_same() {
        assert_eq!(UnixMs(i64::MAX).rfc3339(), "9999-12-31T23:59:59.999Z");
        assert_eq!(UnixMs(i64::MIN).rfc3339(), "1970-01-01T00:00:00.000Z");
    }

    /// Texts of what has a meaning to a terminal, to JSON, or to whoever splits lines.
    fn hostile() -> impl Strategy<Value = String> {
        let special = prop::sample::select(
            "\0\n\r\t\"\\\u{1b}\u{7f}\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200e}\u{200f}\u{2028}\u{2029}\
             \u{202a}\u{202e}\u{2066}\u{2069}\u{feff}\u{fffb}\u{e0001}\u{e007f}"
                .chars()
                .collect::<Vec<_>>(),
        );
        let char = prop_oneof![special, any::<char>(), prop::char::range(' ', '~')];
        prop::collection::vec(char, 0..40).prop_map(|chars| chars.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_line_is_one_line_of_json_whatever_is_in_it(
            from in hostile(), path in hostile(), text in hostile(), at in any::<i64>()
        ) {
            let entry = Entry::new(Actor::Unknown, from.clone(), Action::Refused, Outcome::Asked)
                .at(UnixMs(at))
                .with(Detail::Path(path.clone()))
                .with(Detail::Text(text.clone()));

            let line = line(&entry);

            let body = line.strip_suffix('\n').expect("it ends");
            let bad = |c: &char| {
                c.is_control()
                    || "\u{2028}\u{2029}\u{61c}\u{200e}\u{200f}\u{feff}".contains(*c)
                    || ('\u{202a}'..='\u{202e}').contains(c)
                    || ('\u{2066}'..='\u{2069}').contains(c)
            };
            prop_assert_eq!(body.chars().find(bad), None);
            let value: Value = serde_json::from_str(body).expect("JSON");
            prop_assert_eq!(&value["target"], &json!({"path": path, "text": text}));
            prop_assert_eq!(value["from"].as_str().unwrap_or(""), from);
        }
    }
}
