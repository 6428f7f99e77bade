//! The settings of `fts`, from its command line, the environment and a TOML file.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{
    key::{self, Signing},
    login::{self, Login},
    output::Form,
};
use crate::{
    limits,
    rate::Rate,
    route::{Proxies, Route},
    server_url::ServerUrl,
    settings::{self, ConfigError, Picker},
    telemetry::LogFormat,
    tls::{self, TlsError, Trust},
    token::{Secret, Token, TokenKind},
};

mod args;

pub use args::{Args, AskArgs, Command, CopyArgs, KeyCommand, Source};

const SERVER_DEFAULT: &str = "http://localhost:3000";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_field_names)] // the keys are the flags' names
struct File {
    server: Option<String>,
    ca: Option<PathBuf>,
    token_file: Option<PathBuf>,
    proxy: Option<String>,
    insecure: Option<bool>,
    json: Option<bool>,
    log_format: Option<String>,
    timeout: Option<String>,
    deadline: Option<String>,
    max_rate: Option<String>,
    sign_key: Option<PathBuf>,
    sign_for: Option<String>,
}

/// What holds for every command, wherever it was set.
#[derive(Debug)]
pub struct Settings {
    pub(super) server: ServerUrl,
    /// What the server's certificate must lead to, if that was said.
    pub(super) ca: Option<PathBuf>,
    pub(super) proxies: Proxies,
    /// What to show; none in clear text.
    pub(super) token: Option<Secret>,
    pub(super) form: Form,
    pub log_format: LogFormat,
    /// How long the operator waits for a transfer to end.
    pub(super) timeout: Option<Duration>,
    /// How long a transfer has to end, if not as long as usual.
    pub(super) deadline: Option<Duration>,
    /// A cap for the transfer alone.
    pub(super) rate_max: Option<Rate>,
    /// For commands that ask for a file.
    pub(super) signing: Option<Signing>,
    pub(super) timing: Timing,
}

/// How long the tool bears with a server that is away, and how often it speaks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Between two tries: the first, and the longest.
    pub(super) pause_min: Duration,
    pub(super) pause_max: Duration,
    /// Without a server, a request is given up after this long …
    pub(super) ask_wait: Duration,
    /// … and one whose transfer is being followed after this long.
    pub(super) gone_wait: Duration,
    /// Off a terminal, progress is told this often.
    pub(super) progress_every: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            pause_min: limits::OPERATOR_PAUSE_MIN,
            pause_max: limits::OPERATOR_PAUSE_MAX,
            ask_wait: limits::OPERATOR_ASK_WAIT,
            gone_wait: limits::OPERATOR_GONE_WAIT,
            progress_every: limits::OPERATOR_PROGRESS_EVERY,
        }
    }
}

impl Settings {
    /// Looks for every setting where it may come from.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn resolve(args: &Args) -> Result<Self, ConfigError> {
        let mut picker = Picker::new();
        let global = &args.global;
        let file: File = picker.take(settings::read_file(global.config.as_deref()));
        let (timeout, deadline) = args.command.times();
        let bool_text = |value: Option<bool>| value.map(|b| b.to_string());

        let server = said_server(&mut picker, args, file.server);
        let flag = ("insecure", global.insecure.clone());
        let insecure = picker.pick(flag, None, bool_text(file.insecure), settings::flag);
        let flag = ("json", global.json.clone());
        let json = picker.pick(flag, None, bool_text(file.json), settings::flag);
        let flag = ("log-format", global.log_format.clone());
        let log_format = picker.pick(flag, None, file.log_format, LogFormat::parse);
        let flag = ("timeout", timeout);
        let timeout = picker.pick(flag, None, file.timeout, settings::duration);
        let flag = ("deadline", deadline);
        let deadline = picker.pick(flag, None, file.deadline, deadline_within);
        let flag = ("max-rate", args.command.max_rate());
        let rate_max = picker.pick(flag, None, file.max_rate, settings::rate).flatten();

        let flags = args.command.signing();
        let signing = signing(&mut picker, flags, file.sign_key, file.sign_for, deadline);

