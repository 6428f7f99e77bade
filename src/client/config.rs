//! The client's settings: flags, variables and file on one side, a checked [`ClientConfig`] on the
//! other. Everything that is wrong is told at once.

use std::{
    env,
    net::TcpListener,
    path::{Path, PathBuf},
};

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use crate::{
    ids::{ClientId, RemotePath},
    limits,
    rate::Rate,
    server_url::ServerUrl,
    settings::{self, ConfigError, Picker},
    telemetry::LogFormat,
};

mod generate;

pub use generate::GenerateFile;

/// Delivers files of this machine to an fts-server, which asks for them.
///
/// It dials the server, keeps one connection open, and uploads what the server asks for and the
/// policy (--allow) permits. It never ends because of what a server says, or because there is none.
#[derive(Debug, Parser)]
#[command(name = "fts-client", version, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<CliCommand>,
    #[command(flatten)]
    pub flags: Flags,
}

const AFTER_HELP: &str = "\
Each setting comes from its flag, else its FTS_ variable, else its short variable, else the file
(--config), else its default. FTS_ALLOW is a list, divided by colons; a list replaces the one that
it wins over.

Without --allow, and with a server on this machine, one file is shared:
$HOME/file_to_download.txt, which is made (100 MB) if it is not there.

On SIGHUP the file (--config) is read again: max_rate and max_uploads hold at once, the rest after
a restart; a bad file changes nothing. Without --config SIGHUP ends the client.

RUST_LOG filters the log (default: info), which goes to standard error.

Exit codes: 0 ended by a signal, 1 failed, 2 usage, 78 bad configuration.";

#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Makes the demo file.
    GenerateFile(GenerateFile),
}

/// The flags, as typed.
#[allow(clippy::doc_markdown)] // The comments are the text of --help.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Address of the server [default: http://localhost:3000] [short variable: SERVER_URL].
    #[arg(long, value_name = "URL", env = "FTS_SERVER", hide_env_values = true)]
    pub server: Option<String>,
    /// Name of this client [default: client-1 if the server is on this machine, else the host name]
    /// [short variable: CLIENT_ID].
    #[arg(long, value_name = "ID", env = "FTS_CLIENT_ID", hide_env_values = true)]
    pub client_id: Option<String>,
    /// Port of the status page, on loopback; 0: none [default: 8080, or none if that is busy]
    /// [short variable: CLIENT_PORT].
    #[arg(long, value_name = "PORT", env = "FTS_STATUS_PORT", hide_env_values = true)]
    pub status_port: Option<String>,
    /// A directory, or one file, that may be read; repeatable. Needed if the server is not on this
    /// machine [env: FTS_ALLOW=].
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<String>,
    /// The client's own directory (0700) [default: $XDG_STATE_HOME/fts-client/ID, or
    /// $HOME/.local/state/fts-client/ID].
    #[arg(long, value_name = "DIR", env = "FTS_STATE_DIR", hide_env_values = true)]
    pub state_dir: Option<String>,
    /// Most that all uploads together may send, in bytes a second, such as 5MB/s, 500KB/s or off; at
    /// least 64KB/s [default: off].
    #[arg(long, value_name = "RATE", env = "FTS_MAX_RATE", hide_env_values = true)]
    pub max_rate: Option<String>,
    /// Files delivered at a time, 1 to 64 [default: 4].
    #[arg(long, value_name = "N", env = "FTS_MAX_UPLOADS", hide_env_values = true)]
    pub max_uploads: Option<String>,
    /// Lower the priority of the client's threads, 0 to 19, as nice(1) does [default: 0].
    #[arg(long, value_name = "N", env = "FTS_NICE", hide_env_values = true)]
    pub nice: Option<String>,
    /// Go on with a file that broke before this process began without reading what was sent of it
    /// again, if its inode, size and times are the same; the result says so.
    #[arg(long, value_name = "BOOL", env = "FTS_TRUST_FINGERPRINT", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub trust_fingerprint: Option<String>,
    /// Send files in clear text to a server that is not on this machine: for test networks.
    #[arg(long, value_name = "BOOL", env = "FTS_INSECURE", hide_env_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure: Option<String>,
    /// text or json [default: text on a terminal, else json].
    #[arg(long, value_name = "FORMAT", env = "FTS_LOG_FORMAT", hide_env_values = true)]
    pub log_format: Option<String>,
    /// A TOML file with these settings: the flags' names, with _ for -.
    #[arg(long, value_name = "FILE", env = "FTS_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    client_id: Option<String>,
    status_port: Option<u16>,
    allow: Option<Vec<String>>,
    state_dir: Option<String>,
    max_rate: Option<String>,
    max_uploads: Option<u32>,
    nice: Option<u8>,
    trust_fingerprint: Option<bool>,
    insecure: Option<bool>,
    log_format: Option<String>,
}

