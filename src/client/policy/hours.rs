//! Hours of the day in which a rule lets files out, by the machine's own clock and time zone.

use std::{fmt, str::FromStr, time::Duration};

use jiff::{Zoned, civil::Time};

/// From a minute of the day up to another one; over midnight, if that is the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    from: Time,
    to: Time,
}

impl Hours {
    pub(in crate::client) fn is_open(self, now: &Zoned) -> bool {
        let now = now.time();
        if self.from < self.to {
            (self.from..self.to).contains(&now)
        } else {
            now >= self.from || now < self.to
        }
    }

    /// Returns how long it is until they begin next.
    pub(in crate::client) fn open_in(self, now: &Zoned) -> Duration {
        until(self.from, now)
    }

    /// Returns how long it is until they end next.
    pub(in crate::client) fn close_in(self, now: &Zoned) -> Duration {
        until(self.to, now)
    }
}

/// Returns how long it is until a clock on the wall shows this. Where it is put forward over that,
/// it is as much later.
pub(in crate::client) fn until(time: Time, now: &Zoned) -> Duration {
    let zone = now.time_zone();
    let days = [Some(now.date()), now.date().tomorrow().ok()];
    let all = days
        .into_iter()
        .flatten()
        .filter_map(|day| day.to_datetime(time).to_zoned(zone.clone()).ok());
    let next = all.into_iter().find(|at| at > now);
    // Only at the end of time there is none.
    next.map_or(Duration::MAX, |at| now.duration_until(&at).unsigned_abs())
}

impl FromStr for Hours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not as \"22:00-06:00\"");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
        // All day, or never: whoever wrote it meant one of them.
        if from == to {
            Err(format!("{text:?} begins when it ends; for all day leave hours out"))
        } else {
            Ok(Self { from, to })
        }
    }
}

fn minute(text: &str) -> Option<Time> {
    if text == "24:00" {
        return Some(Time::midnight());
    }
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| {
        let is_plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_plain.then(|| text.parse::<i8>().ok()).flatten()
    };
    Time::new(number(hour)?, number(minute)?, 0, 0).ok()
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from.hour(), from.minute(), to.hour(), to.minute())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(text: &str) -> Hours {
        text.parse().expect("hours")
    }

    fn at(text: &str) -> Zoned {
        text.parse().expect("a time")
    }

    #[test]
    fn they_are_open_from_the_first_minute_up_to_the_last() {
        let office = hours("08:30-17:00");
        let night = hours("22:00-06:00");
        for (time, in_office, by_night) in [
            ("00:00", false, true),
            ("05:59", false, true),
            ("06:00", false, false),
            ("08:29", false, false),
            ("08:30", true, false),
            ("16:59", true, false),
            ("17:00", false, false),
            ("22:00", false, true),
            ("23:59", false, true),
        ] {
            let now = at(&format!("2026-03-01T{time}:59[UTC]"));
            assert_eq!(
                (office.is_open(&now), night.is_open(&now)),
                (in_office, by_night),
                "{time}"
            );
        }
        assert!(hours("01:00-24:00").is_open(&at("2026-03-01T23:59:59[UTC]")));
    }

    #[test]
    fn they_say_how_long_it_is_until_they_begin_and_end() {
        let night = hours("22:00-06:00");
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);

        let evening = at("2026-03-01T21:15:00[UTC]");
        assert_eq!(
            (night.open_in(&evening), night.close_in(&evening)),
            (minutes(45), minutes(525))
        );
        let begun = at("2026-03-01T22:00:00[UTC]");
        assert_eq!((night.open_in(&begun), night.close_in(&begun)), (minutes(1440), minutes(480)));
    }

    #[test]
    fn they_are_of_the_clock_on_the_wall_when_that_is_put_forward() {
        let now = at("2026-03-29T00:30:00[Europe/Berlin]");
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);

        assert_eq!(hours("04:00-05:00").open_in(&now), minutes(150), "an hour is left out");
        assert_eq!(hours("02:30-05:00").open_in(&now), minutes(120), "there is no such time");
    }

    #[test]
    fn what_is_no_hours_is_refused() {
        for text in
            ["", "22:00", "22-06", "22:00-6:00", "22:60-06:00", "25:00-06:00", "08:00-08:00"]
        {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
        assert!("00:00-24:00".parse::<Hours>().is_err(), "it says nothing");
        assert_eq!(hours("22:00-06:30").to_string(), "22:00-06:30");
    }
}
