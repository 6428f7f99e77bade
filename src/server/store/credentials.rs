//! The records of who is who: join tokens, identities of clients, operators. A trait of its own
//! beside [`super::Store`]; one database holds both.

use async_trait::async_trait;
use uuid::Uuid;

use super::StoreError;
use crate::{
    ids::{ClientId, OperatorName, UnixMs},
    server::access::{Pattern, Role, Scope},
    token::{Sha256, TokenId},
};

/// What a machine joins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub id: TokenId,
    pub hash: Sha256,
    /// The client ids that it is good for.
    pub pattern: Pattern,
    pub uses_max: u32,
    pub uses: u32,
    pub created: UnixMs,
    pub expires: UnixMs,
    pub revoked: Option<UnixMs>,
    /// Who joins by it waits for an approval.
    pub needs_approval: bool,
    /// It may replace an identity. Its pattern is exact.
    pub replaces: bool,
    /// Who made it, for people.
    pub creator: String,
}

impl JoinToken {
    /// Returns the token used once more and who joins by it, in place of the identity that is
    /// `held` under the id. Whoever asks again because the answer was lost, with the same key, has
    /// it for the use that is gone already.
    pub(in crate::server) fn admit(
        &self,
        joining: &Joining,
        held: Option<&Identity>,
        at: UnixMs,
    ) -> Result<(Self, Identity), JoinRefusal> {
        if !self.is_good(at) {
            return Err(JoinRefusal::Token);
        }
        if let Some(held) = held.filter(|held| held.is_of(joining)) {
            return Ok((
                self.clone(),
                Identity { begins: joining.begins, expires: joining.expires, ..held.clone() },
            ));
        }
        if self.is_used_up() {
            return Err(JoinRefusal::Token);
        }
        if !self.pattern.matches(&joining.client) {
            return Err(JoinRefusal::Pattern);
        }
        match held.map(|identity| identity.standing) {
            Some(Standing::Deleted) => return Err(JoinRefusal::Deleted),
            Some(_) if !self.replaces => return Err(JoinRefusal::Taken),
            _ => {}
        }
        let identity = Identity {
            client: joining.client.clone(),
            uid: joining.uid,
            standing: if self.needs_approval { Standing::Pending } else { Standing::Active },
            standing_since: at,
            joined: at,
            token: self.id.clone(),
            key: joining.key,
            previous_key: None,
            displaced_key: None,
            begins: joining.begins,
            expires: joining.expires,
            host_name: joining.host_name.clone(),
        };
        Ok((Self { uses: self.uses + 1, ..self.clone() }, identity))
    }

    /// Whether it was not revoked, and has not expired.
    pub fn is_good(&self, at: UnixMs) -> bool {
        self.revoked.is_none() && at < self.expires
    }

    pub fn is_used_up(&self) -> bool {
        self.uses >= self.uses_max
    }

    /// Returns it as it is once revoked; `None` if it was before.
    pub(super) fn revoke(&self, at: UnixMs) -> Option<Self> {
        self.revoked.is_none().then(|| Self { revoked: Some(at), ..self.clone() })
    }
}

/// How an identity stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Active,
    Pending,
    Revoked,
    /// For good: nobody can join under this id again.
    Deleted,
}

impl Standing {
    pub const ALL: [Self; 4] = [Self::Active, Self::Pending, Self::Revoked, Self::Deleted];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Pending => "PENDING",
            Self::Revoked => "REVOKED",
            Self::Deleted => "DELETED",
        }
    }
}

/// Who a client is. A client id has one, and a certificate names it by `uid`: so a certificate of
/// an identity that was replaced is good for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub client: ClientId,
    pub uid: Uuid,
    pub standing: Standing,
    pub standing_since: UnixMs,
    pub joined: UnixMs,
    /// The token that it came by.
    pub token: TokenId,
    /// Of the public key (`SubjectPublicKeyInfo`, DER) of its latest certificate.
    pub key: Sha256,
    /// Of the certificate that this one was renewed with: good for a renewal, because the answer
    /// may have been lost.
    pub previous_key: Option<Sha256>,
    /// Of a certificate that came of the same one as the latest did: of two answers, one of which
    /// was lost, nobody here knows which.
    pub displaced_key: Option<Sha256>,
    /// When its latest certificate begins to hold, and expires.
    pub begins: UnixMs,
    pub expires: UnixMs,
    /// As it said when it joined; for people.
    pub host_name: String,
}

