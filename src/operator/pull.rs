//! `fts pull`: asks for a file, once, whatever happens on the way, and tells how that ended.

use uuid::Uuid;

use super::{
    Context,
    config::AskArgs,
    connection::Patience,
    error::Error,
    output::{Form, clean},
    progress::Reporter,
    view::EventView,
    watch::{self, Followed},
    words,
};
use crate::{
    ids::{ClientId, RemotePath},
    limits,
    rate::Rate,
    wire::{
        self,
        proto::{Consistency, State, Transfer, TriggerDownloadRequest},
    },
};

/// `fts pull`
pub(super) async fn run(
    context: &Context,
    client: &ClientId,
    path: Option<&RemotePath>,
    ask: &AskArgs,
    detach: bool,
) -> Result<(), Error> {
    let asked = trigger(context, client, path, ask).await?;
    let until = context.until();
    if detach {
        return match context.output.form {
            Form::Text => context.output.line(&asked.id).await,
            Form::Json => context.output.json(&EventView::new("triggered", &asked)).await,
        };
    }
    let mut reporter = Reporter::new(context);
    match watch::follow(context, asked, until, &mut reporter).await? {
        Followed::Ended(transfer) => conclude(context, &transfer).await,
        Followed::StillWaiting(transfer) => still_waiting(context, &transfer).await,
    }
}

/// Asks for a file. A lost answer is asked for again under the same request id, so that there is
/// one transfer.
pub(super) async fn trigger(
    context: &Context,
    client: &ClientId,
    path: Option<&RemotePath>,
    ask: &AskArgs,
) -> Result<Transfer, Error> {
    // However short the wait for the transfer is, the server may answer that it has taken the
    // request.
    let until = context.until().map(|until| until.max(context.start + limits::CONNECT_WAIT));
    let given = ask.request_id.as_ref().map(|id| id.as_str().to_owned());
    let request_id = given.unwrap_or_else(|| Uuid::new_v4().to_string());
    let consistency = if ask.strict { Consistency::Strict } else { Consistency::Auto };
    let deadline = context.deadline.map(|deadline| {
        prost_types::Duration::try_from(deadline).expect("a deadline is at most a year or so")
    });
    let signed = context.signing.as_ref().map(|signing| {
        let asked = wire::session::consistency(consistency);
        signing.sign(client, path, asked, context.rate_max)
    });
    let request = TriggerDownloadRequest {
        transfer_id: signed.as_ref().map(|s| s.transfer.to_string()).unwrap_or_default(),
        signature: signed.as_ref().map(|signed| (&signed.signature).into()),
        client_id: client.to_string(),
        path: path.map(|path| path.as_str().to_owned()).unwrap_or_default(),
        request_id: request_id.clone(),
        consistency: consistency.into(),
        deadline,
        max_rate: context.rate_max.map(Rate::bytes_per_second).unwrap_or_default(),
    };
    let perhaps = format!(
        "the server may have taken the request all the same: --request-id {request_id} asks for \
         the same transfer again"
    );
    tokio::select! {
        biased;
        () = context.stop.cancelled() => {
            let text = "interrupted before the server answered".to_owned();
            Err(Error::Interrupted(text).and(&perhaps))
        }
        asked = insist(context, request) => asked.map_err(|err| match err {
            Error::Unreachable { was_sent: true, .. } => err.and(&perhaps),
            _ => err,
        }),
        () = watch::sleep_until(until) => {
            let text = "the server gave no answer within --timeout".to_owned();
            Err(Error::Unreachable { text, was_sent: true }.and(&perhaps))
        }
    }
}

/// Asks until there is an answer.
async fn insist(context: &Context, request: TriggerDownloadRequest) -> Result<Transfer, Error> {
    let mut patience = Patience::new(&context.timing, context.timing.ask_wait);
    let mut told = String::new();
    loop {
        patience.pause().await;
        match context.connection.trigger(request.clone()).await {
            Ok(transfer) => return Ok(transfer),
            Err(err) => {
                let why = patience.failed(err)?;
                if why != told {
                    context.output.note(&format!("{why}; trying again")).await;
                    told = why;
                }
            }
        }
    }
}

