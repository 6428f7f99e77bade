//! What the server counts, for `/metrics`. Every label has a fixed set of values: never a client, a
//! path, or a text of a peer's.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

use super::view::Presence;
use crate::{chunk::ChunkError, transfer::State};

/// The `Content-Type` of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = [(&'static str, &'static str); 1];

/// The metrics of one server. There are no global ones, so that tests run side by side.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    clients: Family<Label, Gauge>,
    transfers: Family<Label, Gauge>,
    store_up: Gauge,
    audit_up: Gauge,
    audit_owed: Gauge,
    disk_free: Gauge,
    disk_low: Gauge,
    sessions_open: Gauge,
    uploads_active: Gauge,
    sessions: Counter,
    reconnects: Counter,
    received_bytes: Counter,
    verified_bytes: Counter,
    chunk_failures: Family<Label, Counter>,
    transfers_ended: Family<Label, Counter>,
    upload_seconds: Histogram,
}

/// Something that is going on, and counted until this is dropped.
#[derive(Debug)]
#[must_use = "it is counted until this is dropped"]
pub struct Ongoing(Gauge);

impl Ongoing {
    fn begin(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("fts"),
            clients: Family::default(),
            transfers: Family::default(),
            store_up: Gauge::default(),
            audit_up: Gauge::default(),
            audit_owed: Gauge::default(),
            disk_free: Gauge::default(),
            disk_low: Gauge::default(),
            sessions_open: Gauge::default(),
            uploads_active: Gauge::default(),
            sessions: Counter::default(),
            reconnects: Counter::default(),
            received_bytes: Counter::default(),
            verified_bytes: Counter::default(),
            chunk_failures: Family::default(),
            transfers_ended: Family::default(),
            // 10 ms to 11 h.
            upload_seconds: Histogram::new(exponential_buckets(0.01, 4.0, 12)),
        };
        // A series that begins with its first event hides that event from `rate()`.
        for reason in CHUNK_FAILURES {
            drop(metrics.chunk_failures.get_or_create(&chunk_label(reason)));
        }
        for state in State::ALL.into_iter().filter(|state| state.is_final()) {
            drop(metrics.transfers_ended.get_or_create(&state_label(state)));
        }
        metrics.set_transfers(&[]);
        metrics.set_clients(&[]);
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("build", "This server", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("clients", "Known clients", self.clients.clone());
        r.register("transfers", "Transfers on record", self.transfers.clone());
        let help = "1 if the record store answered at the last scrape";
        r.register("store_up", help, self.store_up.clone());
        let help = "1 if the last lines of the audit could be written";
        r.register("audit_up", help, self.audit_up.clone());
        let help = "Lines of the audit that wait for its disk, of rights that were taken away";
        r.register("audit_owed", help, self.audit_owed.clone());
        let help = "Bytes free on the disk of the files; 0 while it is gone";
        r.register("disk_free_bytes", help, self.disk_free.clone());
        let help = "1 while nothing new is begun: the disk is low, read-only or gone";
        r.register("disk_low", help, self.disk_low.clone());
        r.register("sessions_open", "Sessions held now", self.sessions_open.clone());
        r.register("uploads_active", "Uploads running now", self.uploads_active.clone());
        r.register("sessions", "Sessions opened", self.sessions.clone());
        let help = "Sessions opened by an instance that had one before";
        r.register("reconnects", help, self.reconnects.clone());
        let help = "File bytes received, those sent again too";
        r.register("received_bytes", help, self.received_bytes.clone());
        let help = "Bytes of files that were proved whole";
        r.register("verified_bytes", help, self.verified_bytes.clone());
        r.register("chunk_failures", "Chunks refused", self.chunk_failures.clone());
        r.register("transfers_ended", "Transfers that ended", self.transfers_ended.clone());
        let help = "From the first byte of an upload to its verified end";
        r.register("upload_seconds", help, self.upload_seconds.clone());
        self
    }

    /// Returns all of it as OpenMetrics text.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    // === What happened ===

    /// A client opened a session; it is open until the value is dropped.
    pub fn session_opened(&self) -> Ongoing {
        self.sessions.inc();
        Ongoing::begin(&self.sessions_open)
    }

