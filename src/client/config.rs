//! The client's settings: flags, variables and file on one side, a checked [`ClientConfig`] on the
//! other. Everything that is wrong is told at once.

use std::{
    env,
    net::TcpListener,
    path::{Path, PathBuf},
};

use rustls::pki_types::CertificateDer;

use super::{
    joined::{self, Joined},
    policy::Policy,
    sandbox::Mode,
};
use crate::{
    ids::{ClientId, RemotePath},
    limits,
    rate::Rate,
    route::{PROXY_VARIABLES, Proxies},
    server_url::ServerUrl,
    settings::{self, ConfigError, Layer, Picker, Setting},
    telemetry::LogFormat,
};

mod flags;
mod generate;
mod join;
mod server;
mod shared;

use flags::File;
pub use flags::{
    AuditCommand, AuditShow, AuditVerify, Cli, CliCommand, ConfigCommand, Flags, PolicyCommand,
    PolicyPath, PolicyPaths,
};
pub use generate::GenerateFile;
pub use join::{JoinFlags, JoinPlan};
use server::{ca, ca_file, proxies, server};
use shared::{Said, root, shared};

/// What the settings depend on, besides flags and file.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub home: Option<PathBuf>,
    pub state_home: Option<PathBuf>,
    pub host_name: String,
    /// `FTS_ALLOW`.
    pub allow: Option<String>,
    /// Those of [`PROXY_VARIABLES`] that are set.
    pub proxies: Vec<(&'static str, String)>,
}

impl Surroundings {
    pub fn of_process() -> Self {
        let absolute =
            |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        Self {
            home: absolute("HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            host_name: gethostname::gethostname().to_string_lossy().into_owned(),
            allow: env::var("FTS_ALLOW").ok(),
            proxies: PROXY_VARIABLES
                .into_iter()
                .filter_map(|name| Some((name, env::var(name).ok()?)))
                .collect(),
        }
    }

    /// Returns the directory beneath which each client has one of its own.
    pub(super) fn own_state(&self) -> Option<PathBuf> {
        let home = self.home.as_ref().map(|home| home.join(".local/state"));
        Some(self.state_home.clone().or(home)?.join("fts-client"))
    }
}

/// Where the status page listens; always on loopback.
#[derive(Debug)]
pub enum StatusPort {
    None,
    /// [`limits::STATUS_PORT`], or none if that is busy.
    Default,
    /// An error if it is busy.
    Chosen(u16),
    /// Bound by the caller.
    Bound(TcpListener),
}

/// What may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shared {
    /// One file, the default one, which is made if it is not there.
    DemoFile { path: RemotePath, size: u64 },
    /// Whatever the site's policy allows.
    Policy(Policy),
}

/// Settings of a client, checked.
#[derive(Debug)]
pub struct ClientConfig {
    pub server: ServerUrl,
    pub id: ClientId,
    pub host_name: String,
    pub status: StatusPort,
    pub shared: Shared,
    /// Where the policy was read, if it has a file of its own.
    pub policy_file: Option<PathBuf>,
    pub sandbox: Mode,
    /// Roots to know an `https://` server by, if it named none itself.
    pub ca: Option<Vec<CertificateDer<'static>>>,
    pub ca_file: Option<PathBuf>,
    pub proxies: Proxies,
    pub state_dir: PathBuf,
    /// Of all uploads together.
    pub rate_max: Option<Rate>,
    pub uploads_max: u32,
    /// How nice the process shall be to others, 0 to 19.
    pub nice: u8,
    /// An equal fingerprint proves what an earlier process sent.
    pub trusts_fingerprint: bool,
    pub log_format: LogFormat,
}

const DEFAULT_SERVER: &str = "http://localhost:3000";
const DEMO_FILE: &str = "file_to_download.txt";

/// Where one setting may be said, after its flag and variables.
struct Layers<'a> {
    file: &'a File,
    joined: &'a Joined,
    joined_file: Option<PathBuf>,
}

