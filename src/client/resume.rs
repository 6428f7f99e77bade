//! Where an attempt goes on, and what proves that the bytes before are those of the source: values
//! that this process computed when it sent them, the same bytes read again, or, where the site
//! says so, an equal fingerprint.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    chunk::{Prefix, Value},
    ids::TransferId,
    limits,
    transfer::Fingerprint,
    wire::session::Resume,
};

/// How one attempt begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// What is not sent; empty at the file's beginning.
    pub(super) kept: Prefix,
    pub(super) proof: Proof,
    /// Why everything is sent, although the server has something.
    pub(super) restart_detail: String,
}

/// What proves that the kept bytes are those of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// This process sent them, and has their values; or there are none.
    Known,
    /// They are read again while the rest is sent.
    ReadAgain,
    /// The fingerprint is equal, and the site takes that for enough.
    Fingerprint,
}

impl Plan {
    pub(super) fn from_zero(why: &str) -> Self {
        let restart_detail = why.to_owned();
        Self { kept: Prefix::default(), proof: Proof::Known, restart_detail }
    }

    /// Decides how to go on with what the server keeps, of the file that is open now.
    pub(super) fn new(
        resume: Option<&Resume>,
        now: &Fingerprint,
        trail: Option<&Trail>,
        trusts_fingerprint: bool,
    ) -> Self {
        let Some(Resume { fingerprint, kept }) = resume else { return Self::from_zero("") };
        if fingerprint != now {
            return Self::from_zero(&difference(fingerprint, now));
        }
        // A server that has it all, or more, is wrong.
        if kept.bytes() >= now.size_bytes {
            return Self::from_zero("the server keeps more than the file has");
        }
        let known = trail.filter(|trail| trail.fingerprint == *now);
        let proof = match known.and_then(|trail| trail.prefix(kept.chunks())) {
            Some(known) if known == *kept => Proof::Known,
            Some(_) => return Self::from_zero("the server keeps other bytes than were sent"),
            None if trusts_fingerprint => Proof::Fingerprint,
            None => Proof::ReadAgain,
        };
        Self { kept: kept.clone(), proof, restart_detail: String::new() }
    }
}

/// Says how a source differs from the one that was begun.
fn difference(before: &Fingerprint, now: &Fingerprint) -> String {
    let parts = [
        ("its file system", before.device != now.device),
        ("its inode", before.inode != now.inode),
        ("its size", before.size_bytes != now.size_bytes),
        ("when it was changed", before.mtime_ns != now.mtime_ns),
        ("when its inode was changed", before.ctime_ns != now.ctime_ns),
    ];
    let differ: Vec<_> = parts.into_iter().filter(|part| part.1).map(|part| part.0).collect();
    format!("the source is another than the one that was begun: {} differs", differ.join(", "))
}

/// The values of what this process read of a file, from its beginning: single ones of the latest
/// chunks, where the server may have stopped, and merged ones of those before.
#[derive(Debug, Clone)]
pub(super) struct Trail {
    fingerprint: Fingerprint,
    before: Prefix,
    latest: VecDeque<Value>,
}

impl Trail {
    /// Goes on after `kept`, which has been proved.
    pub(super) fn new(fingerprint: Fingerprint, kept: Prefix) -> Self {
        Self { fingerprint, before: kept, latest: VecDeque::new() }
    }

    pub(super) fn push(&mut self, value: Value) {
        self.latest.push_back(value);
        if self.latest.len() > limits::TRAIL_CHUNKS_MAX
            && let Some(oldest) = self.latest.pop_front()
        {
            self.before.push(oldest);
        }
    }

    /// Returns the beginning of so many chunks, if it is known.
    fn prefix(&self, chunks: u64) -> Option<Prefix> {
        let more = usize::try_from(chunks.checked_sub(self.before.chunks())?).ok()?;
        if more > self.latest.len() {
            return None;
        }
        let mut prefix = self.before.clone();
        for value in self.latest.iter().take(more) {
            prefix.push(*value);
        }
        Some(prefix)
    }
}

/// The trails of attempts that did not end with their file, of late.
#[derive(Debug, Clone, Default)]
pub(super) struct Trails(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    of: HashMap<TransferId, Trail>,
    /// Oldest first.
    order: VecDeque<TransferId>,
}

