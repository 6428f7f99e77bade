//! The one connection that writes, and the queue before it. Whatever waits while a transaction
//! commits shares the next one: one commit, one sync of the disk, and nobody waits for longer than
//! the transaction before and its own.
//!
//! A transaction is `BEGIN IMMEDIATE … COMMIT`, and each verb is answered only once COMMIT has
//! been. (In autocommit sqlx can report success for a write that failed: it stops at the first row
//! of a `RETURNING`, before SQLite has committed.) A verb that fails is answered alone: the
//! transaction is rolled back, and the others run again without it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{limits, server::store::StoreError};

/// A change of the records. It may be run again after its transaction was rolled back.
#[async_trait]
pub(super) trait Verb: Send + Sync + 'static {
    type Done: Send + 'static;

    async fn run(&self, tx: &mut SqliteConnection) -> Result<Self::Done, StoreError>;
}

/// The way to the task that writes.
#[derive(Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Box<dyn Job>>,
    /// Fires when nothing more is taken.
    closing: CancellationToken,
    task: TaskTracker,
}

impl Writer {
    /// Starts the task on a connection; `options` open another one, should it break.
    pub(super) fn start(connection: SqliteConnection, options: SqliteConnectOptions) -> Self {
        let (queue, jobs) = mpsc::channel(limits::STORE_QUEUE_MAX);
        let (closing, task) = (CancellationToken::new(), TaskTracker::new());
        let desk = Desk { connection: Some(connection), options };
        // It ends with its queue; `close` waits for it.
        drop(task.spawn(desk.serve(jobs, closing.clone())));
        Self { queue, closing, task }
    }

    /// Runs a verb and returns its answer, which is on stable storage. A caller that goes away
    /// before the verb's turn has changed nothing.
    pub(super) async fn write<V: Verb>(&self, verb: V) -> Result<V::Done, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        let taken = Arc::new(AtomicBool::new(false));
        let asked = Asked { verb, done: None, taken: Arc::clone(&taken), answer };
        let ended = |_| unavailable("its writer has ended");
        let turn = async {
            self.queue.send(Box::new(asked)).await.map_err(|_| unavailable("it is closed"))?;
            (&mut answered).await.map_err(ended)?
        };
        match timeout(limits::STORE_QUEUE_WAIT, turn).await {
            Ok(answer) => answer,
            // Its turn has come: whoever was there first has the say.
            Err(_) if taken.swap(true, Ordering::AcqRel) => answered.await.map_err(ended)?,
            Err(_) => Err(unavailable("its disk is too slow")),
        }
    }

    /// Takes nothing more, and waits until what was taken is done.
    pub(super) async fn close(&self) {
        self.closing.cancel();
        self.task.close();
        self.task.wait().await;
    }
}

/// A verb that waits, whatever it answers.
#[async_trait]
trait Job: Send {
    /// Whether it is still wanted; from then on its caller waits for the answer.
    fn take(&self) -> bool;

    /// Returns whether it worked.
    async fn run(&mut self, tx: &mut SqliteConnection) -> bool;

    /// Answers with what it has done, unless the transaction failed.
    fn answer(self: Box<Self>, failed: Option<&sqlx::Error>);
}

struct Asked<V: Verb> {
    verb: V,
    done: Option<Result<V::Done, StoreError>>,
    taken: Arc<AtomicBool>,
    answer: oneshot::Sender<Result<V::Done, StoreError>>,
}

#[async_trait]
impl<V: Verb> Job for Asked<V> {
    fn take(&self) -> bool {
        !self.answer.is_closed() && !self.taken.swap(true, Ordering::AcqRel)
    }

    async fn run(&mut self, tx: &mut SqliteConnection) -> bool {
        let done = self.verb.run(tx).await;
        self.done.insert(done).is_ok()
    }

    fn answer(self: Box<Self>, failed: Option<&sqlx::Error>) {
        let done = match (failed, self.done) {
            (Some(err), _) => Err(unavailable(&err.to_string())),
            (None, Some(done)) => done,
            (None, None) => Err(unavailable("it was not run")),
        };
        // Nobody waits any more: then nobody needs to know.
        drop(self.answer.send(done));
    }
}

/// What the task owns.
struct Desk {
    /// `None` after it broke.
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
}

impl Desk {
    async fn serve(mut self, mut queue: mpsc::Receiver<Box<dyn Job>>, closing: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                _ = queue.recv_many(&mut batch, limits::STORE_BATCH_MAX) => {}
                // From then on it takes what is there, and ends.
                () = closing.cancelled(), if !queue.is_closed() => queue.close(),
            }
            if batch.is_empty() && queue.is_closed() && queue.is_empty() {
                break;
            }
            let mut jobs: Vec<_> = batch.drain(..).filter(|job| job.take()).collect();
            while !jobs.is_empty() {
                jobs = self.commit(jobs).await;
            }
        }
        if let Some(connection) = self.connection
            && let Err(err) = connection.close().await
        {
            tracing::warn!(error = %err, "the record store did not close well");
        }
    }

    /// Runs jobs in one transaction and answers them. Returns those that are to be run again,
    /// because another one failed.
    async fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        let Err(failed) = self.transact(&mut jobs).await else {
            for job in jobs {
                job.answer(None);
            }
            return Vec::new();
        };
        match failed {
            Failed::Job(index) => {
                jobs.remove(index).answer(None);
                jobs
            }
            Failed::Whole(err) => {
                // Nobody knows what state it is in.
                self.connection = None;
                for job in jobs {
                    job.answer(Some(&err));
                }
                Vec::new()
            }
        }
    }

    async fn transact(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), Failed> {
        let tx = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.options.connect().await?),
        };
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *tx).await?;
        for (index, job) in jobs.iter_mut().enumerate() {
            if job.run(tx).await {
                continue;
            }
            // After some errors, such as a full disk, SQLite itself has rolled back.
            if sqlx::query("ROLLBACK").execute(&mut *tx).await.is_err() {
                self.connection = None;
            }
            return Err(Failed::Job(index));
        }
        sqlx::query("COMMIT").execute(&mut *tx).await?;
        Ok(())
    }
}

/// Why a transaction was not committed.
enum Failed {
    /// Only because of this job.
    Job(usize),
    Whole(sqlx::Error),
}

impl From<sqlx::Error> for Failed {
    fn from(err: sqlx::Error) -> Self {
        Self::Whole(err)
    }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(why.into())
}
