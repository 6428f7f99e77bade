//! Following transfers: one stream of events over however many calls it takes, and the command `fts
//! watch`.

use std::time::SystemTime;

use tokio::time::Instant;
use tonic::Streaming;

use super::{
    Context,
    config::Timing,
    connection::{Connection, Heard, Patience},
    error::Error,
    output::{Form, clean},
    progress::Reporter,
    pull,
    view::{self, EventView},
    words,
};
use crate::{
    ids::{ClientId, TransferId},
    status::Reason,
    wire::proto::{
        State, Transfer, WaitingReason, WatchTransfersRequest, WatchTransfersResponse,
        watch_transfers_response::Kind,
    },
};

/// One stream of events. When a call breaks, the next one resumes after the last event.
pub(super) struct Watch {
    connection: Connection,
    request: WatchTransfersRequest,
    stream: Option<Streaming<WatchTransfersResponse>>,
    patience: Patience,
}

impl Watch {
    /// Watches one transfer; `None`: those of `client`, or all.
    pub(super) fn new(context: &Context, id: Option<String>, client: Option<&ClientId>) -> Self {
        let request = WatchTransfersRequest {
            transfer_id: id.unwrap_or_default(),
            client_id: client.map(ToString::to_string).unwrap_or_default(),
            resume_token: String::new(),
        };
        let timing: &Timing = &context.timing;
        let patience = Patience::new(timing, timing.gone_wait);
        Self { connection: context.connection.clone(), request, stream: None, patience }
    }

    /// The server has answered other calls.
    pub(super) fn reached(mut self) -> Self {
        self.patience = self.patience.reached();
        self
    }

    /// Returns the next event. Dropped while it waits, it loses none.
    pub(super) async fn next(&mut self) -> Result<Heard<(Kind, Transfer)>, Error> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.patience.pause().await;
                match self.connection.watch(self.request.clone()).await {
                    Ok(stream) => self.stream = Some(stream),
                    Err(err) => return self.broke(err),
                }
                continue;
            };
            match stream.message().await {
                Ok(Some(event)) => {
                    self.patience.succeeded();
                    if let Some(seen) = self.take(event) {
                        return Ok(Heard::Got(seen));
                    }
                }
                Ok(None) => {
                    let err = self.connection.lost("it ended the watch");
                    return self.broke(err);
                }
                Err(status) => {
                    let err = self.connection.error(&status);
                    return self.broke(err);
                }
            }
        }
    }

    fn take(&mut self, event: WatchTransfersResponse) -> Option<(Kind, Transfer)> {
        let kind = event.kind();
        if !event.resume_token.is_empty() {
            self.request.resume_token = event.resume_token;
        }
        let wanted = &self.request.transfer_id;
        let transfer = event.transfer.filter(|t| wanted.is_empty() || t.id == *wanted)?;
        Some((kind, transfer))
    }

    fn broke<T>(&mut self, err: Error) -> Result<Heard<T>, Error> {
        self.stream = None;
        if err.reason() == Some(Reason::TokenExpired) && !self.request.resume_token.is_empty() {
            // What happened between is lost; how things stand now is not.
            self.request.resume_token.clear();
            return Ok(Heard::Lost("the server has dropped the events between".to_owned()));
        }
        self.patience.failed(err).map(Heard::Lost)
    }
}

/// How following a transfer came to an end.
pub(super) enum Followed {
    Ended(Box<Transfer>),
    /// Its time was over first.
    StillWaiting(Box<Transfer>),
}

