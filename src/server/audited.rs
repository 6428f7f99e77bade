//! What is done under the eyes of the audit: on record before it is done, with its outcome after.
//! What cannot be put on record is not done, unless it takes rights away: nobody must be able to
//! hold that up by filling a disk.

use super::{
    audit::{Action, Actor, Audit, Detail, Entry, Outcome},
    error::Error,
    gate::Caller,
};
use crate::status::Reason;

/// Whoever does something, and where that goes on record.
#[derive(Debug, Clone)]
pub struct Audited {
    /// `None`: nobody asks who calls here, so there is nothing to tell.
    audit: Option<Audit>,
    actor: Actor,
    from: String,
}

impl Audited {
    pub fn new(audit: Option<Audit>, caller: &Caller, from: impl Into<String>) -> Self {
        Self { audit, actor: caller.actor(), from: from.into() }
    }

    /// Does `work`. When the answer comes, both lines are on stable storage.
    pub async fn run<T>(
        &self,
        action: Action,
        about: &[Detail],
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.run_and_name(action, about, work, |_| Vec::new()).await
    }

    /// The same; `made` says what came of it.
    pub async fn run_and_name<T>(
        &self,
        action: Action,
        about: &[Detail],
        work: impl Future<Output = Result<T, Error>>,
        made: impl FnOnce(&T) -> Vec<Detail>,
    ) -> Result<T, Error> {
        self.note(action, about, Outcome::Asked).await?;
        let done = work.await;
        let mut about = about.to_vec();
        about.extend(done.as_ref().map(made).unwrap_or_default());
        if let Err(err) = self.note(action, &about, outcome(&done)).await {
            // It is done, and that it was asked for is on record.
            err.log();
        }
        done
    }

    /// Puts on record that something was refused before anything was done; of too many, how many
    /// they were.
    pub fn refuse(&self, action: Action, about: &[Detail], err: &Error) {
        let Some(audit) = &self.audit else { return };
        let entry = self.entry(action, &[], Outcome::Not(err.on_record().as_str()));
        let entry = match err {
            Error::Hidden { transfer, .. } => entry.with(Detail::Transfer(*transfer)),
            err => entry.with(Detail::Text(err.peer_text())),
        };
        audit.refused(about.iter().cloned().fold(entry, Entry::with));
    }

    /// Notes that a session began, or ended.
    pub fn session(&self, action: Action, about: &[Detail]) {
        let Some(audit) = &self.audit else { return };
        audit.session(self.entry(action, about, Outcome::Done));
    }

    /// Puts one line on record.
    pub async fn note(
        &self,
        action: Action,
        about: &[Detail],
        outcome: Outcome,
    ) -> Result<(), Error> {
        let Some(audit) = &self.audit else { return Ok(()) };
        let entry = self.entry(action, about, outcome);
        if action.takes_away() {
            let line = entry.to_string();
            if let Err(err) = audit.write_or_keep(entry).await {
                let err = &err as &dyn std::error::Error;
                tracing::error!(error = err, line, "not on record yet, and it goes ahead");
            }
            return Ok(());
        }
        audit.write(vec![entry]).await.map_err(|err| {
            tracing::error!(error = &err as &dyn std::error::Error, "could not write the audit");
            Error::refused(Reason::Unavailable, "the audit cannot be written, so nothing is done")
        })
    }

    fn entry(&self, action: Action, about: &[Detail], outcome: Outcome) -> Entry {
        let entry = Entry::new(self.actor.clone(), self.from.clone(), action, outcome);
        about.iter().cloned().fold(entry, Entry::with)
    }
}

/// Returns how something ended, as the audit says it.
pub fn outcome<T>(done: &Result<T, Error>) -> Outcome {
    match done {
        Ok(_) => Outcome::Done,
        Err(err) => Outcome::Not(err.on_record().as_str()),
    }
}
