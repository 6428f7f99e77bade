//! The directory of files belongs to the records: each knows the other's id, so that records never
//! meet an empty directory whose file system is not mounted.

use std::path::Path;

use super::{
    landing::{Disk, Landing, OpenError},
    store::{Store, StoreError},
};

/// Why the directory of files cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Opens the directory of files that the records tell of. If they tell of none yet, or if
/// `takes_other` says so, the one at `path` becomes theirs, and is made if it is not there.
pub async fn open(
    store: &dyn Store,
    path: &Path,
    disk: Box<dyn Disk>,
    takes_other: bool,
) -> Result<Landing, FilesError> {
    if let Some(id) = store.landing_id().await?.filter(|_| !takes_other) {
        return Ok(Landing::open_known(path, disk, &id)?);
    }
    // The marker is durable before the records tell of it: after a crash between, it is found.
    let landing = Landing::open_on(path, disk).map_err(OpenError::from)?;
    store.set_landing_id(landing.id()).await?;
    Ok(landing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{
        landing::{MARKER, RealDisk},
        store::memory::MemoryStore,
    };

    async fn open_on(store: &MemoryStore, path: &Path) -> Result<Landing, FilesError> {
        open(store, path, Box::new(RealDisk), false).await
    }

    fn is_not_ours(opened: &Result<Landing, FilesError>) -> bool {
        matches!(opened, Err(FilesError::Open(OpenError::NotOurs { .. })))
    }

    #[tokio::test]
    async fn a_directory_that_is_not_mounted_is_refused_and_not_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, files) = (MemoryStore::new(), dir.path().join("files"));
        drop(open_on(&store, &files).await.expect("the first start"));
        drop(open_on(&store, &files).await.expect("known"));

        std::fs::rename(&files, dir.path().join("away")).expect("moved");
        assert!(is_not_ours(&open_on(&store, &files).await));
        assert!(!files.exists(), "nothing was made");
        // The mount point, empty.
        std::fs::create_dir(&files).expect("made");
        assert!(is_not_ours(&open_on(&store, &files).await));
        assert_eq!(std::fs::read_dir(&files).expect("listed").count(), 0, "nothing was written");
        // Another disk.
        drop(open_on(&MemoryStore::new(), &files).await.expect("another server's"));
        assert!(is_not_ours(&open_on(&store, &files).await));

        std::fs::remove_dir_all(&files).expect("removed");
        std::fs::rename(dir.path().join("away"), &files).expect("back");
        drop(open_on(&store, &files).await.expect("mounted again"));
    }

    #[tokio::test]
    async fn another_directory_is_taken_on_purpose() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = MemoryStore::new();
        drop(open_on(&store, &dir.path().join("old")).await.expect("the first start"));
        let new = dir.path().join("new");
        let taken = open(&store, &new, Box::new(RealDisk), true).await.expect("on purpose");
        let id = taken.id().to_owned();
        drop(taken);

        let again = open_on(&store, &new).await.expect("its own now");

        assert_eq!(again.id(), id);
        assert!(is_not_ours(&open_on(&store, &dir.path().join("old")).await));
    }

    #[tokio::test]
    async fn records_without_an_id_adopt_a_marked_directory() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let first = open_on(&MemoryStore::new(), dir.path()).await.expect("opened");
        let id = first.id().to_owned();
        drop(first);

        let other = open_on(&MemoryStore::new(), dir.path()).await.expect("opened");

        assert_eq!(other.id(), id);
        let marker = std::fs::metadata(dir.path().join(MARKER)).expect("there");
        assert_eq!(marker.permissions().mode() & 0o777, 0o600);
    }
}
