//! The control connection: dials, keeps one session alive, dials again. It never gives up, and
//! nothing that a server says ends the process. What runs, and what is to be reported, lives in
//! [`Jobs`] and outlives every session.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    audit::Audit,
    board::Board,
    dial::Dialer,
    jobs::Jobs,
    renewal::Standing,
    session::{Changes, End, Session},
    source::Source,
};
use crate::{
    backoff::Backoff, ids::Digest, limits, shutdown::Shutdown, status::Reason, wire::session::Hello,
};

/// Owns the sessions, one after the other, and the jobs.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) dialer: Dialer,
    /// Without what is filled in for each session: the attempts that run, how many may, and what may
    /// be read.
    pub(super) hello: Hello,
    pub(super) jobs: Jobs,
    pub(super) shares: watch::Receiver<Arc<Source>>,
    pub(super) standing: Standing,
    pub(super) audit: Audit,
    pub(super) board: Arc<Board>,
    pub(super) shutdown: Shutdown,
}

impl Link {
    /// Runs until the shutdown has drained: running uploads may finish until it aborts.
    pub(super) async fn run(mut self) {
        let mut pauses = Pauses::new();
        while !self.shutdown.draining().is_cancelled() {
            if !self.standing.is_usable() {
                // It would be refused.
                self.await_renewal().await;
                continue;
            }
            let begun = Instant::now();
            let end = self.session().await;
            if begun.elapsed() >= limits::STABLE_AFTER && end.was_welcome() {
                pauses.reset();
            }
            if matches!(end, End::Left) {
                return;
            }
            if self.shutdown.draining().is_cancelled() {
                break;
            }
            let pause = pauses.after(&end);
            if matches!(end, End::Barred { reason: Reason::CertificateExpired, .. }) {
                self.standing.renew();
            }
            self.tell(&end, pause);
            self.pause(pause).await;
        }
        self.drain().await;
    }

    /// Holds one session, from dialling to its end.
    async fn session(&mut self) -> End {
        self.hello.running = self.jobs.running();
        self.hello.jobs_max = self.jobs.allowance().uploads_max();
        let source = self.shares.borrow_and_update().clone();
        self.hello.allowed_roots = within(source.roots(), limits::HELLO_ROOTS_BYTES_MAX);
        self.hello.policy_digest = Some(Digest::from(source.policy().digest()));
        self.hello.audit_head = Some(self.audit.head());
        let draining = self.shutdown.draining().clone();
        let opening = timeout(
            limits::WELCOME_WAIT,
            Session::open(&self.dialer, self.hello.clone(), self.audit.heads(), &self.board),
        );
        let opened = tokio::select! {
            opened = opening => opened.unwrap_or_else(|_| {
                let wait = limits::WELCOME_WAIT.as_secs();
                Err(End::Refused(format!("no Welcome within {wait} seconds")))
            }),
            () = draining.cancelled() => return End::Refused("ending".to_owned()),
        };
        match opened {
            Ok(session) => {
                let (client, epoch) = (&self.hello.client, session.epoch.0);
                tracing::info!(client_id = %client, server = %self.dialer, epoch, "registered");
                self.board.connected(session.epoch);
                self.jobs.dial_anew();
                self.jobs.tell_again();
                let changes = Changes { standing: &mut self.standing, shares: &mut self.shares };
                session.run(&mut self.jobs, changes, &self.board, &self.shutdown).await
            }
            Err(end) => end,
        }
    }

    /// Tells how the session ended; `pause` is how long it stays away.
    fn tell(&self, end: &End, pause: Duration) {
        if matches!(end, End::Renewed | End::SharesAnew) {
            tracing::info!(why = %end, "dials anew");
            return;
        }
        let text = end.to_string();
        self.board.disconnected(&text);
        match end {
            End::Superseded { host_name, address, .. } => tracing::error!(
                client_id = %self.hello.client, ?host_name, ?address,
                again_in_seconds = pause.as_secs(),
                "two machines share this client id: the other one has taken over; trying again \
                 after a while"
            ),
            End::Drained { .. } | End::Left => tracing::info!(reason = text, "disconnected"),
            // Nobody is needed: it renews itself.
            End::Barred { reason: Reason::CertificateExpired, .. } => {
                tracing::warn!(server = %self.dialer, reason = text, "no session; trying again");
            }
            End::Barred { .. } => tracing::error!(
                client_id = %self.hello.client, server = %self.dialer, reason = text,
                again_in_seconds = pause.as_secs(), "the server does not let this client in"
            ),
            End::Renewed | End::SharesAnew | End::Refused(_) | End::Lost(_) | End::Silent(_) => {
                tracing::warn!(server = %self.dialer, reason = text, "no session; trying again");
            }
        }
    }

