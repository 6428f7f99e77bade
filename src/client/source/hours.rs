//! What the name of a file says of when it may be sent: told without a look at the disk.

use super::Source;
use crate::{
    client::terms::Held,
    ids::{IdError, RemotePath},
};

impl Source {
    /// Returns why the rule that the path belongs to by its name lets nothing out now, if that is so.
    /// Where a link leads from there is judged by the opened file's own rule.
    pub(in crate::client) fn held_by_name(
        &self,
        path: &Result<Option<RemotePath>, IdError>,
    ) -> Option<Held> {
        let path = path.as_ref().ok()?.as_ref().or(self.default_file.as_ref())?;
        let allowed = self.policy.find(path).ok()?;
        self.terms[allowed.rule].held()
    }
}
