//! What ends when an identity is good no longer: its session, and its uploads. What it has delivered
//! stays, and what it has not waits.

use std::sync::Arc;

use super::{Coordinator, ignore_late};
use crate::{
    ids::ClientId,
    limits,
    server::{
        access::Need, authority::ClientCertificate, error::Error, gate, store::TransferFilter,
    },
    transfer::{Cause, State, Step},
};

impl Coordinator {
    /// Returns an error unless the identity of this certificate is in good standing. Asked again
    /// once a session or an upload is in its list: what is revoked after that finds it there.
    pub(in crate::server) async fn check_standing(
        &self,
        certificate: Option<&ClientCertificate>,
    ) -> Result<(), Error> {
        match certificate {
            // Nobody asks for credentials here.
            None => Ok(()),
            Some(certificate) => {
                gate::client(self.credentials.as_ref(), certificate, Need::Client).await
            }
        }
    }

    /// Ends the session and the uploads of a client, and its connections a little later.
    pub(in crate::server) fn expel(&self, client: &ClientId) {
        let session = self.sessions.find(client);
        if let Some(session) = &session {
            session.revoked.cancel();
        }
        let mut uploads = 0;
        for upload in self.uploads.all() {
            if upload.client() == Some(client) {
                self.uploads.stop_because(upload.attempt, Cause::ClientLost);
                uploads += 1;
            }
        }
        if session.is_some() || uploads > 0 {
            let client_id = client.as_str();
            tracing::info!(client_id, uploads, "ended what a client had running");
        }
        self.clients.let_go(client, &self.shutdown);
    }

    /// Cancels what a client has not delivered: nobody will ever deliver it.
    pub(in crate::server) async fn cancel_all(
        self: &Arc<Self>,
        client: &ClientId,
    ) -> Result<(), Error> {
        let states = State::ALL.into_iter().filter(|state| !state.is_final()).collect();
        let filter = TransferFilter { client: Some(client.clone()), states };
        let mut before = None;
        loop {
            let page = self.store.transfers(&filter, before, limits::PAGE_SIZE_MAX).await?;
            let Some(last) = page.last() else { return Ok(()) };
            before = Some(last.id);
            for transfer in page {
                let received_bytes = self.received(transfer.id);
                ignore_late(self.apply(transfer.id, Step::Cancelled { received_bytes }).await)?;
            }
        }
    }
}
