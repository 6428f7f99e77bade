//! What is remembered of clients, or of operators: of a bounded number, and those that were not
//! heard of for the longest time are forgotten first.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use super::window::{Triggers, Window};

#[derive(Debug, Clone, Default)]
pub(super) struct Used {
    pub(super) window: Window,
    pub(super) triggers: Triggers,
    /// Certificates of a client, logins of an operator.
    pub(super) calls: Triggers,
    /// The records were asked what it used before.
    pub(super) is_seeded: bool,
    /// When it was last heard of.
    turn: u64,
}

#[derive(Debug)]
pub(super) struct Parties<K> {
    max: usize,
    used: HashMap<K, Used>,
    by_turn: BTreeMap<u64, K>,
    turn: u64,
}

impl<K: Hash + Eq + Clone> Parties<K> {
    pub(super) fn new(max: usize) -> Self {
        Self { max, used: HashMap::new(), by_turn: BTreeMap::new(), turn: 0 }
    }

    /// Returns what is remembered of a party, and begins to remember it.
    pub(super) fn of<Q>(&mut self, name: &Q) -> &mut Used
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if !self.used.contains_key(name) && self.used.len() >= self.max {
            self.forget_one();
        }
        self.turn += 1;
        let used = self.used.entry(name.to_owned()).or_default();
        let key = self.by_turn.remove(&used.turn).unwrap_or_else(|| name.to_owned());
        self.by_turn.insert(self.turn, key);
        used.turn = self.turn;
        used
    }

    /// Returns what is remembered of a party, and leaves it at that.
    pub(super) fn known<Q>(&mut self, name: &Q) -> Option<&mut Used>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.used.get_mut(name)
    }

    fn forget_one(&mut self) {
        if let Some((_, oldest)) = self.by_turn.pop_first() {
            self.used.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_not_heard_of_for_the_longest_time_is_forgotten() {
        let mut parties: Parties<String> = Parties::new(3);
        for name in ["a", "b", "c", "a", "d", "a", "e"] {
            parties.of(name).is_seeded = true;
        }

        for (name, is_known) in [("a", true), ("b", false), ("c", false), ("d", true), ("e", true)]
        {
            assert_eq!(parties.known(name).is_some(), is_known, "{name}");
        }
        assert_eq!(parties.by_turn.len(), 3);
        assert!(!parties.of("b").is_seeded, "it begins anew");
    }
}
