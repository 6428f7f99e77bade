//! One attempt, from a command to the report of how it ended: a blocking reader on one side of a
//! short channel, the `UploadFile` call on the other. Whatever ends early lacks its Finish, and so
//! cannot be taken for a file.

use std::sync::{Arc, OnceLock, atomic::Ordering};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::{
    audit::{self, Audit, Event},
    data_connection::DataConnections,
    disk_wait::DiskWait,
    pace::{Limiter, Pace, Paced, ReadPace},
    reader::{Pool, Reading},
    resume::{Plan, Trails},
    source::{OpenFile, Source},
    terms::Terms,
    words::log_path,
};
use crate::{
    ids::{AttemptId, ClientId, InstanceId, bounded},
    limits,
    transfer::FailReason,
    wire::{
        proto::file_transfer_client::FileTransferClient,
        session::{Command, Header, Outcome, Report, Upload},
        upload_body::UploadBody,
    },
};

mod ending;
mod opening;
mod progress;

use ending::{Answer, Decision, answer, end_of_chunk, held, judge, note};
use opening::{NO_ANSWER, READS_HANG, Unopened};
pub(super) use progress::Progress;

/// What every attempt of this process needs.
#[derive(Debug)]
pub(super) struct Uploader {
    /// The newest one opens.
    source: watch::Receiver<Arc<Source>>,
    data: Arc<DataConnections>,
    /// For whom requests must be signed; without it none is.
    client: Option<ClientId>,
    instance: InstanceId,
    /// Shared by all of them.
    pace: Arc<Limiter>,
    audit: Audit,
    /// Counts the threads that touch the disk, because a read that hangs outlives its attempt.
    readers: Arc<Semaphore>,
    /// As many for questions, so that those about a disk that hangs take none from uploads.
    askers: Arc<Semaphore>,
    /// What they read into.
    buffers: Pool,
    /// What is known of files that did not arrive whole.
    trails: Trails,
    /// An equal fingerprint proves kept bytes: `--trust-fingerprint`.
    trusts_fingerprint: bool,
}

impl Uploader {
    pub(super) fn new(
        source: watch::Receiver<Arc<Source>>,
        data: Arc<DataConnections>,
        instance: InstanceId,
        pace: Arc<Limiter>,
        audit: Audit,
    ) -> Self {
        Self {
            source,
            data,
            client: None,
            instance,
            pace,
            audit,
            readers: Arc::new(Semaphore::new(limits::READERS_MAX)),
            askers: Arc::new(Semaphore::new(limits::QUESTIONS_MAX)),
            buffers: Pool::default(),
            trails: Trails::default(),
            trusts_fingerprint: false,
        }
    }

    pub(super) fn of_client(self, client: ClientId) -> Self {
        Self { client: Some(client), ..self }
    }

    pub(super) fn trusting_fingerprints(self, trusts_fingerprint: bool) -> Self {
        Self { trusts_fingerprint, ..self }
    }

    /// The next uploads come on new connections.
    pub(super) fn dial_anew(&self) {
        self.data.dial_anew();
    }

    /// Delivers the file that `command` asks for, unless `stop` fires. Dropping it stops it as
    /// well.
    pub(super) async fn run(
        &self,
        command: &Command,
        stop: &CancellationToken,
        progress: &Arc<Progress>,
    ) -> Report {
        let attempt = command.attempt;
        let work = self.deliver(command, progress);
        let (outcome, detail) = tokio::select! {
            biased;
            () = stop.cancelled() => (Outcome::Stopped, String::new()),
            ended = work => ended,
        };
        let report = Report { attempt, outcome, detail: bounded(detail, limits::DETAIL_BYTES_MAX) };
        self.note_end(&report, progress);
        let (path, epoch) = (log_path(&progress.path), attempt.epoch.0);
        let (sent, detail) = (progress.sent.load(Ordering::Relaxed), report.detail.as_str());
        match outcome {
            Outcome::Delivered => {
                let blake3 = progress.digest.get().map(tracing::field::display);
                let signer = progress.signer.get();
                tracing::info!(epoch, %path, sent, blake3, signer, "delivered");
            }
            Outcome::Stopped => tracing::info!(epoch, %path, sent, "stopped"),
            Outcome::Broken => {
                tracing::warn!(epoch, %path, sent, detail, "broke; the server decides");
            }
            Outcome::Held(hold, pause) => {
                let again_in_seconds = pause.as_secs();
                tracing::info!(epoch, %path, sent, ?hold, again_in_seconds, "held by the policy");
            }
            Outcome::Failed(reason) => {
                tracing::warn!(epoch, %path, sent, ?reason, detail, "not delivered");
            }
        }
        report
    }

