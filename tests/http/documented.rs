//! The commands that the README shows, and their answers to the byte. Replaced are ids, times,
//! ports, the machine's own names, and what is measured.

use std::{
    env::consts::{ARCH, OS},
    fs,
    process::Command,
};

use fts::client::policy::Policy;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::{
    common::{
        bytes,
        http::{ask, get, post},
        server::TestServer,
        tools,
    },
    fixture::{DemoClient, normal, without_number},
};

fn policy_digest(file: &str) -> String {
    Policy::of_roots(vec![file.parse().expect("a path")]).digest().to_string()
}

#[tokio::test]
async fn get_clients() {
    let server = TestServer::start().await;
    let client = DemoClient::start(&server, b"demo").await;
    let file = client.file.to_str().expect("text");
    let os = format!("{OS} {ARCH}");

    let answer = get(server.address, "/clients").await;

    let digest = policy_digest(file);
    let version = (env!("CARGO_PKG_VERSION"), "VERSION");
    let head = answer.json()["clients"][0]["audit_head"].as_str().expect("a head").to_owned();
    let known = [(file, "FILE"), (&*digest, "DIGEST"), (&*os, "OS"), (&*head, "HEAD"), version];
    let expected = "\
HTTP/1.1 200 OK
content-type: application/json
cache-control: no-store
x-content-type-options: nosniff
content-length: LENGTH
date: DATE

{\"clients\":[{\"id\":\"client-1\",\"presence\":\"ONLINE\",\"last_seen\":\"TIME\",\
\"connected_since\":\"TIME\",\"first_seen\":\"TIME\",\"host_name\":\"test-host\",\"os\":\"OS\",\
\"version\":\"VERSION\",\"address\":\"127.0.0.1:PORT\",\"allowed_roots\":[\"FILE\"],\
\"policy_digest\":\"DIGEST\",\"jobs_max\":4,\"active_transfers\":0,\"queued_transfers\":0,\"session_epoch\":1,\
\"audit_head\":\"HEAD\"}],\
\"next_page_token\":\"\"}\n";
    assert_eq!(normal(&answer, &known), expected);
    let one = get(server.address, "/clients/client-1").await.json();
    assert_eq!(one["id"], answer.json()["clients"][0]["id"]);
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn post_download() {
    let server = TestServer::start().await;
    let client = DemoClient::start(&server, b"demo").await;

    let answer = post(server.address, "/download/client-1").await;

    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let expected = "\
HTTP/1.1 202 Accepted
content-type: application/json
location: /transfers/ID
cache-control: no-store
x-content-type-options: nosniff
content-length: LENGTH
date: DATE

{\"id\":\"ID\",\"client_id\":\"client-1\",\"state\":\"QUEUED\",\"revision\":1,\"epoch\":0,\
\"waiting\":{\"reason\":\"DUE\",\"since\":\"TIME\"},\
\"done_bytes\":0,\"received_bytes\":0,\"kept_bytes\":0,\"consistency\":\"AUTO\",\
\"content_deleted\":false,\"attempts\":0,\"create_time\":\"TIME\",\"update_time\":\"TIME\",\"deadline\":\"TIME\"}\n";
    assert_eq!(normal(&answer, &[(&id, "ID")]), expected);
    assert_eq!(server.landed(&id).await.1, b"demo");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn post_download_and_wait() {
    let server = TestServer::start().await;
    let data = bytes(3 << 20, 1);
    let client = DemoClient::start(&server, &data).await;
    let file = client.file.to_str().expect("text");

    let answer = post(server.address, "/download/client-1?wait=60").await;

    let json = answer.json();
    let text = |key: &str| json[key].as_str().expect("a text").to_owned();
    let (id, location) = (text("id"), text("location"));
    let known = [(&*location, "LOCATION"), (&id, "ID"), (file, "FILE")];
    let mut got = normal(&answer, &known);
    let measured =
        ["device", "inode", "mtime_ns", "ctime_ns", "duration_ms", "rate_bytes_per_second"];
    for key in measured {
        got = without_number(&got, key);
    }
    let digest = blake3::hash(&data).to_hex();
    let expected = format!(
        "\
HTTP/1.1 200 OK
content-type: application/json
location: /transfers/ID
cache-control: no-store
x-content-type-options: nosniff
content-length: LENGTH
date: DATE

{{\"id\":\"ID\",\"client_id\":\"client-1\",\"state\":\"COMPLETE\",\"revision\":5,\"epoch\":1,\
\"size_bytes\":3145728,\"done_bytes\":3145728,\"received_bytes\":3145728,\"kept_bytes\":0,\
\"blake3\":\"{digest}\",\"consistency\":\"AUTO\",\"delivered\":\"UNCHANGED\",\
\"trusted_bytes\":0,\
\"fingerprint\":{{\"device\":N,\"inode\":N,\"size_bytes\":3145728,\"mtime_ns\":N,\
\"ctime_ns\":N}},\"source_path\":\"FILE\",\"location\":\"LOCATION\",\"content_deleted\":false,\
\"attempts\":1,\"create_time\":\"TIME\",\"update_time\":\"TIME\",\"deadline\":\"TIME\",\
\"start_time\":\"TIME\",\"end_time\":\"TIME\",\"duration_ms\":N,\"rate_bytes_per_second\":N}}\n"
    );
    assert_eq!(got, expected);
    assert!(fs::read(location).expect("the file is where the answer says") == data);
    client.stop().await;
    server.stop().await;
}

/// `curl -d` calls whatever it sends a form.
#[tokio::test]
async fn post_download_with_json_as_curl_sends_it() {
    let server = TestServer::start().await;
    let client = DemoClient::start(&server, b"demo").await;
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let body = serde_json::json!({ "path": client.file }).to_string();

    let answer = ask(server.address, "POST", "/download/client-1?wait=60", &[form], &body).await;

    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["path"], client.file.to_str().expect("text"));
    assert_eq!(answer.json()["state"], "COMPLETE");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn get_status_of_the_client() {
    let server = TestServer::start().await;
    let client = DemoClient::start(&server, b"demo").await;
    let file = client.file.to_str().expect("text");
    // An answer of the server has come, so the page has a last contact.
    post(server.address, "/download/client-1?wait=60").await;

    let answer = get(client.status, "/status").await;

    let instance = answer.json()["instance"].as_str().expect("an instance").to_owned();
    let (digest, version) = (policy_digest(file), (env!("CARGO_PKG_VERSION"), "VERSION"));
    let head = answer.json()["audit"]["head"].as_str().expect("a head").to_owned();
    let known =
        [(file, "FILE"), (&*digest, "DIGEST"), (&*instance, "INSTANCE"), (&*head, "HEAD"), version];
    let got = normal(&answer, &known);
    let (head, page) = got.split_once("\n\n").expect("a body");
    assert_eq!(
        head,
        "\
HTTP/1.1 200 OK
content-type: application/json
connection: close
content-length: LENGTH
date: DATE"
    );
    // The upload may still be about to leave the list.
    let (page, transfers) = page.split_once("\"transfers\":").expect("transfers");
    assert!(transfers.starts_with('['), "{transfers}");
    let expected = "\
{\"id\":\"client-1\",\"instance\":\"INSTANCE\",\"version\":\"VERSION\",\
\"server\":\"http://127.0.0.1:PORT\",\"default_file\":\"FILE\",\"allowed_roots\":[\"FILE\"],\
\"policy_digest\":\"DIGEST\",\"sandbox\":{\"mode\":\"on\",\"landlock_abi\":null,\"files\":false,\
\"network\":false,\"scope\":false,\"seccomp\":false,\"no_new_privs\":false},\
\"audit\":{\"head\":\"HEAD\",\"writable\":true},\
\"jobs_max\":4,\"session\":{\"connected\":true,\"epoch\":1,\"since\":\"TIME\"},\
\"last_server_contact\":\"TIME\",\"last_error\":null,\"last_error_time\":null,";
    assert_eq!(page, expected);
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
#[ignore = "test-all: needs curl"]
async fn curl_itself() {
    let Some(curl) = tools::tool("curl_itself", "curl") else { return };
    let server = TestServer::start().await;
    let data = bytes(1 << 20, 2);
    let client = DemoClient::start(&server, &data).await;
    let (port, status_port) = (server.address.port(), client.status.port());
    let dir = TempDir::new().expect("a directory");
    let saved = dir.path().to_owned();

    let run = move |args: &[&str]| {
        let mut command = Command::new(&curl);
        // Nothing of the machine's own: no .curlrc, no proxy.
        command.arg("-q").args(["--noproxy", "*", "-sS"]).args(args).current_dir(&saved);
        let output = command.output().expect("curl runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let (clients, asked, page, over_http2) = spawn_blocking(move || {
        let json = |text: &str| -> Value { serde_json::from_str(text).expect("JSON") };
        let url = |path: &str| format!("http://localhost:{port}{path}");
        let clients = run(&[&url("/clients")]);
        let asked = run(&["-X", "POST", &url("/download/client-1?wait=60")]);
        let id = json(&asked)["id"].as_str().expect("an id").to_owned();
        run(&["-OJ", &url(&format!("/transfers/{id}/content"))]);
        let page = run(&[&format!("http://localhost:{status_port}/status")]);
        let over_http2 = run(&["--http2-prior-knowledge", &url("/clients/client-1")]);
        (json(&clients), json(&asked), json(&page), json(&over_http2))
    })
    .await
    .expect("no panic");

    assert_eq!(clients["clients"][0]["id"], "client-1");
    assert_eq!(asked["state"], "COMPLETE");
    assert_eq!(page["session"]["connected"], true);
    assert_eq!(over_http2["id"], "client-1");
    let saved = fs::read(dir.path().join("file_to_download.txt")).expect("saved by its name");
    assert!(saved == data);
    client.stop().await;
    server.stop().await;
}
