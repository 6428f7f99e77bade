//! The files of the landing, and which of them there must be.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::{
    history::Size,
    upload::{Phase, Upload},
    world::World,
};
use crate::{
    ids::{AttemptId, TransferId},
    limits,
    server::coordinator::attempt_of,
    transfer::{Content, State, Transfer},
};

/// The names in the landing.
#[derive(Default)]
pub struct Files {
    pub partial: BTreeMap<String, Held>,
    pub published: BTreeSet<String>,
    /// As of this count of changes.
    pub at: Option<u64>,
}

/// What there is of a file that has not come whole.
#[derive(Default)]
pub struct Held {
    has_data: bool,
    journaled_bytes: u64,
}

impl Files {
    fn note_partial(&mut self, name: &str, len: u64) {
        match name.strip_suffix(".journal") {
            None => self.partial.entry(name.to_owned()).or_default().has_data = true,
            Some(id) => {
                // A header, and a record for each chunk.
                let bytes = len.saturating_sub(128) / 64 * limits::CHUNK_BYTES as u64;
                self.partial.entry(id.to_owned()).or_default().journaled_bytes = bytes;
            }
        }
    }
}

impl World {
    pub fn is_published(&self, attempt: AttemptId) -> bool {
        self.files.published.contains(&attempt.to_string())
    }

    /// Every file that is wanted is there, and no other.
    pub fn check_files(&mut self) -> Result<()> {
        self.look_at_files()?;
        let kept = self.told.transfers.values().filter(|t| t.content == Content::Kept);
        let mut published: BTreeSet<String> = kept.map(|t| attempt_of(t).to_string()).collect();
        let landed = self.uploads.iter().filter(|upload| upload.phase == Phase::Landed);
        published.extend(landed.map(|upload| upload.attempt.to_string()));
        ensure!(self.files.published.is_superset(&published), "a landed file is gone");
        let is_strict = !self.faults.has_fired();
        if is_strict {
            ensure!(self.files.published == published, "a file that nobody wants is published");
        }
        // A small file takes the place of what was kept, before its record says so.
        let landed = |u: &&Upload| u.phase == Phase::Landed && u.source.size == Size::Small;
        let landed = self.uploads.iter().filter(landed).map(|upload| upload.attempt.transfer);
        self.overstated.extend(landed);
        let writing = self.uploads.iter().filter(|upload| upload.has_partial());
        let writing: Vec<TransferId> = writing.map(|upload| upload.attempt.transfer).collect();
        for t in self.told.transfers.values() {
            let held = self.files.partial.get(&t.id.to_string());
            let journaled = held.map_or(0, |held| held.journaled_bytes);
            let is_writing = writing.contains(&t.id);
            let is_there = held.is_some_and(|held| held.has_data);
            ensure!(!is_writing || is_there, "the file of an upload is gone");
            // What has landed is no longer partial.
            let landed = |u: &Upload| u.attempt.transfer == t.id && u.phase == Phase::Landed;
            let is_there = t.kept_bytes <= journaled
                || self.uploads.iter().any(landed)
                || self.overstated.contains(&t.id);
            ensure!(!is_strict || is_there, "{journaled} are kept: {t:#?}");
        }
        Ok(())
    }

    pub fn look_at_files(&mut self) -> Result<()> {
        let at = Some(self.faults.disk_changes());
        if self.files.at == at {
            return Ok(());
        }
        self.files = Files { at, ..Files::default() };
        for dir in std::fs::read_dir(self.dir.join("files"))? {
            let dir = dir?;
            // The marker of the directory.
            if !dir.file_type()?.is_dir() {
                continue;
            }
            let is_partial = dir.file_name() == "partial";
            for file in std::fs::read_dir(dir.path())? {
                let file = file?;
                let name = file.file_name().to_string_lossy().into_owned();
                if is_partial {
                    self.files.note_partial(&name, file.metadata()?.len());
                } else {
                    self.files.published.insert(name);
                }
            }
        }
        Ok(())
    }

    /// Nothing is left of a transfer that is over and of which no upload runs.
    pub fn check_collected(&mut self, t: &Transfer) -> Result<()> {
        self.look_at_files()?;
        let is_over = matches!(t.state, State::Complete | State::Cancelled);
        let is_running = self.uploads.iter().any(|upload| upload.attempt.transfer == t.id);
        let is_left = self.files.partial.contains_key(&t.id.to_string());
        ensure!(!is_left || is_running || !is_over, "a partial file is left of {t:#?}");
        Ok(())
    }

    /// Returns how much a journal on the disk vouches for.
    pub fn kept_on_disk(&mut self, id: TransferId) -> Result<u64> {
        self.look_at_files()?;
        Ok(self.files.partial.get(&id.to_string()).map_or(0, |held| held.journaled_bytes))
    }

    /// A cancelled transfer's partial file is removed by a task of its own.
    pub async fn wait_for_collection(&self, id: TransferId) {
        tokio::task::yield_now().await;
        if let Some(held) = self.server().uploads.find(id).filter(|held| held.client().is_none()) {
            held.ended.cancelled().await;
        }
    }
}
