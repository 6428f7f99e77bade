//! What a server may say beside its questions: nonsense, orders that there are none of, clocks, and
//! hints to other addresses.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fts::{
    limits,
    wire::proto::{
        Attempt, Drain, HeartbeatAck, ReportAck, ServerMessage, StopCommand, Superseded, Welcome,
        server_message::Body,
    },
};
use prost::Message as _;

use crate::{
    Site,
    asked::{beat, is_as_before},
    common::client::TestClient,
    peer::{Peer, Uploads, download, framed},
};

/// Messages that no honest server sends.
fn nonsense(site: &Site) -> Vec<(&'static str, Bytes)> {
    let message = |body| ServerMessage { body: Some(body) }.encode_to_vec();
    let command = download(&site.text("canary"), 1);
    let good = message(Body::Download(command.clone()));
    // Field 99, with an inner message that asks for a file.
    let mut unknown_verb = vec![0x9a, 0x06, u8::try_from(good.len()).expect("small")];
    unknown_verb.extend(&good);
    let mut more_fields = good.clone();
    more_fields.extend([0xf8, 0x07, 0x01, 0x9a, 0x06, 0x02, 0x08, 0x01]);
    let mut unknown_value = command.clone();
    unknown_value.consistency = 77;
    let no_attempt = fts::wire::proto::DownloadCommand { attempt: None, ..command.clone() };
    let odd = Some(Attempt { transfer_id: "../../canary".to_owned(), epoch: u64::MAX });
    let odd_attempt = fts::wire::proto::DownloadCommand { attempt: odd.clone(), ..command };
    let mut compressed = framed(&good).to_vec();
    compressed[0] = 1;
    let mut endless = framed(&good).to_vec();
    endless[1..5].fill(0xff);
    vec![
        ("nothing", framed(&[])),
        ("a verb of a later version", framed(&unknown_verb)),
        ("fields of a later version", framed(&more_fields)),
        ("a value of a later version", framed(&message(Body::Download(unknown_value)))),
        ("no attempt", framed(&message(Body::Download(no_attempt)))),
        ("an attempt that is none", framed(&message(Body::Download(odd_attempt)))),
        ("a second welcome", framed(&message(Body::Welcome(Welcome::default())))),
        (
            "an answer to no heartbeat",
            framed(&message(Body::HeartbeatAck(HeartbeatAck { seq: 9 }))),
        ),
        ("a stop of nothing", framed(&message(Body::Stop(StopCommand { attempt: odd.clone() })))),
        ("a stop of none", framed(&message(Body::Stop(StopCommand { attempt: None })))),
        ("thanks for nothing", framed(&message(Body::ReportAck(ReportAck { attempt: odd })))),
        ("no protobuf", framed(&[0xff; 64])),
        ("half a message", framed(&good[..good.len() / 2])),
        ("a path that is no text", framed(&[0x1a, 0x04, 0x12, 0x02, 0xff, 0xfe])),
        ("compressed", compressed.into()),
        ("a giant message", framed(&vec![0; 5 << 20])),
        ("a message without end", endless.into()),
    ]
}

#[tokio::test]
async fn nonsense_changes_nothing() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let client = TestClient::start_at(&peer.url(), "client-1", &[&site.path("root")]);
    let files = site.files();
    let mut session = peer.session().await;
    for (what, bytes) in nonsense(&site) {
        // The client may end the session meanwhile: then it comes back.
        session.say_bytes(bytes).await;
        let mut sessions = 0;
        loop {
            if is_as_before_or_over(&mut session, &site).await {
                break;
            }
            sessions += 1;
            assert!(sessions < 3, "{what}");
            session = peer.session().await;
        }
    }
    assert_eq!(site.files(), files);
    client.abort().await;
}

/// As [`is_as_before`], on a client that may first report what it was asked in between.
async fn is_as_before_or_over(session: &mut crate::peer::Session, site: &Site) -> bool {
    let last = download(&site.text("canary"), 1);
    let attempt: fts::ids::AttemptId = last.attempt.clone().try_into().expect("an attempt");
    if !session.say(Body::Download(last)).await {
        return false;
    }
    loop {
        match session.report().await {
            Some(report) if report.attempt == attempt => break,
            Some(_) => {}
            None => return false,
        }
    }
    is_as_before(session, site).await
}

#[tokio::test]
async fn clocks_of_nothing_make_no_hurry() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let client = TestClient::start_at(&peer.url(), "client-1", &[&site.path("root")]);
    for (heartbeat_ms, silence_ms) in [(0, u32::MAX), (1, u32::MAX), (0, 0)] {
        let mut session = peer.silent().await;
        session.welcome(heartbeat_ms, silence_ms).await;
        let begun = Instant::now();
        let mut beats = 0;
        while beats < 4
            && let Some(seq) = beat(&mut session).await
        {
            beats += 1;
            session.say(Body::HeartbeatAck(HeartbeatAck { seq })).await;
        }
        // Each at least 80 % of the shortest that there is.
        let least = limits::HEARTBEAT_MIN.mul_f64(0.8) * beats;
        assert!(begun.elapsed() >= least, "{beats} in {:?}", begun.elapsed());
        assert!(beats > 0);
    }
    client.abort().await;
}

#[tokio::test]
async fn a_client_that_is_sent_away_does_not_come_in_a_hurry() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let client = TestClient::start_at(&peer.url(), "client-1", &[&site.path("root")]);
    let mut last = Instant::now();
    for round in 0..4 {
        let mut session = peer.silent().await;
        let pause = last.elapsed();
        assert!(round == 0 || pause >= limits::DIAL_PAUSE_MIN, "{pause:?}");
        last = Instant::now();
        // Before a Welcome, and after one.
        if round % 2 == 0 {
            session.welcome(0, 0).await;
        }
        session.say(Body::Drain(Drain { reconnect_after_ms: round % 2 })).await;
        // Once it is dropped, the client may not read the rest.
        while session.next().await.is_some() {}
    }
    client.abort().await;
}

#[tokio::test]
async fn a_hint_to_another_address_leads_nowhere() {
    let (site, mut peer) = (Site::new(), Peer::start(Uploads::Read).await);
    let trap = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    trap.set_nonblocking(true).expect("set");
    let address = trap.local_addr().expect("an address").to_string();
    let client = TestClient::start_at(&peer.url(), "client-1", &[&site.path("root")]);

    let mut session = peer.session().await;
    let mut drain =
        ServerMessage { body: Some(Body::Drain(Drain { reconnect_after_ms: 1 })) }.encode_to_vec();
    // In a field of a later version, inside and beside the verb.
    drain.extend([0x9a, 0x06, u8::try_from(address.len()).expect("small")]);
    drain.extend(address.as_bytes());
    session.say_bytes(framed(&drain)).await;
    let mut session = peer.session().await;
    assert!(is_as_before(&mut session, &site).await);
    let (host_name, reconnect_after_ms) = (address.clone(), 1);
    session.say(Body::Superseded(Superseded { host_name, address, reconnect_after_ms })).await;
    while session.next().await.is_some() {}
    drop(session);
    assert!(peer.silent_within(Duration::from_secs(1)).await.is_none(), "it was sent away");

    let dialled = trap.accept().map(|_| ()).map_err(|err| err.kind());
    assert_eq!(dialled, Err(std::io::ErrorKind::WouldBlock));
    client.abort().await;
}
