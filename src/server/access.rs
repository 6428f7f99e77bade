//! Who may do what: the roles of operators, what each may see and ask for, and the one table that
//! says what a method needs. Pure: it knows no request and no store.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{ClientId, RemotePath},
    limits,
    wire::method::Method,
};

/// Why a text is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    #[error("a role is metrics, viewer, operator or admin")]
    Role,
    #[error("a pattern is a client id in which * stands for any number of characters")]
    Pattern,
    #[error("a path of a scope is absolute, without '..'")]
    Path,
    #[error("a scope has at most {} clients and as many paths", limits::SCOPE_ITEMS_MAX)]
    TooMany,
}

/// What an operator may do; each may do what the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads `/metrics`, and nothing else.
    Metrics,
    /// Sees, and reads what has landed.
    Viewer,
    /// Asks for files too.
    Operator,
    /// Says who may do what too.
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Metrics, Self::Viewer, Self::Operator, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(AccessError::Role)
    }
}

/// Client ids: one of them, or all that fit, with `*` for any number of characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names one client and no other.
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    pub fn matches(&self, client: &ClientId) -> bool {
        let mut pieces = self.0.split('*');
        let Some(mut rest) = pieces.next().and_then(|head| client.as_str().strip_prefix(head))
        else {
            return false;
        };
        let mut pieces: Vec<&str> = pieces.collect();
        let Some(tail) = pieces.pop() else { return rest.is_empty() };
        for piece in pieces {
            // The leftmost place leaves the most for the pieces that follow.
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(tail)
    }
}

impl FromStr for Pattern {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'*');
        let valid = (1..=limits::CLIENT_ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(plain)
            // What would fit no client is a mistake.
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'*');
        if valid { Ok(Self(text.to_owned())) } else { Err(AccessError::Pattern) }
    }
}

impl TryFrom<String> for Pattern {
    type Error = AccessError;

    fn try_from(text: String) -> Result<Self, AccessError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

/// What an operator may see and ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Empty: every client.
    pub clients: Vec<Pattern>,
    /// What is at or beneath these; empty: every path, and the default file.
    pub paths: Vec<RemotePath>,
}

impl Scope {
    /// Parses what an administrator typed.
    pub fn parse(clients: &[String], paths: &[String]) -> Result<Self, AccessError> {
        if clients.len().max(paths.len()) > limits::SCOPE_ITEMS_MAX {
            return Err(AccessError::TooMany);
        }
        let clients = clients.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let path = |text: &String| text.parse().map_err(|_| AccessError::Path);
        let paths = paths.iter().map(path).collect::<Result<_, _>>()?;
        Ok(Self { clients, paths })
    }

    pub fn has_client(&self, client: &ClientId) -> bool {
        self.clients.is_empty() || self.clients.iter().any(|pattern| pattern.matches(client))
    }

    /// Whether a path as it was asked for is within; `None` asks for the client's default file.
    pub fn has_path(&self, path: Option<&RemotePath>) -> bool {
        self.paths.is_empty()
            || path.is_some_and(|path| self.paths.iter().any(|root| is_beneath(path, root)))
    }
}

/// Component by component, so that `/var/log` is no part of `/var/logs`.
fn is_beneath(path: &RemotePath, root: &RemotePath) -> bool {
    fn components(path: &RemotePath) -> impl Iterator<Item = &str> {
        path.as_str().split('/').filter(|part| !matches!(*part, "" | "."))
    }
    let mut path = components(path);
    components(root).all(|part| path.next() == Some(part))
}

/// What a caller must have to be heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: that the server is there is no secret.
    Nothing,
    /// A join token.
    JoinToken,
    /// The certificate of a client that is in good standing.
    Client,
    /// The same, but it may have expired.
    ClientToRenew,
    /// An operator's token with this role, or one that may more.
    Role(Role),
}

