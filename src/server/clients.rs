//! The connections of each client: so many at a time, and none for long once its identity is good
//! no longer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::authority::ClientCertificate;
use crate::{ids::ClientId, limits, shutdown::Shutdown};

/// By identity, so that whoever holds a certificate that was replaced takes no place of who has the
/// id now.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<Entered>);

#[derive(Debug, Default)]
struct Entered {
    next: u64,
    of: HashMap<Uuid, Connections>,
}

#[derive(Debug)]
struct Connections {
    client: ClientId,
    cuts: HashMap<u64, CancellationToken>,
}

/// One of them, until this is dropped.
#[derive(Debug)]
pub(super) struct OfClient {
    clients: Arc<Clients>,
    uid: Uuid,
    number: u64,
}

impl Clients {
    /// Enters a connection, which is over when `cut` fires. `None`: the client has as many as it
    /// may have.
    pub(super) fn enter(
        self: &Arc<Self>,
        certificate: &ClientCertificate,
        cut: CancellationToken,
    ) -> Option<OfClient> {
        let (client, uid) = (&certificate.client, certificate.uid);
        let mut entered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = entered.next;
        entered.next += 1;
        let connections = entered
            .of
            .entry(uid)
            .or_insert_with(|| Connections { client: client.clone(), cuts: HashMap::new() });
        if connections.cuts.len() >= limits::CONNECTIONS_PER_CLIENT_MAX {
            tracing::warn!(client_id = client.as_str(), "a client has too many connections");
            return None;
        }
        connections.cuts.insert(number, cut);
        Some(OfClient { clients: Arc::clone(self), uid, number })
    }

    /// Cuts the connections that a client has now, once it has had time to hear why.
    pub(super) fn let_go(&self, client: &ClientId, shutdown: &Shutdown) {
        let entered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = entered.of.values().filter(|connections| connections.client == *client);
        let cuts: Vec<_> =
            connections.flat_map(|connections| connections.cuts.values().cloned()).collect();
        drop(entered);
        if cuts.is_empty() {
            return;
        }
        let draining = shutdown.draining().clone();
        drop(shutdown.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(limits::EXPELLED_WAIT) => {}
                () = draining.cancelled() => {}
            }
            cuts.iter().for_each(CancellationToken::cancel);
        }));
    }
}

impl Drop for OfClient {
    fn drop(&mut self) {
        let mut entered = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connections) = entered.of.get_mut(&self.uid) {
            connections.cuts.remove(&self.number);
            if connections.cuts.is_empty() {
                entered.of.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{ids::UnixMs, token::Sha256};

    fn certificate(client: &str, uid: u128) -> ClientCertificate {
        ClientCertificate {
            client: client.parse().expect("an id"),
            uid: Uuid::from_u128(uid),
            key: Sha256::of(b"a key"),
            begins: UnixMs(0),
            expires: UnixMs::now(),
        }
    }

    #[test]
    fn a_client_has_only_so_many_connections() {
        let clients = Arc::new(Clients::default());
        let (old, now) = (certificate("a", 1), certificate("a", 2));
        let enter = |of| clients.enter(of, CancellationToken::new());
        let mut held: Vec<_> = (0..limits::CONNECTIONS_PER_CLIENT_MAX)
            .map(|_| enter(&old).expect("one more"))
            .collect();
        assert!(enter(&old).is_none());
        assert!(enter(&now).is_some(), "who has the id now has its own");
        held.pop();
        assert!(enter(&old).is_some());
        drop(held);
        assert!(clients.0.lock().expect("not poisoned").of.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_let_go_has_time_to_hear_why_and_who_comes_after_it_stays() {
        let (clients, shutdown) = (Arc::new(Clients::default()), Shutdown::new());
        let [old, other, new] = [(); 3].map(|()| CancellationToken::new());
        let _old = clients.enter(&certificate("a", 1), old.clone());
        let _other = clients.enter(&certificate("b", 2), other.clone());
        let began = Instant::now();

        clients.let_go(&"a".parse().expect("an id"), &shutdown);
        let _new = clients.enter(&certificate("a", 3), new.clone());
        old.cancelled().await;

        assert_eq!(began.elapsed(), limits::EXPELLED_WAIT);
        tokio::time::sleep(limits::EXPELLED_WAIT).await;
        assert!(!other.is_cancelled() && !new.is_cancelled());
    }
}
