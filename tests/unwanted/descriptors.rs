//! A server that may open no more files.

use tokio::{
    net::TcpStream,
    time::{Duration, Instant, sleep, timeout},
};

use crate::{
    child::{Child, wait_until},
    common::server::PATIENCE,
};

async fn dial(child: &Child, count: usize) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(TcpStream::connect(child.server.address).await.expect("in the queue"));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_file_it_waits_quietly_and_serves_again_when_there_is_one() {
    let child = Child::start();
    child.ask(child.channel(None).await).await;
    let some = child.descriptors() + 8;
    child.limit(u64::try_from(some).expect("few"));

    let callers = dial(&child, 64).await;
    wait_until("it says why", || {
        child.server.process.read_log().contains("could not accept a connection")
    });
    let before = child.busy();
    sleep(Duration::from_secs(2)).await;
    let busy = child.busy().saturating_sub(before);
    drop(callers);
    let freed = Instant::now();
    timeout(PATIENCE, async { child.ask(child.channel(None).await).await })
        .await
        .expect("answered");

    eprintln!("busy for {busy:.0?} of 2 s; answered {:.1?} after the release", freed.elapsed());
    assert!(busy < Duration::from_secs(1), "{busy:?}");
    assert!(freed.elapsed() < Duration::from_secs(5), "{:?}", freed.elapsed());
    let log = child.server.process.read_log();
    let said = log.matches("could not accept a connection").count();
    assert!(said < 100, "it said so {said} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_few_files_who_says_nothing_keeps_nobody_out() {
    let child = Child::start_limited(256);
    child.ask(child.channel(None).await).await;
    let base = child.descriptors();

    let callers = dial(&child, 1000).await;
    let began = Instant::now();
    timeout(PATIENCE, async { child.ask(child.channel(None).await).await })
        .await
        .expect("answered");

    eprintln!("answered in {:.0?}", began.elapsed());
    let log = child.server.process.read_log();
    assert!(!log.contains("could not accept"), "it never comes to that: {log}");
    drop(callers);
    child.back_to(base).await;
}
