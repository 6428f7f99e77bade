//! What is shared now: the policy in force. A hang-up may put another in its place, which holds at
//! once: what runs under the old one is stopped, and judged anew when it is asked for again.

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::{config::Shared, source::Source, state_dir::StateDir, words::log_path};
use crate::ids::RemotePath;

/// Whoever opens files asks the newest source; that never changes itself.
#[derive(Debug)]
pub struct Shares {
    now: watch::Sender<Arc<Source>>,
    /// Once the kernel holds this process to some roots, no policy can add another one.
    confined: OnceLock<Vec<RemotePath>>,
}

/// Why another policy cannot be put in force. The old one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharesError {
    #[error(
        "the kernel holds this process to what it shared at its start: restart to widen to {0}"
    )]
    Wider(String),
}

impl Shares {
    pub(super) fn new(shared: &Shared, state_dir: Arc<StateDir>) -> Self {
        Self::of(Source::new(shared, state_dir))
    }

    pub(super) fn of(source: Source) -> Self {
        Self { now: watch::Sender::new(Arc::new(source)), confined: OnceLock::new() }
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

    /// Puts another policy in force; returns whether it is another one. It blocks.
    pub(super) fn replace(&self, shared: &Shared) -> Result<bool, SharesError> {
        let old = self.now();
        let new = old.with(shared);
        if new.policy() == old.policy() {
            return Ok(false);
        }
        if let Some(root) = self.confined.get().and_then(|roots| wider(&new, roots)) {
            return Err(SharesError::Wider(log_path(root.as_str())));
        }
        new.hold_roots();
        let old = self.now.send_replace(Arc::new(new));
        old.end();
        Ok(true)
    }
}

/// Returns a root of a policy that lies beneath none of `roots`.
fn wider<'a>(new: &'a Source, roots: &[RemotePath]) -> Option<&'a RemotePath> {
    let is_beneath = |path: &RemotePath, root: &RemotePath| {
        let (path, root): (Vec<_>, Vec<_>) =
            (path.components().collect(), root.components().collect());
        path.starts_with(&root)
    };
    let mut all = new.policy().rules().iter().map(|rule| &rule.path);
    all.find(|path| !roots.iter().any(|root| is_beneath(path, root)))
}
