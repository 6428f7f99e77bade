//! A client that delivers a file leaves the page cache of its machine as it was.

mod common;

use std::{
    fs::{self, File},
    io::IoSliceMut,
    num::NonZeroU64,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
};

use common::{bytes, client::TestClient, server::TestServer, tools::skipped};
use fts::limits::CHUNK_BYTES;
use rustix::{
    fs::{Advice, fadvise},
    io::{ReadWriteFlags, preadv2},
};
use tempfile::TempDir;

const CHUNKS: usize = 32;
const PAGE_BYTES: usize = 4096;

/// Returns how many pages of each chunk are in the page cache. From the end, and without reading
/// ahead, so that looking puts no other page there.
fn resident(path: &Path) -> Vec<usize> {
    let file = File::open(path).expect("there");
    fadvise(&file, 0, None, Advice::Random).expect("advice");
    let mut pages = vec![0; CHUNKS];
    for page in (0..CHUNKS * CHUNK_BYTES / PAGE_BYTES).rev() {
        let mut byte = [0];
        let mut buffer = [IoSliceMut::new(&mut byte)];
        let at = (page * PAGE_BYTES) as u64;
        let read = preadv2(&file, &mut buffer, at, ReadWriteFlags::NOWAIT);
        pages[page * PAGE_BYTES / CHUNK_BYTES] += usize::from(read == Ok(1));
    }
    pages
}

/// Drops the pages of the file's first `len` bytes, which must be on the disk.
fn drop_pages(path: &Path, len: u64) {
    let file = File::open(path).expect("there");
    file.sync_all().expect("synced");
    fadvise(&file, 0, NonZeroU64::new(len), Advice::DontNeed).expect("advice");
}

/// Puts each page there by itself: what came in larger pieces, a part of them cannot drop.
fn read_by_page(path: &Path, bytes: Range<usize>) {
    let file = File::open(path).expect("there");
    fadvise(&file, 0, None, Advice::Random).expect("advice");
    for at in bytes.step_by(PAGE_BYTES) {
        file.read_exact_at(&mut [0; PAGE_BYTES], at as u64).expect("read");
    }
}

#[tokio::test]
async fn what_was_not_cached_is_not_cached_afterwards_and_what_was_stays() {
    let name = "what_was_not_cached_is_not_cached_afterwards_and_what_was_stays";
    let dir = TempDir::new().expect("a directory");
    let (path, data) = (dir.path().join("f"), bytes(CHUNKS * CHUNK_BYTES, 1));
    fs::write(&path, &data).expect("written");
    let (half, all) = (CHUNKS / 2, CHUNK_BYTES / PAGE_BYTES);
    drop_pages(&path, (half * CHUNK_BYTES) as u64);
    let before = resident(&path);
    if before[..half].iter().any(|pages| *pages > 0) || before[half..].iter().any(|p| *p < all) {
        return skipped(name, "a temporary directory on a disk, whose page cache can be told");
    }
    // Looking has put pages there, or is about to: what is still being read cannot be dropped.
    assert!(fs::read(&path).expect("read") == data);
    drop_pages(&path, (CHUNKS * CHUNK_BYTES) as u64);
    read_by_page(&path, half * CHUNK_BYTES..CHUNKS * CHUNK_BYTES);
    let server = TestServer::start().await;
    let client = TestClient::start(&server, "client-1", &[dir.path()]).await;

    let id = server.trigger("client-1", path.to_str().expect("text")).await.id;

    assert!(server.landed(&id).await.1 == data);
    let after = resident(&path);
    // The kernel reads ahead into what is cached already, and may keep a page in its hands.
    let left: usize = after[..half].iter().sum();
    assert!(left <= half * all / 20, "{after:?}");
    let kept: usize = after[half..].iter().sum();
    assert!(kept >= (CHUNKS - half) * all / 20 * 19, "{after:?}");
    client.stop().await;
    server.stop().await;
}
