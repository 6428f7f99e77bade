//! A link whose policy has terms, and a server that asks for a file.

use std::{fs, io::Write as _, sync::Mutex, time::Instant};

use super::*;
use crate::{
    chunk::{self, Prefix},
    client::{
        config::Shared,
        fake_server::{Client, FakeServer, FakeSession, FakeUpload},
        policy::Policy,
    },
    ids::{AttemptId, Epoch, TransferId},
    transfer::{Consistency, Delivered, FailReason},
    wire::session::{
        Command, Explained, FromClient, FromServer, Outcome, PathVerdict, Resume, Upload,
    },
};

const MIB: usize = 1 << 20;
/// More than is on its way while nobody reads.
const LARGE: usize = 48 * MIB;

/// A clock that is moved by hand.
#[derive(Clone)]
struct Hand(Arc<Mutex<Zoned>>);

impl Hand {
    fn at(text: &str) -> Self {
        Self(Arc::new(Mutex::new(time(text))))
    }

    fn set(&self, text: &str) {
        *self.0.lock().expect("whole") = time(text);
    }

    fn clock(&self) -> Clock {
        let hand = self.clone();
        Clock(Arc::new(move || hand.0.lock().expect("whole").clone()))
    }
}

fn time(text: &str) -> Zoned {
    format!("2026-03-{text}[UTC]").parse().expect("a time")
}

struct Test {
    server: FakeServer,
    client: Client,
    session: FakeSession,
    transfer: TransferId,
    epoch: u64,
}

impl Test {
    /// With a rule for `root` that ends in `terms`, and a file of so many bytes there.
    async fn start(hand: &Hand, terms: &str, size: usize) -> Self {
        let mut server = FakeServer::start();
        let client = Client::start_by(&server, hand.clock(), |root| rule(root, terms));
        fs::write(client.temp.path().join("root/f"), vec![7; size]).expect("written");
        let session = server.session().await;
        Self { server, client, session, transfer: TransferId::generate(), epoch: 0 }
    }

    async fn ask(&mut self) {
        self.ask_to_go_on(None).await;
    }

    async fn ask_to_go_on(&mut self, resume: Option<Resume>) {
        self.epoch += 1;
        let path = self.file();
        let command = Command {
            attempt: AttemptId { transfer: self.transfer, epoch: Epoch(self.epoch) },
            path: Ok(Some(path.to_str().expect("text").parse().expect("a path"))),
            consistency: Consistency::Auto,
            size_max: 1 << 30,
            rate_max: None,
            signature: None,
            resume,
            operator: None,
        };
        self.session.say(FromServer::Download(command)).await;
    }

    fn file(&self) -> std::path::PathBuf {
        self.client.temp.path().join("root/f")
    }

    async fn outcome(&mut self) -> Outcome {
        let report = self.session.report().await;
        assert_eq!(report.attempt.epoch, Epoch(self.epoch));
        report.outcome
    }

    fn replace(&self, policy: impl FnOnce(&str) -> String) -> bool {
        let root = self.client.temp.path().join("root");
        let policy = Policy::parse(&policy(root.to_str().expect("text"))).expect("a policy");
        self.client.shares.replace(&Shared::Policy(policy))
    }
}

fn rule(root: &str, terms: &str) -> String {
    format!("[[root]]\nname = 'root'\npath = {root:?}\n{terms}\n")
}

/// Returns how many bytes come until the end of the stream, and how it ends.
async fn received(upload: &mut FakeUpload) -> (usize, Option<Upload>) {
    let (mut bytes, mut end) = (0, None);
    while let Some(message) = upload.next().await {
        match message {
            Upload::Header(_) => {}
            Upload::Chunk { data, .. } => bytes += data.len(),
            other => end = Some(other),
        }
    }
    (bytes, end)
}

#[tokio::test]
async fn outside_its_hours_nothing_of_a_file_is_sent() {
    let hand = Hand::at("01T12:00:00");
    let mut test = Test::start(&hand, "hours = '22:00-06:00'", MIB).await;

    test.ask().await;
    let ten_hours = Duration::from_secs(10 * 3600);
    assert_eq!(test.outcome().await, Outcome::Held(Hold::PolicyWindow, ten_hours));

    hand.set("01T22:00:00");
    test.ask().await;
    let mut upload = test.server.upload().await;
    assert!(matches!(upload.next().await, Some(Upload::Header(_))));
    drop(upload);
    test.client.stop().await;
}

