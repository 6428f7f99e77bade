//! The sandbox: what the kernel is told that this process will never do again. It is laid on before
//! the first thread is made, so that it holds for all of them, and it cannot be taken off. The
//! policy says what a server may ask for; this says what the process can do at all, whatever runs
//! in it.

use std::{
    collections::BTreeSet,
    env, fmt, fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    config::{ClientConfig, Shared, Surroundings},
    joined,
};
use crate::limits;

#[cfg(target_os = "linux")]
mod calls;
#[cfg(target_os = "linux")]
mod files;

/// Whether there shall be a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As much of it as this kernel has.
    #[default]
    On,
    Off,
    /// All of files, calls and privileges, or no start.
    Require,
}

/// What holds of it. Shown, it is one line.
// Each is a fact of its own, as the status page tells them.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Held {
    pub mode: Mode,
    /// What the kernel calls its version of Landlock; absent: it has none.
    pub landlock_abi: Option<u32>,
    /// Files are read beneath the roots only, and written beneath the state directory only.
    pub files: bool,
    /// TCP goes to the server's port, or the proxy's, only.
    pub network: bool,
    /// No signal, and no abstract socket, reaches another process.
    pub scope: bool,
    /// No program is run, no process made, and what no client needs is refused.
    pub seccomp: bool,
    pub no_new_privs: bool,
}

/// Why there is no sandbox where one is required.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    #[error("--sandbox require: this kernel does not hold {0}; --sandbox on does with less")]
    Missing(String),
}

/// What the process needs of this machine. Its paths are looked up when it is applied.
#[derive(Debug)]
pub struct Plan {
    roots: Vec<PathBuf>,
    /// Read again at a hang-up.
    settings: Vec<PathBuf>,
    state_dir: PathBuf,
    ports: BTreeSet<u16>,
}

/// What becomes of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// It, and all beneath it.
    There(PathBuf),
    /// It is absent: the directory in which it will be.
    Above(PathBuf),
    /// That is absent too, or holds what has nothing to do with it.
    Nowhere,
}

impl Mode {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            "require" => Ok(Self::Require),
            _ => Err("not on, off or require".to_owned()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
            Self::Require => "require",
        })
    }
}

impl Held {
    /// Names what does not hold.
    pub fn missing(&self) -> Vec<&'static str> {
        let parts = [
            (self.files, "files (Landlock, Linux 5.13)"),
            (self.seccomp, "calls (seccomp)"),
            (self.no_new_privs, "privileges (no_new_privs)"),
            (self.network, "TCP ports (Landlock 4, Linux 6.7)"),
            (self.scope, "signals (Landlock 6, Linux 6.12)"),
        ];
        parts.into_iter().filter_map(|(holds, name)| (!holds).then_some(name)).collect()
    }

    /// Refuses what [`Mode::Require`] does not start with.
    fn judged(self) -> Result<Self, SandboxError> {
        let suffices = self.files && self.seccomp && self.no_new_privs;
        if self.mode == Mode::Require && !suffices {
            return Err(SandboxError::Missing(self.missing().join(", ")));
        }
        Ok(self)
    }
}

impl Plan {
    /// Returns what a client of this configuration needs.
    pub fn new(config: &ClientConfig, config_file: Option<&Path>, around: &Surroundings) -> Self {
        let roots = match &config.shared {
            Shared::DemoFile { path, .. } => vec![path.as_str().into()],
            Shared::Policy(policy) => {
                policy.rules().iter().map(|rule| rule.path.as_str().into()).collect()
            }
        };
        let joined = joined::path(around);
        let files = [config_file, config.policy_file.as_deref(), config.ca_file.as_deref()];
        let settings = files.into_iter().flatten().chain(joined.as_deref());
        let proxy = config.proxies.port_to(&config.server);
        Self {
            roots,
            settings: settings.filter_map(|path| std::path::absolute(path).ok()).collect(),
            state_dir: config.state_dir.clone(),
            ports: BTreeSet::from([proxy.unwrap_or(config.server.port())]),
        }
    }

    /// Lays it on this thread, and so on all that it makes; returns what holds.
    pub fn apply(&self, mode: Mode) -> Result<Held, SandboxError> {
        let mut held = Held { mode, ..Held::default() };
        if mode != Mode::Off {
            self.restrict(&mut held);
        }
        held.judged()
    }

    #[cfg(target_os = "linux")]
    fn restrict(&self, held: &mut Held) {
        files::restrict(self, held);
        calls::restrict(held);
    }

    #[cfg(not(target_os = "linux"))]
    fn restrict(&self, _held: &mut Held) {
        tracing::warn!("there is no sandbox on this system");
    }

    /// Says, for each root that is no plain case, what the kernel will allow instead of it.
    pub fn notes(&self) -> Vec<String> {
        self.roots.iter().filter_map(|root| note(root)).collect()
    }

    /// Says what it adds on this machine: a line for each part.
    pub fn lines(&self, mode: Mode) -> Vec<String> {
        if mode == Mode::Off {
            return vec!["nothing is held by the kernel".to_owned()];
        }
        let mut lines = Vec::new();
        for root in &self.roots {
            let shown = root.display();
            lines.push(note(root).unwrap_or_else(|| format!("{shown}: held by the kernel")));
        }
        let ports: Vec<_> = self.ports.iter().map(u16::to_string).collect();
        lines.push(format!("writes beneath {} only", self.state_dir.display()));
        lines.push(format!("connects to TCP port {} only", ports.join(", ")));
        lines.push("runs no program".to_owned());
        lines
    }

