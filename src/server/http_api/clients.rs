//! `GET /clients`, `GET /clients/{id}`.

use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};

use super::{
    Problem,
    extract::{Named, Params},
    json::{ClientJson, Json},
};
use crate::{
    ids::ClientId,
    server::{desk::Served, page::Page},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    page_size: u32,
    #[serde(default)]
    page_token: String,
}

#[derive(Serialize)]
struct List<'a> {
    clients: Vec<ClientJson<'a>>,
    next_page_token: String,
}

pub(super) async fn list(
    desk: Served,
    Params(query): Params<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let page = Page::<ClientId>::parse(query.page_size, &query.page_token)?;
    let (views, next_page_token) = desk.clients(&page).await?;
    let clients = views.iter().map(Into::into).collect();
    Ok(Json(List { clients, next_page_token }).into_response())
}

pub(super) async fn one(
    desk: Served,
    Named(id): Named<ClientId>,
) -> Result<impl IntoResponse, Problem> {
    let view = desk.client(&id).await?;
    Ok(Json(ClientJson::from(&view)).into_response())
}
