//! The server: a value that is made of an opened store, a landing and a shutdown, and serves a
//! bound listener.
//!
//! [`Server::new`] opens no port and reads no configuration, so a test starts a real one in a few
//! lines.

use std::{io, sync::Arc, time::Duration};

use tokio::net::{TcpListener, UnixListener};
use tonic::service::Routes;

use crate::{limits, shutdown::Shutdown};

pub mod access;
mod admin_api;
pub mod administration;
pub mod allocator;
mod app;
mod arrived;
pub mod audit;
mod audited;
pub mod authority;
pub mod check;
mod clients;
pub mod command;
pub mod config;
mod connection;
mod control_api;
pub mod coordinator;
pub mod data_dir;
mod desk;
mod enrolment_api;
pub mod error;
mod file_stream;
pub mod files;
pub mod gate;
pub mod guard;
mod http_api;
mod ingest;
pub mod landing;
mod listener;
pub mod metrics;
#[cfg(test)]
mod model_tests;
mod outbox;
mod page;
mod places;
mod preauth;
mod questions;
pub mod quotas;
mod session;
mod sessions;
pub mod store;
mod sweeper;
pub mod tls;
mod to_the_end;
mod transfer_api;
mod until_over;
mod uploads;
pub mod view;
mod watches;

pub use listener::{listen, listen_socket};

use audit::{Action, Audit, Detail, Entry};
use connection::Surface;
use coordinator::{Coordinator, Parts, Retention};
use guard::ClearText;
use landing::Landing;
use listener::Reception;
use metrics::Metrics;
use quotas::QuotaLimits;
use store::{Store, credentials::Credentials};
use tls::Tls;

/// How the server knows who calls.
#[derive(Clone)]
pub enum Security {
    /// Not at all: whoever can reach it may do everything.
    Clear(ClearText),
    /// By certificates and tokens, in TLS.
    Tls(Arc<Tls>),
}

/// Where a server listens.
pub struct Listeners {
    /// For everything; for clients alone, if there is another one for operators.
    pub main: TcpListener,
    pub control: Option<TcpListener>,
    /// Its own socket, for whoever owns the server.
    pub socket: Option<UnixListener>,
}

impl From<TcpListener> for Listeners {
    fn from(main: TcpListener) -> Self {
        Self { main, control: None, socket: None }
    }
}

/// What a server is made of.
pub struct Options {
    pub store: Arc<dyn Store>,
    pub credentials: Arc<dyn Credentials>,
    pub landing: Landing,
    pub security: Security,
    /// Where what callers do goes on record; `None` where nobody asks who they are.
    pub audit: Option<Audit>,
    /// Of the certificates that it issues to clients.
    pub certificate_life: Duration,
    /// What clients are told to send; the other deadlines scale with it.
    pub heartbeat: Duration,
    pub retention: Retention,
    pub quotas: QuotaLimits,
    /// Uploads that it takes at a time.
    pub uploads_max: usize,
    /// How long running uploads may take to finish once the shutdown drains.
    pub drain_wait: Duration,
    pub shutdown: Shutdown,
}