    /// Waits, while attempts go on ending.
    async fn pause(&mut self, pause: Duration) {
        let draining = self.shutdown.draining().clone();
        let pause = sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => return,
                () = draining.cancelled() => return,
                // What was refused with the old certificate may not be with the new one.
                () = self.standing.renewed() => return,
                () = self.jobs.next_ended() => {}
            }
        }
    }

    /// Waits for a certificate that can be shown, while attempts go on ending.
    async fn await_renewal(&mut self) {
        tracing::warn!("the certificate of this client has expired: it is renewed first");
        // As for every pause; but there is no use in ending this one.
        self.pause(Duration::MAX).await;
    }

    /// Without a session: running uploads may finish until the shutdown aborts.
    async fn drain(mut self) {
        let aborting = self.shutdown.aborting().clone();
        while !self.jobs.is_idle() {
            tokio::select! {
                () = aborting.cancelled() => return,
                () = self.jobs.next_ended() => {}
            }
        }
    }
}

/// How long to stay away: the pauses grow while nothing works, and further while the server does
/// not take the client as who it is.
#[derive(Debug)]
struct Pauses {
    dial: Backoff,
    barred: Backoff,
}

impl Pauses {
    fn new() -> Self {
        Self {
            dial: Backoff::new(limits::DIAL_PAUSE_MIN, limits::DIAL_PAUSE_MAX),
            barred: Backoff::new(limits::DIAL_PAUSE_MIN, limits::BARRED_PAUSE_MAX),
        }
    }

    fn reset(&mut self) {
        self.dial.reset();
        self.barred.reset();
    }

    fn after(&mut self, end: &End) -> Duration {
        match end {
            End::Superseded { reconnect_after, .. } => {
                let least = (*reconnect_after).max(limits::SUPERSEDED_PAUSE);
                // No hint keeps a client away for longer than this, jitter included.
                (least + least.mul_f64(fastrand::f64())).min(limits::RECONNECT_HINT_MAX).max(least)
            }
            // A planned restart is no failure: the server knows when it is back, and what failed
            // before it no longer counts.
            End::Drained { reconnect_after } => {
                self.reset();
                // The hint could be zero, again and again.
                let least = (*reconnect_after).max(limits::DIAL_PAUSE_MIN);
                least + least.mul_f64(fastrand::f64())
            }
            End::Barred { .. } => self.barred.next_pause(),
            End::Renewed | End::SharesAnew => Duration::ZERO,
            End::Refused(_) | End::Lost(_) | End::Silent(_) | End::Left => self.dial.next_pause(),
        }
    }
}

/// Returns as many of the texts as fit.
fn within(texts: Vec<String>, bytes_max: usize) -> Vec<String> {
    let mut left = Some(bytes_max);
    let fits = |text: &String| {
        left = left.and_then(|left| left.checked_sub(text.len()));
        left.is_some()
    };
    texts.into_iter().take_while(fits).collect()
}

#[cfg(all(test, feature = "server"))] // For the fake server.
mod tests {
    use super::*;
    use crate::{
        audit_head::AuditHead,
        client::fake_server::{Client, FakeServer},
        ids::{AttemptId, Epoch, TransferId},
        transfer::{Consistency, FailReason},
        wire::session::{Command, FromClient, FromServer, Outcome, Verdict},
    };

