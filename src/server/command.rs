//! What `fts-server` does besides serving: `token`, `clients`, `operators`, `audit`, `ca`. Each asks
//! the service that operators with the role admin can ask, and prints the answer.

use std::{fs, io::Write, path::PathBuf};

use tonic::Status;

use super::{
    audit::AuditError, authority::AuthorityError, config::PKI, data_dir::DataDirError,
    store::StoreError, tls::ServerTlsError,
};
use crate::{
    limits,
    settings::{self, ConfigError},
    wire::proto,
};

mod args;
mod asked;
mod show;

pub use args::{AdminCommand, At, CaCommand, ClientsCommand, OperatorsCommand, TokenCommand};
pub use asked::open_tls;

use asked::Asked;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tls(#[from] ServerTlsError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error("cannot speak with the server: {0}")]
    Socket(String),
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    #[error("cannot print")]
    Print(#[source] std::io::Error),
}

impl From<Status> for CommandError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl From<std::io::Error> for CommandError {
    fn from(err: std::io::Error) -> Self {
        Self::Print(err)
    }
}

impl AdminCommand {
    /// Runs the command, and prints what it says: secrets on `out` alone.
    pub async fn run(self, out: &mut (impl Write + Send)) -> Result<(), CommandError> {
        match self {
            Self::Token(command) => command.run(out).await,
            Self::Clients(command) => command.run(out).await,
            Self::Operators(command) => command.run(out).await,
            Self::Audit { since, at } => audit(since, &at, out).await,
            Self::Ca(command) => command.run(out).await,
        }
    }
}

impl TokenCommand {
    async fn run(self, out: &mut (impl Write + Send)) -> Result<(), CommandError> {
        match self {
            Self::Create { ids, file, uses, ttl, approve, replace, at } => {
                let patterns = patterns(ids, file)?;
                let ttl = Some(duration("--ttl", &ttl)?);
                let mut admin = Asked::of(&at).await?;
                for some in patterns.chunks(limits::JOIN_TOKENS_PER_CALL_MAX / 2) {
                    let ask = proto::CreateJoinTokensRequest {
                        patterns: some.to_vec(),
                        uses_max: uses,
                        ttl,
                        needs_approval: approve,
                        replaces: replace,
                    };
                    let made = admin.client.create_join_tokens(ask).await?.into_inner().tokens;
                    show::created(out, &made, patterns.len() == 1)?;
                }
                Ok(())
            }
            Self::List { at } => {
                let admin = Asked::of(&at).await?;
                let all = pages(async |page_token| {
                    let ask = proto::ListJoinTokensRequest { page_token, ..Default::default() };
                    let answer = admin.client.clone().list_join_tokens(ask).await?.into_inner();
                    Ok((answer.tokens, answer.next_page_token))
                });
                return Ok(show::join_tokens(out, &all.await?)?);
            }
            Self::Revoke { id, at } => {
                let ask = proto::RevokeJoinTokenRequest { token_id: id };
                let answer = Asked::of(&at).await?.client.revoke_join_token(ask).await?;
                Ok(show::join_tokens(out, answer.into_inner().token.as_slice())?)
            }
        }
    }
}

impl ClientsCommand {
    async fn run(self, out: &mut (impl Write + Send)) -> Result<(), CommandError> {
        let identity = match self {
            Self::List { at } => {
                let admin = Asked::of(&at).await?;
                let all = pages(async |page_token| {
                    let ask = proto::ListIdentitiesRequest { page_token, ..Default::default() };
                    let answer = admin.client.clone().list_identities(ask).await?.into_inner();
                    Ok((answer.identities, answer.next_page_token))
                });
                return Ok(show::identities(out, &all.await?)?);
            }
            Self::Approve { id, at } => {
                let ask = proto::ApproveClientRequest { client_id: id };
                Asked::of(&at).await?.client.approve_client(ask).await?.into_inner().identity
            }
            Self::Revoke { id, at } => {
                let ask = proto::RevokeClientRequest { client_id: id };
                Asked::of(&at).await?.client.revoke_client(ask).await?.into_inner().identity
            }
            Self::Delete { id, at } => {
                let ask = proto::DeleteClientRequest { client_id: id };
                Asked::of(&at).await?.client.delete_client(ask).await?.into_inner().identity
            }
        };
        Ok(show::identities(out, identity.as_slice())?)
    }
}

impl OperatorsCommand {
    async fn run(self, out: &mut (impl Write + Send)) -> Result<(), CommandError> {
        match self {
            Self::Create { name, role, clients, paths, ttl, at } => {
                let ask = proto::CreateOperatorRequest {
                    name,
                    role: self::role(&role)?.into(),
                    scope: Some(proto::Scope { clients, paths }),
                    ttl: ttl.map(|ttl| duration("--ttl", &ttl)).transpose()?,
                };
                let answer = Asked::of(&at).await?.client.create_operator(ask).await?.into_inner();
                Ok(show::operator_token(out, answer.operator.as_ref(), &answer.token)?)
            }
            Self::List { at } => {
                let admin = Asked::of(&at).await?;
                let all = pages(async |page_token| {
                    let ask = proto::ListOperatorsRequest { page_token, ..Default::default() };
                    let answer = admin.client.clone().list_operators(ask).await?.into_inner();
                    Ok((answer.operators, answer.next_page_token))
                });
                return Ok(show::operators(out, &all.await?)?);
            }
            Self::Rotate { name, ttl, at } => {
                let ttl = ttl.map(|ttl| duration("--ttl", &ttl)).transpose()?;
                let ask = proto::RotateOperatorRequest { name, ttl };
                let answer = Asked::of(&at).await?.client.rotate_operator(ask).await?.into_inner();
                Ok(show::operator_token(out, answer.operator.as_ref(), &answer.token)?)
            }
            Self::Revoke { name, at } => {
                let ask = proto::RevokeOperatorRequest { name };
                let answer = Asked::of(&at).await?.client.revoke_operator(ask).await?;
                Ok(show::operators(out, answer.into_inner().operator.as_slice())?)
            }
        }
    }
}

impl CaCommand {
    async fn run(self, out: &mut (impl Write + Send)) -> Result<(), CommandError> {
        let (at, authority, next) = match self {
            Self::Rotate { at } => {
                let ask = proto::RotateAuthorityRequest {};
                let answer = Asked::of(&at).await?.client.rotate_authority(ask).await?;
                let next = "is of the new root: take it away, and keep it offline
when every client has renewed: fts-server ca finish";
                (at, answer.into_inner().authority, Some(next))
            }
            Self::Finish { at } => {
                let ask = proto::FinishRotationRequest {};
                let answer = Asked::of(&at).await?.client.finish_rotation(ask).await?;
                (at, answer.into_inner().authority, None)
            }
            Self::Renew { at } => {
                let ask = proto::RenewIntermediateRequest {};
                let answer = Asked::of(&at).await?.client.renew_intermediate(ask).await?;
                let next = "is there again: take it away, and keep it offline";
                (at, answer.into_inner().authority, Some(next))
            }
        };
        show::authority(out, &authority.unwrap_or_default())?;
        if let Some(next) = next {
            let key = at.config()?.data_dir.join(PKI).join("root.key");
            writeln!(out, "{} {next}", key.display())?;
        }
        Ok(())
    }
}

async fn audit(
    since: Option<String>,
    at: &At,
    out: &mut (impl Write + Send),
) -> Result<(), CommandError> {
    let since = since.map(|text| settings::duration(&text)).transpose();
    let since = since.map_err(|what| ConfigError::from(format!("--since: {what}")))?;
    let since = since.map(|ago| {
        crate::wire::control::timestamp(crate::ids::UnixMs(
            crate::ids::UnixMs::now()
                .0
                .saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
        ))
    });
    let ask = proto::ReadAuditRequest { since };
    let mut admin = Asked::of(at).await?;
    let mut lines = admin.client.read_audit(ask).await?.into_inner();
    while let Some(line) = lines.message().await? {
        writeln!(out, "{}", line.line)?;
    }
    Ok(())
}

/// Returns what all pages hold. `ask` returns one, and the token of the next.
async fn pages<T>(
    ask: impl AsyncFn(String) -> Result<(Vec<T>, String), Status>,
) -> Result<Vec<T>, CommandError> {
    let (mut all, mut next) = ask(String::new()).await?;
    while !next.is_empty() {
        let page;
        (page, next) = ask(next).await?;
        all.extend(page);
    }
    Ok(all)
}

fn patterns(ids: Vec<String>, file: Option<PathBuf>) -> Result<Vec<String>, CommandError> {
    let mut patterns = ids;
    if let Some(path) = file {
        let failed = |err| ConfigError::from(format!("--ids {}: {err}", path.display()));
        let text = fs::read_to_string(&path).map_err(failed)?;
        patterns.extend(text.split_whitespace().map(str::to_owned));
    }
    if patterns.is_empty() {
        return Err(ConfigError::from("say for whom: --id ID, or --ids FILE".to_owned()).into());
    }
    Ok(patterns)
}

fn duration(name: &str, text: &str) -> Result<prost_types::Duration, ConfigError> {
    let duration = settings::duration(text).map_err(|what| format!("{name}: {what}"))?;
    prost_types::Duration::try_from(duration)
        .map_err(|_| ConfigError::from(format!("{name}: too long")))
}

fn role(text: &str) -> Result<proto::Role, ConfigError> {
    let role: super::access::Role =
        text.parse().map_err(|err| ConfigError::from(format!("--role: {err}")))?;
    Ok(role.into())
}

fn not_secured() -> CommandError {
    ConfigError::from(
        "this server asks for no credentials yet: run fts-server init --name NAME".to_owned(),
    )
    .into()
}
