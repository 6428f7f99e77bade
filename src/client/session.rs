//! One session: a `Connect` stream from Hello to its end, and both halves of it. Whatever it would
//! wait for is an arm of one `select!`, so that nothing that hangs can hold up a heartbeat.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use super::{
    board::Board,
    dial::Dialer,
    enrolment::transport_text,
    jobs::Jobs,
    renewal::{Standing, advice},
    source::Source,
    words::status_text,
};
use crate::{
    audit_head::AuditHead,
    ids::{ClientId, SessionEpoch},
    limits,
    shutdown::Shutdown,
    status::{self, Reason},
    telemetry,
    wire::{
        proto::{ClientMessage, ServerMessage, file_transfer_client::FileTransferClient},
        session::{FromClient, FromServer, Hello},
    },
};

/// How a session ended, or why there was none.
#[derive(Debug)]
pub(super) enum End {
    /// There was no Welcome.
    Refused(String),
    /// The stream broke, or the server ended it.
    Lost(String),
    /// No message came for this long.
    Silent(Duration),
    Drained {
        reconnect_after: Duration,
    },
    /// Another instance has this client's id.
    Superseded {
        host_name: String,
        address: String,
        reconnect_after: Duration,
    },
    /// The server does not take this client as who it is.
    Barred {
        reason: Reason,
        text: String,
    },
    /// There is a new certificate to show.
    Renewed,
    /// There is another policy to show.
    SharesAnew,
    /// The client is ending.
    Left,
}

impl End {
    pub(super) fn was_welcome(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Barred { .. })
    }

    /// Returns how `status` ended it, or `other`, if that says nothing about the identity.
    fn of(status: &Status, other: impl FnOnce(String) -> Self) -> Self {
        let text = status_text(status);
        match status::reason(status).filter(|reason| advice(*reason).is_some()) {
            Some(reason) => Self::Barred { reason, text },
            None => other(text),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => write!(f, "cannot open a session: {why}"),
            Self::Lost(why) => write!(f, "the session broke: {why}"),
            Self::Silent(wait) => write!(f, "the server was silent for {wait:?}"),
            Self::Drained { .. } => f.write_str("the server is shutting down"),
            Self::Superseded { host_name, address, .. } => {
                write!(
                    f,
                    "another client with this id has taken over: {host_name:?} at {address:?}"
                )
            }
            Self::Barred { reason, text } => {
                write!(f, "{text}: {}", advice(*reason).unwrap_or_default())
            }
            Self::Renewed => f.write_str("the certificate was renewed"),
            Self::SharesAnew => f.write_str("the policy was replaced"),
            Self::Left => f.write_str("the client is ending"),
        }
    }
}

/// A stream on which Welcome has come. Dropping it ends both halves.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) epoch: SessionEpoch,
    client: ClientId,
    /// As Hello said it.
    jobs_max: u32,
    heartbeat: Duration,
    silence: Duration,
    outbox: mpsc::Sender<ClientMessage>,
    inbound: Streaming<ServerMessage>,
    /// What is to be said, in order. While it is full, nothing is listened to.
    queue: VecDeque<FromClient>,
    seq: u64,
    /// Where the client's audit stands.
    audit: watch::Receiver<AuditHead>,
    heard: Instant,
    next_beat: Instant,
    malformed: u64,
}

/// What ends a session, so that the next one shows it.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    pub(super) standing: &'a mut Standing,
    pub(super) shares: &'a mut watch::Receiver<Arc<Source>>,
}

/// Where a client that is ending stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// Uploads finish.
    Softly,
    /// Uploads are stopped; the rest is said until then.
    By(Instant),
}

