//! Small files share commits, and a server that is killed between loses none of what it has said.

#![cfg(all(feature = "server", feature = "client"))]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use common::{bytes, client::TestClient, files_beneath, http, process::ServerProcess};
use serde_json::Value;
use tempfile::TempDir;

const FILES: u64 = 90;
const KILLS: u64 = 3;

/// Asks for a file, and returns the transfer's id once the server has answered.
async fn trigger(address: SocketAddr, path: &Path) -> String {
    let answer = http::post(address, &format!("/download/client-1?path={}", path.display())).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["id"].as_str().expect("an id").to_owned()
}

/// Returns the COMPLETE transfers: their ids, and where their bytes are.
async fn complete(address: SocketAddr) -> BTreeMap<String, PathBuf> {
    let page = http::get(address, "/transfers?state=COMPLETE&page_size=1000").await.json();
    let transfers = page["transfers"].as_array().expect("a list").clone();
    let text = |transfer: &Value, key: &str| transfer[key].as_str().expect("text").to_owned();
    transfers.iter().map(|t| (text(t, "id"), text(t, "location").into())).collect()
}

/// Waits until `count` transfers are COMPLETE.
async fn until_complete(address: SocketAddr, count: u64) -> BTreeMap<String, PathBuf> {
    let look = async {
        loop {
            let complete = complete(address).await;
            if complete.len() as u64 >= count {
                return complete;
            }
            // Each look is an exchange with the server, which goes on meanwhile.
        }
    };
    tokio::time::timeout(common::server::PATIENCE, look).await.expect("delivered in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_between_small_files_loses_none_and_lands_each_once() {
    let dir = TempDir::new().expect("a directory");
    let source = dir.path().join("source");
    fs::create_dir(&source).expect("made");
    let file = |i: u64| source.join(i.to_string());
    for i in 0..FILES {
        fs::write(file(i), bytes(4096, i)).expect("written");
    }
    let mut server = ServerProcess::start(dir.path(), 0, &[]);
    let address = server.address;
    let client = TestClient::start_at(&format!("http://{address}"), "client-1", &[&source]);
    while http::get(address, "/clients/client-1").await.status != 200 {}

    let mut asked = Vec::new();
    for kill in 1..=KILLS {
        let share = FILES / KILLS;
        let already = complete(address).await.len() as u64;
        for i in (kill - 1) * share..kill * share {
            asked.push((trigger(address, &file(i)).await, i));
        }
        let before = until_complete(address, already + share / 3).await;
        server.process.kill();
        server = ServerProcess::start(dir.path(), address.port(), &[]);
        let after = complete(address).await;
        for (id, location) in before {
            assert_eq!(after.get(&id), Some(&location), "it was COMPLETE");
        }
    }

    let landed = until_complete(address, FILES).await;
    for (id, i) in &asked {
        assert_eq!(fs::read(&landed[id]).expect("landed"), bytes(4096, *i));
    }
    assert_eq!(landed.len() as u64, FILES);
    assert_eq!(files_beneath(&dir.path().join("data/files")).len() as u64, FILES, "each once");
    client.stop().await;
}
