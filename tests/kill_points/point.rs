//! What is done to whom at which call, and how that is written: `START:PROGRAM:FAULT:CALL:PLACE:N`,
//! such as `queued:server:kill:fdatasync:files/partial/LARGE.1:1`.

use std::{fmt, str::FromStr};

/// What the programs find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// No data directory; all is asked for once the server is there.
    Empty,
    /// The two files of the plan are asked for, and the client is not there.
    Queued,
    /// As [`Start::Queued`], and the client is killed in the middle of the large file, and another
    /// one started.
    Breaking,
    /// The upload of the large file was cut in the middle, and both programs have ended.
    Cut,
    /// As [`Start::Queued`], but the server was killed when it had published the large file, and had
    /// not recorded that.
    Published,
}

impl Start {
    pub const ALL: [Self; 5] =
        [Self::Empty, Self::Queued, Self::Breaking, Self::Cut, Self::Published];
    /// Those in which a client finds something else.
    pub const WITH_CLIENT: [Self; 2] = [Self::Queued, Self::Cut];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    Server,
    Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not there any more when the call would have been made.
    Kill,
    Io,
    Full,
    Interrupted,
    Reset,
}

/// Calls that change what is on disk. Between two of them a kill finds the same.
const CHANGES: &str = "openat openat2 mkdir mkdirat write pwrite64 fallocate ftruncate \
                       fsync fdatasync rename renameat2 unlink unlinkat";
/// Those of them that need space.
const GROWS: &str =
    "openat mkdir mkdirat write pwrite64 fallocate ftruncate fsync fdatasync rename renameat2";
const LOOKS: &str = "read pread64 getdents64 newfstatat statx fstatfs flock";
const SOCKETS: &str = "accept4 connect recvfrom sendto writev";

impl Fault {
    /// How `strace` is told.
    pub fn injection(self) -> &'static str {
        match self {
            Self::Kill => "signal=SIGKILL",
            Self::Io => "error=EIO",
            Self::Full => "error=ENOSPC",
            Self::Interrupted => "error=EINTR",
            Self::Reset => "error=ECONNRESET",
        }
    }

    /// Whether it can befall this call.
    pub fn befalls(self, site: &Site) -> bool {
        let calls: &[&str] = match (self, &site.place) {
            (Self::Kill, Place::File(_)) => &[CHANGES],
            (Self::Io | Self::Interrupted, Place::File(_)) => &[CHANGES, LOOKS],
            (Self::Full, Place::File(_)) => &[GROWS],
            (Self::Kill | Self::Reset, Place::Sockets) => &[SOCKETS],
            _ => &[],
        };
        calls.iter().flat_map(|calls| calls.split_whitespace()).any(|call| call == site.call)
    }
}

/// Returns every call that a dry run looks for.
pub fn calls() -> impl Iterator<Item = &'static str> {
    [CHANGES, LOOKS, SOCKETS].into_iter().flat_map(str::split_whitespace)
}

pub fn is_socket_call(call: &str) -> bool {
    SOCKETS.split_whitespace().any(|each| each == call)
}

/// What a call is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Named as in every run: beneath the directory of the run, ids replaced.
    File(String),
    Sockets,
}

/// A call on one file, or on all sockets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    pub place: Place,
    pub call: String,
}

impl Site {
    /// Whether it is about a file that is sent or lands, or a directory of such files.
    pub fn is_of_files(&self) -> bool {
        let Place::File(name) = &self.place else { return false };
        name.starts_with("data/files") || name.starts_with("shared/")
    }

    /// Whether it is about the client's own audit.
    pub fn is_of_audit(&self) -> bool {
        matches!(&self.place, Place::File(name) if name.starts_with("state/audit/"))
    }

    /// Whether it is about what is kept of a file that is received.
    pub fn is_of_partial(&self) -> bool {
        matches!(&self.place, Place::File(name) if name.starts_with("data/files/partial/"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    pub start: Start,
    pub program: Program,
    pub fault: Fault,
    pub site: Site,
    /// Counted by thread, from 1.
    pub nth: usize,
}

const STARTS: [(Start, &str); 5] = [
    (Start::Empty, "empty"),
    (Start::Queued, "queued"),
    (Start::Breaking, "breaking"),
    (Start::Cut, "cut"),
    (Start::Published, "published"),
];
const PROGRAMS: [(Program, &str); 2] = [(Program::Server, "server"), (Program::Client, "client")];
const FAULTS: [(Fault, &str); 5] = [
    (Fault::Kill, "kill"),
    (Fault::Io, "EIO"),
    (Fault::Full, "ENOSPC"),
    (Fault::Interrupted, "EINTR"),
    (Fault::Reset, "ECONNRESET"),
];
const SOCKETS_NAME: &str = "sockets";

fn name<T: Copy + PartialEq>(names: &[(T, &'static str)], of: T) -> &'static str {
    names.iter().find(|(each, _)| *each == of).expect("every one is there").1
}

fn value<T: Copy>(names: &[(T, &str)], text: &str) -> Result<T, String> {
    let found = names.iter().find(|(_, name)| *name == text);
    found.map(|(value, _)| *value).ok_or_else(|| format!("{text:?} is none of these"))
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match &self.site.place {
            Place::File(name) => name,
            Place::Sockets => SOCKETS_NAME,
        };
        let (start, program) = (name(&STARTS, self.start), name(&PROGRAMS, self.program));
        let (fault, call, nth) = (name(&FAULTS, self.fault), &self.site.call, self.nth);
        write!(f, "{start}:{program}:{fault}:{call}:{place}:{nth}")
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(':').collect();
        let [start, program, fault, call, place, nth] = parts[..] else {
            return Err(format!("{text:?} is not START:PROGRAM:FAULT:CALL:PLACE:N"));
        };
        let place = match place {
            SOCKETS_NAME => Place::Sockets,
            file => Place::File(file.to_owned()),
        };
        Ok(Self {
            start: value(&STARTS, start)?,
            program: value(&PROGRAMS, program)?,
            fault: value(&FAULTS, fault)?,
            site: Site { place, call: call.to_owned() },
            nth: nth.parse().map_err(|_| format!("{nth:?} is no number"))?,
        })
    }
}

#[test]
fn a_point_is_read_as_it_is_written() {
    let text = "queued:server:kill:fdatasync:files/partial/LARGE.1:3";
    let point: Point = text.parse().expect("a point");
    assert_eq!(point.to_string(), text);
    assert_eq!(point.nth, 3);
    let text = "empty:client:ECONNRESET:writev:sockets:12";
    assert_eq!(text.parse::<Point>().expect("a point").to_string(), text);
    for bad in ["", "queued:server:kill:fsync:x", "queued:server:kill:fsync:x:y", "a:b:c:d:e:1"] {
        assert!(bad.parse::<Point>().is_err(), "{bad}");
    }
}
