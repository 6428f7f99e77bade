//! `GET /clients`, `GET /clients/{id}`.

use axum::{extract::State, response::IntoResponse};
use serde::{Deserialize, Serialize};

use super::{
    Api, Problem,
    extract::{Named, Params},
    json::{ClientJson, Json},
};
use crate::{
    ids::ClientId,
    server::{page::Page, view::ClientView},
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
    State(api): State<Api>,
    Params(query): Params<ListQuery>,
) -> Result<impl IntoResponse, Problem> {
    let page = Page::<ClientId>::parse(query.page_size, &query.page_token)?;
    let mut views = api.coordinator.clients(page.after.as_ref(), page.limit()).await?;
    let next_page_token =
        page.cut(&mut views, |view| &view.record.opening.client, ClientView::bytes);
    let clients = views.iter().map(Into::into).collect();
    Ok(Json(List { clients, next_page_token }).into_response())
}

pub(super) async fn one(
    State(api): State<Api>,
    Named(id): Named<ClientId>,
) -> Result<impl IntoResponse, Problem> {
    let view = api.coordinator.client(&id).await?;
    Ok(Json(ClientJson::from(&view)).into_response())
}
