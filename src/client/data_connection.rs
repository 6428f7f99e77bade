//! The connections of the uploads: opened by the first ones, shared by all, and closed after a while
//! without one. None is that of `Connect`, so that file bytes cannot delay a heartbeat.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tonic::transport::Channel;

use super::dial::Dialer;
use crate::limits;

/// Two of them. One HTTP/2 connection is one task at each end, so one core: the second is opened
/// when an upload runs on the first.
#[derive(Debug)]
pub(super) struct DataConnections([Arc<DataConnection>; 2]);

impl DataConnections {
    pub(super) fn new(dialer: &Dialer) -> Arc<Self> {
        Arc::new(Self([(); 2].map(|()| DataConnection::new(dialer.clone()))))
    }

    /// Leases the one that has fewer uploads.
    pub(super) fn lease(&self) -> Lease {
        let [first, second] = &self.0;
        let is_busier = first.leases() > second.leases();
        if is_busier { second.lease() } else { first.lease() }
    }

    /// The next leases dial anew. What runs keeps what it has, and closes it.
    pub(super) fn dial_anew(&self) {
        for connection in &self.0 {
            connection.lock().channel = None;
        }
    }

    /// Closes each whenever it has been idle for long enough. Never ends.
    pub(super) async fn close_when_idle(&self) {
        let [first, second] = &self.0;
        tokio::join!(first.close_when_idle(), second.close_when_idle());
    }
}

#[derive(Debug)]
struct DataConnection {
    dialer: Dialer,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    channel: Option<Channel>,
    leases: usize,
    /// Since when there has been no lease.
    idle_since: Option<Instant>,
}

/// The right to use the connection; as long as there is one, it stays open.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Arc<DataConnection>,
    pub(super) channel: Channel,
}

impl DataConnection {
    fn new(dialer: Dialer) -> Arc<Self> {
        Arc::new(Self { dialer, state: Mutex::default(), changed: Notify::new() })
    }

    fn leases(&self) -> usize {
        self.lock().leases
    }

    fn lease(self: &Arc<Self>) -> Lease {
        let mut state = self.lock();
        state.leases += 1;
        state.idle_since = None;
        let channel = state.channel.get_or_insert_with(|| self.dialer.data()).clone();
        Lease { connection: self.clone(), channel }
    }

    async fn close_when_idle(&self) {
        loop {
            let changed = self.changed.notified();
            match self.close_at() {
                None => changed.await,
                Some(at) => {
                    sleep_until(at).await;
                    self.close_idle();
                }
            }
        }
    }

    fn close_at(&self) -> Option<Instant> {
        self.lock().idle_since.map(|since| since + limits::DATA_CONNECTION_IDLE)
    }

    fn close_idle(&self) {
        let mut state = self.lock();
        let until = state.idle_since.map(|since| since + limits::DATA_CONNECTION_IDLE);
        if until.is_some_and(|until| until <= Instant::now()) {
            state.channel = None;
            state.idle_since = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.connection.lock();
        state.leases -= 1;
        if state.leases == 0 {
            state.idle_since = Some(Instant::now());
            self.connection.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::time::sleep;

    use super::*;

    fn dialer() -> Dialer {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let uri = "http://nowhere".parse().expect("a URI");
        Dialer::new(uri, move || Box::pin(async move { Err(refused().into()) }))
    }

    #[tokio::test]
    async fn a_second_one_is_opened_while_the_first_is_busy_and_no_third() {
        let connections = DataConnections::new(&dialer());
        let leases = || connections.0.each_ref().map(|each| each.leases());

        let first = connections.lease();
        assert_eq!(leases(), [1, 0]);
        let second = connections.lease();
        assert_eq!(leases(), [1, 1]);
        let _third = connections.lease();
        assert_eq!(leases(), [2, 1]);

        drop(second);
        let _fourth = connections.lease();
        assert_eq!(leases(), [2, 1]);
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn it_closes_after_a_while_without_an_upload() {
        let connection = DataConnection::new(dialer());
        let is_open = || connection.lock().channel.is_some();
        let nearly = limits::DATA_CONNECTION_IDLE.mul_f64(0.9);
        let uploads = async {
            let (first, second) = (connection.lease(), connection.lease());
            drop(first);
            sleep(limits::DATA_CONNECTION_IDLE * 2).await;
            assert!(is_open(), "the second upload runs");
            drop(second);
            sleep(nearly).await;
            drop(connection.lease());
            sleep(nearly).await;
            assert!(is_open(), "there was an upload meanwhile");
            sleep(limits::DATA_CONNECTION_IDLE.mul_f64(0.2)).await;
            assert!(!is_open());
        };
        tokio::select! {
            () = uploads => {}
            () = connection.close_when_idle() => {}
        }
    }
}
