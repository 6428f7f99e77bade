//! A store and a disk of which the n-th call fails, or is the last one before the server dies.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;

use crate::{
    audit_head::AuditHead,
    ids::{ClientId, SessionEpoch, TransferId, UnixMs},
    server::{
        landing::{Disk, RealDisk, Space},
        store::{
            Applied, Claim, Claimant, ClientRecord, Created, Events, Party, SaidHead,
            SessionOpening, Store, StoreError, TransferFilter, Usage, memory::MemoryStore,
        },
    },
    transfer::{Moment, State, Step, Transfer},
};

/// What goes wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A verb of the store fails, and changed nothing.
    StoreFails,
    /// A verb of the store fails, and changed everything.
    StoreAnswerLost,
    DiskFails,
    DiskFull,
    /// The server dies: from here on nothing of it reaches store or disk.
    Death,
}

/// What is to go wrong, and what has.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// After so many calls that it could hit.
    armed: Option<(Fault, u8)>,
    dead: bool,
    /// Since the last look.
    fired: bool,
    /// Since the server began.
    in_this_life: bool,
    disk_changes: u64,
}

impl Faults {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic")
    }

    pub fn arm(&self, fault: Fault, after: u8) {
        self.inner().armed = Some((fault, after));
    }

    /// Whatever was to go wrong will not.
    pub fn disarm(&self) {
        self.inner().armed = None;
    }

    pub fn is_dead(&self) -> bool {
        self.inner().dead
    }

    /// Another life begins.
    pub fn revive(&self) {
        let disk_changes = self.inner().disk_changes + 1;
        *self.inner() = Inner { disk_changes, ..Inner::default() };
    }

    /// Whether something went wrong since this was last asked.
    pub fn take_fired(&self) -> bool {
        std::mem::take(&mut self.inner().fired)
    }

    pub fn has_fired_now(&self) -> bool {
        self.inner().fired
    }

    /// Whether something went wrong since the server began.
    pub fn has_fired(&self) -> bool {
        self.inner().in_this_life
    }

    /// Grows with every call that may change the disk.
    pub fn disk_changes(&self) -> u64 {
        self.inner().disk_changes
    }

    /// Returns what goes wrong with a call that only these can hit.
    fn call(&self, hits: &[Fault]) -> Option<Fault> {
        let mut inner = self.inner();
        if inner.dead {
            return Some(Fault::Death);
        }
        let (fault, after) = inner.armed.filter(|(fault, _)| hits.contains(fault))?;
        if after > 0 {
            inner.armed = Some((fault, after - 1));
            return None;
        }
        inner.armed = None;
        inner.fired = true;
        inner.in_this_life = true;
        inner.dead = fault == Fault::Death;
        Some(fault)
    }

    fn disk_call(&self) -> io::Result<()> {
        self.inner().disk_changes += 1;
        match self.call(&[Fault::DiskFails, Fault::DiskFull, Fault::Death]) {
            None => Ok(()),
            Some(Fault::DiskFull) => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(io::Error::other("the disk fails")),
        }
    }
}

/// The real disk, less what costs time and can make no difference here, with faults.
pub struct FaultyDisk(pub Arc<Faults>);

impl Disk for FaultyDisk {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        self.0.disk_call()?;
        RealDisk.create_new(dir, name)
    }

    fn reserve(&self, _: &File, _: u64) -> io::Result<()> {
        self.0.disk_call()
    }

    fn look(&self, _: &OwnedFd) -> io::Result<Space> {
        Ok(Space { free: 1 << 50, all: 1 << 50, is_read_only: false })
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.disk_call()?;
        // The rest of a chunk is zeros.
        let written = &data[..data.len().min(WRITTEN_BYTES_MAX)];
        RealDisk.write_at(file, written, offset)?;
        if written.len() < data.len() { file.set_len(offset + data.len() as u64) } else { Ok(()) }
    }

    fn write_out(&self, _: &File, _: u64, _: u64) {}

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        self.0.disk_call()?;
        RealDisk.truncate(file, len)
    }

    fn sync_data(&self, _: &File) -> io::Result<()> {
        self.0.disk_call()
    }

    fn rename(&self, old: (&OwnedFd, &str), new: (&OwnedFd, &str)) -> io::Result<()> {
        self.0.disk_call()?;
        RealDisk.rename(old, new)
    }

    fn sync_dir(&self, _: &OwnedFd) -> io::Result<()> {
        self.0.disk_call()
    }

    fn remove(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.0.disk_call()?;
        RealDisk.remove(dir, name)
    }

    fn make_dir(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.0.disk_call()?;
        RealDisk.make_dir(dir, name)
    }
}

