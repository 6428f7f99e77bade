//! The parts of the data path and the verbs of the store, each by itself: `make bench-micro`. For
//! finding out which part has become slower; how fast the whole is, `make bench` says.

use std::{future::poll_fn, hint::black_box, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use divan::{Bencher, counter::BytesCount};
use fts::{
    chunk::{ChunkVerifier, RootBuilder, crc32c},
    ids::{ClientId, InstanceId, SessionEpoch, TransferId, UnixMs},
    limits::{self, CHUNK_BYTES},
    server::store::{
        Claim, Claimant, SessionOpening, Store, memory::MemoryStore, sqlite::SqliteStore,
    },
    transfer::{Consistency, Fingerprint, Moment, Request, SourceFile, Step, Transfer},
    wire::{proto, session::Upload, upload_body::UploadBody},
};
use futures_util::future::join_all;
use http_body::Body as _;
use prost::Message as _;
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::mpsc};

fn main() {
    divan::main();
}

fn chunk() -> Bytes {
    let mut rng = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| rng.u8(..)).take(CHUNK_BYTES).collect()
}

fn message(data: &Bytes) -> Upload {
    Upload::Chunk { offset: 0, crc32c: 1, data: data.clone() }
}

#[divan::bench]
fn encode_by_prost(bencher: Bencher<'_, '_>) {
    let data = chunk();
    let encode = || proto::UploadFileRequest::from(message(&data)).encode_to_vec();
    bencher.counter(BytesCount::new(CHUNK_BYTES)).bench_local(encode);
}

#[divan::bench]
fn encode_by_hand(bencher: Bencher<'_, '_>) {
    let data = chunk();
    let runtime = Runtime::new().expect("a runtime");
    let (queue, messages) = mpsc::channel(1);
    let mut body = UploadBody::new(messages);
    bencher.counter(BytesCount::new(CHUNK_BYTES)).bench_local(|| {
        runtime.block_on(async {
            queue.send(message(&data)).await.expect("room");
            for _ in 0..2 {
                black_box(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await);
            }
        });
    });
}

#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let encoded = Bytes::from(proto::UploadFileRequest::from(message(&chunk())).encode_to_vec());
    let decode = || -> Upload {
        let message = proto::UploadFileRequest::decode(encoded.clone()).expect("a message");
        message.try_into().expect("one of ours")
    };
    bencher.counter(BytesCount::new(CHUNK_BYTES)).bench_local(decode);
}

/// CRC and BLAKE3, as the server does.
#[divan::bench]
fn verify(bencher: Bencher<'_, '_>) {
    let data = chunk();
    let crc = crc32c(&data);
    bencher.counter(BytesCount::new(CHUNK_BYTES)).bench_local(|| {
        let mut verifier = ChunkVerifier::new(CHUNK_BYTES as u64);
        verifier.accept(0, crc, &data).expect("it is right");
        verifier.finish()
    });
}

/// BLAKE3, chunk by chunk, with the merges of a file of so many chunks.
#[divan::bench(args = [1, 16, 256])]
fn merge(bencher: Bencher<'_, '_>, chunks: usize) {
    let data = chunk();
    bencher.counter(BytesCount::new(chunks * CHUNK_BYTES)).bench_local(|| {
        let mut root = RootBuilder::new((chunks * CHUNK_BYTES) as u64);
        (0..chunks).for_each(|_| {
            root.push(&data);
        });
        root.finish()
    });
}

/// A store with one client.
struct Site {
    runtime: Runtime,
    store: Arc<dyn Store>,
    claimant: Claimant,
    _dir: TempDir,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Memory,
    Sqlite,
}

const KINDS: [Kind; 2] = [Kind::Memory, Kind::Sqlite];
/// As many transfers end together.
const TOGETHER: usize = 64;