    /// An instance that had a session before opened another.
    pub fn instance_reconnected(&self) {
        self.reconnects.inc();
    }

    /// An upload began; it is active until the value is dropped.
    pub fn upload_began(&self) -> Ongoing {
        Ongoing::begin(&self.uploads_active)
    }

    pub fn bytes_received(&self, bytes: u64) {
        self.received_bytes.inc_by(bytes);
    }

    pub fn chunk_refused(&self, why: &ChunkError) {
        let reason = match why {
            ChunkError::Offset { .. } => "offset",
            ChunkError::Length { .. } => "length",
            ChunkError::Crc { .. } => "crc",
            ChunkError::NotWhole { .. } => "not_whole",
        };
        self.chunk_failures.get_or_create(&chunk_label(reason)).inc();
    }

    /// A whole file did not have the root that its client announced.
    pub fn root_refused(&self) {
        self.chunk_failures.get_or_create(&chunk_label("root")).inc();
    }

    /// A file was proved whole, so long after its first byte.
    pub fn file_verified(&self, bytes: u64, took: Duration) {
        self.verified_bytes.inc_by(bytes);
        self.upload_seconds.observe(took.as_secs_f64());
    }

    /// A transfer reached a final state.
    pub fn transfer_ended(&self, state: State) {
        debug_assert!(state.is_final(), "{state:?} is not an end");
        self.transfers_ended.get_or_create(&state_label(state)).inc();
    }

    // === How it stands, at a scrape ===

    /// Sets how many transfers are in each state; those that are not named have none.
    pub fn set_transfers(&self, counts: &[(State, u64)]) {
        for state in State::ALL {
            self.transfers.get_or_create(&state_label(state)).set(count(counts, state));
        }
    }

    /// Sets how many clients have each presence; those that are not named have none.
    pub fn set_clients(&self, counts: &[(Presence, u64)]) {
        for presence in [Presence::Online, Presence::Stale, Presence::Offline] {
            let label = match presence {
                Presence::Online => "online",
                Presence::Stale => "stale",
                Presence::Offline => "offline",
            };
            let gauge = self.clients.get_or_create(&[("presence", label)]);
            gauge.set(count(counts, presence));
        }
    }

    pub fn store_answered(&self) {
        self.store_up.set(1);
    }

    /// Sets whether the audit could be written, and how many lines wait until it can.
    pub fn set_audit(&self, is_up: bool, owed: u64) {
        self.audit_up.set(i64::from(is_up));
        self.audit_owed.set(i64::try_from(owed).unwrap_or(i64::MAX));
    }

    /// Sets how much of the disk is free, and whether that is too little.
    pub fn set_disk(&self, free: u64, is_low: bool) {
        self.disk_free.set(i64::try_from(free).unwrap_or(i64::MAX));
        self.disk_low.set(i64::from(is_low));
    }

    pub fn store_failed(&self) {
        self.store_up.set(0);
    }
}

fn count<K: PartialEq + Copy>(counts: &[(K, u64)], key: K) -> i64 {
    let count = counts.iter().find(|(each, _)| *each == key).map_or(0, |(_, count)| *count);
    i64::try_from(count).unwrap_or(i64::MAX)
}

const CHUNK_FAILURES: [&str; 5] = ["offset", "length", "crc", "not_whole", "root"];

fn chunk_label(reason: &'static str) -> Label {
    [("reason", reason)]
}

