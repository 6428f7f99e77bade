//! A disk that notes each call, waits, or fails.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, mpsc as sync_mpsc},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::PATIENCE;
use crate::server::landing::{Disk, RealDisk};

/// What a call to the disk does instead of working.
pub(super) type Fault = fn() -> io::Error;

#[derive(Default)]
pub(super) struct Plan {
    pub(super) calls: Vec<&'static str>,
    /// Calls until one fails.
    fault_in: Option<(usize, Fault)>,
    pub(super) had_fault: bool,
    /// The next sync says that it is there, and waits.
    gate: Option<(sync_mpsc::Sender<()>, sync_mpsc::Receiver<()>)>,
    /// A descriptor was used whose sync had failed.
    pub(super) has_tried_again: bool,
}

#[derive(Clone, Default)]
pub(super) struct TestDisk(Arc<Mutex<Plan>>);

impl TestDisk {
    pub(super) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().expect("no panic")
    }

    fn call(&self, call: &'static str) -> io::Result<()> {
        let mut plan = self.plan();
        plan.calls.push(call);
        match &mut plan.fault_in {
            Some((0, fault)) => {
                let err = fault();
                plan.fault_in = None;
                plan.had_fault = true;
                Err(err)
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub(super) fn count(&self, call: &str) -> usize {
        self.plan().calls.iter().filter(|c| **c == call).count()
    }

    pub(super) fn fail_in(&self, calls: usize, fault: Fault) {
        self.plan().fault_in = Some((calls, fault));
    }

    /// Makes the next sync wait; returns what tells that it does, and what lets it go on.
    pub(super) fn hold(&self) -> (sync_mpsc::Receiver<()>, sync_mpsc::Sender<()>) {
        let (here, is_here) = sync_mpsc::channel();
        let (go, goes) = sync_mpsc::channel();
        self.plan().gate = Some((here, goes));
        (is_here, go)
    }
}

/// Notes on a descriptor that its sync has failed; to a regular file the flag means nothing.
const FAILED: OFlags = OFlags::NONBLOCK;

impl Disk for TestDisk {
    fn create_new(&self, dir: &OwnedFd, name: &str) -> io::Result<File> {
        self.call("create")?;
        RealDisk.create_new(dir, name)
    }

    fn write_at(&self, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
        if let Err(err) = self.call("write") {
            // As a full disk does: some of it is written.
            RealDisk.write_at(file, &data[..data.len() * 2 / 3], offset)?;
            return Err(err);
        }
        RealDisk.write_at(file, data, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let gate = self.plan().gate.take();
        if let Some((here, goes)) = gate {
            here.send(()).expect("it is waited for");
            goes.recv_timeout(PATIENCE).expect("it is let go");
        }
        let flags = fcntl_getfl(file)?;
        if flags.contains(FAILED) {
            self.plan().has_tried_again = true;
        }
        if let Err(err) = self.call("sync") {
            fcntl_setfl(file, flags | FAILED)?;
            return Err(err);
        }
        RealDisk.sync_data(file)
    }

    fn truncate(&self, file: &File, len: u64) -> io::Result<()> {
        self.call("truncate")?;
        RealDisk.truncate(file, len)
    }

    fn rename(&self, old: (&OwnedFd, &str), new: (&OwnedFd, &str)) -> io::Result<()> {
        self.call("rename")?;
        RealDisk.rename(old, new)
    }

    fn sync_dir(&self, dir: &OwnedFd) -> io::Result<()> {
        self.call("sync directory")?;
        RealDisk.sync_dir(dir)
    }

    fn remove(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        self.call("remove")?;
        RealDisk.remove(dir, name)
    }
}
