//! Opens what is asked for, off the reactor and not for ever, and says why not: little to the server,
//! all of it to the site.

use std::{io, sync::Arc};

use tokio::{
    sync::OwnedSemaphorePermit,
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{Uploader, ending::HELD_BACK};
use crate::{
    client::{
        audit::Event,
        policy::{Denied, signed::Asked},
        source::{OpenFile, Source, SourceError},
        words::log_path,
    },
    ids::{IdError, OperatorName, RemotePath, bounded},
    limits,
    wire::session::{Command, Explained, PathVerdict},
};

pub(super) const READS_HANG: &str = "too many reads of the client's disks hang";

pub(super) const NO_ANSWER: &str = "the client's disk did not answer in time";

/// A file that was not opened.
pub(super) struct Unopened {
    pub(super) err: SourceError,
    /// For the site's own eyes.
    pub(super) why: String,
}

/// Logs why a file was not opened, and returns it. Only the log and the audit name what would do: the
/// server learns nothing about what is outside.
fn why_unopened(source: &Source, command: &Command, err: &SourceError) -> String {
    match err {
        SourceError::Denied(why) => {
            let asked = asked_path(command);
            let (path, why) = (log_path(asked), source.policy().explain(*why));
            tracing::warn!(%path, "denied: {why}");
            return why;
        }
        // The kernel does not say which of the two it was.
        SourceError::Unreadable { .. } => tracing::warn!(
            "if this user may read it, the sandbox does not let it: a restart helps, if what is \
             shared was mounted or replaced since the start"
        ),
        _ => {}
    }
    err.to_string()
}

/// Returns the path that was asked for; an empty one is of the default file, or is none.
fn asked_path(command: &Command) -> &str {
    let path = command.path.as_ref().ok().and_then(Option::as_ref);
    path.map(RemotePath::as_str).unwrap_or_default()
}

/// Waits until a denial may be told.
async fn evened(began: Instant) {
    let step = limits::DENIAL_STEP;
    let passed = began.elapsed().as_millis() / step.as_millis();
    // No look takes longer than `READ_WAIT`.
    let steps = u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1);
    sleep_until(began + step * steps).await;
}

impl Uploader {
    /// Says what would become of a request for a path. It reads no byte.
    pub(in crate::client) async fn explain(
        &self,
        path: Result<RemotePath, IdError>,
        operator: Option<OperatorName>,
    ) -> Explained {
        let began = Instant::now();
        let shown = path.as_ref().map(|path| path.as_str().to_owned()).unwrap_or_default();
        let source = self.source.borrow().clone();
        let (explained, denied) = self.look(&source, path).await;
        let (verdict, why) = match explained.verdict {
            PathVerdict::Allowed => ("allowed", explained.rule.clone()),
            PathVerdict::Denied => ("denied", explained.detail.clone()),
            PathVerdict::Failed => ("failed", explained.detail.clone()),
        };
        // The server is not told by what.
        let why = denied.map_or(why, |denied| source.policy().explain(denied));
        let why = bounded(why, limits::DETAIL_BYTES_MAX);
        let (path, verdict) = (shown, verdict.to_owned());
        self.audit.note_some(Event::Explain { path, operator, verdict, why });
        if denied.is_some() {
            evened(began).await;
        }
        explained
    }

    /// Returns what is to be told of a path, and by what it is denied.
    async fn look(
        &self,
        source: &Arc<Source>,
        path: Result<RemotePath, IdError>,
    ) -> (Explained, Option<Denied>) {
        let failed = |detail: &str| Explained {
            verdict: PathVerdict::Failed,
            rule: String::new(),
            detail: detail.to_owned(),
        };
        let Ok(permit) = self.askers.clone().try_acquire_owned() else {
            return (failed(READS_HANG), None);
        };
        let (source, path) = (Arc::clone(source), path.map(Some));
        if source.held_by_name(&path).is_some() {
            return (failed(HELD_BACK), None);
        }
        let opening = spawn_blocking(move || {
            let _permit = permit;
            #[cfg(test)]
            if let Ok(Some(path)) = &path {
                crate::client::reader::hang(path.as_str(), "open-hangs");
            }
            source.open(&path)
        });
        let Ok(opened) = timeout(limits::READ_WAIT, opening).await else {
            return (failed(NO_ANSWER), None);
        };
        match opened {
            Ok(Ok(file)) => {
                let (verdict, rule) = (PathVerdict::Allowed, file.terms.name.clone());
                (Explained { verdict, rule, detail: String::new() }, None)
            }
            Ok(Err(err)) => match &err {
                SourceError::Denied(why) => {
                    let verdict = PathVerdict::Denied;
                    (Explained { verdict, ..failed(&err.to_string()) }, Some(*why))
                }
                _ => (failed(&err.to_string()), None),
            },
            Err(_) => (failed("the client met an error of its own"), None),
        }
    }

    /// Opens the file of a command.
    pub(super) async fn open(
        &self,
        command: &Command,
        permit: OwnedSemaphorePermit,
    ) -> Result<(OpenFile, OwnedSemaphorePermit), Unopened> {
        let began = Instant::now();
        let (source, client) = (self.source.borrow().clone(), self.client.clone());
        let (opens, asked) = (Arc::clone(&source), command.clone());
        let opening = spawn_blocking(move || {
            #[cfg(test)]
            if let Ok(Some(path)) = &asked.path {
                crate::client::reader::hang(path.as_str(), "open-hangs");
            }
            let file = match &client {
                Some(client) => opens.open_for(&Asked { client, command: &asked }),
                None => opens.open(&asked.path),
            };
            file.map(|file| (file, permit))
        });
        // An open that hangs goes on, and is counted, as a read that does.
        let opened = match timeout(limits::READ_WAIT, opening).await {
            Ok(opened) => opened.unwrap_or_else(|err| Err(SourceError::Io(err.into()))),
            Err(_) => Err(SourceError::Io(io::Error::new(io::ErrorKind::TimedOut, NO_ANSWER))),
        };
        if matches!(opened, Err(SourceError::Denied(_))) {
            evened(began).await;
        }
        opened.map_err(|err| {
            let why = why_unopened(&source, command, &err);
            Unopened { err, why: bounded(why, limits::DETAIL_BYTES_MAX) }
        })
    }
}