/// Tells how a transfer ended: what a COMPLETE one brought, or why another one brought nothing.
pub(super) async fn conclude(context: &Context, transfer: &Transfer) -> Result<(), Error> {
    if context.output.form == Form::Json {
        context.output.json(&EventView::new("ended", transfer)).await?;
    }
    completed(transfer)?;
    if context.output.form == Form::Text {
        for line in words::aligned(&words::summary(transfer)) {
            context.output.line(&line).await?;
        }
    }
    Ok(())
}

/// Returns why an ended transfer has brought nothing, and what to do about it.
pub(super) fn completed(transfer: &Transfer) -> Result<(), Error> {
    let id = clean(&transfer.id);
    match transfer.state() {
        State::Complete => Ok(()),
        State::Cancelled => Err(Error::Failed(format!(
            "transfer {id} was CANCELLED\n`fts retry {id}` puts it back into the queue"
        ))),
        _ => {
            let failure = words::failure(transfer);
            let advice = words::advice(transfer);
            Err(Error::Failed(format!("transfer {id} FAILED: {failure}\n{advice}")))
        }
    }
}

/// Tells that the transfer goes on without us, and which one it is.
pub(super) async fn still_waiting(context: &Context, transfer: &Transfer) -> Result<(), Error> {
    match context.output.form {
        Form::Text => context.output.line(&transfer.id).await?,
        Form::Json => context.output.json(&EventView::new("still_waiting", transfer)).await?,
    }
    Err(is_waiting(transfer))
}

