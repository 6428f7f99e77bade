//! `GET /transfers/{id}/content`: the verified bytes of a COMPLETE transfer, whole or one range of
//! them.

use std::{error::Error as StdError, ops::Range};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use tokio_stream::StreamExt as _;

use super::{Problem, extract::Named};
use crate::{
    ids::{RemotePath, TransferId, bounded},
    limits,
    server::{coordinator::Content, desk::Served, file_stream::FileStream, view::TransferView},
    status::Reason,
};

pub(super) async fn content(
    desk: Served,
    Named(id): Named<TransferId>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let content = desk.content(id).await?;
    let view = desk.transfer(id).await?;
    let response = answer(content, &file_name(&view), &method, &headers);
    Ok(response
        .map(|body| Body::from_stream(desk.until_over(body.into_data_stream(), axum::Error::new))))
}

fn answer(content: Content, name: &str, method: &Method, headers: &HeaderMap) -> Response {
    let size = content.size;
    let etag = format!("\"{}\"", content.digest);
    let asked = if names(headers, &header::IF_NONE_MATCH, &etag) {
        Asked::Nothing
    } else if *method == Method::GET && is_unchanged(headers, &etag) {
        asked(headers, size)
    } else {
        Asked::Whole
    };
    let mut response = match asked {
        Asked::Nothing => StatusCode::NOT_MODIFIED.into_response(),
        Asked::Whole => body(content, 0..size),
        Asked::Part(range) => {
            let line = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            let mut response = body(content, range);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert(header::CONTENT_RANGE, value(&line));
            response
        }
        Asked::Beyond => {
            let text = format!("the file has {size} bytes");
            let mut response = Problem::new(Reason::RangeNotSatisfiable, text).into_response();
            let line = format!("bytes */{size}");
            response.headers_mut().insert(header::CONTENT_RANGE, value(&line));
            return response;
        }
    };
    let answered = response.headers_mut();
    answered.insert(header::ETAG, value(&etag));
    answered.insert(header::ACCEPT_RANGES, value("bytes"));
    // May be kept, but is asked for again: the bytes can be deleted.
    answered.insert(header::CACHE_CONTROL, value("private, no-cache"));
    answered.insert(header::CONTENT_DISPOSITION, value(&disposition(name)));
    answered.insert(header::X_CONTENT_TYPE_OPTIONS, value("nosniff"));
    response
}

fn body(content: Content, range: Range<u64>) -> Response {
    let length = value(&(range.end - range.start).to_string());
    let pieces = FileStream::new(content.file, range, limits::HTTP_PIECE_BYTES, |_, bytes| {
        Bytes::from(bytes)
    });
    // The head has been sent: all that is left is to break off, which the reader sees by the
    // length.
    let pieces = pieces.map(|piece| {
        piece.inspect_err(|err| {
            tracing::error!(error = err as &dyn StdError, "could not read a landed file");
        })
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, value("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, length);
    response
}

/// A header value of our own making.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("a header made of printable ASCII")
}

// === What is asked for ===

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    /// Bytes that the file does not have.
    Beyond,
    /// The reader has it already.
    Nothing,
}

/// Reads `Range`. What is not one range of bytes is passed over, as HTTP permits.
fn asked(headers: &HeaderMap, size: u64) -> Asked {
    let mut ranges = headers.get_all(header::RANGE).iter();
    let (Some(text), None) = (ranges.next(), ranges.next()) else { return Asked::Whole };
    text.to_str().ok().and_then(|text| range(text, size)).unwrap_or(Asked::Whole)
}

fn range(text: &str, size: u64) -> Option<Asked> {
    let (unit, range) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let range = match (first, last) {
        ("", last) => size.saturating_sub(number(last)?)..size,
        (first, "") => number(first)?..size,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            first..last.saturating_add(1).min(size)
        }
    };
    Some(if range.is_empty() { Asked::Beyond } else { Asked::Part(range) })
}

/// A number too large for us is larger than any file.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Whether `If-Range`, if it is there, names this file. A date does not: there is none of ours to
/// compare.
fn is_unchanged(headers: &HeaderMap, etag: &str) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|value| value == etag)
}

