//! The real programs, as child processes that end with their test.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::server::PATIENCE;

/// A running program.
pub struct Process {
    child: Child,
    pub log: PathBuf,
}

impl Process {
    /// Starts a program with nothing of this process's environment but the path; its log goes to
    /// `log`. A server does not mind how full the disk of the tests is.
    pub fn start(program: &str, log: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let file = fs::OpenOptions::new().append(true).create(true).open(log).expect("a log");
        let mut command = Command::new(program);
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").expect("a PATH"));
        command.env("FTS_DISK_LOW", "1KB");
        command.envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("the program starts");
        Self { child, log: log.to_owned() }
    }

    pub fn id(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.id(), signal).expect("it runs");
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
    }

    /// Returns how it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is ours")
    }

    /// Waits for its end, and returns how it ended and how long that took.
    pub fn wait(mut self) -> (ExitStatus, Duration) {
        let since = Instant::now();
        let until = since + PATIENCE * 2;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return (status, since.elapsed());
            }
            assert!(Instant::now() < until, "it did not end: {}", self.read_log());
            pause();
        }
    }

    pub fn read_log(&self) -> String {
        let mut text = String::new();
        let file = fs::File::open(&self.log);
        file.and_then(|mut file| file.read_to_string(&mut text)).expect("a log");
        text
    }

    /// Waits until its log has `text`.
    pub fn logged(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.read_log().contains(text) {
            let ended = self.child.try_wait().expect("it is ours");
            assert!(ended.is_none(), "it ended ({ended:?}): {}", self.read_log());
            assert!(Instant::now() < until, "no {text:?} in: {}", self.read_log());
            pause();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The server's program.
pub struct ServerProcess {
    pub process: Process,
    pub address: std::net::SocketAddr,
}

impl ServerProcess {
    /// Starts it on `dir/data`; with `port` 0 it chooses one.
    pub fn start(dir: &Path, port: u16, more: &[&str]) -> Self {
        let data = dir.join("data");
        let port_file = dir.join("port");
        drop(fs::remove_file(&port_file));
        let listen = format!("127.0.0.1:{port}");
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        let (data, port_text) = (text(&data), text(&port_file));
        let mut args = vec!["--listen", &listen, "--data-dir", &data, "--port-file", &port_text];
        args.extend(more);
        let program = env!("CARGO_BIN_EXE_fts-server");
        let mut process = Process::start(program, &dir.join("server.log"), &args, &[]);
        let until = Instant::now() + PATIENCE;
        let address = loop {
            if let Ok(address) = fs::read_to_string(&port_file) {
                break address.parse().expect("an address");
            }
            let ended = process.child.try_wait().expect("it is ours");
            assert!(ended.is_none(), "it ended ({ended:?}): {}", process.read_log());
            assert!(Instant::now() < until, "no address: {}", process.read_log());
            pause();
        };
        process.logged("serving");
        Self { process, address }
    }
}

/// Between two looks at another process, of which no event tells.
#[allow(clippy::disallowed_methods)]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}
