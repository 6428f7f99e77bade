//! The server's program: parse, build, run until a signal, exit code.

use std::{fs, io::Write as _, path::Path, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser as _;
use fts::{
    limits,
    server::{
        self, Listeners, Options, Security, Server,
        access::{Role, Scope},
        administration::Administration,
        allocator,
        audit::{Action, Actor, Audit, Detail, Entry, Outcome},
        authority::Authority,
        check::check,
        command::{self, AdminCommand, CommandError},
        config::{Cli, Command, Config, ConfigCommand, Init, PKI, SOCKET},
        data_dir::DataDir,
        files,
        guard::ClearText,
        landing::{Landing, RealDisk},
        store::{self, Records, Store, credentials::Operator},
        tls::Tls,
    },
    settings::ConfigError,
    shutdown::{self, Shutdown},
    telemetry,
    token::Secret,
};
use tokio::signal::unix::{SignalKind, signal};

const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    // Before there is another thread.
    allocator::keep_large_buffers();
    let Cli { args, command } = Cli::parse();
    match command {
        None => configured(args, |config| to_end(run(&config))),
        Some(Command::Check(check)) => {
            configured(check.args, |config| to_end(check_files(&config, check.scrub)))
        }
        Some(Command::Init(Init { names, args })) => {
            configured(args, |config| to_end(init(&config, &names)))
        }
        Some(Command::Config(ConfigCommand::Check { args })) => check_config(*args),
        Some(Command::Admin(command)) => administer(command),
    }
}

fn configured(
    args: server::config::Args,
    run: impl FnOnce(Config) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    let config = match Config::new(args) {
        Ok(config) => config,
        Err(err) => return refuse(&err),
    };
    if let Err(problem) = telemetry::init(config.log_format) {
        return refuse(&ConfigError::from(problem));
    }
    match run(config) {
        Ok(code) => code,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "fts-server failed");
            ExitCode::FAILURE
        }
    }
}

/// Prints the configuration, if a server would start with it: its keys and certificates too.
fn check_config(args: server::config::Args) -> ExitCode {
    let (config, report) = match Config::report(args) {
        Ok(reported) => reported,
        Err(err) => return refuse(&err),
    };
    match command::open_tls(&config) {
        Ok(_) => told(write!(std::io::stdout(), "{report}")),
        Err(err) => refuse(&ConfigError::from(err.to_string())),
    }
}

fn administer(command: AdminCommand) -> ExitCode {
    let done = to_end(async {
        Ok(match command.run(&mut std::io::stdout()).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(CommandError::Config(err)) => refuse(&err),
            Err(err) => {
                eprintln!("fts-server: {:#}", anyhow::Error::from(err));
                ExitCode::FAILURE
            }
        })
    });
    done.unwrap_or_else(|err| {
        eprintln!("fts-server: {err:#}");
        ExitCode::FAILURE
    })
}

fn told(written: std::io::Result<()>) -> ExitCode {
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("fts-server: cannot print: {err}");
            ExitCode::FAILURE
        }
    }
}

fn to_end(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(limits::BLOCKING_THREADS_MAX)
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(work);
    // A disk that hangs must not keep the process.
    runtime.shutdown_background();
    done
}

async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let _data_dir = match DataDir::open(&config.data_dir) {
        Ok(data_dir) => data_dir,
        Err(err) => return Ok(refuse(&ConfigError::from(err.to_string()))),
    };
    let Records { store, credentials } = store::open(&config.store).await?;
    let landing = open_files(config, store.as_ref()).await?;
    let (security, tls) = match command::open_tls(config) {
        Ok(Some(tls)) => {
            let tls = Arc::new(tls);
            (Security::Tls(Arc::clone(&tls)), Some(tls))
        }
        Ok(None) if config.insecure => (Security::Clear(ClearText::Insecure), None),
        Ok(None) => (Security::Clear(ClearText::LoopbackOnly), None),
        Err(err) => return Ok(refuse(&ConfigError::from(err.to_string()))),
    };
    let audit = tls.is_some().then(|| Audit::open(&config.data_dir)).transpose()?;
    let listeners = listeners(config)?;
    let address = listeners.main.local_addr()?;
    let shutdown = Shutdown::new();
    let server = Server::new(Options {
        store,
        credentials,
        landing,
        audit: audit.clone(),
        security,
        certificate_life: config.certificate_life,
        heartbeat: config.heartbeat,
        retention: config.retention,
        quotas: config.quotas.clone(),
        uploads_max: config.uploads_max,
        drain_wait: limits::DRAIN_WAIT,
        shutdown: shutdown.clone(),
    });
    if config.insecure {
        tracing::warn!(%address, "--insecure: whoever reaches this address may ask for any allowed file");
    }
    let port_file = config.port_file.as_deref();
    port_file.map_or(Ok(()), |path| write_port_file(path, &address.to_string()))?;
    let stop = shutdown.clone();
    let signalled = shutdown.spawn(async move {
        let signal = shutdown::signal().await;
        stop.drain();
        signal
    });
    if let Some(tls) = tls {
        let hangups = signal(SignalKind::hangup())?;
        drop(shutdown.spawn(reload(tls, audit, hangups, shutdown.clone())));
    }
    let clean = server.serve(listeners).await?;
    signalled.await??;
    tracing::info!(clean, "stopped");
    Ok(ExitCode::SUCCESS)
}

