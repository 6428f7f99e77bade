//! Who may ask for what a rule wants signed: the keys that the site lists, and what a request must
//! be to be taken for theirs. Whether it was delivered before is known elsewhere.

use std::fmt;

use toml::{Spanned, de::DeTable};

use super::{
    file::named,
    keys::{Keys, Problems, parsed},
};
use crate::{
    ids::{ClientId, UnixMs},
    limits,
    signature::PublicKey,
    wire::{session::Command, signed::SignedRequest},
};

/// Somebody whose requests the site believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// For people, and the audit.
    pub name: String,
    pub key: PublicKey,
}

/// What is asked of this client, to be held against what was signed.
#[derive(Debug, Clone, Copy)]
pub(in crate::client) struct Asked<'a> {
    pub(in crate::client) client: &'a ClientId,
    pub(in crate::client) command: &'a Command,
}

/// Who signed what is asked for, and until when it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::client) struct Proof {
    pub(in crate::client) signer: String,
    pub(in crate::client) expires: UnixMs,
}

/// Why a request is not taken for one of theirs; for the client's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) enum Unsigned {
    Missing,
    /// By none of the keys.
    Unknown,
    /// It is signed, and no request that this version knows.
    Malformed,
    /// For something else: this differs.
    Other(&'static str),
    Expired,
    /// It would hold for longer than any may.
    TooLong,
    /// It was delivered.
    Spent,
    /// Another request was signed under the same transfer id.
    Reused,
    /// It cannot be remembered, so it could come again.
    NotRemembered,
}

impl fmt::Display for Unsigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "this one is not signed",
            Self::Unknown => "this one is signed by none of these keys",
            Self::Malformed => "what was signed is no request that this version knows",
            Self::Other(what) => return write!(f, "this one was signed for another {what}"),
            Self::Expired => "this one has expired, by the clock of this machine",
            Self::TooLong => "this one expires in more than 30 days, by the clock of this machine",
            Self::Spent => "this one was delivered before",
            Self::Reused => "another one was signed for the same transfer before",
            Self::NotRemembered => "this one cannot be remembered, so it could come again",
        })
    }
}

/// Verifies a request by the keys of `signers`, at a moment.
pub(super) fn verify(
    signers: &[Signer],
    asked: &Asked<'_>,
    now: UnixMs,
) -> Result<Proof, Unsigned> {
    let Asked { client, command } = asked;
    let signed = command.signature.as_ref().ok_or(Unsigned::Missing)?;
    // Before anything is believed of it.
    let by = signers.iter().find(|signer| signer.key.has_signed(signed));
    let by = by.ok_or(Unsigned::Unknown)?;
    let says = SignedRequest::decode(signed.request()).map_err(|_| Unsigned::Malformed)?;
    let path = command.path.as_ref().map_err(|_| Unsigned::Other("path"))?.as_ref();
    let Command { attempt, consistency, rate_max, .. } = command;
    let differs = says.differs(attempt.transfer, client, path, *consistency, *rate_max);
    if let Some(what) = differs {
        return Err(Unsigned::Other(what));
    }
    if says.expires <= now {
        return Err(Unsigned::Expired);
    }
    if says.expires > now.plus(limits::SIGNED_FOR_MAX) {
        return Err(Unsigned::TooLong);
    }
    Ok(Proof { signer: by.name.clone(), expires: says.expires })
}