    fn command(epoch: u64, transfer: TransferId, path: Option<&str>) -> Command {
        Command {
            attempt: AttemptId { transfer, epoch: Epoch(epoch) },
            path: Ok(path.map(|path| path.parse().expect("a path"))),
            consistency: Consistency::Auto,
            size_max: 1 << 30,
            rate_max: None,
            signature: None,
            resume: None,
            operator: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_redials_after_silence() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let first = server.session().await;
        let begun = Instant::now();
        let second = server.session().await;
        let away = begun.elapsed();
        assert!(away >= Duration::from_secs(55), "{away:?}");
        assert!(away <= Duration::from_secs(57), "{away:?}");
        assert_eq!(first.hello.instance, second.hello.instance);
        client.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn after_long_trouble_a_dead_session_is_replaced_within_a_minute_too() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        // By chance a pause may be short, but not each time.
        for _ in 0..5 {
            for _ in 0..8 {
                drop(server.hello().await);
            }
            let dead = server.session().await;
            let begun = Instant::now();
            let next = server.hello().await;
            let away = begun.elapsed();
            assert!(away <= Duration::from_secs(60), "{away:?}");
            drop((dead, next));
        }
        client.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn heartbeats_come_in_time_and_answers_keep_the_session() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let mut session = server.session().await;
        let mut last = Instant::now();
        for seq in 1..=20 {
            let beat = session.next().await;
            let expected = FromClient::Heartbeat {
                seq,
                progress: vec![],
                jobs_max: Some(2),
                audit_head: Some(AuditHead::NONE),
            };
            assert_eq!(beat, Some(expected));
            let pause = last.elapsed().as_secs_f64();
            assert!((19.9..30.1).contains(&pause), "{pause}");
            last = Instant::now();
            session.say(FromServer::HeartbeatAck { seq }).await;
        }
        client.stop().await;
    }

    fn jobs_max(beat: Option<FromClient>) -> Option<u32> {
        match beat {
            Some(FromClient::Heartbeat { jobs_max, .. }) => jobs_max,
            other => panic!("no heartbeat: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_number_of_uploads_is_told_at_once_and_in_the_next_hello() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let mut session = server.session().await;
        assert_eq!(session.hello.jobs_max, 2);
        assert_eq!(jobs_max(session.next().await), Some(2));
        let begun = Instant::now();
        for uploads_max in [7, 1] {
            client.allowance.set(None, uploads_max);
            assert_eq!(jobs_max(session.next().await), Some(uploads_max));
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

        drop(session);
        let session = server.hello().await;
        assert_eq!(session.hello.jobs_max, 1);
        // A change between Hello and Welcome is not lost.
        client.allowance.set(None, 5);
        let mut session = session.welcome().await;
        assert_eq!(jobs_max(session.next().await), Some(5));
        drop(session);
        client.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_superseded_client_stays_away_for_minutes() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let session = server.session().await;
        let begun = Instant::now();
        let (host_name, address) = ("other".to_owned(), "10.0.0.9".to_owned());
        let reconnect_after = Duration::from_secs(1);
        session.say(FromServer::Superseded { host_name, address, reconnect_after }).await;
        let _again = server.session().await;
        let away = begun.elapsed();
        assert!(away >= limits::SUPERSEDED_PAUSE, "{away:?}");
        assert!(away <= limits::SUPERSEDED_PAUSE * 2 + Duration::from_secs(1), "{away:?}");
        client.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_drained_server_is_called_again_after_its_hint() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let session = server.session().await;
        let begun = Instant::now();
        session.say(FromServer::Drain { reconnect_after: Duration::from_secs(20) }).await;
        let _again = server.session().await;
        let away = begun.elapsed();
        assert!(away >= Duration::from_secs(20), "{away:?}");
        assert!(away <= Duration::from_secs(41), "{away:?}");
        client.stop().await;
    }

    #[test]
    fn a_planned_restart_is_not_a_failure() {
        let mut pauses = Pauses::new();
        for _ in 0..20 {
            for _ in 0..10 {
                pauses.after(&End::Refused(String::new()));
            }
            let reconnect_after = Duration::from_secs(20);
            let pause = pauses.after(&End::Drained { reconnect_after });
            assert!(pause >= reconnect_after && pause <= reconnect_after * 2, "{pause:?}");
            let next = pauses.after(&End::Refused(String::new()));
            assert!(next <= limits::DIAL_PAUSE_MIN, "{next:?}");
            let zero = End::Drained { reconnect_after: Duration::ZERO };
            let pause = pauses.after(&zero);
            assert!(pause >= limits::DIAL_PAUSE_MIN, "{pause:?}");
        }
    }

    #[test]
    fn who_is_not_let_in_comes_back_ever_more_rarely_but_does() {
        let mut pauses = Pauses::new();
        let barred = End::Barred { reason: Reason::Revoked, text: String::new() };
        let mut longest = Duration::ZERO;
        for _ in 0..100 {
            longest = longest.max(pauses.after(&barred));
        }
        assert!(longest > limits::DIAL_PAUSE_MAX * 2, "{longest:?}");
        assert!(longest <= Duration::from_secs(600), "{longest:?}");
        assert!(pauses.after(&End::Lost(String::new())) <= limits::DIAL_PAUSE_MIN);
        assert_eq!(pauses.after(&End::Renewed), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_welcome_is_tried_again_and_again() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let mut last = Instant::now();
        for _ in 0..5 {
            let silent = server.hello().await;
            drop(silent);
            assert!(last.elapsed() <= limits::DIAL_PAUSE_MAX);
            last = Instant::now();
        }
        // One that keeps the stream open, but is not welcoming, is left after a while.
        let mute = server.hello().await;
        let _again = server.hello().await;
        assert!(last.elapsed() >= limits::WELCOME_WAIT);
        drop(mute);
        client.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_is_kept_over_sessions_until_it_is_acknowledged() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let mut session = server.session().await;
        let outside = command(1, TransferId::generate(), Some("/etc/passwd"));
        let attempt = outside.attempt;
        session.say(FromServer::Download(outside.clone())).await;
        let accepted = FromClient::Reply { attempt, verdict: Verdict::Accepted };
        assert_eq!(session.next().await, Some(accepted.clone()));
        let report = session.report().await;
        assert_eq!(report.outcome, Outcome::Failed(FailReason::DeniedByPolicy));
        assert_eq!(report.detail, "not allowed by the client's policy");
        drop(session);

        let mut session = server.session().await;
        // At once, not with the next heartbeat.
        assert_eq!(session.next().await, Some(FromClient::Report(report.clone())));
        session.say(FromServer::ReportAck(attempt)).await;
        // The command comes again: it is answered and reported again, and not run again.
        session.say(FromServer::Download(outside)).await;
        assert_eq!(session.next().await, Some(accepted));
        assert_eq!(session.report().await, report);
        session.say(FromServer::ReportAck(attempt)).await;
        // Wait until the client has read the acknowledgement.
        let unknown = command(0, attempt.transfer, None);
        session.say(FromServer::Download(unknown)).await;
        let stale = session.next().await;
        assert!(matches!(stale, Some(FromClient::Reply { verdict: Verdict::StaleEpoch, .. })));
        drop(session);

        let mut session = server.session().await;
        assert!(matches!(session.next().await, Some(FromClient::Heartbeat { .. })));
        client.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn nonsense_from_a_server_is_ignored() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let mut session = server.session().await;
        session.say(FromServer::Unknown).await;
        session.say_raw(crate::wire::proto::ServerMessage {
            body: Some(crate::wire::proto::server_message::Body::Download(
                crate::wire::proto::DownloadCommand::default(),
            )),
        });
        let bad = crate::wire::proto::DownloadCommand {
            attempt: Some(command(1, TransferId::generate(), None).attempt.into()),
            path: "/../etc/shadow".to_owned(),
            size_max: 1,
            ..Default::default()
        };
        session.say_raw(crate::wire::proto::ServerMessage {
            body: Some(crate::wire::proto::server_message::Body::Download(bad)),
        });
        let report = session.report().await;
        assert_eq!(report.outcome, Outcome::Failed(FailReason::DeniedByPolicy));
        client.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_ends_says_goodbye() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let mut session = server.session().await;
        let beat = session.next().await;
        assert!(matches!(beat, Some(FromClient::Heartbeat { .. })), "the session is not open");
        let stopping = client.stop();
        let goodbye = async {
            let said = session.next().await;
            assert!(matches!(said, Some(FromClient::Goodbye { .. })), "{said:?}");
            assert_eq!(session.next().await, None);
        };
        tokio::join!(stopping, goodbye);
    }

    #[test]
    fn no_hint_keeps_a_client_away_for_longer_than_ten_minutes() {
        let mut pauses = Pauses::new();
        for seconds in [0, 1, 300, 600] {
            let reconnect_after = Duration::from_secs(seconds);
            let (host_name, address) = (String::new(), String::new());
            let end = End::Superseded { host_name, address, reconnect_after };
            let pause = pauses.after(&end);
            assert!(pause >= reconnect_after.max(limits::SUPERSEDED_PAUSE), "{pause:?}");
            assert!(pause <= limits::RECONNECT_HINT_MAX, "{pause:?}");
        }
    }
}
