//! The address of a server: what is dialled, whether in TLS, and whether that is on this machine.

use std::{fmt, net::IpAddr};

use http::{Uri, uri::Authority};

/// Address of a server: `https://` in TLS, `http://` in clear text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    uri: Uri,
    host: String,
    port: u16,
}

impl ServerUrl {
    /// Parses `https://HOST[:PORT]` or `http://HOST[:PORT]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| "not a URL like https://host:3000".to_owned())?;
        let default_port = match uri.scheme_str() {
            Some("https") => 443,
            Some("http") => 80,
            _ => return Err("a server's URL begins with https:// or http://".to_owned()),
        };
        let bare = matches!(
            uri.path_and_query().map(http::uri::PathAndQuery::as_str),
            None | Some("" | "/")
        );
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let Some(authority) = authority.filter(|_| bare) else {
            return Err("a server's URL is only https://HOST:PORT".to_owned());
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port(authority, default_port).filter(|_| !host.is_empty());
        let port = port.ok_or("a server's URL has a host, and a port from 1 to 65535")?;
        Ok(Self { uri, host, port })
    }

    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    pub fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    /// Without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is on this machine. Whoever dials holds `localhost` to it, whatever a resolver
    /// says.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

/// Returns the port that is said, or the default one; `None` if what is said is no port. (http
/// takes `h:x` for a host without one.)
pub(crate) fn port(authority: &Authority, default: u16) -> Option<u16> {
    let text = authority.as_str();
    let host_and_port = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    match host_and_port.strip_prefix(authority.host())? {
        "" => Some(default),
        said => said.strip_prefix(':')?.parse().ok().filter(|port| *port != 0),
    }
}

/// Whether `host` is a name or an address of this machine only.
pub(crate) fn is_loopback(host: &str) -> bool {
    let by_address = |ip: IpAddr| ip.to_canonical().is_loopback();
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(by_address)
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.uri.to_string().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_only_looks_like_this_machine_is_not_it() {
        for here in [
            "http://localhost",
            "http://127.9.9.9:1",
            "http://[::1]:3000",
            "http://LOCALHOST:3000/",
        ] {
            assert!(ServerUrl::parse(here).expect(here).is_loopback(), "{here}");
        }
        let elsewhere = [
            "http://localhost.evil.com",
            "http://127.0.0.1.nip.io",
            "http://0.0.0.0:3000",
            "http://[::]:1",
        ];
        for elsewhere in elsewhere {
            assert!(!ServerUrl::parse(elsewhere).expect(elsewhere).is_loopback(), "{elsewhere}");
        }
        let bad = [
            "ftp://localhost",
            "localhost:3000",
            "http://u@localhost",
            "http://h/x",
            "http://h:0",
            "http://h:x",
            "http://h:",
            "http://h:65536",
            "",
            "http://",
            "https://",
            "https://u:p@h",
        ];
        for bad in bad {
            assert!(ServerUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_scheme_says_tls_and_the_port() {
        let parts = |text: &str| {
            let url = ServerUrl::parse(text).expect(text);
            (url.is_tls(), url.host().to_owned(), url.port())
        };
        assert_eq!(parts("https://fts.example.com"), (true, "fts.example.com".to_owned(), 443));
        assert_eq!(parts("http://fts.example.com"), (false, "fts.example.com".to_owned(), 80));
        assert_eq!(parts("https://[::1]:3000/"), (true, "::1".to_owned(), 3000));
    }
}
