//! Where a run is played: a directory that the programs find as they are meant to, and the programs.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Instant,
};

use tempfile::TempDir;

use crate::{
    common::{
        bytes,
        process::{Process, pause},
        server::PATIENCE,
    },
    point::Start,
    trace::Tracer,
};

pub const CLIENT: &str = "client-1";

/// A file that is asked for, under a request id of this name.
#[derive(Debug, Clone)]
pub struct Asked {
    pub name: &'static str,
    pub data: Vec<u8>,
}

/// A few chunks and a bit; one that lands in one piece; the largest that does.
pub fn plan() -> Vec<Asked> {
    let asked = |name, len, seed| Asked { name, data: bytes(len, seed) };
    vec![asked("LARGE", (5 << 20) + 3, 1), asked("SMALL", 5, 2), asked("LIVE", 64 << 10, 3)]
}

/// The paths of a run, and the names that they have in every run.
#[derive(Debug, Clone)]
pub struct Names {
    dir: PathBuf,
    shared: PathBuf,
    /// What is asked for, and the id of its transfer.
    ids: BTreeMap<&'static str, String>,
}

impl Names {
    /// Returns the name of a path; `None` if it is not the programs' own, or another in each run.
    pub fn name(&self, path: &Path) -> Option<String> {
        if let Ok(shared) = path.strip_prefix(&self.shared) {
            return Some(format!("{SHARED}{}", shared.to_str()?));
        }
        let mut text = path.strip_prefix(&self.dir).ok()?.to_str()?.to_owned();
        for (name, id) in &self.ids {
            if let Some(rest) = text.strip_prefix(&shard(id)) {
                text = format!("{}{rest}", shard_name(name));
            }
            text = text.replace(id, name);
        }
        let is_random = text.split('/').any(|part| {
            let is_shard = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_shard || part.split('.').next().is_some_and(|stem| stem.len() == 36)
        });
        let is_ours = ["data", "state"].iter().any(|dir| text.starts_with(dir));
        (is_ours && !is_random).then_some(text)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        if let Some(shared) = name.strip_prefix(SHARED) {
            return self.shared.join(shared);
        }
        let mut text = name.to_owned();
        for (name, id) in &self.ids {
            text = text.replace(&shard_name(name), &shard(id)).replace(name, id);
        }
        self.dir.join(text)
    }
}

const SHARED: &str = "shared/";

/// The directory in which a transfer's file lands.
fn shard(id: &str) -> String {
    format!("data/files/{}", &id[id.len() - 2..])
}

fn shard_name(name: &str) -> String {
    format!("data/files/of-{name}")
}

/// One run. The directory has `data` and `state`, the logs, and what `strace` wrote.
pub struct Stage {
    dir: TempDir,
    shared: PathBuf,
    pub plan: Vec<Asked>,
    /// What was answered to each request.
    pub ids: RefCell<BTreeMap<&'static str, String>>,
    /// The server's, once it has had one.
    port: u16,
    start: Start,
}

impl Stage {
    /// An empty one, whose client shares `shared`.
    pub fn empty(shared: &Path, plan: Vec<Asked>, start: Start) -> Self {
        let dir = TempDir::new().expect("a directory");
        let ids = RefCell::default();
        Self { dir, shared: shared.to_owned(), plan, ids, port: 0, start }
    }

    /// One that looks the same.
    pub fn copy(&self) -> Self {
        let copy = Self::empty(&self.shared, self.plan.clone(), self.start);
        copy_dir(&self.data(), &copy.data());
        // What was served is on record there.
        copy_dir(&self.state(), &copy.state());
        Self { ids: self.ids.clone(), ..copy }
    }

    pub fn start(&self) -> Start {
        self.start
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The client's.
    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn source(&self, asked: &Asked) -> String {
        self.shared.join(asked.name).to_str().expect("text").to_owned()
    }

    pub fn names(&self) -> Names {
        let ids = self.ids.borrow().clone();
        Names { dir: self.dir.path().to_owned(), shared: self.shared.clone(), ids }
    }

    /// Starts the server; it may end at any time.
    pub fn start_server(&mut self, tracer: Option<&Tracer>) -> Process {
        let (data, port_file) = (self.data(), self.path("port"));
        drop(fs::remove_file(&port_file));
        let listen = format!("127.0.0.1:{}", self.port);
        let args = [
            "--listen",
            &listen,
            "--data-dir",
            data.to_str().expect("text"),
            "--port-file",
            port_file.to_str().expect("text"),
            "--heartbeat",
            "2s",
        ];
        self.run(env!("CARGO_BIN_EXE_fts-server"), "server.log", tracer, &args)
    }

    /// Waits until the server listens, or has ended instead.
    pub fn listens(&mut self, server: &mut Process) -> Result<(), ExitStatus> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(address) = fs::read_to_string(self.path("port")) {
                let port = address.rsplit(':').next().and_then(|port| port.parse().ok());
                self.port = port.expect("an address");
                return Ok(());
            }
            if let Some(status) = server.ended() {
                return Err(status);
            }
            assert!(Instant::now() < until, "no address: {}", server.read_log());
            pause();
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn start_client(&self, tracer: Option<&Tracer>, more: &[&str]) -> Process {
        let (state, url) = (self.state(), self.url());
        let args = [
            "--server",
            &url,
            "--client-id",
            CLIENT,
            "--allow",
            self.shared.to_str().expect("text"),
            "--state-dir",
            state.to_str().expect("text"),
            "--status-port",
            "0",
            // One after the other, so that calls come in the same order in every run.
            "--max-uploads",
            "1",
        ];
        let args = [&args, more].concat();
        self.run(env!("CARGO_BIN_EXE_fts-client"), "client.log", tracer, &args)
    }

    fn run(&self, program: &str, log: &str, tracer: Option<&Tracer>, args: &[&str]) -> Process {
        let log = self.path(log);
        let Some(tracer) = tracer else { return Process::start(program, &log, args, &[]) };
        let mut all = tracer.arguments();
        all.push(program);
        all.extend(args);
        // All sockets on one thread, whose calls `strace` counts.
        Process::start(tracer.program(), &log, &all, &[("TOKIO_WORKER_THREADS", "1")])
    }

    /// Keeps the directory, for whoever looks into a failure, and returns it.
    pub fn keep(mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}

fn copy_dir(from: &Path, to: &Path) {
    let Ok(entries) = fs::read_dir(from) else { return };
    fs::create_dir(to).expect("made");
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("private");
    for entry in entries {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}
