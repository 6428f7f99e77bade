//! Certificates of clients renew themselves, and the authority can be changed, under clients that
//! are connected: nobody notices.

mod common;

use std::{path::Path, sync::Arc, time::Duration};

use common::{
    bytes,
    client::TestClient,
    secured::{Secured, bearing},
    server::{PATIENCE, Setup},
};
use fts::{
    server::{
        access::{Role, Scope},
        authority::Authority,
    },
    token::Secret,
    wire::proto::{
        GetClientRequest, Presence, State, Transfer, TriggerDownloadRequest, WatchTransfersRequest,
        control_client::ControlClient,
    },
};
use tempfile::TempDir;
use tonic::transport::Channel;

/// The length of a certificate's life, and how many clients: `FTS_RENEWALS=120:200` says otherwise.
fn scale() -> (Duration, usize) {
    let text = std::env::var("FTS_RENEWALS").unwrap_or_default();
    let (life, clients) = text.split_once(':').unwrap_or(("12", "40"));
    let life = life.parse().expect("FTS_RENEWALS=SECONDS:CLIENTS");
    (Duration::from_secs(life), clients.parse().expect("FTS_RENEWALS=SECONDS:CLIENTS"))
}

/// A server, its clients, and an operator.
struct Fleet {
    secured: Secured,
    clients: Vec<TestClient>,
    source: TempDir,
    token: Secret,
    control: ControlClient<Channel>,
}

const SIZE: usize = 3 << 20;

impl Fleet {
    async fn start(life: Duration, count: usize) -> Self {
        let setup = Setup { certificate_life: life, ..Setup::default() };
        let secured = Secured::start_with(setup).await;
        let source = TempDir::new().expect("a directory");
        std::fs::write(source.path().join("file"), bytes(SIZE, 7)).expect("written");
        let token = secured.operator("alice", Role::Operator, Scope::default()).await;
        let control = ControlClient::new(secured.channel(None).await);
        let mut fleet = Self { secured, clients: Vec::new(), source, token, control };
        for number in 0..count {
            let identity = fleet.secured.identity_for(&name(number), life).await;
            let allowed: [&Path; 1] = [fleet.source.path()];
            fleet.clients.push(TestClient::start_secured(&fleet.secured, &identity, &allowed));
        }
        tokio::time::timeout(PATIENCE, fleet.all_online()).await.expect("every client came");
        fleet
    }

    async fn all_online(&mut self) {
        for number in 0..self.clients.len() {
            loop {
                let ask = GetClientRequest { client_id: name(number) };
                let found = self.control.get_client(bearing(&self.token, ask)).await;
                if found.is_ok_and(|found| {
                    found.into_inner().client.is_some_and(|c| c.presence() == Presence::Online)
                }) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Pulls the file of each client at once; every one must come whole.
    async fn pull_from_all(&mut self) {
        let mut ids = Vec::new();
        for number in 0..self.clients.len() {
            let ask = TriggerDownloadRequest {
                client_id: name(number),
                path: self.source.path().join("file").display().to_string(),
                ..Default::default()
            };
            let asked = self.control.trigger_download(bearing(&self.token, ask)).await;
            ids.push(asked.expect("asked").into_inner().transfer.expect("a transfer").id);
        }
        for id in ids {
            let transfer = self.ended(&id).await;
            assert_eq!(transfer.state(), State::Complete, "{transfer:?}");
            let landed = std::fs::read(&transfer.location).expect("the landed file");
            assert!(landed == bytes(SIZE, 7), "the bytes of {}", transfer.client_id);
        }
    }

    async fn ended(&mut self, id: &str) -> Transfer {
        let ask = WatchTransfersRequest { transfer_id: id.to_owned(), ..Default::default() };
        let watch = async {
            let watch = self.control.watch_transfers(bearing(&self.token, ask)).await;
            let mut events = watch.expect("watched").into_inner();
            let mut last = None;
            while let Some(event) = events.message().await.expect("an event") {
                last = event.transfer;
            }
            last.expect("a transfer")
        };
        tokio::time::timeout(4 * PATIENCE, watch).await.expect("it ended in time")
    }

    /// Returns when the last certificate of each client expires.
    async fn expiries(&self) -> Vec<i64> {
        let identities = self.secured.credentials().identities(None, 10_000).await.expect("read");
        identities.iter().map(|identity| identity.expires.0).collect()
    }

    /// Waits until every client has a later certificate than then, and pulls all the while.
    async fn pull_until_renewed(&mut self, before: &[i64]) {
        loop {
            self.pull_from_all().await;
            let now = self.expiries().await;
            if now.iter().zip(before).all(|(now, before)| now > before) {
                return;
            }
        }
    }

    async fn stop(self) {
        for client in self.clients {
            client.stop().await;
        }
        self.secured.server.stop().await;
    }
}

fn name(number: usize) -> String {
    format!("client-{number:03}")
}

/// Changes the files of the authority, and lets the server take them.
async fn change(secured: &Secured, change: impl FnOnce(&Authority)) {
    let authority = Authority::open(&secured.pki()).expect("opened").expect("there");
    change(&authority);
    let tls = Arc::clone(&secured.tls);
    fts::server::reload(&tls, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "test-all: certificates must live and expire"]
async fn no_transfer_fails_while_certificates_renew_and_the_authority_changes() {
    let (life, count) = scale();
    let mut fleet = Fleet::start(life, count).await;
    let first = fleet.expiries().await;

    fleet.pull_until_renewed(&first).await;
    change(&fleet.secured, |authority| drop(authority.rotate().expect("rotated"))).await;
    let between = fleet.expiries().await;
    fleet.pull_until_renewed(&between).await;
    // By now each knows the new root.
    change(&fleet.secured, |authority| drop(authority.finish().expect("finished"))).await;
    let after = fleet.expiries().await;
    // The operator knows the server by the old root: it comes with the new one.
    fleet.control = ControlClient::new(fleet.secured.channel(None).await);
    fleet.pull_until_renewed(&after).await;

    fleet.stop().await;
}
