//! The attempts of this process: which run, which ended, and which reports the server has not
//! taken. They outlive every connection. A command is known by (transfer, epoch), so that one that
//! comes twice runs once.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    sync::{Arc, atomic::Ordering},
};

use blake3::Hash;
use prost::Message as _;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    allowance::Allowance,
    board::Board,
    upload::{Progress, Uploader},
};
use crate::{
    ids::{AttemptId, Epoch, IdError, OperatorName, RemotePath, TransferId},
    limits, telemetry,
    wire::{
        proto::DownloadCommand,
        session::{Command, Explained, Outcome, Report, UploadProgress, Verdict},
    },
};

mod reports;

use reports::Reports;

/// What is to be done about a command.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Start,
    /// It runs.
    Known,
    /// It ran, and ended so.
    Ended(Report),
    Refuse(Verdict),
}

/// What may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    ForOneMore,
    /// Only in the place of one that runs.
    ForAnother,
    Nothing,
}

/// The commands that are known: the latest of each transfer.
#[derive(Debug, Default)]
struct Table {
    known: HashMap<TransferId, Known>,
    /// Those that ended, oldest first; some may have been replaced since.
    ended: VecDeque<AttemptId>,
}

/// Thousands are remembered, so nothing here is as long as a server likes.
#[derive(Debug)]
struct Known {
    epoch: Epoch,
    command: Hash,
    /// `None` while it runs.
    report: Option<Report>,
}

/// Returns what tells a command from any other.
fn hash(command: &Command) -> Hash {
    // On the wire, a path that cannot be one looks as none.
    let is_path = [u8::from(command.path.is_ok())];
    let whole = DownloadCommand::from(command.clone()).encode_to_vec();
    blake3::Hasher::new().update(&is_path).update(&whole).finalize()
}

impl Table {
    /// Decides about `command`.
    fn decide(&self, command: &Command, room: Room) -> Decision {
        let AttemptId { transfer, epoch } = command.attempt;
        let start_if = |fits| if fits { Decision::Start } else { Decision::Refuse(Verdict::Busy) };
        let Some(known) = self.known.get(&transfer) else {
            return start_if(room == Room::ForOneMore);
        };
        let latest = known.epoch;
        if epoch < latest {
            return Decision::Refuse(Verdict::StaleEpoch);
        }
        if epoch == latest {
            return match &known.report {
                _ if known.command != hash(command) => Decision::Refuse(Verdict::Conflict),
                Some(report) => Decision::Ended(report.clone()),
                None => Decision::Known,
            };
        }
        let is_running = known.report.is_none();
        start_if(room == Room::ForOneMore || (room == Room::ForAnother && is_running))
    }

    fn start(&mut self, command: &Command) {
        let AttemptId { transfer, epoch } = command.attempt;
        self.known.insert(transfer, Known { epoch, command: hash(command), report: None });
    }

    fn end(&mut self, report: &Report) {
        let attempt = report.attempt;
        let Some(known) = self.known.get_mut(&attempt.transfer) else { return };
        // A newer attempt has taken its place.
        if known.epoch != attempt.epoch {
            return;
        }
        known.report = Some(report.clone());
        self.ended.push_back(attempt);
        if self.ended.len() > limits::COMMANDS_REMEMBERED_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            let latest = self.known.get(&oldest.transfer).map(|known| known.epoch);
            if latest == Some(oldest.epoch) {
                self.known.remove(&oldest.transfer);
            }
        }
    }
}

/// A running attempt.
#[derive(Debug)]
struct Running {
    stop: CancellationToken,
    /// Fires when its task has ended.
    ended: CancellationToken,
    progress: Arc<Progress>,
}

