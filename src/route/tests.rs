use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::TcpListener,
    task::JoinSet,
};

use super::*;
use crate::tls::test_authority::{Authority, Clients, OneShot};

/// What a proxy was asked.
type Asked = JoinSet<String>;

/// A proxy that answers one CONNECT with `answer`, and carries bytes to `server` if it agrees.
async fn proxy(answer: &'static str, server: SocketAddr) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let mut asked = JoinSet::new();
    asked.spawn(async move {
        let (mut client, _) = listener.accept().await.expect("accepted");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.expect("a whole request"));
        }
        client.write_all(answer.as_bytes()).await.expect("answered");
        if answer.contains(" 200 ") {
            let mut server = TcpStream::connect(server).await.expect("connected");
            // However it ends, the server has heard what was sent.
            let _ = copy_bidirectional(&mut client, &mut server).await;
        }
        String::from_utf8(head).expect("text")
    });
    (address, asked)
}

const AGREED: &str = "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n";

/// A name that no resolver knows: only a proxy can lead there.
const NAME: &str = "fts.invalid";

struct Setting {
    server: OneShot,
    trust: Trust,
}

impl Setting {
    async fn new() -> Self {
        let authority = Authority::new();
        let shown = authority.server(NAME, |_| ());
        let server = OneShot::tls(authority.acceptor(&shown, Clients::Unasked)).await;
        Self { server, trust: Trust::Roots(vec![authority.root]) }
    }

    fn route(&self, proxies: &Proxies) -> Route {
        let url = ServerUrl::parse(&format!("https://{NAME}:4433")).expect("a URL");
        Route::new(&url, &self.trust, None, proxies).expect("a route")
    }
}

#[tokio::test]
async fn through_a_proxy_only_tls_travels_and_its_credentials_are_for_it_alone() {
    let setting = Setting::new().await;
    let (address, mut asked) = proxy(AGREED, setting.server.address).await;
    let proxies = Proxies::parse(&format!("http://me:p%40ss@{address}")).expect("a proxy");

    let mut stream = setting.route(&proxies).connect().await.expect("connected");
    stream.write_all(b"hello").await.expect("sent");
    stream.shutdown().await.expect("closed");
    assert_eq!(setting.server.heard().await, b"hello");
    drop(stream);

    let asked = asked.join_next().await.expect("a task").expect("no panic");
    assert!(asked.starts_with(&format!("CONNECT {NAME}:4433 HTTP/1.1\r\n")), "{asked}");
    // me:p@ss
    assert!(asked.contains("Proxy-Authorization: Basic bWU6cEBzcw==\r\n"), "{asked}");
}

#[tokio::test]
async fn what_a_proxy_refuses_is_told_in_words_and_without_its_password() {
    let answers = [
        ("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "FTS_PROXY"),
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "refused"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "refused"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "refused"),
        ("", "hung up"),
    ];
    for (answer, word) in answers {
        let setting = Setting::new().await;
        let (address, _asked) = proxy(answer, setting.server.address).await;
        let proxies = Proxies::parse(&format!("http://me:hunter2@{address}")).expect("a proxy");
        let route = setting.route(&proxies);
        let err = route.connect().await.err().expect("refused");
        let told = err.to_string();
        assert!(told.contains(word) && told.contains(&address.to_string()), "{told}");
        assert!(!format!("{told} {err:?} {route:?} {proxies:?}").contains("hunter2"), "{told}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let setting = Setting::new().await;
    let proxies = Proxies::parse(&format!("http://{address}")).expect("a proxy");
    let err = setting.route(&proxies).connect().await.err().expect("refused");
    assert!(matches!(err, RouteError::NoProxy { .. }), "{err:?}");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_says_nothing_does_not_hold_the_dialler() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let setting = Setting::new().await;
    let proxies = Proxies::parse(&format!("http://{address}")).expect("a proxy");
    let begun = tokio::time::Instant::now();
    let err = setting.route(&proxies).connect().await.err().expect("refused");
    assert!(matches!(err, RouteError::TimedOut(_)), "{err:?}");
    assert!(begun.elapsed() <= limits::CONNECT_WAIT + Duration::from_millis(10));
}

#[test]
fn the_variables_say_which_servers_have_a_proxy() {
    let of = |variables: &[(&'static str, &'static str)], server: &str| {
        let variables = variables.to_vec();
        let value = move |name: &str| {
            let found = variables.iter().find(|(each, _)| *each == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let server = ServerUrl::parse(server).expect("a URL");
        Proxies::from_variables(value).map(|proxies| proxies.shown(&server))
    };
    let proxied = |shown: &str| Ok(Some(shown.to_owned()));
    let server = "https://fts.example.com:3000";

    assert_eq!(of(&[], server), Ok(None));
    assert_eq!(of(&[("HTTPS_PROXY", "http://p:1")], server), proxied("http://p:1"));
    assert_eq!(of(&[("https_proxy", "p:1")], server), proxied("http://p:1"));
    assert_eq!(of(&[("ALL_PROXY", "http://u:pw@p:1")], server), proxied("http://p:1"));
    assert_eq!(
        of(&[("all_proxy", "http://a:1"), ("HTTPS_PROXY", "http://p:1")], server),
        proxied("http://p:1")
    );
    assert_eq!(of(&[("HTTP_PROXY", "http://p:1"), ("HTTPS_PROXY", "")], server), Ok(None));
    for no in ["*", "example.com", "x, .example.com", "fts.example.com"] {
        for name in ["NO_PROXY", "no_proxy"] {
            let variables = [("HTTPS_PROXY", "http://p:1"), (name, no)];
            assert_eq!(of(&variables, server), Ok(None), "{no}");
        }
    }
    let other = [("HTTPS_PROXY", "http://p:1"), ("NO_PROXY", "ample.com,10.0.0.0/8")];
    assert_eq!(of(&other, server), proxied("http://p:1"));
    assert_eq!(of(&other, "https://10.1.2.3"), Ok(None));
    for straight in ["http://fts.example.com", "https://localhost", "https://127.0.0.1:1"] {
        assert_eq!(of(&[("ALL_PROXY", "http://p:1")], straight), Ok(None), "{straight}");
    }
    for bad in ["socks5://u:hunter2@p:1", "https://u:hunter2@p:1", "http://u:hunter2@", "::"] {
        let problem = of(&[("HTTPS_PROXY", bad)], server).expect_err(bad);
        assert!(problem.starts_with("HTTPS_PROXY") && !problem.contains("hunter2"), "{problem}");
    }
}

#[test]
fn a_proxy_is_shown_without_what_is_secret() {
    assert!(Proxies::parse("off").is_ok());
    for text in ["http://me:hunter2@p:1", "me:hunter2@p:1", "http://me:hunt@er2@p:1"] {
        assert!(has_credentials(text));
        let shown = without_credentials(text);
        assert!(shown.ends_with("p:1") && !shown.contains("er2"), "{shown}");
    }
    assert_eq!(without_credentials("http://p:1"), "http://p:1");
}

#[test]
fn the_server_sees_the_scheme_that_was_asked_for() {
    let url = ServerUrl::parse("https://fts.example.com:3000").expect("a URL");
    let endpoint = endpoint(url.uri());
    assert_eq!(endpoint.uri().scheme_str(), Some("http"));
    assert_eq!(endpoint.uri().authority(), url.uri().authority());
}
