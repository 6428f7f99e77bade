//! Programs that are not ours speak with the real server: grpcurl, by reflection alone, and a
//! client in Python that knows nothing but the `.proto` files.

#![cfg(feature = "server")]

mod common;

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use common::tools;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far beyond what any step takes; a step that takes longer has failed.
const WAIT: Duration = Duration::from_mins(1);

#[test]
#[ignore = "test-all: needs grpcurl"]
fn grpcurl_finds_everything_by_reflection() {
    let Some(grpcurl) = tools::tool("grpcurl_finds_everything_by_reflection", "grpcurl") else {
        return;
    };
    let server = Server::start(grpcurl);

    let services = server.grpcurl_text(&["list"]);
    let control = server.grpcurl_text(&["describe", "fts.v1.Control"]);
    let health = server.call("grpc.health.v1.Health/Check", &json!({}));
    let unknown = server
        .call_fails("fts.v1.Control/TriggerDownload", &json!({"client_id": "never-registered"}));

    let services: Vec<&str> = services.lines().collect();
    for service in ["fts.v1.Control", "fts.v1.FileTransfer", "grpc.health.v1.Health"] {
        assert!(services.contains(&service), "{service} is not in {services:?}");
    }
    assert!(control.contains("rpc TriggerDownload"), "{control}");
    assert_eq!(health["status"], "SERVING");
    assert!(unknown.contains("NotFound") && unknown.contains("UNKNOWN_CLIENT"), "{unknown}");
}

#[test]
#[ignore = "test-all: needs grpcurl, and Python with grpcio, grpcio-tools and blake3"]
fn a_client_in_python_delivers_what_grpcurl_asks_for() {
    let Some(mut world) = World::start("a_client_in_python_delivers_what_grpcurl_asks_for") else {
        return;
    };
    // Three whole chunks and a short one.
    let wanted = world.share("a b.bin", &bytes(3 * (1 << 20) + 4321));

    let asked = world.server.call(
        "fts.v1.Control/TriggerDownload",
        &json!({"client_id": "py-1", "path": wanted, "request_id": "once"}),
    );
    let again = world.server.call(
        "fts.v1.Control/TriggerDownload",
        &json!({"client_id": "py-1", "path": wanted, "request_id": "once"}),
    );
    let id = asked["transfer"]["id"].as_str().expect("an id").to_owned();
    let watched = world.server.watch(&id);
    let receipt = world.client.wait_for("receipt", &id);
    world.client.wait_for("report_ack", &id);

    assert_eq!(again["transfer"]["id"], id, "one request id, one transfer");
    assert_eq!(watched.first().expect("an event")["kind"], "KIND_CURRENT");
    assert_eq!(watched.last().expect("an event")["transfer"]["state"], "STATE_COMPLETE");
    world.assert_landed(&id, &wanted);
    assert_eq!(receipt["blake3"], world.server.transfer(&id)["digest"]);
}

#[test]
#[ignore = "test-all: needs grpcurl, and Python with grpcio, grpcio-tools and blake3"]
fn a_trigger_without_a_path_brings_the_default_file_of_a_client_in_python() {
    let name = "a_trigger_without_a_path_brings_the_default_file_of_a_client_in_python";
    let Some(world) = World::start(name) else { return };
    let wanted = world.share(DEFAULT_FILE, b"short");

    let id = world.trigger(&json!({"client_id": "py-1"}));
    let watched = world.server.watch(&id);

    assert_eq!(watched.last().expect("an event")["transfer"]["state"], "STATE_COMPLETE");
    world.assert_landed(&id, &wanted);
}