/// The records, which outlive the server, with faults.
pub struct FaultyStore {
    pub records: Arc<MemoryStore>,
    pub faults: Arc<Faults>,
}

/// Calls a verb of the records, unless a fault hits it.
macro_rules! call {
    ($self:ident, $verb:ident($($argument:expr),*)) => {{
        match $self.faults.call(&[Fault::StoreFails, Fault::StoreAnswerLost, Fault::Death]) {
            None => $self.records.$verb($($argument),*).await,
            Some(Fault::StoreAnswerLost) => {
                $self.records.$verb($($argument),*).await?;
                Err(unavailable())
            }
            Some(_) => Err(unavailable()),
        }
    }};
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("the store fails".into())
}

#[async_trait]
impl Store for FaultyStore {
    async fn ping(&self) -> Result<(), StoreError> {
        call!(self, ping())
    }

    async fn landing_id(&self) -> Result<Option<String>, StoreError> {
        call!(self, landing_id())
    }

    async fn set_landing_id(&self, id: &str) -> Result<(), StoreError> {
        call!(self, set_landing_id(id))
    }

    async fn open_session(
        &self,
        opening: &SessionOpening,
        at: UnixMs,
    ) -> Result<SessionEpoch, StoreError> {
        call!(self, open_session(opening, at))
    }

    async fn note_audit_head(
        &self,
        client: &ClientId,
        session: SessionEpoch,
        said: SaidHead,
        at: UnixMs,
    ) -> Result<Option<AuditHead>, StoreError> {
        call!(self, note_audit_head(client, session, said, at))
    }

    async fn note_seen(&self, seen: &[(ClientId, UnixMs)]) -> Result<(), StoreError> {
        call!(self, note_seen(seen))
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
        call!(self, client(id))
    }

    async fn clients(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientRecord>, StoreError> {
        call!(self, clients(after, limit))
    }

    async fn create(&self, transfer: &Transfer) -> Result<Created, StoreError> {
        call!(self, create(transfer))
    }

    async fn claim(&self, claimant: &Claimant, now: Moment) -> Result<Claim, StoreError> {
        call!(self, claim(claimant, now))
    }

    async fn due_clients(
        &self,
        now: UnixMs,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientId>, StoreError> {
        call!(self, due_clients(now, after, limit))
    }

    async fn apply(&self, id: TransferId, steps: &[(Step, Moment)]) -> Result<Applied, StoreError> {
        call!(self, apply(id, steps))
    }

    async fn transfer(&self, id: TransferId) -> Result<Option<Transfer>, StoreError> {
        call!(self, transfer(id))
    }

    async fn transfers(
        &self,
        filter: &TransferFilter,
        before: Option<TransferId>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        call!(self, transfers(filter, before, limit))
    }

    async fn overdue(
        &self,
        at: UnixMs,
        offered_before: UnixMs,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        call!(self, overdue(at, offered_before, limit))
    }

    async fn expired_content(
        &self,
        ended_before: Option<UnixMs>,
        bytes_max: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        call!(self, expired_content(ended_before, bytes_max, limit))
    }

    async fn clients_known(&self) -> Result<u64, StoreError> {
        call!(self, clients_known())
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        call!(self, counts())
    }

    async fn usage(&self, of: &Party, since: UnixMs) -> Result<Usage, StoreError> {
        call!(self, usage(of, since))
    }

    async fn last_event(&self) -> Result<u64, StoreError> {
        call!(self, last_event())
    }

    async fn events_after(&self, seq: u64, limit: u32) -> Result<Events, StoreError> {
        call!(self, events_after(seq, limit))
    }

    async fn prune_events(&self, before: UnixMs, keep_max: u64) -> Result<u64, StoreError> {
        call!(self, prune_events(before, keep_max))
    }

    async fn close(&self) {}
}

/// More than a journal's batch, and than what names a chunk.
const WRITTEN_BYTES_MAX: usize = 1024;
