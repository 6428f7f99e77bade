//! Opens what may be read, and nothing else. The path is matched to a rule by name; the rest is
//! resolved by the kernel beneath that rule's root (`openat2`), so that no `..`, no link and no race
//! leads out of it; and the name that the opened file then has is judged as well. Only regular files
//! of real file systems pass, and never the client's own. Everything here blocks: call it off the
//! reactor.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use super::{
    config::Shared,
    day_counts::DayCounts,
    policy::{
        Denied, Links, Policy, Rule,
        signed::{Asked, Proof, Unsigned},
    },
    spent::Spent,
    state_dir::StateDir,
    terms::{Clock, Terms},
    words::log_path,
};
use crate::{
    ids::{IdError, RemotePath},
    transfer::Fingerprint,
};

mod error;
mod hours;
mod kernel;
mod root;
mod signed;

pub(super) use error::SourceError;
use kernel::{Kind, LOOK, READ, beneath, fingerprint, is_by_link, name_beneath};
use root::{HeldRoot, Root};

/// A file, open for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: File,
    /// As it was asked for.
    pub(super) path: String,
    /// Where the file was at open, once links were followed; `None`, if the kernel does not say.
    pub(super) opened_path: Option<String>,
    /// Of the rule that allows it.
    pub(super) terms: Arc<Terms>,
    /// Who signed the request for it, if that is known.
    pub(super) signer: Option<String>,
    /// At open.
    pub(super) fingerprint: Fingerprint,
}

impl OpenFile {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Asks the file system again.
    pub(super) fn fingerprint_now(&self) -> io::Result<Fingerprint> {
        Ok(fingerprint(&self.file, &rustix::fs::fstat(&self.file)?)?)
    }
}

/// What may be read, and how it is opened.
#[derive(Debug)]
pub(super) struct Source {
    policy: Policy,
    /// For each rule.
    held: Vec<HeldRoot>,
    default_file: Option<RemotePath>,
    /// For each rule.
    terms: Vec<Arc<Terms>>,
    /// Fires when another policy holds.
    over: CancellationToken,
    clock: Clock,
    counts: Arc<DayCounts>,
    spent: Arc<Spent>,
    state_dir: Arc<StateDir>,
    /// Whom the process runs as.
    user: String,
}

impl Source {
    pub(super) fn new(shared: &Shared, state_dir: Arc<StateDir>) -> Self {
        let counts = Arc::new(DayCounts::new(Arc::clone(&state_dir)));
        Self::by(shared, state_dir, Clock::of_machine(), counts)
    }

    /// Returns what is opened by another policy; the day's bytes are counted on, and what was signed
    /// is remembered.
    pub(super) fn with(&self, shared: &Shared) -> Self {
        let (state_dir, counts) = (Arc::clone(&self.state_dir), Arc::clone(&self.counts));
        // The sandbox lets nobody look the user up again.
        let (spent, user) = (Arc::clone(&self.spent), self.user.clone());
        Self { spent, user, ..Self::by(shared, state_dir, self.clock.clone(), counts) }
    }

    pub(super) fn by(
        shared: &Shared,
        state_dir: Arc<StateDir>,
        clock: Clock,
        counts: Arc<DayCounts>,
    ) -> Self {
        let (policy, default_file) = match shared {
            Shared::DemoFile { path, .. } => {
                (Policy::of_roots(vec![path.clone()]), Some(path.clone()))
            }
            Shared::Policy(policy) => (policy.clone(), None),
        };
        let held = policy.rules().iter().map(|_| HeldRoot::default()).collect();
        let over = CancellationToken::new();
        let terms = |rule| Arc::new(Terms::new(rule, &counts, &clock, &over));
        let terms = policy.rules().iter().map(terms).collect();
        let spent = Arc::new(Spent::new(Arc::clone(&state_dir)));
        let user = user();
        Self { policy, held, default_file, terms, over, clock, counts, spent, state_dir, user }
    }

    /// From now on nothing may be sent of what was opened here.
    pub(super) fn end(&self) {
        self.over.cancel();
    }

