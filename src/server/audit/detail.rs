//! What an entry was about.

use std::{collections::BTreeMap, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::entry::Action;
use crate::{
    audit_head::AuditHead,
    ids::{ClientId, InstanceId, OperatorName, SessionEpoch, TransferId, UnixMs, bounded},
    limits,
    server::access::{Pattern, Role, Scope},
    token::TokenId,
};

/// What it was about. An entry has each of these at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    Client(ClientId),
    /// A path as it was asked for, good or not.
    Path(String),
    Transfer(TransferId),
    Token(TokenId),
    Operator(OperatorName),
    Role(Role),
    Scope(Scope),
    /// Join tokens that were made together.
    Tokens(Vec<TokenId>),
    /// The client ids that tokens are good for.
    Patterns(Vec<Pattern>),
    Uses(u32),
    /// A join token takes the place of a client that joined before.
    Replaces(bool),
    /// Who joins waits until an administrator has approved.
    Approval(bool),
    Ttl(Duration),
    Expires(UnixMs),
    /// An instance of a client: as much of its id as tells it from others.
    Instance(InstanceId),
    Session(SessionEpoch),
    /// Where the client's own audit stands, as it says.
    AuditHead(AuditHead),
    Bytes(u64),
    Offset(u64),
    /// The method of a request, as gRPC or HTTP names it.
    Method(String),
    Host(String),
    /// A file of the audit.
    File(String),
    LeftOut(BTreeMap<Action, u64>),
    /// For people.
    Text(String),
}

impl Detail {
    pub(super) fn key(&self) -> &'static str {
        match self {
            Self::Client(_) => "client",
            Self::Path(_) => "path",
            Self::Transfer(_) => "transfer",
            Self::Token(_) => "token",
            Self::Operator(_) => "operator",
            Self::Role(_) => "role",
            Self::Scope(_) => "scope",
            Self::Tokens(_) => "tokens",
            Self::Patterns(_) => "patterns",
            Self::Uses(_) => "uses",
            Self::Replaces(_) => "replaces",
            Self::Approval(_) => "approval",
            Self::Ttl(_) => "ttl_seconds",
            Self::Instance(_) => "instance",
            Self::Session(_) => "session",
            Self::AuditHead(_) => "audit_head",
            Self::Expires(_) => "expires",
            Self::Bytes(_) => "bytes",
            Self::Offset(_) => "offset",
            Self::Method(_) => "method",
            Self::Host(_) => "host",
            Self::File(_) => "file",
            Self::LeftOut(_) => "left_out",
            Self::Text(_) => "text",
        }
    }

    pub(super) fn bounded(self) -> Self {
        match self {
            Self::Path(path) => Self::Path(bounded(path, limits::PATH_BYTES_MAX)),
            Self::Method(method) => Self::Method(bounded(method, limits::LABEL_BYTES_MAX)),
            Self::Host(host) => Self::Host(bounded(host, limits::LABEL_BYTES_MAX)),
            Self::File(file) => Self::File(bounded(file, limits::LABEL_BYTES_MAX)),
            Self::Text(text) => Self::Text(bounded(text, limits::DETAIL_BYTES_MAX)),
            other => other,
        }
    }
}

impl Serialize for Detail {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Client(client) => serializer.serialize_str(client.as_str()),
            Self::Transfer(transfer) => serializer.collect_str(transfer),
            Self::Token(token) => serializer.serialize_str(token.as_str()),
            Self::Operator(name) => serializer.serialize_str(name.as_str()),
            Self::Role(role) => serializer.serialize_str(role.as_str()),
            Self::Tokens(tokens) => {
                listed(tokens.iter().map(TokenId::as_str)).serialize(serializer)
            }
            Self::Patterns(patterns) => {
                listed(patterns.iter().map(Pattern::as_str)).serialize(serializer)
            }
            Self::Uses(uses) => serializer.serialize_u32(*uses),
            Self::Replaces(is) | Self::Approval(is) => serializer.serialize_bool(*is),
            Self::Ttl(ttl) => serializer.serialize_u64(ttl.as_secs()),
            Self::Instance(instance) => serializer.serialize_str(&instance.short()),
            Self::Session(epoch) => serializer.serialize_u64(epoch.0),
            Self::AuditHead(head) => head.serialize(serializer),
            Self::Expires(at) => serializer.serialize_str(&at.rfc3339()),
            Self::Bytes(number) | Self::Offset(number) => serializer.serialize_u64(*number),
            Self::LeftOut(counts) => serializer
                .collect_map(counts.iter().map(|(action, count)| (action.as_str(), count))),
            Self::Path(text)
            | Self::Method(text)
            | Self::Host(text)
            | Self::File(text)
            | Self::Text(text) => serializer.serialize_str(text),
            Self::Scope(scope) => {
                let mut map = serializer.serialize_map(Some(2))?;
                let clients = scope.clients.iter().map(Pattern::as_str);
                map.serialize_entry("clients", &listed(clients))?;
                let paths = scope.paths.iter().map(crate::ids::RemotePath::as_str);
                map.serialize_entry("paths", &listed(paths))?;
                map.end()
            }
        }
    }
}

/// As many of them as a line has room for, and how many more there are.
fn listed<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut room = limits::AUDIT_LIST_BYTES_MAX;
    let mut kept = Vec::new();
    let mut left_out = 0_u32;
    for text in texts {
        if left_out == 0 && text.len() <= room {
            room -= text.len();
            kept.push(text.to_owned());
        } else {
            left_out += 1;
        }
    }
    if left_out > 0 {
        kept.push(format!("… and {left_out} more"));
    }
    kept
}
