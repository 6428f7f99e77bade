//! Who may talk in clear: without any set-up the server is open to this machine only, and only as
//! itself. It decides by the request's head; that the listener is on loopback, `config` sees to.
//!
//! Two things get through a loopback listener that should not: a proxy that passes on requests from
//! elsewhere, and a browser on this machine that runs a page from elsewhere (by its own requests,
//! or by a name of its own that resolves to 127.0.0.1). Their requests carry other names, and are
//! refused by them.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, Uri, header};

/// What is asked of a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    ClearText(ClearText),
    /// In TLS, with credentials: from anywhere, but not from another site's page.
    Tls,
}

/// What is asked of a request in clear text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClearText {
    /// The default: from this machine, without a proxy, to a loopback name.
    LoopbackOnly,
    /// `--insecure`: from anywhere, but not from another site's page.
    Insecure,
}

impl From<ClearText> for Rules {
    fn from(rules: ClearText) -> Self {
        Self::ClearText(rules)
    }
}

/// Why a request is refused; for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "without TLS and credentials this server answers to loopback names only (localhost, \
         127.0.0.1, [::1]), and the request names another host, several, or none; see --insecure, \
         for test networks only"
    )]
    Host,
    #[error(
        "without TLS and credentials this server answers requests from this machine only, and \
         this one came through a proxy; see --insecure, for test networks only"
    )]
    Proxied,
    #[error("the request comes from a page of another site")]
    Origin,
}

/// Decides by a request's head.
pub fn check(rules: Rules, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    if rules == Rules::ClearText(ClearText::LoopbackOnly) {
        let host = host(uri, headers).and_then(Host::parse).ok_or(Refusal::Host)?;
        if !host.is_loopback() {
            return Err(Refusal::Host);
        }
        if headers.keys().any(|name| tells_of_proxy(name.as_str())) {
            return Err(Refusal::Proxied);
        }
    }
    if headers.get_all("sec-fetch-site").iter().any(|value| value == "cross-site") {
        return Err(Refusal::Origin);
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Ok(()),
        (Some(origin), None) => {
            let host = host(uri, headers).ok_or(Refusal::Origin)?;
            let own = origin.to_str().is_ok_and(|origin| is_own_origin(rules, origin, host));
            if own { Ok(()) } else { Err(Refusal::Origin) }
        }
        (Some(_), Some(_)) => Err(Refusal::Origin),
    }
}

/// Returns whom the request is addressed to, as it is written; `None` if that is not said, or not
/// clear. HTTP/2 says it in `:authority`, HTTP/1.1 in `Host`, and an absolute request line in both:
/// then they must agree.
pub fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    let host = match host {
        Some(host) => Some(host.to_str().ok()?),
        None => None,
    };
    match (uri.authority(), host) {
        (Some(authority), None) => Some(authority.as_str()),
        (None, host) => host,
        (Some(authority), Some(host)) => {
            authority.as_str().eq_ignore_ascii_case(host).then_some(host)
        }
    }
}

fn tells_of_proxy(header: &str) -> bool {
    matches!(header, "forwarded" | "via") || header.starts_with("x-forwarded")
}

/// Whether a page of `origin` is a page of the server that the request calls `host`.
fn is_own_origin(rules: Rules, origin: &str, host: &str) -> bool {
    // "null", of a sandbox, a file, or a redirect from elsewhere, has no scheme.
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    // A proxy in front of an insecure server may speak TLS with the browser.
    let port = match scheme {
        "http" if rules != Rules::Tls => 80,
        "https" if rules != Rules::ClearText(ClearText::LoopbackOnly) => 443,
        _ => return false,
    };
    let (Some(origin), Some(host)) = (Host::parse(authority), Host::parse(host)) else {
        return false;
    };
    let same_port = origin.port.unwrap_or(port) == host.port.unwrap_or(port);
    let same_name = match rules {
        Rules::ClearText(ClearText::LoopbackOnly) => origin.is_loopback() && host.is_loopback(),
        Rules::ClearText(ClearText::Insecure) | Rules::Tls => {
            origin.name.eq_ignore_ascii_case(host.name)
        }
    };
    same_port && same_name
}

/// A name and a port, as `Host` and `Origin` have them.
struct Host<'a> {
    /// An IPv6 address keeps its brackets.
    name: &'a str,
    port: Option<u16>,
}

impl<'a> Host<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let name_len = match text.strip_prefix('[') {
            Some(rest) => rest.find(']')? + 2,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (name, rest) = text.split_at(name_len);
        // User information, paths and blanks have no place in it.
        let plain = |b: u8| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')
        };
        if name.is_empty() || !name.bytes().all(plain) {
            return None;
        }
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return None,
            Some(port) => Some(parse_port(port)?),
        };
        Some(Self { name, port })
    }

    /// Only what every resolver takes for this machine: nothing is resolved here, and other
    /// spellings of an IPv4 address (octal, decimal, short) mean different machines to different
    /// programs.
    fn is_loopback(&self) -> bool {
        if let Some(address) = self.name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return address.parse() == Ok(Ipv6Addr::LOCALHOST);
        }
        self.name.eq_ignore_ascii_case("localhost")
            || self.name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port != 0)
}

pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    type Headers = &'static [(&'static str, &'static str)];

    fn decide(rules: impl Into<Rules>, uri: &str, headers: Headers) -> Result<(), Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        check(rules.into(), &uri.parse().expect("a URI"), &map)
    }

    const LOOPBACK: &[&str] = &[
        "localhost",
        "localhost:3000",
        "localhost:80",
        "localhost:1",
        "localhost:65535",
        "LOCALHOST:3000",
        "LocalHost",
        "127.0.0.1",
        "127.0.0.1:3000",
        "127.0.0.2:3000",
        "127.255.255.254",
        "[::1]",
        "[::1]:3000",
        "[0:0:0:0:0:0:0:1]:3000",
    ];
    const STRANGE: &[&str] = &[
        "",
        " ",
        ":3000",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:+80",
        "localhost:-1",
        "localhost:80a",
        "localhost:000080",
        "localhost: 80",
        "localhost:3000:3000",
        "localhost.",
        "localhost.:3000",
        "localhost.evil.com",
        "localhost.localdomain",
        "evil.localhost",
        "evil.localhost:3000",
        "localhost-evil.com",
        "xlocalhost",
        "localhost@evil.com",
        "evil.com@localhost",
        "user:pw@localhost:3000",
        "localhost/evil",
        "localhost#",
        "localhost?x",
        "localhost,evil.com",
        "localhost evil.com",
        " localhost",
        "localhost\t",
        "evil.com",
        "evil.com:3000",
        "127.0.0.1.nip.io",
        "127.0.0.1.nip.io:3000",
        "127.0.0.1.",
        "127.0.0.1@evil.com",
        "2130706433",
        "2130706433:3000",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "127.000.000.001",
        "127.1",
        "127.0.1",
        "127.0.0.1.1",
        "127.0.0.256",
        "0.0.0.0",
        "0.0.0.0:3000",
        "0",
        "128.0.0.1",
        "126.255.255.255",
        "10.0.0.1:3000",
        "169.254.169.254",
        "::1",
        "::1:3000",
        "[::1",
        "[::1]x",
        "[::1]3000",
        "[::1]:",
        "[::1]:0",
        "[::1%25lo]",
        "[::1%lo]:3000",
        "[::]",
        "[::]:3000",
        "[::2]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[fe80::1]:3000",
        "[127.0.0.1]",
        "[localhost]",
        "[]",
        "[[::1]]",
    ];

    #[test]
    fn only_loopback_names_are_answered() {
        for &host in LOOPBACK {
            let parsed = Host::parse(host).filter(Host::is_loopback);
            assert!(parsed.is_some(), "{host:?} is answered");
        }
        for &host in STRANGE {
            let parsed = Host::parse(host).filter(Host::is_loopback);
            assert!(parsed.is_none(), "{host:?} is refused");
        }
    }

    #[test]
    fn in_clear_only_this_machine_is_answered() {
        const OK: Result<(), Refusal> = Ok(());
        const HOST: Result<(), Refusal> = Err(Refusal::Host);
        const PROXIED: Result<(), Refusal> = Err(Refusal::Proxied);
        const ORIGIN: Result<(), Refusal> = Err(Refusal::Origin);
        const H: (&str, &str) = ("host", "localhost:3000");
        let cases: &[(&str, Headers, Result<(), Refusal>)] = &[
            // Whom it is for: HTTP/1.1, HTTP/2, and both at once.
            ("/", &[H], OK),
            ("/", &[], HOST),
            ("/", &[("host", "evil.com")], HOST),
            ("/", &[H, H], HOST),
            ("/", &[H, ("host", "evil.com")], HOST),
            ("http://localhost:3000/", &[], OK),
            ("http://LOCALHOST:3000/", &[H], OK),
            ("http://evil.com/", &[], HOST),
            ("http://evil.com/", &[H], HOST),
            ("http://localhost:3000/", &[("host", "evil.com")], HOST),
            ("http://localhost:3001/", &[H], HOST),
            ("http://user@localhost:3000/", &[], HOST),
            // Proxies.
            ("/", &[H, ("forwarded", "for=1.2.3.4")], PROXIED),
            ("/", &[H, ("forwarded", "")], PROXIED),
            ("/", &[H, ("via", "1.1 proxy")], PROXIED),
            ("/", &[H, ("x-forwarded-for", "127.0.0.1")], PROXIED),
            ("/", &[H, ("x-forwarded-host", "localhost")], PROXIED),
            ("/", &[H, ("x-forwarded-proto", "http")], PROXIED),
            ("/", &[H, ("x-forwarded-anything", "x")], PROXIED),
            ("/", &[H, ("x-request-id", "x")], OK),
            // Pages.
            ("/", &[H, ("origin", "http://localhost:3000")], OK),
            ("/", &[H, ("origin", "http://127.0.0.1:3000")], OK),
            ("/", &[H, ("origin", "http://[::1]:3000")], OK),
            ("/", &[("host", "localhost"), ("origin", "http://localhost")], OK),
            ("/", &[("host", "localhost:80"), ("origin", "http://localhost")], OK),
            ("http://localhost:3000/", &[("origin", "http://localhost:3000")], OK),
            ("/", &[H, ("origin", "http://localhost")], ORIGIN),
            ("/", &[H, ("origin", "http://localhost:8080")], ORIGIN),
            ("/", &[H, ("origin", "https://localhost:3000")], ORIGIN),
            ("/", &[H, ("origin", "http://evil.com:3000")], ORIGIN),
            ("/", &[H, ("origin", "http://localhost.evil.com:3000")], ORIGIN),
            ("/", &[H, ("origin", "http://localhost:3000/")], ORIGIN),
            ("/", &[H, ("origin", "http://x@localhost:3000")], ORIGIN),
            ("/", &[H, ("origin", "localhost:3000")], ORIGIN),
            ("/", &[H, ("origin", "null")], ORIGIN),
            ("/", &[H, ("origin", "")], ORIGIN),
            ("/", &[H, ("origin", "http://localhost:3000"), ("origin", "http://evil.com")], ORIGIN),
            ("/", &[H, ("sec-fetch-site", "cross-site")], ORIGIN),
            ("/", &[H, ("sec-fetch-site", "same-origin")], OK),
            ("/", &[H, ("sec-fetch-site", "none")], OK),
        ];
        for (uri, headers, expected) in cases {
            let got = decide(ClearText::LoopbackOnly, uri, headers);
            assert_eq!(got, *expected, "{uri} {headers:?}");
        }
    }

    #[test]
    fn in_tls_pages_of_other_sites_and_of_clear_text_are_refused() {
        const H: (&str, &str) = ("host", "fts.example.com:3000");
        let cases: &[(Headers, bool)] = &[
            (&[H], true),
            (&[H, ("via", "1.1 proxy")], true),
            (&[H, ("origin", "https://fts.example.com:3000")], true),
            (&[H, ("origin", "http://fts.example.com:3000")], false),
            (&[H, ("origin", "https://fts.example.com")], false),
            (&[H, ("origin", "https://example.com:3000")], false),
            (&[H, ("origin", "null")], false),
            (&[H, ("sec-fetch-site", "cross-site")], false),
        ];
        for (headers, is_good) in cases {
            assert_eq!(decide(Rules::Tls, "/", headers).is_ok(), *is_good, "{headers:?}");
        }
    }

    #[test]
    fn insecure_still_refuses_pages_of_other_sites() {
        const OK: Result<(), Refusal> = Ok(());
        const ORIGIN: Result<(), Refusal> = Err(Refusal::Origin);
        const H: (&str, &str) = ("host", "files.example.com:3000");
        let cases: &[(&str, Headers, Result<(), Refusal>)] = &[
            ("/", &[H], OK),
            ("/", &[], OK),
            ("/", &[H, ("via", "1.1 proxy"), ("x-forwarded-for", "1.2.3.4")], OK),
            ("http://10.0.0.1:3000/", &[], OK),
            ("/", &[H, ("origin", "http://files.example.com:3000")], OK),
            ("/", &[H, ("origin", "http://FILES.example.com:3000")], OK),
            ("http://10.0.0.1:3000/", &[("origin", "http://10.0.0.1:3000")], OK),
            ("/", &[("host", "[fd00::1]:3000"), ("origin", "http://[fd00::1]:3000")], OK),
            ("/", &[("host", "a.example"), ("origin", "https://a.example")], OK),
            ("/", &[("host", "a.example"), ("origin", "https://a.example:443")], OK),
            ("/", &[("host", "a.example:443"), ("origin", "http://a.example")], ORIGIN),
            ("/", &[H, ("origin", "http://files.example.com")], ORIGIN),
            ("/", &[H, ("origin", "http://example.com:3000")], ORIGIN),
            ("/", &[H, ("origin", "http://localhost:3000")], ORIGIN),
            ("/", &[H, ("origin", "ftp://files.example.com:3000")], ORIGIN),
            ("/", &[H, ("origin", "null")], ORIGIN),
            ("/", &[("origin", "http://files.example.com:3000")], ORIGIN),
            ("/", &[H, ("sec-fetch-site", "cross-site")], ORIGIN),
            ("/", &[H, ("sec-fetch-site", "same-origin")], OK),
        ];
        for (uri, headers, expected) in cases {
            let got = decide(ClearText::Insecure, uri, headers);
            assert_eq!(got, *expected, "{uri} {headers:?}");
        }
    }
}
