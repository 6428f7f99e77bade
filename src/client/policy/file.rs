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

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use globset::{Glob, GlobBuilder, GlobSetBuilder};
use rustix::process::geteuid;
use toml::{Spanned, de::DeTable};

use super::{
    Links, Patterns, Policy, Rule,
    keys::{Keys, Problems, flag, parsed},
    signed,
};
use crate::{ids::RemotePath, limits, settings};

impl Policy {
    /// Reads the file of a policy, which nobody may write but root, or the user of this process.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn read(path: &Path) -> Result<Self, Vec<String>> {
        let text = settings::read_regular(path).map_err(|problem| vec![problem])?;
        let stat = fs::metadata(path).map_err(|err| vec![err.to_string()])?;
        if let Some(problem) = written_by(stat.mode(), stat.uid(), geteuid().as_raw()) {
            return Err(vec![problem]);
        }
        Self::parse(&text)
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// Everything that is wrong, with the line or the name of the rule.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let mut problems = Problems::of(text);
        let (table, errors) = DeTable::parse_recoverable(text);
        for err in &errors {
            problems.add(err.span().map_or(0, |span| span.start), err.message().to_owned());
        }
        // What is left of a text that is no TOML has problems that are none of the file's.
        if !errors.is_empty() {
            return Err(problems.told());
        }
        let mut file = Keys::new(&mut problems, String::new(), table);
        let (roots, signers) = (file.tables("root"), file.tables("signer"));
        if roots.is_empty() {
            file.wrong(file.at, "no [[root]]: nothing could be read");
        }
        file.end();
        let rules = rules(roots, !signers.is_empty(), &mut problems);
        let signers = signed::listed(signers, &mut problems);
        let told = problems.told();
        if told.is_empty() { Ok(Self::new(rules).with_signers(signers)) } else { Err(told) }
    }
}

/// Returns what is wrong with who may write a file, and so say what is shared.
fn written_by(mode: u32, owner: u32, me: u32) -> Option<String> {
    if owner != 0 && owner != me {
        return Some(format!(
            "the user {owner} may write it, and so say what is shared: it has to belong to root, \
             or to the user of this process ({me})"
        ));
    }
    let text = "others may write it, and so say what is shared: run chmod go-w on it";
    (mode & 0o022 != 0).then(|| text.to_owned())
}

/// Reads the `[[root]]` tables.
fn rules<'t>(
    tables: Vec<Spanned<DeTable<'t>>>,
    has_signer: bool,
    problems: &mut Problems<'t>,
) -> Vec<Rule> {
    let (mut names, mut rules) = (Vec::new(), Vec::<Rule>::new());
    for (number, table) in (1..).zip(tables) {
        let mut keys = Keys::new(problems, format!("root {number}"), table);
        let name = keys.name(named);
        let path = keys.need("path", parsed(|text| text.parse().map_err(|err| format!("{err}"))));
        if number > limits::ALLOWED_ROOTS_MAX {
            keys.wrong(keys.at, &format!("at most {} times [[root]]", limits::ALLOWED_ROOTS_MAX));
        }
        if name.is_some() && names.contains(&name) {
            keys.wrong(keys.at, "another root has this name");
        }
        let is_path = |other: &&Rule| {
            path.as_ref()
                .is_some_and(|path: &RemotePath| other.path.components().eq(path.components()))
        };
        if let Some(other) = rules.iter().find(is_path) {
            keys.wrong(keys.at, &format!("{:?} has the same path", other.name));
        }
        let conditions = conditions(&mut keys, has_signer);
        keys.end();
        if let Some(path) = path {
            rules.push(Rule { name: name.clone().unwrap_or_default(), path, ..conditions });
        }
        names.push(name);
    }
    rules
}

/// Reads what a rule says besides its name and path.
fn conditions(keys: &mut Keys<'_, '_>, has_signer: bool) -> Rule {
    let mut rule = Rule::all_of("/".parse().expect("it is a path"));
    rule.include = patterns(keys, "include");
    rule.exclude = patterns(keys, "exclude");
    rule.size_max = keys.take("max_size", parsed(settings::size));
    rule.links = keys.take("links", parsed(links)).unwrap_or(rule.links);
    rule.one_file_system = keys.take("one_file_system", flag).unwrap_or_default();
    rule.rate = keys.take("rate", parsed(settings::rate)).flatten();
    rule.bytes_per_day = keys.take("bytes_per_day", parsed(of_day));
    rule.hours = keys.take("hours", parsed(str::parse));
    rule.require_signature = keys.take("require_signature", flag).unwrap_or_default();
    if rule.require_signature && !has_signer {
        keys.wrong(keys.at, "require_signature needs a [[signer]]");
    }
    rule
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
        Err(format!(
            "a name is letters, digits, '.', '_' and '-', at most {} of them",
            limits::LABEL_BYTES_MAX
        ))
    }
}

