//! The client program: parses, builds, runs until a signal.

use std::process::ExitCode;

use clap::Parser as _;
use fts::{
    client::{
        Client,
        config::{Cli, CliCommand, ClientConfig, Flags, GenerateFile, Surroundings},
        demo_file,
    },
    limits,
    settings::ConfigError,
    shutdown::{self, Shutdown},
    telemetry,
};

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
    let config: ClientConfig = flags.resolve(&Surroundings::of_process())?;
    telemetry::init(config.log_format).map_err(ConfigError::from)?;
    let client = Client::new(config)?;
    if let Some(address) = client.status_address() {
        tracing::info!("status page: http://{address}/status");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::new();
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
