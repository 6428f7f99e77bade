//! From inside the sandbox nothing gets out: this test starts itself again, lays the sandbox on as
//! the client does, and tries. And `strace` looks at the client itself.
#![cfg(target_os = "linux")]

mod common;

use std::{
    env, fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, ToSocketAddrs as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Instant,
};

use clap::Parser as _;
use common::{
    process::{Process, pause},
    server::{PATIENCE, TestServer},
    tools::tool,
};
use fts::client::{
    config::{Cli, Surroundings},
    sandbox::{Mode, Plan},
};
use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, netlink, sendto},
    process::{PidfdFlags, PidfdGetfdFlags},
};
use tempfile::TempDir;

/// Where the one that tries finds its site.
const SITE: &str = "FTS_TEST_SITE";

/// Listeners of this test, and a root with a canary beside it.
struct Site {
    dir: TempDir,
    allowed: TcpListener,
    other: TcpListener,
    _abstract: UnixListener,
    _socket: UnixListener,
}

impl Site {
    fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        for name in ["root", "state"] {
            fs::create_dir(dir.path().join(name)).expect("made");
        }
        fs::write(dir.path().join("root/open"), "open").expect("written");
        fs::write(dir.path().join("canary"), "canary").expect("written");
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let socket = UnixListener::bind_addr(&abstract_name(dir.path())).expect("a socket");
        // As the service manager and others listen.
        let in_root = UnixListener::bind(dir.path().join("root/socket")).expect("a socket");
        Self { dir, allowed: listen(), other: listen(), _abstract: socket, _socket: in_root }
    }

    /// Lets this test's program try, in a process of its own.
    fn attempt(&self, mode: &str) -> Output {
        let port =
            |listener: &TcpListener| listener.local_addr().expect("bound").port().to_string();
        Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "inside_the_sandbox", "--ignored", "--nocapture"])
            .env(SITE, self.dir.path())
            .env("FTS_TEST_MODE", mode)
            .env("FTS_TEST_ALLOWED", port(&self.allowed))
            .env("FTS_TEST_OTHER", port(&self.other))
            .output()
            .expect("run")
    }
}

fn abstract_name(dir: &Path) -> SocketAddr {
    SocketAddr::from_abstract_name(dir.to_str().expect("text")).expect("a name")
}

#[test]
fn nothing_gets_out_of_the_sandbox() {
    let site = Site::new();

    let output = site.attempt("require");

    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}\n{errors}");
    assert!(errors.contains("all was tried"), "{told}\n{errors}");
    assert_eq!(fs::read_to_string(site.dir.path().join("root/open")).expect("read"), "open");
    assert!(!site.dir.path().join("new").exists());
}

/// Not by itself: it is what [`nothing_gets_out_of_the_sandbox`] starts.
#[test]
#[ignore = "it is started by another test"]
fn inside_the_sandbox() {
    let Some(site) = env::var_os(SITE).map(PathBuf::from) else { return };
    let number = |name: &str| env::var(name).expect("told").parse::<u16>().expect("a port");
    let (allowed, other) = (number("FTS_TEST_ALLOWED"), number("FTS_TEST_OTHER"));
    let mode = Mode::parse(&env::var("FTS_TEST_MODE").expect("told")).expect("a mode");
    let held = plan(&site, allowed).apply(mode).expect("a sandbox");
    assert!(held.files && held.seccomp && held.no_new_privs, "{held:?}");

    what_is_allowed_works(&site, allowed);
    let mut leaks = Vec::new();
    let mut refused = |what: &str, tried: io::Result<()>| match tried {
        Err(err) if err.kind() == ErrorKind::PermissionDenied => {}
        tried => leaks.push(format!("{what}: {tried:?}")),
    };
    files_are_refused(&site, &mut refused);
    calls_are_refused(&mut refused);
    sockets_are_refused(&site, other, &mut refused);
    if held.network {
        refused("another port", TcpStream::connect(("127.0.0.1", other)).map(drop));
        refused("listening", TcpListener::bind("127.0.0.1:0").map(drop));
    }
    if held.scope {
        refused("an abstract socket", UnixStream::connect_addr(&abstract_name(&site)).map(drop));
        let parent = rustix::process::getppid().expect("a parent");
        let signal = rustix::process::test_kill_process(parent);
        refused("a signal", signal.map_err(Into::into));
    }
    assert!(leaks.is_empty(), "{leaks:#?}");
    eprintln!("all was tried");
}

