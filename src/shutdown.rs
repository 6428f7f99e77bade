//! How a program ends: softly first, then hard, and never with a task that nobody waited for.

use std::{future::Future, time::Duration};

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerWaitFuture},
};

/// Two tokens and the tasks that obey them. Clones are the same shutdown.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    pub fn new() -> Self {
        Self::default()
    }

    /// Fires when no new work may begin.
    pub fn draining(&self) -> &CancellationToken {
        &self.drain
    }

    /// Fires when running work must stop at once.
    pub fn aborting(&self) -> &CancellationToken {
        &self.abort
    }

    /// Begins the soft end.
    pub fn drain(&self) {
        self.drain.cancel();
        self.tasks.close();
    }

    /// Begins the hard end.
    pub fn abort(&self) {
        self.drain();
        self.abort.cancel();
    }

    /// Spawns a task that the end waits for. Every task of fts is spawned here, or is joined by its
    /// owner.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// Waits until draining has begun and every task has ended.
    pub fn ended(&self) -> TaskTrackerWaitFuture<'_> {
        self.tasks.wait()
    }

    /// Gives running work `drain_wait` to finish, then aborts it and gives it `abort_wait`. Returns
    /// whether everything ended.
    pub async fn run_down(&self, drain_wait: Duration, abort_wait: Duration) -> bool {
        self.drain();
        if tokio::time::timeout(drain_wait, self.ended()).await.is_ok() {
            return true;
        }
        self.abort();
        tokio::time::timeout(abort_wait, self.ended()).await.is_ok()
    }
}

/// Waits for SIGTERM or Ctrl-C; from then on the next one ends the process at once, with 128 + its
/// number.
///
/// # Errors
/// The handlers cannot be installed.
pub async fn signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Detached on purpose: its only end is the end of the process.
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(async move {
        let code = tokio::select! {
            _ = terminate.recv() => 143,
            _ = interrupt.recv() => 130,
        };
        std::process::exit(code);
    });
    Ok(())
}
