//! What the commands print: a secret alone on its line, records as columns.

use std::{
    io::{self, Write},
    time::{Duration, UNIX_EPOCH},
};

use crate::wire::proto;

/// Prints new tokens; one by itself, several with what they are good for.
pub(super) fn created(
    out: &mut impl Write,
    tokens: &[proto::CreatedJoinToken],
    is_alone: bool,
) -> io::Result<()> {
    for made in tokens {
        match &made.token {
            Some(token) if !is_alone => writeln!(out, "{} {}", token.pattern, made.text)?,
            _ => writeln!(out, "{}", made.text)?,
        }
    }
    out.flush()
}

/// Prints an operator's new token.
pub(super) fn operator_token(
    out: &mut impl Write,
    operator: Option<&proto::Operator>,
    token: &str,
) -> io::Result<()> {
    if let Some(operator) = operator {
        tracing::debug!(operator = operator.name, token = operator.token_id, "made a token");
    }
    writeln!(out, "{token}")?;
    out.flush()
}

pub(super) fn join_tokens(out: &mut impl Write, tokens: &[proto::JoinToken]) -> io::Result<()> {
    let rows = tokens.iter().map(|token| {
        let state = match (&token.revoke_time, token.uses >= token.uses_max) {
            (Some(_), _) => "revoked",
            (None, true) => "used",
            (None, false) if is_past(token.expire_time.as_ref()) => "expired",
            (None, false) => "good",
        };
        let mut flags = Vec::new();
        flags.extend(token.needs_approval.then_some("approve"));
        flags.extend(token.replaces.then_some("replace"));
        vec![
            token.id.clone(),
            token.pattern.clone(),
            format!("{}/{}", token.uses, token.uses_max),
            state.to_owned(),
            time(token.expire_time.as_ref()),
            flags.join(","),
            token.creator.clone(),
        ]
    });
    table(out, &["ID", "FOR", "USES", "STATE", "EXPIRES", "FLAGS", "MADE BY"], rows.collect())
}

pub(super) fn identities(out: &mut impl Write, identities: &[proto::Identity]) -> io::Result<()> {
    let rows = identities.iter().map(|identity| {
        let standing = identity.standing().as_str_name().trim_start_matches("STANDING_");
        vec![
            identity.client_id.clone(),
            standing.to_ascii_lowercase(),
            time(identity.join_time.as_ref()),
            time(identity.certificate_expire_time.as_ref()),
            // A client's own text.
            identity.host_name.escape_default().to_string(),
            identity.join_token_id.clone(),
        ]
    });
    let head = ["CLIENT", "STANDING", "JOINED", "CERTIFICATE EXPIRES", "HOST", "JOINED BY"];
    table(out, &head, rows.collect())
}

pub(super) fn operators(out: &mut impl Write, operators: &[proto::Operator]) -> io::Result<()> {
    let rows = operators.iter().map(|operator| {
        let role = operator.role().as_str_name().trim_start_matches("ROLE_");
        let scope = operator.scope.clone().unwrap_or_default();
        let or_all = |list: &[String]| {
            if list.is_empty() { "all".to_owned() } else { list.join(",") }
        };
        let state = match &operator.revoke_time {
            Some(_) => "revoked",
            None if is_past(operator.expire_time.as_ref()) => "expired",
            None => "good",
        };
        vec![
            operator.name.clone(),
            role.to_ascii_lowercase(),
            state.to_owned(),
            or_all(&scope.clients),
            or_all(&scope.paths),
            operator.token_id.clone(),
            operator.expire_time.as_ref().map_or("never".to_owned(), |at| time(Some(at))),
        ]
    });
    let head = ["NAME", "ROLE", "STATE", "CLIENTS", "PATHS", "TOKEN", "EXPIRES"];
    table(out, &head, rows.collect())
}

pub(super) fn authority(out: &mut impl Write, authority: &proto::Authority) -> io::Result<()> {
    let expires = time(authority.intermediate_expire_time.as_ref());
    let proto::Authority { root, roots, .. } = authority;
    writeln!(out, "root {root}; {roots} trusted; the intermediate is good until {expires}")
}

fn table(out: &mut impl Write, head: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..all[0].len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &all {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

fn moment(at: &prost_types::Timestamp) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(at.seconds).unwrap_or(0))
}

fn time(at: Option<&prost_types::Timestamp>) -> String {
    at.map_or_else(
        || "-".to_owned(),
        |at| humantime::format_rfc3339_seconds(moment(at)).to_string(),
    )
}

fn is_past(at: Option<&prost_types::Timestamp>) -> bool {
    at.is_some_and(|at| moment(at) <= std::time::SystemTime::now())
}
