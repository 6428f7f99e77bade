//! What administrators do: who may join, who is who, who may ask. The same for the server's own
//! socket, for operators with the role admin, and for a program that holds the data directory while
//! no server runs.

use std::{sync::Arc, time::Duration};

use super::{
    access::{Pattern, Role, Scope},
    coordinator::Coordinator,
    error::Error,
    store::credentials::{Changed, Credentials, Identity, JoinToken, Operator, Standing},
    tls::Tls,
};
use crate::{
    ids::{ClientId, OperatorName, UnixMs},
    limits,
    status::Reason,
    token::{Secret, Sha256, Token, TokenError, TokenId, TokenKind},
};

mod authority;

/// The use cases.
pub struct Administration {
    pub credentials: Arc<dyn Credentials>,
    /// `None`: no server runs, so there is nothing to end.
    pub coordinator: Option<Arc<Coordinator>>,
    /// `None`: this server has no authority, and so no credentials.
    pub tls: Option<Arc<Tls>>,
}

/// How join tokens are wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// One token for each.
    pub patterns: Vec<Pattern>,
    pub uses_max: u32,
    pub ttl: Duration,
    pub needs_approval: bool,
    pub replaces: bool,
}

impl Administration {
    // === Join tokens ===

    pub async fn create_join_tokens(
        &self,
        wanted: Wanted,
        creator: &str,
    ) -> Result<Vec<(JoinToken, Secret)>, Error> {
        let invalid = |text: &str| Error::refused(Reason::InvalidArgument, text);
        if wanted.patterns.is_empty() || wanted.patterns.len() > limits::JOIN_TOKENS_PER_CALL_MAX {
            let most = limits::JOIN_TOKENS_PER_CALL_MAX;
            return Err(invalid(&format!("1 to {most} client ids, or patterns, are needed")));
        }
        if wanted.replaces && !wanted.patterns.iter().all(Pattern::is_exact) {
            return Err(invalid("a token that replaces a client names exactly one"));
        }
        if !(1..=limits::JOIN_TOKEN_USES_MAX).contains(&wanted.uses_max) {
            return Err(invalid(&format!("uses are 1 to {}", limits::JOIN_TOKEN_USES_MAX)));
        }
        let root = self.root()?;
        let now = UnixMs::now();
        let mut made = Vec::with_capacity(wanted.patterns.len());
        for pattern in wanted.patterns {
            let token = Token::generate(TokenKind::Join, root).map_err(no_random)?;
            let token = token.of_client(pattern.as_str().parse().ok());
            let record = JoinToken {
                id: token.id.clone(),
                hash: token.hash(),
                pattern,
                uses_max: wanted.uses_max,
                uses: 0,
                created: now,
                expires: now.plus(wanted.ttl),
                revoked: None,
                needs_approval: wanted.needs_approval,
                replaces: wanted.replaces,
                creator: creator.to_owned(),
            };
            made.push((record, token.reveal()));
        }
        let records: Vec<_> = made.iter().map(|(record, _)| record.clone()).collect();
        self.credentials.add_join_tokens(&records).await?;
        Ok(made)
    }

    pub async fn revoke_join_token(&self, id: &TokenId) -> Result<JoinToken, Error> {
        let changed = self.credentials.revoke_join_token(id, UnixMs::now()).await?;
        done(changed, Reason::UnknownToken, "there is no such token", |_| {
            "the token was revoked before".to_owned()
        })
    }

    // === Clients ===

    pub async fn approve(&self, client: &ClientId) -> Result<Identity, Error> {
        self.stand(client, Standing::Active).await
    }

    /// What it has running ends at once.
    pub async fn revoke(&self, client: &ClientId) -> Result<Identity, Error> {
        let stood = self.stand(client, Standing::Revoked).await;
        // Also if it was revoked before: the server may have ended before it came to this.
        if let Some(coordinator) = &self.coordinator {
            coordinator.expel(client);
        }
        stood
    }

    /// Like [`Self::revoke`], for good; what it has not delivered is cancelled.
    pub async fn delete(&self, client: &ClientId) -> Result<Identity, Error> {
        let stood = self.stand(client, Standing::Deleted).await;
        let is_deleted = match &stood {
            Err(err) => err.reason() == Reason::WrongState,
            Ok(_) => true,
        };
        if let Some(coordinator) = self.coordinator.as_ref().filter(|_| is_deleted) {
            coordinator.expel(client);
            coordinator.cancel_all(client).await?;
        }
        stood
    }

    async fn stand(&self, client: &ClientId, standing: Standing) -> Result<Identity, Error> {
        let changed = self.credentials.set_standing(client, standing, UnixMs::now()).await?;
        done(changed, Reason::UnknownClient, "no such client has ever joined", |identity| {
            format!("the client is {}", identity.standing.as_str())
        })
    }

    // === Operators ===

    pub async fn create_operator(
        &self,
        name: OperatorName,
        role: Role,
        scope: Scope,
        ttl: Option<Duration>,
    ) -> Result<(Operator, Secret), Error> {
        let token = Token::generate(TokenKind::Operator, self.root()?).map_err(no_random)?;
        let now = UnixMs::now();
        let operator = Operator {
            name,
            role,
            scope,
            token: token.id.clone(),
            hash: token.hash(),
            created: now,
            expires: ttl.map(|ttl| now.plus(ttl)),
            revoked: None,
        };
        if !self.credentials.add_operator(&operator).await? {
            let text = "this name is taken; the name of a revoked operator stays so";
            return Err(Error::refused(Reason::AlreadyExists, text));
        }
        Ok((operator, token.reveal()))
    }

    pub async fn rotate_operator(
        &self,
        name: &OperatorName,
        ttl: Option<Duration>,
    ) -> Result<(Operator, Secret), Error> {
        let token = Token::generate(TokenKind::Operator, self.root()?).map_err(no_random)?;
        let expires = ttl.map(|ttl| UnixMs::now().plus(ttl));
        let changed =
            self.credentials.rotate_operator(name, &token.id, &token.hash(), expires).await?;
        Ok((self.operator_done(changed)?, token.reveal()))
    }

    pub async fn revoke_operator(&self, name: &OperatorName) -> Result<Operator, Error> {
        let changed = self.credentials.revoke_operator(name, UnixMs::now()).await?;
        self.operator_done(changed)
    }

    #[allow(clippy::unused_self)] // one of the use cases' endings
    fn operator_done(&self, changed: Changed<Operator>) -> Result<Operator, Error> {
        done(changed, Reason::UnknownOperator, "there is no such operator", |_| {
            "the operator was revoked".to_owned()
        })
    }

    /// What a new token holds to know this server by.
    fn root(&self) -> Result<Option<Sha256>, Error> {
        self.tls.as_ref().map(|tls| tls.root()).ok_or_else(not_secured)
    }
}

fn not_secured() -> Error {
    let text = "this server asks for no credentials; run fts-server init first";
    Error::refused(Reason::WrongState, text)
}

fn done<T>(
    changed: Changed<T>,
    unknown: Reason,
    text: &str,
    wrong: impl FnOnce(&T) -> String,
) -> Result<T, Error> {
    match changed {
        Changed::Done(record) => Ok(record),
        Changed::WrongState(record) => Err(Error::refused(Reason::WrongState, wrong(&record))),
        Changed::Unknown => Err(Error::refused(unknown, text)),
    }
}

fn no_random(err: TokenError) -> Error {
    Error::Internal(err.to_string())
}