pub(super) fn is_waiting(transfer: &Transfer) -> Error {
    let id = clean(&transfer.id);
    let standing = words::standing(transfer, None);
    Error::StillWaiting(format!(
        "--timeout is over; transfer {id} goes on ({standing})\n\
         `fts watch {id}` follows it, `fts cancel {id}` ends it"
    ))
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::time::{Duration, SystemTime};

    use tonic::Status;

    use super::*;
    use crate::{
        operator::fake::{self, Fake, ID, Say, Script, event, run_at, transfer},
        status::{self, Reason},
        wire::proto::{
            Client, Delivered, FailReason, Waiting, WaitingReason, watch_transfers_response::Kind,
        },
    };

    /// A transfer that was asked for, and what is seen of it afterwards.
    fn script(seen: Vec<Transfer>) -> Script {
        Script {
            triggers: [Ok(transfer(State::Queued, 1))].into(),
            watches: [seen.into_iter().map(|t| event(Kind::Changed, t)).collect()].into(),
            ..Script::default()
        }
    }

    fn hanging() -> Script {
        Script { triggers: [Ok(transfer(State::Queued, 1))].into(), ..Script::default() }
    }

    #[tokio::test]
    async fn a_complete_transfer_is_told_with_all_that_matters() {
        let prefix =
            Transfer { delivered: Delivered::Prefix.into(), ..fake::complete(b"the bytes") };
        let fake = Fake::start(script(vec![prefix])).await;
        let ran = fake.run(&["pull", "web-1", "/var/log/a.log"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let root = blake3::hash(b"the bytes").to_string();
        for part in [ID, "9 B", "2 s", "1.0 MB/s", &root, "PREFIX", "/srv/fts/files/1"] {
            assert!(ran.out().contains(part), "{part}: {}", ran.out());
        }
    }

    #[tokio::test]
    async fn waiting_and_progress_are_told_line_by_line() {
        let offline = Transfer {
            waiting: Some(Waiting {
                reason: WaitingReason::ClientOffline.into(),
                ..Default::default()
            }),
            ..transfer(State::Queued, 2)
        };
        let moving =
            |done| Transfer { size: Some(100), bytes_done: done, ..transfer(State::Receiving, 3) };
        let seen = vec![offline, moving(10), moving(20), moving(30), fake::complete(b"x")];
        let seen_at = SystemTime::now() - Duration::from_secs(190);
        let client =
            Client { id: "web-1".into(), last_seen: Some(seen_at.into()), ..Default::default() };
        let fake = Fake::start(Script { clients: vec![client], ..script(seen) }).await;
        let ran = fake.run(&["pull", "web-1", "/var/log/a.log"]).await;
        let lines: Vec<&str> = ran.stderr.lines().collect();
        let expected = [
            "QUEUED",
            "QUEUED; waiting: client web-1 is offline, last seen 3 min ago",
            "RECEIVING: 10% (10 B of 100 B)",
        ];
        assert_eq!(lines, expected, "progress within 5 s of progress is not told");
    }

    #[tokio::test]
    async fn a_denied_transfer_fails_with_advice() {
        let denied = fake::failed(FailReason::DeniedByPolicy, FailReason::Unspecified, "");
        let fake = Fake::start(script(vec![denied])).await;
        let ran = fake.run(&["pull", "web-1", "/etc/shadow"]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("DENIED_BY_POLICY"), "{}", ran.stderr);
        assert!(ran.stderr.contains("its log names the --allow"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn text_of_a_client_cannot_steer_the_terminal() {
        let hostile =
            fake::failed(FailReason::Io, FailReason::Unspecified, "\u{1b}]0;x\u{7}\nok\u{202e}");
        let fake = Fake::start(script(vec![hostile])).await;
        let ran = fake.run(&["pull", "web-1"]).await;
        assert!(ran.stderr.contains("\\u{1b}]0;x\\u{7}\\nok\\u{202e}"), "{}", ran.stderr);
        assert!(!ran.stderr.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn a_transfer_that_somebody_cancelled_is_a_failure() {
        let fake = Fake::start(script(vec![transfer(State::Cancelled, 3)])).await;
        let ran = fake.run(&["pull", "web-1"]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("was CANCELLED"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn a_lost_answer_is_asked_for_again_under_the_same_request_id() {
        let mut script = script(vec![fake::complete(b"x")]);
        script.triggers.push_front(Err(Status::unavailable("connection reset")));
        script.triggers.push_front(Err(status::status(Reason::Draining, "restarting")));
        let fake = Fake::start(script).await;
        let ran = fake
            .run(&["pull", "web-1", "/x", "--strict", "--deadline=1h", "--max-rate=5MB/s"])
            .await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let script = fake.script();
        let [first, second, third] = &script.asked_triggers[..] else { panic!("three tries") };
        assert!(!first.request_id.is_empty());
        assert!(first == second && second == third);
        assert_eq!(first.consistency(), Consistency::Strict);
        assert_eq!(first.deadline.map(|d| d.seconds), Some(3600));
        assert_eq!(first.max_rate, 5_000_000);
    }

    #[tokio::test]
    async fn the_same_trouble_is_told_once() {
        let mut script = script(vec![fake::complete(b"x")]);
        for _ in 0..3 {
            script.triggers.push_front(Err(status::status(Reason::Draining, "restarting")));
        }
        let fake = Fake::start(script).await;
        let ran = fake.run(&["pull", "web-1"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.stderr.matches("trying again").count(), 1, "{}", ran.stderr);
    }

    #[tokio::test]
    async fn without_a_path_and_a_default_file_it_asks_for_a_path() {
        let nothing = Transfer {
            path: String::new(),
            ..fake::failed(FailReason::SourceNotFound, FailReason::Unspecified, "")
        };
        let fake = Fake::start(script(vec![nothing])).await;
        let ran = fake.run(&["pull", "web-1"]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("name a path"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn refusals_have_their_exit_codes() {
        let cases = [
            (Reason::UnknownClient, 1, "fts clients"),
            (Reason::RequestIdConflict, 1, "--request-id"),
            (Reason::NotLocal, 77, "not permitted"),
        ];
        for (reason, code, words) in cases {
            let triggers = [Err(status::status(reason, "no"))].into();
            let fake = Fake::start(Script { triggers, ..Script::default() }).await;
            let ran = fake.run(&["pull", "web-1"]).await;
            assert_eq!(ran.code, code, "{reason:?}");
            assert!(ran.stderr.contains(words), "{reason:?}: {}", ran.stderr);
            assert_eq!(fake.script().asked_triggers.len(), 1, "{reason:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_told_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        drop(listener);
        let ran = run_at(&address, &["pull", "web-1"], std::future::pending()).await;
        assert_eq!(ran.code, 69);
        assert!(
            ran.stderr.contains(&address) && ran.stderr.contains("SERVER_URL"),
            "{}",
            ran.stderr
        );
    }

    #[tokio::test]
    async fn detached_only_the_id_is_printed() {
        let fake = Fake::start(hanging()).await;
        let ran = fake.run(&["pull", "web-1", "--detach"]).await;
        assert_eq!((ran.code, ran.out()), (0, format!("{ID}\n").as_str()));
        assert_eq!(fake.script().asked_watches.len(), 0);
    }

    #[tokio::test]
    async fn when_the_time_is_over_the_transfer_goes_on() {
        let fake = Fake::start(hanging()).await;
        let ran = fake.run(&["pull", "web-1", "--timeout=0s"]).await;
        assert_eq!((ran.code, ran.out()), (75, format!("{ID}\n").as_str()));
        assert!(ran.stderr.contains("goes on"), "{}", ran.stderr);
        assert_eq!(fake.script().verbs.len(), 0);
    }

    #[tokio::test]
    async fn interrupted_it_leaves_the_transfer_and_names_it() {
        let fake = Fake::start(hanging()).await;
        let ran = fake.run_until_it_hangs(&["pull", "web-1"]).await;
        assert_eq!(ran.code, 130);
        assert!(ran.stderr.contains(&format!("fts cancel {ID}")), "{}", ran.stderr);
        assert_eq!(fake.script().verbs.len(), 0);
    }

    #[tokio::test]
    async fn json_is_one_object_per_line_and_ends_with_the_final_transfer() {
        let seen = vec![transfer(State::Receiving, 3), fake::complete(b"x")];
        let fake = Fake::start(script(seen)).await;
        let ran = fake.run(&["--json", "pull", "web-1"]).await;
        assert_eq!(ran.code, 0);
        let lines = ran.json();
        let events: Vec<_> = lines.iter().map(|l| (&l["event"], &l["state"])).collect();
        let text = format!("{events:?}");
        assert_eq!(events.len(), 3, "{text}");
        assert_eq!((&lines[2]["event"], &lines[2]["state"]), (&"ended".into(), &"COMPLETE".into()));
        assert_eq!(lines[2]["blake3"], blake3::hash(b"x").to_string());
    }

    #[tokio::test]
    async fn a_request_that_was_done_before_is_not_followed() {
        let triggers = [Ok(fake::complete(b"x"))].into();
        let fake = Fake::start(Script { triggers, ..Script::default() }).await;
        let ran = fake.run(&["pull", "web-1", "--request-id=again"]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(fake.script().asked_watches.len(), 0);
        assert_eq!(fake.script().asked_triggers[0].request_id, "again");
    }

    #[tokio::test]
    async fn interrupted_before_an_answer_it_tells_how_to_ask_again() {
        let fake = Fake::start(Script {
            triggers: [Err(Status::unavailable("gone"))].into(),
            ..Script::default()
        })
        .await;
        let ready = std::future::ready(());
        let ran = run_at(&fake.address, &["pull", "web-1", "--request-id=r-7"], ready).await;
        assert_eq!(ran.code, 130);
        assert!(ran.stderr.contains("--request-id r-7"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn a_watch_that_fails_for_good_names_the_transfer() {
        let refused = Say::Fail(status::status(Reason::NotLocal, "no"));
        let watches = [vec![refused]].into();
        let fake = Fake::start(Script { watches, ..hanging() }).await;
        let ran = fake.run(&["pull", "web-1"]).await;
        assert_eq!(ran.code, 77);
        assert!(ran.stderr.contains(&format!("fts watch {ID}")), "{}", ran.stderr);
    }
}