/// Runs commands, at most so many at a time. Its owner polls [`Jobs::next_ended`]; dropping it ends
/// all.
#[derive(Debug)]
pub(super) struct Jobs {
    uploader: Arc<Uploader>,
    board: Arc<Board>,
    allowance: Arc<Allowance>,
    taking: bool,
    table: Table,
    running: HashMap<TransferId, Running>,
    tasks: JoinSet<Report>,
    /// Whose task it is, for one that panics.
    attempts: HashMap<Id, AttemptId>,
    reports: Reports,
    /// What the server asked beside the work; each with its number.
    questions: JoinSet<(u64, Explained)>,
    answers: VecDeque<(u64, Explained)>,
}

impl Jobs {
    pub(super) fn new(uploader: Uploader, allowance: Arc<Allowance>, board: Arc<Board>) -> Self {
        Self {
            uploader: Arc::new(uploader),
            board,
            allowance,
            taking: true,
            table: Table::default(),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            attempts: HashMap::new(),
            reports: Reports::default(),
            questions: JoinSet::new(),
            answers: VecDeque::new(),
        }
    }

    /// Looks whether a path may be read. Of too many questions at a time the last is not answered.
    pub(super) fn explain(
        &mut self,
        question: u64,
        path: Result<RemotePath, IdError>,
        operator: Option<OperatorName>,
    ) {
        if self.questions.len() + self.answers.len() < limits::QUESTIONS_MAX {
            let uploader = self.uploader.clone();
            self.questions.spawn(async move { (question, uploader.explain(path, operator).await) });
        }
    }

    /// Returns an answer that is to be said.
    pub(super) fn next_answer(&mut self) -> Option<(u64, Explained)> {
        self.answers.pop_front()
    }

    /// What was asked in one session is no business of the next, which counts anew.
    pub(super) fn forget_questions(&mut self) {
        self.questions = JoinSet::new();
        self.answers.clear();
    }