    pub(super) fn default_file(&self) -> Option<&RemotePath> {
        self.default_file.as_ref()
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the roots, for people.
    pub(super) fn roots(&self) -> Vec<String> {
        self.policy.rules().iter().map(|rule| rule.path.as_str().to_owned()).collect()
    }

    fn root_path(&self, rule: usize) -> &str {
        self.policy.rules()[rule].path.as_str()
    }

    /// Opens the roots' directories. One that is not there is tried again when it is asked for.
    pub(super) fn hold_roots(&self) {
        for (index, rule) in self.policy.rules().iter().enumerate() {
            if let Err(err) = self.root(index) {
                let root = log_path(rule.path.as_str());
                tracing::warn!(%root, error = %err, "cannot open what the policy names, for now");
            }
        }
    }

    /// Returns what is wrong with the root of a rule now.
    pub(super) fn root_problem(&self, rule: usize) -> Option<SourceError> {
        let looked = match self.root(rule) {
            Ok(Root::Dir(dir)) => self.check_place(&dir),
            Ok(Root::File) => {
                let file = rustix::fs::open(self.root_path(rule), LOOK, Mode::empty());
                file.map_err(|err| self.failed(err)).and_then(|file| self.check(&file))
            }
            Err(err) => Err(err),
        };
        looked.err()
    }

    /// Opens the file at `path`, or the default file, for whoever asks without a signature.
    pub(super) fn open(
        &self,
        path: &Result<Option<RemotePath>, IdError>,
    ) -> Result<OpenFile, SourceError> {
        self.open_with(path, &Err(Unsigned::Missing))
    }

    /// Opens the file that a command asks for.
    pub(super) fn open_for(&self, asked: &Asked<'_>) -> Result<OpenFile, SourceError> {
        self.open_with(&asked.command.path, &self.prove(asked))
    }

    fn open_with(
        &self,
        path: &Result<Option<RemotePath>, IdError>,
        proof: &Result<Proof, Unsigned>,
    ) -> Result<OpenFile, SourceError> {
        let path = path.as_ref().map_err(|_| SourceError::Denied(Denied::NoPath))?;
        if let Some(path) = path {
            return self.open_path(path, proof);
        }
        let path = self.default_file.as_ref().ok_or(SourceError::NoDefault)?;
        self.open_path(path, proof).map_err(|err| match err {
            // Its maker has logged why it could not be made.
            SourceError::NotFound => SourceError::DefaultMissing(path.as_str().to_owned()),
            err => err,
        })
    }

    fn open_path(
        &self,
        path: &RemotePath,
        proof: &Result<Proof, Unsigned>,
    ) -> Result<OpenFile, SourceError> {
        let denied = |why| SourceError::Denied(why);
        let allowed = self.policy.find(path).map_err(|why| denied(Denied::Name(why)))?;
        let rule = &self.policy.rules()[allowed.rule];
        signed::check(rule, proof)?;
        let (fd, rule) = match self.root(allowed.rule)? {
            Root::Dir(dir) => {
                let rest = match allowed.rest.as_slice() {
                    [] => ".".to_owned(),
                    rest => rest.join("/"),
                };
                let resolve = kernel::resolution(rule);
                let open = |flags| {
                    let opened = beneath(&dir, &rest, flags, resolve);
                    opened.map_err(|err| self.judge_failed(rule, &dir, &rest, err))
                };
                self.open_regular(open, |fd| {
                    let rule = self.judge_opened(rule, &dir, fd, &rest)?;
                    signed::check(rule, proof).map(|()| rule)
                })?
            }
            Root::File if allowed.rest.is_empty() => {
                let spelled = self.root_path(allowed.rule);
                let open = |flags| {
                    let opened = rustix::fs::open(spelled, flags, Mode::empty());
                    opened.map_err(|err| self.failed(err))
                };
                self.open_regular(open, |_| Ok(rule))?
            }
            Root::File => return Err(SourceError::NotFound),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|err| self.failed(err))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if rule.size_max.is_some_and(|most| size > most) {
            return Err(denied(Denied::TooLarge));
        }
        // What cannot be compared is not delivered.
        if self.state_dir.owns(&stat).map_err(SourceError::Io)? {
            return Err(denied(Denied::OwnState));
        }
        let fingerprint = fingerprint(&fd, &stat).map_err(|err| self.failed(err))?;
        // Without /proc nobody knows.
        let opened_path = kernel::path_of(&fd).ok().flatten();
        let signer = proof.as_ref().ok().map(|proof| proof.signer.clone());
        let (path, terms) = (path.as_str().to_owned(), self.terms_of(rule));
        Ok(OpenFile { file: fd.into(), path, opened_path, terms, signer, fingerprint })
    }

    fn terms_of(&self, rule: &Rule) -> Arc<Terms> {
        let mut all = self.policy.rules().iter().zip(&self.terms);
        let found = all.find(|(each, _)| std::ptr::eq(*each, rule));
        Arc::clone(found.expect("the rule is of this policy").1)
    }

    /// Whether not every name is as good: what is opened may have another than was asked for.
    fn names_matter(&self, rule: &Rule) -> bool {
        self.policy.rules().len() > 1 || !rule.has_no_patterns()
    }

    /// Returns what may be told of a file that could not be opened: where its name leads is not
    /// known.
    fn judge_failed(&self, rule: &Rule, dir: &OwnedFd, spelled: &str, err: Errno) -> SourceError {
        if self.names_matter(rule) {
            if is_by_link(dir, spelled) {
                return SourceError::Denied(Denied::LeadsOut);
            }
            if let Err(err) = self.check_spelling(dir, spelled) {
                return err;
            }
        }
        match self.failed(err) {
            denied @ SourceError::Denied(_) => denied,
            err => self.check_on_the_way(rule, dir, spelled).err().unwrap_or(err),
        }
    }

    /// Refuses names of the kernel's directories and our own, whether they are there or not: by the
    /// last directory on the way to one that can be opened.
    fn check_on_the_way(
        &self,
        rule: &Rule,
        dir: &OwnedFd,
        spelled: &str,
    ) -> Result<(), SourceError> {
        let mut way = spelled;
        while let Some((up, _)) = way.rsplit_once('/') {
            way = up;
            if let Ok(there) = beneath(dir, way, LOOK, kernel::resolution(rule)) {
                return self.check_place(&there);
            }
        }
        self.check_place(dir)
    }

    /// Refuses what is of the kernel, or our own.
    fn check_place(&self, fd: &OwnedFd) -> Result<(), SourceError> {
        if matches!(kernel::kind(fd).map_err(|err| self.failed(err))?, Kind::OfKernel) {
            return Err(SourceError::Denied(Denied::KernelFiles));
        }
        let stat = rustix::fs::fstat(fd).map_err(|err| self.failed(err))?;
        if self.state_dir.owns(&stat).map_err(SourceError::Io)? {
            return Err(SourceError::Denied(Denied::OwnState));
        }
        Ok(())
    }

    fn check_spelling(&self, dir: &OwnedFd, rest: &str) -> Result<(), SourceError> {
        let is_good = kernel::is_spelled_as_listed(dir, rest).map_err(|err| self.failed(err))?;
        if is_good { Ok(()) } else { Err(SourceError::Denied(Denied::OtherSpelling)) }
    }

    /// Judges what was opened by the name that it has once links are followed, and returns the rule
    /// for it: that of another root, if a link led into one.
    fn judge_opened<'a>(
        &'a self,
        rule: &'a Rule,
        dir: &OwnedFd,
        fd: &OwnedFd,
        spelled: &str,
    ) -> Result<&'a Rule, SourceError> {
        if !self.names_matter(rule) {
            return Ok(rule);
        }
        let rest = name_beneath(dir, fd).map_err(SourceError::Io)?;
        let rest = rest.ok_or(SourceError::Denied(Denied::NameUnknown))?;
        self.check_spelling(dir, &rest)?;
        let full = format!("{}/{rest}", rule.path.as_str().trim_end_matches('/'));
        let full = full.parse::<RemotePath>();
        let full = full.map_err(|_| SourceError::Denied(Denied::NameUnknown))?;
        let found = self.policy.find(&full);
        let found = found.map_err(|why| SourceError::Denied(Denied::Resolved(why)))?;
        let found = &self.policy.rules()[found.rule];
        // Into the area of a rule that wants no links, by one.
        let is_by_link =
            !full.components().skip(rule.path.components().count()).eq(spelled.split('/'));
        if is_by_link && found.links == Links::Never {
            return Err(SourceError::Denied(Denied::LeadsOut));
        }
        Ok(found)
    }

    /// Looks first, so that what is no regular file, or may not be read, is not even opened; and
    /// checks what was opened, because it may be another by then.
    fn open_regular<'a>(
        &'a self,
        open: impl Fn(OFlags) -> Result<OwnedFd, SourceError>,
        judge: impl Fn(&OwnedFd) -> Result<&'a Rule, SourceError>,
    ) -> Result<(OwnedFd, &'a Rule), SourceError> {
        let look = open(LOOK)?;
        judge(&look)?;
        self.check(&look)?;
        let fd = open(READ)?;
        let rule = judge(&fd)?;
        self.check(&fd)?;
        Ok((fd, rule))
    }

    fn check(&self, fd: &OwnedFd) -> Result<(), SourceError> {
        match kernel::kind(fd).map_err(|err| self.failed(err))? {
            Kind::Regular => Ok(()),
            Kind::OfKernel => Err(SourceError::Denied(Denied::KernelFiles)),
            Kind::Other(what) => self.check_place(fd).and(Err(SourceError::NotRegular(what))),
        }
    }

    fn root(&self, index: usize) -> Result<Root, SourceError> {
        self.held[index].get(self.root_path(index)).map_err(|err| self.failed(err))
    }

    fn failed(&self, err: Errno) -> SourceError {
        SourceError::new(err, &self.user)
    }
}

