//! The operator's tool, `fts`: asks for files, follows transfers, copies what has landed. It speaks
//! `fts.v1.Control` and nothing else; what it prints goes through `output`.

use std::{future::Future, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use config::{Args, Command, KeyCommand, Settings};
pub use output::Io;

use config::Timing;
use connection::Connection;
use error::Error;
use key::Signing;
use list::Verb;
use login::Bearer;
use output::Output;

use crate::rate::Rate;

mod config;
mod connection;
mod copy;
mod error;
mod explain;
#[cfg(all(test, feature = "server"))]
mod fake;
mod key;
mod list;
mod local_file;
mod login;
mod output;
mod progress;
mod pull;
mod session;
mod view;
mod watch;
mod words;

/// What every command has at hand.
struct Context {
    connection: Connection,
    output: Output,
    timing: Timing,
    /// Fires when the operator wants it to end.
    stop: CancellationToken,
    start: Instant,
    timeout: Option<Duration>,
    deadline: Option<Duration>,
    rate_max: Option<Rate>,
    /// With a key to sign requests with.
    signing: Option<Signing>,
}

impl Context {
    /// Returns when the operator stops waiting for a transfer.
    fn until(&self) -> Option<Instant> {
        self.start.checked_add(self.timeout?)
    }

    /// Does what may be left at any point.
    async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::Interrupted("interrupted".to_owned())),
            done = work => done,
        }
    }
}

/// Runs one command until it is done or `interrupt` comes, and returns the exit code.
pub async fn run(
    command: Command,
    settings: Settings,
    io: Io,
    interrupt: impl Future<Output = ()>,
) -> u8 {
    let output = Output::new(io, settings.form);
    let command = match command {
        Command::Login { .. } => {
            let outcome = session::login(settings, &output).await;
            return output.end(outcome).await;
        }
        Command::Key { command } => {
            let outcome = match command {
                KeyCommand::Generate { file } => key::generate(file, &output).await,
                KeyCommand::Show { file } => key::show(file, &output).await,
            };
            return output.end(outcome).await;
        }
        asks => asks,
    };
    let route = match settings.route() {
        Ok(route) => route,
        Err(err) => return output.end(Err(Error::Failed(err.to_string()))).await,
    };
    let context = Context {
        connection: Connection::new(&route, Bearer::new(settings.token.as_ref())),
        output,
        timing: settings.timing,
        stop: CancellationToken::new(),
        start: Instant::now(),
        timeout: settings.timeout,
        deadline: settings.deadline,
        rate_max: settings.rate_max,
        signing: settings.signing,
    };
    let outcome = {
        // Not dropped when the interrupt comes: whoever writes a file, or has a transfer to name,
        // ends in order.
        let mut work = Box::pin(execute(&context, command));
        tokio::select! {
            biased;
            outcome = &mut work => outcome,
            () = interrupt => {
                context.stop.cancel();
                work.await
            }
        }
    };
    context.output.end(outcome).await
}

async fn execute(context: &Context, command: Command) -> Result<(), Error> {
    match command {
        Command::Pull { client, path, ask, detach } => {
            pull::run(context, &client, path.as_ref(), &ask, detach).await
        }
        Command::Cp { source, local, ask, copy } => {
            copy::cp(context, &source, local, &ask, copy).await
        }
        Command::Get { id, local, copy } => copy::get(context, id, local, copy).await,
        Command::Watch { id, client, .. } => watch::run(context, id, client, context.until()).await,
        once => context.unless_stopped(execute_once(context, once)).await,
    }
}

/// Runs a command that asks and prints, and may be left at any point.
async fn execute_once(context: &Context, command: Command) -> Result<(), Error> {
    match command {
        Command::Logout => session::logout(context).await,
        Command::Whoami => session::whoami(context).await,
        Command::Audit { since } => session::audit(context, since).await,
        Command::Clients => list::clients(context).await,
        Command::Client { id } => list::client(context, &id).await,
        Command::Explain { source } => explain::run(context, &source).await,
        Command::Transfers { client, state, limit } => {
            list::transfers(context, client, state, limit).await
        }
        Command::Show { id } => list::show(context, id).await,
        Command::Cancel { id } => list::act(context, Verb::Cancel, id).await,
        Command::Retry { id } => list::act(context, Verb::Retry, id).await,
        Command::Pause { id } => list::act(context, Verb::Pause, id).await,
        Command::Resume { id } => list::act(context, Verb::Resume, id).await,
        Command::Rm { id } => list::act(context, Verb::Delete, id).await,
        Command::Login { .. }
        | Command::Key { .. }
        | Command::Pull { .. }
        | Command::Cp { .. }
        | Command::Get { .. }
        | Command::Watch { .. } => {
            unreachable!("these were taken before")
        }
    }
}
