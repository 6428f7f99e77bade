//! One life of a `Connect` stream, on the server: it answers heartbeats, sends commands that it
//! claims from the queue, passes reports on, and knows when the client is gone. The session ends
//! its own stream.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{
    audit::{Action, Detail},
    audited::Audited,
    authority::ClientCertificate,
    coordinator::Coordinator,
    error::Error,
    metrics::Ongoing,
    outbox::{NotSent, Outbox},
    places::Place,
    sessions::Session,
};
use crate::{
    audit_head::AuditHead,
    ids::{UnixMs, bounded},
    limits,
    status::Reason,
    wire::{
        proto::ClientMessage,
        session::{FromClient, FromServer, WireError},
    },
};

mod audit_head;
mod end;
mod offers;
mod quota;

use end::End;
use offers::{Prepared, next_place};
use quota::Quota;

/// Who opened a stream.
pub struct Dialled {
    pub address: String,
    pub certificate: Option<Arc<ClientCertificate>>,
    pub audited: Audited,
}

/// Serves one `Connect` stream from its Hello to its end.
pub async fn serve(
    coordinator: Arc<Coordinator>,
    mut inbound: Streaming<ClientMessage>,
    outbox: Outbox,
    Dialled { address, certificate, audited }: Dialled,
) {
    match open(&coordinator, &mut inbound, address, certificate.as_deref()).await {
        Ok((session, audit_head)) => {
            let span = crate::telemetry::session_span(&session.client, session.epoch);
            let mut link = Link::new(coordinator, session, audited, inbound, outbox);
            link.audit_head = audit_head;
            link.expires_at = certificate.map(|certificate| when(certificate.expires));
            tracing::Instrument::instrument(link.run(), span).await;
        }
        Err(err) => {
            if err.is_of_rights() {
                audited.refuse(Action::SessionOpen, &[], &err);
            }
            tracing::info!(reason = err.reason().as_str(), text = ?err.peer_text(), "refused a session");
            // A peer that has gone needs no answer.
            drop(outbox.send(Err(err.into_status())).await);
        }
    }
}

async fn open(
    coordinator: &Arc<Coordinator>,
    inbound: &mut Streaming<ClientMessage>,
    address: String,
    certificate: Option<&ClientCertificate>,
) -> Result<(Arc<Session>, Option<AuditHead>), Error> {
    let first = timeout(limits::HELLO_WAIT, inbound.message()).await;
    let refused = |text: &str| Error::refused(Reason::OutOfOrder, text);
    let message = match first {
        Err(_) => return Err(refused("no Hello came in time")),
        Ok(Err(_) | Ok(None)) => return Err(refused("the stream ended before its Hello")),
        Ok(Ok(Some(message))) => message,
    };
    let malformed = |err: WireError| Error::refused(Reason::InvalidArgument, err.to_string());
    let FromClient::Hello(hello) = message.try_into().map_err(malformed)? else {
        return Err(refused("a session begins with its Hello"));
    };
    if coordinator.shutdown.draining().is_cancelled() {
        return Err(Error::refused(Reason::Draining, "the server is shutting down"));
    }
    if certificate.is_some_and(|certificate| certificate.client != hello.client) {
        // Who a client is, its certificate says.
        let text = format!("the Hello names another client than the certificate: {}", hello.client);
        return Err(Error::refused(Reason::WrongClient, text));
    }
    coordinator.check_standing(certificate).await?;
    let audit_head = hello.audit_head;
    let session = coordinator.open_session(hello, address).await?;
    // Once more, now that a revocation would find the session.
    if let Err(err) = coordinator.check_standing(certificate).await {
        coordinator.close_session(&session).await?;
        return Err(err);
    }
    Ok((session, audit_head))
}

/// Returns the moment of a time of day, as far as it can be known now.
fn when(at: UnixMs) -> Instant {
    Instant::now() + at.since(UnixMs::now())
}

