//! Keeps the client's certificate good: renews it well before it ends, on a connection of its own,
//! and has everything dialled anew with the new one. What the server says about it ends nothing.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::sleep,
};

use super::{
    board::Board,
    config::ClientConfig,
    enrolment::{self, EnrolmentError, Granted},
    identity::{self, Identity, IdentityError},
};
use crate::{
    backoff::Backoff,
    limits,
    route::{Proxies, Route},
    server_url::ServerUrl,
    status::Reason,
    tls::{TlsError, Trust},
};

/// How this client and its server know each other; where that is kept, and how to dial with it.
#[derive(Debug)]
struct Keep {
    dir: PathBuf,
    server: ServerUrl,
    proxies: Proxies,
    ca: Option<Vec<CertificateDer<'static>>>,
}

impl Keep {
    fn route(
        &self,
        identity: &Identity,
        roots: &[CertificateDer<'static>],
    ) -> Result<Route, TlsError> {
        let trust = trust(roots, self.ca.as_ref());
        Route::new(&self.server, &trust, Some(identity.resolver()), &self.proxies)
    }
}

/// The roots that the server named come first, then what was given by hand, then the machine's.
pub(super) fn trust(
    roots: &[CertificateDer<'static>],
    ca: Option<&Vec<CertificateDer<'static>>>,
) -> Trust {
    match (roots, ca) {
        ([], None) => Trust::System,
        ([], Some(ca)) => Trust::Roots(ca.clone()),
        (roots, _) => Trust::Roots(roots.to_vec()),
    }
}

/// Renews the identity for as long as it is run.
#[derive(Debug)]
pub(super) struct Renewal {
    keep: Arc<Keep>,
    identity: Identity,
    renew_at: SystemTime,
    routes: watch::Sender<Route>,
    usable: watch::Sender<bool>,
    wish: Arc<Notify>,
}

/// What the session needs to know of the identity.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// Whether it may be shown to the server; changed by each renewal.
    usable: watch::Receiver<bool>,
    wish: Arc<Notify>,
}

impl Standing {
    /// Of a client without an identity, in clear text.
    pub(super) fn without() -> Self {
        Self { usable: watch::channel(true).1, wish: Arc::default() }
    }

    /// Whether to open a session; from now on the next renewal counts.
    pub(super) fn is_usable(&mut self) -> bool {
        *self.usable.borrow_and_update()
    }

    /// Waits for the next renewal. Cancel safe.
    pub(super) async fn renewed(&mut self) {
        // Without a task that renews there is none.
        if self.usable.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Has it renewed at once.
    pub(super) fn renew(&self) {
        self.wish.notify_one();
    }
}

impl Renewal {
    /// Reads the identity of the state directory.
    pub(super) fn load(config: &ClientConfig) -> Result<Self, String> {
        let keep = Keep {
            dir: config.state_dir.clone(),
            server: config.server.clone(),
            proxies: config.proxies.clone(),
            ca: config.ca.clone(),
        };
        let found = Identity::load(&keep.dir).map_err(|err| err.to_string())?;
        let identity = found.ok_or_else(|| {
            format!(
                "{} is https://, and {} holds no identity for it: run fts-client join --server {} \
                 --token-file FILE",
                config.server,
                keep.dir.display(),
                config.server
            )
        })?;
        let roots = identity::load_roots(&keep.dir).map_err(|err| err.to_string())?;
        let route = keep.route(&identity, &roots).map_err(|err| err.to_string())?;
        let is_usable = identity.not_after > SystemTime::now();
        Ok(Self {
            renew_at: identity.renew_at(),
            keep: Arc::new(keep),
            identity,
            routes: watch::channel(route).0,
            usable: watch::channel(is_usable).0,
            wish: Arc::default(),
        })
    }

    /// Returns the way to the server, with the identity of the moment.
    pub(super) fn routes(&self) -> watch::Receiver<Route> {
        self.routes.subscribe()
    }