fn state_label(state: State) -> Label {
    let label = match state {
        State::Queued => "queued",
        State::Offered => "offered",
        State::Receiving => "receiving",
        State::Verifying => "verifying",
        State::Interrupted => "interrupted",
        State::Complete => "complete",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    };
    [("state", label)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(metrics: &Metrics, name: &str) -> String {
        let text = metrics.encode().expect("text");
        let mut lines = text.lines().filter(|line| line.starts_with(name));
        lines.next().unwrap_or_else(|| panic!("{name} is missing in\n{text}")).to_owned()
    }

    #[test]
    fn every_series_is_there_from_the_start() {
        let metrics = Metrics::new();
        for (name, value) in [
            (r#"fts_build_info{version=""#, ""),
            (r#"fts_clients{presence="online"}"#, " 0"),
            (r#"fts_clients{presence="stale"}"#, " 0"),
            (r#"fts_clients{presence="offline"}"#, " 0"),
            (r#"fts_transfers{state="queued"}"#, " 0"),
            (r#"fts_transfers{state="complete"}"#, " 0"),
            ("fts_store_up", " 0"),
            ("fts_audit_up", " 0"),
            ("fts_audit_owed", " 0"),
            ("fts_disk_free_bytes", " 0"),
            ("fts_disk_low", " 0"),
            ("fts_sessions_open", " 0"),
            ("fts_uploads_active", " 0"),
            ("fts_sessions_total", " 0"),
            ("fts_reconnects_total", " 0"),
            ("fts_received_bytes_total", " 0"),
            ("fts_verified_bytes_total", " 0"),
            (r#"fts_chunk_failures_total{reason="crc"}"#, " 0"),
            (r#"fts_chunk_failures_total{reason="offset"}"#, " 0"),
            (r#"fts_chunk_failures_total{reason="length"}"#, " 0"),
            (r#"fts_chunk_failures_total{reason="not_whole"}"#, " 0"),
            (r#"fts_transfers_ended_total{state="complete"}"#, " 0"),
            (r#"fts_transfers_ended_total{state="failed"}"#, " 0"),
            (r#"fts_transfers_ended_total{state="cancelled"}"#, " 0"),
            ("fts_upload_seconds_count", " 0"),
        ] {
            let line = line(&metrics, name);
            assert!(line.starts_with(&format!("{name}{value}")), "{line}");
        }
        assert!(metrics.encode().expect("text").ends_with("# EOF\n"));
    }

    #[test]
    fn what_happens_is_counted() {
        let metrics = Metrics::new();

        let session = metrics.session_opened();
        drop(metrics.session_opened());
        metrics.instance_reconnected();
        metrics.bytes_received(10);
        metrics.file_verified(7, Duration::from_millis(20));
        metrics.chunk_refused(&ChunkError::Crc { offset: 0 });
        metrics.transfer_ended(State::Failed);
        let upload = metrics.upload_began();

        assert_eq!(line(&metrics, "fts_sessions_total"), "fts_sessions_total 2");
        assert_eq!(line(&metrics, "fts_sessions_open"), "fts_sessions_open 1");
        assert_eq!(line(&metrics, "fts_reconnects_total"), "fts_reconnects_total 1");
        assert_eq!(line(&metrics, "fts_received_bytes_total"), "fts_received_bytes_total 10");
        assert_eq!(line(&metrics, "fts_verified_bytes_total"), "fts_verified_bytes_total 7");
        assert_eq!(line(&metrics, "fts_upload_seconds_count"), "fts_upload_seconds_count 1");
        assert!(line(&metrics, r#"fts_chunk_failures_total{reason="crc"}"#).ends_with(" 1"));
        assert!(line(&metrics, r#"fts_transfers_ended_total{state="failed"}"#).ends_with(" 1"));
        assert_eq!(line(&metrics, "fts_uploads_active"), "fts_uploads_active 1");
        drop((session, upload));
        assert_eq!(line(&metrics, "fts_uploads_active"), "fts_uploads_active 0");
        assert_eq!(line(&metrics, "fts_sessions_open"), "fts_sessions_open 0");
    }

    #[test]
    fn a_state_that_nothing_is_in_any_more_is_zero_again() {
        let metrics = Metrics::new();
        metrics.set_transfers(&[(State::Queued, 3), (State::Failed, u64::MAX)]);
        metrics.set_clients(&[(Presence::Stale, 2)]);
        assert!(line(&metrics, r#"fts_transfers{state="queued"}"#).ends_with(" 3"));
        assert!(line(&metrics, r#"fts_clients{presence="stale"}"#).ends_with(" 2"));

        metrics.set_transfers(&[(State::Complete, 3)]);
        metrics.set_clients(&[]);
        assert!(line(&metrics, r#"fts_transfers{state="queued"}"#).ends_with(" 0"));
        assert!(line(&metrics, r#"fts_transfers{state="complete"}"#).ends_with(" 3"));
        assert!(line(&metrics, r#"fts_clients{presence="stale"}"#).ends_with(" 0"));
    }
}