    async fn deliver(&self, command: &Command, progress: &Arc<Progress>) -> (Outcome, String) {
        // Before the disk is looked at: what is held back looks the same whether it is there or not.
        let by_name = self.source.borrow().held_by_name(&command.path);
        if let Some((hold, pause)) = by_name {
            return held(hold, pause);
        }
        let Ok(permit) = self.readers.clone().try_acquire_owned() else {
            return (Outcome::Failed(FailReason::Io), READS_HANG.to_owned());
        };
        let (file, permit) = match self.open(command, permit).await {
            Ok(opened) => opened,
            Err(Unopened { err, why }) => {
                progress.refused.get_or_init(|| why);
                return (Outcome::Failed(err.reason()), err.to_string());
            }
        };
        if let Some(signer) = &file.signer {
            progress.signer.get_or_init(|| signer.clone());
        }
        if let Some((hold, pause)) = file.terms.held() {
            return held(hold, pause);
        }
        let size = file.fingerprint.size_bytes;
        progress.size.store(size, Ordering::Relaxed);
        if size > command.size_max {
            let detail = format!("it has {size} bytes; the server takes {}", command.size_max);
            return (Outcome::Failed(FailReason::TooLarge), detail);
        }
        let plan = self.plan(command, &file);
        let serve = Event::Serve {
            asked: progress.asked(),
            file: file.opened_path.clone().filter(|path| *path != progress.path),
            size,
            from: plan.kept.bytes(),
            rule: file.terms.name.clone(),
        };
        if let Err(err) = self.audit.serve(serve).await {
            return (Outcome::Failed(FailReason::Io), err.to_string());
        }
        progress.served.store(true, Ordering::Relaxed);
        let is_signed = file.signer.is_some();
        let ended = self.send(command, file, plan, permit, progress).await;
        if is_signed && ended.0 == Outcome::Delivered {
            self.spend(command.attempt).await;
        }
        ended
    }

    /// Notes in the audit how an attempt has ended.
    fn note_end(&self, report: &Report, progress: &Progress) {
        let asked = progress.asked();
        if progress.served.load(Ordering::Relaxed) {
            return self.audit.note(Event::End {
                asked,
                outcome: audit::outcome(report.outcome),
                sent: progress.sent.load(Ordering::Relaxed),
                blake3: progress.digest.get().copied(),
                detail: report.detail.clone(),
            });
        }
        let why = progress.refused.get().cloned();
        let why = why.unwrap_or_else(|| match report.detail.as_str() {
            "" => audit::outcome(report.outcome),
            detail => detail.to_owned(),
        });
        self.audit.note_some(Event::Refuse { asked, why });
    }

    /// Before anybody is told that it was delivered.
    async fn spend(&self, attempt: AttemptId) {
        let source = self.source.borrow().clone();
        if let Err(err) = spawn_blocking(move || source.spend(attempt.transfer)).await {
            tracing::error!(error = %err, "noting a delivery panicked");
        }
    }

    /// Decides where to begin.
    fn plan(&self, command: &Command, file: &OpenFile) -> Plan {
        let trail = self.trails.take(command.attempt.transfer);
        let resume = command.resume.as_ref();
        let plan = Plan::new(resume, &file.fingerprint, trail.as_ref(), self.trusts_fingerprint);
        if !plan.restart_detail.is_empty() {
            tracing::warn!(why = plan.restart_detail, "begins anew");
        } else if !plan.kept.is_empty() {
            tracing::info!(at = plan.kept.bytes(), proof = ?plan.proof, "goes on");
        }
        plan
    }

