//! How much room there is for files: the water marks, and what the last look at the disk found.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Landing, LandingError,
    disk::Space,
    root::{MARKER, Root},
};
use crate::{ids::UnixMs, limits};

/// Free bytes below which nothing new is begun, and above which it goes on. Between the two it stays
/// as it was, so that one small file more or less does not turn everything on and off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// `None`: the smaller of 1 GiB and a twentieth of the disk.
    pub low: Option<u64>,
    /// `None`: twice the low one. Never less than that one.
    pub high: Option<u64>,
}

impl Marks {
    /// For whoever does not mind how full the disk is.
    pub const NONE: Self = Self { low: Some(0), high: Some(0) };

    /// Returns the low mark and the high one, on a disk of so many bytes.
    pub fn on(self, all: u64) -> (u64, u64) {
        let low = self.low.unwrap_or(limits::DISK_FREE_MIN_BYTES.min(all / 20));
        (low, self.high.unwrap_or(low.saturating_mul(2)).max(low))
    }
}

/// Whether the disk takes new files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// Less than the low mark is free, or was, and not yet more than the high one.
    Low,
    ReadOnly,
    /// The directory is not where it was: its file system is not mounted, or fails at a look.
    Gone,
}

impl Room {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enough => "ok",
            Self::Low => "low",
            Self::ReadOnly => "read-only",
            Self::Gone => "gone",
        }
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy)]
pub struct Gauge {
    pub room: Room,
    /// Of `room`.
    pub since: UnixMs,
    pub free: u64,
    pub all: u64,
}

/// The latest gauge.
#[derive(Debug)]
pub(super) struct Gauged(Mutex<Gauge>);

impl Gauged {
    pub(super) fn new() -> Self {
        let gauge = Gauge { room: Room::Enough, since: UnixMs::now(), free: 0, all: 0 };
        Self(Mutex::new(gauge))
    }

    fn lock(&self) -> MutexGuard<'_, Gauge> {
        // It is replaced in one piece.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Landing {
    /// What the last look found.
    pub fn gauge(&self) -> Gauge {
        *self.gauged.lock()
    }

    /// Looks whether the directory is still there, and how much room there is. Returns what the look
    /// before found, and what this one did.
    pub fn look_around(&self) -> (Gauge, Gauge) {
        let found = self.find_again().and_then(|root| {
            let failed = |source| self.of_root("look at", source);
            self.disk.look(root.dir()).map_err(failed)
        });
        let mut gauge = self.gauged.lock();
        let before = *gauge;
        let (room, free, all) = match &found {
            Ok(space) => (self.room(before.room, space), space.free, space.all),
            Err(_) => (Room::Gone, 0, 0),
        };
        let since = if room == before.room { before.since } else { UnixMs::now() };
        *gauge = Gauge { room, since, free, all };
        if room != before.room {
            self.tell(&gauge, found.err());
        }
        (before, *gauge)
    }

    fn room(&self, before: Room, space: &Space) -> Room {
        let (low, high) = self.marks.on(space.all);
        if space.is_read_only {
            Room::ReadOnly
        } else if space.free < low || (before != Room::Enough && space.free <= high.min(space.all))
        {
            Room::Low
        } else {
            Room::Enough
        }
    }

    /// One line for each change.
    fn tell(&self, gauge: &Gauge, why: Option<LandingError>) {
        let (path, free) = (self.path.display(), gauge.free);
        let (low, high) = self.marks.on(gauge.all);
        match gauge.room {
            Room::Enough => tracing::info!(%path, free, "there is room for files"),
            Room::Low => tracing::warn!(
                %path, free, low, high, "the disk is low: nothing new is begun until more is free"
            ),
            Room::ReadOnly => tracing::warn!(%path, "the disk is read-only: nothing new is begun"),
            Room::Gone => {
                let why = why.map(|err| format!("{err}: {}", err.source));
                tracing::error!(
                    %path, why, marker = MARKER, id = self.id,
                    "the directory of files is gone: nothing new is begun until it is back"
                );
            }
        }
    }

    /// Refuses what would leave too little space. A size is a client's word: it must not fill the
    /// disk, not even by what is reserved for it.
    pub(super) fn find_space(
        &self,
        root: &Root,
        name: &str,
        bytes: u64,
    ) -> Result<(), LandingError> {
        let failed =
            |source| LandingError { action: "find space for", name: name.to_owned(), source };
        let Space { free, all, .. } = self.disk.space(root.dir()).map_err(failed)?;
        let (low, _) = self.marks.on(all);
        if self.gauge().room == Room::Low || bytes.saturating_add(low) > free {
            return Err(failed(std::io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    /// Whether so many bytes more would find room, as far as the last look knows.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        let gauge = self.gauge();
        let (low, _) = self.marks.on(gauge.all);
        gauge.room == Room::Enough && bytes.saturating_add(low) <= gauge.free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn marks_that_are_not_set_follow_the_disk() {
        assert_eq!(Marks::default().on(1000 * GIB), (GIB, 2 * GIB));
        assert_eq!(Marks::default().on(1000), (50, 100));
        let low = Marks { low: Some(7), high: None };
        assert_eq!(low.on(1000), (7, 14));
        assert_eq!(Marks { low: Some(7), high: Some(9) }.on(1000), (7, 9));
    }

    #[test]
    fn what_is_low_stays_low_until_the_high_mark() {
        let dir = tempfile::tempdir().expect("a directory");
        let marks = Marks { low: Some(100), high: Some(200) };
        let landing = Landing::open(dir.path()).expect("opened").with_marks(marks);
        let space = |free| Space { free, all: 1000, is_read_only: false };

        assert_eq!(landing.room(Room::Enough, &space(100)), Room::Enough);
        assert_eq!(landing.room(Room::Enough, &space(99)), Room::Low);
        assert_eq!(landing.room(Room::Low, &space(200)), Room::Low);
        assert_eq!(landing.room(Room::Low, &space(201)), Room::Enough);
        let read_only = Space { is_read_only: true, ..space(900) };
        assert_eq!(landing.room(Room::Enough, &read_only), Room::ReadOnly);
        assert_eq!(landing.room(Room::ReadOnly, &space(150)), Room::Low);
    }
}
