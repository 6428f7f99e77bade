//! What the site lets a server read: directories and files, each with a rule of its own. Pure: it
//! compares names, and never looks at a disk. Who opens asks here first, by the name that was asked
//! for, and once more by the name that the opened file has.

use std::fmt;

use blake3::Hash;
use globset::GlobSet;

use crate::{
    ids::{RemotePath, UnixMs},
    rate::Rate,
};

pub(super) mod file;
pub mod hours;
mod keys;
pub(super) mod signed;

use hours::Hours;
use signed::{Asked, Proof, Unsigned};

pub use signed::Signer;

/// What may be read; by default nothing.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    /// Whose requests are taken where a rule wants them signed.
    signers: Vec<Signer>,
}

/// What may be read beneath one root.
#[derive(Debug, Clone)]
pub struct Rule {
    /// For people, and the audit.
    pub name: String,
    pub path: RemotePath,
    /// Without any: everything.
    include: Patterns,
    exclude: Patterns,
    /// In bytes.
    pub size_max: Option<u64>,
    pub links: Links,
    pub one_file_system: bool,
    /// Of all its files together.
    pub rate: Option<Rate>,
    pub bytes_per_day: Option<u64>,
    /// Without: at all hours.
    pub hours: Option<Hours>,
    /// Only what one of the signers has asked for.
    pub require_signature: bool,
}

/// What becomes of symbolic links on the way to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Followed as long as they stay beneath the root.
    Inside,
    /// Refused.
    Never,
}

/// Patterns of names beneath a root, such as `**/*.log`: `*` and `?` match within a component, `**`
/// any number of these.
#[derive(Debug, Clone, Default)]
struct Patterns {
    set: GlobSet,
    texts: Vec<String>,
}

/// A path that is allowed by name: the rest is still to be opened beneath the root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed<'a> {
    /// Index among the rules.
    pub(super) rule: usize,
    pub(super) rest: Vec<&'a str>,
}

/// Why a name is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Beneath no root.
    Outside,
    /// One of the rule's `exclude` matches.
    Excluded { rule: usize, pattern: usize },
    /// The rule has `include`, and none of it matches.
    NotIncluded { rule: usize },
}

/// What the policy refuses; for the client's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// By its name.
    Name(Refused),
    /// A link on the way leads out of the root, or to another file system where there shall be one
    /// only; or there is a link where there shall be none.
    LeadsOut,
    /// The name that the file has once links are followed is not allowed.
    Resolved(Refused),
    /// Its name, once links are followed, cannot be found out.
    NameUnknown,
    /// It is not spelled as its directory lists it, on a file system that may take other spellings.
    OtherSpelling,
    /// Larger than the rule allows.
    TooLarge,
    /// Files that the kernel makes up (procfs, sysfs, …).
    KernelFiles,
    /// The client's own state.
    OwnState,
    /// No honest server sends this.
    NoPath,
    /// The rule wants a request that one of the signers made.
    Unsigned(Unsigned),
}

impl Rule {
    /// Everything at or beneath a path.
    pub fn all_of(path: RemotePath) -> Self {
        Self {
            name: path.as_str().to_owned(),
            path,
            include: Patterns::default(),
            exclude: Patterns::default(),
            size_max: None,
            links: Links::Inside,
            one_file_system: false,
            rate: None,
            bytes_per_day: None,
            hours: None,
            require_signature: false,
        }
    }

    /// Whether every name is as good.
    pub(super) fn has_no_patterns(&self) -> bool {
        self.include.texts.is_empty() && self.exclude.texts.is_empty()
    }

