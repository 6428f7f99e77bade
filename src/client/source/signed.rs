//! Where a rule wants a request signed: it is held against the policy and against what came before,
//! ahead of any look at the disk.

use super::{OpenFile, Source, SourceError};
use crate::{
    client::policy::{
        Denied, Rule,
        signed::{Asked, Proof, Unsigned},
    },
    ids::{IdError, RemotePath, TransferId, UnixMs},
};

impl Source {
    /// Returns who signed what is asked for; that it was asked is remembered from then on.
    pub(super) fn prove(&self, asked: &Asked<'_>) -> Result<Proof, Unsigned> {
        let now = UnixMs::now();
        let proof = self.policy.verify(asked, now)?;
        let signed = asked.command.signature.as_ref().ok_or(Unsigned::Missing)?;
        let transfer = asked.command.attempt.transfer;
        self.spent.begin(transfer, proof.expires, signed.digest(), now)?;
        Ok(proof)
    }

    /// Opens the file at `path` as for a request that is signed: for a look, by the site itself.
    pub(in crate::client) fn open_as_signed(
        &self,
        path: &Result<Option<RemotePath>, IdError>,
    ) -> Result<OpenFile, SourceError> {
        self.open_with(path, &Ok(Proof { signer: String::new(), expires: UnixMs::now() }))
    }

    /// A signed request was delivered: it is good for nothing more.
    pub(in crate::client) fn spend(&self, transfer: TransferId) {
        self.spent.spend(transfer);
    }
}

/// Refuses what a rule wants signed, and is not.
pub(super) fn check(rule: &Rule, proof: &Result<Proof, Unsigned>) -> Result<(), SourceError> {
    match proof {
        Err(why) if rule.require_signature => Err(SourceError::Denied(Denied::Unsigned(*why))),
        _ => Ok(()),
    }
}