    /// Returns what may be read.
    fn readable(&self) -> Vec<PathBuf> {
        let roots = self.roots.iter().filter_map(|root| match place(root) {
            Place::There(path) | Place::Above(path) => Some(path),
            Place::Nowhere => None,
        });
        let settings = self.settings.iter().flat_map(|file| replaceable(file));
        roots.chain(settings).chain(machine_files()).collect()
    }
}

fn note(root: &Path) -> Option<String> {
    let shown = root.display();
    match place(root) {
        Place::There(path) if path.is_dir() => None,
        Place::There(_) => Some(format!(
            "{shown}: a single file; if another takes its place, it is read only after a restart"
        )),
        Place::Above(above) => Some(format!(
            "{shown}: absent, so the kernel allows {} until a restart; the policy still holds",
            above.display()
        )),
        Place::Nowhere => {
            Some(format!("{shown}: absent, and can be read only after a restart, once it is there"))
        }
    }
}

fn place(path: &Path) -> Place {
    // What a disk does not say once may be there all the same: opening it is tried more than once.
    if path.try_exists().unwrap_or(true) {
        return Place::There(path.to_owned());
    }
    // Not all homes, nor all of /etc or /var, for the sake of one name in it.
    let is_narrow = |above: &PathBuf| above.components().count() > 2;
    match path.parent().and_then(|above| fs::canonicalize(above).ok()).filter(is_narrow) {
        Some(above) => Place::Above(above),
        None => Place::Nowhere,
    }
}

/// Returns a file that is read again, with its directory if that holds little else: editors put
/// another file in its place.
fn replaceable(file: &Path) -> Vec<PathBuf> {
    let mut places = vec![file.to_owned()];
    if let Some(dir) = file.parent()
        && holds_little(dir)
    {
        places.push(dir.to_owned());
    }
    places
}

fn holds_little(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    let mut count = 0;
    for entry in entries {
        count += 1;
        let is_plain = entry.is_ok_and(|e| e.file_type().is_ok_and(|kind| !kind.is_dir()));
        if !is_plain || count > limits::SANDBOX_DIR_ENTRIES_MAX {
            return false;
        }
    }
    true
}

/// Returns what name resolution and TLS read, as far as it is there.
fn machine_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = MACHINE_FILES.iter().map(PathBuf::from).collect();
    // Libraries: what nsswitch.conf names is loaded when a name is first looked up.
    let arch = env::consts::ARCH;
    files.extend(
        [format!("/usr/lib/{arch}-linux-gnu"), format!("/lib/{arch}-linux-gnu")].map(PathBuf::from),
    );
    let variables = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
    let named = variables.iter().filter_map(env::var_os);
    files.extend(named.flat_map(|list| env::split_paths(&list).collect::<Vec<_>>()));
    // Where a service of the machine keeps the file that the link names, it replaces that file.
    if let Ok(resolv) = fs::canonicalize("/etc/resolv.conf")
        && let Some(dir) = resolv.parent()
        && dir.starts_with("/run")
        && dir != Path::new("/run")
    {
        files.push(dir.to_owned());
    }
    files.retain(|file| file.is_absolute() && file.exists());
    files
}

/// Of glibc, of jiff, of rustls-native-certs, and of the kernel's read-ahead.
const MACHINE_FILES: [&str; 23] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/services",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/etc/ld.so.cache",
    "/lib64",
    "/usr/lib64",
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/usr/lib/ssl/certs",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/opt/etc/ssl/certs/ca-certificates.crt",
    "/sys/devices/virtual/bdi",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_root_brings_its_own_directory_and_never_one_at_the_top() {
        let dir = tempfile::tempdir().expect("a directory");
        let there = fs::canonicalize(dir.path()).expect("there");
        let top = there.ancestors().nth(there.components().count() - 2).expect("a top");
        std::os::unix::fs::symlink(top, there.join("to-top")).expect("linked");
        assert_eq!(place(&there), Place::There(there.clone()));
        assert_eq!(place(&there.join("a")), Place::Above(there.clone()));
        // Nor what is further up, nor by a link.
        for absent in [&there.join("a/b"), &top.join("no-such"), &there.join("to-top/no-such")] {
            assert_eq!(place(absent), Place::Nowhere, "{}", absent.display());
        }
        assert_eq!(place(Path::new("/no-such-directory")), Place::Nowhere);
    }

    #[test]
    fn a_settings_file_brings_its_directory_only_if_that_holds_little() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("policy.toml");
        fs::write(&file, "").expect("written");
        assert_eq!(replaceable(&file), [file.clone(), dir.path().to_owned()]);
        fs::create_dir(dir.path().join("private")).expect("made");
        assert_eq!(replaceable(&file), [file]);
    }

    #[test]
    fn require_wants_files_calls_and_privileges() {
        let all = Held { files: true, seccomp: true, no_new_privs: true, ..Held::default() };
        let all = Held { mode: Mode::Require, ..all };
        assert_eq!(all.judged().expect("enough"), all);
        for less in [
            Held { files: false, ..all },
            Held { seccomp: false, ..all },
            Held { no_new_privs: false, ..all },
        ] {
            assert!(less.judged().is_err(), "{less:?}");
            let on = Held { mode: Mode::On, ..less };
            assert_eq!(on.judged().expect("it wants as much as there is"), on);
        }
    }
}