#[test]
#[ignore = "test-all: needs grpcurl, and Python with grpcio, grpcio-tools and blake3"]
fn what_a_client_in_python_refuses_ends_with_its_reason() {
    let name = "what_a_client_in_python_refuses_ends_with_its_reason";
    let Some(world) = World::start(name) else { return };
    let missing = world.dir.path().join("share/missing");
    let outside = world.dir.path().join("outside");
    fs::write(&outside, "secret").expect("written");
    let cases =
        [(missing, "FAIL_REASON_SOURCE_NOT_FOUND"), (outside, "FAIL_REASON_DENIED_BY_POLICY")];

    for (path, reason) in cases {
        let id = world.trigger(&json!({"client_id": "py-1", "path": path}));
        let watched = world.server.watch(&id);

        let transfer = &watched.last().expect("an event")["transfer"];
        assert_eq!(transfer["state"], "STATE_FAILED", "{transfer}");
        assert_eq!(transfer["failure"]["reason"], reason, "{transfer}");
        assert_eq!(transfer["location"], Value::Null, "{transfer}");
    }
}

/// The name of the Python client's default file, beneath its directory.
const DEFAULT_FILE: &str = "default.bin";

/// The real server, with the client in Python attached to it.
struct World {
    client: Process,
    server: Server,
    dir: TempDir,
}

impl World {
    /// Starts both; `None`, told to the user, if a tool is missing.
    fn start(test: &str) -> Option<Self> {
        let python = tools::python(test, &["grpc", "grpc_tools.protoc", "blake3"])?;
        let server = Server::start(tools::tool(test, "grpcurl")?);
        let dir = tempfile::tempdir().expect("a directory");
        let share = dir.path().join("share");
        fs::create_dir(&share).expect("a directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/client.py");
        let mut command = Command::new(python);
        command.arg(script).arg("--dir").arg(&share);
        command.args(["--server", &server.address, "--client-id", "py-1"]);
        command.args(["--default-file", DEFAULT_FILE]);
        let mut client = Process::start(command, &Stream::Stdout);
        client.wait_for_event(|event| event["event"] == "welcome");
        Some(Self { client, server, dir })
    }

    /// Puts a file where the client may read it.
    fn share(&self, name: &str, content: &[u8]) -> PathBuf {
        // As the client spells it: without links.
        let dir = self.dir.path().canonicalize().expect("it exists");
        let path = dir.join("share").join(name);
        fs::write(&path, content).expect("written");
        path
    }

    fn trigger(&self, request: &Value) -> String {
        let answer = self.server.call("fts.v1.Control/TriggerDownload", request);
        answer["transfer"]["id"].as_str().expect("an id").to_owned()
    }

    /// Compares the record and the bytes at its location with the source.
    fn assert_landed(&self, id: &str, source: &Path) {
        let transfer = self.server.transfer(id);
        let wanted = fs::read(source).expect("the source");
        let location = transfer["location"].as_str().expect("a location");
        assert_eq!(transfer["state"], "STATE_COMPLETE", "{transfer}");
        assert_eq!(transfer["size"], wanted.len().to_string());
        assert_eq!(transfer["digest"], blake3::hash(&wanted).to_hex().as_str());
        assert!(fs::read(location).expect("the landed file") == wanted, "other bytes landed");
    }
}

/// The real server on a port of its own, and grpcurl to speak with it.
struct Server {
    address: String,
    grpcurl: PathBuf,
    // Ends before its directory goes.
    _process: Process,
    _dir: TempDir,
}

