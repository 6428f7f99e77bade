//! Watches that run: so many of one server, and of these so many of one operator, so that nobody
//! takes those of the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;
use crate::{ids::OperatorName, limits, status::Reason};

#[derive(Debug)]
pub(super) struct Watches {
    free: Arc<Semaphore>,
    of: Mutex<HashMap<OperatorName, usize>>,
}

/// One of them, until this is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    watches: Arc<Watches>,
    /// `None`: nobody asks who it is.
    operator: Option<OperatorName>,
    _permit: OwnedSemaphorePermit,
}

impl Watches {
    pub(super) fn new() -> Arc<Self> {
        let free = Arc::new(Semaphore::new(limits::WATCHES_MAX));
        Arc::new(Self { free, of: Mutex::default() })
    }

    pub(super) fn begin(
        self: &Arc<Self>,
        operator: Option<&OperatorName>,
    ) -> Result<Watching, Error> {
        let permit = Arc::clone(&self.free).try_acquire_owned().map_err(|_| {
            too_many(format!("{} watches are running, which is the most", limits::WATCHES_MAX))
        })?;
        if let Some(operator) = operator {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            let running = of.entry(operator.clone()).or_default();
            if *running >= limits::WATCHES_PER_OPERATOR_MAX {
                let max = limits::WATCHES_PER_OPERATOR_MAX;
                let text = format!("{max} watches of {operator} are running, which is the most");
                return Err(too_many(text));
            }
            *running += 1;
        }
        let operator = operator.cloned();
        Ok(Watching { watches: Arc::clone(self), operator, _permit: permit })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let Some(operator) = &self.operator else { return };
        let mut of = self.watches.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = of.get_mut(operator) {
            *running -= 1;
            if *running == 0 {
                of.remove(operator);
            }
        }
    }
}

fn too_many(text: String) -> Error {
    Error::refused(Reason::TooMany, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_operator_leaves_watches_to_the_others() {
        let watches = Watches::new();
        let [alice, bob] = ["alice", "bob"].map(|name| name.parse().expect("a name"));
        let mut hers: Vec<_> = (0..limits::WATCHES_PER_OPERATOR_MAX)
            .map(|_| watches.begin(Some(&alice)).expect("one more"))
            .collect();

        let err = watches.begin(Some(&alice)).expect_err("one too many");
        assert_eq!(err.reason(), Reason::TooMany);
        watches.begin(Some(&bob)).expect("his own");
        hers.pop();
        watches.begin(Some(&alice)).expect("a place that was given back is free");
        drop(hers);
        assert!(watches.of.lock().expect("not poisoned").is_empty());
        assert_eq!(watches.free.available_permits(), limits::WATCHES_MAX);
    }

    #[test]
    fn a_server_has_only_so_many_watches() {
        let watches = Watches::new();
        let _all: Vec<_> =
            (0..limits::WATCHES_MAX).map(|_| watches.begin(None).expect("one more")).collect();
        let err = watches.begin(None).expect_err("one too many");
        assert_eq!(err.reason(), Reason::TooMany);
    }
}