impl Site {
    /// On disk, so that a commit costs what it costs.
    fn open(kind: Kind) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let url = format!("sqlite:{}", dir.path().join("records.db").display());
        let (store, claimant) = runtime.block_on(async {
            let store: Arc<dyn Store> = match kind {
                Kind::Memory => Arc::new(MemoryStore::new()),
                Kind::Sqlite => Arc::new(SqliteStore::open(&url).await.expect("a store")),
            };
            let client: ClientId = "client-1".parse().expect("an id");
            let instance = InstanceId::generate();
            let session = open_session(&*store, &client, instance).await;
            let jobs_max = u32::MAX;
            let offers_max = u32::try_from(TOGETHER).expect("few");
            (store, Claimant { client, session, instance, jobs_max, offers_max })
        });
        Self { runtime, store, claimant, _dir: dir }
    }

    fn transfer(&self) -> Transfer {
        let request = Request {
            client: self.claimant.client.clone(),
            operator: None,
            path: None,
            request_id: None,
            consistency: Consistency::Auto,
            deadline: Duration::from_hours(1),
            rate_max: None,
            signed: None,
        };
        Transfer::new(TransferId::generate(), request, UnixMs::now())
    }

    /// Writes transfers, all at once.
    fn create(&self, count: usize) {
        let new: Vec<_> = (0..count).map(|_| self.transfer()).collect();
        let created = self.runtime.block_on(join_all(new.iter().map(|t| self.store.create(t))));
        assert!(created.iter().all(Result::is_ok));
    }

    fn claim(&self) -> Vec<Transfer> {
        let claim = self.runtime.block_on(self.store.claim(&self.claimant, Moment::now()));
        let Claim::Offered(offers) = claim.expect("claimed") else { return Vec::new() };
        offers
    }

    /// Ends transfers, all at once, each in three steps.
    fn complete(&self, offers: &[Transfer]) {
        let end = async |transfer: &Transfer| {
            let steps = steps(transfer).map(|step| (step, Moment::now()));
            self.store.apply(transfer.id, &steps).await.expect("applied")
        };
        self.runtime.block_on(join_all(offers.iter().map(end)));
    }
}

async fn open_session(store: &dyn Store, client: &ClientId, instance: InstanceId) -> SessionEpoch {
    let opening = SessionOpening {
        client: client.clone(),
        instance,
        jobs_max: limits::JOBS_MAX,
        version: String::new(),
        host_name: String::new(),
        os: String::new(),
        address: String::new(),
        allowed_roots: Vec::new(),
        policy_digest: None,
    };
    store.open_session(&opening, UnixMs::now()).await.expect("opened")
}

fn steps(transfer: &Transfer) -> [Step; 3] {
    let (epoch, instance) = (transfer.epoch, transfer.instance.expect("offered"));
    let fingerprint = Fingerprint { device: 1, inode: 1, size_bytes: 0, mtime_ns: 1, ctime_ns: 1 };
    let file = SourceFile { path: "/f".to_owned(), size_bytes: 0, fingerprint };
    let digest = RootBuilder::new(0).finish();
    let finish = fts::transfer::Finish {
        digest,
        delivered: fts::transfer::Delivered::Unchanged,
        trusted_bytes: 0,
    };
    [
        Step::Begun { epoch, instance, file },
        Step::Finished { epoch, finish, received_bytes: 0 },
        Step::Published { epoch },
    ]
}

#[divan::bench(args = KINDS, sample_count = 20)]
fn create_one(bencher: Bencher<'_, '_>, kind: Kind) {
    let site = Site::open(kind);
    bencher.bench_local(|| site.create(1));
}

#[divan::bench(args = KINDS, sample_count = 20)]
fn create_64_together(bencher: Bencher<'_, '_>, kind: Kind) {
    let site = Site::open(kind);
    bencher.bench_local(|| site.create(TOGETHER));
}

#[divan::bench(args = KINDS, sample_count = 20)]
fn claim_64(bencher: Bencher<'_, '_>, kind: Kind) {
    let site = Site::open(kind);
    bencher.with_inputs(|| site.create(TOGETHER)).bench_local_values(|()| site.claim());
}

#[divan::bench(args = KINDS, sample_count = 20)]
fn complete_64_together(bencher: Bencher<'_, '_>, kind: Kind) {
    let site = Site::open(kind);
    let claimed = || {
        site.create(TOGETHER);
        site.claim()
    };
    bencher.with_inputs(claimed).bench_local_values(|offers| site.complete(&offers));
}
