//! Bearer tokens: what an operator shows with each call, and what a machine joins with, once. A
//! token is `fts_KIND_ID_SECRET`, and `_ROOT` behind it where the server's certificate is of its
//! own authority: then whoever holds the token needs nothing else to know the server by. A join
//! token for one client alone ends in `@CLIENT`, so that the machine need not be told its id; what
//! the token is good for, the server's records say.
//!
//! The id is public and names the token in lists; the secret is 256 random bits, of which the
//! server keeps only the SHA-256.

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
    rand,
};

use crate::ids::ClientId;

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Operator,
    Join,
}

impl TokenKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Operator => "fts_op_",
            Self::Join => "fts_join_",
        }
    }
}

/// A text that must not be shown: it has no `Display`, and its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text, to be sent, or stored where only its owner reads.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a text is no token. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    #[error("not a token of fts; one begins with fts_op_ or fts_join_")]
    Form,
    #[error("this is a join token, and an operator's is needed")]
    Join,
    #[error("this is an operator's token, and a join token is needed")]
    Operator,
    #[error("the machine gives no random numbers")]
    NoRandom,
}

/// A token, whole.
#[derive(Debug, Clone)]
pub struct Token {
    pub kind: TokenKind,
    pub id: TokenId,
    secret: Secret,
    /// The root certificate that the server's own leads to.
    pub root: Option<Sha256>,
    /// The only client that it is good for, if it says so.
    pub client: Option<ClientId>,
}

impl Token {
    /// Makes a new one, unlike any other.
    pub fn generate(kind: TokenKind, root: Option<Sha256>) -> Result<Self, TokenError> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        rand::fill(&mut id).map_err(|_| TokenError::NoRandom)?;
        rand::fill(&mut secret).map_err(|_| TokenError::NoRandom)?;
        let secret = Secret(hex(&secret));
        Ok(Self { kind, id: TokenId(hex(&id)), secret, root, client: None })
    }

    /// Names the only client that it is good for.
    #[must_use]
    pub fn of_client(self, client: Option<ClientId>) -> Self {
        Self { client, ..self }
    }

    /// Parses a token, which must be of this kind.
    pub fn parse(text: &str, kind: TokenKind) -> Result<Self, TokenError> {
        let token: Self = text.trim().parse()?;
        match (token.kind, kind) {
            (TokenKind::Join, TokenKind::Operator) => Err(TokenError::Join),
            (TokenKind::Operator, TokenKind::Join) => Err(TokenError::Operator),
            _ => Ok(token),
        }
    }

    /// Returns the whole text.
    pub fn reveal(&self) -> Secret {
        let (prefix, id, secret) = (self.kind.prefix(), &self.id.0, &self.secret.0);
        let root = self.root.map_or_else(String::new, |root| format!("_{root}"));
        let client = self.client.as_ref().map_or_else(String::new, |client| format!("@{client}"));
        Secret(format!("{prefix}{id}_{secret}{root}{client}"))
    }

    /// Returns what the server keeps of it.
    pub fn hash(&self) -> Sha256 {
        let text = format!("{}{}_{}", self.kind.prefix(), self.id.0, self.secret.0);
        Sha256::of(text.as_bytes())
    }

    /// Whether this is the token of which `hash` was kept; the time it takes tells nothing.
    pub fn is_of(&self, hash: &Sha256) -> bool {
        verify_slices_are_equal(&self.hash().0, &hash.0).is_ok()
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let kinds = [TokenKind::Operator, TokenKind::Join];
        let found = kinds.iter().find_map(|kind| Some((*kind, text.strip_prefix(kind.prefix())?)));
        let (kind, rest) = found.ok_or(TokenError::Form)?;
        let (rest, client) = match rest.split_once('@') {
            Some((rest, client)) if kind == TokenKind::Join => (rest, Some(client)),
            Some(_) => return Err(TokenError::Form),
            None => (rest, None),
        };
        let client = client.map(str::parse).transpose().map_err(|_| TokenError::Form)?;
        let mut parts = rest.split('_');
        let (id, secret) = parts.next().zip(parts.next()).ok_or(TokenError::Form)?;
        let root = parts.next().map(str::parse).transpose().map_err(|_| TokenError::Form)?;
        if parts.next().is_some() || !is_hex(secret, SECRET_BYTES) {
            return Err(TokenError::Form);
        }
        Ok(Self { kind, id: id.parse()?, secret: Secret::new(secret), root, client })
    }
}

/// The public part of a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(String);

impl TokenId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenId {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if is_hex(text, ID_BYTES) { Ok(Self(text.to_owned())) } else { Err(TokenError::Form) }
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256: of a token, a certificate, or a public key. Shown in hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    pub fn of(bytes: &[u8]) -> Self {
        let digest = digest(&SHA256, bytes);
        Self(digest.as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if !is_hex(text, 32) {
            return Err(TokenError::Form);
        }
        let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16);
        let mut bytes = [0; 32];
        for (at, each) in bytes.iter_mut().enumerate() {
            *each = byte(at).map_err(|_| TokenError::Form)?;
        }
        Ok(Self(bytes))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
        text
    })
}

fn is_hex(text: &str, bytes: usize) -> bool {
    text.len() == 2 * bytes && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_only_it_fits_its_hash() {
        let root = Some(Sha256::of(b"root"));
        for (kind, root) in [(TokenKind::Operator, None), (TokenKind::Join, root)] {
            let token = Token::generate(kind, root).expect("random");
            let other = Token::generate(kind, root).expect("random");
            let read = Token::parse(token.reveal().reveal(), kind).expect("a token");
            assert_eq!((read.kind, &read.id, read.root), (kind, &token.id, root));
            assert!(read.is_of(&token.hash()));
            assert!(!other.is_of(&token.hash()));
        }
    }

    #[test]
    fn a_join_token_names_its_client_and_its_hash_does_not() {
        let plain = Token::generate(TokenKind::Join, Some(Sha256::of(b"r"))).expect("random");
        let named = plain.clone().of_client("web-1_x.y".parse().ok());
        let read = Token::parse(named.reveal().reveal(), TokenKind::Join).expect("a token");
        assert_eq!(read.client.as_ref().map(ClientId::as_str), Some("web-1_x.y"));
        assert!(read.is_of(&plain.hash()));
    }

    #[test]
    fn no_part_of_a_secret_is_in_a_debug_text() {
        let token = Token::generate(TokenKind::Join, None).expect("random");
        let shown = format!("{token:?} {:?}", token.reveal());
        assert!(!shown.contains(&token.secret.0[..8]), "{shown}");
    }

    #[test]
    fn what_is_no_token_is_refused_without_its_text() {
        let good = Token::generate(TokenKind::Join, None).expect("random").reveal();
        let good = good.reveal();
        let kinds = [TokenKind::Operator, TokenKind::Join];
        let bad = [
            "",
            "fts_join_",
            "hunter2hunter2",
            &good[..good.len() - 1],
            &format!("{good}0"),
            &format!("{good}_"),
            &format!("{good}@"),
            &format!("{good}@../x"),
            &format!("{good}@a@b"),
            &format!("{good}_{}_{}", "0".repeat(64), "0".repeat(64)),
            &good.to_uppercase(),
            &good.replace("fts_join", "fts_admin"),
        ];
        for text in bad {
            for kind in kinds {
                let err = Token::parse(text, kind).expect_err(text).to_string();
                assert!(!err.contains("hunter2"), "{err}");
            }
        }
        assert_eq!(Token::parse(good, TokenKind::Operator).err(), Some(TokenError::Join));
    }
}
