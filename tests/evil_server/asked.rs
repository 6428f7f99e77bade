//! What a server may ask for, and ask again.

use std::collections::BTreeMap;

use fts::wire::{
    proto::{Attempt, DownloadCommand, server_message::Body},
    session::{FromClient, Outcome, Report, Verdict},
};

use crate::{
    SECRET, Site,
    common::client::TestClient,
    paths::Paths,
    peer::{Peer, Session, Uploads, download},
};

const PAIRS: u32 = 1_000;

/// Asks for a path, and returns all that the client says of it.
async fn told(session: &mut Session, path: &str) -> (Outcome, String) {
    let command = download(path, 1);
    assert!(session.say(Body::Download(command)).await, "{path:?}");
    let Report { outcome, detail, .. } = session.report().await.expect("a report");
    (outcome, detail)
}

#[tokio::test]
async fn nothing_outside_is_told_over_the_wire() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let client = TestClient::start_at(&peer.url(), "client-1", &[&site.path("root")]);
    let mut session = peer.session().await;
    let mut paths = Paths::new(site.dir.path().to_str().expect("text"), 3);
    let mut all: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..PAIRS {
        let (path, twin) = paths.pair();
        // What is longer than a message may be ends the session, whatever is in it.
        if path.len() > 60_000 {
            continue;
        }
        let answer = told(&mut session, &path).await;
        assert_eq!(answer, told(&mut session, &twin).await, "{path:?} and {twin:?}");
        *all.entry(format!("{answer:?}")).or_default() += 1;
    }
    // Denied, not there, no regular file, delivered: nothing that is of one path only.
    assert!(all.len() <= 6, "{all:?}");
    let has_secret = {
        let taken = peer.taken.lock().expect("no panic");
        taken.bytes.windows(SECRET.len()).any(|window| window == SECRET)
    };
    assert!(!has_secret);
    client.abort().await;
}

/// Waits until everything that was asked before has been answered: this one is as well.
async fn settle(session: &mut Session, path: &str) {
    let last = download(path, 1);
    let attempt: fts::ids::AttemptId = last.attempt.clone().try_into().expect("an attempt");
    assert!(session.say(Body::Download(last)).await);
    while session.report().await.expect("a report").attempt != attempt {}
}

#[tokio::test]
async fn what_is_asked_again_is_sent_once() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let client = TestClient::start_at(&peer.url(), "client-1", &[&site.path("root")]);
    let mut session = peer.session().await;
    let good = download(&site.text("root/open"), 5);
    let attempt = good.attempt.clone().expect("an attempt");
    let verdict = async |session: &mut Session, command: DownloadCommand| {
        assert!(session.say(Body::Download(command)).await);
        session.verdict().await.expect("a verdict")
    };
    assert_eq!(verdict(&mut session, good.clone()).await, Verdict::Accepted);
    settle(&mut session, &site.text("canary")).await;

    for _ in 0..3 {
        assert_eq!(verdict(&mut session, good.clone()).await, Verdict::Accepted);
    }
    let other = DownloadCommand { path: site.text("root/sub/back/open"), ..good.clone() };
    assert_eq!(verdict(&mut session, other).await, Verdict::Conflict);
    let earlier = Some(Attempt { epoch: 4, ..attempt.clone() });
    let stale = DownloadCommand { attempt: earlier, ..good.clone() };
    assert_eq!(verdict(&mut session, stale.clone()).await, Verdict::StaleEpoch);

    drop(session);
    let mut session = peer.session().await;
    assert_eq!(verdict(&mut session, good.clone()).await, Verdict::Accepted);
    assert_eq!(verdict(&mut session, stale).await, Verdict::StaleEpoch);
    settle(&mut session, &site.text("canary")).await;
    assert_eq!(peer.uploads_of(&attempt), 1);
    client.abort().await;
}

/// Whether the client still shares what it did, and nothing else.
pub async fn is_as_before(session: &mut Session, site: &Site) -> bool {
    let open = download(&site.text("root/open"), 1);
    let canary = download(&site.text("canary"), 1);
    for command in [open, canary] {
        if !session.say(Body::Download(command)).await {
            return false;
        }
    }
    let mut denied = 0;
    for _ in 0..2 {
        let Some(report) = session.report().await else { return false };
        // The peer refuses what it has read.
        denied += u32::from(report.outcome != Outcome::Broken);
        assert!(!matches!(report.outcome, Outcome::Delivered), "{report:?}");
    }
    assert_eq!(denied, 1);
    true
}

/// Skips to the next heartbeat.
pub async fn beat(session: &mut Session) -> Option<u64> {
    loop {
        if let FromClient::Heartbeat { seq, .. } = session.next().await? {
            return Some(seq);
        }
    }
}