impl Layers<'_> {
    fn of(
        &self,
        name: &str,
        file: impl Fn(&File) -> Option<String>,
        joined: impl Fn(&Joined) -> Option<String>,
    ) -> [Layer; 2] {
        [(settings::in_file(name), file(self.file)), (self.origin(name), joined(self.joined))]
    }

    fn origin(&self, name: &str) -> String {
        let path = self.joined_file.as_deref().unwrap_or(Path::new(joined::NAME)).display();
        format!("'{}' in {path}", name.replace('-', "_"))
    }
}

impl Flags {
    /// Returns the configuration, or everything that is wrong with it.
    pub fn resolve(self, around: &Surroundings) -> Result<ClientConfig, ConfigError> {
        let mut picker = Picker::new();
        let config = self.pick(&mut picker, around);
        Ok(picker.finish(config)?.expect("without a problem every part is there"))
    }

    /// Returns where the client's own files are. Where that is said, nothing else matters.
    pub fn state_dir(self, around: &Surroundings) -> Result<PathBuf, ConfigError> {
        match &self.state_dir {
            Some(dir) => directory(dir).map_err(|why| format!("--state-dir: {why}").into()),
            None => Ok(self.resolve(around)?.state_dir),
        }
    }

    /// Returns every setting with where it came from, and what is wrong.
    pub fn check(self, around: &Surroundings) -> (Vec<Setting>, Result<(), ConfigError>) {
        let mut picker = Picker::new();
        self.pick(&mut picker, around);
        (picker.settings().to_vec(), picker.finish(()))
    }

    fn pick(mut self, picker: &mut Picker, around: &Surroundings) -> Option<ClientConfig> {
        let file: File = picker.take(settings::read_file(self.config.as_deref()));
        let joined_file = joined::path(around);
        let joined: Joined = picker.take(joined::read(joined_file.as_deref()));
        let mut layers = Layers { file: &file, joined: &joined, joined_file };
        let server = server(picker, self.server.take(), &layers);
        // What was agreed with one server holds for no other.
        let nothing = Joined::default();
        if joined.server.as_deref() != Some(&server.to_string()) {
            layers.joined = &nothing;
        }
        if !server.is_tls() {
            let insecure = file.insecure.map(|yes| yes.to_string());
            let flag = ("insecure", self.insecure.take());
            let insecure = picker.pick(flag, None, insecure, settings::flag);
            if !server.is_loopback() && insecure != Some(true) {
                picker.problem(format!(
                    "{server} is not on this machine: files would travel in clear text. Use \
                     https://, after fts-client join; --insecure (or FTS_INSECURE=true) says that \
                     this is a test network"
                ));
            }
        }
        let from = layers.of("client-id", |f| f.client_id.clone(), |j| j.client_id.clone());
        let flag = ("client-id", self.client_id.take());
        let id = picker.pick_shown(flag, Some("CLIENT_ID"), from, id, shown);
        let id = id.or_else(|| default_id(picker, &server, around));
        let said = Said { allow: &self.allow, policy: self.policy.take() };
        let shared = shared(picker, &server, said, &layers, around);
        let ca_file = ca_file(self.ca.as_deref(), &layers);
        let ca = ca(picker, self.ca.take(), &layers);
        let proxies = proxies(picker, &server, self.proxy.take(), &layers, around);
        let from = layers.of("state-dir", |f| f.state_dir.clone(), |j| j.state_dir.clone());
        let flag = ("state-dir", self.state_dir.take());
        let state_dir = picker.pick_shown(flag, None, from, directory, shown);
        let state_dir = state_dir.or_else(|| default_state_dir(picker, id.as_ref(), around));
        let own = self.pick_own(picker, file);
        let (shared, policy_file) = shared?;
        Some(ClientConfig {
            server,
            id: id?,
            host_name: around.host_name.clone(),
            shared,
            policy_file,
            sandbox: own.sandbox,
            ca,
            ca_file,
            proxies: proxies?,
            state_dir: state_dir?,
            status: own.status,
            rate_max: own.rate_max,
            uploads_max: own.uploads_max,
            nice: own.nice,
            trusts_fingerprint: own.trusts_fingerprint,
            log_format: own.log_format,
        })
    }

