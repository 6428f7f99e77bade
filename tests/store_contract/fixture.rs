//! What the tests of a store start from.

use std::{sync::Arc, time::Duration};

use fts::{
    ids::{ClientId, Digest, Epoch, InstanceId, OperatorName, SessionEpoch, TransferId, UnixMs},
    server::store::{
        Applied, Claim, Claimant, Created, Events, SessionOpening, Store, TransferFilter,
    },
    transfer::{
        Consistency, Delivered, Fingerprint, Finish, Moment, Request, SourceFile, Step, Transfer,
    },
};

pub(crate) const T0: i64 = 1_700_000_000_000;
pub(crate) const DEADLINE: Duration = Duration::from_hours(1);

/// Milliseconds after the start of a test.
pub(crate) fn at(ms: i64) -> UnixMs {
    UnixMs(T0 + ms)
}

pub(crate) fn moment(ms: i64) -> Moment {
    Moment { at: at(ms), dice: 0.5 }
}

pub(crate) fn client(number: u8) -> ClientId {
    format!("client-{number}").parse().unwrap()
}

pub(crate) fn operator(number: u8) -> OperatorName {
    format!("operator-{number}@example.com").parse().unwrap()
}

pub(crate) fn opening(client: &ClientId, instance: InstanceId) -> SessionOpening {
    SessionOpening {
        client: client.clone(),
        instance,
        jobs_max: 4,
        version: "1.2.3".to_owned(),
        host_name: "höst".to_owned(),
        os: "linux".to_owned(),
        address: "192.0.2.1:5000".to_owned(),
        allowed_roots: vec!["/var/log".to_owned(), "/srv/\"quoted\"".to_owned()],
        policy_digest: Some(Digest::from_bytes(&[7; 32]).unwrap()),
    }
}

pub(crate) fn request(client: &ClientId, path: &str, request_id: Option<&str>) -> Request {
    Request {
        client: client.clone(),
        operator: None,
        path: Some(path.parse().unwrap()),
        request_id: request_id.map(|id| id.parse().unwrap()),
        consistency: Consistency::Auto,
        rate_max: None,
        signed: None,
        deadline: DEADLINE,
    }
}

pub(crate) fn transfer(client: &ClientId, ms: i64) -> Transfer {
    Transfer::new(TransferId::generate(), request(client, "/var/log/a", None), at(ms))
}

pub(crate) fn file(size_bytes: u64) -> SourceFile {
    let fingerprint =
        Fingerprint { device: u64::MAX, inode: 1, size_bytes, mtime_ns: -1, ctime_ns: i64::MAX };
    SourceFile { path: "/var/log/a".to_owned(), size_bytes, fingerprint }
}

pub(crate) fn finish() -> Finish {
    Finish {
        digest: Digest::from(blake3::hash(b"")),
        delivered: Delivered::Prefix,
        trusted_bytes: 0,
    }
}

pub(crate) fn begun(epoch: Epoch, instance: InstanceId, size_bytes: u64) -> Step {
    Step::Begun { epoch, instance, file: file(size_bytes) }
}

pub(crate) fn finished(epoch: Epoch, received_bytes: u64) -> Step {
    Step::Finished { epoch, finish: finish(), received_bytes }
}

/// A client with a session.
pub(crate) struct Site {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) client: ClientId,
    pub(crate) instance: InstanceId,
    pub(crate) session: SessionEpoch,
}

impl Site {
    pub(crate) async fn open(store: &Arc<dyn Store>, number: u8) -> Self {
        let (client, instance) = (client(number), InstanceId::generate());
        let session = store.open_session(&opening(&client, instance), at(0)).await.unwrap();
        Self { store: store.clone(), client, instance, session }
    }

    pub(crate) async fn create(&self, ms: i64) -> Transfer {
        let transfer = transfer(&self.client, ms);
        assert_eq!(self.store.create(&transfer).await.unwrap(), Created::New(transfer.clone()));
        transfer
    }

    pub(crate) async fn claim(&self, jobs_max: u32, ms: i64) -> Claim {
        self.store.claim(&self.claimant(jobs_max, 1), moment(ms)).await.unwrap()
    }

    pub(crate) fn claimant(&self, jobs_max: u32, offers_max: u32) -> Claimant {
        let (client, session, instance) = (self.client.clone(), self.session, self.instance);
        Claimant { client, session, instance, jobs_max, offers_max }
    }

    pub(crate) async fn offer(&self, ms: i64) -> Transfer {
        only(self.claim(u32::MAX, ms).await)
    }

    pub(crate) async fn done(&self, id: TransferId, step: Step, ms: i64) -> Transfer {
        match apply(&*self.store, id, step.clone(), ms).await {
            Applied::Done(mut versions) => versions.pop().unwrap(),
            other => panic!("expected {step:?} to be taken, not {other:?}"),
        }
    }

    /// Takes the next transfer, of `size_bytes`, from its offer to COMPLETE.
    pub(crate) async fn deliver(&self, size_bytes: u64, ms: i64) -> Transfer {
        let Transfer { id, epoch, .. } = self.offer(ms).await;
        self.done(id, begun(epoch, self.instance, size_bytes), ms).await;
        self.done(id, finished(epoch, size_bytes), ms).await;
        self.done(id, Step::Published { epoch }, ms).await
    }
}

/// Applies one step.
pub(crate) async fn apply(store: &dyn Store, id: TransferId, step: Step, ms: i64) -> Applied {
    store.apply(id, &[(step, moment(ms))]).await.unwrap()
}

/// The one offer that a claim brought.
pub(crate) fn only(claim: Claim) -> Transfer {
    match claim {
        Claim::Offered(mut offers) if offers.len() == 1 => offers.remove(0),
        other => panic!("expected one offer, not {other:?}"),
    }
}

pub(crate) async fn all(store: &dyn Store) -> Vec<Transfer> {
    store.transfers(&TransferFilter::default(), None, u32::MAX).await.unwrap()
}

/// Asserts that every transfer has the events of all its revisions, and is what its last event
/// says.
pub(crate) async fn assert_whole(store: &dyn Store) {
    let Events::After(events) = store.events_after(0, u32::MAX).await.unwrap() else {
        panic!("events were pruned");
    };
    for (event, seq) in events.iter().zip(1..) {
        assert_eq!(event.seq, seq, "a gap");
    }
    let transfers = all(store).await;
    for transfer in &transfers {
        let own: Vec<_> = events.iter().filter(|e| e.transfer.id == transfer.id).collect();
        let revisions: Vec<_> = own.iter().map(|event| event.transfer.revision).collect();
        assert_eq!(revisions, (1..=transfer.revision).collect::<Vec<_>>());
        assert_eq!(own.last().map(|event| &event.transfer), Some(transfer));
    }
    let of_none = events.iter().find(|e| transfers.iter().all(|t| t.id != e.transfer.id));
    assert_eq!(of_none, None);
}
