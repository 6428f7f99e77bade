//! Lines on their way to a file that nobody waits for: notes, sessions. Others decide how many
//! there are, so a minute has room for some lines, and what comes beyond is counted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    detail::Detail,
    entry::{Action, Entry},
};

/// The lines that wait, and the counts. It knows no clock and no lock.
#[derive(Debug)]
pub(super) struct Notes {
    /// A minute, but in tests.
    minute: Duration,
    /// In a minute, and that may wait.
    lines_max: usize,
    minute_began: Option<Instant>,
    /// Lines that this minute has taken.
    taken: usize,
    waiting: Vec<Entry>,
    left_out: Counts,
    /// When it is told what was left out.
    tell_at: Option<Instant>,
}

impl Notes {
    pub(super) fn new(lines_max: usize, minute: Duration) -> Self {
        Self {
            minute,
            lines_max,
            minute_began: None,
            taken: 0,
            waiting: Vec::new(),
            left_out: Counts::default(),
            tell_at: None,
        }
    }

    pub(super) fn add(&mut self, entry: Entry, now: Instant) {
        let began = match self.minute_began {
            Some(began) if now.saturating_duration_since(began) < self.minute => began,
            _ => {
                self.taken = 0;
                *self.minute_began.insert(now)
            }
        };
        // While the disk hangs nothing is taken away.
        if self.taken < self.lines_max && self.waiting.len() < self.lines_max {
            self.taken += 1;
            self.waiting.push(entry);
        } else {
            self.leave_out(entry.action(), began + self.minute);
        }
    }

    /// Takes what is to be written now: lines, and once a minute, or at the end, the counts.
    pub(super) fn take(&mut self, now: Instant, is_end: bool) -> (Vec<Entry>, LeftOut) {
        let lines = std::mem::take(&mut self.waiting);
        let is_due = is_end || self.tell_at.is_some_and(|at| at <= now);
        let left_out = if is_due {
            self.tell_at = None;
            self.left_out.take()
        } else {
            LeftOut::default()
        };
        (lines, left_out)
    }

    /// What was taken could not be written: then it is counted.
    pub(super) fn give_back(&mut self, lines: &[Entry], left_out: LeftOut, now: Instant) {
        for entry in lines {
            self.leave_out(entry.action(), now + self.minute);
        }
        if !left_out.is_empty() {
            self.left_out.add_all(left_out);
            self.tell_at.get_or_insert(now + self.minute);
        }
    }

    /// Returns how long nothing needs to be done.
    pub(super) fn idle_for(&self, now: Instant) -> Option<Duration> {
        self.tell_at.map(|at| at.saturating_duration_since(now))
    }

    fn leave_out(&mut self, action: Action, tell_at: Instant) {
        self.left_out.add(action, 1);
        self.tell_at.get_or_insert(tell_at);
    }
}

/// How many got no line of their own, while they are counted.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<Action, u64>);

impl Counts {
    pub(super) fn add(&mut self, action: Action, count: u64) {
        let counted = self.0.entry(action).or_default();
        *counted = counted.saturating_add(count);
    }

    pub(super) fn add_all(&mut self, left_out: LeftOut) {
        for (action, count) in left_out.0 {
            self.add(action, count);
        }
    }

    pub(super) fn sum(&self) -> u64 {
        self.0.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    pub(super) fn take(&mut self) -> LeftOut {
        LeftOut(std::mem::take(&mut self.0))
    }
}

/// How many got no line of their own, to be told.
#[derive(Debug, Default)]
pub(super) struct LeftOut(BTreeMap<Action, u64>);

impl LeftOut {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the entry that says so, if there are any.
    pub(super) fn entry(&self) -> Option<Entry> {
        let counts = || Entry::own(Action::AuditLeftOut, Detail::LeftOut(self.0.clone()));
        (!self.0.is_empty()).then(counts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::server::audit::entry::{Actor, Outcome};

    const MINUTE: Duration = Duration::from_secs(60);

    fn refused(action: Action) -> Entry {
        Entry::new(Actor::Unknown, "192.0.2.1:1", action, Outcome::Not("UNAUTHENTICATED"))
    }

    #[test]
    fn a_minute_has_so_many_lines_and_one_count_of_the_rest() {
        let start = Instant::now();
        let mut notes = Notes::new(3, MINUTE);
        for _ in 0..10 {
            notes.add(refused(Action::Refused), start);
        }
        notes.add(refused(Action::Login), start + MINUTE / 2);

        let (lines, left_out) = notes.take(start + MINUTE / 2, false);
        assert_eq!((lines.len(), left_out.entry()), (3, None));
        assert_eq!(notes.idle_for(start + MINUTE / 2), Some(MINUTE / 2));

        let (lines, left_out) = notes.take(start + MINUTE, false);
        assert_eq!(lines.len(), 0);
        assert_eq!(left_out.0, BTreeMap::from([(Action::Refused, 7), (Action::Login, 1)]));
        assert!(left_out.entry().is_some());
        assert_eq!(notes.idle_for(start + MINUTE), None);

        notes.add(refused(Action::Login), start + MINUTE);
        assert_eq!(notes.take(start + MINUTE, false).0.len(), 1);
    }

    proptest! {
        #[test]
        fn every_note_is_a_line_or_is_counted_and_no_minute_has_too_many(
            steps in prop::collection::vec((0..5_u8, 0..40_u64), 0..200)
        ) {
            let mut now = Instant::now();
            let mut notes = Notes::new(4, MINUTE);
            let (mut added, mut written, mut counted) = (0_u64, Vec::new(), 0_u64);
            for (step, seconds) in steps {
                match step {
                    0..3 => {
                        notes.add(refused(Action::Refused), now);
                        added += 1;
                    }
                    3 => {
                        let (lines, left_out) = notes.take(now, false);
                        written.extend(lines.iter().map(|_| now));
                        counted += left_out.0.values().sum::<u64>();
                    }
                    _ => {
                        let (lines, left_out) = notes.take(now, false);
                        notes.give_back(&lines, left_out, now);
                    }
                }
                prop_assert!(notes.waiting.len() <= 4);
                now += Duration::from_secs(seconds);
            }
            let (lines, left_out) = notes.take(now, true);
            counted += left_out.0.values().sum::<u64>();
            prop_assert_eq!(written.len() as u64 + lines.len() as u64 + counted, added);
            // Those that waited for the disk, and two minutes that meet.
            for at in &written {
                let near = written.iter().filter(|b| **b >= *at && **b - *at < MINUTE).count();
                prop_assert!(near <= 3 * 4, "{near}");
            }
        }
    }
}
