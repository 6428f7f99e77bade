//! Where an audit stands: the number of its last line, and the hash that all lines up to it make.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, IdError};

/// The last line of a client's audit. Written as `SEQ:HASH`, the hash in hex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AuditHead {
    /// Of the first line it is 1; an audit without lines has 0.
    pub seq: u64,
    /// The line's own hash, which covers that of the line before it. Without a line: zeros.
    pub hash: Digest,
}

impl AuditHead {
    /// Of an audit without lines.
    pub const NONE: Self = Self { seq: 0, hash: Digest::ZERO };

    /// Whether an audit that stood at `self` may stand at `later` afterwards, as far as the two can
    /// tell: it has become longer, or is the same.
    pub fn may_become(self, later: Self) -> bool {
        later.seq > self.seq || later == self
    }
}

impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl From<AuditHead> for String {
    fn from(head: AuditHead) -> Self {
        head.to_string()
    }
}

impl TryFrom<String> for AuditHead {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl FromStr for AuditHead {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let (seq, hash) = text.split_once(':').ok_or(IdError::AuditHead)?;
        let seq = seq.parse().map_err(|_| IdError::AuditHead)?;
        Ok(Self { seq, hash: hash.parse().map_err(|_| IdError::AuditHead)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(seq: u64, of: &str) -> AuditHead {
        AuditHead { seq, hash: blake3::hash(of.as_bytes()).into() }
    }

    #[test]
    fn an_audit_grows_and_never_goes_back() {
        let now = head(7, "seven");
        assert!(AuditHead::NONE.may_become(now));
        assert!(now.may_become(now));
        assert!(now.may_become(head(8, "eight")));
        assert!(!now.may_become(head(7, "another seven")));
        assert!(!now.may_become(head(6, "six")));
        assert!(!now.may_become(AuditHead::NONE));
    }

    #[test]
    fn a_head_reads_as_it_is_written() {
        let now = head(7, "seven");
        assert_eq!(now.to_string().parse(), Ok(now));
        for bad in ["", "7", "7:", ":ab", "x:00", "-1:00"] {
            assert_eq!(bad.parse::<AuditHead>(), Err(IdError::AuditHead), "{bad}");
        }
    }
}