impl Identity {
    /// Whether it is what `joining` was given already.
    fn is_of(&self, joining: &Joining) -> bool {
        (&self.token, self.key) == (&joining.token, joining.key) && self.is_in_use()
    }

    /// Whether it may have certificates.
    pub fn is_in_use(&self) -> bool {
        matches!(self.standing, Standing::Active | Standing::Pending)
    }

    /// Whether a certificate of this identity, with this key, may be renewed: the latest, or the
    /// one before. One that begins later than the latest is of records that were lost since: they
    /// are of a backup.
    pub fn may_renew(&self, key: &Sha256, begins: UnixMs) -> bool {
        let keys = [Some(&self.key), self.previous_key.as_ref(), self.displaced_key.as_ref()];
        keys.contains(&Some(key)) || begins > self.begins
    }

    /// Returns it with another certificate; `None` if it may have none, or is another's.
    pub(super) fn renew(&self, renewing: &Renewing) -> Option<Self> {
        let may = self.is_in_use()
            && self.uid == renewing.uid
            && self.may_renew(&renewing.shown, renewing.shown_begins);
        let is_again = self.previous_key == Some(renewing.shown);
        may.then(|| Self {
            key: renewing.key,
            previous_key: Some(renewing.shown),
            displaced_key: is_again.then_some(self.key),
            begins: renewing.begins,
            expires: renewing.expires,
            ..self.clone()
        })
    }

    /// Returns it as it stands from now on; `None` if it cannot from where it stands.
    pub(super) fn set_standing(&self, standing: Standing, at: UnixMs) -> Option<Self> {
        let may = match standing {
            Standing::Pending => false,
            Standing::Active => self.standing == Standing::Pending,
            Standing::Revoked => matches!(self.standing, Standing::Active | Standing::Pending),
            Standing::Deleted => self.standing != Standing::Deleted,
        };
        may.then(|| Self { standing, standing_since: at, ..self.clone() })
    }
}

/// Who wants to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    pub token: TokenId,
    pub client: ClientId,
    /// Of the identity that it will be.
    pub uid: Uuid,
    pub key: Sha256,
    pub begins: UnixMs,
    pub expires: UnixMs,
    pub host_name: String,
}

/// Who wants another certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewing {
    pub client: ClientId,
    pub uid: Uuid,
    /// Of the certificate that was shown.
    pub shown: Sha256,
    pub shown_begins: UnixMs,
    /// Of the new one.
    pub key: Sha256,
    pub begins: UnixMs,
    pub expires: UnixMs,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // There is one at a time.
pub enum Joined {
    /// The token was used once more, and this is the identity: ACTIVE, or PENDING.
    Done(Identity),
    Refused(JoinRefusal),
}

/// Why nobody joined. Nothing was changed, and no use of the token is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// No such token; revoked; expired; used up: the caller is told no more.
    #[error("the join token is not good, or no longer")]
    Token,
    #[error("the join token is not good for this client id")]
    Pattern,
    /// Another machine holds the id, or held it; only a token that says so may replace it.
    #[error(
        "this client id is taken; an administrator can make a token that replaces it: \
         fts-server token create --id ID --replace"
    )]
    Taken,
    #[error("this client id was deleted, and can never be used again")]
    Deleted,
}

/// Who may call `fts.v1.Control`, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    pub name: OperatorName,
    pub role: Role,
    pub scope: Scope,
    pub token: TokenId,
    pub hash: Sha256,
    pub created: UnixMs,
    /// `None`: never.
    pub expires: Option<UnixMs>,
    pub revoked: Option<UnixMs>,
}

