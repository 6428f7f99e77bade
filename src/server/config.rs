//! The server's configuration: flags, variables and file in, checked values out.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{coordinator::Retention, landing::Marks, quotas::QuotaLimits, tls::OwnCertificate};
use crate::{
    limits,
    settings::{self, ConfigError, Picker, Setting},
    telemetry::LogFormat,
};

mod args;

pub use args::{Args, Check, Cli, Command, ConfigCommand, Init};

use args::File;

/// A configuration that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    pub control_listen: Option<SocketAddr>,
    /// There is an authority: TLS and credentials are asked for.
    pub is_secured: bool,
    pub own_certificate: Option<OwnCertificate>,
    pub certificate_life: Duration,
    pub data_dir: PathBuf,
    pub store: String,
    pub sink: PathBuf,
    pub heartbeat: Duration,
    pub retention: Retention,
    pub marks: Marks,
    pub quotas: QuotaLimits,
    /// Take a directory of files that the records do not know.
    pub new_files: bool,
    pub uploads_max: usize,
    pub port_file: Option<PathBuf>,
    pub insecure: bool,
    pub log_format: LogFormat,
}

impl Config {
    /// Checks everything, and returns every problem at once.
    pub fn new(args: Args) -> Result<Self, ConfigError> {
        Self::picked(args).map(|(config, _)| config)
    }

    /// Returns the effective values, and a line for each, with where it came from.
    pub fn report(args: Args) -> Result<(Self, String), ConfigError> {
        let (config, settings) = Self::picked(args)?;
        let picked = |name: &str| settings.iter().find(|setting| setting.name == name);
        let line = |(name, value): (&str, String)| {
            let origin = picked(name).map_or("default", |setting| setting.origin.as_str());
            format!("{name:<28} {value:<30} {origin}\n")
        };
        let report = config.shown().into_iter().map(line).collect();
        Ok((config, report))
    }

    /// Each value as it holds. There is no secret among them.
    fn shown(&self) -> Vec<(&'static str, String)> {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        let number = |number: Option<u64>| or_none(number.map(|number| number.to_string()));
        let time = |time: Duration| humantime::format_duration(time).to_string();
        let path = |path: &PathBuf| path.display().to_string();
        let own = self.own_certificate.as_ref();
        vec![
            ("listen", self.listen.to_string()),
            ("control-listen", or_none(self.control_listen.map(|address| address.to_string()))),
            ("credentials", if self.is_secured { "asked for" } else { "not asked for" }.to_owned()),
            ("tls-cert", own.map_or_else(|| "its own".to_owned(), |own| path(&own.cert))),
            ("tls-key", own.map_or_else(|| "its own".to_owned(), |own| path(&own.key))),
            ("certificate-life", time(self.certificate_life)),
            ("data-dir", path(&self.data_dir)),
            ("store", self.store.clone()),
            ("sink", path(&self.sink)),
            ("heartbeat", time(self.heartbeat)),
            ("keep", or_none(self.retention.keep.map(time))),
            ("keep-bytes", number(self.retention.keep_bytes)),
            ("disk-low", number(self.marks.low)),
            ("disk-high", number(self.marks.high)),
            ("client-bytes-per-day", number(self.quotas.client_bytes_per_day)),
            ("client-transfers-per-day", number(self.quotas.client_transfers_per_day)),
            ("operator-bytes-per-day", number(self.quotas.operator_bytes_per_day)),
            ("operator-transfers-per-day", number(self.quotas.operator_transfers_per_day)),
            ("operator-triggers-per-minute", self.quotas.operator_triggers_per_minute.to_string()),
            ("max-uploads", self.uploads_max.to_string()),
            ("port-file", or_none(self.port_file.as_ref().map(path))),
            ("insecure", self.insecure.to_string()),
            ("log-format", format!("{:?}", self.log_format).to_ascii_lowercase()),
        ]
    }

