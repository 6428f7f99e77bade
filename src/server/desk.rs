//! Where operators are served, over gRPC and HTTP alike: what one of them asks is held against its
//! scope, and passed on to the coordinator. What is out of a scope looks as if it were not there.

use std::{sync::Arc, time::Duration};

use axum::{extract::FromRequestParts, http::request::Parts};
use tokio_stream::Stream;

use super::{
    audit::{Action, Audit, Detail, Outcome},
    audited::{Audited, outcome},
    connection::Peer,
    coordinator::{Content, Coordinator, Watch, WatchQuery},
    error::Error,
    gate::Caller,
    page::Page,
    questions::Asked,
    store::{
        TransferFilter,
        credentials::{Credentials, Operator},
    },
    until_over::{UntilOver, over},
    view::{ClientView, TransferView},
};
use crate::{
    ids::{ClientId, RemotePath, TransferId},
    status::Reason,
    transfer::{Request, Transfer},
    wire::session::Explained,
};

/// What every caller is served with.
pub struct Desk {
    pub coordinator: Arc<Coordinator>,
    pub credentials: Arc<dyn Credentials>,
    pub audit: Option<Audit>,
}

/// The desk, as one caller may use it.
#[derive(Clone)]
pub struct Served {
    desk: Arc<Desk>,
    caller: Caller,
    audited: Audited,
}

impl Desk {
    /// Returns what may be done for whoever sent a request with these extensions.
    pub fn serve(self: &Arc<Self>, extensions: &http::Extensions) -> Result<Served, Error> {
        let caller = extensions.get::<Caller>().cloned();
        // The gate lets nobody through without saying who it is.
        let caller = caller.ok_or_else(|| Error::Internal("a request has no caller".to_owned()))?;
        let from = extensions.get::<Peer>().map_or_else(String::new, |peer| peer.address.clone());
        let audited = Audited::new(self.audit.clone(), &caller, from);
        Ok(Served { desk: Arc::clone(self), caller, audited })
    }
}

impl Served {
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    fn operator(&self) -> Option<&Arc<Operator>> {
        match &self.caller {
            Caller::Operator(operator) => Some(operator),
            _ => None,
        }
    }

    // === What is asked for ===

    pub async fn trigger(&self, mut request: Request) -> Result<TransferView, Error> {
        request.operator = self.operator().map(|operator| operator.name.clone());
        let mut about = vec![Detail::Client(request.client.clone())];
        about.extend(request.path.as_ref().map(|path| Detail::Path(path.as_str().to_owned())));
        let within = self.check_scope(&request.client, request.path.as_ref());
        self.or_refuse(Action::TransferTrigger, &about, within)?;
        let coordinator = Arc::clone(&self.desk.coordinator);
        let work = async move { coordinator.trigger(request).await };
        self.owned(Action::TransferTrigger, about, work).await
    }

    pub async fn cancel(&self, id: TransferId) -> Result<TransferView, Error> {
        self.change(Action::TransferCancel, id, move |desk| async move { desk.cancel(id).await })
            .await
    }

    pub async fn retry(&self, id: TransferId) -> Result<TransferView, Error> {
        self.change(Action::TransferRetry, id, move |desk| async move { desk.retry(id).await })
            .await
    }

    pub async fn pause(&self, id: TransferId) -> Result<TransferView, Error> {
        self.change(Action::TransferPause, id, move |desk| async move { desk.pause(id).await })
            .await
    }

    pub async fn resume(&self, id: TransferId) -> Result<TransferView, Error> {
        self.change(Action::TransferResume, id, move |desk| async move { desk.resume(id).await })
            .await
    }

    pub async fn delete(&self, id: TransferId) -> Result<TransferView, Error> {
        self.change(Action::TransferDelete, id, move |desk| async move { desk.delete(id).await })
            .await
    }

    /// Asks a client whether its policy lets a file be read. That it was asked is on record before.
    pub async fn explain(&self, client: ClientId, path: RemotePath) -> Result<Explained, Error> {
        let about = [Detail::Client(client.clone()), Detail::Path(path.as_str().to_owned())];
        let within = self.check_scope(&client, Some(&path));
        self.or_refuse(Action::PathExplain, &about, within)?;
        let operator = self.operator().map(|operator| operator.name.clone());
        let work = self.desk.coordinator.explain(&client, Asked { path, operator });
        self.audited.run(Action::PathExplain, &about, work).await
    }

    /// Opens the bytes of a transfer. That they were read is on record before the first one leaves.
    pub async fn content(&self, id: TransferId) -> Result<Content, Error> {
        self.check(Action::ContentRead, id).await?;
        let opened = self.desk.coordinator.content(id).await;
        let about = [Detail::Transfer(id)];
        self.audited.note(Action::ContentRead, &about, outcome(&opened)).await?;
        opened
    }

    /// Says that the caller came to see whether its credentials are good.
    pub async fn note_login(&self) -> Result<(), Error> {
        if let Some(operator) = self.operator() {
            let admitted = self.desk.coordinator.quotas.admit_login(&operator.name);
            self.or_refuse(Action::Login, &[], admitted.map_err(Error::from))?;
        }
        self.audited.note(Action::Login, &[], Outcome::Done).await
    }

    /// Returns an error unless what is asked for is in scope: the same whether it exists or not.
    fn check_scope(&self, client: &ClientId, path: Option<&RemotePath>) -> Result<(), Error> {
        let Some(scope) = self.caller.scope() else { return Ok(()) };
        if !scope.has_client(client) {
            return Err(out_of_scope("this client"));
        }
        if !scope.has_path(path) {
            return Err(out_of_scope("this path"));
        }
        Ok(())
    }

