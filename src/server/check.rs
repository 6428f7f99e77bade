//! `fts-server check`: brings records and files in line as every start does, while no server runs,
//! and says what it found. With a scrub it reads every landed file again.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    sync::Arc,
};

use super::{
    coordinator::{Coordinator, Parts, Repaired, Retention, attempt_of},
    error::Error,
    landing::Landing,
    metrics::Metrics,
    quotas::QuotaLimits,
    store::{Records, TransferFilter},
};
use crate::{
    ids::{AttemptId, Digest, TransferId},
    limits,
    shutdown::Shutdown,
    transfer::{Content, State, Transfer},
};

/// What was done, and what only people can settle.
#[derive(Debug, Default)]
pub struct Report {
    pub repaired: Repaired,
    /// Landed files that were looked at.
    pub files: u64,
    pub bytes: u64,
    pub scrubbed: bool,
    pub problems: Vec<Problem>,
}

/// What no start repairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The record says that it landed, and there is no file.
    Lost(TransferId),
    Size {
        transfer: TransferId,
        expected: u64,
        got: u64,
    },
    /// The bytes are not those that were verified.
    Damaged {
        transfer: TransferId,
        expected: Digest,
        got: Digest,
    },
    /// The file cannot be read.
    Unreadable {
        transfer: TransferId,
        why: String,
    },
    /// A landed file that no record names.
    Unknown(AttemptId),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(id) => write!(f, "{id}: COMPLETE, but its file is gone"),
            Self::Size { transfer, expected, got } => {
                write!(f, "{transfer}: its file has {got} bytes, not {expected}")
            }
            Self::Damaged { transfer, expected, got } => {
                write!(f, "{transfer}: its file has the BLAKE3 {got}, not {expected}")
            }
            Self::Unreadable { transfer, why } => write!(f, "{transfer}: {why}"),
            Self::Unknown(attempt) => {
                write!(f, "{attempt}: a landed file without a record; left alone")
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "PROBLEM {problem}")?;
        }
        let Repaired { adopted, interrupted, kept, dropped, removed } = &self.repaired;
        writeln!(
            f,
            "settled: {adopted} landed files recorded, {interrupted} attempts interrupted, \
             {kept} partial files kept and {dropped} dropped, {removed} unwanted files removed"
        )?;
        let how = if self.scrubbed { "read again" } else { "looked at (--scrub reads them again)" };
        writeln!(f, "{} landed files {how}, {} bytes", self.files, self.bytes)?;
        write!(f, "{} problems", self.problems.len())
    }
}

/// Checks what a store and a landing hold. No server may use them meanwhile.
pub async fn check(records: Records, landing: Landing, scrub: bool) -> Result<Report, Error> {
    let coordinator = Coordinator::new(Parts {
        store: records.store,
        credentials: records.credentials,
        landing: Arc::new(landing),
        metrics: Arc::new(Metrics::new()),
        shutdown: Shutdown::new(),
        heartbeat: limits::HEARTBEAT,
        retention: Retention::default(),
        quotas: QuotaLimits::default(),
        uploads_max: limits::UPLOADS_MAX,
    });
    let repaired = coordinator.repair().await?;
    let mut report = Report { repaired, scrubbed: scrub, ..Report::default() };
    let filter = TransferFilter { client: None, states: vec![State::Complete] };
    let mut before = None;
    loop {
        let page = coordinator.store.transfers(&filter, before, limits::PAGE_SIZE_MAX).await?;
        for transfer in page.iter().filter(|transfer| transfer.content == Content::Kept) {
            report.look_at(&coordinator, transfer, scrub).await?;
        }
        before = page.last().map(|transfer| transfer.id);
        if before.is_none() {
            break;
        }
    }
    for attempt in coordinator.on_disk(Landing::published).await? {
        if coordinator.store.transfer(attempt.transfer).await?.is_none() {
            report.problems.push(Problem::Unknown(attempt));
        }
    }
    coordinator.store.close().await;
    Ok(report)
}

impl Report {
    async fn look_at(
        &mut self,
        coordinator: &Arc<Coordinator>,
        transfer: &Transfer,
        scrub: bool,
    ) -> Result<(), Error> {
        let (id, attempt) = (transfer.id, attempt_of(transfer));
        let expected = transfer.file.as_ref().map_or(0, |file| file.size_bytes);
        let read = move |landing: &Landing| {
            let file = match landing.read(attempt) {
                Ok(file) => file,
                Err(err) if err.is_not_found() => return Ok(Err(Problem::Lost(id))),
                Err(err) => {
                    return Ok(Err(Problem::Unreadable { transfer: id, why: err.to_string() }));
                }
            };
            let unreadable =
                |err: io::Error| Problem::Unreadable { transfer: id, why: err.to_string() };
            Ok(size_and_digest(file, scrub).map_err(unreadable))
        };
        self.files += 1;
        let (size, digest) = match coordinator.on_disk(read).await? {
            Ok(found) => found,
            Err(problem) => {
                self.problems.push(problem);
                return Ok(());
            }
        };
        self.bytes += size;
        if size != expected {
            self.problems.push(Problem::Size { transfer: id, expected, got: size });
        } else if let (Some(got), Some(finish)) = (digest, transfer.finish)
            && got != finish.digest
        {
            let expected = finish.digest;
            self.problems.push(Problem::Damaged { transfer: id, expected, got });
        }
        Ok(())
    }
}

/// Returns the size of a file, and the digest of its bytes if they are to be read.
fn size_and_digest(mut file: File, scrub: bool) -> io::Result<(u64, Option<Digest>)> {
    let size = file.metadata()?.len();
    if !scrub {
        return Ok((size, None));
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; limits::CHUNK_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, Some(hasher.finalize().into()))),
            read => hasher.update(&buffer[..read]),
        };
    }
}
