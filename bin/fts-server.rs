//! The server's program: parse, build, run until a signal, exit code.

use std::{fs, io::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use fts::{
    limits,
    server::{
        self, Options, Server,
        check::check,
        config::{Cli, Command, Config},
        data_dir::DataDir,
        files,
        guard::ClearText,
        landing::{Landing, RealDisk},
        store::{self, Store},
    },
    settings::ConfigError,
    shutdown::{self, Shutdown},
    telemetry,
};

const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let Cli { args, command } = Cli::parse();
    let (args, check) = match command {
        Some(Command::Check(check)) => (check.args, Some(check.scrub)),
        None => (args, None),
    };
    let config = match Config::new(args) {
        Ok(config) => config,
        Err(err) => return refuse(&err),
    };
    if let Err(problem) = telemetry::init(config.log_format) {
        return refuse(&ConfigError::from(problem));
    }
    let done = match check {
        Some(scrub) => to_end(check_files(&config, scrub)),
        None => to_end(run(&config)),
    };
    match done {
        Ok(code) => code,
        Err(err) => {
            tracing::error!(error = format!("{err:#}"), "fts-server failed");
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
    let store = store::open(&config.store).await?;
    let landing = open_files(config, store.as_ref()).await?;
    let listener = server::listen(config.listen)
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr()?;
    let shutdown = Shutdown::new();
    let server = Server::new(Options {
        store,
        landing,
        clear_text: if config.insecure { ClearText::Insecure } else { ClearText::LoopbackOnly },
        heartbeat: config.heartbeat,
        retention: config.retention,
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
    let clean = server.serve(listener).await?;
    signalled.await??;
    tracing::info!(clean, "stopped");
    Ok(ExitCode::SUCCESS)
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
    let store = store::open(&config.store).await?;
    let landing = open_files(config, store.as_ref()).await?;
    let report = check(store, landing, scrub).await?;
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