/// The plan of a client with these files and this server.
fn plan(site: &Path, port: u16) -> Plan {
    let server = format!("http://127.0.0.1:{port}");
    let path = |name: &str| site.join(name).to_str().expect("text").to_owned();
    let (root, state) = (path("root"), path("state"));
    let args = ["fts-client", "--server", &server, "--allow", &root, "--state-dir", &state];
    let flags = Cli::parse_from(args).flags;
    let config = flags.resolve(&Surroundings::default()).expect("valid");
    Plan::new(&config, None, &Surroundings::default())
}

fn what_is_allowed_works(site: &Path, port: u16) {
    assert_eq!(fs::read_to_string(site.join("root/open")).expect("read"), "open");
    assert_eq!(fs::read_dir(site.join("root")).expect("listed").count(), 2);
    let state = site.join("state");
    fs::write(state.join("a.new"), "1").expect("written");
    fs::rename(state.join("a.new"), state.join("a")).expect("renamed");
    fs::write(state.join("a"), "2").expect("written again");
    fs::create_dir(state.join("audit")).expect("made");
    fs::rename(state.join("a"), state.join("audit/a")).expect("moved");
    fs::remove_file(state.join("audit/a")).expect("removed");
    TcpStream::connect(("127.0.0.1", port)).expect("the server's port");
    assert_ne!(("localhost", port).to_socket_addrs().expect("resolved").count(), 0);
    // A thread is no process.
    thread::spawn(|| ()).join().expect("a thread");
}

fn files_are_refused(site: &Path, refused: &mut impl FnMut(&str, io::Result<()>)) {
    let beside = site.join("new");
    refused("reading the canary", fs::read(site.join("canary")).map(drop));
    refused("reading /etc/passwd", fs::read("/etc/passwd").map(drop));
    refused("listing beside", fs::read_dir(site).map(drop));
    refused("writing in the root", fs::write(site.join("root/open"), "x"));
    refused("making in the root", fs::write(site.join("root/new"), "x"));
    refused("making beside", fs::write(&beside, "x"));
    refused("making in /tmp", fs::write(env::temp_dir().join("fts-escape"), "x"));
    refused("a directory", fs::create_dir(&beside));
    refused("removing", fs::remove_file(site.join("root/open")));
    refused("renaming", fs::rename(site.join("root/open"), site.join("root/new")));
    refused("a symbolic link", std::os::unix::fs::symlink("/etc", &beside));
    refused("a socket", UnixDatagram::bind(&beside).map(drop));
    let open = fs::File::open(site.join("root/open")).expect("opened");
    let flags = rustix::fs::ioctl_setflags(&open, rustix::fs::IFlags::NODUMP);
    refused("flags of a file", flags.map_err(Into::into));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    refused("a mode", fs::set_permissions(site.join("root/open"), mode));
    let out = fs::hard_link(site.join("root/open"), site.join("state/link"));
    // Between directories of other rights: the kernel calls that another device.
    let out = out.map_err(|err| match err.kind() {
        ErrorKind::CrossesDevices => ErrorKind::PermissionDenied.into(),
        _ => err,
    });
    refused("a hard link", out);
}

