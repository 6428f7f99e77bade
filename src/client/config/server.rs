//! Which server, how it is known, and through which proxy it is reached.

use std::{
    env,
    path::{Path, PathBuf},
};

use rustls::pki_types::CertificateDer;

use super::{DEFAULT, DEFAULT_SERVER, Layers, Surroundings, shown};
use crate::{
    route::{self, Proxies},
    server_url::ServerUrl,
    settings::Picker,
    tls,
};

pub(super) fn server(picker: &mut Picker, flag: Option<String>, layers: &Layers<'_>) -> ServerUrl {
    let from = layers.of("server", |f| f.server.clone(), |j| j.server.clone());
    let flag = ("server", flag);
    let server = picker.pick_shown(flag, Some("SERVER_URL"), from, ServerUrl::parse, shown);
    picker.note("server", DEFAULT_SERVER, DEFAULT);
    // After a bad URL the default stands in, so that the other settings are checked as well.
    server.unwrap_or_else(|| ServerUrl::parse(DEFAULT_SERVER).expect("it is a server's URL"))
}

pub(super) fn ca(
    picker: &mut Picker,
    flag: Option<String>,
    layers: &Layers<'_>,
) -> Option<Vec<CertificateDer<'static>>> {
    let from = layers.of("ca", |f| f.ca.clone(), |j| j.ca.clone());
    let read =
        |text: &str| tls::read_pem_certificates(Path::new(text)).map_err(|err| err.to_string());
    let ca = picker.pick_shown(("ca", flag), None, from, read, shown);
    picker.note("ca", "what the server named, else the authorities of this machine", DEFAULT);
    ca
}

/// Returns where [`ca`] reads.
pub(super) fn ca_file(flag: Option<&str>, layers: &Layers<'_>) -> Option<PathBuf> {
    let from = layers.of("ca", |f| f.ca.clone(), |j| j.ca.clone());
    let from = from.into_iter().find_map(|(_, text)| text);
    flag.map(PathBuf::from).or_else(|| from.map(PathBuf::from))
}

pub(super) fn proxies(
    picker: &mut Picker,
    server: &ServerUrl,
    flag: Option<String>,
    layers: &Layers<'_>,
    around: &Surroundings,
) -> Option<Proxies> {
    if flag.as_deref().is_some_and(route::has_credentials) {
        picker.problem(
            "--proxy: every user of this machine sees a password on a command line; put the URL \
             into FTS_PROXY, or the file",
        );
        return None;
    }
    let from = layers.of("proxy", |f| f.proxy.clone(), |j| j.proxy.clone());
    let show = |text: &str| match Proxies::parse(text) {
        Ok(_) => shown(&route::without_credentials(text)),
        // What looks like a host may be a password that has lost its place.
        Err(_) => "…".to_owned(),
    };
    let said = flag.is_some()
        || env::var_os("FTS_PROXY").is_some()
        || from.iter().any(|(_, text)| text.is_some());
    if said {
        return picker.pick_shown(("proxy", flag), Some("FTS_PROXY"), from, Proxies::parse, show);
    }
    if !server.is_tls() || server.is_loopback() {
        picker.note("proxy", "none to this server", DEFAULT);
        return Some(Proxies::off());
    }
    let variable = |name: &str| {
        let found = around.proxies.iter().find(|(each, _)| *each == name);
        found.map(|(_, value)| value.clone())
    };
    match Proxies::from_variables(variable) {
        Ok(proxies) => {
            match proxies.shown(server) {
                Some(proxy) => picker.note("proxy", proxy, "HTTPS_PROXY or ALL_PROXY"),
                None => picker.note("proxy", "off", DEFAULT),
            }
            Some(proxies)
        }
        Err(problem) => {
            picker.problem(problem);
            None
        }
    }
}