/// Why a server ended other than by its shutdown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    #[error("cannot repair what the last run left")]
    Repair(#[source] error::Error),
    #[error("cannot build the reflection service")]
    Reflection(#[source] tonic_reflection::server::Error),
    #[error("cannot serve")]
    Transport(#[source] tonic::transport::Error),
    #[error("cannot read the address of the listener")]
    Listener(#[source] io::Error),
}

pub struct Server {
    coordinator: Arc<Coordinator>,
    metrics: Arc<Metrics>,
    credentials: Arc<dyn Credentials>,
    security: Security,
    audit: Option<Audit>,
    certificate_life: Duration,
    drain_wait: Duration,
    shutdown: Shutdown,
}

impl Server {
    pub fn new(options: Options) -> Self {
        let metrics = Arc::new(Metrics::new());
        let coordinator = Coordinator::new(Parts {
            store: options.store,
            credentials: Arc::clone(&options.credentials),
            landing: Arc::new(options.landing),
            metrics: Arc::clone(&metrics),
            shutdown: options.shutdown.clone(),
            heartbeat: options.heartbeat,
            retention: options.retention,
            quotas: options.quotas,
            uploads_max: options.uploads_max,
        });
        Self {
            coordinator,
            metrics,
            credentials: options.credentials,
            security: options.security,
            audit: options.audit,
            certificate_life: options.certificate_life,
            drain_wait: options.drain_wait,
            shutdown: options.shutdown,
        }
    }

    /// The use cases, for whoever embeds a server.
    pub fn coordinator(&self) -> &Arc<Coordinator> {
        &self.coordinator
    }

    /// Serves until the shutdown drains and everything has ended, or its time is up. Returns
    /// whether everything ended by itself.
    pub async fn serve(self, listeners: impl Into<Listeners>) -> Result<bool, ServeError> {
        let listeners = listeners.into();
        tokio::select! {
            biased;
            repaired = self.coordinator.repair() => {
                repaired.map_err(ServeError::Repair)?;
            }
            // What is not repaired yet is, at the next start.
            () = self.shutdown.draining().cancelled() => return Ok(true),
        }
        let address = listeners.main.local_addr().map_err(ServeError::Listener)?;
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<app::FileTransferServer>().await;
        health.set_serving::<app::ControlServer>().await;
        let health_service =
            health_service.max_decoding_message_size(limits::NAME_MESSAGE_BYTES_MAX);
        let app = self.app(health_service)?;
        drop(self.shutdown.spawn(sweeper::run(Arc::clone(&self.coordinator))));
        if let Security::Tls(tls) = &self.security {
            let (tls, draining) = (Arc::clone(tls), self.shutdown.draining().clone());
            drop(self.shutdown.spawn(look_after(tls, self.audit.clone(), draining)));
        }
        let serving = self.serve_all(listeners, &app);
        tracing::info!(%address, "serving");
        let draining = self.shutdown.draining().clone();
        let end = async {
            draining.cancelled().await;
            tracing::info!("draining");
            health.set_not_serving::<app::FileTransferServer>().await;
            health.set_not_serving::<app::ControlServer>().await;
            self.shutdown.run_down(self.drain_wait, limits::ABORT_WAIT).await
        };
        let clean = serve_until(serving, end, &self.shutdown).await?;
        let close = async {
            // Once every session has left.
            if let Err(err) = self.coordinator.flush_seen().await {
                err.log();
            }
            self.coordinator.store.close().await;
            if let Some(audit) = &self.audit {
                audit.close().await;
            }
        };
        Ok(tokio::time::timeout(limits::STORE_CLOSE_WAIT, close).await.is_ok() && clean)
    }

    /// Serves every listener until the shutdown drains.
    async fn serve_all(
        &self,
        listeners: Listeners,
        app: &axum::Router,
    ) -> Result<(), tonic::transport::Error> {
        let tls = self.tls();
        let clients = Arc::clone(&self.coordinator.clients);
        let reception = Reception::new(tls, self.audit.clone(), clients, &self.shutdown);
        let serve = |incoming| {
            app::transport().add_routes(Routes::from(app.clone())).serve_with_incoming_shutdown(
                incoming,
                self.shutdown.draining().clone().cancelled_owned(),
            )
        };
        let main = if listeners.control.is_some() { Surface::Transfers } else { Surface::All };
        let main = serve(reception.accept(listeners.main, main));
        let control = async {
            match listeners.control {
                Some(listener) => serve(reception.accept(listener, Surface::Control)).await,
                None => Ok(()),
            }
        };
        let socket = async {
            match listeners.socket {
                Some(listener) => serve(reception.accept_socket(listener)).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(main, control, socket)?;
        Ok(())
    }
}

/// Reads certificates again when their files change, or on SIGHUP through [`Tls::look`].
async fn look_after(
    tls: Arc<Tls>,
    audit: Option<Audit>,
    draining: tokio_util::sync::CancellationToken,
) {
    loop {
        tokio::select! {
            () = draining.cancelled() => return,
            () = tokio::time::sleep(limits::CERTIFICATE_LOOK) => {}
        }
        reload(&tls, audit.as_ref()).await;
    }
}

/// Takes what the certificate files hold now. What is bad is said, and what was good goes on.
pub async fn reload(tls: &Arc<Tls>, audit: Option<&Audit>) {
    let looking = Arc::clone(tls);
    match tokio::task::spawn_blocking(move || looking.look()).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => {
            tracing::info!("took new certificates");
            let root = Detail::Text(format!("root {}", tls.authority().root()));
            let Some(audit) = audit else { return };
            if let Err(err) = audit.write_or_keep(Entry::own(Action::TlsReload, root)).await {
                let err = &err as &dyn std::error::Error;
                tracing::error!(error = err, "new certificates are not on record yet");
            }
        }
        Ok(Err(err)) => {
            tracing::error!(error = &err as &dyn std::error::Error, "kept the old certificates");
        }
        Err(err) => tracing::error!(error = %err, "could not look at the certificates"),
    }
}

/// Serves until `end` is over, and no longer: tonic's own end waits for ever for a peer that never
/// finishes.
async fn serve_until(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    end: impl Future<Output = bool>,
    shutdown: &Shutdown,
) -> Result<bool, ServeError> {
    tokio::pin!(serving, end);
    let clean = tokio::select! {
        served = &mut serving => {
            served.map_err(ServeError::Transport)?;
            // Every connection has ended; the tasks still note how.
            end.await
        }
        clean = &mut end => {
            // Every task has ended, so what is left are idle connections, or peers that do not
            // read.
            let closed = tokio::time::timeout(limits::CLOSE_WAIT, &mut serving).await;
            shutdown.abort();
            clean && closed.is_ok()
        }
    };
    Ok(clean)
}