/// Whether a list of entity tags has this one, or any.
fn names(headers: &HeaderMap, header: &header::HeaderName, etag: &str) -> bool {
    let values = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

// === Its name ===

/// Returns the name to save the file under: the last part of its path, as far as it is harmless.
fn file_name(view: &TransferView) -> String {
    let transfer = &view.transfer;
    let opened = transfer.file.as_ref().map(|file| file.path.as_str());
    let path = opened.or(transfer.path.as_ref().map(RemotePath::as_str)).unwrap_or_default();
    let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let name: String = last.chars().map(harmless).collect();
    let name = bounded(name, limits::FILE_NAME_BYTES_MAX);
    // A leading dot hides a file, and a trailing one is lost on some systems.
    let name = name.trim().trim_matches('.').trim();
    if name.is_empty() { transfer.id.to_string() } else { name.to_owned() }
}

/// Replaces what ends a name or a quotation, or changes how the rest of it is shown.
fn harmless(c: char) -> char {
    let special =
        matches!(c, '"' | '\'' | '`' | '/' | '\\' | ':' | '*' | '?' | '<' | '>' | '|' | '%');
    let invisible = matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffd}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    if special || invisible || c.is_control() { '_' } else { c }
}

/// RFC 6266: a name in ASCII for everybody, and the whole name (RFC 8187) for those who understand
/// it.
fn disposition(name: &str) -> String {
    let ascii: String = name.chars().map(|c| if c.is_ascii() { c } else { '_' }).collect();
    if ascii == name {
        return format!("attachment; filename=\"{ascii}\"");
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let encode = |byte: u8| {
        if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
    };
    let encoded: String = name.bytes().map(encode).collect();
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use axum::body::to_bytes;

    use super::*;
    use crate::{ids::Digest, server::view::samples};

    const BYTES: &[u8] = b"0123456789";

    fn content(bytes: &[u8]) -> Content {
        let mut file: File = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        let digest = Digest::from(blake3::hash(bytes));
        Content { file, size: bytes.len() as u64, digest }
    }

    async fn get(headers: &[(&'static str, &str)]) -> (Response<()>, Vec<u8>) {
        read(BYTES, &Method::GET, headers).await
    }

    async fn read(
        bytes: &[u8],
        method: &Method,
        headers: &[(&'static str, &str)],
    ) -> (Response<()>, Vec<u8>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("a header"));
        }
        let response = answer(content(bytes), "a.log", method, &map);
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 24).await.expect("read");
        (Response::from_parts(head, ()), body.to_vec())
    }

    fn etag() -> String {
        format!("\"{}\"", blake3::hash(BYTES).to_hex())
    }

    #[tokio::test]
    async fn the_whole_file_comes_with_its_digest_as_an_attachment() {
        let (response, body) = get(&[]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(body, BYTES);
        for (name, value) in [
            ("etag", etag().as_str()),
            ("content-length", "10"),
            ("content-type", "application/octet-stream"),
            ("content-disposition", "attachment; filename=\"a.log\""),
            ("accept-ranges", "bytes"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(response.headers()[name], value, "{name}");
        }
    }

    #[tokio::test]
    async fn a_file_of_many_pieces_comes_whole() {
        let bytes: Vec<u8> = (0..=250).cycle().take(3 * limits::HTTP_PIECE_BYTES + 7).collect();
        let (response, body) = read(&bytes, &Method::GET, &[]).await;
        assert_eq!(response.headers()["content-length"], bytes.len().to_string().as_str());
        assert!(body == bytes, "the bytes came in order");
    }

    #[tokio::test]
    async fn one_range_is_served() {
        for (range, line, expected) in [
            ("bytes=0-0", "bytes 0-0/10", "0"),
            ("bytes=2-4", "bytes 2-4/10", "234"),
            ("bytes=7-", "bytes 7-9/10", "789"),
            ("bytes=7-99", "bytes 7-9/10", "789"),
            ("bytes=-3", "bytes 7-9/10", "789"),
            ("bytes=-99", "bytes 0-9/10", "0123456789"),
            ("BYTES=9-9", "bytes 9-9/10", "9"),
            ("bytes=0-99999999999999999999999", "bytes 0-9/10", "0123456789"),
        ] {
            let (response, body) = get(&[("range", range)]).await;
            assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(response.headers()["content-range"], line, "{range}");
            assert_eq!(response.headers()["content-length"], expected.len().to_string().as_str());
            assert_eq!(response.headers()["etag"], etag().as_str());
            assert_eq!(body, expected.as_bytes(), "{range}");
        }
    }

    #[tokio::test]
    async fn a_range_beyond_the_end_is_a_problem_that_says_the_size() {
        for range in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999999-"] {
            let (response, body) = get(&[("range", range)]).await;
            assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE, "{range}");
            assert_eq!(response.headers()["content-range"], "bytes */10");
            let problem: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(problem["code"], "RANGE_NOT_SATISFIABLE");
        }
        let (response, _) = read(b"", &Method::GET, &[("range", "bytes=0-")]).await;
        assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    }

    #[tokio::test]
    async fn what_is_not_one_range_gets_the_whole() {
        for range in [
            "bytes=0-1,3-4",
            "bytes=4-2",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "lines=0-1",
            "bytes 0-1",
            "0-1",
            "bytes=1",
            "bytes=0x1-2",
        ] {
            let (response, body) = get(&[("range", range)]).await;
            assert_eq!(response.status(), StatusCode::OK, "{range}");
            assert_eq!(body, BYTES, "{range}");
        }
        let (response, _) = get(&[("range", "bytes=0-1"), ("range", "bytes=0-1")]).await;
        assert_eq!(response.status(), StatusCode::OK);
        let (response, _) = read(BYTES, &Method::HEAD, &[("range", "bytes=0-1")]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-length"], "10");
    }

    #[tokio::test]
    async fn a_range_of_another_version_gets_the_whole() {
        let (response, _) = get(&[("range", "bytes=1-2"), ("if-range", &etag())]).await;
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        let weak = format!("W/{}", etag());
        for other in ["\"x\"", weak.as_str(), "Wed, 21 Oct 2015 07:28:00 GMT"] {
            let (response, _) = get(&[("range", "bytes=1-2"), ("if-range", other)]).await;
            assert_eq!(response.status(), StatusCode::OK, "{other}");
        }
    }

    #[tokio::test]
    async fn what_the_reader_has_is_not_sent_again() {
        let (own, weak) = (etag(), format!("W/{}", etag()));
        let listed = format!("\"x\", {own}");
        for tags in [own.as_str(), weak.as_str(), listed.as_str(), "*"] {
            let headers = [("if-none-match", tags), ("range", "bytes=0-1")];
            let (response, body) = get(&headers).await;
            assert_eq!(response.status(), StatusCode::NOT_MODIFIED, "{tags}");
            assert_eq!(response.headers()["etag"], own.as_str());
            assert!(body.is_empty());
        }
        let (response, _) = get(&[("if-none-match", "\"x\"")]).await;
        assert_eq!(response.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_breaks_off() {
        let mut cut = content(BYTES);
        cut.size = 20;
        let response = answer(cut, "a", &Method::GET, &HeaderMap::new());
        assert_eq!(response.headers()["content-length"], "20");
        assert!(to_bytes(response.into_body(), 100).await.is_err());
    }

    #[test]
    fn a_file_name_is_the_harmless_last_part() {
        let mut view = samples::complete();
        let long = format!("/{}", "é".repeat(300));
        for (path, name) in [
            ("/var/log/a b.log", "a b.log"),
            ("/var/log/dir/", "dir"),
            ("/a/x\"; filename=\"y.exe", "x_; filename=_y.exe"),
            ("/a/b\r\nSet-Cookie: x", "b__Set-Cookie_ x"),
            ("/a/..\\..\\evil", "_.._evil"),
            ("/a/gpj\u{202e}exe.txt", "gpj_exe.txt"),
            ("/a/x\u{2066}y\u{200b}z", "x_y_z"),
            ("/a/.bashrc", "bashrc"),
            ("/a/50%41", "50_41"),
            ("/a/grün", "grün"),
            ("C:\\x\\y", "C__x_y"),
            (long.as_str(), &"é".repeat(limits::FILE_NAME_BYTES_MAX / 2)),
        ] {
            view.transfer.file.as_mut().expect("a file").path = path.to_owned();
            assert_eq!(file_name(&view), name, "{path:?}");
        }
        for path in ["", "/", "//", "/a/...", "/a/. ."] {
            view.transfer.file.as_mut().expect("a file").path = path.to_owned();
            let name = file_name(&view);
            assert_eq!(name, view.transfer.id.to_string(), "{path:?}");
        }
    }

    #[test]
    fn a_name_is_encoded_for_those_who_understand_it() {
        assert_eq!(disposition("a b;c.log"), "attachment; filename=\"a b;c.log\"");
        let expected = "attachment; filename=\"gr_n 1\"; filename*=UTF-8''gr%C3%BCn%201";
        assert_eq!(disposition("grün 1"), expected);
    }
}
