//! What an operator signs: one request, to the letter. Operators encode it; the server looks
//! whether it is the request that it came with, and clients whether it is the command.

use prost::Message as _;

use super::{
    proto,
    session::{WireError, consistency},
};
use crate::{
    ids::{ClientId, RemotePath, TransferId, UnixMs},
    rate::Rate,
    signature::{NoSignature, RequestSignature},
    transfer::Consistency,
};

/// One transfer of one file, until a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRequest {
    pub transfer: TransferId,
    pub client: ClientId,
    /// `None`: the client's default file.
    pub path: Option<RemotePath>,
    pub consistency: Consistency,
    pub rate_max: Option<Rate>,
    pub expires: UnixMs,
}

impl SignedRequest {
    /// Returns the bytes to be signed.
    pub fn encode(&self) -> Vec<u8> {
        let nanos = i32::try_from(self.expires.0.rem_euclid(1000) * 1_000_000);
        let request = proto::SignedRequest {
            transfer_id: self.transfer.to_string(),
            client_id: self.client.to_string(),
            path: self.path.as_ref().map(|path| path.as_str().to_owned()).unwrap_or_default(),
            consistency: proto::Consistency::from(self.consistency).into(),
            max_rate: self.rate_max.map(Rate::bytes_per_second).unwrap_or_default(),
            expire_time: Some(prost_types::Timestamp {
                seconds: self.expires.0.div_euclid(1000),
                nanos: nanos.expect("less than a second of nanoseconds fits"),
            }),
        };
        request.encode_to_vec()
    }

    /// Reads what was signed. What this version does not know is refused: it may be a condition.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let malformed = WireError::Range("signature.request");
        let message = proto::SignedRequest::decode(bytes).map_err(|_| malformed.clone())?;
        if message.encode_to_vec() != bytes {
            return Err(malformed);
        }
        let asked = proto::Consistency::try_from(message.consistency);
        let asked = asked.map_err(|_| WireError::Range("consistency"))?;
        let expires = message.expire_time.ok_or(WireError::Missing("expire_time"))?;
        Ok(Self {
            transfer: message.transfer_id.parse()?,
            client: message.client_id.parse()?,
            path: match message.path.as_str() {
                "" => None,
                path => Some(path.parse()?),
            },
            consistency: consistency(asked),
            rate_max: Rate::from_number(message.max_rate)?,
            expires: unix_ms(expires).ok_or(WireError::Range("expire_time"))?,
        })
    }

    /// Returns the first thing in which it is another request.
    pub fn differs(
        &self,
        transfer: TransferId,
        client: &ClientId,
        path: Option<&RemotePath>,
        consistency: Consistency,
        rate_max: Option<Rate>,
    ) -> Option<&'static str> {
        [
            ("transfer_id", self.transfer == transfer),
            ("client_id", self.client == *client),
            ("path", self.path.as_ref() == path),
            ("consistency", self.consistency == consistency),
            ("max_rate", self.rate_max == rate_max),
        ]
        .into_iter()
        .find_map(|(name, is_same)| (!is_same).then_some(name))
    }
}

/// Rounded down: nothing holds for longer than was signed.
fn unix_ms(time: prost_types::Timestamp) -> Option<UnixMs> {
    let nanos = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    let ms = time.seconds.checked_mul(1000)?.checked_add(i64::from(nanos / 1_000_000))?;
    Some(UnixMs(ms))
}

impl TryFrom<&proto::RequestSignature> for RequestSignature {
    type Error = NoSignature;

    fn try_from(message: &proto::RequestSignature) -> Result<Self, NoSignature> {
        Self::new(&message.request, &message.signature)
    }
}

