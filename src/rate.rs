//! A cap: so many bytes a second, and never fewer than the smallest that makes sense.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::limits;

/// How many bytes may move in a second; from [`limits::RATE_MIN_BYTES`] to
/// [`limits::RATE_MAX_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Rate(u64);

/// Why a number or a text is not a [`Rate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    #[error("not a rate; write it like 5MB/s or 500KB/s, or off")]
    Form,
    #[error("is it bits or bytes? write bytes, like 5MB/s")]
    Bits,
    #[error(
        "less than the smallest rate, {} bytes a second; off means no cap",
        limits::RATE_MIN_BYTES
    )]
    TooSmall,
    #[error(
        "more than the largest rate, {} bytes a second; off means no cap",
        limits::RATE_MAX_BYTES
    )]
    TooLarge,
}

impl Rate {
    /// Returns the cap that a number stands for; none for zero, as in every message.
    pub fn from_number(bytes_per_second: u64) -> Result<Option<Self>, RateError> {
        if bytes_per_second == 0 { Ok(None) } else { Self::try_from(bytes_per_second).map(Some) }
    }

    /// Parses a cap; none for `off`, and for zero.
    pub fn parse(text: &str) -> Result<Option<Self>, RateError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("off") {
            return Ok(None);
        }
        let size = text.strip_suffix("/s").unwrap_or(text);
        let is_bits = size.strip_suffix('b').is_some_and(|rest| rest.contains(char::is_uppercase));
        if is_bits {
            return Err(RateError::Bits);
        }
        let bytes = size.parse::<bytesize::ByteSize>().map_err(|_| RateError::Form)?.as_u64();
        // Less than a byte is no zero.
        if bytes == 0 && size.contains(|c: char| ('1'..='9').contains(&c)) {
            return Err(RateError::TooSmall);
        }
        Self::from_number(bytes)
    }

    pub fn bytes_per_second(self) -> u64 {
        self.0
    }

    /// Returns how long so many bytes take.
    pub fn time_of(self, bytes: usize) -> Duration {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl TryFrom<u64> for Rate {
    type Error = RateError;

    fn try_from(bytes_per_second: u64) -> Result<Self, RateError> {
        match bytes_per_second {
            0..limits::RATE_MIN_BYTES => Err(RateError::TooSmall),
            limits::RATE_MIN_BYTES..=limits::RATE_MAX_BYTES => Ok(Self(bytes_per_second)),
            _ => Err(RateError::TooLarge),
        }
    }
}

impl From<Rate> for u64 {
    fn from(rate: Rate) -> Self {
        rate.0
    }
}

/// So that it reads back as the same.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            n if n % 1_000_000 == 0 => (n / 1_000_000, "MB"),
            n if n % 1000 == 0 => (n / 1000, "KB"),
            n => (n, "B"),
        };
        write!(f, "{number}{unit}/s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_written_as_people_write_it() {
        let cases = [
            ("5MB/s", 5_000_000),
            ("5MB", 5_000_000),
            ("5mb/s", 5_000_000),
            ("5 MB/s", 5_000_000),
            (" 5MiB/s ", 5 << 20),
            ("500KB/s", 500_000),
            ("1.5MB/s", 1_500_000),
            ("64000", 64_000),
            ("64000B/s", 64_000),
            ("1GB/s", 1_000_000_000),
        ];
        for (text, bytes) in cases {
            let rate = Rate::parse(text).expect(text).expect(text);
            assert_eq!(rate.bytes_per_second(), bytes, "{text}");
            assert_eq!(Rate::parse(&rate.to_string()), Ok(Some(rate)), "{rate}");
        }
    }

    #[test]
    fn no_cap_is_off_or_zero() {
        for text in ["off", "OFF", "0", "0MB/s"] {
            assert_eq!(Rate::parse(text), Ok(None), "{text}");
        }
        assert_eq!(Rate::from_number(0), Ok(None));
    }

    #[test]
    fn what_is_no_rate_is_refused_in_words() {
        for text in ["", "fast", "-5MB/s", "5MB/m", "5MB/s/s", "/s", "5 potatoes", "inf", "NaN"] {
            assert_eq!(Rate::parse(text), Err(RateError::Form), "{text}");
        }
        for text in ["5Mb/s", "5Gb", "64Kb/s", "5Mib/s"] {
            assert_eq!(Rate::parse(text), Err(RateError::Bits), "{text}");
        }
        for text in ["1", "63999", "63KB/s", "0.5B/s"] {
            assert_eq!(Rate::parse(text), Err(RateError::TooSmall), "{text}");
        }
        assert_eq!(Rate::from_number(1), Err(RateError::TooSmall));
        assert_eq!(Rate::from_number(u64::MAX), Err(RateError::TooLarge));
        assert_eq!(Rate::parse("2TiB/s"), Err(RateError::TooLarge));
        assert!(serde_json::from_str::<Rate>("1").is_err());
    }

    #[test]
    fn a_time_is_that_of_the_bytes() {
        let rate = Rate::try_from(64_000).expect("enough");
        assert_eq!(rate.time_of(64_000), Duration::from_secs(1));
        assert_eq!(rate.time_of(usize::MAX), Duration::from_nanos(u64::MAX));
        let fastest = Rate::try_from(1 << 40).expect("not too much");
        assert_eq!(fastest.time_of(1 << 20), Duration::from_nanos(953));
    }
}
