//! How the server stands: whether it is ready, and how many clients and transfers there are.

use super::Coordinator;
use crate::{
    server::{error::Error, landing::Landing, view::Presence},
    transfer::State,
};

/// What `/readyz?verbose` says: name and value of each check or setting.
#[derive(Debug, Clone)]
pub struct Readiness {
    pub ready: bool,
    pub details: Vec<(&'static str, String)>,
}

/// How many there are, for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub transfers: Vec<(State, u64)>,
    pub clients: Vec<(Presence, u64)>,
}

impl Coordinator {
    pub async fn readiness(&self) -> Readiness {
        let store = self.store.ping().await;
        let draining = self.shutdown.draining().is_cancelled();
        let sink = self.on_disk(Landing::ping).await;
        let ready = store.is_ok() && sink.is_ok() && !draining;
        let or_off = |text: Option<String>| text.unwrap_or_else(|| "off".to_owned());
        let keep = self.retention.keep.map(|keep| humantime::format_duration(keep).to_string());
        let keep_bytes = self.retention.keep_bytes.map(|bytes| format!("{bytes} bytes"));
        let gauge = self.landing.gauge();
        let (low, high) = self.landing.marks().on(gauge.all);
        let store = if store.is_ok() { "ok" } else { "unavailable" };
        let details = vec![
            ("store", store.to_owned()),
            ("sink", if sink.is_ok() { "ok" } else { "unavailable" }.to_owned()),
            ("draining", draining.to_string()),
            ("sessions", self.sessions.count().to_string()),
            ("uploads", self.uploads.count().to_string()),
            ("keep", or_off(keep)),
            ("keep-bytes", or_off(keep_bytes)),
            ("disk", gauge.room.as_str().to_owned()),
            ("disk-free", format!("{} bytes", gauge.free)),
            ("disk-low", format!("{low} bytes")),
            ("disk-high", format!("{high} bytes")),
        ];
        Readiness { ready, details }
    }

    /// Returns how many clients and transfers there are.
    pub async fn counts(&self) -> Result<Counts, Error> {
        let transfers = self.store.counts().await?;
        let (online, stale) = self.sessions.presences();
        let known = self.store.clients_known().await?;
        let offline = known.saturating_sub(online + stale);
        let clients = vec![
            (Presence::Online, online),
            (Presence::Stale, stale),
            (Presence::Offline, offline),
        ];
        Ok(Counts { transfers, clients })
    }
}
