//! `GET /transfers`, `GET /transfers/{id}`, and what is done to a transfer.

use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};

use super::{
    Problem,
    extract::{Named, Params},
    json::{Json, TransferJson},
};
use crate::{
    ids::{ClientId, TransferId},
    server::{desk::Served, error::Error, page::Page, store::TransferFilter, view::TransferView},
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
    desk: Served,
    Params(query): Params<ListQuery>,
) -> Result<Response, Problem> {
    let page = Page::<TransferId>::parse(query.page_size, &query.page_token)?;
    let filter = TransferFilter { client: query.client, states: Vec::from_iter(query.state) };
    let (views, next_page_token) = desk.transfers(&filter, &page).await?;
    let transfers = views.iter().map(Into::into).collect();
    Ok(Json(List { transfers, next_page_token }).into_response())
}

pub(super) async fn one(desk: Served, Named(id): Named<TransferId>) -> Answer {
    shown(desk.transfer(id).await)
}

pub(super) async fn cancel(desk: Served, Named(id): Named<TransferId>) -> Answer {
    shown(desk.cancel(id).await)
}

pub(super) async fn retry(desk: Served, Named(id): Named<TransferId>) -> Answer {
    shown(desk.retry(id).await)
}

pub(super) async fn pause(desk: Served, Named(id): Named<TransferId>) -> Answer {
    shown(desk.pause(id).await)
}

pub(super) async fn resume(desk: Served, Named(id): Named<TransferId>) -> Answer {
    shown(desk.resume(id).await)
}

pub(super) async fn remove(desk: Served, Named(id): Named<TransferId>) -> Answer {
    shown(desk.delete(id).await)
}

type Answer = Result<Response, Problem>;

fn shown(view: Result<TransferView, Error>) -> Answer {
    Ok(Json(TransferJson::from(&view?)).into_response())
}
