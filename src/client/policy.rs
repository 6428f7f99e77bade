//! Which root a path belongs to. Pure: it compares names, and never looks at a disk.

use crate::ids::RemotePath;

/// What may be read; by default nothing.
#[derive(Debug)]
pub(super) struct Policy {
    roots: Vec<RemotePath>,
}

/// A path that is allowed by name: the rest is still to be opened beneath the root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed<'a> {
    /// Index among the roots.
    pub(super) root: usize,
    pub(super) rest: Vec<&'a str>,
}

impl Policy {
    pub(super) fn new(roots: Vec<RemotePath>) -> Self {
        Self { roots }
    }

    pub(super) fn roots(&self) -> &[RemotePath] {
        &self.roots
    }

    /// Returns the longest root, component by component, that `path` equals or lies beneath.
    pub(super) fn find<'a>(&self, path: &'a RemotePath) -> Option<Allowed<'a>> {
        let parts: Vec<&str> = path.components().collect();
        let matching = self.roots.iter().enumerate().filter_map(|(index, root)| {
            let root: Vec<&str> = root.components().collect();
            parts.starts_with(&root).then_some((root.len(), index))
        });
        let (length, root) = matching.max_by_key(|(length, _)| *length)?;
        Some(Allowed { root, rest: parts[length..].to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RemotePath {
        text.parse().expect("a path")
    }

    fn policy(roots: &[&str]) -> Policy {
        Policy::new(roots.iter().map(|root| path(root)).collect())
    }

    fn found(policy: &Policy, text: &str) -> Option<(usize, String)> {
        policy.find(&path(text)).map(|allowed| (allowed.root, allowed.rest.join("/")))
    }

    #[test]
    fn nothing_is_allowed_by_default() {
        assert_eq!(found(&policy(&[]), "/"), None);
    }

    #[test]
    fn roots_end_at_a_component() {
        let policy = policy(&["/data"]);
        assert_eq!(found(&policy, "/data/x"), Some((0, "x".into())));
        assert_eq!(found(&policy, "/data"), Some((0, String::new())));
        for outside in ["/data-secret/x", "/dat", "/", "/x/data/x", "/Data/x"] {
            assert_eq!(found(&policy, outside), None, "{outside}");
        }
    }

    #[test]
    fn the_longest_root_wins_in_any_order() {
        for roots in [["/a", "/a/b/c", "/a/b"], ["/a/b/c", "/a/b", "/a"]] {
            let policy = policy(&roots);
            let (root, rest) = found(&policy, "/a/b/c/d").expect("allowed");
            assert_eq!((roots[root], rest.as_str()), ("/a/b/c", "d"));
            let (root, rest) = found(&policy, "/a/b/x").expect("allowed");
            assert_eq!((roots[root], rest.as_str()), ("/a/b", "x"));
        }
    }

    #[test]
    fn doubled_slashes_and_dots_are_the_same_path() {
        let policy = policy(&["//srv/./files/"]);
        assert_eq!(found(&policy, "/srv//files/./a"), Some((0, "a".into())));
    }

    #[test]
    fn the_root_directory_allows_everything() {
        assert_eq!(found(&policy(&["/"]), "/etc/passwd"), Some((0, "etc/passwd".into())));
    }
}