        let login = picker.take(
            login::file().map_or(Ok(None), |path| Login::read(&path).map_err(ConfigError::from)),
        );
        let kept = login.as_ref().and_then(|login| ServerUrl::parse(&login.server).ok());
        let server = server.or_else(|| kept.clone()).unwrap_or_else(|| {
            ServerUrl::parse(SERVER_DEFAULT).expect("the default is a server's URL")
        });
        // A token is shown to the server that it was given for, and to no other.
        let login = login.filter(|_| kept.as_ref() == Some(&server));
        if !server.is_tls() && !server.is_loopback() && insecure != Some(true) {
            picker.problem(format!(
                "{server} is on another machine: file names and bytes would cross the network in \
                 clear. Use https://; --insecure says that this is a test network"
            ));
        }
        let token =
            token(&args.command, global.token_file.clone().or(file.token_file), login.as_ref());
        let token = picker.take(token.map_err(ConfigError::from)).filter(|_| server.is_tls());
        let proxies = proxies(&mut picker, global.proxy.clone(), file.proxy);
        let ca = global.ca.clone().or(file.ca).or_else(|| login.and_then(|login| login.ca));
        let form = if json == Some(true) { Form::Json } else { Form::Text };
        let log_format = log_format.unwrap_or_default();
        let timing = Timing::default();
        picker.finish(Self {
            server,
            ca,
            proxies,
            token,
            form,
            log_format,
            timeout,
            deadline,
            rate_max,
            signing,
            timing,
        })
    }

    /// Returns the way to the server, and what is trusted on it: what was said, else the root that
    /// the token names, else the system's.
    pub(super) fn route(&self) -> Result<Route, TlsError> {
        let pinned = self.token.as_ref().and_then(|token| {
            Token::parse(token.reveal(), TokenKind::Operator).ok().and_then(|token| token.root)
        });
        let trust = match (&self.ca, pinned) {
            (Some(ca), _) => Trust::Roots(tls::read_pem_certificates(ca)?),
            (None, Some(root)) => Trust::Pinned(root),
            (None, None) => Trust::System,
        };
        Route::new(&self.server, &trust, None, &self.proxies)
    }
}

/// Returns the server that the command line, the environment or the file names.
fn said_server(picker: &mut Picker, args: &Args, from_file: Option<String>) -> Option<ServerUrl> {
    let flag = ("server", args.global.server.clone());
    let server = picker.pick(flag, Some("SERVER_URL"), from_file, ServerUrl::parse);
    match &args.command {
        Command::Login { url } => picker.pick(("url", Some(url.clone())), None, None, |text| {
            ServerUrl::parse(text).and_then(secure)
        }),
        _ => server,
    }
}

/// Returns the proxies that the command line or the file names, else the environment's.
fn proxies(picker: &mut Picker, flag: Option<String>, from_file: Option<String>) -> Proxies {
    let said = picker.pick(("proxy", flag), None, from_file, Proxies::parse);
    let proxies = said.map_or_else(
        || Proxies::from_variables(|name| std::env::var(name).ok()).map_err(ConfigError::from),
        Ok,
    );
    picker.take(proxies.map(Some)).unwrap_or_else(Proxies::off)
}

/// Reads the key to sign with, if there is one and the command asks for a file.
fn signing(
    picker: &mut Picker,
    flags: Option<(Option<PathBuf>, Option<String>)>,
    file: Option<PathBuf>,
    lasts: Option<String>,
    deadline: Option<Duration>,
) -> Option<Signing> {
    let (flag, said) = flags?;
    let is_wanted = said.is_some();
    let lasts = picker.pick(("sign-for", said), None, lasts, key::parse_lasts);
    let Some(path) = flag.or(file) else {
        // Whoever says it believes that the request is signed.
        if is_wanted {
            picker.problem("--sign-for: there is no key to sign with; name one by --sign-key");
        }
        return None;
    };
    let key = picker.take(
        key::read(&path)
            .map(Some)
            .map_err(|problem| ConfigError::from(format!("--sign-key: {problem}"))),
    )?;
    Some(Signing { key, lasts: key::lasts(lasts, deadline) })
}

fn deadline_within(text: &str) -> Result<Duration, String> {
    let deadline = settings::duration(text)?;
    if deadline.is_zero() || deadline > limits::DEADLINE_MAX {
        return Err("a deadline is more than nothing and at most 366d".to_owned());
    }
    Ok(deadline)
}