    /// Picks what concerns this process, and no server.
    fn pick_own(self, picker: &mut Picker, file: File) -> Own {
        let port = file.status_port.map(|port| port.to_string());
        let status =
            picker.pick(("status-port", self.status_port), Some("CLIENT_PORT"), port, port_of);
        let rate_max =
            picker.pick(("max-rate", self.max_rate), None, file.max_rate, settings::rate);
        let uploads = file.max_uploads.map(|uploads| uploads.to_string());
        let uploads_max = picker.pick(("max-uploads", self.max_uploads), None, uploads, uploads_of);
        let nice = file.nice.map(|nice| nice.to_string());
        let nice = picker.pick(("nice", self.nice), None, nice, nice_of);
        let sandbox = picker.pick(("sandbox", self.sandbox), None, file.sandbox, Mode::parse);
        let trust = file.trust_fingerprint.map(|yes| yes.to_string());
        let trust =
            picker.pick(("trust-fingerprint", self.trust_fingerprint), None, trust, settings::flag);
        let log_format =
            picker.pick(("log-format", self.log_format), None, file.log_format, LogFormat::parse);
        let defaults = [
            ("status-port", format!("{}, or none if that is busy", limits::STATUS_PORT)),
            ("max-rate", "off".to_owned()),
            ("max-uploads", limits::JOBS.to_string()),
            ("nice", "0".to_owned()),
            ("sandbox", Mode::default().to_string()),
            ("trust-fingerprint", "false".to_owned()),
            ("log-format", "text on a terminal, else json".to_owned()),
        ];
        for (name, value) in defaults {
            picker.note(name, value, DEFAULT);
        }
        Own {
            status: status.unwrap_or(StatusPort::Default),
            rate_max: rate_max.flatten(),
            uploads_max: uploads_max.unwrap_or(limits::JOBS),
            nice: nice.unwrap_or(0),
            sandbox: sandbox.unwrap_or_default(),
            trusts_fingerprint: trust.unwrap_or(false),
            log_format: log_format.unwrap_or_default(),
        }
    }
}

/// As in [`ClientConfig`].
struct Own {
    status: StatusPort,
    rate_max: Option<Rate>,
    uploads_max: u32,
    nice: u8,
    sandbox: Mode,
    trusts_fingerprint: bool,
    log_format: LogFormat,
}

/// Where a setting comes from that nobody has said.
const DEFAULT: &str = "default";

fn shown(text: &str) -> String {
    format!("{text:?}")
}

impl ClientConfig {
    /// Returns the name and the value of each setting that is read once, when the client starts.
    pub(super) fn read_at_start(&self) -> Vec<(&'static str, String)> {
        vec![
            ("server", self.server.to_string()),
            ("client_id", self.id.to_string()),
            ("status_port", format!("{:?}", self.status)),
            ("ca", format!("{:?}", self.ca)),
            ("proxy", format!("{:?}", self.proxies)),
            ("state_dir", self.state_dir.display().to_string()),
            ("nice", self.nice.to_string()),
            ("sandbox", self.sandbox.to_string()),
            ("trust_fingerprint", self.trusts_fingerprint.to_string()),
            ("log_format", format!("{:?}", self.log_format)),
        ]
    }
}

fn id(text: &str) -> Result<ClientId, String> {
    text.parse().map_err(|err: crate::ids::IdError| err.to_string())
}

fn port_of(text: &str) -> Result<StatusPort, String> {
    match text.parse() {
        Ok(0) => Ok(StatusPort::None),
        Ok(port) => Ok(StatusPort::Chosen(port)),
        Err(_) => Err("not a port from 0 to 65535".to_owned()),
    }
}

