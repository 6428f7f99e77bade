//! The records of who is who, in memory.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::MemoryStore;
use crate::{
    ids::{ClientId, OperatorName, UnixMs},
    server::store::{
        StoreError,
        credentials::{
            Changed, Credentials, Identity, JoinRefusal, JoinToken, Joined, Joining, Operator,
            Renewing, Standing,
        },
    },
    token::{Sha256, TokenId},
};

/// Changes a record, if `change` returns what it is then.
fn changed<T: Clone>(record: Option<&mut T>, change: impl FnOnce(&T) -> Option<T>) -> Changed<T> {
    let Some(record) = record else { return Changed::Unknown };
    let Some(after) = change(record) else { return Changed::WrongState(record.clone()) };
    record.clone_from(&after);
    Changed::Done(after)
}

/// What the unique keys of a database would say.
fn taken(id: &TokenId) -> StoreError {
    StoreError::Unavailable(format!("token {id} is there already").into())
}

#[async_trait]
impl Credentials for MemoryStore {
    async fn add_join_tokens(&self, tokens: &[JoinToken]) -> Result<(), StoreError> {
        let mut records = self.records();
        let mut new = BTreeSet::new();
        for JoinToken { id, .. } in tokens {
            if records.join_tokens.contains_key(id) || !new.insert(id) {
                return Err(taken(id));
            }
        }
        records.join_tokens.extend(tokens.iter().map(|token| (token.id.clone(), token.clone())));
        Ok(())
    }

    async fn join_token(&self, id: &TokenId) -> Result<Option<JoinToken>, StoreError> {
        Ok(self.records().join_tokens.get(id).cloned())
    }

    async fn join_tokens(
        &self,
        after: Option<&TokenId>,
        limit: u32,
    ) -> Result<Vec<JoinToken>, StoreError> {
        let records = self.records();
        let later = records.join_tokens.values().filter(|t| after.is_none_or(|id| t.id > *id));
        Ok(later.take(limit as usize).cloned().collect())
    }

    async fn revoke_join_token(
        &self,
        id: &TokenId,
        at: UnixMs,
    ) -> Result<Changed<JoinToken>, StoreError> {
        Ok(changed(self.records().join_tokens.get_mut(id), |token| token.revoke(at)))
    }

    async fn join(&self, joining: &Joining, at: UnixMs) -> Result<Joined, StoreError> {
        let mut records = self.records();
        let Some(token) = records.join_tokens.get(&joining.token) else {
            return Ok(Joined::Refused(JoinRefusal::Token));
        };
        let held = records.identities.get(&joining.client);
        let (used, identity) = match token.admit(joining, held, at) {
            Ok(admitted) => admitted,
            Err(refusal) => return Ok(Joined::Refused(refusal)),
        };
        records.join_tokens.insert(used.id.clone(), used);
        records.identities.insert(identity.client.clone(), identity.clone());
        Ok(Joined::Done(identity))
    }

    async fn identity(&self, client: &ClientId) -> Result<Option<Identity>, StoreError> {
        Ok(self.records().identities.get(client).cloned())
    }

    async fn identities(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<Identity>, StoreError> {
        let records = self.records();
        let later = records.identities.values().filter(|i| after.is_none_or(|id| i.client > *id));
        Ok(later.take(limit as usize).cloned().collect())
    }

    async fn renew(&self, renewing: &Renewing) -> Result<Changed<Identity>, StoreError> {
        let mut records = self.records();
        let held = records.identities.get_mut(&renewing.client);
        Ok(changed(held, |held| held.renew(renewing)))
    }

    async fn set_standing(
        &self,
        client: &ClientId,
        standing: Standing,
        at: UnixMs,
    ) -> Result<Changed<Identity>, StoreError> {
        let mut records = self.records();
        Ok(changed(records.identities.get_mut(client), |held| held.set_standing(standing, at)))
    }

    async fn add_operator(&self, operator: &Operator) -> Result<bool, StoreError> {
        let mut records = self.records();
        if records.operators.contains_key(&operator.name) {
            return Ok(false);
        }
        if records.operators.values().any(|other| other.token == operator.token) {
            return Err(taken(&operator.token));
        }
        records.operators.insert(operator.name.clone(), operator.clone());
        Ok(true)
    }

    async fn operator(&self, name: &OperatorName) -> Result<Option<Operator>, StoreError> {
        Ok(self.records().operators.get(name).cloned())
    }

    async fn operator_of_token(&self, token: &TokenId) -> Result<Option<Operator>, StoreError> {
        Ok(self.records().operators.values().find(|operator| operator.token == *token).cloned())
    }

    async fn operators(
        &self,
        after: Option<&OperatorName>,
        limit: u32,
    ) -> Result<Vec<Operator>, StoreError> {
        let records = self.records();
        let later = records.operators.values().filter(|o| after.is_none_or(|name| o.name > *name));
        Ok(later.take(limit as usize).cloned().collect())
    }

    async fn rotate_operator(
        &self,
        name: &OperatorName,
        token: &TokenId,
        hash: &Sha256,
        expires: Option<UnixMs>,
    ) -> Result<Changed<Operator>, StoreError> {
        let mut records = self.records();
        let is_others = |other: &Operator| other.token == *token && other.name != *name;
        let is_taken = records.operators.values().any(is_others);
        let Some(operator) = records.operators.get_mut(name) else { return Ok(Changed::Unknown) };
        if is_taken && operator.revoked.is_none() {
            return Err(taken(token));
        }
        Ok(changed(Some(operator), |operator| operator.rotate(token, *hash, expires)))
    }

    async fn revoke_operator(
        &self,
        name: &OperatorName,
        at: UnixMs,
    ) -> Result<Changed<Operator>, StoreError> {
        Ok(changed(self.records().operators.get_mut(name), |operator| operator.revoke(at)))
    }
}