    fn header(&self, command: &Command, file: &OpenFile, plan: &Plan) -> Upload {
        Upload::Header(Header {
            attempt: command.attempt,
            instance: self.instance,
            offset: plan.kept.bytes(),
            size: file.fingerprint.size_bytes,
            fingerprint: file.fingerprint,
            path: file.path.clone(),
            restart_detail: plan.restart_detail.clone(),
        })
    }

    async fn send(
        &self,
        command: &Command,
        file: OpenFile,
        plan: Plan,
        permit: OwnedSemaphorePermit,
        progress: &Arc<Progress>,
    ) -> (Outcome, String) {
        let header = self.header(command, &file, &plan);
        let (sender, receiver) = mpsc::channel(limits::CHUNKS_IN_FLIGHT_MAX);
        let decision = Arc::new(OnceLock::new());
        let aborted = CancellationToken::new();
        let (noted, noted_abort) = (decision.clone(), aborted.clone());
        let (buffers, trails) = (self.buffers.clone(), self.trails.clone());
        let transfer = command.attempt.transfer;
        let (consistency, told) = (command.consistency, progress);
        progress.sent.fetch_max(plan.kept.bytes(), Ordering::Relaxed);
        let progress = progress.clone();
        let disk = Arc::new(DiskWait::new());
        let asked = Arc::clone(&disk);
        let terms = Arc::clone(&file.terms);
        let charged = Arc::clone(&terms);
        let over = CancellationToken::new();
        let again = ReadPace::new(terms.limiter.clone(), told.held.clone(), over.clone());
        let _over = over.drop_guard();
        // Not awaited: it ends when nobody hears it, and one that hangs in a read must hold up
        // nobody.
        drop(spawn_blocking(move || {
            let _permit = permit;
            let mut send = |message: Upload| {
                asked.answered();
                let (message, goes_on) = charged.charge(message);
                let end = note(&message, &noted);
                let is_new = end_of_chunk(&message);
                let heard = sender.blocking_send(message).is_ok();
                if heard && let Some(sent) = is_new {
                    progress.sent.fetch_max(sent, Ordering::Relaxed);
                }
                if end {
                    noted_abort.cancel();
                }
                asked.asks();
                heard && goes_on
            };
            if send(header) {
                let (file, plan, pool) = (&file, &plan, &buffers);
                let reading = Reading { file, consistency, plan, pool, again: &again };
                let trail = reading.read(&mut send);
                if let Some(trail) = trail {
                    trails.keep(transfer, trail);
                }
            }
            asked.answered();
        }));
        let pace = self.pace_of(command, &terms, told);
        let answer = tokio::select! {
            answer = answer(self.call(receiver, pace), &aborted) => answer,
            (hold, pause) = terms.end() => return held(hold, pause),
            () = disk.hangs(limits::READ_WAIT) => {
                return (Outcome::Failed(FailReason::Io), NO_ANSWER.to_owned());
            }
        };
        if let Some(Decision::Finish { digest, .. }) = decision.get() {
            told.digest.get_or_init(|| *digest);
        }
        judge(command.attempt, answer, decision.get())
    }

    fn pace_of(&self, command: &Command, terms: &Terms, progress: &Progress) -> Pace {
        Pace {
            client: self.pace.clone(),
            rule: terms.limiter.clone(),
            own: command.rate_max,
            held: progress.held.clone(),
        }
    }

    /// Sends messages as they come, at their pace.
    async fn call(&self, messages: mpsc::Receiver<Upload>, pace: Pace) -> Answer {
        let lease = self.data.lease();
        let body = UploadBody::new(messages);
        let mut client = FileTransferClient::new(Paced::new(lease.channel.clone(), body, pace))
            .max_decoding_message_size(limits::CONTROL_MESSAGE_BYTES_MAX);
        // The channel has the body.
        client.upload_file(tokio_stream::empty()).await
    }
}

#[cfg(all(test, feature = "server"))] // For the fake server.
mod audited;
#[cfg(all(test, feature = "server"))] // For the fake server.
mod denials;
#[cfg(all(test, feature = "server"))] // For the fake server.
mod hangs;