/// Returns the token to show: of the file that was named, of the environment, of the login.
fn token(
    command: &Command,
    file: Option<PathBuf>,
    login: Option<&Login>,
) -> Result<Option<Secret>, String> {
    if let Some(path) = file {
        let read = login::from_file(&path);
        return read.map(Some).map_err(|err| format!("--token-file: {err}"));
    }
    let of_login = || login.map(Login::token);
    match command {
        Command::Logout => Ok(None),
        Command::Login { .. } => login::from_environment(),
        _ => Ok(login::from_environment()?.or_else(of_login)),
    }
}

/// Refuses to send a token in clear text.
fn secure(server: ServerUrl) -> Result<ServerUrl, String> {
    if server.is_tls() {
        Ok(server)
    } else {
        Err("a token is never sent in clear text: log in to https://".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn resolve(line: &[&str]) -> Result<Settings, ConfigError> {
        let args = Args::try_parse_from([&["fts"], line].concat()).expect("parses");
        Settings::resolve(&args)
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn help_is_given_for_every_command_and_describes_every_argument() {
        use clap::CommandFactory as _;
        let err = Args::try_parse_from(["fts", "help", "pull"]).expect_err("help");
        assert_eq!(err.kind(), clap::error::ErrorKind::DisplayHelp);
        for command in Args::command().get_subcommands() {
            for argument in command.get_arguments() {
                let (name, of) = (argument.get_id(), command.get_name());
                assert!(argument.get_help().is_some(), "{name} of {of}");
            }
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fts.toml");
        let text = "server = \"http://127.0.0.1:9\"\njson = true\ntimeout = \"5m\"\n";
        std::fs::write(&path, text).expect("written");
        let config = format!("--config={}", path.display());

        let settings = resolve(&[&config, "pull", "c"]).expect("good");
        assert_eq!(settings.timeout, Some(Duration::from_mins(5)));
        assert_eq!(settings.form, Form::Json);

        let line =
            [&config, "--server=http://[::1]:7", "--json=false", "pull", "c", "--timeout=1s"];
        let settings = resolve(&line).expect("good");
        assert_eq!(settings.server.to_string(), "http://[::1]:7");
        assert_eq!(settings.form, Form::Text);
        assert_eq!(settings.timeout, Some(Duration::from_secs(1)));
    }

    #[test]
    fn clear_text_leaves_this_machine_only_when_told_to() {
        let err = resolve(&["--server=http://example.com:3000", "clients"]).expect_err("refused");
        assert!(err.problems[0].contains("--insecure"), "{err}");
        let line = ["--server=http://example.com:3000", "--insecure", "clients"];
        assert!(resolve(&line).is_ok());
        for near in ["http://localhost:3000", "http://127.1.2.3:1", "http://[::1]:1"] {
            assert!(resolve(&["--server", near, "clients"]).is_ok(), "{near}");
        }
        for far in ["http://localhost.example.com:1", "http://128.0.0.1:1", "http://[::2]:1"] {
            assert!(resolve(&["--server", far, "clients"]).is_err(), "{far}");
        }
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let line = [
            "--server=ftp://localhost",
            "--json=x",
            "pull",
            "c",
            "--timeout=x",
            "--deadline=9y",
            "--max-rate=1B",
        ];
        let err = resolve(&line).expect_err("refused");
        assert_eq!(err.problems.len(), 5, "{err}");
        assert!(err.problems[0].contains("--server"), "{err}");
    }

    #[test]
    fn a_time_for_a_signature_wants_a_key() {
        let err = resolve(&["pull", "c", "/x", "--sign-for=1h"]).expect_err("refused");
        assert!(err.problems[0].contains("--sign-key"), "{err}");
    }

    #[test]
    fn a_source_is_a_client_and_perhaps_a_path() {
        let source: Source = "web-1:/var/log/a:b".parse().expect("a source");
        assert_eq!(source.path.expect("a path").as_str(), "/var/log/a:b");
        assert_eq!("web-1:".parse::<Source>().expect("a source").path, None);
        for bad in ["web-1", ":/x", "web-1:x", "web-1:/../x", "we b:/x"] {
            assert!(bad.parse::<Source>().is_err(), "{bad}");
        }
    }
}
