//! Names of things: newtypes that are checked when they are built, so that a value in hand is
//! valid.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::{
    CLIENT_ID_BYTES_MAX, OPERATOR_BYTES_MAX, PATH_BYTES_MAX, REQUEST_ID_BYTES_MAX,
};

mod unix_ms;

#[cfg(test)]
pub(crate) use unix_ms::TEST_CLOCK;
pub use unix_ms::UnixMs;

/// Why a text is not the name that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    #[error(
        "a client id is 1 to {CLIENT_ID_BYTES_MAX} of A-Z a-z 0-9 . _ - and begins with a letter or digit"
    )]
    ClientId,
    #[error("an operator's name is 1 to {OPERATOR_BYTES_MAX} of A-Z a-z 0-9 . _ - @")]
    OperatorName,
    #[error("a transfer id is a UUID")]
    TransferId,
    #[error("the transfer id of a signed request is a UUIDv7")]
    ChosenTransferId,
    #[error("an instance id is 16 bytes")]
    InstanceId,
    #[error("a request id is 1 to {REQUEST_ID_BYTES_MAX} printable ASCII characters")]
    RequestId,
    #[error("a digest is 64 hexadecimal digits")]
    Digest,
    #[error("the head of an audit is SEQ:HASH, the hash of 64 hexadecimal digits")]
    AuditHead,
    #[error("a path must be absolute")]
    PathRelative,
    #[error("a path must not contain '..'")]
    PathParent,
    #[error("a path must not contain NUL")]
    PathNul,
    #[error("a path is at most {PATH_BYTES_MAX} bytes")]
    PathLong,
}

/// A client's name, as the site chose it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientId(String);

impl ClientId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClientId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let tail = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let valid = text.len() <= CLIENT_ID_BYTES_MAX
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(tail);
        if valid { Ok(Self(text.to_owned())) } else { Err(IdError::ClientId) }
    }
}

/// An operator's name, as an administrator chose it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OperatorName(String);

impl OperatorName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for OperatorName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@');
        let valid = (1..=OPERATOR_BYTES_MAX).contains(&text.len()) && text.bytes().all(plain);
        if valid { Ok(Self(text.to_owned())) } else { Err(IdError::OperatorName) }
    }
}

/// What was asked for, from request to verified bytes. Made by the server, or by who signs the
/// request; always a UUIDv7, so it sorts by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TransferId(Uuid);

impl TransferId {
    /// Makes a new one, unlike any other.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// Parses one that somebody else made, of the kind that is made here.
    pub fn chosen(text: &str) -> Result<Self, IdError> {
        let id: Self = text.parse()?;
        let is_v7 = id.0.get_version_num() == 7 && id.0.get_variant() == uuid::Variant::RFC4122;
        if is_v7 { Ok(id) } else { Err(IdError::ChosenTransferId) }
    }
}

impl FromStr for TransferId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        // Only the spelling that fts prints: one transfer has one name.
        let id = Uuid::try_parse(text).map_err(|_| IdError::TransferId)?;
        if id.hyphenated().to_string() == text { Ok(Self(id)) } else { Err(IdError::TransferId) }
    }
}

/// One life of a client process: 128 random bits that only it and the server know.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(Uuid);

impl InstanceId {
    pub fn generate() -> Self {
        Self(Uuid::new_v4())
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        Uuid::from_slice(bytes).map(Self).map_err(|_| IdError::InstanceId)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The whole of it, for the store alone: whoever knows it may upload as this instance.
    pub fn secret_text(&self) -> String {
        self.0.simple().to_string()
    }

    /// Enough of it to tell two apart in a log, and too little to act as one.
    pub fn short(&self) -> String {
        self.secret_text()[..8].to_owned()
    }
}

impl FromStr for InstanceId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::try_parse(text).map(Self).map_err(|_| IdError::InstanceId)
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstanceId({}…)", self.short())
    }
}

/// Numbers the attempts of a transfer. Whatever carries an older one can do nothing.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl Epoch {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One try at a transfer: what a command, an upload and a report name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId {
    pub transfer: TransferId,
    pub epoch: Epoch,
}

/// Numbers the sessions of a client.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct SessionEpoch(pub u64);

/// An operator's name for a request, so that repeating it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(String);

impl RequestId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let valid = (1..=REQUEST_ID_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| (0x20..0x7f).contains(&b));
        if valid { Ok(Self(text.to_owned())) } else { Err(IdError::RequestId) }
    }
}