/// Follows a transfer, of which `latest` is known, until it ends, or until `until`.
pub(super) async fn follow(
    context: &Context,
    mut latest: Transfer,
    until: Option<Instant>,
    reporter: &mut Reporter<'_>,
) -> Result<Followed, Error> {
    let id = clean(&latest.id);
    let mut watch = Watch::new(context, Some(latest.id.clone()), None).reached();
    reporter.seen("current", &latest, None).await?;
    while !is_final(&latest) {
        let step = async {
            let heard = watch.next().await?;
            let seen = match &heard {
                Heard::Got((_, transfer)) => last_seen(context, transfer).await,
                Heard::Lost(_) => None,
            };
            Ok::<_, Error>((heard, seen))
        };
        let (heard, seen) = tokio::select! {
            biased;
            () = context.stop.cancelled() => {
                reporter.clear();
                return Err(Error::Interrupted(format!(
                    "interrupted; transfer {id} goes on\n\
                     `fts watch {id}` follows it, `fts cancel {id}` ends it"
                )));
            }
            step = step => step.map_err(|err| {
                err.and(&format!("transfer {id} may go on: `fts watch {id}` follows it"))
            })?,
            () = sleep_until(until) => {
                reporter.clear();
                return Ok(Followed::StillWaiting(Box::new(latest)));
            }
        };
        match heard {
            Heard::Lost(why) => reporter.lost(&why).await,
            // Older than what is known: an answer to the call before the stream.
            Heard::Got((_, transfer)) if transfer.revision < latest.revision => {}
            Heard::Got((kind, transfer)) => {
                latest = transfer;
                if !is_final(&latest) {
                    reporter.seen(name(kind), &latest, seen).await?;
                }
            }
        }
    }
    reporter.clear();
    Ok(Followed::Ended(Box::new(latest)))
}

/// `fts watch`
pub(super) async fn run(
    context: &Context,
    id: Option<TransferId>,
    client: Option<ClientId>,
    until: Option<Instant>,
) -> Result<(), Error> {
    let Some(id) = id else { return watch_all(context, client.as_ref(), until).await };
    let first = context.unless_stopped(context.connection.transfer(&id.to_string())).await?;
    let mut reporter = Reporter::new(context);
    match follow(context, first, until, &mut reporter).await? {
        Followed::Ended(transfer) => pull::conclude(context, &transfer).await,
        Followed::StillWaiting(transfer) => pull::still_waiting(context, &transfer).await,
    }
}

/// Prints every change, as one line. Progress is for programs only: of many transfers it would be
/// all that one sees.
async fn watch_all(
    context: &Context,
    client: Option<&ClientId>,
    until: Option<Instant>,
) -> Result<(), Error> {
    let mut watch = Watch::new(context, None, client);
    // What was said about a server that is away, until it is back.
    let mut told = None;
    loop {
        let heard = tokio::select! {
            biased;
            () = context.stop.cancelled() => {
                return Err(Error::Interrupted("interrupted".to_owned()));
            }
            heard = watch.next() => heard?,
            () = sleep_until(until) => {
                return Err(Error::StillWaiting("stopped watching: --timeout is over".to_owned()));
            }
        };
        let heard = match heard {
            Heard::Lost(why) => {
                if told.as_ref() != Some(&why) {
                    context.output.note(&format!("{why}; trying again")).await;
                    told = Some(why);
                }
                continue;
            }
            Heard::Got(seen) => seen,
        };
        told = None;
        match (heard, context.output.form) {
            ((kind, transfer), Form::Json) => {
                context.output.json(&EventView::new(name(kind), &transfer)).await?;
            }
            ((Kind::Progress, _), Form::Text) => {}
            ((_, transfer), Form::Text) => {
                let at = view::rfc3339(transfer.update_time.as_ref());
                let at = at.unwrap_or_else(|| "-".to_owned());
                let Transfer { id, client_id, .. } = &transfer;
                let standing = words::standing(&transfer, None);
                context.output.line(&format!("{at}  {id}  {client_id}  {standing}")).await?;
            }
        }
    }
}