#[tokio::test]
async fn outside_its_hours_a_file_looks_the_same_whether_it_is_there_or_not() {
    let hand = Hand::at("01T12:00:00");
    let mut test = Test::start(&hand, "hours = '22:00-06:00'", MIB).await;
    let (mut outcomes, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        test.ask().await;
        outcomes.push(test.outcome().await);
        let path = Ok(test.file().to_str().expect("text").parse().expect("a path"));
        test.session.say(FromServer::Explain { question: 1, path, operator: None }).await;
        answers.push(loop {
            if let Some(FromClient::Explanation { explained, .. }) = test.session.next().await {
                break explained;
            }
        });
        // For the second time.
        let _ = fs::remove_file(test.file());
    }

    let ten_hours = Duration::from_secs(10 * 3600);
    assert_eq!(outcomes, [Outcome::Held(Hold::PolicyWindow, ten_hours); 2]);
    let held = Explained {
        verdict: PathVerdict::Failed,
        rule: String::new(),
        detail: "the client's policy holds it back for now".to_owned(),
    };
    assert_eq!(answers, [held.clone(), held]);
    test.client.stop().await;
}

#[tokio::test]
async fn an_upload_ends_with_its_hours() {
    let hand = Hand::at("01T05:59:59.9");
    let mut test = Test::start(&hand, "hours = '22:00-06:00'", LARGE).await;
    test.ask().await;
    let mut upload = test.server.upload().await;
    assert!(matches!(upload.next().await, Some(Upload::Header(_))));

    hand.set("01T06:00:00");

    let sixteen_hours = Duration::from_secs(16 * 3600);
    assert_eq!(test.outcome().await, Outcome::Held(Hold::PolicyWindow, sixteen_hours));
    let (sent, end) = received(&mut upload).await;
    assert!(sent < LARGE && end.is_none(), "{sent} {end:?}");
    test.client.stop().await;
}

#[tokio::test]
async fn a_rule_sends_so_many_bytes_a_day_and_goes_on_the_next() {
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "bytes_per_day = '2MiB'", 5 * MIB).await;

    let six_hours = Duration::from_secs(6 * 3600);
    for (now, sent) in [("01T18:00:00", 2 * MIB), ("01T18:00:00", 0), ("02T18:00:00", 2 * MIB)] {
        hand.set(now);
        test.ask().await;
        let mut upload = test.server.upload().await;
        let end = Upload::Held(Hold::BytesPerDay, six_hours);
        assert_eq!(received(&mut upload).await, (sent, Some(end)), "{now}");
        drop(upload);
        assert_eq!(test.outcome().await, Outcome::Held(Hold::BytesPerDay, six_hours), "{now}");
    }
    test.client.stop().await;
}

#[tokio::test]
async fn what_cannot_be_counted_is_not_sent() {
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "bytes_per_day = '2MiB'", 5 * MIB).await;
    fs::write(test.client.temp.path().join("state/bytes-of-day.json"), "{").expect("written");

    test.ask().await;

    let (sent, end) = received(&mut test.server.upload().await).await;
    assert!(matches!(end, Some(Upload::Abort { reason: FailReason::Io, .. })), "{end:?}");
    assert_eq!(sent, 0);
    assert_eq!(test.outcome().await, Outcome::Failed(FailReason::Io));
    test.client.stop().await;
}

#[tokio::test]
async fn the_rate_of_a_rule_holds_its_uploads_back() {
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "rate = '64KB/s'", MIB).await;
    test.ask().await;
    let mut upload = test.server.upload().await;
    assert!(matches!(upload.next().await, Some(Upload::Header(_))));

    let throttled = loop {
        if let Some(FromClient::Heartbeat { progress, .. }) = test.session.next().await {
            break progress.iter().any(|progress| progress.throttled);
        }
    };

    assert!(throttled);
    drop(upload);
    test.client.stop().await;
}

#[tokio::test]
async fn the_rate_of_a_rule_holds_for_what_is_read_again_to_go_on() {
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "rate = '2MB/s'", 5 * MIB).await;
    test.ask().await;
    let mut upload = test.server.upload().await;
    let Some(Upload::Header(header)) = upload.next().await else { panic!("no header") };
    drop(upload);
    test.outcome().await;
    // This process knows nothing of another transfer.
    test.transfer = TransferId::generate();
    let mut kept = Prefix::default();
    (0..4).for_each(|chunk| kept.push(chunk::value(chunk * MIB as u64, &vec![7; MIB])));

    let begun = Instant::now();
    test.ask_to_go_on(Some(Resume { fingerprint: header.fingerprint, kept })).await;
    let mut upload = test.server.upload().await;

    let (sent, end) = received(&mut upload).await;
    assert!(sent == MIB && matches!(end, Some(Upload::Finish { .. })), "{sent} {end:?}");
    // 5 MiB in all.
    assert!(begun.elapsed() > Duration::from_millis(2400), "{:?}", begun.elapsed());
    drop(upload);
    test.client.stop().await;
}

