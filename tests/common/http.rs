//! HTTP/1.1 by hand: a test sees every byte of an answer, and may ask what no library would.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::TcpStream,
    time::timeout,
};

use super::server::PATIENCE;

/// An answer, as it came.
#[derive(Debug)]
pub struct Answer {
    /// The status line and the headers, a line each, without the last, empty one.
    pub head: String,
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns the only header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let mut named = lines.filter(|(each, _)| each.eq_ignore_ascii_case(name));
        let first = named.next().map(|(_, value)| value);
        assert!(named.next().is_none(), "two headers {name}: {}", self.head);
        first
    }

    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Returns the code of a problem, which must be one in every respect.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.head);
        let json = self.json();
        assert_eq!(json["type"], "about:blank");
        assert_eq!(json["status"], self.status);
        assert!(self.head.contains(json["title"].as_str().expect("a title")), "{}", self.head);
        assert!(!json["detail"].as_str().expect("a detail").is_empty());
        assert_eq!(json.as_object().expect("an object").len(), 5, "{json}");
        json["code"].as_str().expect("a code").to_owned()
    }
}

pub async fn get(address: SocketAddr, target: &str) -> Answer {
    ask(address, "GET", target, &[], "").await
}

pub async fn post(address: SocketAddr, target: &str) -> Answer {
    ask(address, "POST", target, &[], "").await
}

/// Asks on a connection of its own, with the headers that curl sends by itself, then `headers`; a
/// `Host` among them is instead of the right one.
pub async fn ask(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut connection = Connection::open(address).await;
    connection.send(&request(address, method, target, headers, body)).await;
    connection.answer(method).await
}

/// Returns a request as [`ask`] sends it.
pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> String {
    let has_host = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host"));
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    let mut add = |name: &str, value: &str| text.extend([name, ": ", value, "\r\n"]);
    if !has_host {
        add("Host", &address.to_string());
    }
    add("User-Agent", "curl/8.5.0");
    add("Accept", "*/*");
    for (name, value) in headers {
        add(name, value);
    }
    if !body.is_empty() {
        add("Content-Length", &body.len().to_string());
    }
    text + "\r\n" + body
}

pub struct Connection<S = TcpStream> {
    stream: BufReader<S>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.expect("connected"))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Speaks over a stream of any kind.
    pub fn over(stream: S) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Gives the stream up, with what was read of it and not looked at.
    pub fn into_inner(self) -> BufReader<S> {
        self.stream
    }

    pub async fn send(&mut self, text: &str) {
        // A server that has heard enough may answer before it has read all, and close.
        drop(self.stream.get_mut().write_all(text.as_bytes()).await);
    }

    /// Waits until the answer has begun; it is read later.
    pub async fn begun(&mut self) {
        let begun = timeout(PATIENCE, self.stream.fill_buf()).await.expect("an answer in time");
        assert!(!begun.expect("an answer").is_empty(), "the server hung up");
    }

    /// Reads the answer, or `None` if the server hangs up instead.
    pub async fn answer_or_end(&mut self, method: &str) -> Option<Answer> {
        let begun = timeout(PATIENCE, self.stream.fill_buf()).await.expect("an answer in time");
        if begun.is_ok_and(|bytes| !bytes.is_empty()) {
            Some(self.answer(method).await)
        } else {
            None
        }
    }

    /// Reads whatever comes until the server hangs up.
    pub async fn until_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let read = timeout(PATIENCE, self.stream.read_to_end(&mut all)).await;
        // It may hang up with a reset.
        drop(read.expect("an end in time"));
        all
    }

    /// Reads the answer to a request of this method.
    pub async fn answer(&mut self, method: &str) -> Answer {
        timeout(PATIENCE, self.read(method)).await.expect("an answer in time")
    }

    async fn read(&mut self, method: &str) -> Answer {
        let mut head = String::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                break;
            }
            head.push_str(&line);
            head.push('\n');
        }
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {head}"));
        let mut answer = Answer { head, status, body: Vec::new() };
        if method == "HEAD" || status == 304 {
            return answer;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            answer.body = self.chunked().await;
        } else {
            let length = answer.header("content-length").expect("a length");
            self.take(length.parse().expect("a number"), &mut answer.body).await;
        }
        answer
    }

    async fn chunked(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line().await, 16).expect("a size");
            self.take(size, &mut body).await;
            assert_eq!(self.line().await, "");
            if size == 0 {
                return body;
            }
        }
    }

    async fn take(&mut self, size: usize, body: &mut Vec<u8>) {
        let begin = body.len();
        body.resize(begin + size, 0);
        self.stream.read_exact(&mut body[begin..]).await.expect("the rest of the body");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.expect("a line");
        line.strip_suffix("\r\n").expect("a whole line").to_owned()
    }
}
