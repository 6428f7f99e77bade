//! The client program: parses, builds, runs until a signal.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use fts::{
    client::{
        Client,
        config::{Cli, CliCommand, ClientConfig, Flags, GenerateFile, Surroundings},
        demo_file,
        reload::Reload,
    },
    limits,
    settings::ConfigError,
    shutdown::{self, Shutdown},
    telemetry,
};
use rustix::process::{getpriority_process, setpriority_process};
use tokio::signal::unix::{SignalKind, signal};

/// Bad configuration, as `sysexits.h` has it.
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(CliCommand::GenerateFile(wish)) => generate_file(wish),
        None => run(cli.flags),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("fts-client: {err:#}");
            if err.is::<ConfigError>() { ExitCode::from(EX_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn generate_file(wish: GenerateFile) -> anyhow::Result<()> {
    let (path, size) = wish.resolve()?;
    demo_file::make(&path, size)
        .map_err(|err| anyhow::anyhow!("cannot make {}: {err}", path.display()))?;
    eprintln!("made {} ({size} bytes)", path.display());
    Ok(())
}

fn run(flags: Flags) -> anyhow::Result<()> {
    let around = Surroundings::of_process();
    let config: ClientConfig = flags.clone().resolve(&around)?;
    telemetry::init(config.log_format).map_err(ConfigError::from)?;
    if config.nice > 0 {
        be_nice(config.nice)?;
    }
    // Without a file to read again, a hang-up ends the client, as it ends other programs.
    let reload = flags.config.is_some().then(|| Reload::new(flags, around, &config));
    let client = Client::new(config)?;
    if let Some(address) = client.status_address() {
        tracing::info!("status page: http://{address}/status");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::new();
        if let Some(reload) = reload {
            let hangups = signal(SignalKind::hangup())?;
            shutdown.spawn(reload.run(client.allowance(), hangups, shutdown.clone()));
        }
        shutdown.spawn(client.run(shutdown.clone()));
        shutdown::signal().await?;
        let in_time = shutdown.run_down(limits::DRAIN_WAIT, limits::ABORT_WAIT).await;
        if !in_time {
            tracing::warn!("some work did not end in time");
        }
        anyhow::Ok(())
    });
    // A read that hangs in the kernel must not keep the process.
    runtime.shutdown_background();
    ended
}

/// Lowers the priority of this thread, and so of every thread that it makes. What is lower already
/// stays so.
fn be_nice(nice: u8) -> anyhow::Result<()> {
    let nice = i32::from(nice);
    let now = getpriority_process(None).context("cannot read the priority")?;
    if now < nice {
        setpriority_process(None, nice).context("cannot lower the priority")?;
    }
    Ok(())
}