impl Session {
    /// Dials, says Hello, and waits for Welcome. The caller bounds the wait.
    pub(super) async fn open(
        dialer: &Dialer,
        hello: Hello,
        audit: watch::Receiver<AuditHead>,
        board: &Arc<Board>,
    ) -> Result<Self, End> {
        let channel = dialer.control().await;
        let channel = channel.map_err(|err| End::Refused(transport_text(&err)))?;
        let mut client = FileTransferClient::new(channel)
            .max_encoding_message_size(limits::CONTROL_MESSAGE_BYTES_MAX)
            .max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES_MAX);
        let (outbox, messages) = mpsc::channel(limits::OUTBOX_MAX);
        let (client_id, jobs_max) = (hello.client.clone(), hello.jobs_max);
        outbox.try_send(FromClient::Hello(hello).into()).expect("the outbox is empty");
        let refused = |status| End::of(&status, End::Refused);
        let response = client.connect(ReceiverStream::new(messages)).await.map_err(refused)?;
        let mut inbound = response.into_inner();
        let first = inbound.message().await.map_err(refused)?;
        let first = first.ok_or_else(|| End::Refused("the server ended the stream".to_owned()))?;
        board.heard();
        match FromServer::try_from(first) {
            Ok(FromServer::Welcome { session, heartbeat, silence }) => {
                let now = Instant::now();
                let mut session = Self {
                    epoch: session,
                    client: client_id,
                    jobs_max,
                    heartbeat,
                    silence,
                    outbox,
                    inbound,
                    queue: VecDeque::new(),
                    seq: 0,
                    audit,
                    heard: now,
                    next_beat: now,
                    malformed: 0,
                };
                session.plan_beat();
                Ok(session)
            }
            Ok(FromServer::Drain { reconnect_after }) => Err(End::Drained { reconnect_after }),
            Ok(FromServer::Superseded { host_name, address, reconnect_after }) => {
                Err(End::Superseded { host_name, address, reconnect_after })
            }
            Ok(_) => Err(End::Refused("the server's first message is no Welcome".to_owned())),
            Err(err) => Err(End::Refused(format!("no Welcome: {err}"))),
        }
    }

    /// Runs to the session's end.
    pub(super) async fn run(
        self,
        jobs: &mut Jobs,
        changes: Changes<'_>,
        board: &Board,
        shutdown: &Shutdown,
    ) -> End {
        let span = telemetry::session_span(&self.client, self.epoch);
        self.talk(jobs, changes, board, shutdown).instrument(span).await
    }

    async fn talk(
        mut self,
        jobs: &mut Jobs,
        changes: Changes<'_>,
        board: &Board,
        shutdown: &Shutdown,
    ) -> End {
        // A clone, so that a permit does not borrow all of `self`.
        let outbox = self.outbox.clone();
        let mut leaving = Leaving::No;
        let Changes { standing, shares } = changes;
        jobs.forget_questions();
        let mut look = interval(limits::THROTTLED_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut uploads_max = jobs.allowance().uploads_max_changes();
        // What has changed since Hello, and what it does not say.
        if *uploads_max.borrow_and_update() != self.jobs_max || jobs.is_throttled() {
            self.say_beat(jobs);
        }
        loop {
            self.fill_queue(jobs);
            let has_room = self.queue.len() < limits::OUTBOX_MAX;
            let is_said = self.queue.is_empty() && !jobs.has_report();
            if leaving != Leaving::No && jobs.is_idle() && is_said {
                drop(outbox);
                return self.leave().await;
            }
            tokio::select! {
                message = self.inbound.message(), if has_room => {
                    let end = match message {
                        Ok(Some(message)) => self.hear(message, jobs, board),
                        Ok(None) => Some(End::Lost("the server ended the stream".to_owned())),
                        Err(status) => Some(End::of(&status, End::Lost)),
                    };
                    if let Some(end) = end {
                        return end;
                    }
                }
                () = sleep_until(self.heard + self.silence) => return End::Silent(self.silence),
                () = sleep_until(self.next_beat) => self.beat(jobs),
                _ = look.tick(), if !jobs.is_idle() => {
                    if jobs.look_at_caps() {
                        self.say_beat(jobs);
                    }
                }
                // The sender lives with the jobs: it is not gone.
                _ = uploads_max.changed() => self.say_beat(jobs),
                // Closed: the stream has broken, and the inbound half knows why.
                Ok(permit) = outbox.reserve(), if !self.queue.is_empty() => {
                    if let Some(message) = self.queue.pop_front() {
                        permit.send(message.into());
                    }
                }
                () = jobs.next_ended() => {}
                // What runs goes on: attempts outlive the session.
                () = standing.renewed(), if leaving == Leaving::No => return End::Renewed,
                // The sender lives with the client: it is not gone.
                _ = shares.changed(), if leaving == Leaving::No => return End::SharesAnew,
                () = shutdown.draining().cancelled(), if leaving == Leaving::No => {
                    leaving = Leaving::Softly;
                    jobs.take_no_more();
                }
                () = shutdown.aborting().cancelled(), if leaving == Leaving::Softly => {
                    leaving = Leaving::By(Instant::now() + limits::GOODBYE_WAIT);
                    jobs.stop_all();
                }
                () = until(leaving) => return End::Left,
            }
        }
    }

    /// Queues what the jobs have to say, in at most half of the places: the rest is for answers to
    /// what the server says.
    fn fill_queue(&mut self, jobs: &mut Jobs) {
        while self.queue.len() < limits::OUTBOX_MAX / 2
            && let Some(report) = jobs.next_report()
        {
            self.queue.push_back(FromClient::Report(report));
        }
        while self.queue.len() < limits::OUTBOX_MAX / 2
            && let Some((question, explained)) = jobs.next_answer()
        {
            self.queue.push_back(FromClient::Explanation { question, explained });
        }
    }

    /// Takes one message; returns whether it ends the session.
    fn hear(&mut self, message: ServerMessage, jobs: &mut Jobs, board: &Board) -> Option<End> {
        self.heard = Instant::now();
        board.heard();
        match FromServer::try_from(message) {
            Ok(FromServer::Download(command)) => {
                let attempt = command.attempt;
                let verdict = jobs.command(command);
                tracing::debug!(%attempt, ?verdict, "was asked for a file");
                self.queue.push_back(FromClient::Reply { attempt, verdict });
            }
            Ok(FromServer::Stop(attempt)) => jobs.stop(attempt),
            Ok(FromServer::Explain { question, path, operator }) => {
                jobs.explain(question, path, operator);
            }
            Ok(FromServer::ReportAck(attempt)) => jobs.acknowledged(attempt),
            Ok(FromServer::Drain { reconnect_after }) => {
                return Some(End::Drained { reconnect_after });
            }
            Ok(FromServer::Superseded { host_name, address, reconnect_after }) => {
                return Some(End::Superseded { host_name, address, reconnect_after });
            }
            Ok(
                FromServer::HeartbeatAck { .. } | FromServer::Welcome { .. } | FromServer::Unknown,
            ) => {}
            Err(err) => {
                self.malformed += 1;
                // Once, so that a server cannot fill the log.
                if self.malformed == 1 {
                    tracing::warn!(error = %err, "ignored a malformed message of the server");
                }
            }
        }
        None
    }

    fn beat(&mut self, jobs: &mut Jobs) {
        self.plan_beat();
        // What the server could not take before, it may take now.
        jobs.tell_again();
        self.say_beat(jobs);
    }

    /// Says how things stand, whenever it was last said.
    fn say_beat(&mut self, jobs: &Jobs) {
        self.seq += 1;
        // One that the transport has not taken is out of date.
        self.queue.retain(|message| !matches!(message, FromClient::Heartbeat { .. }));
        self.queue.push_back(FromClient::Heartbeat {
            seq: self.seq,
            progress: jobs.progress(),
            jobs_max: Some(jobs.allowance().uploads_max()),
            audit_head: Some(*self.audit.borrow()),
        });
    }

    fn plan_beat(&mut self) {
        let jitter = 0.8 + 0.4 * fastrand::f64();
        self.next_beat = Instant::now() + self.heartbeat.mul_f64(jitter);
    }

    /// Says Goodbye, ends the sending half, and lets the server end the other one.
    async fn leave(mut self) -> End {
        let by = Instant::now() + limits::GOODBYE_WAIT;
        let goodbye = FromClient::Goodbye { reason: "the client is ending".to_owned() };
        let sent = timeout_at(by, self.outbox.send(goodbye.into())).await;
        if matches!(sent, Ok(Ok(()))) {
            drop(self.outbox);
            let rest = async { while let Ok(Some(_)) = self.inbound.message().await {} };
            // A server that does not end it is left all the same.
            let _ = timeout(limits::GOODBYE_WAIT, rest).await;
        }
        End::Left
    }
}

async fn until(leaving: Leaving) {
    match leaving {
        Leaving::By(instant) => sleep_until(instant).await,
        Leaving::No | Leaving::Softly => std::future::pending().await,
    }
}