    /// Takes a command, and returns the answer to it.
    pub(super) fn command(&mut self, command: Command) -> Verdict {
        // What has ended meanwhile makes room.
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.ended(ended);
        }
        match self.table.decide(&command, self.room()) {
            Decision::Start => {
                self.start(command);
                Verdict::Accepted
            }
            Decision::Known => Verdict::Accepted,
            Decision::Ended(report) => {
                self.reports.keep(report);
                Verdict::Accepted
            }
            Decision::Refuse(verdict) => verdict,
        }
    }

    fn room(&self) -> Room {
        // Each command that is taken makes a report, and reports are kept: so their bound is one of
        // commands.
        let reports = self.reports.len() + self.tasks.len();
        if !self.taking || reports >= limits::REPORTS_MAX {
            Room::Nothing
        } else if self.running.len() >= self.commands_max() {
            Room::ForAnother
        } else {
            Room::ForOneMore
        }
    }

    /// How many commands are held: those that run, and some that wait for a place.
    fn commands_max(&self) -> usize {
        self.allowance.uploads_max() as usize + limits::JOBS_WAITING_MAX
    }

    fn start(&mut self, command: Command) {
        let attempt = command.attempt;
        self.table.start(&command);
        let running = Running {
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            progress: Arc::new(Progress::new(&command)),
        };
        let (stop, progress) = (running.stop.clone(), running.progress.clone());
        let ended = running.ended.clone().drop_guard();
        let older = self.running.insert(attempt.transfer, running).map(|older| {
            older.stop.cancel();
            older.ended
        });
        let (uploader, allowance) = (self.uploader.clone(), self.allowance.clone());
        let task = async move {
            let _ended = ended;
            if let Some(older) = older {
                older.cancelled().await;
            }
            let _place = tokio::select! {
                place = allowance.place() => Some(place),
                () = stop.cancelled() => None,
            };
            uploader.run(&command, &stop, &progress).await
        };
        let span = telemetry::transfer_span(attempt.transfer);
        let task = self.tasks.spawn(task.instrument(span));
        self.attempts.insert(task.id(), attempt);
        self.show();
    }

    /// Stops this attempt, and any older one of its transfer.
    pub(super) fn stop(&self, attempt: AttemptId) {
        if let Some(running) = self.running.get(&attempt.transfer)
            && running.progress.attempt.epoch <= attempt.epoch
        {
            running.stop.cancel();
        }
    }

    pub(super) fn stop_all(&self) {
        self.running.values().for_each(|running| running.stop.cancel());
    }

    /// From now on every new command is answered with Busy.
    pub(super) fn take_no_more(&mut self) {
        self.taking = false;
    }

    /// Waits until an attempt ends, and keeps its report, or until there is an answer. Never returns
    /// while nothing runs. Cancel safe.
    pub(super) async fn next_ended(&mut self) {
        tokio::select! {
            Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            Some(answer) = self.questions.join_next() => match answer {
                Ok(answer) => self.answers.push_back(answer),
                Err(err) => tracing::error!(error = %err, "a question was not answered"),
            },
            else => pending().await,
        }
    }

    /// Keeps the report of a task that ended.
    fn ended(&mut self, ended: Result<(Id, Report), JoinError>) {
        let report = match ended {
            Ok((id, report)) => {
                self.attempts.remove(&id);
                report
            }
            Err(err) => {
                tracing::error!(error = %err, "an upload panicked");
                let Some(attempt) = self.attempts.remove(&err.id()) else { return };
                let detail = "the client met an error of its own".to_owned();
                Report { attempt, outcome: Outcome::Broken, detail }
            }
        };
        let attempt = report.attempt;
        if self.running.get(&attempt.transfer).is_some_and(|r| r.progress.attempt == attempt) {
            self.running.remove(&attempt.transfer);
        }
        self.table.end(&report);
        self.reports.keep(report);
        self.show();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn running(&self) -> Vec<AttemptId> {
        self.running.values().map(|running| running.progress.attempt).collect()
    }

    pub(super) fn progress(&self) -> Vec<UploadProgress> {
        let each = self.running.values().map(|running| &running.progress);
        each.map(|progress| UploadProgress {
            attempt: progress.attempt,
            sent_bytes: progress.sent.load(Ordering::Relaxed),
            throttled: progress.throttled.load(Ordering::Relaxed),
        })
        .collect()
    }

    /// Looks which attempts a cap holds back; returns whether that has changed.
    pub(super) fn look_at_caps(&self) -> bool {
        let mut changed = false;
        for running in self.running.values() {
            let throttled = running.progress.held.look();
            changed |= running.progress.throttled.swap(throttled, Ordering::Relaxed) != throttled;
        }
        changed
    }

    pub(super) fn is_throttled(&self) -> bool {
        let mut all = self.running.values();
        all.any(|running| running.progress.throttled.load(Ordering::Relaxed))
    }

    pub(super) fn allowance(&self) -> &Arc<Allowance> {
        &self.allowance
    }

    /// Whether there is a report that this session has not told.
    pub(super) fn has_report(&self) -> bool {
        self.reports.has_next()
    }

    pub(super) fn next_report(&mut self) -> Option<Report> {
        self.reports.next()
    }

    /// What carried the session before may be dead, and its data connections with it, before anybody
    /// has noticed: what is started from now on does not wait for that.
    pub(super) fn dial_anew(&self) {
        self.uploader.dial_anew();
    }

    /// Lets all reports be told again: in a new session, and when an answer is late.
    pub(super) fn tell_again(&mut self) {
        self.reports.tell_again();
    }

    /// The server has taken the report.
    pub(super) fn acknowledged(&mut self, attempt: AttemptId) {
        self.reports.forget(attempt);
    }

    fn show(&self) {
        self.board.transfers(self.running.values().map(|r| r.progress.clone()).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::Consistency;

    fn command(transfer: TransferId, epoch: u64) -> Command {
        Command {
            attempt: AttemptId { transfer, epoch: Epoch(epoch) },
            path: Ok(None),
            consistency: Consistency::Auto,
            size_max: 1,
            rate_max: None,
            signature: None,
            resume: None,
            operator: None,
        }
    }

    fn delivered(command: &Command) -> Report {
        Report { attempt: command.attempt, outcome: Outcome::Delivered, detail: String::new() }
    }

    #[test]
    fn a_command_runs_once_whatever_is_repeated() {
        let transfer = TransferId::generate();
        let mut table = Table::default();
        let second = command(transfer, 2);
        let other_body = Command { size_max: 9, ..second.clone() };
        assert_eq!(table.decide(&second, Room::ForOneMore), Decision::Start);
        table.start(&second);

        for room in [Room::ForOneMore, Room::ForAnother, Room::Nothing] {
            assert_eq!(table.decide(&second, room), Decision::Known);
            let lower = table.decide(&command(transfer, 1), room);
            assert_eq!(lower, Decision::Refuse(Verdict::StaleEpoch));
            let conflict = table.decide(&other_body, room);
            assert_eq!(conflict, Decision::Refuse(Verdict::Conflict));
            // It takes the place of the running one.
            let busy = Decision::Refuse(Verdict::Busy);
            let higher = if room == Room::Nothing { busy } else { Decision::Start };
            assert_eq!(table.decide(&command(transfer, 3), room), higher);
        }

        table.end(&delivered(&second));
        assert_eq!(table.decide(&second, Room::Nothing), Decision::Ended(delivered(&second)));
        assert_eq!(
            table.decide(&other_body, Room::ForOneMore),
            Decision::Refuse(Verdict::Conflict)
        );
        let lower = table.decide(&command(transfer, 1), Room::ForOneMore);
        assert_eq!(lower, Decision::Refuse(Verdict::StaleEpoch));
        assert_eq!(table.decide(&command(transfer, 3), Room::ForOneMore), Decision::Start);
        let busy = Decision::Refuse(Verdict::Busy);
        assert_eq!(table.decide(&command(transfer, 3), Room::ForAnother), busy);
    }

    #[test]
    fn no_path_and_one_that_cannot_be_are_two_commands() {
        let mut table = Table::default();
        let default_file = command(TransferId::generate(), 1);
        let path = "not absolute".parse::<RemotePath>().map(Some);
        assert!(path.is_err());
        let nonsense = Command { path, ..default_file.clone() };
        table.start(&default_file);
        let conflict = table.decide(&nonsense, Room::ForOneMore);
        assert_eq!(conflict, Decision::Refuse(Verdict::Conflict));
    }

    #[test]
    fn what_does_not_fit_is_not_remembered() {
        let table = Table::default();
        let one = command(TransferId::generate(), 1);
        assert_eq!(table.decide(&one, Room::ForAnother), Decision::Refuse(Verdict::Busy));
        assert_eq!(table.decide(&one, Room::ForOneMore), Decision::Start);
    }

    #[test]
    fn an_older_attempt_that_ends_late_changes_nothing() {
        let transfer = TransferId::generate();
        let mut table = Table::default();
        table.start(&command(transfer, 1));
        table.start(&command(transfer, 2));
        table.end(&delivered(&command(transfer, 1)));
        assert_eq!(table.decide(&command(transfer, 2), Room::ForOneMore), Decision::Known);
    }

    #[test]
    fn ended_commands_are_forgotten_oldest_first() {
        let mut table = Table::default();
        let first = command(TransferId::generate(), 1);
        let running = command(TransferId::generate(), 1);
        table.start(&running);
        for each in std::iter::once(first.clone()).chain(
            std::iter::repeat_with(|| command(TransferId::generate(), 1))
                .take(limits::COMMANDS_REMEMBERED_MAX),
        ) {
            table.start(&each);
            table.end(&delivered(&each));
        }
        assert_eq!(table.known.len(), limits::COMMANDS_REMEMBERED_MAX + 1);
        assert_eq!(table.decide(&first, Room::ForOneMore), Decision::Start);
        assert_eq!(table.decide(&running, Room::ForOneMore), Decision::Known);
    }
}
