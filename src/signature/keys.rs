//! Keys of those who sign requests: Ed25519. The private one is a PEM file of the operator's, as
//! `openssl genpkey -algorithm ed25519` makes it too; the public one is a line of a client's
//! policy.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::RequestSignature;
use crate::token::Secret;

/// What is signed begins with this, so that a signature is good for nothing else.
const CONTEXT: &[u8] = b"fts request v1\n";
const PEM_TAG: &str = "PRIVATE KEY";
const PREFIX: &str = "ed25519:";
const KEY_BYTES: usize = 32;

/// Why a text is no key. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    #[error("write it as \"ed25519:BASE64\", of 32 bytes; `fts key show FILE` prints it")]
    Public,
    #[error("it has no -----BEGIN {PEM_TAG}-----; `fts key generate FILE` makes a key")]
    NoPem,
    #[error("the key is encrypted, which fts does not read")]
    Encrypted,
    #[error("it is no Ed25519 key (PKCS #8)")]
    NotEd25519,
    #[error("the machine gives no random numbers")]
    NoRandom,
}

/// A key that signatures are verified with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// Whether the signature was made with the key that belongs to this one.
    pub fn has_signed(&self, signed: &RequestSignature) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        key.verify(&to_sign(signed.request()), signed.signature()).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.strip_prefix(PREFIX).ok_or(KeyError::Public)?;
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::Public)?;
        bytes.try_into().map(Self).map_err(|_| KeyError::Public)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD.encode(self.0))
    }
}

/// A key that signs.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// Makes a new one; returns it with its PEM.
    pub fn generate() -> Result<(Self, Secret), KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::NoRandom)?;
        // The first version: openssl reads no other.
        let der = pair.to_pkcs8v1().map_err(|_| KeyError::NoRandom)?;
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let text = pem::encode_config(&pem::Pem::new(PEM_TAG, der.as_ref()), config);
        Ok((Self(pair), Secret::new(text)))
    }

    /// Reads PKCS #8 in PEM.
    pub fn from_pem(text: &Secret) -> Result<Self, KeyError> {
        let parts = pem::parse_many(text.reveal()).map_err(|_| KeyError::NoPem)?;
        if parts.iter().any(|part| part.tag() == "ENCRYPTED PRIVATE KEY") {
            return Err(KeyError::Encrypted);
        }
        let part = parts.iter().find(|part| part.tag() == PEM_TAG).ok_or(KeyError::NoPem)?;
        // Its public half need not be in it.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(part.contents());
        pair.map(Self).map_err(|_| KeyError::NotEd25519)
    }

    pub fn public(&self) -> PublicKey {
        let public = self.0.public_key().as_ref();
        PublicKey(public.try_into().expect("a public key of Ed25519 is 32 bytes"))
    }

    /// Signs an encoded request; `None` if it is too long to be one.
    pub fn sign(&self, request: &[u8]) -> Option<RequestSignature> {
        let signature = self.0.sign(&to_sign(request));
        RequestSignature::new(request, signature.as_ref()).ok()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.public())
    }
}

fn to_sign(request: &[u8]) -> Vec<u8> {
    [CONTEXT, request].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3, as `openssl genpkey` makes them: without the public half.
    const OF_OPENSSL: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn a_key_that_openssl_made_is_read() {
        let key = SigningKey::from_pem(&Secret::new(OF_OPENSSL)).expect("a key");
        // The public half that the same section prints.
        let expected = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
        assert_eq!(key.public().to_string(), expected);
        assert_eq!(expected.parse(), Ok(key.public()));
    }

    #[test]
    fn a_signature_is_good_for_its_key_and_its_request_alone() {
        let (key, pem) = SigningKey::generate().expect("random");
        let (other, _) = SigningKey::generate().expect("random");
        let signed = key.sign(b"request").expect("short");
        assert!(key.public().has_signed(&signed));
        assert!(!other.public().has_signed(&signed));
        let moved = RequestSignature::new(b"requesT", signed.signature()).expect("in bounds");
        assert!(!key.public().has_signed(&moved));
        // Nor is one that was made of the bytes alone.
        let bare = key.0.sign(b"request");
        let bare = RequestSignature::new(b"request", bare.as_ref()).expect("in bounds");
        assert!(!key.public().has_signed(&bare));
        assert_eq!(SigningKey::from_pem(&pem).expect("a key").public(), key.public());
    }

    #[test]
    fn what_is_no_key_is_refused_in_words_without_it() {
        let of = |text: &str| SigningKey::from_pem(&Secret::new(text)).expect_err("refused");
        assert_eq!(of("hunter2"), KeyError::NoPem);
        assert_eq!(of(&OF_OPENSSL.replace("PRIVATE", "PUBLIC")), KeyError::NoPem);
        assert_eq!(of(&OF_OPENSSL.replace("PRIVATE", "ENCRYPTED PRIVATE")), KeyError::Encrypted);
        assert_eq!(of(&OF_OPENSSL.replace("MC4C", "MC4D")), KeyError::NotEd25519);
        let (key, _) = SigningKey::generate().expect("random");
        let shown = format!("{key:?}");
        assert!(shown.contains(&key.public().to_string()) && shown.len() < 80, "{shown}");
        for bad in ["", "ed25519:", "AAAA", "ed25519:AAAA", "ed25519:!", "rsa:AAAA"] {
            assert_eq!(bad.parse::<PublicKey>(), Err(KeyError::Public), "{bad}");
        }
    }
}
