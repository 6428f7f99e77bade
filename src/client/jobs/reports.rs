//! Reports of attempts that ended, until the server has taken them.

use crate::{ids::AttemptId, wire::session::Report};

/// Reports that the server has not acknowledged, in order, and whether this session has told them.
#[derive(Debug, Default)]
pub(super) struct Reports {
    kept: Vec<(Report, Told)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    No,
    Yes,
}

impl Reports {
    pub(super) fn keep(&mut self, report: Report) {
        match self.kept.iter_mut().find(|(kept, _)| kept.attempt == report.attempt) {
            Some(kept) => *kept = (report, Told::No),
            None => self.kept.push((report, Told::No)),
        }
    }

    pub(super) fn next(&mut self) -> Option<Report> {
        let (report, told) = self.kept.iter_mut().find(|(_, told)| *told == Told::No)?;
        *told = Told::Yes;
        Some(report.clone())
    }

    pub(super) fn has_next(&self) -> bool {
        self.kept.iter().any(|(_, told)| *told == Told::No)
    }

    /// Lets all be told again.
    pub(super) fn tell_again(&mut self) {
        self.kept.iter_mut().for_each(|(_, told)| *told = Told::No);
    }

    /// The server has it.
    pub(super) fn forget(&mut self, attempt: AttemptId) {
        self.kept.retain(|(report, _)| report.attempt != attempt);
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Epoch, TransferId},
        wire::session::Outcome,
    };

    fn delivered() -> Report {
        let attempt = AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) };
        Report { attempt, outcome: Outcome::Delivered, detail: String::new() }
    }

    #[test]
    fn reports_are_told_once_a_session_and_kept_until_taken() {
        let one = delivered();
        let two = delivered();
        let mut reports = Reports::default();
        reports.keep(one.clone());
        reports.keep(two.clone());
        assert_eq!(reports.next(), Some(one.clone()));
        assert_eq!(reports.next(), Some(two));
        assert_eq!(reports.next(), None);
        reports.keep(one.clone());
        assert_eq!(reports.next(), Some(one));
        assert_eq!(reports.len(), 2);
    }
}
