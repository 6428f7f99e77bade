//! A denial tells nothing, not even by how long the disk took.

use std::{fs, os::unix::fs::symlink};

use tokio::time::Instant;

use super::*;
use crate::{
    client::{config::Shared, fake_server::FakeServer, policy::Policy, state_dir::StateDir},
    ids::{Epoch, TransferId},
    transfer::Consistency,
    wire::session::PathVerdict,
};

#[tokio::test(start_paused = true)]
async fn a_denial_takes_as_long_whether_there_is_something_or_not() {
    let server = FakeServer::start();
    let temp = tempfile::tempdir().expect("a directory");
    let root = temp.path().join("root");
    fs::create_dir_all(root.join("hidden")).expect("made");
    fs::write(root.join("hidden/there"), "a canary").expect("written");
    for name in ["there", "absent"] {
        symlink(format!("hidden/{name}"), root.join(format!("to-{name}"))).expect("linked");
    }
    let policy =
        format!("[[root]]\nname = 'r'\npath = '{}'\nexclude = ['hidden']\n", root.display());
    let shared = Shared::Policy(Policy::parse(&policy).expect("a policy"));
    let state = Arc::new(StateDir::open(&temp.path().join("state")).expect("free"));
    let audit = Audit::open(&state).expect("opened");
    let sources = watch::Sender::new(Arc::new(Source::new(&shared, state)));
    let (data, instance) = (DataConnections::new(&server.dialer), InstanceId::generate());
    let uploader = Uploader::new(sources.subscribe(), data, instance, Limiter::new(None), audit);
    let names = ["to-there", "to-absent", "hidden/there", "hidden/absent", "../out"];
    let mut took = Vec::new();

    for name in names {
        let path = root.join(name).to_str().expect("text").replace("/root/..", "");
        let path: crate::ids::RemotePath = path.parse().expect("a path");
        let began = Instant::now();
        let explained = uploader.explain(Ok(path.clone()), None).await;
        assert_eq!(explained.verdict, PathVerdict::Denied, "{name}");
        took.push(began.elapsed());

        let permit = uploader.readers.clone().acquire_owned().await.expect("open");
        let command = Command {
            attempt: AttemptId { transfer: TransferId::generate(), epoch: Epoch(1) },
            path: Ok(Some(path)),
            consistency: Consistency::Auto,
            size_max: 1,
            resume: None,
            operator: None,
            rate_max: None,
            signature: None,
        };
        let began = Instant::now();
        let opened = uploader.open(&command, permit).await;
        assert!(opened.is_err(), "{name}");
        took.push(began.elapsed());
    }

    // The clock stands while the disk is asked: all that passes is what is waited on purpose.
    for took in took {
        assert!(took >= limits::DENIAL_STEP && took < 2 * limits::DENIAL_STEP, "{took:?}");
    }
}
