//! Signed requests: an operator's key says that a client may deliver one file, once, until a
//! moment. The server stores what was signed and passes it on; the client believes it by the keys
//! that its own policy lists. What the signed bytes mean is in [`crate::wire::signed`].

use crate::limits::SIGNED_REQUEST_BYTES_MAX;

#[cfg(any(feature = "client", feature = "operator"))]
mod keys;

#[cfg(any(feature = "client", feature = "operator"))]
pub use keys::{KeyError, PublicKey, SigningKey};

/// Of Ed25519.
pub const SIGNATURE_BYTES: usize = 64;

/// A request, as it was signed, and its signature. Whether it is good is another question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestSignature {
    request: Box<[u8]>,
    signature: [u8; SIGNATURE_BYTES],
}

/// The bytes cannot be a signed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a signature is {SIGNATURE_BYTES} bytes, and what was signed at most \
     {SIGNED_REQUEST_BYTES_MAX}"
)]
pub struct NoSignature;

impl RequestSignature {
    /// Copies the bytes: a message's would keep all of its buffer.
    pub fn new(request: &[u8], signature: &[u8]) -> Result<Self, NoSignature> {
        if request.len() > SIGNED_REQUEST_BYTES_MAX {
            return Err(NoSignature);
        }
        let signature = signature.try_into().map_err(|_| NoSignature)?;
        Ok(Self { request: request.into(), signature })
    }

    /// What was signed.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// Returns what tells it from any other.
    pub fn digest(&self) -> blake3::Hash {
        blake3::Hasher::new().update(&self.signature).update(&self.request).finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_no_signature() {
        let most = vec![1; SIGNED_REQUEST_BYTES_MAX];
        assert!(RequestSignature::new(&most, &[0; 64]).is_ok());
        assert!(RequestSignature::new(&[most.as_slice(), &[1]].concat(), &[0; 64]).is_err());
        for bytes in [0, 63, 65] {
            assert!(RequestSignature::new(b"x", &vec![0; bytes]).is_err(), "{bytes}");
        }
    }

    #[test]
    fn a_digest_tells_what_was_signed_and_by_whom() {
        let of = |request: &[u8], signature| {
            RequestSignature::new(request, &[signature; 64]).expect("in bounds").digest()
        };
        assert_eq!(of(b"x", 1), of(b"x", 1));
        assert_ne!(of(b"x", 1), of(b"y", 1));
        assert_ne!(of(b"x", 1), of(b"x", 2));
    }
}
