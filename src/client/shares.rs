//! What is shared now: the policy in force. A hang-up may put another in its place, which holds at
//! once: what runs under the old one is stopped, and judged anew when it is asked for again.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::{config::Shared, policy::Policy, source::Source, state_dir::StateDir, words::log_path};
use crate::ids::RemotePath;

/// Whoever opens files asks the newest source; that never changes itself.
#[derive(Debug)]
pub struct Shares {
    now: watch::Sender<Arc<Source>>,
    /// Once the kernel holds this process to some roots, no policy can add another one.
    confined: OnceLock<Vec<RemotePath>>,
    /// Roots that the policy names, and the kernel does not allow before a restart.
    waiting: watch::Sender<Vec<RemotePath>>,
}

impl Shares {
    pub(super) fn new(shared: &Shared, state_dir: Arc<StateDir>) -> Self {
        Self::of(Source::new(shared, state_dir))
    }

    pub(super) fn of(source: Source) -> Self {
        let (now, waiting) = (watch::Sender::new(Arc::new(source)), watch::Sender::default());
        Self { now, confined: OnceLock::new(), waiting }
    }

    /// Says that the kernel lets this process read what it shares now, and nothing else, for good.
    pub(super) fn confine(&self) {
        let source = self.now();
        let roots = source.policy().rules().iter().map(|rule| rule.path.clone());
        self.confined.get_or_init(|| roots.collect());
    }

    pub(super) fn is_confined(&self) -> bool {
        self.confined.get().is_some()
    }

    pub(super) fn now(&self) -> Arc<Source> {
        self.now.borrow().clone()
    }

    /// Tells each change.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Source>> {
        self.now.subscribe()
    }

    /// Tells the roots that wait for a restart.
    pub(super) fn waiting(&self) -> watch::Receiver<Vec<RemotePath>> {
        self.waiting.subscribe()
    }

    /// Puts another policy in force, as far as the kernel allows it: what it takes away is gone at
    /// once, whatever else it says. Returns whether another one is in force. It blocks.
    pub(super) fn replace(&self, shared: &Shared) -> bool {
        let (shared, waiting) = match self.confined.get() {
            Some(roots) => within(shared, roots),
            None => (shared.clone(), Vec::new()),
        };
        for root in &waiting {
            let root = log_path(root.as_str());
            tracing::warn!(
                %root,
                "not shared: the kernel holds this process to what it shared at its start; \
                 restart to widen"
            );
        }
        self.waiting.send_replace(waiting);
        let old = self.now();
        let new = old.with(&shared);
        if new.policy() == old.policy() {
            return false;
        }
        new.hold_roots();
        let old = self.now.send_replace(Arc::new(new));
        old.end();
        true
    }
}

/// Returns what of it lies beneath `roots`, and the roots of the rest. A path of the rest lies
/// beneath none of `roots`, so leaving its rule out lets no other rule have it.
fn within(shared: &Shared, roots: &[RemotePath]) -> (Shared, Vec<RemotePath>) {
    let is_within = |path: &RemotePath| roots.iter().any(|root| is_beneath(path, root));
    match shared {
        Shared::DemoFile { path, .. } if is_within(path) => (shared.clone(), Vec::new()),
        Shared::DemoFile { path, .. } => (Shared::Policy(Policy::default()), vec![path.clone()]),
        Shared::Policy(policy) => {
            let (within, rest) = policy.split(is_within);
            (Shared::Policy(within), rest)
        }
    }
}

fn is_beneath(path: &RemotePath, root: &RemotePath) -> bool {
    let (path, root): (Vec<_>, Vec<_>) = (path.components().collect(), root.components().collect());
    path.starts_with(&root)
}