    pub(super) fn standing(&self) -> Standing {
        Standing { usable: self.usable.subscribe(), wish: self.wish.clone() }
    }

    /// Never ends.
    pub(super) async fn run(mut self, board: Arc<Board>) {
        let longest =
            (self.identity.life() / 10).clamp(limits::RENEWAL_PAUSE_MIN, limits::RENEWAL_PAUSE_MAX);
        let mut backoff = Backoff::new(limits::RENEWAL_PAUSE_MIN, longest);
        loop {
            board.identity(self.identity.not_after, self.renew_at);
            tokio::select! {
                () = until(self.renew_at) => {}
                () = self.wish.notified() => {}
            }
            match self.renew(&board).await {
                Ok(()) => backoff.reset(),
                Err(err) => {
                    let pause = backoff.next_pause().max(limits::RENEWAL_PAUSE_MIN);
                    tell(&err, &self.identity, pause);
                    board.failed(format!("cannot renew the certificate: {err}"));
                    self.renew_at = SystemTime::now() + pause;
                }
            }
        }
    }

    async fn renew(&mut self, board: &Board) -> Result<(), EnrolmentError> {
        let route = self.routes.borrow().clone();
        let Granted { identity, roots, clock, .. } = enrolment::renew(&route).await?;
        let route = self.keep.route(&identity, &roots).map_err(IdentityError::from)?;
        let keep = self.keep.clone();
        let store = move || {
            // The roots first: what a server shows from now on is among them.
            identity::store_roots(&keep.dir, &roots)?;
            identity.store(&keep.dir)?;
            Ok::<_, IdentityError>(identity)
        };
        let stored = spawn_blocking(store).await;
        let failed = |err| IdentityError::Unusable(format!("it was not stored: {err}"));
        self.identity = stored.map_err(failed)??;

        let due = self.identity.renew_at();
        let due = clock.map_or(due, |clock| clock.here_at(due));
        // By a clock that is wrong it may be due already, and would be for ever.
        self.renew_at = due.max(SystemTime::now() + self.identity.life() / 10);
        if let Some(clock) = clock {
            board.clock(clock.ahead_seconds());
            if let Some(problem) = clock.problem() {
                tracing::warn!("{problem}");
            }
        }
        let expires = humantime::format_rfc3339_seconds(self.identity.not_after);
        tracing::info!(%expires, "renewed the certificate of this client");
        self.routes.send_replace(route);
        self.usable.send_replace(true);
        Ok(())
    }
}

fn tell(err: &EnrolmentError, identity: &Identity, pause: Duration) {
    let advice = match err {
        EnrolmentError::Refused { reason: Some(reason), .. } => advice(*reason).unwrap_or(""),
        _ => "",
    };
    let expires = humantime::format_rfc3339_seconds(identity.not_after);
    tracing::warn!(
        error = %err, %expires, advice, again_in_seconds = pause.as_secs(),
        "cannot renew the certificate of this client; trying again"
    );
}

/// Returns what a person can do about a server that does not take this client as who it is.
pub(super) fn advice(reason: Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::CertificateExpired => "the certificate has expired: it is renewed first",
        Reason::Revoked => {
            "the identity of this client was revoked, deleted or replaced: if that was a mistake, \
             get a new join token, and run fts-client join --force"
        }
        Reason::PendingApproval => {
            "an operator has yet to approve this client: fts-server clients approve ID"
        }
        Reason::Unauthenticated => {
            "the server knows no such identity: get a join token, and run fts-client join --force"
        }
        Reason::WrongClient => {
            "the certificate is of another client: the client id must be the one that it joined \
             with, or run fts-client join again"
        }
        _ => return None,
    })
}

/// Waits for a moment of the wall clock, which goes on while a machine sleeps, and may be set.
async fn until(at: SystemTime) {
    while let Ok(left) = at.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        sleep(left.min(limits::CLOCK_LOOK)).await;
    }
}