/// The session's two halves, and what it remembers.
struct Link {
    coordinator: Arc<Coordinator>,
    session: Arc<Session>,
    audited: Audited,
    inbound: Streaming<ClientMessage>,
    outbox: Outbox,
    /// When the queue is looked at without a ring, if that is known: at first, and when the next
    /// transfer will be due. Else the sweeper rings.
    claim_at: Option<Instant>,
    /// While the server is full, and the client has something to send.
    next_place: Option<Pin<Box<dyn Future<Output = Place> + Send>>>,
    /// Offers of which it is being found out what need not be sent again.
    preparing: JoinSet<Prepared>,
    /// When the client counts as gone.
    silent_at: Instant,
    /// When its certificate expires: then it must come with a new one.
    expires_at: Option<Instant>,
    quota: Quota,
    /// Where the client's own audit stands, as it last said.
    audit_head: Option<AuditHead>,
    /// Where that stood when it was last noted, and when that was.
    audit_noted: Option<(AuditHead, Instant)>,
    _open: Ongoing,
}

impl Link {
    fn new(
        coordinator: Arc<Coordinator>,
        session: Arc<Session>,
        audited: Audited,
        inbound: Streaming<ClientMessage>,
        outbox: Outbox,
    ) -> Self {
        let now = Instant::now();
        let silent_at = now + coordinator.sessions.silence_max();
        Self {
            _open: coordinator.metrics.session_opened(),
            coordinator,
            session,
            audited,
            inbound,
            outbox,
            claim_at: Some(now),
            next_place: None,
            preparing: JoinSet::new(),
            silent_at,
            expires_at: None,
            quota: Quota::new(now),
            audit_head: None,
            audit_noted: None,
        }
    }

    async fn run(mut self) {
        tracing::info!(
            host = ?self.session.host_name, address = self.session.address,
            instance = self.session.instance.short(), "client connected"
        );
        let host = Detail::Host(self.session.host_name.clone());
        self.tell(Action::SessionOpen, &[Detail::Instance(self.session.instance), host]);
        self.note_first_audit_head().await;
        let end = match self.welcome() {
            Ok(()) => self.serve().await,
            Err(end) => end,
        };
        // Its turn goes to the next one.
        self.next_place = None;
        self.farewell(&end);
        tracing::info!(why = %end, "client disconnected");
        self.tell(Action::SessionEnd, &[Detail::Text(end.to_string())]);
        if let Err(err) = self.coordinator.close_session(&self.session).await {
            // The sweeper finds what it left OFFERED.
            err.log();
        }
        if let End::Refused(err) = end {
            drop(self.outbox.try_send(Err(err.into_status())));
        }
    }

    /// Puts it on record, with where the client's own audit stands: every head that it told, not
    /// only the last one, holds it to what it wrote.
    fn tell(&self, action: Action, about: &[Detail]) {
        let session = Detail::Session(self.session.epoch);
        let head = self.audit_head.map(Detail::AuditHead);
        let about: Vec<_> =
            [session].into_iter().chain(about.iter().cloned()).chain(head).collect();
        self.audited.session(action, &about);
    }

    fn welcome(&mut self) -> Result<(), End> {
        let heartbeat = self.coordinator.sessions.heartbeat();
        let silence = heartbeat * limits::SERVER_SILENCE_PERCENT / 100;
        self.send(FromServer::Welcome { session: self.session.epoch, heartbeat, silence })
    }