fn links(text: &str) -> Result<Links, String> {
    match text {
        "inside" => Ok(Links::Inside),
        "never" => Ok(Links::Never),
        _ => Err("neither \"inside\" nor \"never\"".to_owned()),
    }
}

fn patterns(keys: &mut Keys<'_, '_>, key: &str) -> Patterns {
    let read = keys.list(key, |text| Ok((pattern(text)?, text.to_owned())));
    if read.len() > limits::POLICY_PATTERNS_MAX {
        keys.wrong(keys.at, &format!("{key}: at most {} patterns", limits::POLICY_PATTERNS_MAX));
        return Patterns::default();
    }
    let mut set = GlobSetBuilder::new();
    let (globs, texts): (Vec<_>, Vec<_>) = read.into_iter().unzip();
    for glob in globs {
        set.add(glob);
    }
    match set.build() {
        Ok(set) => Patterns { set, texts },
        Err(err) => {
            keys.wrong(keys.at, &format!("{key}: {err}"));
            Patterns::default()
        }
    }
}

fn pattern(text: &str) -> Result<Glob, String> {
    let wrong = |what: &str| format!("{text:?}: {what}");
    if text.is_empty() || text.len() > limits::PATH_BYTES_MAX {
        return Err(wrong("a pattern has 1 to 4096 bytes"));
    }
    // It would match nothing, and who wrote it would believe it did.
    let odd = |part: &str| matches!(part, "" | "." | "..");
    if text.split('/').any(odd) {
        return Err(wrong("write it as beneath the root, without a / at either end"));
    }
    // It would match within a name, as `*` does, and who wrote it would believe it did beneath it too.
    if text.split('/').any(|part| part.contains("**") && part != "**") {
        return Err(wrong("** stands for directories: write it between slashes, as in **/*.key"));
    }
    let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
    glob.map_err(|err| wrong(&err.kind().to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn problems(text: &str) -> Vec<String> {
        Policy::parse(text).expect_err("refused")
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        let text = "colour = 1\n\
                    [[root]]\nname = 'a b'\npath = 'rel'\nlinks = 'maybe'\nmax_size = 5\n\
                    include = ['/x', 'good', 7, 'y/']\nexclude = '['\nrate = 'fast'\n\
                    bytes_per_day = '1KB'\nhours = 'night'\none_file_system = 'yes'\n\
                    [[root]]\nname = 'b'\npath = '/b'\nexlude = ['x']\n\
                    require_signature = true\n\
                    [[root]]\nname = 'b'\npath = '/b/.'\n\
                    [[root]]\nlinks = 'inside'\n";
        let told = problems(text);
        let expected = [
            "line 1: there is no such key: \"colour\"",
            "line 3: root 1 (\"a b\"): name: a name is letters, digits, '.', '_' and '-'",
            "line 4: root 1 (\"a b\"): path: ",
            "line 5: root 1 (\"a b\"): links: neither \"inside\" nor \"never\"",
            "line 6: root 1 (\"a b\"): max_size: not a text, but of type integer",
            "line 7: root 1 (\"a b\"): include: \"/x\": ",
            "line 7: root 1 (\"a b\"): include: not a text, but of type integer",
            "line 7: root 1 (\"a b\"): include: \"y/\": ",
            "line 8: root 1 (\"a b\"): exclude: not a list of texts, but of type string",
            "line 9: root 1 (\"a b\"): rate: ",
            "line 10: root 1 (\"a b\"): bytes_per_day: at least",
            "line 11: root 1 (\"a b\"): hours: \"night\"",
            "line 12: root 1 (\"a b\"): one_file_system: not true or false, but of type string",
            "line 13: root 2 (\"b\"): require_signature needs a [[signer]]",
            "line 16: root 2 (\"b\"): there is no such key: \"exlude\"",
            "line 18: root 3 (\"b\"): another root has this name",
            "line 18: root 3 (\"b\"): \"b\" has the same path",
            "line 21: root 4: there is no name",
            "line 21: root 4: there is no path",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}, where it should be {expected}");
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
        let odd = ["", "/x", "x/", "a//b", "./x", "../x", "a/../b", "**.key", "a/b**", "a/***/b"];
        for pattern in odd {
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
        for (owner, me, is_good) in
            [(0, 0, true), (0, 7, true), (7, 7, true), (7, 0, false), (7, 8, false)]
        {
            assert_eq!(written_by(0o600, owner, me).is_none(), is_good, "{owner} {me}");
        }
    }
}
