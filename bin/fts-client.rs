//! The client program: parses, builds, runs until a signal.

use std::{
    env,
    io::{ErrorKind, Write as _},
    process::ExitCode,
    thread,
};

use anyhow::Context as _;
use clap::Parser as _;
use fts::{
    client::{
        Client,
        audit::{self, show::ShowError},
        config::{
            AuditCommand, AuditShow, AuditVerify, Cli, CliCommand, ClientConfig, ConfigCommand,
            Flags, GenerateFile, JoinFlags, PolicyCommand, PolicyPath, PolicyPaths, Surroundings,
        },
        demo_file,
        explain::{self, Explainer, Verdict},
        join::{JoinError, join},
        reload::Reload,
        sandbox::{Held, Mode, Plan},
    },
    limits,
    settings::ConfigError,
    shutdown::{self, Shutdown},
    telemetry,
    token::Secret,
};
use rustix::process::{getpriority_process, setpriority_process};
use tokio::signal::unix::{SignalKind, signal};

/// Bad configuration, as `sysexits.h` has it.
const EX_CONFIG: u8 = 78;
/// Not permitted.
const EX_NOPERM: u8 = 77;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Some(CliCommand::GenerateFile(wish)) => generate_file(wish),
        Some(CliCommand::Join(flags)) => join_server(flags),
        Some(CliCommand::Config(ConfigCommand::Check(flags))) => check(flags),
        Some(CliCommand::Policy(command)) => return told(policy(command)),
        Some(CliCommand::Audit(command)) => return told(audit(command)),
        None => run(cli.flags),
    };
    told(ended.map(|()| ExitCode::SUCCESS))
}

fn told(ended: anyhow::Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|err| {
        eprintln!("fts-client: {err:#}");
        exit_code(&err)
    })
}

fn exit_code(err: &anyhow::Error) -> ExitCode {
    if err.is::<ConfigError>() {
        return ExitCode::from(EX_CONFIG);
    }
    err.downcast_ref::<JoinError>().map_or(ExitCode::FAILURE, |err| ExitCode::from(err.exit_code()))
}

/// Makes this machine a client, and says what comes next.
fn join_server(flags: JoinFlags) -> anyhow::Result<()> {
    let token = env::var("FTS_JOIN_TOKEN").ok().map(Secret::new);
    let plan = flags.resolve(&Surroundings::of_process(), token)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let joined = runtime.block_on(join(plan))?;
    for warning in &joined.warnings {
        eprintln!("fts-client: {warning}");
    }
    eprintln!(
        "joined {} as {}; the key is in {}",
        joined.server,
        joined.id,
        joined.state_dir.display()
    );
    if joined.is_pending {
        eprintln!(
            "an operator has yet to approve it, on the server: fts-server clients approve {}",
            joined.id
        );
    }
    if joined.shares {
        eprintln!("from now on: fts-client");
    } else {
        eprintln!("from now on: fts-client --allow DIR, with the files that the server may read");
    }
    Ok(())
}

/// Says which settings hold, and where each came from.
fn check(flags: Flags) -> anyhow::Result<()> {
    let (settings, good) = flags.check(&Surroundings::of_process());
    let width = settings.iter().map(|setting| setting.name.len()).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for setting in settings {
        let (name, value, origin) = (setting.name, setting.shown, setting.origin);
        writeln!(out, "{name:width$}  {value}  ({origin})")?;
    }
    Ok(good?)
}

/// Says what may be read.
fn policy(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    let (flags, paths, lists) = match command {
        PolicyCommand::Check(PolicyPaths { paths, flags }) => (flags, paths, true),
        PolicyCommand::Explain(PolicyPath { path, flags }) => (flags, vec![path], false),
    };
    let around = Surroundings::of_process();
    let config_file = flags.config.clone();
    let config = flags.resolve(&around)?;
    let site = Explainer::new(&config).map_err(|err| ConfigError::from(err.to_string()))?;
    let mut out = std::io::stdout().lock();
    if lists {
        writeln!(out, "{}", explain::summary(&config.shared))?;
        for rule in site.rules() {
            writeln!(out, "{rule}")?;
        }
        writeln!(out, "sandbox: {}", config.sandbox)?;
        let plan = Plan::new(&config, config_file.as_deref(), &around);
        for line in plan.lines(config.sandbox) {
            writeln!(out, "  {line}")?;
        }
    }
    let mut code = ExitCode::SUCCESS;
    for path in paths {
        let explained = site.explain(&path);
        writeln!(out, "{explained}")?;
        match explained.verdict {
            Verdict::Denied => code = ExitCode::from(EX_NOPERM),
            Verdict::Failed if code == ExitCode::SUCCESS => code = ExitCode::FAILURE,
            Verdict::Allowed | Verdict::Failed => {}
        }
    }
    Ok(code)
}

/// Shows what was asked, served and refused, or says whether all of that is still there.
fn audit(command: AuditCommand) -> anyhow::Result<ExitCode> {
    let around = Surroundings::of_process();
    let mut out = std::io::stdout().lock();
    match command {
        AuditCommand::Show(AuditShow { json, flags }) => {
            match audit::show::show(&flags.state_dir(&around)?, json, &mut out) {
                // Whoever reads has seen enough.
                Err(ShowError::Io(err)) if err.kind() == ErrorKind::BrokenPipe => {}
                shown => shown?,
            }
            Ok(ExitCode::SUCCESS)
        }
        AuditCommand::Verify(AuditVerify { head, flags }) => {
            let verified = audit::verify::verify(&flags.state_dir(&around)?, head)?;
            writeln!(out, "{verified}")?;
            Ok(if verified.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    let config_file = flags.config.clone();
    let (plan, mode) = (Plan::new(&config, config_file.as_deref(), &around), config.sandbox);
    let has_file = config_file.is_some() || config.policy_file.is_some();
    let reload = has_file.then(|| Reload::new(flags, around, &config));
    let client = Client::new(config)?;
    client.make_demo_file();
    // From its cgroup, which the sandbox hides.
    let processors = thread::available_parallelism()?;
    client.show_sandbox(confine(&plan, mode)?);
    if let Some(address) = client.status_address() {
        tracing::info!("status page: http://{address}/status");
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if env::var_os("TOKIO_WORKER_THREADS").is_none() {
        runtime.worker_threads(processors.get());
    }
    let runtime = runtime.enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = Shutdown::new();
        if let Some(reload) = reload {
            let hangups = signal(SignalKind::hangup())?;
            let (shares, allowance) = (client.shares(), client.allowance());
            shutdown.spawn(reload.run(shares, allowance, hangups, shutdown.clone()));
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

/// Gives up, before there is a second thread, what the client does not need.
fn confine(plan: &Plan, mode: Mode) -> anyhow::Result<Held> {
    let held = plan.apply(mode).map_err(|err| ConfigError::from(err.to_string()))?;
    if mode == Mode::Off {
        tracing::warn!("--sandbox off: the kernel holds this process to nothing");
        return Ok(held);
    }
    for note in plan.notes() {
        tracing::warn!("sandbox: {note}");
    }
    let missing = held.missing();
    if !missing.is_empty() {
        tracing::warn!("sandbox: this kernel does not hold {}", missing.join(", "));
    }
    let Held { landlock_abi, files, network, scope, seccomp, no_new_privs, .. } = held;
    tracing::info!(
        %mode, ?landlock_abi, files, network, scope, seccomp, no_new_privs, "the sandbox holds"
    );
    Ok(held)
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