    async fn serve(&mut self) -> End {
        loop {
            // What is said comes before more work for the client: else a client that delivers many
            // small files would be heard too late.
            let step = tokio::select! {
                biased;
                () = self.coordinator.shutdown.draining().cancelled() => Err(End::Draining),
                () = self.session.superseded.cancelled() => Err(End::Superseded),
                () = self.session.revoked.cancelled() => Err(End::revoked()),
                () = until(self.expires_at) => Err(End::CertificateExpired),
                message = self.inbound.message() => self.take(message).await,
                () = sleep_until(self.silent_at) => Err(End::Silent),
                place = next_place(&mut self.next_place) => self.act(Some(place)).await,
                () = self.session.bell.notified() => self.act(None).await,
                () = until(self.claim_at) => self.act(None).await,
                Some(prepared) = self.preparing.join_next() => self.offer_prepared(prepared).await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    async fn take(&mut self, message: Result<Option<ClientMessage>, Status>) -> Result<(), End> {
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => return Err(End::Closed),
            Err(status) => {
                tracing::debug!(code = ?status.code(), "a session was cut");
                return Err(End::Closed);
            }
        };
        self.session.note_heard();
        self.silent_at = Instant::now() + self.coordinator.sessions.silence_max();
        self.quota.spend().map_err(End::Refused)?;
        let refused =
            |err: WireError| End::Refused(Error::refused(Reason::InvalidArgument, err.to_string()));
        match message.try_into().map_err(refused)? {
            FromClient::Hello(_) => {
                Err(End::Refused(Error::refused(Reason::OutOfOrder, "a second Hello")))
            }
            FromClient::Heartbeat { seq, progress, jobs_max, audit_head } => {
                self.answer(FromServer::HeartbeatAck { seq }).await?;
                self.session.note_throttled(&progress);
                self.hear_audit_head(audit_head).await;
                if jobs_max.is_some_and(|jobs_max| self.session.note_jobs_max(jobs_max)) {
                    self.act(None).await?;
                }
                Ok(())
            }
            FromClient::Reply { attempt, verdict } => {
                let done = self.coordinator.replied(&self.session, attempt, verdict).await;
                self.note(done);
                Ok(())
            }
            FromClient::Report(report) => {
                let attempt = report.attempt;
                let done = self.coordinator.reported(&self.session, report).await;
                if done.as_ref().is_err_and(is_passing) {
                    // Not acknowledged: the client sends it again in its next session.
                    self.note(done);
                    return Ok(());
                }
                self.note(done);
                self.answer(FromServer::ReportAck(attempt)).await
            }
            FromClient::Explanation { question, explained } => {
                self.session.questions.answer(question, explained);
                Ok(())
            }
            FromClient::Goodbye { reason } => Err(End::Goodbye(reason)),
            FromClient::Unknown => Ok(()),
        }
    }

    /// What a client says of transfers that it does not have is ignored: of another's it is a
    /// refusal, and of the rest only our own trouble is worth a line.
    fn note(&self, done: Result<(), Error>) {
        if let Err(err) = done {
            if err.is_of_rights() {
                self.audited.refuse(Action::TransferReport, &[], &err);
            }
            err.log();
        }
    }

    /// Sends what a message of the client asks for. Until there is room nothing more is read of it.
    async fn answer(&mut self, message: FromServer) -> Result<(), End> {
        match timeout(limits::OUTBOX_WAIT, self.outbox.send(Ok(message.into()))).await {
            Ok(sent) => sent.map_err(|_| End::Closed),
            Err(_) => Err(End::Stuck),
        }
    }

    fn send(&self, message: FromServer) -> Result<(), End> {
        self.outbox.try_send(Ok(message.into())).map_err(|err| match err {
            NotSent::Full => End::Stuck,
            NotSent::Closed => End::Closed,
        })
    }

    /// Tells the client why, if it can still be told.
    fn farewell(&self, end: &End) {
        let word = match end {
            End::Draining => {
                FromServer::Drain { reconnect_after: self.coordinator.sessions.drain_pause() }
            }
            // Not a refusal: it comes back at once, with the certificate that it has by now.
            End::CertificateExpired => FromServer::Drain { reconnect_after: Duration::ZERO },
            End::Superseded => {
                let Some(by) = self.session.successor() else { return };
                if by.instance == self.session.instance {
                    // The same process, on a new connection.
                    return;
                }
                FromServer::Superseded {
                    host_name: bounded(by.host_name.clone(), limits::LABEL_BYTES_MAX),
                    address: by.address.clone(),
                    reconnect_after: limits::SUPERSEDED_PAUSE,
                }
            }
            End::Closed | End::Goodbye(_) | End::Silent | End::Stuck | End::Refused(_) => return,
        };
        if self.send(word).is_err() {
            tracing::debug!("the client cannot be told why");
        }
    }
}

/// Waits until then; for ever, if there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The same report may be taken later.
fn is_passing(err: &Error) -> bool {
    matches!(err, Error::Store(_) | Error::Landing(_) | Error::Internal(_))
}