/// Reads the `[[signer]]` tables of the file.
pub(super) fn listed<'t>(
    tables: Vec<Spanned<DeTable<'t>>>,
    problems: &mut Problems<'t>,
) -> Vec<Signer> {
    let (mut names, mut signers) = (Vec::new(), Vec::<Signer>::new());
    for (number, table) in (1..).zip(tables) {
        let mut keys = Keys::new(problems, format!("signer {number}"), table);
        let name = keys.name(named);
        let key = keys.need("key", parsed(|text| text.parse().map_err(|err| format!("{err}"))));
        if number > limits::SIGNERS_MAX {
            keys.wrong(keys.at, &format!("at most {} times [[signer]]", limits::SIGNERS_MAX));
        }
        if name.is_some() && names.contains(&name) {
            keys.wrong(keys.at, "another signer has this name");
        }
        if let Some(other) = signers.iter().find(|other| Some(other.key) == key) {
            keys.wrong(keys.at, &format!("{:?} has the same key", other.name));
        }
        keys.end();
        names.push(name.clone());
        signers.extend(name.zip(key).map(|(name, key)| Signer { name, key }));
    }
    signers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        client::policy::Policy,
        ids::{AttemptId, Epoch, IdError, TransferId},
        rate::Rate,
        signature::{RequestSignature, SigningKey},
        transfer::Consistency,
    };

    const NOW: UnixMs = UnixMs(1_700_000_000_000);

    type Change = fn(&mut Command);

    fn key() -> SigningKey {
        SigningKey::generate().expect("random").0
    }

    /// A site that believes alice, and what she has signed.
    struct Site {
        alice: SigningKey,
        signers: Vec<Signer>,
        client: ClientId,
        says: SignedRequest,
    }

    impl Site {
        fn new() -> Self {
            let alice = key();
            let signer =
                |name: &str, key: &SigningKey| Signer { name: name.to_owned(), key: key.public() };
            let signers = vec![signer("bob", &key()), signer("alice", &alice)];
            let client: ClientId = "web-1".parse().expect("an id");
            let says = SignedRequest {
                transfer: TransferId::generate(),
                client: client.clone(),
                path: Some("/srv/a".parse().expect("a path")),
                consistency: Consistency::Auto,
                rate_max: Rate::from_number(64_000).expect("a rate"),
                expires: NOW.plus(Duration::from_secs(60)),
            };
            Self { alice, signers, client, says }
        }

        /// The command that the request asks for.
        fn command(&self) -> Command {
            Command {
                attempt: AttemptId { transfer: self.says.transfer, epoch: Epoch(3) },
                path: Ok(self.says.path.clone()),
                consistency: self.says.consistency,
                size_max: 1,
                rate_max: self.says.rate_max,
                signature: self.alice.sign(&self.says.encode()),
                resume: None,
                operator: None,
            }
        }

        fn verify_at(&self, command: &Command, now: UnixMs) -> Result<String, Unsigned> {
            let asked = Asked { client: &self.client, command };
            verify(&self.signers, &asked, now).map(|proof| proof.signer)
        }

        fn verify(&self, command: &Command) -> Result<String, Unsigned> {
            self.verify_at(command, NOW)
        }
    }

    #[test]
    fn what_a_listed_key_signed_is_believed_in_every_attempt() {
        let site = Site::new();
        let command = site.command();
        assert_eq!(site.verify(&command), Ok("alice".to_owned()));
        let attempt = AttemptId { epoch: Epoch(9), ..command.attempt };
        assert_eq!(site.verify(&Command { attempt, size_max: 2, ..command }), Ok("alice".into()));
    }

    #[test]
    fn a_signature_is_good_for_nothing_else() {
        let site = Site::new();
        let other: [(&str, Change); 7] = [
            ("transfer_id", |c| c.attempt.transfer = TransferId::generate()),
            ("path", |c| c.path = Ok("/srv/b".parse().ok())),
            ("path", |c| c.path = Ok("/srv/./a".parse().ok())),
            ("path", |c| c.path = Ok(None)),
            ("path", |c| c.path = Err(IdError::PathParent)),
            ("consistency", |c| c.consistency = Consistency::Strict),
            ("max_rate", |c| c.rate_max = None),
        ];
        for (what, change) in other {
            let mut command = site.command();
            change(&mut command);
            assert_eq!(site.verify(&command), Err(Unsigned::Other(what)), "{what}");
        }
        let client = "web-2".parse().expect("an id");
        let elsewhere = Site { client, ..site };
        let refused = Err(Unsigned::Other("client_id"));
        assert_eq!(elsewhere.verify(&elsewhere.command()), refused);
    }

    #[test]
    fn what_no_listed_key_signed_is_refused() {
        let site = Site::new();
        let command = site.command();
        let with = |signature| site.verify(&Command { signature, ..command.clone() });
        assert_eq!(with(None), Err(Unsigned::Missing));
        assert_eq!(with(key().sign(&site.says.encode())), Err(Unsigned::Unknown));
        // One byte of what was signed, and of the signature.
        let good = command.signature.clone().expect("signed");
        let (mut request, mut signature) = (good.request().to_vec(), good.signature().to_vec());
        request[0] ^= 1;
        assert_eq!(with(RequestSignature::new(&request, &signature).ok()), Err(Unsigned::Unknown));
        request[0] ^= 1;
        signature[63] ^= 1;
        assert_eq!(with(RequestSignature::new(&request, &signature).ok()), Err(Unsigned::Unknown));
        assert_eq!(with(site.alice.sign(b"")), Err(Unsigned::Malformed));
        let nobody = Site { signers: Vec::new(), ..site };
        assert_eq!(nobody.verify(&command), Err(Unsigned::Unknown));
    }

    #[test]
    fn it_holds_until_it_expires_and_no_longer_than_any_may() {
        let mut site = Site::new();
        let expires = site.says.expires;
        let command = site.command();
        assert!(site.verify_at(&command, UnixMs(expires.0 - 1)).is_ok());
        assert_eq!(site.verify_at(&command, expires), Err(Unsigned::Expired));
        site.says.expires = NOW.plus(limits::SIGNED_FOR_MAX);
        assert!(site.verify(&site.command()).is_ok());
        let sooner = UnixMs(NOW.0 - 1);
        assert_eq!(site.verify_at(&site.command(), sooner), Err(Unsigned::TooLong));
    }

    const ROOT: &str = "[[root]]\nname = 'a'\npath = '/a'\n";

    fn signer(name: &str, key: &str) -> String {
        format!("[[signer]]\nname = '{name}'\nkey = '{key}'\n")
    }

    #[test]
    fn everything_that_is_wrong_with_signers_is_told_at_once() {
        let (one, two) = (key().public().to_string(), key().public().to_string());
        let text = [
            ROOT,
            &signer("a b", &one),
            &signer("c", &one),
            &signer("d", "ed25519:AAAA"),
            &signer("c", &two),
        ];
        let told = Policy::parse(&text.concat()).expect_err("refused").join("\n");
        for part in [
            "signer 1 (\"a b\"): name: a name is",
            "signer 2 (\"c\"): \"a b\" has the same key",
            "signer 3 (\"d\"): key: write it as",
            "signer 4 (\"c\"): another signer has this name",
        ] {
            assert!(told.contains(part), "{part} is not in:\n{told}");
        }
        let unknown = format!("{ROOT}{}until = 1\n", signer("a", &one));
        let told = Policy::parse(&unknown).expect_err("refused").join("");
        assert!(told.contains("line 7") && told.contains("until"), "{told}");
        let many = (0..=limits::SIGNERS_MAX)
            .map(|n| signer(&format!("s{n}"), &key().public().to_string()));
        let many = format!("{ROOT}{}", many.collect::<String>());
        assert!(Policy::parse(&many).expect_err("refused").join("").contains("at most"));
    }

    #[test]
    fn a_rule_that_wants_signatures_needs_a_signer() {
        let wants = format!("{ROOT}require_signature = true\n");
        let told = Policy::parse(&wants).expect_err("refused").join("");
        assert!(told.contains("root 1 (\"a\"): require_signature needs a [[signer]]"), "{told}");
        let one = signer("alice", &key().public().to_string());
        let good = Policy::parse(&format!("{wants}{one}")).expect("a policy");
        assert!(good.rules()[0].require_signature);
        assert_eq!(good.signers()[0].name, "alice");
        // What is believed is part of what tells policies apart.
        let free = Policy::parse(&format!("{ROOT}{one}")).expect("a policy");
        let other = signer("alice", &key().public().to_string());
        let other = Policy::parse(&format!("{wants}{other}")).expect("a policy");
        assert!(good.digest() != free.digest() && good.digest() != other.digest());
    }
}
