//! Where a client says that its own audit stands: noted, and compared with what it said before. So a
//! site cannot change what it has told of without its server's seeing that.

use tokio::time::Instant;

use super::Link;
use crate::{
    audit_head::AuditHead,
    ids::UnixMs,
    limits,
    server::{
        audit::{Action, Detail},
        store::SaidHead,
    },
};

impl Link {
    /// Notes what the Hello said.
    pub(super) async fn note_first_audit_head(&mut self) {
        if let Some(head) = self.audit_head {
            self.note_audit_head(SaidHead { head, is_of_hello: true }).await;
        }
    }

    /// Takes what a heartbeat says, and notes it, if it is another one than before.
    pub(super) async fn hear_audit_head(&mut self, head: Option<AuditHead>) {
        let Some(head) = head else { return };
        self.audit_head = Some(head);
        // What cannot be noted is told again with the next heartbeat.
        if let Some((noted, at)) = self.audit_noted
            && (noted == head || Instant::now() < at + limits::CLIENT_AUDIT_NOTED_EVERY)
        {
            return;
        }
        if self.note_audit_head(SaidHead { head, is_of_hello: false }).await {
            self.audit_noted = Some((head, Instant::now()));
        }
    }

    /// Returns whether it could.
    async fn note_audit_head(&mut self, said: SaidHead) -> bool {
        let (store, session) = (&self.coordinator.store, &self.session);
        let noted =
            store.note_audit_head(&session.client, session.epoch, said, UnixMs::now()).await;
        match noted {
            Ok(None) => {}
            Ok(Some(before)) => self.tell_back(before, said.head),
            Err(err) => {
                tracing::warn!(error = %err, "could not note where the client's audit stands");
                return false;
            }
        }
        true
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
