//! What `fts-server` does besides serving: `token`, `clients`, `operators`, `audit`, `ca`. It speaks
//! with the server that runs, through its own socket; with none running it holds the data directory
//! itself meanwhile, and asks the same service in this process.

use std::{fs, io::Write, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{
    admin_api::AdminApi,
    administration::Administration,
    audit::{Audit, AuditError},
    authority::{Authority, AuthorityError},
    config::{Config, PKI, SOCKET},
    data_dir::{DataDir, DataDirError},
    gate::Caller,
    store::{self, StoreError},
    tls::{ServerTlsError, Tls},
};
use crate::{
    limits,
    settings::{self, ConfigError},
    wire::proto::{self, admin_client::AdminClient, admin_server::AdminServer},
};

mod show;

/// Commands of whoever owns the server.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Say who may join
    #[command(subcommand)]
    Token(TokenCommand),
    /// Say which clients are good
    #[command(subcommand)]
    Clients(ClientsCommand),
    /// Say who may ask for files
    #[command(subcommand)]
    Operators(OperatorsCommand),
    /// Print who did what, one JSON object a line
    Audit {
        /// Only what happened since then ago, such as 1d
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// Change the authority
    #[command(subcommand)]
    Ca(CaCommand),
}

/// Which server is meant.
#[derive(Debug, Args)]
pub struct At {
    /// Its data directory [default: ./fts-data]
    #[arg(long, value_name = "DIR", env = "FTS_DATA_DIR")]
    data_dir: Option<String>,
    /// Its record store, if that is not in the data directory
    #[arg(long, value_name = "URL", env = "FTS_STORE")]
    store: Option<String>,
    /// Its TOML file
    #[arg(long, value_name = "FILE", env = "FTS_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token, and print it: `fts-client join` exchanges it for a certificate
    Create {
        /// The client id it is good for, or a pattern with *; repeatable, one token each
        #[arg(long = "id", value_name = "ID")]
        ids: Vec<String>,
        /// A file with a client id on each line: one token each
        #[arg(long = "ids", value_name = "FILE")]
        file: Option<PathBuf>,
        /// How often it may be used
        #[arg(long, default_value_t = 1)]
        uses: u32,
        /// How long it is good, at most 30d
        #[arg(long, value_name = "TIME", default_value = "1h")]
        ttl: String,
        /// Who joins by it waits for `fts-server clients approve`
        #[arg(long)]
        approve: bool,
        /// It may take the id of a client that joined before, whose certificate is good for nothing
        /// then
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        at: At,
    },
    /// List the join tokens; their secrets are nowhere
    List {
        #[command(flatten)]
        at: At,
    },
    /// Let nobody join by a token any more
    Revoke {
        /// The token's id, as `fts-server token list` has it
        id: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Subcommand)]
pub enum ClientsCommand {
    /// List the clients that have joined
    List {
        #[command(flatten)]
        at: At,
    },
    /// Let a client in that joined by a token made with --approve
    Approve {
        id: String,
        #[command(flatten)]
        at: At,
    },
    /// Make a client's certificate good for nothing; its session and uploads end at once
    Revoke {
        id: String,
        #[command(flatten)]
        at: At,
    },
    /// Revoke a client for good: nobody can join under its id again
    Delete {
        id: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Subcommand)]
pub enum OperatorsCommand {
    /// Make an operator, and print the token
    Create {
        name: String,
        /// metrics, viewer, operator or admin
        #[arg(long, default_value = "operator")]
        role: String,
        /// Only these clients: an id, or a pattern with *; repeatable
        #[arg(long = "client", value_name = "ID")]
        clients: Vec<String>,
        /// Only paths at or beneath this one; repeatable
        #[arg(long = "path", value_name = "PATH")]
        paths: Vec<String>,
        /// How long the token is good [default: for ever]
        #[arg(long, value_name = "TIME")]
        ttl: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// List the operators
    List {
        #[command(flatten)]
        at: At,
    },
    /// Make a new token for an operator, and print it; the old one is good for nothing
    Rotate {
        name: String,
        /// How long the token is good [default: for ever]
        #[arg(long, value_name = "TIME")]
        ttl: Option<String>,
        #[command(flatten)]
        at: At,
    },
    /// Make an operator's token good for nothing
    Revoke {
        name: String,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Begin to sign with a new root. Clients learn it as they renew; until `finish` the server's own
    /// certificate is of the old root, and both are trusted. The new root's key is in pki/root.key
    /// then: take it away, and keep it offline
    Rotate {
        #[command(flatten)]
        at: At,
    },
    /// End a rotation: the server's certificate is of the new root, and the old one is not trusted
    /// any more. Do it when every client has renewed (`fts-server clients list`)
    Finish {
        #[command(flatten)]
        at: At,
    },
    /// Renew the intermediate, which signs every day and is good for 5 years. Put the root's key
    /// back into pki/root.key for it, and take it away again
    Renew {
        #[command(flatten)]
        at: At,
    },
}

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
                let mut admin = Asked::of(&at).await?;
                let mut page = proto::ListJoinTokensRequest::default();
                let mut all = Vec::new();
                loop {
                    let answer = admin.client.list_join_tokens(page.clone()).await?.into_inner();
                    all.extend(answer.tokens);
                    page.page_token = answer.next_page_token;
                    if page.page_token.is_empty() {
                        return Ok(show::join_tokens(out, &all)?);
                    }
                }
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
                let mut admin = Asked::of(&at).await?;
                let mut page = proto::ListIdentitiesRequest::default();
                let mut all = Vec::new();
                loop {
                    let answer = admin.client.list_identities(page.clone()).await?.into_inner();
                    all.extend(answer.identities);
                    page.page_token = answer.next_page_token;
                    if page.page_token.is_empty() {
                        return Ok(show::identities(out, &all)?);
                    }
                }
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
                let mut admin = Asked::of(&at).await?;
                let mut page = proto::ListOperatorsRequest::default();
                let mut all = Vec::new();
                loop {
                    let answer = admin.client.list_operators(page.clone()).await?.into_inner();
                    all.extend(answer.operators);
                    page.page_token = answer.next_page_token;
                    if page.page_token.is_empty() {
                        return Ok(show::operators(out, &all)?);
                    }
                }
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

impl At {
    fn config(&self) -> Result<Config, ConfigError> {
        let args = super::config::Args {
            data_dir: self.data_dir.clone(),
            store: self.store.clone(),
            config: self.config.clone(),
            // What is asked here reaches nobody.
            insecure: None,
            ..Default::default()
        };
        Config::new(args)
    }
}

/// The service that is asked, and what it takes while it is.
struct Asked {
    client: AdminClient<Channel>,
    /// With no server running: the lock, and the service in this process.
    _here: Option<(DataDir, JoinSet<()>)>,
}

impl Asked {
    async fn of(at: &At) -> Result<Self, CommandError> {
        let config = at.config()?;
        let socket = config.data_dir.join(SOCKET);
        match UnixStream::connect(&socket).await {
            Ok(stream) => Ok(Self { client: client(stream).await?, _here: None }),
            Err(err)
                if matches!(
                    err.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                Self::here(&config).await
            }
            Err(err) => Err(CommandError::Socket(format!("{}: {err}", socket.display()))),
        }
    }

    async fn here(config: &Config) -> Result<Self, CommandError> {
        if !config.data_dir.is_dir() {
            let text = format!("there is no data directory {}", config.data_dir.display());
            return Err(ConfigError::from(text).into());
        }
        let data_dir = DataDir::open(&config.data_dir)?;
        let tls = open_tls(config)?.ok_or_else(not_secured)?;
        let records = store::open(&config.store).await?;
        let administration = Arc::new(Administration {
            credentials: records.credentials,
            coordinator: None,
            tls: Some(Arc::new(tls)),
        });
        let service = AdminServer::with_interceptor(
            AdminApi::new(administration, Some(Audit::open(&config.data_dir)?)),
            |mut request: tonic::Request<()>| {
                request.extensions_mut().insert(Caller::Owner);
                Ok(request)
            },
        );
        let (ours, theirs) =
            UnixStream::pair().map_err(|err| CommandError::Socket(err.to_string()))?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let once = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
            let served = tonic::transport::Server::builder().add_service(service);
            if let Err(err) = served.serve_with_incoming(once).await {
                tracing::error!(error = %err, "could not serve this command");
            }
        });
        Ok(Self { client: client(ours).await?, _here: Some((data_dir, serving)) })
    }
}

/// Opens what TLS is spoken with; `None` if this server has no authority.
pub fn open_tls(config: &Config) -> Result<Option<Tls>, ServerTlsError> {
    let pki = config.data_dir.join(PKI);
    match Authority::open(&pki)? {
        Some(authority) => Tls::open(pki, authority, config.own_certificate.clone()).map(Some),
        None => Ok(None),
    }
}

async fn client(stream: UnixStream) -> Result<AdminClient<Channel>, CommandError> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().map(TokioIo::new);
        std::future::ready(stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector(connector)
        .await
        .map_err(|err| CommandError::Socket(err.to_string()))?;
    Ok(AdminClient::new(channel))
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