impl Server {
    fn start(grpcurl: PathBuf) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port_file = dir.path().join("port");
        let mut command = Command::new(env!("CARGO_BIN_EXE_fts-server"));
        command.args(["--listen", "127.0.0.1:0", "--log-format", "text"]);
        command.arg("--data-dir").arg(dir.path().join("data"));
        command.arg("--port-file").arg(&port_file).args(["--disk-low", "1KB"]);
        let mut process = Process::start(command, &Stream::Stderr);
        let address = process.wait_until(|| {
            let text = fs::read_to_string(&port_file).ok()?;
            text.trim().parse::<SocketAddr>().ok().map(|address| address.to_string())
        });
        Self { address, grpcurl, _process: process, _dir: dir }
    }

    fn grpcurl(&self, args: &[&str]) -> Output {
        let (symbol, flags) = args.split_last().expect("an argument");
        // `list` and `describe` come after the address, and so does a method.
        let (flags, verb) = match flags {
            ["describe"] => (&flags[..0], Some("describe")),
            _ => (flags, None),
        };
        let mut command = Command::new(&self.grpcurl);
        command.args(["-plaintext", "-max-time", "60"]).args(flags).arg(&self.address);
        command.args(verb).arg(symbol).stdin(Stdio::null());
        command.output().expect("grpcurl runs")
    }

    fn grpcurl_text(&self, args: &[&str]) -> String {
        let output = self.grpcurl(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "grpcurl {args:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Calls a method with one answer.
    fn call(&self, method: &str, request: &Value) -> Value {
        let answer = self.grpcurl_text(&["-d", &request.to_string(), method]);
        serde_json::from_str(&answer).expect("one message")
    }

    /// Calls a method that must refuse; returns what grpcurl says.
    fn call_fails(&self, method: &str, request: &Value) -> String {
        let output = self.grpcurl(&["-d", &request.to_string(), method]);
        assert!(!output.status.success(), "{method} took {request}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Follows a transfer to its end.
    fn watch(&self, id: &str) -> Vec<Value> {
        let request = json!({"transfer_id": id}).to_string();
        let answers = self.grpcurl_text(&["-d", &request, "fts.v1.Control/WatchTransfers"]);
        let events = serde_json::Deserializer::from_str(&answers).into_iter();
        events.map(|event| event.expect("a message")).collect()
    }

    fn transfer(&self, id: &str) -> Value {
        self.call("fts.v1.Control/GetTransfer", &json!({"transfer_id": id}))["transfer"].take()
    }
}

/// Which output of a process is read line by line.
enum Stream {
    Stdout,
    Stderr,
}

/// A child that ends with its owner.
struct Process {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// Starts `command` in an environment that has nothing but a `PATH`.
    fn start(mut command: Command, stream: &Stream) -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", env::temp_dir()).stdin(Stdio::null());
        match stream {
            Stream::Stdout => command.stdout(Stdio::piped()),
            Stream::Stderr => command.stdout(Stdio::null()).stderr(Stdio::piped()),
        };
        let mut child = command.spawn().expect("it starts");
        let output: Box<dyn Read + Send> = match stream {
            Stream::Stdout => Box::new(child.stdout.take().expect("piped")),
            Stream::Stderr => Box::new(child.stderr.take().expect("piped")),
        };
        let (sender, lines) = channel();
        thread::spawn(move || {
            // Read to its end, whoever listens, so that the child is never blocked by a full pipe.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _nobody_listens = sender.send(line);
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits until `probe` finds something, looking after each line of output and now and then.
    fn wait_until<T>(&mut self, probe: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + WAIT;
        loop {
            if let Some(found) = probe() {
                return found;
            }
            assert!(Instant::now() < deadline, "waited in vain; output: {:#?}", self.seen);
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("it ended: {:#?}", self.seen),
            }
        }
    }

    /// Waits for the event `name` of a transfer.
    fn wait_for(&mut self, name: &str, transfer_id: &str) -> Value {
        self.wait_for_event(|event| event["event"] == name && event["transfer_id"] == transfer_id)
    }

    /// Waits for a JSON line that `is_wanted`; each line is looked at once.
    fn wait_for_event(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + WAIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|err| {
                panic!("no such event ({err}); output: {:#?}", self.seen);
            });
            let event: Value = serde_json::from_str(&line).expect("a JSON line");
            if is_wanted(&event) {
                return event;
            }
            self.seen.push(line);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to kill.
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Bytes without a pattern that a mixed-up chunk could hide in.
fn bytes(len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    blake3::Hasher::new().update(b"real_clients").finalize_xof().fill(&mut content);
    content
}