impl From<&RequestSignature> for proto::RequestSignature {
    fn from(signed: &RequestSignature) -> Self {
        Self {
            request: signed.request().to_vec().into(),
            signature: signed.signature().to_vec().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits;

    fn request() -> SignedRequest {
        SignedRequest {
            transfer: TransferId::generate(),
            client: "web-1".parse().expect("an id"),
            path: Some("/var/log/a".parse().expect("a path")),
            consistency: Consistency::Strict,
            rate_max: Rate::from_number(64_000).expect("a rate"),
            expires: UnixMs(1_700_000_000_123),
        }
    }

    fn message(change: impl FnOnce(&mut proto::SignedRequest)) -> Vec<u8> {
        let bytes = request().encode();
        let mut message = proto::SignedRequest::decode(bytes.as_slice()).expect("whole");
        change(&mut message);
        message.encode_to_vec()
    }

    #[test]
    fn what_is_signed_reads_back() {
        let defaults = SignedRequest {
            path: None,
            consistency: Consistency::Auto,
            rate_max: None,
            ..request()
        };
        for each in [request(), defaults] {
            assert_eq!(SignedRequest::decode(&each.encode()), Ok(each));
        }
        // As other languages write it: nothing was said of how.
        let bytes = message(|m| m.consistency = 0);
        let read = SignedRequest::decode(&bytes).expect("the default");
        assert_eq!(read.consistency, Consistency::Auto);
    }

    #[test]
    fn the_longest_request_fits_its_limit() {
        let longest = SignedRequest {
            client: "c".repeat(limits::CLIENT_ID_BYTES_MAX).parse().expect("an id"),
            path: Some(format!("/{}", "p".repeat(4095)).parse().expect("a path")),
            rate_max: Rate::from_number(limits::RATE_MAX_BYTES).expect("a rate"),
            expires: UnixMs(i64::MAX),
            ..request()
        };
        assert!(longest.encode().len() <= limits::SIGNED_REQUEST_BYTES_MAX);
    }

    #[test]
    fn what_is_not_known_or_not_in_order_is_refused() {
        let good = request().encode();
        // Field 99, a number: a condition of a later version.
        let unknown = [good.as_slice(), &[0x98, 0x06, 0x01]].concat();
        let again = [good.as_slice(), &good].concat();
        let torn = &good[..good.len() - 1];
        for bad in [unknown.as_slice(), &again, torn, b"\xff"] {
            let refused = Err(WireError::Range("signature.request"));
            assert_eq!(SignedRequest::decode(bad), refused, "{bad:?}");
        }
        let bad: [fn(&mut proto::SignedRequest); 8] = [
            |m| m.consistency = 9,
            |m| m.expire_time = None,
            |m| m.expire_time.as_mut().expect("one").nanos = -1,
            |m| m.expire_time.as_mut().expect("one").seconds = i64::MAX,
            |m| m.max_rate = 1,
            |m| m.path = "relative".into(),
            |m| m.client_id.clear(),
            |m| m.transfer_id.make_ascii_uppercase(),
        ];
        for (number, change) in bad.into_iter().enumerate() {
            assert!(SignedRequest::decode(&message(change)).is_err(), "{number}");
        }
    }

    #[test]
    fn every_difference_is_told() {
        let one = request();
        let differs = |other: &SignedRequest| {
            let SignedRequest { transfer, client, path, consistency, rate_max, .. } = other;
            one.differs(*transfer, client, path.as_ref(), *consistency, *rate_max)
        };
        assert_eq!(differs(&one), None);
        let of = |change: fn(&mut SignedRequest)| {
            let mut other = one.clone();
            change(&mut other);
            differs(&other)
        };
        assert_eq!(of(|r| r.transfer = TransferId::generate()), Some("transfer_id"));
        assert_eq!(of(|r| r.client = "web-2".parse().expect("an id")), Some("client_id"));
        assert_eq!(of(|r| r.path = None), Some("path"));
        assert_eq!(of(|r| r.path = "/var/log//a".parse().ok()), Some("path"));
        assert_eq!(of(|r| r.consistency = Consistency::Auto), Some("consistency"));
        assert_eq!(of(|r| r.rate_max = None), Some("max_rate"));
    }
}