    /// Returns what it asks for, as its file does.
    pub(super) fn details(&self) -> Vec<String> {
        let listed = |key: &str, patterns: &Patterns| {
            (!patterns.texts.is_empty()).then(|| format!("{key} {}", patterns.texts.join(", ")))
        };
        let links = (self.links == Links::Never).then(|| "links never".to_owned());
        [
            listed("include", &self.include),
            listed("exclude", &self.exclude),
            self.size_max.map(|bytes| format!("max_size {bytes} bytes")),
            links,
            self.one_file_system.then(|| "one_file_system".to_owned()),
            self.rate.map(|rate| format!("rate {rate}")),
            self.bytes_per_day.map(|bytes| format!("bytes_per_day {bytes}")),
            self.hours.map(|hours| format!("hours {hours}")),
            self.require_signature.then(|| "require_signature".to_owned()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Judges a name beneath the root; the root itself, if it is a file, has none.
    fn judge(&self, rule: usize, rest: &[&str]) -> Result<(), Refused> {
        let name = rest.join("/");
        if name.is_empty() {
            return Ok(());
        }
        // What excludes a directory excludes everything in it.
        let ends = name.match_indices('/').map(|(end, _)| end).chain([name.len()]);
        for end in ends {
            if let Some(pattern) = self.exclude.first_match(&name[..end]) {
                return Err(Refused::Excluded { rule, pattern });
            }
        }
        if self.include.texts.is_empty() || self.include.first_match(&name).is_some() {
            Ok(())
        } else {
            Err(Refused::NotIncluded { rule })
        }
    }
}

impl Patterns {
    fn first_match(&self, name: &str) -> Option<usize> {
        self.set.matches(name).first().copied()
    }
}

impl Policy {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules, signers: Vec::new() }
    }

    /// Lists whose requests are taken where a rule wants them signed.
    #[must_use]
    pub fn with_signers(self, signers: Vec<Signer>) -> Self {
        Self { signers, ..self }
    }

    /// Everything beneath these.
    pub fn of_roots(roots: Vec<RemotePath>) -> Self {
        Self::new(roots.into_iter().map(Rule::all_of).collect())
    }

    /// Returns the policy of those rules whose root is good, and the other roots.
    pub(super) fn split(&self, is_good: impl Fn(&RemotePath) -> bool) -> (Self, Vec<RemotePath>) {
        let (good, rest): (Vec<_>, Vec<_>) =
            self.rules.iter().cloned().partition(|rule| is_good(&rule.path));
        let rest = rest.into_iter().map(|rule| rule.path).collect();
        (Self { rules: good, signers: self.signers.clone() }, rest)
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }

    /// Says who has signed what is asked for, where any rule wants to know.
    pub(super) fn verify(&self, asked: &Asked<'_>, now: UnixMs) -> Result<Proof, Unsigned> {
        if !self.rules.iter().any(|rule| rule.require_signature) {
            return Err(Unsigned::Missing);
        }
        signed::verify(&self.signers, asked, now)
    }

    /// Returns the rule of the longest root, component by component, that `path` equals or lies
    /// beneath, if that rule allows it. No other rule is asked.
    pub(super) fn find<'a>(&self, path: &'a RemotePath) -> Result<Allowed<'a>, Refused> {
        let parts: Vec<&str> = path.components().collect();
        let matching = self.rules.iter().enumerate().filter_map(|(index, rule)| {
            let root: Vec<&str> = rule.path.components().collect();
            parts.starts_with(&root).then_some((root.len(), index))
        });
        let longest = matching.max_by_key(|(length, _)| *length);
        let (length, rule) = longest.ok_or(Refused::Outside)?;
        let rest = parts[length..].to_vec();
        self.judge(rule, &rest)?;
        Ok(Allowed { rule, rest })
    }

    /// Judges a name beneath the root of a rule, as the kernel has it once links are followed.
    pub(super) fn judge(&self, rule: usize, rest: &[&str]) -> Result<(), Refused> {
        self.rules[rule].judge(rule, rest)
    }

    /// Says why a path is denied: for the site's own eyes.
    pub(super) fn explain(&self, why: Denied) -> String {
        match why {
            Denied::Name(Refused::Outside) => "it is beneath no root of the policy in force; to \
                                               share it, add a [[root]], or `--allow DIR`"
                .to_owned(),
            Denied::Name(why) => self.explain_name(why),
            Denied::Resolved(Refused::Outside) => {
                "the file that it leads to is beneath no root of the policy".to_owned()
            }
            Denied::Resolved(why) => format!("of what it leads to: {}", self.explain_name(why)),
            Denied::LeadsOut => "on the way is a link, or another file system, that the policy \
                                 does not allow to follow; allow its target"
                .to_owned(),
            Denied::NameUnknown => "the name of what it leads to cannot be found out, which the \
                                    patterns of the policy need"
                .to_owned(),
            Denied::OtherSpelling => "its directory does not list this name, and is on a file \
                                      system that may open a file by other spellings too (such \
                                      as upper and lower case), which patterns and nested roots \
                                      do not know of; ask for it as it is listed"
                .to_owned(),
            Denied::TooLarge => "it is larger than the policy allows".to_owned(),
            Denied::KernelFiles => "files of the kernel are never delivered".to_owned(),
            Denied::OwnState => "the client's own files are never delivered".to_owned(),
            Denied::NoPath => "it is no absolute path without '..'".to_owned(),
            Denied::Unsigned(why) => {
                let names: Vec<_> = self.signers.iter().map(|each| each.name.as_str()).collect();
                format!("it needs a request signed by one of: {}; {why}", names.join(", "))
            }
        }
    }

    fn explain_name(&self, why: Refused) -> String {
        match why {
            Refused::Outside => "it is beneath no root of the policy".to_owned(),
            Refused::Excluded { rule, pattern } => {
                let rule = &self.rules[rule];
                let pattern = rule.exclude.texts.get(pattern).map_or("", String::as_str);
                format!("the rule {:?} excludes {pattern:?}", rule.name)
            }
            Refused::NotIncluded { rule } => {
                format!("the rule {:?} includes nothing of this name", self.rules[rule].name)
            }
        }
    }

    /// Returns what tells one policy from another.
    pub fn digest(&self) -> Hash {
        blake3::hash(self.to_string().as_bytes())
    }
}

/// By what it allows.
impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Policy {}

