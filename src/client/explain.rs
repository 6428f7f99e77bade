//! `fts-client policy`: says what may be read, and why not, by opening it as an upload would. It
//! reads no byte, and takes no lock: the client may run meanwhile.

use std::{fmt, sync::Arc};

use super::{
    config::{ClientConfig, Shared},
    policy::{Denied, Rule},
    source::{OpenFile, Source, SourceError},
    state_dir::{StateDir, StateDirError},
    words::log_path,
};
use crate::ids::RemotePath;

/// What would become of a request for each path.
#[derive(Debug)]
pub struct Explainer {
    source: Source,
}

/// What would become of a request for a path. Shown, it is a line for the site's own eyes.
#[derive(Debug)]
pub struct Explained {
    path: String,
    pub verdict: Verdict,
    why: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// By the policy.
    Denied,
    /// It is allowed, and could not be opened.
    Failed,
}

impl Explainer {
    pub fn new(config: &ClientConfig) -> Result<Self, StateDirError> {
        let state = Arc::new(StateDir::look(&config.state_dir)?);
        Ok(Self { source: Source::new(&config.shared, state) })
    }

    /// Returns a line or two about each rule, with what is wrong with its root now, and about each
    /// signer.
    pub fn rules(&self) -> Vec<String> {
        let rules = self.source.policy().rules();
        let rules = (0..rules.len()).map(|rule| about(&rules[rule], self.root_problem(rule)));
        let signers = self.source.policy().signers().iter();
        rules.chain(signers.map(|each| format!("signer {}  {}", each.name, each.key))).collect()
    }

    fn root_problem(&self, rule: usize) -> Option<String> {
        Some(match self.source.root_problem(rule)? {
            SourceError::Denied(why) => self.source.policy().explain(why),
            err => format!("{err}; it is tried again when it is asked for"),
        })
    }

    pub fn explain(&self, path: &str) -> Explained {
        let parsed = path.parse::<RemotePath>().map(Some);
        let (verdict, why) = match self.source.open(&parsed) {
            Err(SourceError::Denied(unsigned @ Denied::Unsigned(_))) => {
                let (signed, why) = self.judge(self.source.open_as_signed(&parsed));
                let unsigned = self.source.policy().explain(unsigned);
                (Verdict::Denied, format!("{unsigned}; signed, it is {signed}: {why}"))
            }
            opened => self.judge(opened),
        };
        Explained { path: log_path(path), verdict, why }
    }

    fn judge(&self, opened: Result<OpenFile, SourceError>) -> (Verdict, String) {
        match opened {
            Ok(file) => {
                let size = file.fingerprint.size_bytes;
                let later = if file.terms.held().is_some() {
                    "; not now: outside its hours, or with the bytes of its day sent, it waits"
                } else {
                    ""
                };
                let why = format!("by the rule {:?} ({size} bytes){later}", file.terms.name);
                (Verdict::Allowed, why)
            }
            Err(SourceError::Denied(why)) => (Verdict::Denied, self.source.policy().explain(why)),
            Err(err) => (Verdict::Failed, err.to_string()),
        }
    }
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}: {}", self.verdict, self.path, self.why)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        })
    }
}

/// Returns what is shared, and what tells this policy from others.
pub fn summary(shared: &Shared) -> String {
    match shared {
        Shared::DemoFile { path, .. } => format!("the demo file, {}", log_path(path.as_str())),
        Shared::Policy(policy) => {
            let count = policy.rules().len();
            format!("{count} {}; digest {}", plural(count), policy.digest())
        }
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "rule" } else { "rules" }
}

fn about(rule: &Rule, problem: Option<String>) -> String {
    let mut text = format!("{}  {}", rule.name, log_path(rule.path.as_str()));
    let details = rule.details();
    if !details.is_empty() {
        text = format!("{text}  ({})", details.join("; "));
    }
    match problem {
        Some(problem) => format!("{text}\n  PROBLEM: {problem}"),
        None => text,
    }
}
