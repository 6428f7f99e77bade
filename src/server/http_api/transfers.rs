//! `GET /transfers`, `GET /transfers/{id}`, and what is done to a transfer.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    Api, Problem,
    extract::{Named, Params},
    json::{Json, TransferJson},
};
use crate::{
    ids::{ClientId, TransferId},
    server::{error::Error, page::Page, store::TransferFilter, view::TransferView},
    transfer,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    client: Option<ClientId>,
    state: Option<transfer::State>,
    #[serde(default)]
    page_size: u32,
    #[serde(default)]
    page_token: String,
}

#[derive(Serialize)]
struct List<'a> {
    transfers: Vec<TransferJson<'a>>,
    next_page_token: String,
}

pub(super) async fn list(
    State(api): State<Api>,
    Params(query): Params<ListQuery>,
) -> Result<Response, Problem> {
    let page = Page::<TransferId>::parse(query.page_size, &query.page_token)?;
    let filter = TransferFilter { client: query.client, states: Vec::from_iter(query.state) };
    let mut views = api.coordinator.transfers(&filter, page.after, page.limit()).await?;
    let next_page_token = page.cut(&mut views, |view| &view.transfer.id, TransferView::bytes);
    let transfers = views.iter().map(Into::into).collect();
    Ok(Json(List { transfers, next_page_token }).into_response())
}

pub(super) async fn one(State(api): State<Api>, Named(id): Named<TransferId>) -> Answer {
    shown(api.coordinator.transfer(id).await)
}

pub(super) async fn cancel(State(api): State<Api>, Named(id): Named<TransferId>) -> Answer {
    shown(api.coordinator.cancel(id).await)
}

pub(super) async fn retry(State(api): State<Api>, Named(id): Named<TransferId>) -> Answer {
    shown(api.coordinator.retry(id).await)
}

pub(super) async fn pause(State(api): State<Api>, Named(id): Named<TransferId>) -> Answer {
    shown(api.coordinator.pause(id).await)
}

pub(super) async fn resume(State(api): State<Api>, Named(id): Named<TransferId>) -> Answer {
    shown(api.coordinator.resume(id).await)
}

pub(super) async fn remove(State(api): State<Api>, Named(id): Named<TransferId>) -> Answer {
    shown(api.coordinator.delete(id).await)
}

type Answer = Result<Response, Problem>;

fn shown(view: Result<TransferView, Error>) -> Answer {
    Ok(Json(TransferJson::from(&view?)).into_response())
}
