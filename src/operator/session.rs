//! `login`, `logout`, `whoami`, `audit`: who the operator is to the server.

use std::{path::Path, time::Duration};

use tokio_stream::StreamExt as _;

use super::{
    Context,
    config::Settings,
    connection::Connection,
    error::Error,
    login::{self, Bearer, Login},
    output::Output,
};
use crate::{
    ids::UnixMs,
    token::{Token, TokenKind},
    wire::proto::{ReadAuditRequest, Role, WhoAmIResponse},
};

/// Keeps a token, once the server has said that it is good.
pub(super) async fn login(mut settings: Settings, output: &Output) -> Result<(), Error> {
    let path = login::file()
        .ok_or_else(|| Error::Failed("neither XDG_CONFIG_HOME nor HOME is set".to_owned()))?;
    let address = settings.server.to_string();
    let secret = if let Some(secret) = settings.token.take() {
        secret
    } else {
        let asked = address.clone();
        // Somebody types.
        let typed = tokio::task::spawn_blocking(move || login::ask(&asked)).await;
        typed.map_err(|err| Error::Failed(err.to_string()))?.map_err(Error::Failed)?
    };
    let token = Token::parse(secret.reveal(), TokenKind::Operator);
    let token = token.map_err(|err| Error::Failed(err.to_string()))?;
    settings.token = Some(secret);
    let route = settings.route().map_err(|err| Error::Failed(err.to_string()))?;
    let connection = Connection::new(&route, Bearer::new(settings.token.as_ref()));
    let who = connection.who_am_i().await?;
    let ca = settings.ca.as_deref().map(std::path::absolute).transpose();
    let ca = ca.map_err(|err| Error::Failed(err.to_string()))?;
    let kept = Login::new(address.clone(), &token, ca);
    kept.write(&path)
        .map_err(|err| Error::Failed(format!("cannot write {}: {err}", path.display())))?;
    output.note(&format!("logged in to {address} as {}", named(&who))).await;
    Ok(())
}

pub(super) async fn logout(context: &Context) -> Result<(), Error> {
    let Some(path) = login::file() else { return Ok(()) };
    let removed = |path: &Path| match std::fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    };
    removed(&path)
        .map_err(|err| Error::Failed(format!("cannot remove {}: {err}", path.display())))?;
    context.output.note("the token is forgotten here; the server still takes it").await;
    Ok(())
}

pub(super) async fn whoami(context: &Context) -> Result<(), Error> {
    let who = context.connection.who_am_i().await?;
    context.output.line(&named(&who)).await
}

pub(super) async fn audit(context: &Context, since: Option<Duration>) -> Result<(), Error> {
    let since = since.map(|ago| {
        let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
        let at = UnixMs::now().0.saturating_sub(ago);
        prost_types::Timestamp { seconds: at.div_euclid(1000), nanos: 0 }
    });
    let mut lines = context.connection.audit(ReadAuditRequest { since }).await?;
    while let Some(line) = lines.next().await {
        let line = line.map_err(|status| context.connection.error(&status))?;
        context.output.line(&line.line).await?;
    }
    Ok(())
}

fn named(who: &WhoAmIResponse) -> String {
    let role = match who.role() {
        Role::Metrics => "metrics",
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
        Role::Unspecified => "unknown",
    };
    if who.name.is_empty() {
        return "anyone (the server asks for no credentials)".to_owned();
    }
    let scope = who.scope.clone().unwrap_or_default();
    let mut parts = vec![format!("{} (role {role})", who.name)];
    if !scope.clients.is_empty() {
        parts.push(format!("clients {}", scope.clients.join(" ")));
    }
    if !scope.paths.is_empty() {
        parts.push(format!("paths {}", scope.paths.join(" ")));
    }
    parts.join(", ")
}
