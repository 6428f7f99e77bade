//! `policy.toml`, as a site writes it. Everything that is wrong with it is told at once.
//!
//! ```toml
//! [[root]]
//! name = "logs"
//! path = "/var/log/app"
//! include = ["**/*.log"]        # default: everything
//! exclude = ["private", "**/*.key"]
//! max_size = "10GB"             # default: no limit
//! links = "never"               # default: "inside"
//! one_file_system = true        # default: false
//! rate = "5MB/s"                # default: no limit
//! bytes_per_day = "50GB"        # default: no limit
//! hours = "22:00-06:00"         # default: at all hours
//! require_signature = true      # default: false; needs a [[signer]]
//!
//! [[signer]]
//! name = "alice"
//! key = "ed25519:BASE64"        # as `fts key show` prints it
//! ```

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use globset::{GlobBuilder, GlobSetBuilder};
use serde::Deserialize;

use super::{Links, Patterns, Policy, Rule, signed};
use crate::{ids::RemotePath, limits, settings};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    root: Vec<Root>,
    #[serde(default)]
    signer: Vec<signed::Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Root {
    name: String,
    path: String,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    max_size: Option<String>,
    links: Option<String>,
    #[serde(default)]
    one_file_system: bool,
    rate: Option<String>,
    bytes_per_day: Option<String>,
    hours: Option<String>,
    #[serde(default)]
    require_signature: bool,
}

impl Policy {
    /// Reads the file of a policy, which nobody but its owner may write.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self, Vec<String>> {
        let text = settings::read_regular(path).map_err(|problem| vec![problem])?;
        let stat = fs::metadata(path).map_err(|err| vec![err.to_string()])?;
        if stat.permissions().mode() & 0o022 != 0 {
            let text = "others may write it, and so say what is shared: run chmod go-w on it";
            return Err(vec![text.to_owned()]);
        }
        Self::parse(&text)
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// Everything that is wrong, with the line or the name of the rule.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let file: File = settings::parse_toml(text).map_err(|problems| {
            let lines = problems.into_iter();
            lines.map(|(line, what)| format!("line {line}: {what}")).collect::<Vec<_>>()
        })?;
        let mut problems = Vec::new();
        if file.root.is_empty() {
            problems.push("no [[root]]: nothing could be read".to_owned());
        }
        if file.root.len() > limits::ALLOWED_ROOTS_MAX {
            problems.push(format!("at most {} times [[root]]", limits::ALLOWED_ROOTS_MAX));
        }
        let has_no_signer = file.signer.is_empty();
        let (signers, wrong) = signed::listed(file.signer);
        problems.extend(wrong);
        let mut rules: Vec<Rule> = Vec::new();
        for (number, root) in (1..).zip(file.root) {
            let name = format!("root {number} ({:?})", root.name);
            if root.require_signature && has_no_signer {
                problems.push(format!("{name}: require_signature needs a [[signer]]"));
            }
            let (rule, wrong) = root.check();
            problems.extend(wrong.into_iter().map(|what| format!("{name}: {what}")));
            let Some(rule) = rule else { continue };
            for other in &rules {
                if other.name == rule.name {
                    problems.push(format!("{name}: another root has this name"));
                }
                if other.path.components().eq(rule.path.components()) {
                    problems.push(format!("{name}: {:?} has the same path", other.name));
                }
            }
            rules.push(rule);
        }
        if problems.is_empty() { Ok(Self::new(rules).with_signers(signers)) } else { Err(problems) }
    }
}

impl Root {
    /// Returns the rule, or what is wrong.
    fn check(self) -> (Option<Rule>, Vec<String>) {
        let mut problems = Vec::new();
        named(&self.name).unwrap_or_else(|problem| problems.push(problem));
        let path = keep(
            &mut problems,
            "path",
            self.path.parse::<RemotePath>().map_err(|err| err.to_string()),
        );
        let include = keep(&mut problems, "include", patterns(self.include));
        let exclude = keep(&mut problems, "exclude", patterns(self.exclude));
        let size_max = optional(&mut problems, "max_size", self.max_size, settings::size);
        let links = keep(&mut problems, "links", links(self.links.as_deref()));
        let rate = optional(&mut problems, "rate", self.rate, settings::rate).flatten();
        let bytes_per_day = optional(&mut problems, "bytes_per_day", self.bytes_per_day, of_day);
        let hours = optional(&mut problems, "hours", self.hours, str::parse);
        let parts = path.zip(include).zip(exclude).zip(links);
        let rule = parts.map(|(((path, include), exclude), links)| Rule {
            name: self.name,
            path,
            include,
            exclude,
            size_max,
            links,
            one_file_system: self.one_file_system,
            rate,
            bytes_per_day,
            hours,
            require_signature: self.require_signature,
        });
        (rule, problems)
    }
}

