//! The records in memory, for tests of other parts: what the contract says in the fewest words. It
//! forgets everything when it is dropped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{
    Applied, Claim, Claimant, ClientRecord, Created, Event, Events, Party, SaidHead,
    SessionOpening, Store, StoreError, TransferFilter, Usage,
    credentials::{Identity, JoinToken, Operator},
    last_of_attempt,
};
use crate::{
    audit_head::AuditHead,
    ids::{AttemptId, ClientId, OperatorName, SessionEpoch, TransferId, UnixMs},
    limits,
    token::TokenId,
    transfer::{Content, Moment, State, Step, Transfer},
};

mod credentials;

/// A store that keeps nothing beyond its own life.
#[derive(Debug, Default)]
pub struct MemoryStore {
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    clients: BTreeMap<ClientId, ClientRecord>,
    transfers: BTreeMap<TransferId, Transfer>,
    attempts: BTreeMap<AttemptId, Attempt>,
    join_tokens: BTreeMap<TokenId, JoinToken>,
    identities: BTreeMap<ClientId, Identity>,
    operators: BTreeMap<OperatorName, Operator>,
    events: BTreeMap<u64, Transfer>,
    last_event: u64,
    pruned_through: u64,
    landing_id: Option<String>,
}

#[derive(Debug)]
struct Attempt {
    offered: UnixMs,
    received_bytes: u64,
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// Every verb changes the records in one piece, so that a panic of another leaves nothing half
    /// done.
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records {
    fn write(&mut self, transfer: &Transfer) {
        self.last_event += 1;
        let event = Transfer { signature: None, ..transfer.clone() };
        self.events.insert(self.last_event, event);
        self.transfers.insert(transfer.id, transfer.clone());
    }

    /// Notes what steps have added to the attempt that ran before them.
    fn note_attempt(&mut self, before: &Transfer, after: &[Transfer]) {
        let id = AttemptId { transfer: before.id, epoch: before.epoch };
        let attempt = self.attempts.get_mut(&id).filter(|_| before.state.is_outstanding());
        if let Some((attempt, last)) = attempt.zip(last_of_attempt(after)) {
            attempt.received_bytes += after[last].received_bytes - before.received_bytes;
        }
    }

    fn of<'a>(&'a self, client: &'a ClientId) -> impl Iterator<Item = &'a Transfer> {
        self.transfers.values().filter(move |transfer| transfer.client == *client)
    }

    fn client(&self, record: &ClientRecord) -> ClientRecord {
        let count = |in_group: fn(State) -> bool| {
            self.of(&record.opening.client).filter(|transfer| in_group(transfer.state)).count()
        };
        ClientRecord {
            active_transfers: count(State::is_outstanding) as u64,
            queued_transfers: count(State::is_waiting) as u64,
            ..record.clone()
        }
    }

    fn is_ended(&self, event: &Transfer) -> bool {
        self.transfers.get(&event.id).is_some_and(|transfer| transfer.state.is_final())
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn landing_id(&self) -> Result<Option<String>, StoreError> {
        Ok(self.records().landing_id.clone())
    }

    async fn set_landing_id(&self, id: &str) -> Result<(), StoreError> {
        self.records().landing_id = Some(id.to_owned());
        Ok(())
    }

    async fn open_session(
        &self,
        opening: &SessionOpening,
        at: UnixMs,
    ) -> Result<SessionEpoch, StoreError> {
        let mut records = self.records();
        let record =
            records.clients.entry(opening.client.clone()).or_insert_with(|| ClientRecord {
                opening: opening.clone(),
                session_epoch: SessionEpoch(0),
                first_seen: at,
                last_seen: at,
                active_transfers: 0,
                queued_transfers: 0,
                audit_head: None,
                audit_back: None,
            });
        record.opening = opening.clone();
        record.session_epoch.0 += 1;
        record.last_seen = record.last_seen.max(at);
        Ok(record.session_epoch)
    }

    async fn note_audit_head(
        &self,
        client: &ClientId,
        session: SessionEpoch,
        said: SaidHead,
        at: UnixMs,
    ) -> Result<Option<AuditHead>, StoreError> {
        let mut records = self.records();
        let record = records.clients.get_mut(client);
        let Some(record) = record.filter(|record| record.session_epoch == session) else {
            return Ok(None);
        };
        let back = record.audit_head.filter(|before| !before.may_become(said.head));
        if back.is_some() && said.is_of_hello {
            return Ok(None);
        }
        record.audit_head = Some(said.head);
        record.audit_back = back.map(|_| at).or(record.audit_back);
        Ok(back)
    }

    async fn note_seen(&self, seen: &[(ClientId, UnixMs)]) -> Result<(), StoreError> {
        let mut records = self.records();
        for (client, at) in seen {
            if let Some(record) = records.clients.get_mut(client) {
                record.last_seen = record.last_seen.max(*at);
            }
        }
        Ok(())
    }

    async fn client(&self, id: &ClientId) -> Result<Option<ClientRecord>, StoreError> {
        let records = self.records();
        Ok(records.clients.get(id).map(|record| records.client(record)))
    }

    async fn clients(
        &self,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientRecord>, StoreError> {
        let records = self.records();
        let later = records.clients.iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
        Ok(later.take(limit as usize).map(|(_, record)| records.client(record)).collect())
    }

    async fn create(&self, transfer: &Transfer) -> Result<Created, StoreError> {
        let mut records = self.records();
        let same = records.transfers.values().find(|other| {
            other.request_id.is_some()
                && other.request_id == transfer.request_id
                && other.operator == transfer.operator
        });
        if let Some(other) = same {
            return Ok(if other.is_same_request(transfer) {
                Created::Existing(other.clone())
            } else {
                Created::Conflict(other.id)
            });
        }
        if records.transfers.contains_key(&transfer.id) {
            return Ok(Created::Taken(transfer.id));
        }
        if !records.clients.contains_key(&transfer.client) {
            return Ok(Created::UnknownClient);
        }
        let unfinished =
            records.of(&transfer.client).filter(|t| !t.state.is_final()).count() as u64;
        if unfinished >= limits::UNFINISHED_PER_CLIENT_MAX {
            return Ok(Created::TooMany(unfinished));
        }
        records.write(transfer);
        Ok(Created::New(transfer.clone()))
    }

    async fn claim(&self, claimant: &Claimant, now: Moment) -> Result<Claim, StoreError> {
        let mut records = self.records();
        let Claimant { client, session, instance, jobs_max, offers_max } = claimant;
        if records.clients.get(client).is_none_or(|record| record.session_epoch != *session) {
            return Ok(Claim::Fenced);
        }
        let outstanding = records.of(client).filter(|t| t.state.is_outstanding()).count();
        let room = (*jobs_max as usize).saturating_sub(outstanding);
        if room == 0 {
            return Ok(Claim::Full);
        }
        let queue = records.of(client).filter_map(|t| t.due().map(|due| (due, t.id)));
        let queue: BTreeSet<_> = queue.collect();
        let due = queue.iter().take_while(|(due, _)| *due <= now.at);
        let mut offered = Vec::new();
        for (_, id) in due.take(room.min(*offers_max as usize)) {
            let step = Step::Claimed { instance: *instance };
            let transfer = records.transfers[id].apply(&step, now);
            offered.push(transfer.map_err(|err| StoreError::Corrupt(err.to_string()))?);
        }
        if offered.is_empty() {
            return Ok(Claim::Nothing { next_due: queue.first().map(|(due, _)| *due) });
        }
        for transfer in &offered {
            records.write(transfer);
            let id = AttemptId { transfer: transfer.id, epoch: transfer.epoch };
            records.attempts.insert(id, Attempt { offered: now.at, received_bytes: 0 });
        }
        Ok(Claim::Offered(offered))
    }

    async fn due_clients(
        &self,
        now: UnixMs,
        after: Option<&ClientId>,
        limit: u32,
    ) -> Result<Vec<ClientId>, StoreError> {
        let records = self.records();
        let is_due = |id: &ClientId| records.of(id).any(|t| t.due().is_some_and(|due| due <= now));
        let later = records.clients.keys().filter(|id| after.is_none_or(|after| *id > after));
        Ok(later.filter(|id| is_due(id)).take(limit as usize).cloned().collect())
    }

    async fn apply(&self, id: TransferId, steps: &[(Step, Moment)]) -> Result<Applied, StoreError> {
        let mut records = self.records();
        let Some(before) = records.transfers.get(&id) else { return Ok(Applied::Unknown) };
        match before.apply_all(steps) {
            Ok(after) => {
                let before = before.clone();
                records.note_attempt(&before, &after);
                for transfer in &after {
                    records.write(transfer);
                }
                Ok(Applied::Done(after))
            }
            Err(err) => Ok(Applied::Refused(err, before.clone())),
        }
    }

    async fn transfer(&self, id: TransferId) -> Result<Option<Transfer>, StoreError> {
        Ok(self.records().transfers.get(&id).cloned())
    }

    async fn transfers(
        &self,
        filter: &TransferFilter,
        before: Option<TransferId>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        let records = self.records();
        let wanted = records.transfers.values().rev().filter(|transfer| {
            before.is_none_or(|before| transfer.id < before)
                && filter.client.as_ref().is_none_or(|client| transfer.client == *client)
                && (filter.states.is_empty() || filter.states.contains(&transfer.state))
        });
        Ok(wanted.take(limit as usize).cloned().collect())
    }

    async fn overdue(
        &self,
        at: UnixMs,
        offered_before: UnixMs,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        let records = self.records();
        let overdue = records.transfers.values().filter(|transfer| {
            (!transfer.state.is_final() && transfer.deadline <= at)
                || (transfer.state == State::Offered && transfer.updated < offered_before)
        });
        Ok(overdue.take(limit as usize).cloned().collect())
    }

    async fn expired_content(
        &self,
        ended_before: Option<UnixMs>,
        bytes_max: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Transfer>, StoreError> {
        let records = self.records();
        let mut kept: Vec<&Transfer> =
            records.transfers.values().filter(|t| t.content == Content::Kept).collect();
        kept.sort_by_key(|transfer| (transfer.ended, transfer.id));
        let mut total = 0;
        let mut expired: Vec<Transfer> = Vec::new();
        for transfer in kept.into_iter().rev() {
            total += transfer.file.as_ref().map_or(0, |file| file.size_bytes);
            let is_old = ended_before.is_some_and(|before| transfer.ended < Some(before));
            if is_old || bytes_max.is_some_and(|max| total > max) {
                expired.push(transfer.clone());
            }
        }
        expired.reverse();
        expired.truncate(limit as usize);
        Ok(expired)
    }

    async fn clients_known(&self) -> Result<u64, StoreError> {
        Ok(self.records().clients.len() as u64)
    }

    async fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        let records = self.records();
        let count = |state| records.transfers.values().filter(|t| t.state == state).count() as u64;
        Ok(State::ALL.into_iter().map(|state| (state, count(state))).collect())
    }

    async fn usage(&self, of: &Party, since: UnixMs) -> Result<Usage, StoreError> {
        let records = self.records();
        let is_of = |transfer: &Transfer| match of {
            Party::Client(client) => transfer.client == *client,
            Party::Operator(operator) => transfer.operator.as_ref() == Some(operator),
        };
        let created = records.transfers.values().filter(|t| is_of(t) && t.created >= since);
        let attempts = records.attempts.iter().filter(|(id, attempt)| {
            attempt.offered >= since && is_of(&records.transfers[&id.transfer])
        });
        Ok(Usage {
            transfers: created.count() as u64,
            received_bytes: attempts.map(|(_, attempt)| attempt.received_bytes).sum(),
        })
    }

    async fn last_event(&self) -> Result<u64, StoreError> {
        Ok(self.records().last_event)
    }

    async fn events_after(&self, seq: u64, limit: u32) -> Result<Events, StoreError> {
        let records = self.records();
        if seq < records.pruned_through {
            return Ok(Events::Pruned);
        }
        let after = records.events.range(seq.saturating_add(1)..).take(limit as usize);
        let event = |(&seq, transfer): (&u64, &Transfer)| Event { seq, transfer: transfer.clone() };
        Ok(Events::After(after.map(event).collect()))
    }

    async fn prune_events(&self, before: UnixMs, keep_max: u64) -> Result<u64, StoreError> {
        let mut records = self.records();
        let ended = records.events.iter().rev().filter(|(_, event)| records.is_ended(event));
        let dropped: Vec<u64> = ended
            .zip(1..)
            .filter(|((_, event), rank)| event.updated < before || *rank > keep_max)
            .map(|((&seq, _), _)| seq)
            .collect();
        for seq in &dropped {
            records.events.remove(seq);
        }
        records.pruned_through = dropped.first().copied().unwrap_or(0).max(records.pruned_through);
        Ok(dropped.len() as u64)
    }

    async fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        ids::InstanceId,
        transfer::{Consistency, Request},
    };

    #[tokio::test]
    async fn a_client_may_have_only_so_many_unfinished_transfers() {
        let store = MemoryStore::new();
        let opening = SessionOpening {
            client: "client-1".parse().unwrap(),
            instance: InstanceId::generate(),
            jobs_max: 1,
            version: String::new(),
            host_name: String::new(),
            os: String::new(),
            address: String::new(),
            allowed_roots: Vec::new(),
            policy_digest: None,
        };
        store.open_session(&opening, UnixMs(0)).await.unwrap();
        let request = Request {
            client: opening.client,
            operator: None,
            path: None,
            request_id: None,
            consistency: Consistency::Auto,
            rate_max: None,
            signed: None,
            deadline: Duration::from_secs(1),
        };
        let make = || Transfer::new(TransferId::generate(), request.clone(), UnixMs(0));
        for _ in 1..limits::UNFINISHED_PER_CLIENT_MAX {
            store.records().write(&make());
        }
        assert!(matches!(store.create(&make()).await.unwrap(), Created::New(_)));

        let refused = store.create(&make()).await.unwrap();

        assert_eq!(refused, Created::TooMany(limits::UNFINISHED_PER_CLIENT_MAX));
    }
}