fn uploads_of(text: &str) -> Result<u32, String> {
    let uploads = text.parse().ok().filter(|uploads| (1..=limits::JOBS_MAX).contains(uploads));
    uploads.ok_or_else(|| format!("not a number from 1 to {}", limits::JOBS_MAX))
}

fn nice_of(text: &str) -> Result<u8, String> {
    let nice = text.parse().ok().filter(|nice| *nice <= limits::NICE_MAX);
    nice.ok_or_else(|| format!("not a number from 0 to {}", limits::NICE_MAX))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|err| err.to_string())
}

fn default_id(picker: &mut Picker, server: &ServerUrl, around: &Surroundings) -> Option<ClientId> {
    if server.is_loopback() {
        picker.note("client-id", "client-1", DEFAULT);
        return Some("client-1".parse().expect("client-1 is a client id"));
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = around.host_name.chars().map(plain).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let name = &name[..name.len().min(limits::CLIENT_ID_BYTES_MAX)];
    let id = name.parse().ok();
    picker.note("client-id", name, "the host name");
    if id.is_none() {
        picker.problem(format!(
            "the host name {:?} makes no client id: give --client-id",
            around.host_name
        ));
    }
    id
}

fn default_state_dir(
    picker: &mut Picker,
    id: Option<&ClientId>,
    around: &Surroundings,
) -> Option<PathBuf> {
    let Some(base) = around.own_state() else {
        picker.problem("neither XDG_STATE_HOME nor HOME is set: give --state-dir");
        return None;
    };
    // Without an id there is a problem already, and no directory.
    let dir = base.join(id?.as_str());
    picker.note("state-dir", shown(&dir.to_string_lossy()), DEFAULT);
    Some(dir)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use clap::Parser as _;

    use super::*;

    fn around() -> Surroundings {
        Surroundings {
            home: Some("/home/u".into()),
            state_home: None,
            host_name: "web_1.lan".into(),
            allow: None,
            proxies: vec![],
        }
    }

    #[allow(clippy::unnecessary_wraps)] // It is what a flag is.
    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn remote() -> Flags {
        Flags {
            server: some("http://10.1.2.3:3000"),
            insecure: some("true"),
            allow: vec!["/srv".into()],
            ..Flags::default()
        }
    }

    #[test]
    fn without_settings_it_is_the_demo() {
        let config = Flags::default().resolve(&around()).expect("valid");
        assert_eq!(config.server.to_string(), "http://localhost:3000");
        assert_eq!(config.id.as_str(), "client-1");
        assert!(matches!(config.status, StatusPort::Default));
        let path = "/home/u/file_to_download.txt".parse().expect("a path");
        assert_eq!(config.shared, Shared::DemoFile { path, size: 100_000_000 });
        assert_eq!(config.state_dir, Path::new("/home/u/.local/state/fts-client/client-1"));
        assert_eq!((config.uploads_max, config.rate_max), (limits::JOBS, None));
    }

    #[test]
    fn beyond_this_machine_clear_text_and_reading_must_be_allowed() {
        let flags = Flags { server: some("http://10.1.2.3:3000"), ..Flags::default() };
        let problems = flags.resolve(&around()).expect_err("refused").problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("--insecure"), "{problems:?}");
        assert!(problems[1].contains("--allow"), "{problems:?}");

        let config = remote().resolve(&around()).expect("valid");
        assert_eq!(config.id.as_str(), "web_1.lan");
        assert_eq!(
            config.shared,
            Shared::Policy(Policy::of_roots(vec!["/srv".parse().expect("a path")]))
        );
    }

    /// A home in which join was told `text`.
    fn joined(text: &str) -> (tempfile::TempDir, Surroundings) {
        let home = tempfile::tempdir().expect("a directory");
        let around = Surroundings { home: Some(home.path().to_owned()), ..around() };
        let path = joined::path(&around).expect("a place");
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
        (home, around)
    }

    #[test]
    fn what_join_was_told_holds_where_nothing_else_says_otherwise() {
        let (_home, around) = joined(
            "server = \"https://fts.example.com:3000\"\nclient_id = \"web-9\"\n\
             allow = [\"/srv\"]\nproxy = \"http://proxy:3128\"\n",
        );
        // What is closer to this client than the whole machine's wins.
        let around =
            Surroundings { proxies: vec![("HTTPS_PROXY", "http://other:1".into())], ..around };
        let config = Flags::default().resolve(&around).expect("valid");
        assert_eq!(config.server.to_string(), "https://fts.example.com:3000");
        assert_eq!(config.id.as_str(), "web-9");
        assert_eq!(
            config.shared,
            Shared::Policy(Policy::of_roots(vec!["/srv".parse().expect("a path")]))
        );
        assert!(config.state_dir.ends_with(".local/state/fts-client/web-9"));
        assert_eq!(config.proxies.shown(&config.server).as_deref(), Some("http://proxy:3128"));

        let flags = Flags { allow: vec!["/other".into()], ..Flags::default() };
        let config = flags.resolve(&around).expect("valid");
        assert_eq!(
            config.shared,
            Shared::Policy(Policy::of_roots(vec!["/other".parse().expect("a path")]))
        );
        assert_eq!(config.id.as_str(), "web-9");
    }

    #[test]
    fn what_was_agreed_with_one_server_holds_for_no_other() {
        let (_home, around) = joined(
            "server = \"https://fts.example.com:3000\"\nclient_id = \"web-9\"\n\
             allow = [\"/srv\"]\n",
        );
        let flags = Flags { server: some("https://evil.example.com"), ..Flags::default() };
        let problems = flags.resolve(&around).expect_err("refused").problems;
        assert!(problems.len() == 1 && problems[0].contains("--allow"), "{problems:?}");
        let flags = Flags { server: some("http://localhost:3000"), ..Flags::default() };
        let config = flags.resolve(&around).expect("valid");
        assert_eq!(config.id.as_str(), "client-1");
        assert!(matches!(config.shared, Shared::DemoFile { .. }));
    }

    #[test]
    fn the_password_of_a_proxy_is_refused_in_a_flag_and_shown_nowhere() {
        let flags = Flags { proxy: some("http://me:hunter2@proxy:3128"), ..Flags::default() };
        let problems = flags.resolve(&around()).expect_err("refused").problems;
        assert!(problems.len() == 1 && problems[0].contains("FTS_PROXY"), "{problems:?}");
        assert!(!problems[0].contains("hunter2"), "{problems:?}");

        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.toml");
        for (proxy, is_good) in [
            ("http://me:hunter2@proxy:3128", true),
            ("socks5://me:hunter2@proxy:1", false),
            ("http://me:hunter2", false),
        ] {
            let text = format!(
                "server = \"https://fts.example.com\"\nallow = [\"/srv\"]\nproxy = \"{proxy}\"\n"
            );
            fs::write(&path, text).expect("written");
            let flags = Flags { config: Some(path.clone()), ..Flags::default() };
            let (settings, good) = flags.clone().check(&around());
            assert_eq!(good.is_ok(), is_good);
            assert!(!format!("{settings:?} {good:?}").contains("hunter2"), "{settings:?} {good:?}");
            let config = flags.resolve(&around());
            assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        }
    }

    #[test]
    fn every_setting_is_shown_with_where_it_came_from() {
        let (home, around) = joined(
            "server = \"https://fts.example.com\"\nclient_id = \"web-9\"\nallow = [\"/srv\"]\n",
        );
        let path = home.path().join("c.toml");
        fs::write(&path, "max_rate = \"5MB/s\"\n").expect("written");
        let flags = Flags { config: Some(path), nice: some("7"), ..Flags::default() };
        let (settings, good) = flags.check(&around);
        assert_eq!(good, Ok(()));
        let origin = |name: &str| {
            let found = settings.iter().find(|setting| setting.name == name);
            found.unwrap_or_else(|| panic!("{name}: {settings:?}")).origin.clone()
        };
        for name in ["server", "client-id", "allow"] {
            assert!(origin(name).contains("joined.toml"), "{name}: {settings:?}");
        }
        assert_eq!(origin("max-rate"), "'max_rate' in the file");
        assert_eq!(origin("nice"), "--nice");
        for name in [
            "ca",
            "proxy",
            "state-dir",
            "status-port",
            "max-uploads",
            "trust-fingerprint",
            "log-format",
        ] {
            assert_eq!(origin(name), "default", "{name}: {settings:?}");
        }
        let proxies = vec![("HTTPS_PROXY", "http://me:hunter2@proxy:1".into())];
        let (settings, _) = Flags::default().check(&Surroundings { proxies, ..around.clone() });
        let proxy = settings.iter().find(|setting| setting.name == "proxy").expect("shown");
        assert_eq!(proxy.shown, "http://proxy:1");
        let (_, bad) = Flags { nice: some("70"), ..Flags::default() }.check(&around);
        assert_eq!(bad.expect_err("wrong").problems.len(), 1);
    }

    #[test]
    fn a_join_without_what_it_needs_is_refused_with_everything_that_is_wrong() {
        let flags = JoinFlags { server: some("http://h"), ..JoinFlags::default() };
        let problems = flags.resolve(&around(), None).expect_err("refused").problems;
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("https://") && problems[1].contains("--token-file"));

        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        fs::write(&path, "hunter2").expect("written");
        let flags = JoinFlags {
            server: some("https://h"),
            token_file: path.to_str().map(str::to_owned),
            ..JoinFlags::default()
        };
        let problems = flags.resolve(&around(), None).expect_err("refused").problems;
        assert!(problems.len() == 1 && problems[0].contains("not a token"), "{problems:?}");
        assert!(!problems[0].contains("hunter2"), "{problems:?}");
    }

    #[test]
    fn no_demo_file_is_larger_than_the_largest_file() {
        let wish = |size: &str| GenerateFile { size: size.to_owned(), path: Some("/x".into()) };
        let problems = wish("99999999TB").resolve().expect_err("refused").problems;
        assert!(problems[0].starts_with("--size"), "{problems:?}");
        assert!(wish("16TiB").resolve().is_ok());
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let flags = Flags {
            server: some("ftp://x"),
            client_id: some("-a b"),
            status_port: some("65536"),
            allow: vec!["/a/../b".into(), "/ok".into()],
            max_rate: some("5Mb/s"),
            max_uploads: some("0"),
            nice: some("-1"),
            insecure: some("perhaps"),
            log_format: some("xml"),
            ..Flags::default()
        };
        let problems = flags.resolve(&around()).expect_err("refused").problems;
        let named = [
            "--server",
            "--insecure",
            "--client-id",
            "--status-port",
            "--allow",
            "--max-rate",
            "--max-uploads",
            "--nice",
            "--log-format",
        ];
        for name in named {
            assert!(
                problems.iter().any(|problem| problem.starts_with(name)),
                "{name}: {problems:?}"
            );
        }
    }

    #[test]
    fn the_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.toml");
        let text = "client_id = \"of-file\"\nmax_uploads = 7\nmax_rate = \"5MB/s\"\n\
                    allow = [\"/file\"]\nstatus_port = 0\n";
        fs::write(&path, text).expect("written");
        let flags = Flags {
            client_id: some("of-flag"),
            allow: vec!["/flag".into()],
            config: Some(path),
            ..Flags::default()
        };
        let config = flags.resolve(&around()).expect("valid");
        assert_eq!(config.id.as_str(), "of-flag");
        assert_eq!(config.uploads_max, 7);
        assert_eq!(config.rate_max.map(Rate::bytes_per_second), Some(5_000_000));
        assert_eq!(
            config.shared,
            Shared::Policy(Policy::of_roots(vec!["/flag".parse().expect("a path")]))
        );
        assert!(matches!(config.status, StatusPort::None));
    }

    #[test]
    fn the_list_of_the_variable_lies_between_flag_and_file() {
        let around = Surroundings { allow: some("/a:/b c"), ..around() };
        let roots = |flags: Flags| match flags.resolve(&around).expect("valid").shared {
            Shared::Policy(policy) => {
                policy.rules().iter().map(|rule| rule.path.as_str().to_owned()).collect::<Vec<_>>()
            }
            demo @ Shared::DemoFile { .. } => panic!("{demo:?}"),
        };
        assert_eq!(roots(Flags::default()), ["/a", "/b c"]);
        assert_eq!(roots(Flags { allow: vec!["/x:y".into()], ..Flags::default() }), ["/x:y"]);
        let bad = Surroundings { allow: some("/a::rel"), ..around.clone() };
        assert_eq!(Flags::default().resolve(&bad).expect_err("refused").problems.len(), 2);
    }

    #[test]
    fn an_unknown_key_of_the_file_is_an_error_with_its_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.toml");
        fs::write(&path, "max_uploads = 1\nalow = [\"/\"]\n").expect("written");
        let flags = Flags { config: Some(path), ..Flags::default() };
        let problems = flags.resolve(&around()).expect_err("refused").problems;
        assert!(problems[0].contains("line 2"), "{problems:?}");
    }

    /// Not a test of its own: what the next test runs with other variables.
    #[test]
    fn child_that_prints_its_id() {
        if env::var_os("FTS_TEST_CHILD").is_none() {
            return;
        }
        let args = env::var("FTS_TEST_ARGS").unwrap_or_default();
        let args = std::iter::once("fts-client").chain(args.split_whitespace());
        let flags = Cli::try_parse_from(args).expect("arguments").flags;
        let config = flags.resolve(&around()).expect("valid");
        let port = match config.status {
            StatusPort::Chosen(port) => port,
            other => panic!("{other:?}"),
        };
        panic!("<{} {} {port}>", config.id, config.server);
    }

    #[test]
    fn a_flag_wins_over_the_fts_variable_and_that_over_the_short_one() {
        // A process cannot change its own variables safely, so a child is asked.
        let run = |args: &str, variables: &[(&str, &str)]| {
            let mut child = Command::new(env::current_exe().expect("this test"));
            child.args([
                "--exact",
                "client::config::tests::child_that_prints_its_id",
                "--nocapture",
            ]);
            child.env("FTS_TEST_CHILD", "1").env("FTS_TEST_ARGS", args);
            child.envs(variables.iter().copied());
            let out = child.output().expect("the child ran");
            let out = String::from_utf8_lossy(&out.stderr).into_owned()
                + &String::from_utf8_lossy(&out.stdout);
            let from = out.find('<').expect("an answer");
            out[from..=from + out[from..].find('>').expect("an answer")].to_owned()
        };
        let short =
            [("CLIENT_ID", "s"), ("SERVER_URL", "http://localhost:1"), ("CLIENT_PORT", "11")];
        let mut both = short.to_vec();
        both.extend([
            ("FTS_CLIENT_ID", "v"),
            ("FTS_SERVER", "http://localhost:2"),
            ("FTS_STATUS_PORT", "22"),
        ]);

        assert_eq!(run("", &short), "<s http://localhost:1 11>");
        assert_eq!(run("", &both), "<v http://localhost:2 22>");
        let flags = "--client-id f --server http://localhost:3 --status-port 33";
        assert_eq!(run(flags, &both), "<f http://localhost:3 33>");
    }

    #[test]
    fn the_help_names_every_variable_and_exit_code() {
        let help = <Cli as clap::CommandFactory>::command().render_long_help().to_string();
        let words = "FTS_SERVER SERVER_URL FTS_ALLOW CLIENT_PORT FTS_MAX_RATE FTS_MAX_UPLOADS \
                     FTS_NICE SIGHUP 78 generate-file join FTS_CA FTS_PROXY HTTPS_PROXY";
        for word in words.split_whitespace() {
            assert!(help.contains(word), "{word}");
        }
    }
}
