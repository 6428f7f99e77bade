//! What administrators and the server say to each other: records of who is who, as messages, and
//! what is asked for, checked.

use std::time::Duration;

use super::{control::timestamp, proto, session::WireError};
use crate::{
    limits,
    server::{
        access::{Role, Scope},
        store::credentials::{Identity, JoinToken, Operator, Standing},
    },
};

// === To messages ===

impl From<Role> for proto::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Metrics => Self::Metrics,
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

impl From<Scope> for proto::Scope {
    fn from(scope: Scope) -> Self {
        Self {
            clients: scope.clients.into_iter().map(Into::into).collect(),
            paths: scope.paths.iter().map(|path| path.as_str().to_owned()).collect(),
        }
    }
}

impl From<Standing> for proto::Standing {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Active => Self::Active,
            Standing::Pending => Self::Pending,
            Standing::Revoked => Self::Revoked,
            Standing::Deleted => Self::Deleted,
        }
    }
}

impl From<JoinToken> for proto::JoinToken {
    fn from(token: JoinToken) -> Self {
        Self {
            id: token.id.to_string(),
            pattern: token.pattern.into(),
            uses_max: token.uses_max,
            uses: token.uses,
            create_time: Some(timestamp(token.created)),
            expire_time: Some(timestamp(token.expires)),
            revoke_time: token.revoked.map(timestamp),
            needs_approval: token.needs_approval,
            replaces: token.replaces,
            creator: token.creator,
        }
    }
}

impl From<Identity> for proto::Identity {
    fn from(identity: Identity) -> Self {
        Self {
            client_id: identity.client.as_str().to_owned(),
            standing: proto::Standing::from(identity.standing).into(),
            join_time: Some(timestamp(identity.joined)),
            standing_time: Some(timestamp(identity.standing_since)),
            certificate_expire_time: Some(timestamp(identity.expires)),
            key_fingerprint: identity.key.to_string(),
            join_token_id: identity.token.to_string(),
            host_name: identity.host_name,
        }
    }
}

impl From<Operator> for proto::Operator {
    fn from(operator: Operator) -> Self {
        Self {
            name: operator.name.to_string(),
            role: proto::Role::from(operator.role).into(),
            scope: Some(operator.scope.into()),
            token_id: operator.token.to_string(),
            create_time: Some(timestamp(operator.created)),
            expire_time: operator.expires.map(timestamp),
            revoke_time: operator.revoked.map(timestamp),
        }
    }
}

// === From messages ===

/// Reads a role; none is an error, because each guess could grant too much.
pub fn role(number: i32) -> Result<Role, WireError> {
    match proto::Role::try_from(number) {
        Ok(proto::Role::Metrics) => Ok(Role::Metrics),
        Ok(proto::Role::Viewer) => Ok(Role::Viewer),
        Ok(proto::Role::Operator) => Ok(Role::Operator),
        Ok(proto::Role::Admin) => Ok(Role::Admin),
        Ok(proto::Role::Unspecified) | Err(_) => Err(WireError::Missing("role")),
    }
}

/// Reads for how long a credential is good.
pub fn ttl(
    wait: Option<prost_types::Duration>,
    max: Duration,
) -> Result<Option<Duration>, WireError> {
    let Some(wait) = wait else { return Ok(None) };
    let wait = Duration::try_from(wait).map_err(|_| WireError::Range("ttl"))?;
    if wait < limits::TTL_MIN || wait > max {
        return Err(WireError::Range("ttl"));
    }
    Ok(Some(wait))
}
