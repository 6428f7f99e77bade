//! `fts-client join`: makes this machine a client of a server, once.

use std::path::PathBuf;

use super::{
    config::JoinPlan,
    enrolment::{self, Clock, EnrolmentError, Granted},
    identity::{self, IdentityError, NewKey},
    renewal::trust,
    state_dir::{StateDir, StateDirError},
};
use crate::{
    ids::ClientId,
    route::Route,
    server_url::ServerUrl,
    status::Reason,
    tls::{TlsError, Trust},
};

/// Why this machine has not joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(
        "{} holds an identity already: fts-client starts with it; --force makes a new one in its \
         place", .0.display()
    )]
    HasJoined(PathBuf),
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It tells its cause itself.
    #[error("{0}{advice}", advice = advice(.0))]
    Enrolment(EnrolmentError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl JoinError {
    /// Returns how the program ends, as `sysexits.h` has it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Enrolment(EnrolmentError::Unreachable(_)) => 69,
            Self::Enrolment(EnrolmentError::Refused { .. }) => 77,
            Self::StateDir(_) | Self::HasJoined(_) | Self::Tls(_) => 78,
            Self::Enrolment(_) | Self::Identity(_) => 1,
        }
    }
}

fn advice(err: &EnrolmentError) -> &'static str {
    match err {
        EnrolmentError::Refused { reason: Some(Reason::JoinRefused), .. } => {
            "; the token may have expired, been used up or revoked, or be for another client id: \
             ask for a new one (fts-server token create)"
        }
        EnrolmentError::Refused { reason: Some(Reason::Unauthenticated), .. } => {
            "; this server knows no such token: is it the server that the token is from?"
        }
        EnrolmentError::Refused { reason: Some(Reason::Revoked), .. } => {
            "; a client id that was deleted or revoked cannot be joined again with this token"
        }
        _ => "",
    }
}

/// A machine that has joined.
#[derive(Debug)]
pub struct Joining {
    pub id: ClientId,
    pub server: ServerUrl,
    pub state_dir: PathBuf,
    pub is_pending: bool,
    /// It knows which files it may share.
    pub shares: bool,
    /// What else there is to know.
    pub warnings: Vec<String>,
}

/// Joins. Only when everything is stored has this machine joined; a crash before leaves what was.
pub async fn join(plan: JoinPlan) -> Result<Joining, JoinError> {
    let _state = StateDir::open(&plan.state_dir)?;
    if identity::has_joined(&plan.state_dir) && !plan.replaces {
        return Err(JoinError::HasJoined(plan.state_dir));
    }
    let trust = match plan.token.root {
        Some(root) => Trust::Pinned(root),
        None => trust(&[], plan.ca.as_ref()),
    };
    let route = Route::new(&plan.server, &trust, None, &plan.proxies)?;
    let key = NewKey::to_join(&plan.state_dir, &plan.token.id)?;
    let granted = enrolment::join(&route, &plan.token, key, &plan.id, &plan.host_name).await;
    let granted = granted.map_err(JoinError::Enrolment)?;
    let Granted { identity, roots, is_pending, clock } = granted;

    let mut warnings = Vec::new();
    identity::store_roots(&plan.state_dir, &roots)?;
    identity.store(&plan.state_dir)?;
    // Without it the client needs its flags each time; with the old one it would go elsewhere.
    match &plan.joined_file {
        Some(path) => plan.joined.write(path)?,
        None => warnings.push(
            "neither XDG_STATE_HOME nor HOME is set: give the same flags to \
                               fts-client each time"
                .to_owned(),
        ),
    }
    identity::forget_join(&plan.state_dir)?;
    warnings.extend(clock.and_then(Clock::problem));
    Ok(Joining {
        id: plan.id,
        server: plan.server,
        state_dir: plan.state_dir,
        is_pending,
        shares: plan.joined.allow.is_some() || plan.joined.policy.is_some(),
        warnings,
    })
}