/// What the settings depend on, besides flags and file.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    pub home: Option<PathBuf>,
    pub state_home: Option<PathBuf>,
    pub host_name: String,
    /// `FTS_ALLOW`.
    pub allow: Option<String>,
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
        }
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
    /// Whatever is beneath these directories, or is one of these files.
    Roots(Vec<RemotePath>),
}

/// Settings of a client, checked.
#[derive(Debug)]
pub struct ClientConfig {
    pub server: ServerUrl,
    pub id: ClientId,
    pub host_name: String,
    pub status: StatusPort,
    pub shared: Shared,
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

impl Flags {
    /// Returns the configuration, or everything that is wrong with it.
    pub fn resolve(self, around: &Surroundings) -> Result<ClientConfig, ConfigError> {
        let mut picker = Picker::new();
        let file: File = picker.take(settings::read_file(self.config.as_deref()));

        let server =
            picker.pick(("server", self.server), Some("SERVER_URL"), file.server, ServerUrl::parse);
        // After a bad URL the default stands in, so that the other settings are checked as well.
        let server = server.unwrap_or_else(|| {
            ServerUrl::parse(DEFAULT_SERVER).expect("the default is a server's URL")
        });
        let insecure = file.insecure.map(|yes| yes.to_string());
        let insecure = picker.pick(("insecure", self.insecure), None, insecure, settings::flag);
        if !server.is_loopback() && insecure != Some(true) {
            picker.problem(format!(
                "{server} is not on this machine: files would travel in clear text; this version \
                 has no TLS, and --insecure (or FTS_INSECURE=true) says that this is a test network"
            ));
        }
        let id = picker.pick(("client-id", self.client_id), Some("CLIENT_ID"), file.client_id, id);
        let id = id.or_else(|| default_id(&mut picker, &server, around));
        let port = file.status_port.map(|port| port.to_string());
        let status =
            picker.pick(("status-port", self.status_port), Some("CLIENT_PORT"), port, port_of);
        let shared = shared(&mut picker, &server, &self.allow, file.allow, around);
        let state_dir = picker.pick(("state-dir", self.state_dir), None, file.state_dir, directory);
        let state_dir = state_dir.or_else(|| default_state_dir(&mut picker, id.as_ref(), around));
        let rate_max =
            picker.pick(("max-rate", self.max_rate), None, file.max_rate, settings::rate);
        let uploads = file.max_uploads.map(|uploads| uploads.to_string());
        let uploads_max = picker.pick(("max-uploads", self.max_uploads), None, uploads, uploads_of);
        let nice = file.nice.map(|nice| nice.to_string());
        let nice = picker.pick(("nice", self.nice), None, nice, nice_of);
        let trust = file.trust_fingerprint.map(|yes| yes.to_string());
        let trust =
            picker.pick(("trust-fingerprint", self.trust_fingerprint), None, trust, settings::flag);
        let log_format =
            picker.pick(("log-format", self.log_format), None, file.log_format, LogFormat::parse);

        let parts = id.zip(shared).zip(state_dir);
        let ((id, shared), state_dir) =
            picker.finish(parts)?.expect("without a problem every part is there");
        Ok(ClientConfig {
            server,
            id,
            host_name: around.host_name.clone(),
            status: status.unwrap_or(StatusPort::Default),
            shared,
            state_dir,
            rate_max: rate_max.flatten(),
            uploads_max: uploads_max.unwrap_or(limits::JOBS),
            nice: nice.unwrap_or(0),
            trusts_fingerprint: trust.unwrap_or(false),
            log_format: log_format.unwrap_or_default(),
        })
    }
}

impl ClientConfig {
    /// Returns the name and the value of each setting that is read once, when the client starts.
    pub(super) fn read_at_start(&self) -> Vec<(&'static str, String)> {
        vec![
            ("server", self.server.to_string()),
            ("client_id", self.id.to_string()),
            ("status_port", format!("{:?}", self.status)),
            ("allow", format!("{:?}", self.shared)),
            ("state_dir", self.state_dir.display().to_string()),
            ("nice", self.nice.to_string()),
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
        return Some("client-1".parse().expect("client-1 is a client id"));
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = around.host_name.chars().map(plain).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let name = &name[..name.len().min(limits::CLIENT_ID_BYTES_MAX)];
    let id = name.parse().ok();
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
    let home = around.home.as_ref().map(|home| home.join(".local/state"));
    let Some(base) = around.state_home.clone().or(home) else {
        picker.problem("neither XDG_STATE_HOME nor HOME is set: give --state-dir");
        return None;
    };
    // Without an id there is a problem already, and no directory.
    id.map(|id| base.join("fts-client").join(id.as_str()))
}

/// Picks the policy. A list replaces the one that it wins over: what is typed can only be narrower
/// than expected.
fn shared(
    picker: &mut Picker,
    server: &ServerUrl,
    flags: &[String],
    file: Option<Vec<String>>,
    around: &Surroundings,
) -> Option<Shared> {
    let here = |text: &str| {
        let path = directory(text)?;
        root(&path.to_string_lossy())
    };
    let variable = around.allow.as_deref().filter(|list| !list.is_empty());
    let roots: Vec<_> = if !flags.is_empty() {
        flags.iter().map(|text| ("--allow", text.clone(), here(text))).collect()
    } else if let Some(list) = variable {
        list.split(':').map(|text| ("FTS_ALLOW", text.to_owned(), root(text))).collect()
    } else {
        let list = file.unwrap_or_default().into_iter();
        list.map(|text| ("'allow' in the file", text.clone(), root(&text))).collect()
    };
    if roots.len() > limits::ALLOWED_ROOTS_MAX {
        picker.problem(format!("--allow: at most {}", limits::ALLOWED_ROOTS_MAX));
    }
    if roots.is_empty() {
        return demo_file(picker, server, around);
    }
    let mut good = Vec::with_capacity(roots.len());
    for (origin, text, root) in roots {
        match root {
            Ok(root) => good.push(root),
            Err(err) => picker.problem(format!("{origin}: {text:?}: {err}")),
        }
    }
    Some(Shared::Roots(good))
}

fn root(text: &str) -> Result<RemotePath, String> {
    text.parse().map_err(|err: crate::ids::IdError| err.to_string())
}

fn demo_file(picker: &mut Picker, server: &ServerUrl, around: &Surroundings) -> Option<Shared> {
    if !server.is_loopback() {
        picker.problem(format!(
            "the server {server} is not on this machine: say which files of this one it may ask \
             for, with --allow DIR (or FTS_ALLOW, or 'allow' in the file)"
        ));
        return None;
    }
    let home = around.home.as_deref().and_then(Path::to_str);
    let path = home.map(|home| format!("{}/{DEMO_FILE}", home.trim_end_matches('/')));
    let path = path.and_then(|path| path.parse().ok());
    if path.is_none() {
        picker.problem("HOME names no place for the demo file: give --allow DIR");
    }
    Some(Shared::DemoFile { path: path?, size: limits::DEMO_FILE_BYTES })
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    fn around() -> Surroundings {
        Surroundings {
            home: Some("/home/u".into()),
            state_home: None,
            host_name: "web_1.lan".into(),
            allow: None,
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
        assert_eq!(config.shared, Shared::Roots(vec!["/srv".parse().expect("a path")]));
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
        assert_eq!(config.shared, Shared::Roots(vec!["/flag".parse().expect("a path")]));
        assert!(matches!(config.status, StatusPort::None));
    }

    #[test]
    fn the_list_of_the_variable_lies_between_flag_and_file() {
        let around = Surroundings { allow: some("/a:/b c"), ..around() };
        let roots = |flags: Flags| match flags.resolve(&around).expect("valid").shared {
            Shared::Roots(roots) => roots.into_iter().map(String::from).collect::<Vec<_>>(),
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
                     FTS_NICE SIGHUP 78 generate-file";
        for word in words.split_whitespace() {
            assert!(help.contains(word), "{word}");
        }
    }
}