impl Trails {
    pub(super) fn keep(&self, transfer: TransferId, trail: Trail) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.order.retain(|id| *id != transfer);
        kept.order.push_back(transfer);
        kept.of.insert(transfer, trail);
        if kept.order.len() > limits::TRAILS_MAX
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.of.remove(&oldest);
        }
    }

    pub(super) fn take(&self, transfer: TransferId) -> Option<Trail> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.order.retain(|id| *id != transfer);
        kept.of.remove(&transfer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(index: u64) -> Value {
        let mut value = [0; 32];
        value[..8].copy_from_slice(&index.to_le_bytes());
        value
    }

    fn prefix(chunks: u64) -> Prefix {
        let mut prefix = Prefix::default();
        (0..chunks).for_each(|index| prefix.push(value(index)));
        prefix
    }

    fn fingerprint() -> Fingerprint {
        let size_bytes = 100 << 20;
        Fingerprint { device: 1, inode: 2, size_bytes, mtime_ns: 3, ctime_ns: 4 }
    }

    fn trail(chunks: u64) -> Trail {
        let mut trail = Trail::new(fingerprint(), Prefix::default());
        (0..chunks).for_each(|index| trail.push(value(index)));
        trail
    }

    fn plan(kept: u64, trail: Option<&Trail>, trusts: bool) -> Plan {
        let resume = Resume { fingerprint: fingerprint(), kept: prefix(kept) };
        Plan::new(Some(&resume), &fingerprint(), trail, trusts)
    }

    #[test]
    fn what_this_process_sent_needs_no_other_proof() {
        for kept in [1, 7, 8, 9] {
            let plan = plan(kept, Some(&trail(9)), false);
            assert_eq!((plan.kept, plan.proof), (prefix(kept), Proof::Known));
        }
        // More than this process knows of is read again.
        assert_eq!(plan(10, Some(&trail(9)), false).proof, Proof::ReadAgain);
        assert_eq!(plan(9, None, false).proof, Proof::ReadAgain);
        assert_eq!(plan(9, None, true).proof, Proof::Fingerprint);
    }

    #[test]
    fn other_values_than_were_sent_begin_anew() {
        let mut other = Trail::new(fingerprint(), Prefix::default());
        (0..9).for_each(|index| other.push(value(index + 1)));
        let plan = plan(8, Some(&other), true);
        assert!(plan.kept.is_empty());
        assert!(plan.restart_detail.contains("other bytes"), "{plan:?}");
    }

    #[test]
    fn any_other_fingerprint_begins_anew_and_says_what_differs() {
        let resume = Resume { fingerprint: fingerprint(), kept: prefix(8) };
        let same = fingerprint();
        for (other, word) in [
            (Fingerprint { device: 9, ..same }, "file system"),
            (Fingerprint { inode: 9, ..same }, "inode"),
            (Fingerprint { size_bytes: 9, ..same }, "size"),
            (Fingerprint { mtime_ns: 9, ..same }, "was changed"),
            (Fingerprint { ctime_ns: 9, ..same }, "inode was changed"),
        ] {
            let plan = Plan::new(Some(&resume), &other, Some(&trail(9)), true);
            assert!(plan.kept.is_empty());
            assert!(plan.restart_detail.contains(word), "{plan:?}");
        }
        assert_eq!(Plan::new(None, &same, None, true), Plan::from_zero(""));
    }

    #[test]
    fn a_trail_is_bounded_and_still_knows_the_latest() {
        let max = limits::TRAIL_CHUNKS_MAX as u64;
        let trail = trail(max + 5);
        assert_eq!(trail.latest.len(), limits::TRAIL_CHUNKS_MAX);
        assert_eq!(trail.prefix(4), None);
        assert_eq!(trail.prefix(5), Some(prefix(5)));
        assert_eq!(trail.prefix(max + 5), Some(prefix(max + 5)));
        assert_eq!(trail.prefix(max + 6), None);

        let trails = Trails::default();
        let ids: Vec<_> =
            std::iter::repeat_with(TransferId::generate).take(limits::TRAILS_MAX + 1).collect();
        for id in &ids {
            trails.keep(*id, self::trail(1));
        }
        assert!(trails.take(ids[0]).is_none(), "the oldest is dropped");
        assert!(trails.take(ids[1]).is_some());
        assert!(trails.take(ids[1]).is_none(), "it is taken once");
    }
}