fn calls_are_refused(refused: &mut impl FnMut(&str, io::Result<()>)) {
    use std::os::unix::process::CommandExt as _;

    // EPERM is what seccomp says; Landlock would say EACCES, after a process was made.
    let by_seccomp = |err: io::Error| match Errno::from_io_error(&err) {
        Some(Errno::PERM) => err,
        _ => io::Error::other(err),
    };
    let program = Command::new("/bin/true").exec();
    refused("a program in place of this one", Err(by_seccomp(program)));
    let process = Command::new("/bin/true").spawn();
    refused("a process", process.map(drop).map_err(by_seccomp));
    let root = rustix::process::chroot("/");
    refused("another root", root.map_err(Into::into).map_err(by_seccomp));
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty());
    let taken = own.and_then(|own| rustix::process::pidfd_getfd(own, 0, PidfdGetfdFlags::empty()));
    refused("a descriptor of a process", taken.map(drop).map_err(Into::into).map_err(by_seccomp));
    let parent = rustix::process::getppid();
    let none = rustix::process::Rlimit { current: None, maximum: None };
    let limited = rustix::process::prlimit(parent, rustix::process::Resource::Core, none);
    refused("limits of a process", limited.map(drop).map_err(Into::into).map_err(by_seccomp));
    let watched = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::empty());
    refused("watching files", watched.map(drop).map_err(Into::into).map_err(by_seccomp));
}

fn sockets_are_refused(site: &Path, other: u16, refused: &mut impl FnMut(&str, io::Result<()>)) {
    // Seccomp's word again: without it these are refused by nobody, or for another reason.
    let mut refused = |what: &str, tried: rustix::io::Result<()>| {
        refused(
            what,
            tried.map_err(|err| match err {
                Errno::PERM => err.into(),
                err => io::Error::other(err),
            }),
        );
    };
    let connected = UnixStream::connect(site.join("root/socket")).map(drop);
    let errno = |err: io::Error| Errno::from_io_error(&err).unwrap_or(Errno::IO);
    refused("a socket of a path", connected.map_err(errno));
    let socket = |family, kind, protocol| {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socket_with(family, kind, flags, protocol)
    };
    let (inet, stream) = (AddressFamily::INET, SocketType::STREAM);
    refused("multipath TCP", socket(inet, stream, Some(ipproto::MPTCP)).map(drop));
    refused("a raw socket", socket(inet, SocketType::RAW, Some(ipproto::ICMP)).map(drop));
    refused("a ping", socket(inet, SocketType::DGRAM, Some(ipproto::ICMP)).map(drop));
    refused("a virtual machine's host", socket(AddressFamily::VSOCK, stream, None).map(drop));
    let audit = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::AUDIT));
    refused("the audit of the kernel", audit.map(drop));
    let tcp = socket(inet, stream, None).expect("TCP");
    let fast_open = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.unsigned_abs());
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, other);
    refused("data ahead of a connection", sendto(&tcp, b"x", fast_open, &to).map(drop));
}

#[tokio::test(flavor = "multi_thread")] // Waiting for a log blocks.
async fn the_client_runs_nothing_writes_in_its_own_directory_and_calls_only_its_server() {
    let test = "the_client_runs_nothing_writes_in_its_own_directory_and_calls_only_its_server";
    let Some(strace) = tool(test, "strace") else { return };
    let dir = TempDir::new().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    fs::create_dir(path("root")).expect("made");
    fs::write(path("root/open"), "open").expect("written");
    let server = TestServer::start().await;
    // By a name, so that it is looked up.
    let url = server.url().replace("127.0.0.1", "localhost");
    let port = url.rsplit_once(':').expect("a port").1;
    let (log, state, root) = (path("trace"), path("state"), path("root"));
    let args = [
        "-D",
        "-f",
        "-y",
        "-o",
        &log,
        "-e",
        "trace=execve,execveat,connect,open,openat,openat2,creat,fork,vfork,clone,clone3,seccomp,landlock_restrict_self",
        env!("CARGO_BIN_EXE_fts-client"),
        "--server",
        &url,
        "--client-id",
        "web-1",
        "--status-port",
        "0",
        "--sandbox",
        "require",
        "--allow",
        &root,
        "--state-dir",
        &state,
    ];
    let strace = strace.to_str().expect("text");
    let mut client = Process::start(strace, &dir.path().join("client.log"), &args, &[]);
    client.logged("the sandbox holds");
    client.logged("registered");

    let transfer = server.trigger("web-1", &path("root/open")).await;
    assert_eq!(server.landed(&transfer.id).await.1, b"open");

    client.signal(rustix::process::Signal::TERM);
    assert!(client.wait().0.success());
    server.stop().await;
    let trace = whole_trace(Path::new(&log));
    let runs = trace.lines().filter(|line| line.contains(" execve")).count();
    assert_eq!(runs, 1, "{trace}");
    let (before, _) = trace.split_once("CLONE_THREAD").expect("threads");
    assert!(before.contains(" landlock_restrict_self("), "{before}");
    assert!(before.contains(" seccomp(SECCOMP_SET_MODE_FILTER"), "{before}");
    // The second half of a call that another thread came into says nothing more of what was asked.
    for line in trace.lines().filter(|line| !line.contains(" resumed>")) {
        let is = |call: &str| line.contains(&format!(" {call}("));
        let has = |words: &[&str]| words.iter().any(|word| line.contains(word));
        let happened = !line.contains(" = -1 ");
        let is_process = is("fork") || is("vfork") || !has(&["CLONE_THREAD"]);
        assert!(!(has(&["clone", "fork"]) && is_process), "{line}");
        let writes = has(&["O_WRONLY", "O_RDWR", "O_CREAT"]) && happened;
        assert!(!writes || has(&[&format!("\"{state}"), &format!("<{state}")]), "{line}");
        // What is only begun (EINPROGRESS) counts.
        let calls = is("connect") && has(&["AF_INET"]);
        assert!(!calls || has(&[&format!("htons({port})")]), "{line}");
    }
}