    fn picked(mut args: Args) -> Result<(Self, Vec<Setting>), ConfigError> {
        let mut pick = Picker::new();
        let mut file: File = pick.take(settings::read_file(args.config.as_deref()));
        let quotas = quotas(&mut pick, &mut args, &mut file);
        let port = pick.pick(("port", None), Some("PORT"), None, port);
        let listen = pick
            .pick(("listen", args.listen), None, None, address)
            .or(port)
            .or_else(|| pick.pick(("listen", None), None, file.listen, address));
        let listen = listen.unwrap_or(DEFAULT_LISTEN);
        let data_dir = pick.pick(("data-dir", args.data_dir), None, file.data_dir, path);
        let data_dir = data_dir.unwrap_or_else(|| PathBuf::from("fts-data"));
        let control_listen =
            pick.pick(("control-listen", args.control_listen), None, file.control_listen, address);
        let cert = pick.pick(("tls-cert", args.tls_cert), None, file.tls_cert, path);
        let key = pick.pick(("tls-key", args.tls_key), None, file.tls_key, path);
        let own_certificate = pick.take(own_certificate(cert, key));
        let life = ("certificate-life", args.certificate_life);
        let certificate_life = pick.pick(life, None, file.certificate_life, certificate_life);
        let store = pick.pick(("store", args.store), None, file.store, store_url);
        let sink = pick.pick(("sink", args.sink), None, file.sink, sink_url);
        let heartbeat = pick.pick(("heartbeat", args.heartbeat), None, file.heartbeat, heartbeat);
        let keep = pick.pick(("keep", args.keep), None, file.keep, settings::duration);
        let keep_bytes =
            pick.pick(("keep-bytes", args.keep_bytes), None, file.keep_bytes, settings::size);
        let marks = marks(
            pick.pick(("disk-low", args.disk_low), None, file.disk_low, settings::size),
            pick.pick(("disk-high", args.disk_high), None, file.disk_high, settings::size),
        );
        let marks = pick.take(marks);
        let new_files = pick.pick(("new-files", args.new_files), None, None, settings::flag);
        let uploads = file.max_uploads.map(|uploads| uploads.to_string());
        let uploads_max = pick.pick(("max-uploads", args.max_uploads), None, uploads, uploads_of);
        let port_file = pick.pick(("port-file", args.port_file), None, file.port_file, path);
        let insecure = file.insecure.map(|yes| yes.to_string());
        let insecure = pick.pick(("insecure", args.insecure), None, insecure, settings::flag);
        let insecure = insecure.unwrap_or(false);
        let log_format =
            pick.pick(("log-format", args.log_format), None, file.log_format, LogFormat::parse);
        let is_secured = has_authority(&data_dir);
        let reach = Reach { listen, control_listen, is_secured, insecure };
        reach.problems(own_certificate.is_some()).into_iter().for_each(|what| pick.problem(what));
        let config = Self {
            store: store.unwrap_or_else(|| format!("sqlite:{}", data_dir.join("fts.db").display())),
            sink: sink.unwrap_or_else(|| data_dir.join("files")),
            listen,
            control_listen,
            is_secured,
            own_certificate,
            certificate_life: certificate_life.unwrap_or(limits::CLIENT_CERTIFICATE_LIFE),
            data_dir,
            heartbeat: heartbeat.unwrap_or(limits::HEARTBEAT),
            retention: Retention { keep, keep_bytes },
            marks,
            quotas,
            new_files: new_files.unwrap_or(false),
            uploads_max: uploads_max.unwrap_or(limits::UPLOADS_MAX),
            port_file,
            insecure,
            log_format: log_format.unwrap_or_default(),
        };
        let settings = pick.settings().to_vec();
        pick.finish((config, settings))
    }
}

fn quotas(pick: &mut Picker, args: &mut Args, file: &mut File) -> QuotaLimits {
    let text = |number: Option<u64>| number.map(|number| number.to_string());
    QuotaLimits {
        client_bytes_per_day: pick.pick(
            ("client-bytes-per-day", args.client_bytes_per_day.take()),
            None,
            file.client_bytes_per_day.take(),
            settings::size,
        ),
        client_transfers_per_day: pick.pick(
            ("client-transfers-per-day", args.client_transfers_per_day.take()),
            None,
            text(file.client_transfers_per_day.take()),
            number,
        ),
        operator_bytes_per_day: pick.pick(
            ("operator-bytes-per-day", args.operator_bytes_per_day.take()),
            None,
            file.operator_bytes_per_day.take(),
            settings::size,
        ),
        operator_transfers_per_day: pick.pick(
            ("operator-transfers-per-day", args.operator_transfers_per_day.take()),
            None,
            text(file.operator_transfers_per_day.take()),
            number,
        ),
        operator_triggers_per_minute: pick
            .pick(
                ("operator-triggers-per-minute", args.operator_triggers_per_minute.take()),
                None,
                text(file.operator_triggers_per_minute.take()),
                number,
            )
            .unwrap_or(limits::TRIGGERS_PER_MINUTE),
    }
}

/// The authority's directory, in the data directory.
pub const PKI: &str = "pki";
/// The server's own socket, in the data directory.
pub const SOCKET: &str = "admin.sock";

/// Whether a data directory has an authority, or what is left of one, or what cannot be looked at: each
/// of these is never served in clear text.
pub fn has_authority(data_dir: &Path) -> bool {
    let looked = data_dir.join(PKI).symlink_metadata();
    !matches!(looked, Err(err) if err.kind() == std::io::ErrorKind::NotFound)
}

/// Who could reach the server, and with what.
struct Reach {
    listen: SocketAddr,
    control_listen: Option<SocketAddr>,
    is_secured: bool,
    insecure: bool,
}

impl Reach {
    fn problems(&self, has_own_certificate: bool) -> Vec<String> {
        if self.is_secured && self.insecure {
            return vec![
                "--insecure: this data directory has an authority, so TLS and credentials are \
                 asked for; leave --insecure away"
                    .to_owned(),
            ];
        }
        if self.is_secured || self.insecure {
            return Vec::new();
        }
        let mut problems = Vec::new();
        if has_own_certificate {
            problems.push(
                "--tls-cert: without credentials TLS protects nobody; run fts-server init first"
                    .to_owned(),
            );
        }
        let listens = [("--listen", Some(self.listen)), ("--control-listen", self.control_listen)];
        for (name, address) in listens {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                problems.push(format!(
                    "{name} {address}: not loopback, and whoever reaches this address could ask \
                     for any file that a client allows. Run fts-server init --name NAME, which \
                     makes TLS and credentials; or, in a test network, say --insecure"
                ));
            }
        }
        problems
    }
}

