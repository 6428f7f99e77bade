//! What administrators do to the authority: the files change in the process that serves, one change
//! at a time, and are in use when the answer comes.

use std::sync::Arc;

use super::{Administration, not_secured};
use crate::{
    server::{
        authority::{Authority, AuthorityError},
        error::Error,
        tls::{ServerTlsError, Tls},
    },
    status::Reason,
};

impl Administration {
    pub async fn rotate_authority(&self) -> Result<Arc<Authority>, Error> {
        self.change_authority(Authority::rotate).await
    }

    pub async fn finish_rotation(&self) -> Result<Arc<Authority>, Error> {
        self.change_authority(Authority::finish).await
    }

    pub async fn renew_intermediate(&self) -> Result<Arc<Authority>, Error> {
        self.change_authority(Authority::renew_intermediate).await
    }

    async fn change_authority(
        &self,
        change: fn(&Authority) -> Result<Authority, AuthorityError>,
    ) -> Result<Arc<Authority>, Error> {
        let tls: Arc<Tls> = Arc::clone(self.tls.as_ref().ok_or_else(not_secured)?);
        // Whoever hangs up does not break it off.
        let changed = tokio::task::spawn_blocking(move || tls.change(change)).await;
        match changed.map_err(|err| Error::Internal(err.to_string()))? {
            Ok(authority) => Ok(authority),
            Err(ServerTlsError::Authority(AuthorityError::WrongState(text))) => {
                Err(Error::refused(Reason::WrongState, text))
            }
            Err(err) => {
                tracing::error!(
                    error = &err as &dyn std::error::Error,
                    "could not change the authority"
                );
                Err(Error::refused(Reason::ServerIo, err.to_string()))
            }
        }
    }
}