#[tokio::test]
async fn the_rate_of_a_rule_holds_for_what_is_read_again_because_it_grew() {
    const SIZE: usize = 12 * MIB;
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "rate = '8MB/s'", SIZE).await;
    let begun = Instant::now();
    test.ask().await;
    let mut upload = test.server.upload().await;
    assert!(matches!(upload.next().await, Some(Upload::Header(_))));
    let mut file = fs::OpenOptions::new().append(true).open(test.file()).expect("open");
    file.write_all(b"more").expect("written");

    let (sent, end) = received(&mut upload).await;
    let Some(Upload::Finish { finish, .. }) = end else { panic!("{end:?}") };
    assert_eq!((sent, finish.delivered), (SIZE, Delivered::Prefix));
    // Twice.
    assert!(begun.elapsed() > Duration::from_millis(2900), "{:?}", begun.elapsed());
    drop(upload);
    test.client.stop().await;
}

#[tokio::test]
async fn a_narrower_policy_holds_at_once_for_what_runs_too_and_is_shown() {
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "", LARGE).await;
    test.ask().await;
    let mut upload = test.server.upload().await;
    assert!(matches!(upload.next().await, Some(Upload::Header(_))));
    let shown = test.session.hello.policy_digest;

    assert!(test.replace(|root| rule(root, "exclude = ['f']")));

    let (sent, end) = received(&mut upload).await;
    assert!(sent < LARGE && end.is_none(), "{sent} {end:?}");
    test.session = test.server.session().await;
    assert_ne!(test.session.hello.policy_digest, shown);
    assert_eq!(test.outcome().await, Outcome::Held(Hold::PolicyWindow, limits::HOLD_MIN));
    test.ask().await;
    assert_eq!(test.outcome().await, Outcome::Failed(FailReason::DeniedByPolicy));
    test.client.stop().await;
}

#[tokio::test]
async fn the_same_policy_stops_nothing() {
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "", MIB).await;
    test.ask().await;
    let mut upload = test.server.upload().await;

    assert!(!test.replace(|root| format!("# the same\n{}", rule(root, ""))));

    let (sent, end) = received(&mut upload).await;
    assert!(sent == MIB && matches!(end, Some(Upload::Finish { .. })), "{end:?}");
    drop(upload);
    test.client.stop().await;
}

#[tokio::test]
async fn bytes_of_a_day_are_counted_on_by_a_new_policy() {
    let hand = Hand::at("01T18:00:00");
    let mut test = Test::start(&hand, "bytes_per_day = '2MiB'", 5 * MIB).await;
    test.ask().await;
    let mut upload = test.server.upload().await;
    assert_eq!(received(&mut upload).await.0, 2 * MIB);
    drop(upload);
    test.outcome().await;

    let wider = |root: &str| rule(root, "bytes_per_day = '3MiB'");
    assert!(test.replace(wider));

    test.session = test.server.session().await;
    test.ask().await;
    let mut upload = test.server.upload().await;
    assert_eq!(received(&mut upload).await.0, MIB);
    drop(upload);
    test.client.stop().await;
}

#[tokio::test]
async fn once_the_kernel_holds_it_no_policy_adds_a_root() {
    let temp = tempfile::tempdir().expect("a directory");
    let state = crate::client::state_dir::StateDir::open(&temp.path().join("state"));
    let policy = |text: &str| Shared::Policy(Policy::parse(text).expect("a policy"));
    let first = policy("[[root]]\nname = 'a'\npath = '/srv/a'\n");
    let shares = crate::client::shares::Shares::new(&first, Arc::new(state.expect("free")));
    let wider =
        policy("[[root]]\nname = 'a'\npath = '/srv/a'\n[[root]]\nname = 'b'\npath = '/b'\n");
    let narrower_and_wider = policy(
        "[[root]]\nname = 'a'\npath = '/srv/a'\nexclude = ['x']\n\
         [[root]]\nname = 'b'\npath = '/b'\n",
    );
    let narrower =
        Policy::parse("[[root]]\nname = 'a'\npath = '/srv/a'\nexclude = ['x']\n").expect("good");
    let elsewhere = policy("[[root]]\nname = 'c'\npath = '/srv'\n");
    let beneath = policy("[[root]]\nname = 'c'\npath = '/srv/a/c'\n");
    let waiting = || {
        shares.waiting().borrow().iter().map(|root| root.as_str().to_owned()).collect::<Vec<_>>()
    };

    shares.confine();

    assert!(!shares.replace(&wider), "nothing that it may do was changed");
    assert_eq!((shares.now().roots(), waiting()), (vec!["/srv/a".to_owned()], vec!["/b".into()]));
    // What it takes away is gone all the same.
    assert!(shares.replace(&narrower_and_wider));
    assert_eq!((shares.now().policy(), waiting()), (&narrower, vec!["/b".to_owned()]));
    assert!(shares.replace(&elsewhere));
    assert_eq!((shares.now().roots(), waiting()), (vec![], vec!["/srv".to_owned()]));
    assert!(shares.replace(&beneath));
    // What was given up may be taken back: the kernel still allows it.
    assert!(shares.replace(&first));
    assert_eq!(waiting(), [""; 0]);
}
