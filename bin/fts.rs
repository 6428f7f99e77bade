//! `fts`, the operator's tool: parses, runs one command, and ends with its exit code.

use std::process::ExitCode;

use clap::Parser as _;
use fts::{
    operator::{self, Args, Io, Settings},
    shutdown, telemetry,
};

/// Bad configuration, as sysexits has it.
const EX_CONFIG: u8 = 78;

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let settings = match Settings::resolve(&args) {
        Ok(settings) => settings,
        Err(err) => return Ok(refuse(&err.to_string())),
    };
    if let Err(problem) = telemetry::init(settings.log_format) {
        return Ok(refuse(&problem));
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let code =
        runtime.block_on(operator::run(args.command, settings, Io::of_process(), interrupt()));
    Ok(ExitCode::from(code))
}

fn refuse(problem: &str) -> ExitCode {
    eprintln!("fts: {problem}");
    ExitCode::from(EX_CONFIG)
}

async fn interrupt() {
    if let Err(err) = shutdown::signal().await {
        // Without our handlers the system's still end the process.
        tracing::warn!(error = %err, "could not listen for signals");
        std::future::pending::<()>().await;
    }
}