#[cfg(all(test, feature = "server"))] // For the fake server.
mod tests {
    use std::{
        fs,
        sync::atomic::AtomicU64,
        time::{Duration, Instant},
    };

    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        client::{
            config::Shared,
            fake_server::{Client, FakeServer, FakeSession, FakeUpload},
            state_dir::StateDir,
        },
        ids::{Digest, Epoch, TransferId},
        rate::Rate,
        status::Reason,
        transfer::{Consistency, Delivered, Finish},
        wire::{
            proto::{Receipt, UploadFileResponse, receipt},
            session::{FromClient, FromServer, Verdict},
        },
    };

    /// More than the windows and buffers of a stream hold: an upload that nobody reads cannot
    /// finish.
    const SIZE: usize = 16 * limits::CHUNK_BYTES + 5;

    fn data() -> Vec<u8> {
        (0..SIZE).map(|i| u8::try_from(i % 241).expect("small")).collect()
    }

    /// Commands the file `f` of the client's root.
    fn command(client: &Client, transfer: TransferId, epoch: u64) -> Command {
        let path = client.temp.path().join("root/f");
        Command {
            attempt: AttemptId { transfer, epoch: Epoch(epoch) },
            path: Ok(Some(path.to_str().expect("text").parse().expect("a path"))),
            consistency: Consistency::Auto,
            size_max: 1 << 30,
            rate_max: None,
            signature: None,
            resume: None,
            operator: None,
        }
    }

    async fn begin() -> (FakeServer, Client, FakeSession, Command) {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        fs::write(client.temp.path().join("root/f"), data()).expect("written");
        let session = server.session().await;
        let command = command(&client, TransferId::generate(), 1);
        session.say(FromServer::Download(command.clone())).await;
        (server, client, session, command)
    }

    fn receipt(command: &Command, size: u64, digest: Digest) -> UploadFileResponse {
        let receipt = Receipt {
            attempt: Some(command.attempt.into()),
            file: 0,
            range: None,
            status: receipt::Status::Complete.into(),
            size,
            digest: bytes::Bytes::copy_from_slice(digest.as_bytes()),
        };
        UploadFileResponse { receipts: vec![receipt] }
    }

    /// Takes all of an upload; returns the bytes and how it ended.
    async fn take(upload: &mut FakeUpload) -> (Vec<u8>, Option<Upload>) {
        let mut bytes = Vec::new();
        let mut end = None;
        while let Some(message) = upload.next().await {
            assert!(end.is_none(), "nothing follows the end");
            match message {
                Upload::Header(_) => {}
                Upload::Chunk { data, .. } => bytes.extend_from_slice(&data),
                other => end = Some(other),
            }
        }
        (bytes, end)
    }

    fn root() -> Digest {
        blake3::hash(&data()).into()
    }

    #[tokio::test]
    async fn it_delivers_and_reports_when_the_receipt_has_come() {
        let (mut server, client, mut session, command) = begin().await;
        let mut upload = server.upload().await;
        let Some(Upload::Header(header)) = upload.next().await else { panic!("no header") };
        assert_eq!(header.attempt, command.attempt);
        assert_eq!(header.instance, session.hello.instance);
        assert_eq!(header.size, SIZE as u64);
        let (bytes, end) = take(&mut upload).await;
        assert_eq!(bytes, data());
        let finish = Finish { digest: root(), delivered: Delivered::Unchanged, trusted_bytes: 0 };
        let fingerprint = header.fingerprint;
        assert_eq!(end, Some(Upload::Finish { size: SIZE as u64, finish, fingerprint }));
        upload.answer(Ok(receipt(&command, SIZE as u64, root())));

        let report = session.report().await;
        assert_eq!((report.attempt, report.outcome), (command.attempt, Outcome::Delivered));
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn after_a_new_session_uploads_come_on_new_connections() {
        let (mut server, client, mut session, first) = begin().await;
        let size = SIZE as u64;
        let mut upload = server.upload().await;
        take(&mut upload).await;
        upload.answer(Ok(receipt(&first, size, root())));
        assert_eq!(session.report().await.outcome, Outcome::Delivered);
        session.say(FromServer::ReportAck(first.attempt)).await;
        // Its data connection is still open.
        drop(session);
        let mut session = server.session().await;
        let before = server.dials.load(Ordering::Relaxed);

        let second = command(&client, TransferId::generate(), 1);
        session.say(FromServer::Download(second.clone())).await;
        let mut upload = server.upload().await;
        take(&mut upload).await;
        upload.answer(Ok(receipt(&second, size, root())));

        while session.report().await.attempt != second.attempt {}
        assert_eq!(server.dials.load(Ordering::Relaxed), before + 1);
        drop(session);
        client.stop().await;
    }

    /// Returns where a count stays, once it has come to `enough`.
    async fn settled(count: &AtomicU64, enough: u64) -> u64 {
        let mut last = 0;
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = count.load(Ordering::Relaxed);
            if now == last && now >= enough {
                return now;
            }
            last = now;
        }
    }

    #[tokio::test]
    async fn a_slow_server_and_a_fast_disk_stay_within_memory() {
        const MIB: u64 = limits::CHUNK_BYTES as u64;
        let size = 64 * MIB;
        let mut server = FakeServer::start();
        let temp = tempfile::tempdir().expect("a directory");
        let path = temp.path().join("f");
        fs::File::create(&path).expect("made").set_len(size).expect("grown");
        let parse = |path: &std::path::Path| path.to_str().expect("text").parse().expect("a path");
        let state = StateDir::open(&temp.path().join("state")).expect("free");
        let audit = Audit::open(&state).expect("opened");
        audit.start();
        let source = Source::new(
            &Shared::Policy(crate::client::policy::Policy::of_roots(vec![parse(temp.path())])),
            Arc::new(state),
        );
        let data = DataConnections::new(&server.dialer);
        let (instance, pace) = (InstanceId::generate(), Limiter::new(None));
        let sources = watch::Sender::new(Arc::new(source));
        let uploader = Uploader::new(sources.subscribe(), data, instance, pace, audit);
        let command = Command {
            attempt: AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) },
            path: Ok(Some(parse(&path))),
            consistency: Consistency::Auto,
            size_max: size,
            rate_max: None,
            signature: None,
            resume: None,
            operator: None,
        };
        let progress = Arc::new(Progress::new(&command));

        let slow = async {
            let mut upload = server.upload().await;
            // Not read until then: what has been read from the disk is in the window of the stream,
            // the channel, and on the way between them.
            let window = u64::from(limits::HTTP2_STREAM_WINDOW_BYTES);
            let sent = settled(&progress.sent, window).await;
            let most = window + (limits::CHUNKS_IN_FLIGHT_MAX as u64 + 3) * MIB;
            assert!(sent <= most, "{sent} bytes were read, more than {most}");
            let (bytes, _) = take(&mut upload).await;
            assert_eq!(bytes.len() as u64, size);
            upload.answer(Ok(receipt(&command, size, blake3::hash(&bytes).into())));
        };
        let stop = CancellationToken::new();
        let both = async { tokio::join!(uploader.run(&command, &stop, &progress), slow) };
        let (report, ()) = timeout(Duration::from_secs(60), both).await.expect("soon");

        assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
    }

    #[tokio::test]
    async fn a_receipt_for_anything_else_is_no_delivery() {
        let other = blake3::hash(b"other").into();
        let wrong: [fn(&Command, Digest) -> UploadFileResponse; 4] = [
            |command, other| receipt(command, SIZE as u64, other),
            |command, _| receipt(command, 1, root()),
            |_, _| UploadFileResponse::default(),
            |command, _| {
                let mut response = receipt(command, SIZE as u64, root());
                response.receipts[0].status = receipt::Status::Aborted.into();
                response
            },
        ];
        for wrong in wrong {
            let (mut server, client, mut session, command) = begin().await;
            let mut upload = server.upload().await;
            take(&mut upload).await;
            upload.answer(Ok(wrong(&command, other)));
            assert_eq!(session.report().await.outcome, Outcome::Broken);
            drop(session);
            client.stop().await;
        }
    }

    #[tokio::test]
    async fn a_receipt_that_comes_before_the_end_is_no_delivery() {
        let (mut server, client, mut session, command) = begin().await;
        let upload = server.upload().await;
        upload.answer(Ok(receipt(&command, SIZE as u64, root())));
        assert_eq!(session.report().await.outcome, Outcome::Broken);
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn a_refusal_is_told_by_its_reason() {
        let (mut server, client, mut session, _) = begin().await;
        let upload = server.upload().await;
        upload.answer(Err(crate::status::status(Reason::StaleEpoch, "a newer\nattempt")));
        let report = session.report().await;
        assert_eq!(report.outcome, Outcome::Broken);
        assert!(report.detail.starts_with("STALE_EPOCH: \"a newer\\nattempt\""), "{report:?}");
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn a_stop_ends_the_upload_without_a_finish() {
        let (mut server, client, mut session, command) = begin().await;
        let mut upload = server.upload().await;
        upload.next().await.expect("a header");
        session.say(FromServer::Stop(command.attempt)).await;
        assert_eq!(session.report().await.outcome, Outcome::Stopped);
        let (bytes, end) = take(&mut upload).await;
        assert!(bytes.len() < SIZE, "it was not stopped before its end");
        assert_eq!(end, None);
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn a_higher_epoch_stops_the_old_upload_and_then_starts() {
        let (mut server, client, mut session, command) = begin().await;
        let mut old = server.upload().await;
        old.next().await.expect("a header");
        let attempt = AttemptId { epoch: Epoch(2), ..command.attempt };
        let newer = Command { attempt, ..command.clone() };
        session.say(FromServer::Download(newer.clone())).await;
        let (_, end) = take(&mut old).await;
        assert_eq!(end, None);
        let report = session.report().await;
        assert_eq!((report.attempt, report.outcome), (command.attempt, Outcome::Stopped));

        let mut new = server.upload().await;
        let (bytes, _) = take(&mut new).await;
        assert_eq!(bytes, data());
        new.answer(Ok(receipt(&newer, SIZE as u64, root())));
        let report = session.report().await;
        assert_eq!((report.attempt, report.outcome), (attempt, Outcome::Delivered));
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn an_upload_outlives_its_session_and_hello_names_it() {
        let (mut server, client, session, command) = begin().await;
        let mut upload = server.upload().await;
        upload.next().await.expect("a header");
        drop(session);
        let mut session = server.session().await;
        assert_eq!(session.hello.running, [command.attempt]);
        let (bytes, _) = take(&mut upload).await;
        assert_eq!(bytes, data());
        upload.answer(Ok(receipt(&command, SIZE as u64, root())));
        assert_eq!(session.report().await.outcome, Outcome::Delivered);
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn some_commands_wait_for_a_place_and_the_next_is_told_busy() {
        let (_server, client, mut session, first) = begin().await;
        let running_max = client.allowance.uploads_max() as usize;
        let mut expected = vec![(first.attempt, Verdict::Accepted)];
        for held in 1..=running_max + limits::JOBS_WAITING_MAX {
            let next = command(&client, TransferId::generate(), 1);
            let has_room = held < running_max + limits::JOBS_WAITING_MAX;
            let verdict = if has_room { Verdict::Accepted } else { Verdict::Busy };
            expected.push((next.attempt, verdict));
            session.say(FromServer::Download(next)).await;
        }
        for (attempt, verdict) in expected {
            assert_eq!(session.next().await, Some(FromClient::Reply { attempt, verdict }));
        }
    }

    /// Returns which attempts the next heartbeat says are held back.
    async fn held_back(session: &mut FakeSession) -> Vec<AttemptId> {
        loop {
            if let Some(FromClient::Heartbeat { progress, .. }) = session.next().await {
                let held = progress.into_iter().filter(|each| each.throttled);
                return held.map(|each| each.attempt).collect();
            }
        }
    }

    #[tokio::test]
    async fn what_a_cap_holds_back_is_told_early_and_again_when_it_is_over() {
        let mut server = FakeServer::start();
        let client = Client::start(&server);
        let rate = |bytes| Some(Rate::try_from(bytes).expect("enough"));
        client.allowance.set(rate(limits::RATE_MIN_BYTES), 2);
        fs::write(client.temp.path().join("root/f"), data()).expect("written");
        let mut session = server.session().await;
        let begun = Instant::now();
        let command = command(&client, TransferId::generate(), 1);
        session.say(FromServer::Download(command.clone())).await;
        let mut upload = server.upload().await;
        assert_eq!(held_back(&mut session).await, [command.attempt]);

        drop(session);
        let mut session = server.session().await;
        assert_eq!(held_back(&mut session).await, [command.attempt], "told in each session");

        client.allowance.set(None, 2);
        let (bytes, _) = take(&mut upload).await;
        assert_eq!(bytes, data());
        assert_eq!(held_back(&mut session).await, []);
        // Far less than the cap would need, and less than a heartbeat.
        assert!(begun.elapsed() < Duration::from_secs(19), "{:?}", begun.elapsed());
        upload.answer(Ok(receipt(&command, SIZE as u64, root())));
        assert_eq!(session.report().await.outcome, Outcome::Delivered);
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn a_transfer_has_a_cap_of_its_own_and_the_others_none() {
        let (mut server, client, session, free) = begin().await;
        let mut upload = server.upload().await;
        let rate_max = Rate::try_from(4 << 20).ok();
        let capped = Command { rate_max, ..command(&client, TransferId::generate(), 1) };
        let begun = Instant::now();
        session.say(FromServer::Download(capped.clone())).await;
        let mut slow = server.upload().await;
        let (bytes, _) = take(&mut slow).await;
        assert_eq!(bytes, data());
        // 16 MiB at 4 MiB/s, less what may be sent at once.
        assert!(begun.elapsed() > Duration::from_secs(3), "{:?}", begun.elapsed());
        slow.answer(Ok(receipt(&capped, SIZE as u64, root())));
        let (bytes, _) = take(&mut upload).await;
        assert_eq!(bytes, data());
        upload.answer(Ok(receipt(&free, SIZE as u64, root())));
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn a_source_that_shrinks_is_aborted_in_words() {
        let (mut server, client, mut session, _) = begin().await;
        let mut upload = server.upload().await;
        let file = fs::OpenOptions::new().write(true).open(client.temp.path().join("root/f"));
        file.expect("open").set_len(1).expect("cut");
        let (_, end) = take(&mut upload).await;
        let aborted = matches!(end, Some(Upload::Abort { reason: FailReason::SourceChanged, .. }));
        assert!(aborted, "{end:?}");
        // No answer: the report comes on `Connect` all the same, once the call has ended.
        drop(upload);
        let report = session.report().await;
        assert_eq!(report.outcome, Outcome::Failed(FailReason::SourceChanged));
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn a_file_that_is_too_large_is_not_sent() {
        let (mut server, client, mut session, small) = begin().await;
        let mut first = server.upload().await;
        take(&mut first).await;
        let attempt = AttemptId { transfer: TransferId::generate(), ..small.attempt };
        let large = Command { attempt, size_max: SIZE as u64 - 1, ..small };
        session.say(FromServer::Download(large)).await;
        let report = session.report().await;
        assert_eq!(report.attempt, attempt);
        assert_eq!(report.outcome, Outcome::Failed(FailReason::TooLarge));
        drop(first);
        drop(session);
        client.stop().await;
    }

    #[tokio::test]
    async fn a_client_that_ends_lets_uploads_finish_until_it_aborts() {
        let (mut server, client, mut session, first) = begin().await;
        let attempt = AttemptId { transfer: TransferId::generate(), ..first.attempt };
        let second = Command { attempt, ..first };
        session.say(FromServer::Download(second)).await;
        let mut uploads = [server.upload().await, server.upload().await];
        let mut attempts = Vec::new();
        for upload in &mut uploads {
            let Some(Upload::Header(header)) = upload.next().await else { panic!("no header") };
            attempts.push(header.attempt);
        }
        client.shutdown.drain();
        let [mut finishing, _stuck] = uploads;
        let (bytes, _) = take(&mut finishing).await;
        assert_eq!(bytes, data());
        let finished = Command { attempt: attempts[0], ..command(&client, attempt.transfer, 1) };
        finishing.answer(Ok(receipt(&finished, SIZE as u64, root())));
        let report = session.report().await;
        assert_eq!((report.attempt, report.outcome), (attempts[0], Outcome::Delivered));

        client.shutdown.abort();
        let report = session.report().await;
        assert_eq!((report.attempt, report.outcome), (attempts[1], Outcome::Stopped));
        assert!(matches!(session.next().await, Some(FromClient::Goodbye { .. })));
        assert_eq!(session.next().await, None);
        drop(session);
        client.shutdown.ended().await;
    }
}