/// Returns what a method needs. A method that is not here does not build.
pub fn need(method: Method) -> Need {
    match method {
        Method::FileTransferConnect | Method::FileTransferUploadFile => Need::Client,
        Method::EnrolmentJoin => Need::JoinToken,
        Method::EnrolmentRenew => Need::ClientToRenew,
        Method::ControlGetTransfer
        | Method::ControlListTransfers
        | Method::ControlWatchTransfers
        | Method::ControlListClients
        | Method::ControlGetClient
        | Method::ControlReadFile => Need::Role(Role::Viewer),
        Method::ControlWhoAmI => Need::Role(Role::Metrics),
        Method::ControlTriggerDownload
        | Method::ControlExplainPath
        | Method::ControlCancelTransfer
        | Method::ControlRetryTransfer
        | Method::ControlPauseTransfer
        | Method::ControlResumeTransfer
        | Method::ControlDeleteTransfer => Need::Role(Role::Operator),
        Method::AdminCreateJoinTokens
        | Method::AdminListJoinTokens
        | Method::AdminRevokeJoinToken
        | Method::AdminListIdentities
        | Method::AdminApproveClient
        | Method::AdminRevokeClient
        | Method::AdminDeleteClient
        | Method::AdminCreateOperator
        | Method::AdminListOperators
        | Method::AdminRotateOperator
        | Method::AdminRevokeOperator
        | Method::AdminReadAudit
        | Method::AdminRotateAuthority
        | Method::AdminFinishRotation
        | Method::AdminRenewIntermediate => Need::Role(Role::Admin),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope(clients: &[&str], paths: &[&str]) -> Scope {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        Scope::parse(&texts(clients), &texts(paths)).expect("a scope")
    }

    #[test]
    fn a_path_is_beneath_a_root_by_whole_components() {
        let scope = scope(&[], &["/var/log", "/srv/a.txt/"]);
        let within = |path: &str| scope.has_path(Some(&path.parse().expect("a path")));
        for path in ["/var/log", "/var/log/x", "/var//log/./x", "/srv/a.txt"] {
            assert!(within(path), "{path}");
        }
        for path in ["/var/logs", "/var", "/", "/var/lo/g", "/srv/a.txt2", "/log/var"] {
            assert!(!within(path), "{path}");
        }
        assert!(!scope.has_path(None), "the default file is none of them");
        assert!(Scope::default().has_path(None));
    }

    #[test]
    fn a_pattern_fits_whole_ids() {
        let fits = |pattern: &str, client: &str| {
            let pattern: Pattern = pattern.parse().expect("a pattern");
            pattern.matches(&client.parse().expect("an id"))
        };
        for (pattern, client) in [
            ("a", "a"),
            ("*", "a"),
            ("line3-*", "line3-x"),
            ("line3-*", "line3-"),
            ("a*b*c", "abbc"),
            ("a*bc", "abcbc"),
            ("*-db", "x-db"),
        ] {
            assert!(fits(pattern, client), "{pattern} {client}");
        }
        for (pattern, client) in [
            ("a", "ab"),
            ("a", "b"),
            ("line3-*", "line33-x"),
            ("line3-*", "xline3-"),
            ("a*a", "a"),
            ("a*b*b", "ab"),
            ("*-db", "x-db2"),
        ] {
            assert!(!fits(pattern, client), "{pattern} {client}");
        }
        for bad in ["", "a b", "../x", "a/b", "-a", "é", &"a".repeat(200)] {
            assert_eq!(bad.parse::<Pattern>(), Err(AccessError::Pattern), "{bad}");
        }
    }

    #[test]
    fn a_scope_holds_each_list_by_itself() {
        let scope = scope(&["a-*", "b"], &["/x"]);
        let client = |id: &str| scope.has_client(&id.parse().expect("an id"));
        assert!(client("a-1") && client("b") && !client("c"));
        assert!(Scope::parse(&["x y".to_owned()], &[]).is_err());
        assert!(Scope::parse(&[], &["x".to_owned()]).is_err());
        assert!(Scope::parse(&vec!["a".to_owned(); 1000], &[]).is_err());
    }

    proptest! {
        #[test]
        fn a_pattern_fits_as_a_regular_expression_would(
            pattern in "[a-c][a-c*]{0,6}", client in "[a-c]{1,8}"
        ) {
            // The same by trying every split.
            fn fits(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|at| fits(rest, &text[at..])),
                    Some((byte, rest)) => text.first() == Some(byte) && fits(rest, &text[1..]),
                }
            }
            let parsed: Pattern = pattern.parse().expect("a pattern");
            let id = client.parse().expect("an id");
            prop_assert_eq!(parsed.matches(&id), fits(pattern.as_bytes(), client.as_bytes()));
        }
    }
}
