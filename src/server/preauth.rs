//! Connections that have not shown yet who they are: so many at a time, and each for so long. When
//! there are too many, the oldest of the address that has the most is cut, so that who hoards
//! connections hurts himself first, and an honest caller, who is done within moments, is not kept
//! out by it. Addresses are only weights: many clients share one behind a NAT.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// The connections that are not authenticated.
#[derive(Debug)]
pub(super) struct PreAuth {
    max: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    cuts: HashMap<u64, CancellationToken>,
    /// The oldest first; no list is empty.
    of: HashMap<IpAddr, VecDeque<u64>>,
}

/// One of them; it leaves when it is authenticated, or this is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    table: Arc<PreAuth>,
    number: u64,
    address: IpAddr,
}

impl PreAuth {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), waiting: Mutex::default() })
    }

    /// Enters a connection, which is over when `cut` fires. Cuts another one if there are too many.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr, cut: CancellationToken) -> Entry {
        let address = network(address);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.cuts.len() >= self.max {
            waiting.cut_one();
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.cuts.insert(number, cut);
        waiting.of.entry(address).or_default().push_back(number);
        drop(waiting);
        Entry { table: Arc::clone(self), number, address }
    }
}

impl Waiting {
    fn cut_one(&mut self) {
        // Of equals, the one whose oldest is the oldest of all.
        let hoarder = self
            .of
            .iter()
            .max_by_key(|(_, list)| (list.len(), std::cmp::Reverse(list.front().copied())));
        let oldest = hoarder.and_then(|(address, list)| Some((*address, *list.front()?)));
        if let Some((address, number)) = oldest
            && let Some(cut) = self.remove(address, number)
        {
            cut.cancel();
        }
    }

    fn remove(&mut self, address: IpAddr, number: u64) -> Option<CancellationToken> {
        let cut = self.cuts.remove(&number)?;
        if let Some(list) = self.of.get_mut(&address) {
            // Nearly always at the front.
            list.retain(|each| *each != number);
            if list.is_empty() {
                self.of.remove(&address);
            }
        }
        Some(cut)
    }
}

impl Entry {
    /// It has shown who it is: nothing of this holds for it any more.
    pub(super) fn leave(&self) {
        let mut waiting = self.table.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.remove(self.address, self.number);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => {
            let [a, b, c, d, ..] = six.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
        four @ IpAddr::V4(_) => four,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(table: &Arc<PreAuth>, address: &str) -> (Entry, CancellationToken) {
        let cut = CancellationToken::new();
        (table.enter(address.parse().expect("an address"), cut.clone()), cut)
    }

    #[test]
    fn who_hoards_connections_loses_the_oldest_of_them() {
        let table = PreAuth::new(4);
        let (_honest, honest) = enter(&table, "10.0.0.1");
        let hoard: Vec<_> = (0..3).map(|_| enter(&table, "10.0.0.2")).collect();

        let (_new, new) = enter(&table, "10.0.0.3");

        assert!(hoard[0].1.is_cancelled());
        assert!(!hoard[1].1.is_cancelled() && !hoard[2].1.is_cancelled());
        assert!(!honest.is_cancelled() && !new.is_cancelled());
    }

    #[test]
    fn of_equals_the_oldest_goes() {
        let table = PreAuth::new(2);
        let first = enter(&table, "10.0.0.1");
        let second = enter(&table, "10.0.0.2");
        let third = enter(&table, "10.0.0.3");
        assert!(first.1.is_cancelled() && !second.1.is_cancelled() && !third.1.is_cancelled());
    }

    #[test]
    fn who_has_shown_who_he_is_is_never_cut() {
        let table = PreAuth::new(1);
        let (known, token) = enter(&table, "10.0.0.1");
        known.leave();
        let _hoard: Vec<_> = (0..9).map(|_| enter(&table, "10.0.0.1")).collect();
        assert!(!token.is_cancelled());
        drop(known);
        let waiting = table.waiting.lock().expect("not poisoned");
        assert_eq!((waiting.cuts.len(), waiting.of.len()), (1, 1), "nothing is left behind");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let table = PreAuth::new(2);
        let (_other, other) = enter(&table, "2001:db8:1::1");
        let (_a, a) = enter(&table, "2001:db8::1");
        let (_b, _) = enter(&table, "2001:db8::2:3");
        assert!(other.is_cancelled() && !a.is_cancelled(), "one each, so the oldest went");
        let (_c, c) = enter(&table, "2001:db8::9");
        assert!(a.is_cancelled() && !c.is_cancelled());
    }
}