/// A path on a client's machine: absolute, bounded, without `..` or NUL. It is asked for, not
/// trusted: only the client's `source` opens it, beneath an allowed root, and on the server it
/// never becomes a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RemotePath(String);

impl RemotePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the components, from the root on; `.` and empty ones are skipped.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty() && *part != ".")
    }
}

impl FromStr for RemotePath {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() > PATH_BYTES_MAX {
            return Err(IdError::PathLong);
        }
        if text.contains('\0') {
            return Err(IdError::PathNul);
        }
        if !text.starts_with('/') {
            return Err(IdError::PathRelative);
        }
        if text.split('/').any(|part| part == "..") {
            return Err(IdError::PathParent);
        }
        Ok(Self(text.to_owned()))
    }
}

/// A BLAKE3: of a whole file, of a policy, of a line of an audit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of nothing that there is.
    pub const ZERO: Self = Self([0; 32]);

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdError> {
        bytes.try_into().map(Self).map_err(|_| IdError::Digest)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        blake3::Hash::from_hex(text).map(Self::from).map_err(|_| IdError::Digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.transfer, self.epoch)
    }
}

impl fmt::Display for SessionEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text from a peer, kept within `bytes_max`, in memory too, and cut at a character.
pub fn bounded(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text.shrink_to_fit();
    text
}

/// Lets serde read and write a name by its text.
macro_rules! text {
    ($($name:ty => $write:expr),*) => {$(
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                $write(name)
            }
        }
    )*};
}

text!(
    ClientId => |name: ClientId| name.0,
    OperatorName => |name: OperatorName| name.0,
    TransferId => |name: TransferId| name.to_string(),
    InstanceId => |name: InstanceId| name.secret_text(),
    RequestId => |name: RequestId| name.0,
    RemotePath => |name: RemotePath| name.0,
    Digest => |name: Digest| name.to_string()
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_is_a_plain_name() {
        for good in ["client-1", "A", "9.b_c-D", &"x".repeat(63)] {
            assert!(good.parse::<ClientId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "é", "a\n", "../x", &"x".repeat(64)] {
            assert_eq!(bad.parse::<ClientId>(), Err(IdError::ClientId), "{bad:?}");
        }
    }

    #[test]
    fn an_operators_name_is_plain_and_bounded() {
        for good in ["alice", "a.b_c-d@example.com", "9", &"x".repeat(OPERATOR_BYTES_MAX)] {
            assert!(good.parse::<OperatorName>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "é", "a\n", &"x".repeat(OPERATOR_BYTES_MAX + 1)] {
            assert_eq!(bad.parse::<OperatorName>(), Err(IdError::OperatorName), "{bad:?}");
        }
    }

    #[test]
    fn a_remote_path_is_absolute_and_has_no_way_up() {
        assert!("/var/log/a b\nc".parse::<RemotePath>().is_ok());
        assert!("/a/..b/c..".parse::<RemotePath>().is_ok());
        assert_eq!("a".parse::<RemotePath>(), Err(IdError::PathRelative));
        assert_eq!("".parse::<RemotePath>(), Err(IdError::PathRelative));
        assert_eq!("/a/../b".parse::<RemotePath>(), Err(IdError::PathParent));
        assert_eq!("/a/..".parse::<RemotePath>(), Err(IdError::PathParent));
        assert_eq!("/a\0".parse::<RemotePath>(), Err(IdError::PathNul));
        let long = format!("/{}", "x".repeat(PATH_BYTES_MAX));
        assert_eq!(long.parse::<RemotePath>(), Err(IdError::PathLong));
    }

    #[test]
    fn an_instance_id_is_not_printed_whole() {
        let id = InstanceId::generate();
        assert!(!format!("{id:?}").contains(&id.secret_text()));
    }

    #[test]
    fn a_transfer_id_has_one_spelling() {
        let id = TransferId::generate();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string().to_uppercase().parse::<TransferId>(), Err(IdError::TransferId));
        assert_eq!(id.to_string().replace('-', "").parse::<TransferId>(), Err(IdError::TransferId));
    }

    #[test]
    fn bounded_text_is_cut_at_a_character() {
        assert_eq!(bounded("aé".to_owned(), 2), "a");
        assert_eq!(bounded("ab".to_owned(), 2), "ab");
        assert_eq!(bounded("a".repeat(100), 2).capacity(), 2);
    }
}