impl Operator {
    /// Returns it with another token; `None` if it is revoked.
    pub(super) fn rotate(
        &self,
        token: &TokenId,
        hash: Sha256,
        expires: Option<UnixMs>,
    ) -> Option<Self> {
        let token = token.clone();
        self.revoked.is_none().then(|| Self { token, hash, expires, ..self.clone() })
    }

    /// Returns it as it is once revoked; `None` if it was before.
    pub(super) fn revoke(&self, at: UnixMs) -> Option<Self> {
        self.revoked.is_none().then(|| Self { revoked: Some(at), ..self.clone() })
    }
}

/// What became of a change that names one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed<T> {
    /// As it is now.
    Done(T),
    /// Not possible as it stands; nothing was changed.
    WrongState(T),
    Unknown,
}

/// The durable records of who is who. Every verb is one transaction; when it returns `Ok`, its
/// change is on stable storage.
#[async_trait]
pub trait Credentials: Send + Sync + 'static {
    // === Join tokens ===

    /// Writes new tokens, all of them or none.
    async fn add_join_tokens(&self, tokens: &[JoinToken]) -> Result<(), StoreError>;

    async fn join_token(&self, id: &TokenId) -> Result<Option<JoinToken>, StoreError>;

    /// Returns tokens by id, after `after`, at most `limit`.
    async fn join_tokens(
        &self,
        after: Option<&TokenId>,
        limit: u32,
    ) -> Result<Vec<JoinToken>, StoreError>;

    /// Nobody joins by it any more. `WrongState`: it was revoked before.
    async fn revoke_join_token(
        &self,
        id: &TokenId,
        at: UnixMs,
    ) -> Result<Changed<JoinToken>, StoreError>;

    /// Uses a token once, and makes the identity. Of any number of callers that race for the last
    /// use, one joins.
    ///
    /// An identity that exists is replaced (new `uid`, `joined` and the rest) only by a token that
    /// `replaces`, and never when it is DELETED. The same token and key once more are the same
    /// join: it takes no use, and changes nothing but the times of the certificate; the answer has
    /// the `uid` that the identity has.
    async fn join(&self, joining: &Joining, at: UnixMs) -> Result<Joined, StoreError>;

    // === Identities ===

    async fn identity(&self, client: &ClientId) -> Result<Option<Identity>, StoreError>;

    /// Returns identities by client id, after `after`, at most `limit`.
    async fn identities(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<Identity>, StoreError>;

    /// Notes a new certificate of this very identity. `WrongState`: it is not ACTIVE or PENDING,
    /// has another `uid`, or the certificate that was shown may not be renewed any more.
    async fn renew(&self, renewing: &Renewing) -> Result<Changed<Identity>, StoreError>;

    /// Sets the standing: PENDING → ACTIVE; ACTIVE, PENDING → REVOKED; all but DELETED → DELETED.
    /// Anything else is `WrongState`.
    async fn set_standing(
        &self,
        client: &ClientId,
        standing: Standing,
        at: UnixMs,
    ) -> Result<Changed<Identity>, StoreError>;

    // === Operators ===

    /// Writes a new operator; returns whether the name was free. The name of a revoked one is not.
    async fn add_operator(&self, operator: &Operator) -> Result<bool, StoreError>;

    async fn operator(&self, name: &OperatorName) -> Result<Option<Operator>, StoreError>;

    async fn operator_of_token(&self, token: &TokenId) -> Result<Option<Operator>, StoreError>;

    /// Returns operators by name, after `after`, at most `limit`.
    async fn operators(
        &self,
        after: Option<&OperatorName>,
        limit: u32,
    ) -> Result<Vec<Operator>, StoreError>;

    /// Gives an operator another token. `WrongState`: it is revoked.
    async fn rotate_operator(
        &self,
        name: &OperatorName,
        token: &TokenId,
        hash: &Sha256,
        expires: Option<UnixMs>,
    ) -> Result<Changed<Operator>, StoreError>;

    /// `WrongState`: it was revoked before.
    async fn revoke_operator(
        &self,
        name: &OperatorName,
        at: UnixMs,
    ) -> Result<Changed<Operator>, StoreError>;
}
