//! Lines of what was done although they could not be written: rights were taken away, which nobody
//! must be able to hold up by filling a disk. They wait here, a bounded number of them, and are
//! written once they can be.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{
    AuditError,
    entry::Entry,
    notes::{Counts, LeftOut},
};

type Answer = oneshot::Sender<Result<(), AuditError>>;

/// The lines that wait. It knows no clock and no lock.
#[derive(Debug)]
pub(super) struct Owed {
    lines_max: usize,
    /// After a failure, unless something else is written.
    retry: Duration,
    lines: Vec<Entry>,
    answers: Vec<Answer>,
    left_out: Counts,
    try_at: Option<Instant>,
}

/// What is written at once.
#[derive(Debug, Default)]
pub(super) struct OwedLines {
    pub(super) lines: Vec<Entry>,
    pub(super) left_out: LeftOut,
    pub(super) answers: Vec<Answer>,
}

impl OwedLines {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.left_out.is_empty()
    }
}

impl Owed {
    pub(super) fn new(lines_max: usize, retry: Duration) -> Self {
        let (lines, answers) = (Vec::new(), Vec::new());
        Self { lines_max, retry, lines, answers, left_out: Counts::default(), try_at: None }
    }

    /// Returns how many lines wait, those that are only counted too.
    pub(super) fn count(&self) -> u64 {
        self.left_out.sum().saturating_add(self.lines.len() as u64)
    }

    pub(super) fn add(&mut self, entry: Entry, answer: Answer, now: Instant) {
        if self.lines.len() >= self.lines_max {
            self.left_out.add(entry.action(), 1);
            // Nobody waits any more: then nobody needs to know.
            drop(answer.send(Err(AuditError::Full)));
            return;
        }
        self.lines.push(entry);
        self.answers.push(answer);
        self.try_at = Some(now);
    }

    /// Takes what is to be written now: all, if it is time, or something else is written anyway.
    pub(super) fn take(&mut self, now: Instant, with_others: bool) -> OwedLines {
        if !with_others && self.try_at.is_none_or(|at| at > now) {
            return OwedLines::default();
        }
        self.try_at = None;
        OwedLines {
            lines: std::mem::take(&mut self.lines),
            left_out: self.left_out.take(),
            answers: std::mem::take(&mut self.answers),
        }
    }

    /// What was taken could not be written: it comes before what was added meanwhile.
    pub(super) fn give_back(&mut self, mut lines: Vec<Entry>, left_out: LeftOut, now: Instant) {
        lines.append(&mut self.lines);
        self.left_out.add_all(left_out);
        for entry in lines.drain(lines.len().min(self.lines_max)..) {
            self.left_out.add(entry.action(), 1);
        }
        self.lines = lines;
        if self.count() > 0 {
            self.try_at.get_or_insert(now + self.retry);
        }
    }

    /// Returns how long nothing needs to be done.
    pub(super) fn idle_for(&self, now: Instant) -> Option<Duration> {
        self.try_at.map(|at| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::audit::entry::{Action, Actor, Outcome};

    const RETRY: Duration = Duration::from_secs(5);

    fn revoked() -> Entry {
        Entry::new(Actor::Local, "", Action::ClientRevoke, Outcome::Asked)
    }

    #[test]
    fn so_many_wait_and_the_rest_is_counted_and_all_of_it_is_tried_again() {
        let start = Instant::now();
        let mut owed = Owed::new(3, RETRY);
        let add = |owed: &mut Owed| {
            let (answer, mut answered) = oneshot::channel();
            owed.add(revoked(), answer, start);
            matches!(answered.try_recv(), Ok(Err(AuditError::Full)))
        };
        let refused: Vec<_> = (0..4).map(|_| add(&mut owed)).collect();
        assert_eq!(refused, [false, false, false, true]);

        let taken = owed.take(start, false);
        assert_eq!((taken.lines.len(), taken.answers.len()), (3, 3));
        // Meanwhile two more come, and then the disk says no.
        assert!(!add(&mut owed) && !add(&mut owed));
        owed.take(start + RETRY, false).answers.clear();
        owed.give_back(vec![revoked(), revoked()], LeftOut::default(), start);
        owed.give_back(taken.lines, taken.left_out, start);

        assert_eq!(owed.count(), 6);
        assert_eq!(owed.idle_for(start), Some(RETRY));
        assert!(owed.take(start + RETRY / 2, false).is_empty(), "not yet");
        let all = owed.take(start + RETRY / 2, true);
        assert_eq!(all.lines.len(), 3);
        let told = format!("{:?}", all.left_out.entry());
        assert!(told.contains("ClientRevoke: 3"), "{told}");
        assert_eq!((owed.count(), owed.idle_for(start)), (0, None));
    }
}