#[test]
fn require_does_not_start_where_the_kernel_does_not_hold_it() {
    let test = "require_does_not_start_where_the_kernel_does_not_hold_it";
    let Some(strace) = tool(test, "strace") else { return };
    let strace = strace.to_str().expect("text");
    // As kernels say that have none of it, or containers that refuse it.
    let absent =
        [("landlock_create_ruleset:error=ENOSYS", "files"), ("seccomp:error=EINVAL", "calls")];
    for (call, missing) in absent {
        let dir = TempDir::new().expect("a directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
        let inject = format!("inject={call}");
        let (root, state) = (path(""), path("state"));
        let client = |mode: &str| {
            let program = env!("CARGO_BIN_EXE_fts-client");
            let server = "http://127.0.0.1:9";
            let args = [
                "-D",
                "-f",
                "-o",
                "/dev/null",
                "-e",
                &inject,
                program,
                "--server",
                server,
                "--status-port",
                "0",
                "--allow",
                &root,
                "--state-dir",
                &state,
                "--sandbox",
                mode,
            ];
            Process::start(strace, &dir.path().join(format!("{mode}.log")), &args, &[])
        };

        let log = dir.path().join("require.log");
        let (status, _) = client("require").wait();

        let told = fs::read_to_string(log).expect("a log");
        assert_eq!(status.code(), Some(78), "{call}: {told}");
        let part = format!("--sandbox require: this kernel does not hold {missing}");
        assert!(told.contains(&part), "{call}: {told}");
        // With `on` it does with less, and says so.
        let mut on = client("on");
        on.logged(&format!("sandbox: this kernel does not hold {missing}"));
        on.kill();
    }
}

/// Returns what `strace` wrote, once it has: it may be the last to hear of the end.
fn whole_trace(log: &Path) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let trace = fs::read_to_string(log).expect("a trace");
        let first = trace.split(' ').next().expect("a process").to_owned();
        if trace.lines().any(|line| line.starts_with(&first) && line.contains("+++ exited")) {
            return trace;
        }
        assert!(Instant::now() < until, "no end: {trace}");
        pause();
    }
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let test = "the_unit_is_one_that_systemd_takes";
    let Some(analyze) = tool(test, "systemd-analyze") else { return };
    let dir = TempDir::new().expect("a directory");
    let unit = include_str!("../contrib/fts-client.service");
    // It looks whether the program is there.
    let unit = unit.replace("/usr/local/bin/fts-client", env!("CARGO_BIN_EXE_fts-client"));
    let path = dir.path().join("fts-client.service");
    fs::write(&path, unit).expect("written");

    let output = Command::new(analyze).arg("verify").arg(&path).output().expect("run");

    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(!told.contains("fts-client.service:"), "{told}");
}