/// Names the user that the process runs as.
fn user() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut named = fields.filter(|fields| fields.get(2) == Some(&uid.as_str()));
    match named.next() {
        Some(fields) => format!("{} ({uid})", fields[0]),
        None => uid,
    }
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{
            fs::{PermissionsExt as _, symlink},
            net::UnixListener,
            process::CommandExt as _,
        },
        path::{Path, PathBuf},
        process::Command,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use rustix::fs::{CWD, RenameFlags};
    use tempfile::TempDir;

    use super::*;
    use crate::{client::policy::Refused, transfer::FailReason};

    const CANARY: &str = "canary";

    /// A root with a canary beside it, in which nothing may ever be found.
    struct Place {
        temp: TempDir,
        state_dir: Arc<StateDir>,
    }

    impl Place {
        fn new() -> Self {
            let temp = tempfile::tempdir().expect("a directory");
            fs::create_dir(temp.path().join("root")).expect("made");
            fs::write(temp.path().join("canary"), CANARY).expect("written");
            let state_dir = StateDir::open(&temp.path().join("state")).expect("free");
            Self { temp, state_dir: Arc::new(state_dir) }
        }

        fn path(&self, rest: &str) -> PathBuf {
            self.temp.path().join(rest)
        }

        fn source(&self, roots: &[&Path]) -> Source {
            let roots = roots.iter().map(|root| remote(root)).collect();
            Source::new(&Shared::Policy(Policy::of_roots(roots)), self.state_dir.clone())
        }

        /// Opens a path of the place, with `root` allowed.
        fn open(&self, rest: &str) -> Result<OpenFile, SourceError> {
            open(&self.source(&[&self.path("root")]), &self.path(rest))
        }
    }

    fn remote(path: &Path) -> RemotePath {
        path.to_str().expect("text").parse().expect("a remote path")
    }

    fn open(source: &Source, path: &Path) -> Result<OpenFile, SourceError> {
        source.open(&Ok(Some(remote(path))))
    }

    fn text(file: &OpenFile) -> String {
        io::read_to_string(file.file()).expect("text")
    }

    fn denied(result: Result<OpenFile, SourceError>) -> Denied {
        match result {
            Err(SourceError::Denied(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_default_file_that_is_not_there_is_told_as_such() {
        let place = Place::new();
        let path = remote(&place.path("demo"));
        let shared = Shared::DemoFile { path: path.clone(), size: 1 };
        let source = Source::new(&shared, place.state_dir.clone());
        let err = source.open(&Ok(None)).expect_err("not there");
        assert!(err.to_string().contains("no default file"), "{err}");
        assert_eq!(err.reason(), FailReason::SourceNotFound);
        assert!(matches!(source.open(&Ok(Some(path))), Err(SourceError::NotFound)));
        fs::write(place.path("demo"), "x").expect("written");
        assert!(source.open(&Ok(None)).is_ok());
    }

    #[test]
    fn files_and_links_inside_a_root_are_opened() {
        let place = Place::new();
        fs::create_dir(place.path("root/d")).expect("made");
        fs::write(place.path("root/d/f"), "good").expect("written");
        symlink("d/../d/f", place.path("root/link")).expect("linked");
        symlink("../root/d", place.path("root/out-and-in")).expect("linked");
        for name in ["root/d/f", "root/link", "root//d/./f"] {
            assert_eq!(text(&place.open(name).expect(name)), "good", "{name}");
        }
        // It leaves the root on its way, though it comes back.
        assert_eq!(denied(place.open("root/out-and-in/f")), Denied::LeadsOut);
    }

    #[test]
    fn no_link_leads_to_the_canary() {
        let place = Place::new();
        fs::create_dir(place.path("root/d")).expect("made");
        symlink("../canary", place.path("root/up")).expect("linked");
        symlink(place.path("canary"), place.path("root/absolute")).expect("linked");
        symlink("../../canary", place.path("root/d/far-up")).expect("linked");
        symlink("..", place.path("root/parent")).expect("linked");
        symlink("/", place.path("root/slash")).expect("linked");
        symlink("up", place.path("root/twice")).expect("linked");
        symlink("/proc/self/root", place.path("root/magic")).expect("linked");
        symlink("circle", place.path("root/circle")).expect("linked");
        symlink("../absent", place.path("root/up-to-nothing")).expect("linked");
        symlink("/absent", place.path("root/absolute-to-nothing")).expect("linked");
        let canary = place.path("canary");
        let through_slash = format!("root/slash{}", canary.display());
        let names = [
            "up",
            "absolute",
            "d/far-up",
            "parent/canary",
            "twice",
            "magic",
            "circle",
            "up-to-nothing",
            "absolute-to-nothing",
        ];
        for name in names.map(|name| format!("root/{name}")).iter().chain([&through_slash]) {
            let err = place.open(name).expect_err(name);
            assert!(matches!(err, SourceError::Denied(Denied::LeadsOut)), "{name}: {err:?}");
            assert_eq!(err.to_string(), "not allowed by the client's policy");
        }
    }

    #[test]
    fn outside_looks_the_same_whether_it_exists_or_not() {
        let place = Place::new();
        fs::create_dir(place.path("root-secret")).expect("made");
        fs::write(place.path("root-secret/f"), CANARY).expect("written");
        for name in ["canary", "absent", "root-secret/f", "roo", ""] {
            let err = place.open(name).expect_err(name);
            assert_eq!(err.reason(), FailReason::DeniedByPolicy, "{name}");
            assert_eq!(err.to_string(), "not allowed by the client's policy", "{name}");
        }
        let bad = place.source(&[&place.path("root")]).open(&Err(IdError::PathParent));
        assert_eq!(denied(bad), Denied::NoPath);
    }

    #[test]
    fn what_is_not_there_is_told_inside_a_root() {
        let place = Place::new();
        fs::write(place.path("root/f"), "").expect("written");
        symlink("nothing", place.path("root/dangling")).expect("linked");
        let long = format!("root/{}", "x".repeat(300));
        for name in ["root/absent", "root/a/b", "root/f/below", "root/dangling", &long] {
            let err = place.open(name).expect_err(name);
            assert!(matches!(err, SourceError::NotFound), "{name}: {err:?}");
        }
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_hangs() {
        let place = Place::new();
        rustix::fs::mkfifoat(CWD, place.path("root/fifo"), Mode::RWXU).expect("made");
        let _socket = UnixListener::bind(place.path("root/socket")).expect("bound");
        fs::create_dir(place.path("root/dir")).expect("made");
        symlink("fifo", place.path("root/link")).expect("linked");
        let kinds = [
            ("root/fifo", "a FIFO"),
            ("root/link", "a FIFO"),
            ("root/socket", "a socket"),
            ("root/dir", "a directory"),
            ("root", "a directory"),
        ];
        for (name, kind) in kinds {
            let err = place.open(name).expect_err(name);
            assert!(matches!(err, SourceError::NotRegular(k) if k == kind), "{name}: {err:?}");
        }
        let dev = place.source(&[Path::new("/dev")]);
        for name in ["/dev/null", "/dev/zero"] {
            let err = open(&dev, Path::new(name)).expect_err(name);
            assert_eq!(err.reason(), FailReason::SourceNotRegular, "{name}: {err:?}");
        }
    }

    #[test]
    fn with_everything_allowed_the_kernels_files_and_our_own_are_not() {
        let place = Place::new();
        let all = place.source(&[Path::new("/")]);
        let kernel = ["/proc/self/environ", "/proc/self/mem", "/sys/kernel/notes", "/proc"];
        for name in kernel {
            assert_eq!(denied(open(&all, Path::new(name))), Denied::KernelFiles, "{name}");
        }
        for name in ["/proc/self/fd/0", "/proc/self/exe", "/proc/self/root/etc/passwd"] {
            assert_eq!(denied(open(&all, Path::new(name))), Denied::LeadsOut, "{name}");
        }
        fs::hard_link(place.path("state/lock"), place.path("root/lock")).expect("linked");
        fs::create_dir_all(place.path("state/a/b")).expect("made");
        symlink("state/a", place.path("way")).expect("linked");
        for name in ["state/lock", "root/lock"] {
            assert_eq!(denied(open(&all, &place.path(name))), Denied::OwnState, "{name}");
        }
        // Whether there is anything of a name is not told either.
        for name in
            ["/proc/self/none", "/proc/4294967295/environ", "/proc/version/none", "/sys/a/b"]
        {
            assert_eq!(denied(open(&all, Path::new(name))), Denied::KernelFiles, "{name}");
        }
        for name in ["state", "state/none", "state/a", "state/a/b/none", "state/lock/none", "way/x"]
        {
            assert_eq!(denied(open(&all, &place.path(name))), Denied::OwnState, "{name}");
        }
        let absent = open(&all, &place.path("root/none"));
        assert!(matches!(absent, Err(SourceError::NotFound)), "{absent:?}");
        assert_eq!(text(&open(&all, &place.path("canary")).expect("allowed")), CANARY);
    }

    #[test]
    fn an_allowed_file_is_allowed_by_itself() {
        let place = Place::new();
        symlink("../canary", place.path("root/link")).expect("linked");
        let source = place.source(&[&place.path("canary"), &place.path("root/link")]);
        assert_eq!(text(&open(&source, &place.path("canary")).expect("allowed")), CANARY);
        // As the owner spelled it, a link included.
        assert_eq!(text(&open(&source, &place.path("root/link")).expect("allowed")), CANARY);
        assert_eq!(
            denied(open(&source, &place.path("state/lock"))),
            Denied::Name(Refused::Outside)
        );
        let below = open(&source, &place.path("canary/x"));
        assert!(matches!(below, Err(SourceError::NotFound)), "{below:?}");
    }

    #[test]
    fn a_root_that_was_absent_is_tried_again() {
        let place = Place::new();
        let source = place.source(&[&place.path("later")]);
        source.hold_roots();
        let absent = open(&source, &place.path("later/f"));
        assert!(matches!(absent, Err(SourceError::NotFound)), "{absent:?}");
        for content in ["one", "two"] {
            fs::create_dir(place.path("later")).expect("made");
            fs::write(place.path("later/f"), content).expect("written");
            assert_eq!(text(&open(&source, &place.path("later/f")).expect("there")), content);
            fs::remove_dir_all(place.path("later")).expect("removed");
        }
    }

    /// A root with files, directories and links of all kinds, beside another one.
    fn layout() -> Place {
        let place = Place::new();
        for dir in ["root/app", "root/private", "root/app/deep", "other", "root/narrow"] {
            fs::create_dir(place.path(dir)).expect("made");
        }
        for file in [
            "root/a.log",
            "root/a.key",
            "root/app/b.log",
            "root/app/deep/c.log",
            "root/private/d.log",
            "root/narrow/e.txt",
            "root/narrow/e.log",
            "other/f.log",
        ] {
            fs::write(place.path(file), "x").expect("written");
        }
        fs::write(place.path("root/big.log"), vec![0; 2001]).expect("written");
        let links = [
            ("root/to-a.log", "a.log"),
            ("root/to-key.log", "a.key"),
            ("root/to-private.log", "private/d.log"),
            ("root/to-absent.log", "private/absent.log"),
            ("root/to-dir.log", "private"),
            ("root/to-app", "app"),
            ("root/to-narrow.log", "narrow/e.log"),
            ("root/to-other.log", "../other/f.log"),
        ];
        for (link, target) in links {
            symlink(target, place.path(link)).expect("linked");
        }
        place
    }

    fn with_policy(place: &Place, text: &str) -> Source {
        let text = text.replace("TEMP", place.temp.path().to_str().expect("text"));
        let policy = Policy::parse(&text).expect("a policy");
        Source::new(&Shared::Policy(policy), place.state_dir.clone())
    }

    const ALL: &str = "[[root]]\nname = 'all'\npath = 'TEMP/root'\n";

    /// What becomes of each name of the layout: `.` delivered, `n` no such file, `d` denied.
    const VERDICTS: [(&str, [char; 6]); 20] = [
        // All; links never; *.log; without private; at most 2000 bytes; narrow decides for itself.
        ("root/a.log", ['.', '.', '.', '.', '.', '.']),
        ("root/a.key", ['.', '.', 'd', '.', '.', '.']),
        ("root/big.log", ['.', '.', '.', '.', 'd', '.']),
        ("root/app/b.log", ['.', '.', 'd', '.', '.', '.']),
        ("root/app/deep/c.log", ['.', '.', 'd', '.', '.', '.']),
        ("root/private/d.log", ['.', '.', 'd', 'd', '.', '.']),
        ("root/private/absent.log", ['n', 'n', 'd', 'd', 'n', 'n']),
        ("root/absent.log", ['n', 'n', 'n', 'n', 'n', 'n']),
        ("root/narrow/e.txt", ['.', '.', 'd', '.', '.', '.']),
        ("root/narrow/e.log", ['.', '.', 'd', '.', '.', 'd']),
        ("root/narrow/absent.log", ['n', 'n', 'd', 'n', 'n', 'd']),
        ("root/to-a.log", ['.', 'd', '.', '.', '.', '.']),
        ("root/to-key.log", ['.', 'd', 'd', '.', '.', '.']),
        ("root/to-private.log", ['.', 'd', 'd', 'd', '.', '.']),
        ("root/to-absent.log", ['n', 'd', 'd', 'd', 'n', 'd']),
        ("root/to-app/b.log", ['.', 'd', 'd', '.', '.', '.']),
        ("root/to-narrow.log", ['.', 'd', 'd', '.', '.', 'd']),
        ("root/to-other.log", ['d', 'd', 'd', 'd', 'd', 'd']),
        ("other/f.log", ['d', 'd', 'd', 'd', 'd', 'd']),
        ("other/absent", ['d', 'd', 'd', 'd', 'd', 'd']),
    ];

    #[test]
    fn a_table_of_layouts_and_policies_has_the_expected_verdicts() {
        let place = layout();
        let policies = [
            ALL.to_owned(),
            format!("{ALL}links = 'never'\n"),
            format!("{ALL}include = ['*.log']\n"),
            format!("{ALL}exclude = ['private']\n"),
            format!("{ALL}max_size = '2000B'\n"),
            format!(
                "{ALL}[[root]]\nname = 'narrow'\npath = 'TEMP/root/narrow'\ninclude = ['*.txt']\n"
            ),
        ];
        for (column, policy) in policies.iter().enumerate() {
            let source = with_policy(&place, policy);
            for (name, verdicts) in &VERDICTS {
                let opened = open(&source, &place.path(name));
                let verdict = match &opened {
                    Ok(_) => '.',
                    Err(SourceError::NotFound) => 'n',
                    Err(SourceError::Denied(_)) => 'd',
                    Err(other) => panic!("{name}: {other}"),
                };
                assert_eq!(verdict, verdicts[column], "{name} by policy {column}: {opened:?}");
            }
        }
    }

    #[test]
    fn a_link_tells_nothing_of_what_is_excluded() {
        let place = layout();
        let source = with_policy(&place, &format!("{ALL}exclude = ['private']\n"));
        for name in ["root/to-private.log", "root/to-absent.log", "root/to-dir.log"] {
            let err = open(&source, &place.path(name)).expect_err(name);
            assert_eq!(err.to_string(), "not allowed by the client's policy", "{name}");
            assert_eq!(err.reason(), FailReason::DeniedByPolicy, "{name}");
        }
    }

    #[test]
    fn a_rule_without_links_is_not_entered_by_one() {
        let place = layout();
        let narrow = "[[root]]\nname = 'narrow'\npath = 'TEMP/root/narrow'\nlinks = 'never'\n";
        let source = with_policy(&place, &format!("{ALL}{narrow}"));
        assert!(open(&source, &place.path("root/narrow/e.log")).is_ok());
        assert_eq!(denied(open(&source, &place.path("root/to-narrow.log"))), Denied::LeadsOut);
    }

    #[test]
    fn one_file_system_is_not_left() {
        let place = Place::new();
        let memory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        fs::write(memory.path().join("f"), "x").expect("written");
        let root = "[[root]]\nname = 'all'\npath = '/'\n";
        let path = memory.path().join("f");
        assert!(open(&with_policy(&place, root), &path).is_ok());
        let one = with_policy(&place, &format!("{root}one_file_system = true\n"));
        assert_eq!(denied(open(&one, &path)), Denied::LeadsOut);
    }

    #[test]
    fn a_held_root_cannot_be_exchanged() {
        let place = Place::new();
        fs::write(place.path("root/f"), "good").expect("written");
        fs::create_dir(place.path("evil")).expect("made");
        fs::write(place.path("evil/f"), CANARY).expect("written");
        let source = place.source(&[&place.path("root")]);
        source.hold_roots();
        fs::rename(place.path("root"), place.path("moved")).expect("renamed");
        let opened = || text(&open(&source, &place.path("root/f")).expect("there"));
        symlink("evil", place.path("root")).expect("linked");
        assert_eq!(opened(), "good");
        fs::remove_file(place.path("root")).expect("removed");
        assert_eq!(opened(), "good");
        fs::rename(place.path("evil"), place.path("root")).expect("renamed");
        assert_eq!(opened(), "good");
        // `/proc` is a mount, and a link to it is none.
        fs::remove_dir_all(place.path("root")).expect("removed");
        symlink("/proc", place.path("root")).expect("linked");
        assert_eq!(opened(), "good");
    }

    #[test]
    fn a_race_of_directory_and_link_never_shows_the_canary() {
        const TRIES: u32 = 20_000;
        let place = Place::new();
        fs::create_dir_all(place.path("root/d")).expect("made");
        fs::write(place.path("root/d/canary"), "good").expect("written");
        symlink("..", place.path("root/l")).expect("linked");
        let source = place.source(&[&place.path("root")]);
        let (d, l) = (place.path("root/d"), place.path("root/l"));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let flags = RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, &d, CWD, &l, flags).expect("exchanged");
                }
            });
            let (mut good, mut leaked, mut refused) = (0, 0, 0);
            let mut tries = 0;
            // On until both layouts were met, so that a slow machine proves something as well.
            while tries < TRIES || ((good == 0 || refused == 0) && tries < 100 * TRIES) {
                tries += 1;
                // Each file is read once: a second read of the same one would begin at its end.
                // No assert here: it would leave the other thread running.
                match open(&source, &d.join("canary")).map(|file| text(&file)).as_deref() {
                    Ok(CANARY) => leaked += 1,
                    Ok(_) => good += 1,
                    Err(_) => refused += 1,
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(leaked, 0, "{good} good, {refused} refused");
            assert!(good > 0 && refused > 0, "{good} good, {refused} refused");
        });
    }

    #[test]
    fn without_a_default_file_a_path_is_needed() {
        let place = Place::new();
        let err = place.source(&[&place.path("root")]).open(&Ok(None)).expect_err("no file");
        assert_eq!(err.reason(), FailReason::SourceNotFound);
        assert!(err.to_string().contains("default file"), "{err}");

        let demo = Shared::DemoFile { path: remote(&place.path("canary")), size: 1 };
        let demo = Source::new(&demo, place.state_dir.clone());
        assert_eq!(text(&demo.open(&Ok(None)).expect("the default file")), CANARY);
        assert_eq!(denied(open(&demo, &place.path("root"))), Denied::Name(Refused::Outside));
    }

    #[test]
    fn what_the_user_may_not_read_names_the_user() {
        if !rustix::process::geteuid().is_root() {
            return check_unreadable();
        }
        // Root may read everything, so a child that is nobody looks.
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        let name = "client::source::tests::what_the_user_may_not_read_names_the_user";
        child.args(["--exact", name]).uid(65534).gid(65534).current_dir("/");
        match child.output() {
            Ok(out) => {
                let out = String::from_utf8_lossy(&out.stdout).into_owned();
                assert!(out.contains("1 passed"), "{out}");
            }
            Err(err) => eprintln!("SKIPPED {name}: another user cannot run this test: {err}"),
        }
    }

    fn check_unreadable() {
        let place = Place::new();
        fs::write(place.path("root/f"), CANARY).expect("written");
        fs::set_permissions(place.path("root/f"), fs::Permissions::from_mode(0o0)).expect("set");
        fs::create_dir(place.path("root/d")).expect("made");
        fs::set_permissions(place.path("root/d"), fs::Permissions::from_mode(0o0)).expect("set");
        for name in ["root/f", "root/d/f"] {
            let err = place.open(name).expect_err("unreadable");
            assert_eq!(err.reason(), FailReason::SourceUnreadable, "{name}: {err:?}");
            let uid = rustix::process::geteuid().as_raw().to_string();
            assert!(err.to_string().contains(&uid), "{err}");
        }
        fs::set_permissions(place.path("root/d"), fs::Permissions::from_mode(0o700)).expect("set");
    }
    #[test]
    fn another_policy_asks_nobody_who_the_user_is() {
        let place = Place::new();
        // As if it had been found out before the sandbox.
        let known = Source { user: "somebody".into(), ..place.source(&[&place.path("root")]) };
        let shared = Shared::Policy(Policy::default());
        assert_eq!(known.with(&shared).user, "somebody");
    }
}