/// The same text for the same policy, whatever file or flags said it.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            let Rule { name, path, include, exclude, size_max, links, one_file_system, .. } = rule;
            writeln!(f, "root {name:?} {:?}", path.as_str())?;
            writeln!(f, " include {:?} exclude {:?}", include.texts, exclude.texts)?;
            writeln!(
                f,
                " max_size {size_max:?} links {links:?} one_file_system {one_file_system}"
            )?;
            let Rule { rate, bytes_per_day, hours, .. } = rule;
            writeln!(f, " rate {rate:?} bytes_per_day {bytes_per_day:?} hours {hours:?}")?;
            writeln!(f, " require_signature {}", rule.require_signature)?;
        }
        self.signers.iter().try_for_each(|Signer { name, key }| writeln!(f, "signer {name} {key}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RemotePath {
        text.parse().expect("a path")
    }

    fn roots(roots: &[&str]) -> Policy {
        Policy::of_roots(roots.iter().map(|root| path(root)).collect())
    }

    fn policy(text: &str) -> Policy {
        Policy::parse(text).expect("a policy")
    }

    fn found(policy: &Policy, text: &str) -> Result<(usize, String), Refused> {
        policy.find(&path(text)).map(|allowed| (allowed.rule, allowed.rest.join("/")))
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        assert_eq!(found(&Policy::default(), "/"), Err(Refused::Outside));
    }

    #[test]
    fn roots_end_at_a_component() {
        let policy = roots(&["/data"]);
        assert_eq!(found(&policy, "/data/x"), Ok((0, "x".into())));
        assert_eq!(found(&policy, "/data"), Ok((0, String::new())));
        for outside in ["/data-secret/x", "/dat", "/", "/x/data/x", "/Data/x"] {
            assert_eq!(found(&policy, outside), Err(Refused::Outside), "{outside}");
        }
    }

    #[test]
    fn the_longest_root_wins_in_any_order() {
        for each in [["/a", "/a/b/c", "/a/b"], ["/a/b/c", "/a/b", "/a"]] {
            let policy = roots(&each);
            let (root, rest) = found(&policy, "/a/b/c/d").expect("allowed");
            assert_eq!((each[root], rest.as_str()), ("/a/b/c", "d"));
            let (root, rest) = found(&policy, "/a/b/x").expect("allowed");
            assert_eq!((each[root], rest.as_str()), ("/a/b", "x"));
        }
    }

    #[test]
    fn doubled_slashes_and_dots_are_the_same_path() {
        let policy = roots(&["//srv/./files/"]);
        assert_eq!(found(&policy, "/srv//files/./a"), Ok((0, "a".into())));
    }

    #[test]
    fn the_root_directory_allows_everything() {
        assert_eq!(found(&roots(&["/"]), "/etc/passwd"), Ok((0, "etc/passwd".into())));
    }

    #[test]
    fn patterns_include_and_exclude_by_component() {
        let policy = policy(
            "[[root]]\nname = 'logs'\npath = '/l'\ninclude = ['*.log', 'app/**', '**/deep/?.txt']\n\
             exclude = ['private', '**/*.key', 'app/[ab]*']\n",
        );
        let included = ["x.log", "app/x", "app/c/d.bin", "deep/1.txt", "x/y/deep/2.txt"];
        for name in included {
            assert_eq!(found(&policy, &format!("/l/{name}")), Ok((0, name.into())), "{name}");
        }
        for name in ["x.LOG", "d/x.log", "deep/12.txt", "app", "x.log/y"] {
            let refused = Err(Refused::NotIncluded { rule: 0 });
            assert_eq!(found(&policy, &format!("/l/{name}")), refused, "{name}");
        }
        let excluded =
            [("private", 0), ("private/x.log", 0), ("app/x.key", 1), ("x.key", 1), ("app/b/c", 2)];
        for (name, pattern) in excluded {
            let refused = Err(Refused::Excluded { rule: 0, pattern });
            assert_eq!(found(&policy, &format!("/l/{name}")), refused, "{name}");
        }
    }

    #[test]
    fn a_narrow_rule_beneath_a_wide_one_decides_alone() {
        let policy = policy(
            "[[root]]\nname = 'all'\npath = '/srv'\n[[root]]\nname = 'some'\n\
             path = '/srv/private'\ninclude = ['*.txt']\n",
        );
        assert_eq!(found(&policy, "/srv/private/a.txt"), Ok((1, "a.txt".into())));
        let refused = Err(Refused::NotIncluded { rule: 1 });
        assert_eq!(found(&policy, "/srv/private/key"), refused);
    }

    #[test]
    fn a_digest_tells_policies_apart_and_nothing_else() {
        let base = "[[root]]\nname = 'a'\npath = '/a'\n";
        let same = policy(&format!("# a comment\n{base}links = 'inside'\n"));
        assert_eq!(policy(base).digest(), same.digest());
        for more in [
            "include = ['x']",
            "exclude = ['x']",
            "max_size = '1GB'",
            "links = 'never'",
            "one_file_system = true",
            "rate = '1MB/s'",
            "bytes_per_day = '1GB'",
            "hours = '22:00-06:00'",
        ] {
            assert_ne!(policy(&format!("{base}{more}\n")).digest(), same.digest(), "{more}");
        }
    }
}
