//! The records of who is who in SQLite. The rules are those of the records themselves: what is here
//! reads them, asks them, and writes what they say.

use async_trait::async_trait;

use super::SqliteStore;
use crate::{
    ids::{ClientId, OperatorName, UnixMs},
    server::store::{
        StoreError,
        credentials::{
            Changed, Credentials, Identity, JoinToken, Joined, Joining, Operator, Renewing,
            Standing,
        },
    },
    token::{Sha256, TokenId},
};

mod identities;
mod join_tokens;
mod operators;

#[async_trait]
impl Credentials for SqliteStore {
    async fn add_join_tokens(&self, tokens: &[JoinToken]) -> Result<(), StoreError> {
        self.writer.write(join_tokens::Add(tokens.to_vec())).await
    }

    async fn join_token(&self, id: &TokenId) -> Result<Option<JoinToken>, StoreError> {
        let mut reader = self.readers.acquire().await?;
        join_tokens::one(&mut reader, id).await
    }

    async fn join_tokens(
        &self,
        after: Option<&TokenId>,
        limit: u32,
    ) -> Result<Vec<JoinToken>, StoreError> {
        join_tokens::page(&self.readers, after, limit).await
    }

    async fn revoke_join_token(
        &self,
        id: &TokenId,
        at: UnixMs,
    ) -> Result<Changed<JoinToken>, StoreError> {
        self.writer.write(join_tokens::Revoke { id: id.clone(), at }).await
    }

    async fn join(&self, joining: &Joining, at: UnixMs) -> Result<Joined, StoreError> {
        self.writer.write(identities::Join { joining: joining.clone(), at }).await
    }

    async fn identity(&self, client: &ClientId) -> Result<Option<Identity>, StoreError> {
        let mut reader = self.readers.acquire().await?;
        identities::one(&mut reader, client).await
    }

    async fn identities(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<Identity>, StoreError> {
        identities::page(&self.readers, after, limit).await
    }

    async fn renew(&self, renewing: &Renewing) -> Result<Changed<Identity>, StoreError> {
        let (client, renewing) = (renewing.client.clone(), renewing.clone());
        let change = move |identity: &Identity| identity.renew(&renewing);
        self.writer.write(identities::Change { client, change }).await
    }

    async fn set_standing(
        &self,
        client: &ClientId,
        standing: Standing,
        at: UnixMs,
    ) -> Result<Changed<Identity>, StoreError> {
        let change = move |identity: &Identity| identity.set_standing(standing, at);
        self.writer.write(identities::Change { client: client.clone(), change }).await
    }

    async fn add_operator(&self, operator: &Operator) -> Result<bool, StoreError> {
        self.writer.write(operators::Add(operator.clone())).await
    }

    async fn operator(&self, name: &OperatorName) -> Result<Option<Operator>, StoreError> {
        let mut reader = self.readers.acquire().await?;
        operators::one(&mut reader, name).await
    }

    async fn operator_of_token(&self, token: &TokenId) -> Result<Option<Operator>, StoreError> {
        operators::of_token(&self.readers, token).await
    }

    async fn operators(
        &self,
        after: Option<&OperatorName>,
        limit: u32,
    ) -> Result<Vec<Operator>, StoreError> {
        operators::page(&self.readers, after, limit).await
    }

    async fn rotate_operator(
        &self,
        name: &OperatorName,
        token: &TokenId,
        hash: &Sha256,
        expires: Option<UnixMs>,
    ) -> Result<Changed<Operator>, StoreError> {
        let (token, hash) = (token.clone(), *hash);
        let change = move |operator: &Operator| operator.rotate(&token, hash, expires);
        self.writer.write(operators::Change { name: name.clone(), change }).await
    }

    async fn revoke_operator(
        &self,
        name: &OperatorName,
        at: UnixMs,
    ) -> Result<Changed<Operator>, StoreError> {
        let change = move |operator: &Operator| operator.revoke(at);
        self.writer.write(operators::Change { name: name.clone(), change }).await
    }
}