fn listeners(config: &Config) -> anyhow::Result<Listeners> {
    let listen =
        |address| server::listen(address).with_context(|| format!("cannot listen on {address}"));
    let socket = config.data_dir.join(SOCKET);
    Ok(Listeners {
        main: listen(config.listen)?,
        control: config.control_listen.map(listen).transpose()?,
        socket: config
            .is_secured
            .then(|| server::listen_socket(&socket))
            .transpose()
            .with_context(|| format!("cannot listen on {}", socket.display()))?,
    })
}

/// Takes new certificates at each hang-up.
async fn reload(
    tls: Arc<Tls>,
    audit: Option<Audit>,
    mut hangups: tokio::signal::unix::Signal,
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            () = shutdown.draining().cancelled() => return,
            _ = hangups.recv() => server::reload(&tls, audit.as_ref()).await,
        }
    }
}

/// Makes an authority, and the first operator.
async fn init(config: &Config, names: &[String]) -> anyhow::Result<ExitCode> {
    let _data_dir = match DataDir::open(&config.data_dir) {
        Ok(data_dir) => data_dir,
        Err(err) => return Ok(refuse(&ConfigError::from(err.to_string()))),
    };
    let pki = config.data_dir.join(PKI);
    let authority = match Authority::init(&pki, names) {
        Ok(authority) => authority,
        Err(err) => return Ok(refuse(&ConfigError::from(err.to_string()))),
    };
    let root = authority.root();
    let tls = Tls::open(pki.clone(), authority, config.own_certificate.clone())?;
    let administration = Administration {
        credentials: store::open(&config.store).await?.credentials,
        coordinator: None,
        tls: Some(Arc::new(tls)),
    };
    let (operator, token) = first_operator(&administration, &config.data_dir).await?;
    eprintln!(
        "made an authority in {pki}: its root is sha256 {root}
- {pki}/roots.pem is what curl and grpcurl need (--cacert, -cacert)
- {pki}/root.key signs nothing more: keep it offline, or delete it
- start the server: fts-server. It asks for TLS and credentials from now on
- let a client join: fts-server token create --id ID
- the token of the operator {operator} (role admin) follows, and is nowhere else: fts login",
        pki = pki.display(),
        operator = operator.name,
    );
    writeln!(std::io::stdout(), "{}", token.reveal()).context("cannot print the token")?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the first operator, on record.
async fn first_operator(
    administration: &Administration,
    data_dir: &Path,
) -> anyhow::Result<(Operator, Secret)> {
    let made = administration
        .create_operator("admin".parse()?, Role::Admin, Scope::default(), None)
        .await?;
    let audit = Audit::open(data_dir)?;
    let entry = Entry::new(Actor::Local, "", Action::OperatorCreate, Outcome::Done)
        .with(Detail::Operator(made.0.name.clone()))
        .with(Detail::Role(Role::Admin))
        .with(Detail::Token(made.0.token.clone()));
    // It is shown only when it is on record.
    audit.write(vec![entry]).await?;
    audit.close().await;
    Ok(made)
}

/// Settles and checks the data directory, and says on stdout what was found.
async fn check_files(config: &Config, scrub: bool) -> anyhow::Result<ExitCode> {
    if !config.data_dir.is_dir() {
        let text = format!("there is no data directory {}", config.data_dir.display());
        return Ok(refuse(&ConfigError::from(text)));
    }
    let _data_dir = match DataDir::open(&config.data_dir) {
        Ok(data_dir) => data_dir,
        Err(err) => return Ok(refuse(&ConfigError::from(err.to_string()))),
    };
    let records = store::open(&config.store).await?;
    let landing = open_files(config, records.store.as_ref()).await?;
    let report = check(records, landing, scrub).await?;
    writeln!(std::io::stdout(), "{report}").context("cannot say what was found")?;
    let is_well = report.problems.is_empty();
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn open_files(config: &Config, store: &dyn Store) -> anyhow::Result<Landing> {
    let disk = Box::new(RealDisk);
    let landing = files::open(store, &config.sink, disk, config.new_files).await?;
    if config.new_files {
        tracing::warn!(
            "--new-files: the directory of files was taken as it is; leave it away from now on"
        );
    }
    Ok(landing.with_marks(config.marks))
}

/// By rename, so that a script never reads half of it.
fn write_port_file(path: &Path, address: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, address)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn refuse(err: &ConfigError) -> ExitCode {
    eprintln!("fts-server: {err}");
    ExitCode::from(EX_CONFIG)
}
