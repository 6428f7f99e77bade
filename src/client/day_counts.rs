//! How many bytes of each rule's files were sent today: kept in the state directory, so that neither
//! a restart nor a crash gives a rule more than it has. Blocks: it writes to a disk.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{Zoned, civil::Date};
use serde::{Deserialize, Serialize};

use super::state_dir::StateDir;
use crate::limits;

/// In the state directory.
const NAME: &str = "bytes-of-day.json";

#[derive(Debug)]
pub(super) struct DayCounts {
    state_dir: Arc<StateDir>,
    /// Read when it is first needed.
    day: Mutex<Option<Day>>,
}

#[derive(Debug)]
struct Day {
    date: Date,
    /// By the rule's name.
    rules: BTreeMap<String, Count>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    taken: u64,
    /// The file says that so many are: more are taken without it, until then.
    noted: u64,
}

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    date: Date,
    bytes: BTreeMap<String, u64>,
}

impl DayCounts {
    pub(super) fn new(state_dir: Arc<StateDir>) -> Self {
        Self { state_dir, day: Mutex::default() }
    }

    /// Takes `want` bytes of the `most` that a rule has today; returns whether so many were left.
    /// They are in the file before this returns.
    pub(super) fn take(&self, rule: &str, most: u64, want: u64, now: &Zoned) -> io::Result<bool> {
        let mut slot = self.day.lock().unwrap_or_else(PoisonError::into_inner);
        let known = match slot.take() {
            Some(day) => day,
            None => self.read()?,
        };
        let day = slot.insert(current(known, now.date()));
        let count = day.rules.get(rule).copied().unwrap_or_default();
        let taken = count.taken.saturating_add(want);
        if taken > most {
            return Ok(false);
        }
        let mut noted = count.noted;
        if taken > noted {
            // Some more, so that not every chunk needs the disk; a crash loses no more than these.
            noted = taken.saturating_add(limits::DAY_COUNT_AHEAD_BYTES.min(most / 16)).min(most);
            day.rules.insert(rule.to_owned(), Count { taken: count.taken, noted });
            if let Err(err) = self.write(day) {
                // Nothing may be taken of what is not in the file.
                day.rules.insert(rule.to_owned(), count);
                return Err(err);
            }
        }
        day.rules.insert(rule.to_owned(), Count { taken, noted });
        Ok(true)
    }

    fn read(&self) -> io::Result<Day> {
        let Some(bytes) = self.state_dir.read(NAME)? else {
            return Ok(Day { date: Date::MIN, rules: BTreeMap::new() });
        };
        let file: File = serde_json::from_slice(&bytes).map_err(|err| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{NAME} does not read: {err}"))
        })?;
        let count = |(rule, noted)| (rule, Count { taken: noted, noted });
        Ok(Day { date: file.date, rules: file.bytes.into_iter().map(count).collect() })
    }

    fn write(&self, day: &Day) -> io::Result<()> {
        let bytes = day.rules.iter().map(|(rule, count)| (rule.clone(), count.noted)).collect();
        let text = serde_json::to_vec(&File { date: day.date, bytes })?;
        self.state_dir.replace(NAME, &text)
    }
}

/// Returns the day that is counted: the one that was, also if the clock was set back to before it;
/// but not if it had been far ahead, or a rule would have nothing for as long.
fn current(known: Day, today: Date) -> Day {
    let ahead = Duration::try_from(today.duration_until(known.date));
    match ahead {
        Ok(ahead) if ahead <= limits::DAY_SET_BACK_MAX => return known,
        Ok(_) => tracing::warn!(
            counted = %known.date, %today,
            "the clock was set back by days: what was sent is counted anew"
        ),
        // It is over.
        Err(_) => {}
    }
    Day { date: today, rules: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIB: u64 = 1 << 20;

    struct Test {
        dir: tempfile::TempDir,
    }

    impl Test {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            Self { dir }
        }

        /// As a process that has just started.
        fn counts(&self) -> DayCounts {
            let path = self.dir.path().join("state");
            DayCounts::new(Arc::new(StateDir::open(&path).expect("opened")))
        }
    }

    fn day(day: u8) -> Zoned {
        format!("2026-03-{day:02}T12:00:00[UTC]").parse().expect("a time")
    }

    #[test]
    fn a_rule_has_so_many_bytes_a_day_and_no_more() {
        let test = Test::new();
        let counts = test.counts();
        let took = |rule, want, now| counts.take(rule, 10 * MIB, want, &day(now)).expect("noted");

        let all: u64 = (0..20).filter(|_| took("a", MIB, 1)).count() as u64;
        assert_eq!(all, 10);
        assert!(took("b", 10 * MIB, 1), "another rule has its own");
        assert!(!took("a", 1, 1));
        assert!(took("a", 10 * MIB, 2), "another day");
    }

    #[test]
    fn a_clock_that_is_set_back_gives_nothing_anew_unless_it_was_far_ahead() {
        for is_restarted in [false, true] {
            let test = Test::new();
            let first = test.counts();
            let all_of = |counts: &DayCounts, now| {
                counts.take("a", 10 * MIB, 10 * MIB, &day(now)).expect("noted")
            };
            assert!(all_of(&first, 15));

            let counts = if is_restarted {
                drop(first);
                test.counts()
            } else {
                first
            };
            assert!(!all_of(&counts, 14), "set back by a day");
            assert!(!all_of(&counts, 13), "by two");
            assert!(!all_of(&counts, 15), "the same day again");
            assert!(all_of(&counts, 16), "the next one");
            assert!(all_of(&counts, 13), "it had been far ahead");
            assert!(!all_of(&counts, 13));
        }
    }

    #[test]
    fn whatever_was_sent_is_counted_after_a_crash() {
        for sent in [1, MIB, 5 * MIB, 10 * MIB] {
            let test = Test::new();
            assert!(test.counts().take("a", 10 * MIB, sent, &day(1)).expect("noted"));

            let counts = test.counts();
            let left = 10 * MIB - sent;
            assert!(!counts.take("a", 10 * MIB, left + 1, &day(1)).expect("noted"), "{sent}");
            // A crash costs a little of the day's, never more than was agreed.
            let lost = (10 * MIB / 16).min(left);
            assert!(counts.take("a", 10 * MIB, left - lost, &day(1)).expect("noted"), "{sent}");
        }
    }

    #[test]
    fn a_disk_that_goes_on_failing_gives_nothing() {
        let test = Test::new();
        let counts = test.counts();
        assert!(counts.take("a", 10 * MIB, MIB, &day(1)).expect("noted"));
        fs::remove_dir_all(test.dir.path().join("state")).expect("removed");

        for _ in 0..3 {
            counts.take("a", 10 * MIB, MIB, &day(1)).expect_err("it cannot be noted");
        }
    }

    #[test]
    fn what_cannot_be_noted_is_not_given() {
        let test = Test::new();
        let counts = test.counts();
        fs::write(test.dir.path().join("state").join(NAME), "{").expect("written");

        for _ in 0..2 {
            let refused = counts.take("a", MIB, 1, &day(1)).expect_err("it does not read");
            assert!(refused.to_string().contains(NAME), "{refused}");
        }
    }
}
