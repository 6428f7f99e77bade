//! Where a client says that its own audit stands: noted, and compared with what it said before. So a
//! site cannot change what it has told of without its server's seeing that.

use tokio::time::Instant;

use super::Link;
use crate::{
    audit_head::AuditHead,
    ids::UnixMs,
    limits,
    server::audit::{Action, Detail},
};

impl Link {
    /// Notes it, if it is another one than before. What cannot be noted is told again with the next
    /// heartbeat.
    pub(super) async fn note_audit_head(&mut self, head: Option<AuditHead>) {
        let Some(head) = head else { return };
        let now = Instant::now();
        if let Some((noted, at)) = self.audit_head
            && (noted == head || now < at + limits::CLIENT_AUDIT_NOTED_EVERY)
        {
            return;
        }
        let (store, session) = (&self.coordinator.store, &self.session);
        let noted =
            store.note_audit_head(&session.client, session.epoch, head, UnixMs::now()).await;
        match noted {
            Ok(None) => {}
            Ok(Some(before)) => self.tell_back(before, head),
            Err(err) => {
                tracing::warn!(error = %err, "could not note where the client's audit stands");
                return;
            }
        }
        self.audit_head = Some((head, now));
    }

    fn tell_back(&self, before: AuditHead, now: AuditHead) {
        tracing::error!(
            client_id = %self.session.client, %before, %now,
            "the client's own audit went back: lines that it had told of were removed or changed"
        );
        let about = [Detail::Text(format!("from {before} to {now}"))];
        // Among the sessions: how many there are, the client decides.
        self.audited.session(Action::ClientAuditBack, &about);
    }
}