/// Returns what is good, or notes what is wrong with this key.
fn keep<T>(problems: &mut Vec<String>, key: &str, result: Result<T, String>) -> Option<T> {
    result.map_err(|what| problems.push(format!("{key}: {what}"))).ok()
}

fn optional<T>(
    problems: &mut Vec<String>,
    key: &str,
    text: Option<String>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    keep(problems, key, parse(&text?))
}

fn of_day(text: &str) -> Result<u64, String> {
    let bytes = settings::size(text)?;
    let least = limits::BYTES_PER_DAY_MIN;
    if bytes < least { Err(format!("at least {least} bytes")) } else { Ok(bytes) }
}

pub(super) fn named(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.is_empty() && name.len() <= limits::LABEL_BYTES_MAX && name.chars().all(is_plain) {
        Ok(())
    } else {
        Err("a name is letters, digits, '.', '_' and '-'".to_owned())
    }
}

fn links(text: Option<&str>) -> Result<Links, String> {
    match text {
        None | Some("inside") => Ok(Links::Inside),
        Some("never") => Ok(Links::Never),
        Some(_) => Err("neither \"inside\" nor \"never\"".to_owned()),
    }
}

fn patterns(texts: Vec<String>) -> Result<Patterns, String> {
    if texts.len() > limits::POLICY_PATTERNS_MAX {
        return Err(format!("at most {} patterns", limits::POLICY_PATTERNS_MAX));
    }
    let mut set = GlobSetBuilder::new();
    for text in &texts {
        let wrong = |what: &str| format!("{text:?}: {what}");
        if text.is_empty() || text.len() > limits::PATH_BYTES_MAX {
            return Err(wrong("a pattern has 1 to 4096 bytes"));
        }
        // It would match nothing, and who wrote it would believe it did.
        let odd = |part: &str| matches!(part, "" | "." | "..");
        if text.split('/').any(odd) {
            return Err(wrong("write it as beneath the root, without a / at either end"));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
        set.add(glob.map_err(|err| wrong(&err.kind().to_string()))?);
    }
    let set = set.build().map_err(|err| err.to_string())?;
    Ok(Patterns { set, texts })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        Policy::parse(text).expect_err("refused")
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let text = "[[root]]\nname = 'a b'\npath = 'rel'\nlinks = 'maybe'\nmax_size = 'big'\n\
                    include = ['/x']\nexclude = ['[']\nrate = 'fast'\nbytes_per_day = '1KB'\n\
                    hours = 'night'\n[[root]]\nname = 'b'\npath = '/b'\n\
                    [[root]]\nname = 'b'\npath = '/b/.'\n";
        let told = problems(text).join("\n");
        for part in [
            "root 1 (\"a b\"): a name is",
            "root 1 (\"a b\"): path:",
            "include: \"/x\"",
            "exclude: \"[\"",
            "max_size:",
            "links:",
            "rate:",
            "bytes_per_day: at least",
            "hours: \"night\"",
            "root 3 (\"b\"): another root has this name",
            "root 3 (\"b\"): \"b\" has the same path",
        ] {
            assert!(told.contains(part), "{part} is not in:\n{told}");
        }
    }

    #[test]
    fn unknown_keys_and_an_empty_policy_are_refused() {
        assert!(problems("").join("").contains("nothing could be read"));
        let told = problems("[[root]]\nname = 'a'\npath = '/a'\nexlude = ['x']\n").join("");
        assert!(told.contains("line 4") && told.contains("exlude"), "{told}");
    }

    #[test]
    fn a_pattern_that_could_match_nothing_is_refused() {
        for pattern in ["", "/x", "x/", "a//b", "./x", "../x", "a/../b"] {
            let text = format!("[[root]]\nname = 'a'\npath = '/a'\nexclude = ['{pattern}']\n");
            assert!(problems(&text).join("").contains("exclude"), "{pattern:?}");
        }
    }

    #[test]
    fn there_is_a_limit_to_roots_and_patterns() {
        let many: Vec<_> = (0..=limits::ALLOWED_ROOTS_MAX)
            .map(|n| format!("[[root]]\nname = 'r{n}'\npath = '/{n}'\n"))
            .collect();
        assert!(problems(&many.concat()).join("").contains("at most"));
        let patterns = vec!["'x'"; limits::POLICY_PATTERNS_MAX + 1].join(", ");
        let text = format!("[[root]]\nname = 'a'\npath = '/a'\ninclude = [{patterns}]\n");
        assert!(problems(&text).join("").contains("at most"));
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("policy.toml");
        fs::write(&path, "[[root]]\nname = 'a'\npath = '/a'\n").expect("written");
        for (mode, is_good) in [(0o600, true), (0o644, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("changed");
            assert_eq!(Policy::read(&path).is_ok(), is_good, "{mode:o}");
        }
    }
}
