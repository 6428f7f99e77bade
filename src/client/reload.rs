//! What a hang-up (SIGHUP) does: the configuration and the policy are read again, and the client's
//! own limits hold from then on, for what runs as well. Whatever is wrong with them, the client goes
//! on as before.

use std::sync::Arc;

use tokio::{signal::unix::Signal, task::spawn_blocking};

use super::{
    allowance::Allowance,
    config::{ClientConfig, Flags, Shared, Surroundings},
    shares::Shares,
};
use crate::{rate::Rate, settings::ConfigError, shutdown::Shutdown};

/// Where the configuration came from, and what it was.
#[derive(Debug)]
pub struct Reload {
    flags: Flags,
    around: Surroundings,
    /// What is read once: the name and the value of each.
    at_start: Vec<(&'static str, String)>,
}

/// What reading again has found.
#[derive(Debug)]
struct Found {
    shared: Shared,
    rate_max: Option<Rate>,
    uploads_max: u32,
    /// What has changed, and holds from the next start on.
    later: Vec<&'static str>,
}

const SANDBOX_HINT: &str = "if it cannot be read: the sandbox lets a file that another has replaced \
                            be read only if its directory has at most 64 files and no directory in \
                            it; else restart";

impl Reload {
    /// Of settings that come from files; without any, there is nothing to read again.
    pub fn new(flags: Flags, around: Surroundings, config: &ClientConfig) -> Self {
        Self { flags, around, at_start: config.read_at_start() }
    }

    /// Reads again at each hang-up, until `shutdown` drains.
    pub async fn run(
        self,
        shares: Arc<Shares>,
        allowance: Arc<Allowance>,
        mut hangups: Signal,
        shutdown: Shutdown,
    ) {
        let this = Arc::new(self);
        let work = async {
            while hangups.recv().await.is_some() {
                Arc::clone(&this).obey(&shares, &allowance).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.draining().cancelled() => {}
        }
    }

    async fn obey(self: Arc<Self>, shares: &Arc<Shares>, allowance: &Allowance) {
        let hint = if shares.is_confined() { SANDBOX_HINT } else { "" };
        let shares = Arc::clone(shares);
        let reading = spawn_blocking(move || {
            let found = self.read()?;
            let is_new = shares.replace(&found.shared);
            Ok::<_, ConfigError>((found, is_new))
        });
        let (found, is_new) = match reading.await {
            Ok(Ok(read)) => read,
            Ok(Err(err)) => {
                tracing::error!(error = %err, hint, "SIGHUP: nothing was changed");
                return;
            }
            Err(err) => {
                tracing::error!(error = %err, "SIGHUP: reading the configuration panicked");
                return;
            }
        };
        for name in found.later {
            tracing::warn!("SIGHUP: the new {name} takes effect after a restart");
        }
        allowance.set(found.rate_max, found.uploads_max);
        let max_rate = found.rate_max.map_or_else(|| "off".to_owned(), |rate| rate.to_string());
        let (max_uploads, policy) =
            (found.uploads_max, if is_new { "replaced" } else { "the same" });
        tracing::info!(max_rate, max_uploads, policy, "SIGHUP: read the configuration again");
    }

    fn read(&self) -> Result<Found, ConfigError> {
        let config = self.flags.clone().resolve(&self.around)?;
        let now = config.read_at_start();
        let changed = self.at_start.iter().zip(&now).filter(|(before, now)| before != now);
        Ok(Found {
            shared: config.shared,
            rate_max: config.rate_max,
            uploads_max: config.uploads_max,
            later: changed.map(|(_, (name, _))| *name).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::client::{policy::Policy, state_dir::StateDir};

    /// Settings whose file says `text`.
    fn of_file(dir: &tempfile::TempDir, text: &str) -> (PathBuf, Flags, Surroundings) {
        let path = dir.path().join("c.toml");
        fs::write(&path, text).expect("written");
        let flags = Flags {
            config: Some(path.clone()),
            max_uploads: Some("9".to_owned()),
            ..Flags::default()
        };
        let home = Some("/home/u".into());
        (path, flags, Surroundings { home, host_name: "h".to_owned(), ..Surroundings::default() })
    }

    fn reload(flags: &Flags, around: &Surroundings) -> Arc<Reload> {
        let config = flags.clone().resolve(around).expect("valid");
        Arc::new(Reload::new(flags.clone(), around.clone(), &config))
    }

    fn shares(dir: &tempfile::TempDir) -> Arc<Shares> {
        let state = StateDir::open(&dir.path().join("state")).expect("free");
        Arc::new(Shares::new(&Shared::Policy(Policy::default()), Arc::new(state)))
    }

    #[tokio::test]
    async fn the_limits_of_the_file_hold_at_once_and_flags_still_win() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, flags, around) = of_file(&dir, "max_rate = \"1MB/s\"\n");
        let reload = reload(&flags, &around);
        let (shares, allowance) = (shares(&dir), Allowance::new(None, 9));

        fs::write(&path, "max_rate = \"2MB/s\"\nmax_uploads = 3\n").expect("written");
        Arc::clone(&reload).obey(&shares, &allowance).await;
        assert_eq!(allowance.pace.rate().map(Rate::bytes_per_second), Some(2_000_000));
        assert_eq!(allowance.uploads_max(), 9, "the flag wins");

        fs::write(&path, "").expect("written");
        reload.obey(&shares, &allowance).await;
        assert_eq!(allowance.pace.rate(), None);
    }

    #[tokio::test]
    async fn a_file_that_is_bad_or_gone_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, flags, around) = of_file(&dir, "");
        let reload = reload(&flags, &around);
        let rate = Rate::try_from(1_000_000).expect("enough");
        let (shares, allowance) = (shares(&dir), Allowance::new(Some(rate), 9));
        // One wrong line, and what is right in the same file does not count either.
        for bad in ["max_rate = \"2MB/s\"\nmax_uplods = 3\n", "max_rate = \"1B/s\"\n", "{"] {
            fs::write(&path, bad).expect("written");
            Arc::clone(&reload).obey(&shares, &allowance).await;
            assert_eq!(allowance.pace.rate(), Some(rate), "{bad}");
        }
        fs::remove_file(&path).expect("gone");
        reload.obey(&shares, &allowance).await;
        assert_eq!(allowance.pace.rate(), Some(rate));
    }

    #[test]
    fn what_is_read_at_the_start_is_told_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, flags, around) = of_file(&dir, "allow = [\"/a\"]\nlog_format = \"text\"\n");
        let reload = reload(&flags, &around);
        assert_eq!(reload.read().expect("valid").later, [""; 0]);
        let text = "allow = [\"/b\"]\nclient_id = \"x\"\nserver = \"http://localhost:1\"\n\
                    status_port = 1\nstate_dir = \"/s\"\nlog_format = \"json\"\nnice = 3\n";
        fs::write(&path, text).expect("written");
        let later = reload.read().expect("valid").later;
        let all = ["server", "client_id", "status_port", "state_dir", "nice", "log_format"];
        assert_eq!(later, all);
    }
}