    async fn change<F>(
        &self,
        action: Action,
        id: TransferId,
        change: impl FnOnce(Arc<Coordinator>) -> F + Send + 'static,
    ) -> Result<TransferView, Error>
    where
        F: Future<Output = Result<TransferView, Error>> + Send + 'static,
    {
        self.check(action, id).await?;
        let work = change(Arc::clone(&self.desk.coordinator));
        self.owned(action, vec![Detail::Transfer(id)], work).await
    }

    /// Does something to its end, and puts it on record, even if whoever asked has gone.
    async fn owned(
        &self,
        action: Action,
        about: Vec<Detail>,
        work: impl Future<Output = Result<TransferView, Error>> + Send + 'static,
    ) -> Result<TransferView, Error> {
        let audited = self.audited.clone();
        let made = |view: &TransferView| vec![Detail::Transfer(view.transfer.id)];
        let work = async move { audited.run_and_name(action, &about, work, made).await };
        self.desk.coordinator.owned(work).await
    }

    // === What is seen ===

    pub async fn transfer(&self, id: TransferId) -> Result<TransferView, Error> {
        self.check(Action::TransferRead, id).await?;
        self.desk.coordinator.transfer(id).await
    }

    /// Returns the transfer once it has ended, or as it is after `wait`.
    pub async fn wait(&self, id: TransferId, wait: Duration) -> Result<TransferView, Error> {
        self.check(Action::TransferRead, id).await?;
        tokio::select! {
            waited = self.desk.coordinator.wait(id, wait) => waited,
            err = over(&self.caller, self.desk.credentials.as_ref()) => Err(err),
        }
    }

    /// Returns a page of what is in scope, and the token of the next one.
    pub async fn transfers(
        &self,
        filter: &TransferFilter,
        page: &Page<TransferId>,
    ) -> Result<(Vec<TransferView>, String), Error> {
        page.fill(
            |after, limit| self.desk.coordinator.transfers(filter, after, limit),
            |view| &view.transfer.id,
            TransferView::bytes,
            |view| self.has(&view.transfer),
        )
        .await
    }

    pub async fn watch(&self, mut query: WatchQuery) -> Result<Watch, Error> {
        if let Some(id) = query.transfer {
            self.check(Action::TransferRead, id).await?;
        }
        query.scope = self.caller.scope().cloned();
        let watch = self.desk.coordinator.watch(query).await?;
        Ok(Box::pin(self.until_over(watch, |err| err)))
    }

    pub async fn client(&self, id: &ClientId) -> Result<ClientView, Error> {
        let is_out = self.caller.scope().is_some_and(|scope| !scope.has_client(id));
        let within = if is_out { Err(out_of_scope("this client")) } else { Ok(()) };
        self.or_refuse(Action::ClientRead, &[Detail::Client(id.clone())], within)?;
        self.desk.coordinator.client(id).await
    }

    /// Like [`Self::transfers`].
    pub async fn clients(&self, page: &Page<ClientId>) -> Result<(Vec<ClientView>, String), Error> {
        let has = |client: &ClientId| self.caller.scope().is_none_or(|s| s.has_client(client));
        page.fill(
            |after, limit| async move {
                self.desk.coordinator.clients(after.as_ref(), limit).await
            },
            |view| &view.record.opening.client,
            ClientView::bytes,
            |view| has(&view.record.opening.client),
        )
        .await
    }

    // === How a scope is held ===

    /// Returns an error, the same as for a transfer that is not there, unless this one is in scope.
    /// On record it is what it is.
    async fn check(&self, action: Action, id: TransferId) -> Result<(), Error> {
        if self.caller.scope().is_none() {
            return Ok(());
        }
        let view = self.desk.coordinator.transfer(id).await?;
        let hidden = Error::Hidden { transfer: id, why: Reason::PermissionDenied };
        let within = if self.has(&view.transfer) { Ok(()) } else { Err(hidden) };
        self.or_refuse(action, &[], within)
    }

    /// Passes it on, and puts an error on record: as a refusal, of which nothing else is.
    fn or_refuse(
        &self,
        action: Action,
        about: &[Detail],
        judged: Result<(), Error>,
    ) -> Result<(), Error> {
        judged.inspect_err(|err| self.audited.refuse(action, about, err))
    }

    fn has(&self, transfer: &Transfer) -> bool {
        self.caller.scope().is_none_or(|scope| {
            scope.has_client(&transfer.client) && scope.has_path(transfer.path.as_ref())
        })
    }

    /// Ends a stream with an error once the caller may not read it any more: its token was revoked,
    /// or has expired.
    pub fn until_over<S: Stream<Item = Result<T, E>>, T, E>(
        &self,
        stream: S,
        err: impl FnOnce(Error) -> E + Send + 'static,
    ) -> UntilOver<S, E> {
        UntilOver::new(stream, &self.caller, &self.desk.credentials, err)
    }
}

fn out_of_scope(what: &str) -> Error {
    Error::refused(Reason::PermissionDenied, format!("{what} is not in your scope"))
}

/// A handler of HTTP takes it as an argument.
impl<S> FromRequestParts<S> for Served
where
    S: Send + Sync + AsRef<Arc<Desk>>,
{
    type Rejection = super::http_api::Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        Ok(state.as_ref().serve(&parts.extensions)?)
    }
}