/// Returns when the client of a transfer was seen last, if that is what the transfer waits for.
/// Nice to know, no more: an error is no news here, since the watch will meet it too.
async fn last_seen(context: &Context, transfer: &Transfer) -> Option<SystemTime> {
    if transfer.waiting.as_ref()?.reason() != WaitingReason::ClientOffline {
        return None;
    }
    let client = context.connection.client(&transfer.client_id).await.ok()?;
    view::moment(client.last_seen.as_ref())
}

pub(super) async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

pub(super) fn is_final(transfer: &Transfer) -> bool {
    matches!(transfer.state(), State::Complete | State::Failed | State::Cancelled)
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified | Kind::Changed => "changed",
        Kind::Current => "current",
        Kind::Progress => "progress",
    }
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::{
        operator::fake::{self, Fake, ID, Say, Script, event, transfer},
        status,
    };

    /// A transfer that was asked for before, and what each watch of it says.
    fn script(watches: Vec<Vec<Say<WatchTransfersResponse>>>) -> Script {
        Script {
            transfers: vec![transfer(State::Queued, 1)],
            watches: watches.into(),
            ..Script::default()
        }
    }

    fn tokens(fake: &Fake) -> Vec<String> {
        fake.script().asked_watches.iter().map(|asked| asked.resume_token.clone()).collect()
    }

    #[tokio::test]
    async fn a_broken_watch_resumes_after_the_last_event() {
        let fake = Fake::start(script(vec![
            vec![
                event(Kind::Current, transfer(State::Queued, 1)),
                event(Kind::Changed, transfer(State::Offered, 2)),
                Say::Fail(Status::unknown("connection reset")),
            ],
            vec![event(Kind::Changed, transfer(State::Receiving, 3))], // ends cleanly, too early
            vec![event(Kind::Changed, fake::complete(b"x"))],
        ]))
        .await;
        let ran = fake.run(&["watch", ID]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(tokens(&fake), ["", "2", "3"]);
        assert!(ran.stderr.contains("trying again"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn with_an_expired_token_it_starts_again() {
        let fake = Fake::start(script(vec![
            vec![event(Kind::Current, transfer(State::Queued, 5))],
            vec![Say::Fail(status::status(Reason::TokenExpired, "dropped"))],
            vec![event(Kind::Current, fake::complete(b"x"))],
        ]))
        .await;
        let ran = fake.run(&["watch", ID]).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(tokens(&fake), ["", "5", ""]);
    }

    #[tokio::test]
    async fn what_is_older_than_known_is_not_told() {
        let fake = Fake::start(Script {
            transfers: vec![transfer(State::Offered, 4)],
            ..script(vec![vec![
                event(Kind::Current, transfer(State::Queued, 3)),
                event(Kind::Changed, fake::complete(b"x")),
            ]])
        })
        .await;
        let ran = fake.run(&["watch", ID]).await;
        assert_eq!(ran.stderr, "OFFERED\n");
    }

    #[tokio::test]
    async fn an_unknown_transfer_is_a_failure() {
        let fake = Fake::start(Script::default()).await;
        let ran = fake.run(&["watch", ID]).await;
        assert_eq!(ran.code, 1);
        assert!(ran.stderr.contains("fts transfers"), "{}", ran.stderr);
    }

    #[tokio::test]
    async fn all_of_a_client_are_watched_until_interrupted() {
        let fake = Fake::start(script(vec![vec![
            event(Kind::Current, transfer(State::Queued, 1)),
            event(Kind::Progress, transfer(State::Receiving, 2)),
            event(Kind::Changed, fake::complete(b"x")),
            Say::Hang,
        ]]))
        .await;
        let ran = fake.run_until_it_says(&["watch", "--client=web-1"], "COMPLETE").await;
        assert_eq!(ran.code, 130);
        let lines: Vec<&str> = ran.out().lines().collect();
        let expected = [format!("-  {ID}  web-1  QUEUED"), format!("-  {ID}  web-1  COMPLETE")];
        assert_eq!(lines, expected);
        assert_eq!(fake.script().asked_watches[0].client_id, "web-1");
    }
}