fn own_certificate(
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<OwnCertificate>, ConfigError> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(OwnCertificate { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err("--tls-cert: say --tls-key too".to_owned().into()),
        (None, Some(_)) => Err("--tls-key: say --tls-cert too".to_owned().into()),
    }
}

fn certificate_life(text: &str) -> Result<Duration, String> {
    let life = settings::duration(text)?;
    let (min, max) = (limits::CLIENT_CERTIFICATE_LIFE_MIN, limits::CLIENT_CERTIFICATE_LIFE_MAX);
    if (min..=max).contains(&life) { Ok(life) } else { Err(format!("must be {min:?} to {max:?}")) }
}

const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3000);

fn port(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse().map_err(|_| "not a port".to_owned())?;
    Ok(SocketAddr::new(DEFAULT_LISTEN.ip(), port))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.replace("localhost:", "127.0.0.1:");
    text.parse()
        .map_err(|_| "not an address; write it like 127.0.0.1:3000 or [::1]:3000".to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("an empty path".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn store_url(text: &str) -> Result<String, String> {
    match text.strip_prefix("sqlite:") {
        Some(path) if !path.is_empty() => Ok(text.to_owned()),
        _ => Err("this version keeps records in SQLite only: sqlite:PATH".to_owned()),
    }
}

fn sink_url(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("file://") {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err("this version lands files in a directory only: file:///DIR".to_owned()),
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| "not a number".to_owned())
}

fn uploads_of(text: &str) -> Result<usize, String> {
    let uploads = text.parse().ok().filter(|uploads| (1..=limits::UPLOADS_MAX).contains(uploads));
    uploads.ok_or_else(|| format!("not a number from 1 to {}", limits::UPLOADS_MAX))
}

fn marks(low: Option<u64>, high: Option<u64>) -> Result<Marks, ConfigError> {
    match (low, high) {
        (None, Some(_)) => Err("--disk-high: say --disk-low too".to_owned().into()),
        (Some(low), Some(high)) if high <= low => {
            Err("--disk-high: must be more than --disk-low".to_owned().into())
        }
        _ => Ok(Marks { low, high }),
    }
}

fn heartbeat(text: &str) -> Result<Duration, String> {
    let beat = settings::duration(text)?;
    if (limits::HEARTBEAT_MIN..=limits::HEARTBEAT_MAX).contains(&beat) {
        Ok(beat)
    } else {
        Err(format!("must be {:?} to {:?}", limits::HEARTBEAT_MIN, limits::HEARTBEAT_MAX))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn args(args: &[&str]) -> Args {
        Cli::parse_from([&["fts-server"], args].concat()).args
    }

    #[test]
    fn listening_beyond_loopback_needs_a_word() {
        let open = Config::new(args(&["--listen", "0.0.0.0:3000"])).expect_err("refused");
        assert!(open.problems[0].contains("--insecure"), "{open}");
        let said = Config::new(args(&["--listen", "0.0.0.0:3000", "--insecure"])).expect("said");
        assert!(said.insecure);
        for local in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:3000", "localhost:3000"] {
            Config::new(args(&["--listen", local])).expect(local);
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let bad =
            ["--listen", "nowhere", "--keep", "soon", "--heartbeat", "1ms", "--store", "mysql:x"];
        let err = Config::new(args(&bad)).expect_err("refused");
        assert_eq!(err.problems.len(), 4, "{err}");
        for bad in ["0", "257", "-1", "many"] {
            let err = Config::new(args(&[&format!("--max-uploads={bad}")])).expect_err(bad);
            assert!(err.problems[0].starts_with("--max-uploads"), "{err}");
        }
        let config = Config::new(args(&["--max-uploads", "7"])).expect("valid");
        assert_eq!(config.uploads_max, 7);
    }

    #[test]
    fn the_high_mark_is_above_the_low_one() {
        for bad in [&["--disk-high=2GB"][..], &["--disk-low=2GB", "--disk-high=2GB"]] {
            let err = Config::new(args(bad)).expect_err("refused");
            assert!(err.problems[0].starts_with("--disk-high"), "{err}");
        }
        let marks = |given: &[&str]| Config::new(args(given)).expect("valid").marks;
        assert_eq!(marks(&[]), Marks::default());
        assert_eq!(marks(&["--disk-low=1KB"]), Marks { low: Some(1000), high: None });
        let both = marks(&["--disk-low=1KB", "--disk-high=2KB"]);
        assert_eq!(both, Marks { low: Some(1000), high: Some(2000) });
    }

    #[test]
    fn the_default_is_loopback_and_keeps_everything() {
        let config = Config::new(args(&[])).expect("valid");
        assert_eq!(config.retention, Retention::default());
        assert!(config.listen.ip().is_loopback());
        assert_eq!(config.sink, PathBuf::from("fts-data/files"));
    }
}
