//! Paths that a hostile server could ask for, the same for the same seed, each with its twin: a path
//! that differs only in that what it names outside the root is not there.

/// What is beside the root, and what is not. Equal in length, so that no length tells them apart.
pub const OUTSIDE: [(&str, &str); 4] =
    [("canary", "canarx"), ("vault", "vaulx"), ("root-secret", "root-secrex"), ("shut", "shux")];

/// Inside the root, in and beside it, and nowhere: what a path is made of.
const PARTS: [&str; 36] = [
    "canary",
    "vault",
    "root-secret",
    "shut",
    "root",
    "open",
    "sub",
    "out",
    "out-dir",
    "absolute",
    "up",
    "back",
    "magic",
    "circle",
    "absent",
    ".",
    "..",
    "...",
    "",
    " ",
    "%2e%2e",
    "%2e%2e%2fcanary",
    "..%2f",
    "..\\canary",
    "\\..\\",
    "\u{2025}",
    "\u{ff0e}\u{ff0e}",
    "..\u{2215}canary",
    "can\u{0430}ry",
    "canary\0",
    "\0",
    "canary\n",
    "fd",
    "self",
    "identity.pem",
    "instance-id",
];

pub struct Paths {
    rng: fastrand::Rng,
    /// Holds the root, and what is beside it.
    base: String,
}

impl Paths {
    pub fn new(base: &str, seed: u64) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), base: base.to_owned() }
    }

    /// Returns a path and its twin.
    pub fn pair(&mut self) -> (String, String) {
        let (start, from_base) = self.start();
        let mut parts: Vec<&'static str> = Vec::new();
        for _ in 0..self.rng.usize(0..7) {
            // Half of them honest names, so that many a path leads somewhere.
            let some = if self.rng.bool() { 16 } else { PARTS.len() };
            parts.push(PARTS[self.rng.usize(0..some)]);
        }
        let mut end = ["", "", "", "/", "//", "/.", "/.."][self.rng.usize(0..7)].to_owned();
        match self.rng.u32(0..2000) {
            0 => end.push_str(&"/x".repeat(32 << 10)),
            1 => end.push_str(&"x".repeat(64 << 10)),
            2..12 => end.push_str(&"/./".repeat(1000)),
            12..22 => end.push_str(&"n".repeat(250)),
            _ => {}
        }
        let joined = |parts: &[&str]| {
            let between = if start.ends_with('/') || parts.is_empty() { "" } else { "/" };
            format!("{start}{between}{}{end}", parts.join("/"))
        };
        let path = joined(&parts);
        // Only of what is beside the root: everything else has the same name in both.
        let absent = |part: &&'static str| {
            let found = OUTSIDE.iter().find(|(there, _)| there == part);
            found.map_or(*part, |(_, absent)| *absent)
        };
        let twin = joined(&parts.iter().map(absent).collect::<Vec<_>>());
        if from_base { (path, twin) } else { (path.clone(), path) }
    }

    /// Returns how a path begins, and whether what is beside the root is there from it.
    fn start(&mut self) -> (String, bool) {
        let base = &self.base;
        match self.rng.u32(0..20) {
            0..6 => (format!("{base}/root"), true),
            6..10 => (base.clone(), true),
            10 => (format!("{base}/root/"), true),
            11 => (format!("//{base}/./root"), true),
            12 => (format!("{base}/root/sub/.."), true),
            13 => (format!("/proc/self/root{base}"), true),
            14 => (format!("/proc/self/cwd/../..{base}"), true),
            15 => (format!("/dev/fd/{}", self.rng.u32(0..64)), true),
            16 => (format!("/proc/self/fd/{}", self.rng.u32(0..64)), true),
            17 => (format!("{base}/state"), true),
            18 => (["", "/", ".", "..", "~", "C:\\"][self.rng.usize(0..6)].to_owned(), false),
            _ => (base.to_uppercase(), true),
        }
    }
}
