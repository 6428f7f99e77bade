//! The suite. Each function is one promise, kept by every store.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use fts::{
    audit_head::AuditHead,
    ids::{Epoch, InstanceId, SessionEpoch, TransferId},
    limits,
    rate::Rate,
    server::store::{
        Applied, Claim, Claimant, Created, Events, Party, SaidHead, Store, TransferFilter, Usage,
        memory::MemoryStore, sqlite::SqliteStore,
    },
    signature::RequestSignature,
    transfer::{Cause, Content, FailReason, Request, Signed, State, Step, StepError, Transfer},
};
use tokio::task::JoinSet;

use super::fixture::*;

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name(super::Arc::new(super::MemoryStore::new())).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let url = format!("sqlite:{}/records.db", dir.path().display());
                let store = super::Arc::new(super::SqliteStore::open(&url).await.unwrap());
                super::$name(store.clone()).await;
                super::Store::close(&*store).await;
            })*
        }
    };
}

promises!(
    a_client_is_unknown_until_its_first_session,
    a_session_raises_the_epoch_and_notes_what_the_client_said,
    an_audit_that_goes_back_is_told_once_and_stays_on_record,
    clients_are_listed_by_id,
    last_seen_never_goes_back,
    a_client_record_counts_its_unfinished_transfers,
    a_transfer_reads_back_as_it_was_written,
    a_transfer_needs_a_known_client,
    a_request_id_stands_for_one_request,
    a_request_id_is_its_operators_own,
    what_was_signed_is_kept_and_its_id_is_taken_once,
    usage_is_of_one_party_since_a_moment,
    a_request_sent_twenty_times_at_once_makes_one_transfer,
    the_oldest_due_transfer_is_claimed_first,
    a_claim_tells_when_the_next_is_due,
    clients_with_something_due_are_found,
    no_more_than_jobs_max_are_outstanding,
    one_claim_takes_the_oldest_as_many_as_there_is_room_for,
    steps_are_taken_all_or_none,
    concurrent_claims_take_each_attempt_once,
    an_older_session_claims_nothing,
    epochs_only_grow,
    a_refused_step_changes_nothing,
    concurrent_steps_are_taken_once,
    transfers_are_listed_newest_first_by_filter_and_page,
    overdue_are_missed_deadlines_and_stale_offers,
    content_expires_by_age,
    content_expires_beyond_a_total_oldest_first,
    of_contents_that_ended_together_the_first_expires_first,
    counts_name_every_state,
    every_change_is_an_event_in_order_without_a_gap,
    only_events_of_ended_transfers_are_pruned,
    a_reader_behind_pruned_events_is_told,
    it_answers_a_ping,
    the_id_of_the_files_is_kept,
);

async fn a_client_is_unknown_until_its_first_session(store: Arc<dyn Store>) {
    assert_eq!(store.client(&client(1)).await.unwrap(), None);
    let claimant = Claimant {
        client: client(1),
        session: SessionEpoch(0),
        instance: InstanceId::generate(),
        jobs_max: 1,
        offers_max: 1,
    };
    let claim = store.claim(&claimant, moment(0)).await.unwrap();
    assert_eq!(claim, Claim::Fenced);

    Site::open(&store, 1).await;

    assert!(store.client(&client(1)).await.unwrap().is_some());
}

async fn a_session_raises_the_epoch_and_notes_what_the_client_said(store: Arc<dyn Store>) {
    let first = opening(&client(1), InstanceId::generate());
    let mut second = opening(&client(1), InstanceId::generate());
    second.version.push_str(".4");
    second.allowed_roots.clear();
    second.policy_digest = None;

    let first_epoch = store.open_session(&first, at(5)).await.unwrap();
    let second_epoch = store.open_session(&second, at(9)).await.unwrap();

    assert!(first_epoch > SessionEpoch(0));
    assert!(second_epoch > first_epoch);
    let record = store.client(&client(1)).await.unwrap().unwrap();
    assert_eq!(record.opening, second);
    assert_eq!(record.session_epoch, second_epoch);
    assert_eq!((record.first_seen, record.last_seen), (at(5), at(9)));
}

async fn an_audit_that_goes_back_is_told_once_and_stays_on_record(store: Arc<dyn Store>) {
    let head = |seq: u64, of: &str| format!("{seq}:{}", blake3::hash(of.as_bytes())).parse();
    let head = |seq, of| head(seq, of).expect("a head");
    let opening = opening(&client(1), InstanceId::generate());
    let older = store.open_session(&opening, at(1)).await.unwrap();
    let session = store.open_session(&opening, at(2)).await.unwrap();
    let say = async |session, said, at_ms| {
        store.note_audit_head(&client(1), session, said, at(at_ms)).await.unwrap()
    };
    let note = async |session, head: AuditHead, at_ms| {
        say(session, SaidHead { head, is_of_hello: false }, at_ms).await
    };
    let greet = async |head: AuditHead, at_ms| {
        say(session, SaidHead { head, is_of_hello: true }, at_ms).await
    };
    let record = async || {
        let record = store.client(&client(1)).await.unwrap().unwrap();
        (record.audit_head, record.audit_back)
    };

    assert_eq!(note(session, head(5, "five"), 3).await, None);
    assert_eq!(note(session, head(5, "five"), 4).await, None);
    assert_eq!(note(session, head(9, "nine"), 5).await, None);
    // What an older session still says is out of date.
    assert_eq!(note(older, head(5, "five"), 6).await, None);
    // And a Hello may come late; but it may tell of more.
    assert_eq!(greet(head(5, "five"), 6).await, None);
    assert_eq!(record().await, (Some(head(9, "nine")), None));
    assert_eq!(greet(head(10, "ten"), 6).await, None);
    assert_eq!(record().await, (Some(head(10, "ten")), None));

    assert_eq!(note(session, head(9, "other"), 7).await, Some(head(10, "ten")));
    assert_eq!(record().await, (Some(head(9, "other")), Some(at(7))));
    assert_eq!(note(session, head(2, "two"), 8).await, Some(head(9, "other")));
    assert_eq!(note(session, head(3, "three"), 9).await, None);

    // A new session forgets neither.
    store.open_session(&opening, at(10)).await.unwrap();
    assert_eq!(record().await, (Some(head(3, "three")), Some(at(8))));
}

async fn clients_are_listed_by_id(store: Arc<dyn Store>) {
    for number in [3, 1, 2] {
        Site::open(&store, number).await;
    }
    let ids = |records: Vec<fts::server::store::ClientRecord>| {
        records.into_iter().map(|record| record.opening.client).collect::<Vec<_>>()
    };

    let first = ids(store.clients(None, 2).await.unwrap());
    let rest = ids(store.clients(first.last(), 2).await.unwrap());

    assert_eq!(first, [client(1), client(2)]);
    assert_eq!(rest, [client(3)]);
}

async fn last_seen_never_goes_back(store: Arc<dyn Store>) {
    for number in [1, 2, 3] {
        Site::open(&store, number).await;
    }

    store.note_seen(&[(client(1), at(100)), (client(2), at(-100))]).await.unwrap();
    store.note_seen(&[(client(3), at(7)), (client(9), at(1)), (client(3), at(6))]).await.unwrap();
    store.note_seen(&[]).await.unwrap();
    store.note_seen(&[(client(1), at(99))]).await.unwrap();

    let seen = store.clients(None, 10).await.unwrap();
    let seen: Vec<_> = seen.iter().map(|record| record.last_seen).collect();
    assert_eq!(seen, [at(100), at(0), at(7)]);

    let again = opening(&client(1), InstanceId::generate());
    store.open_session(&again, at(50)).await.unwrap();
    assert_eq!(store.client(&client(1)).await.unwrap().unwrap().last_seen, at(100));
}

async fn a_client_record_counts_its_unfinished_transfers(store: Arc<dyn Store>) {
    let (site, other) = (Site::open(&store, 1).await, Site::open(&store, 2).await);
    for _ in 0..5 {
        site.create(0).await;
    }
    other.create(0).await;
    site.deliver(1, 1).await;
    site.offer(2).await;
    let broken = site.offer(2).await;
    let cause = Cause::ClientLost;
    let step = Step::Broken { epoch: broken.epoch, cause, received_bytes: 0 };
    site.done(broken.id, begun(broken.epoch, site.instance, 1), 3).await;
    site.done(broken.id, step, 3).await;

    let record = store.client(&site.client).await.unwrap().unwrap();
    let listed = store.clients(None, 10).await.unwrap();

    assert_eq!((record.active_transfers, record.queued_transfers), (1, 3));
    assert_eq!(listed[0], record);
    assert_eq!((listed[1].active_transfers, listed[1].queued_transfers), (0, 1));
}

async fn a_transfer_reads_back_as_it_was_written(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let mut request = request(&site.client, "/srv/ä \"b\"\n", Some("r'1"));
    request.consistency = fts::transfer::Consistency::Strict;
    request.rate_max = Some(Rate::try_from(64_001).unwrap());
    request.operator = Some(operator(1));
    let created = Transfer::new(TransferId::generate(), request, at(0));
    store.create(&created).await.unwrap();
    assert_eq!(store.transfer(created.id).await.unwrap(), Some(created.clone()));

    // Through every column: a broken attempt, then a delivered one, then its deletion.
    let id = created.id;
    let first = site.offer(1).await;
    let detail = "read failed: ☠".to_owned();
    let cause = Cause::Failed { reason: FailReason::Io, detail };
    let broken = Step::Broken { epoch: first.epoch, cause, received_bytes: 1 << 40 };
    let mut steps = vec![begun(first.epoch, site.instance, 1 << 43), broken];
    steps.push(Step::MadeDue);
    for (step, ms) in steps.into_iter().zip(2..) {
        let taken = site.done(id, step, ms).await;
        assert_eq!(store.transfer(id).await.unwrap(), Some(taken));
    }
    let last = site.deliver(7, 10).await;

    assert_eq!(store.transfer(id).await.unwrap(), Some(last.clone()));
    assert_eq!((last.state, last.content), (State::Complete, Content::Kept));
    assert_eq!(last.received_bytes, (1 << 40) + 7);
    assert_eq!(last.file, Some(file(7)));
    assert_eq!(last.finish, Some(finish()));
    let deleted = site.done(id, Step::ContentDeleted, 11).await;
    assert_eq!(store.transfer(id).await.unwrap(), Some(deleted));
    assert_whole(&*store).await;
}

async fn a_transfer_needs_a_known_client(store: Arc<dyn Store>) {
    let orphan = transfer(&client(1), 0);

    assert_eq!(store.create(&orphan).await.unwrap(), Created::UnknownClient);

    assert_eq!(store.transfer(orphan.id).await.unwrap(), None);
    assert_eq!(store.last_event().await.unwrap(), 0);
}

async fn a_request_id_stands_for_one_request(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let make = |path, id| {
        Transfer::new(TransferId::generate(), request(&site.client, path, Some(id)), at(0))
    };
    let first = make("/a", "r1");
    store.create(&first).await.unwrap();
    let now = site.deliver(1, 1).await;

    let same = store.create(&make("/a", "r1")).await.unwrap();
    let conflict = store.create(&make("/b", "r1")).await.unwrap();
    let other = store.create(&make("/a", "r2")).await.unwrap();

    // For as long as the transfer, not only while it runs.
    assert_eq!(same, Created::Existing(now));
    assert_eq!(conflict, Created::Conflict(first.id));
    assert!(matches!(other, Created::New(_)));
    assert_eq!(all(&*store).await.len(), 2);
    assert_whole(&*store).await;
}

async fn a_request_id_is_its_operators_own(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let create = async |operator| {
        let request = Request { operator, ..request(&site.client, "/a", Some("r1")) };
        let transfer = Transfer::new(TransferId::generate(), request, at(0));
        store.create(&transfer).await.unwrap()
    };
    let mut created = Vec::new();
    for operator in [Some(operator(1)), Some(operator(2)), None] {
        let Created::New(transfer) = create(operator.clone()).await else {
            panic!("{operator:?} has never asked for it");
        };
        assert_eq!(transfer.operator, operator);
        created.push(transfer);
    }

    for transfer in created {
        let again = create(transfer.operator.clone()).await;
        assert_eq!(again, Created::Existing(transfer));
    }
    assert_whole(&*store).await;
}

async fn what_was_signed_is_kept_and_its_id_is_taken_once(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let id = TransferId::generate();
    let make = |byte, request_id| {
        let most = [byte; limits::SIGNED_REQUEST_BYTES_MAX];
        let signature = RequestSignature::new(&most, &[byte; 64]).unwrap();
        let signed = Some(Signed { transfer: id, signature });
        let request = Request { signed, ..request(&site.client, "/a", request_id) };
        Transfer::new(TransferId::generate(), request, at(0))
    };
    let first = make(1, Some("r1"));
    assert_eq!(store.create(&first).await.unwrap(), Created::New(first.clone()));

    assert_eq!(store.create(&make(2, None)).await.unwrap(), Created::Taken(id));
    assert_eq!(store.create(&make(2, Some("r2"))).await.unwrap(), Created::Taken(id));
    let again = store.create(&make(2, Some("r1"))).await.unwrap();
    assert_eq!(again, Created::Existing(first.clone()));
    let unsigned = request(&site.client, "/a", Some("r1"));
    let unsigned = Transfer::new(TransferId::generate(), unsigned, at(0));
    assert_eq!(store.create(&unsigned).await.unwrap(), Created::Conflict(id));

    let claimed = site.claim(1, 1).await;
    let now = store.transfer(id).await.unwrap().unwrap();
    assert_eq!(now.signature, first.signature);
    assert_eq!(claimed, Claim::Offered(vec![now]));
    let Events::After(events) = store.events_after(0, 10).await.unwrap() else { panic!("pruned") };
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| event.transfer.signature.is_none()));
}

async fn usage_is_of_one_party_since_a_moment(store: Arc<dyn Store>) {
    let (site, other) = (Site::open(&store, 1).await, Site::open(&store, 2).await);
    for (site, by, ms) in [(&site, Some(1), 0), (&site, None, 10), (&other, Some(1), 20)] {
        let operator = by.map(operator);
        let request = Request { operator, ..request(&site.client, "/a", None) };
        let transfer = Transfer::new(TransferId::generate(), request, at(ms));
        store.create(&transfer).await.unwrap();
    }
    // The first takes two attempts: 100 bytes at 30, 7 at 41.
    let first = site.offer(30).await;
    let (id, epoch) = (first.id, first.epoch);
    let cause = Cause::Failed { reason: FailReason::Io, detail: String::new() };
    site.done(id, begun(epoch, site.instance, 200), 31).await;
    site.done(id, Step::Broken { epoch, cause, received_bytes: 100 }, 32).await;
    site.deliver(20, 33).await;
    site.done(id, Step::MadeDue, 40).await;
    site.deliver(7, 41).await;
    other.deliver(3, 50).await;

    let (client_1, operator_1) = (Party::Client(client(1)), Party::Operator(operator(1)));
    for (party, since, transfers, received_bytes) in [
        (&client_1, 0, 2, 127),
        (&client_1, 1, 1, 127),
        (&client_1, 10, 1, 127),
        (&client_1, 30, 0, 127),
        (&client_1, 31, 0, 27),
        (&client_1, 34, 0, 7),
        (&client_1, 42, 0, 0),
        (&operator_1, 0, 2, 110),
        (&operator_1, 20, 1, 110),
        (&operator_1, 31, 0, 10),
        (&operator_1, 50, 0, 3),
        (&operator_1, 51, 0, 0),
        (&Party::Client(client(3)), 0, 0, 0),
        (&Party::Operator(operator(3)), 0, 0, 0),
    ] {
        let usage = store.usage(party, at(since)).await.unwrap();
        assert_eq!(usage, Usage { transfers, received_bytes }, "{party:?} since {since}");
    }
}

async fn a_request_sent_twenty_times_at_once_makes_one_transfer(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let mut tasks = JoinSet::new();
    for _ in 0..20 {
        let (store, request) = (store.clone(), request(&site.client, "/a", Some("once")));
        tasks.spawn(async move {
            let transfer = Transfer::new(TransferId::generate(), request, at(0));
            store.create(&transfer).await.unwrap()
        });
    }

    let answers = tasks.join_all().await;

    let new = answers.iter().filter(|answer| matches!(answer, Created::New(_))).count();
    assert_eq!(new, 1);
    let stored = all(&*store).await;
    assert_eq!(stored.len(), 1);
    for answer in answers {
        let (Created::New(transfer) | Created::Existing(transfer)) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(transfer, stored[0]);
    }
}

async fn the_oldest_due_transfer_is_claimed_first(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let late = site.create(30).await;
    let early = site.create(10).await;
    let same_time_later_id = site.create(10).await;
    Site::open(&store, 2).await.create(0).await;

    let claimed: Vec<_> = [site.offer(50).await, site.offer(50).await, site.offer(50).await]
        .map(|offered| offered.id)
        .into();

    assert_eq!(claimed, [early.id, same_time_later_id.id, late.id]);
}

async fn a_claim_tells_when_the_next_is_due(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    assert_eq!(site.claim(1, 0).await, Claim::Nothing { next_due: None });
    let paused = site.create(1).await;
    site.done(paused.id, Step::Paused { received_bytes: 0 }, 2).await;
    assert_eq!(site.claim(1, 3).await, Claim::Nothing { next_due: None });

    site.create(200).await;
    site.create(100).await;

    assert_eq!(site.claim(1, 99).await, Claim::Nothing { next_due: Some(at(100)) });
    assert!(matches!(site.claim(1, 100).await, Claim::Offered(_)));
}

async fn clients_with_something_due_are_found(store: Arc<dyn Store>) {
    let mut sites = Vec::new();
    for number in 1..=6 {
        sites.push(Site::open(&store, number).await);
    }
    let due = async |ms, after: Option<u8>, limit| {
        let after = after.map(client);
        store.due_clients(at(ms), after.as_ref(), limit).await.unwrap()
    };
    assert_eq!(due(1000, None, 9).await, []);

    // One each, at different times; the second client has many, and the last one none.
    for (site, ms) in sites.iter().zip([10, 20, 30, 40, 50]) {
        site.create(ms).await;
    }
    for _ in 0..3 {
        sites[1].create(5).await;
    }
    // What is outstanding, paused, or has ended is not due.
    sites[2].offer(30).await;
    let paused = sites[3].create(5).await;
    sites[3].done(paused.id, Step::Paused { received_bytes: 0 }, 6).await;
    let ended = sites[4].create(5).await;
    sites[4].done(ended.id, Step::Cancelled { received_bytes: 0 }, 6).await;

    assert_eq!(due(4, None, 9).await, []);
    assert_eq!(due(5, None, 9).await, [client(2)]);
    assert_eq!(due(10, None, 9).await, [client(1), client(2)]);
    assert_eq!(due(39, None, 9).await, [client(1), client(2)]);
    assert_eq!(due(50, None, 9).await, [client(1), client(2), client(4), client(5)]);
    assert_eq!(due(50, None, 3).await, [client(1), client(2), client(4)]);
    assert_eq!(due(50, Some(4), 3).await, [client(5)]);
    assert_eq!(due(50, Some(5), 3).await, []);
}

async fn no_more_than_jobs_max_are_outstanding(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    for _ in 0..4 {
        site.create(0).await;
    }
    assert_eq!(site.claim(0, 1).await, Claim::Full);
    let first = only(site.claim(2, 1).await);
    only(site.claim(2, 1).await);

    // OFFERED, RECEIVING and VERIFYING all count.
    assert_eq!(site.claim(2, 1).await, Claim::Full);
    site.done(first.id, begun(first.epoch, site.instance, 1), 2).await;
    assert_eq!(site.claim(2, 2).await, Claim::Full);
    site.done(first.id, finished(first.epoch, 1), 3).await;
    assert_eq!(site.claim(2, 3).await, Claim::Full);

    // An ended attempt frees its slot.
    site.done(first.id, Step::Published { epoch: first.epoch }, 4).await;
    assert!(matches!(site.claim(2, 4).await, Claim::Offered(_)));
}

async fn one_claim_takes_the_oldest_as_many_as_there_is_room_for(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let late = site.create(9).await;
    let mut due = Vec::new();
    for ms in 0..5 {
        due.push(site.create(ms).await.id);
    }
    let claim = async |jobs_max, offers_max| match store
        .claim(&site.claimant(jobs_max, offers_max), moment(5))
        .await
        .unwrap()
    {
        Claim::Offered(offers) => offers.into_iter().map(|offer| offer.id).collect(),
        _ => Vec::new(),
    };

    let first = claim(3, 2).await;
    let second = claim(3, 9).await;
    let none = claim(3, 9).await;
    let rest = claim(99, 99).await;

    assert_eq!(first, due[..2]);
    assert_eq!(second, due[2..3]);
    assert_eq!(none, []);
    assert_eq!(rest, due[3..]);
    assert_eq!(store.transfer(late.id).await.unwrap(), Some(late));
    assert_whole(&*store).await;
}

async fn steps_are_taken_all_or_none(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let id = site.create(0).await.id;
    let offered = site.offer(1).await;
    let epoch = offered.epoch;
    let step = |step, ms| (step, moment(ms));
    let begun = step(begun(epoch, site.instance, 5), 2);
    let finished = step(finished(epoch, 5), 3);
    let (stale, published) =
        (step(Step::Published { epoch: Epoch(9) }, 4), step(Step::Published { epoch }, 4));

    let refused = store.apply(id, &[begun.clone(), finished.clone(), stale]).await.unwrap();
    let unchanged = store.transfer(id).await.unwrap();
    let done = store.apply(id, &[begun, finished, published]).await.unwrap();

    assert!(matches!(&refused, Applied::Refused(_, still) if *still == offered), "{refused:?}");
    assert_eq!(unchanged, Some(offered));
    let Applied::Done(versions) = done else { panic!("refused") };
    let states: Vec<_> = versions.iter().map(|version| version.state).collect();
    assert_eq!(states, [State::Receiving, State::Verifying, State::Complete]);
    let latest = store.transfer(id).await.unwrap().unwrap();
    assert_eq!(versions.last(), Some(&latest));
    assert_eq!((latest.started, latest.ended), (Some(at(2)), Some(at(4))));
    assert_whole(&*store).await;
}

async fn concurrent_claims_take_each_attempt_once(store: Arc<dyn Store>) {
    const JOBS_MAX: u32 = 3;
    let site = Arc::new(Site::open(&store, 1).await);
    for _ in 0..40 {
        site.create(0).await;
    }
    let outstanding = Arc::new(AtomicU32::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..32 {
        let (site, outstanding) = (site.clone(), outstanding.clone());
        tasks.spawn(async move {
            let mut claimed = Vec::new();
            loop {
                match site.claim(JOBS_MAX, 1).await {
                    Claim::Full => tokio::task::yield_now().await,
                    Claim::Nothing { .. } => return claimed,
                    Claim::Fenced => panic!("fenced"),
                    offered @ Claim::Offered(_) => {
                        let Transfer { id, epoch, .. } = only(offered);
                        let others = outstanding.fetch_add(1, Ordering::SeqCst);
                        assert!(others < JOBS_MAX, "{others} others are outstanding");
                        claimed.push((id, epoch));
                        site.done(id, begun(epoch, site.instance, 1), 2).await;
                        site.done(id, finished(epoch, 1), 3).await;
                        outstanding.fetch_sub(1, Ordering::SeqCst);
                        site.done(id, Step::Published { epoch }, 4).await;
                    }
                }
            }
        });
    }

    let claimed: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();

    let times = claimed.iter().fold(HashMap::new(), |mut times, attempt| {
        *times.entry(attempt).or_insert(0) += 1;
        times
    });
    assert_eq!(times.len(), 40);
    assert!(times.iter().all(|((_, epoch), times)| *epoch == Epoch(1) && *times == 1));
    assert!(all(&*store).await.iter().all(|transfer| transfer.state == State::Complete));
    assert_whole(&*store).await;
}

async fn an_older_session_claims_nothing(store: Arc<dyn Store>) {
    let old = Site::open(&store, 1).await;
    let waiting = old.create(0).await;
    let new = Site::open(&store, 1).await;

    assert_eq!(old.claim(1, 1).await, Claim::Fenced);
    let future = SessionEpoch(new.session.0 + 1);
    let claimant = Claimant { session: future, ..new.claimant(1, 1) };
    let claim = store.claim(&claimant, moment(1)).await.unwrap();
    assert_eq!(claim, Claim::Fenced);

    assert_eq!(store.transfer(waiting.id).await.unwrap(), Some(waiting.clone()));
    let offered = new.offer(1).await;
    assert_eq!((offered.id, offered.instance), (waiting.id, Some(new.instance)));
}

async fn epochs_only_grow(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let id = site.create(0).await.id;
    let first = site.offer(1).await.epoch;
    site.done(id, Step::OfferExpired { epoch: first }, 2).await;
    let second = site.offer(100_000).await.epoch;
    site.done(id, Step::Cancelled { received_bytes: 0 }, 100_001).await;
    site.done(id, Step::Retried, 100_002).await;
    let third = site.offer(100_003).await.epoch;

    assert_eq!([first, second, third], [Epoch(1), Epoch(2), Epoch(3)]);
    for stale in [first, second] {
        let got = apply(&*store, id, begun(stale, site.instance, 1), 100_004).await;
        let Applied::Refused(err, _) = got else { panic!("taken") };
        assert_eq!(err, StepError::StaleEpoch { current: third, got: stale });
    }
}

async fn a_refused_step_changes_nothing(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let before = site.create(0).await;
    let last_event = store.last_event().await.unwrap();

    let wrong = apply(&*store, before.id, Step::Resumed, 1).await;
    let unchanged = apply(&*store, before.id, Step::MadeDue, 1).await;
    let unknown =
        apply(&*store, TransferId::generate(), Step::Paused { received_bytes: 0 }, 1).await;

    let refused = StepError::WrongState(State::Queued);
    assert_eq!(wrong, Applied::Refused(refused, before.clone()));
    assert_eq!(unchanged, Applied::Refused(StepError::Unchanged, before.clone()));
    assert_eq!(unknown, Applied::Unknown);
    assert_eq!(store.transfer(before.id).await.unwrap(), Some(before));
    assert_eq!(store.last_event().await.unwrap(), last_event);
}

async fn concurrent_steps_are_taken_once(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let id = site.create(0).await.id;
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let store = store.clone();
        tasks.spawn(
            async move { apply(&*store, id, Step::Cancelled { received_bytes: 0 }, 1).await },
        );
    }

    let answers = tasks.join_all().await;

    let done = answers.iter().filter(|answer| matches!(answer, Applied::Done(_))).count();
    assert_eq!(done, 1);
    assert_whole(&*store).await;
}

async fn transfers_are_listed_newest_first_by_filter_and_page(store: Arc<dyn Store>) {
    let (one, two) = (Site::open(&store, 1).await, Site::open(&store, 2).await);
    let mut ids = Vec::new();
    for number in 0..7 {
        let site = if number % 2 == 0 { &one } else { &two };
        ids.insert(0, site.create(0).await.id);
    }
    one.done(ids[6], Step::Cancelled { received_bytes: 0 }, 1).await;
    one.offer(1).await;
    let list = async |client, states: &[State], before, limit| {
        let filter = TransferFilter { client, states: states.to_vec() };
        let page = store.transfers(&filter, before, limit).await.unwrap();
        page.iter().map(|transfer| transfer.id).collect::<Vec<_>>()
    };

    assert_eq!(list(None, &[], None, 100).await, ids);
    assert_eq!(list(None, &[], None, 3).await, ids[..3]);
    assert_eq!(list(None, &[], Some(ids[2]), 3).await, ids[3..6]);
    assert_eq!(list(None, &[], Some(ids[6]), 3).await, []);
    assert_eq!(list(Some(client(2)), &[], None, 100).await, [ids[1], ids[3], ids[5]]);
    assert_eq!(list(Some(client(2)), &[], Some(ids[1]), 1).await, [ids[3]]);
    assert_eq!(list(Some(client(3)), &[], None, 100).await, []);
    let states = [State::Cancelled, State::Offered];
    assert_eq!(list(None, &states, None, 100).await, [ids[4], ids[6]]);
    assert_eq!(list(Some(client(1)), &[State::Queued], None, 100).await, [ids[0], ids[2]]);
}

async fn overdue_are_missed_deadlines_and_stale_offers(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let hour = i64::try_from(DEADLINE.as_millis()).unwrap();
    let offered = site.create(0).await;
    site.offer(10).await;
    let waiting = site.create(100).await;
    let ended = site.create(100).await;
    site.done(ended.id, Step::Cancelled { received_bytes: 0 }, 101).await;
    let overdue = async |ms, offered_before, limit| {
        let found = store.overdue(at(ms), at(offered_before), limit).await.unwrap();
        found.iter().map(|transfer| transfer.id).collect::<Vec<_>>()
    };

    assert_eq!(overdue(1000, 10, 9).await, []);
    assert_eq!(overdue(1000, 11, 9).await, [offered.id]);
    assert_eq!(overdue(hour - 1, 0, 9).await, []);
    assert_eq!(overdue(hour, 0, 9).await, [offered.id]);
    assert_eq!(overdue(hour + 100, 11, 9).await, [offered.id, waiting.id]);
    assert_eq!(overdue(hour + 100, 11, 1).await, [offered.id]);
}

/// Four transfers of 10, 20, 30 and 40 bytes, delivered in that order.
async fn delivered(store: &Arc<dyn Store>) -> (Site, Vec<TransferId>) {
    let site = Site::open(store, 1).await;
    let mut ids = Vec::new();
    for number in 1..=4 {
        site.create(0).await;
        let size_bytes = u64::try_from(number).unwrap() * 10;
        ids.push(site.deliver(size_bytes, number * 100).await.id);
    }
    (site, ids)
}

async fn content_expires_by_age(store: Arc<dyn Store>) {
    let (site, ids) = delivered(&store).await;
    let failed = site.create(0).await;
    site.done(failed.id, Step::Cancelled { received_bytes: 0 }, 1).await;
    let expired = async |before: Option<i64>, limit| {
        let found = store.expired_content(before.map(at), None, limit).await.unwrap();
        found.iter().map(|transfer| transfer.id).collect::<Vec<_>>()
    };

    assert_eq!(expired(None, 9).await, []);
    assert_eq!(expired(Some(100), 9).await, []);
    assert_eq!(expired(Some(201), 9).await, ids[..2]);
    assert_eq!(expired(Some(1000), 3).await, ids[..3]);
    site.done(ids[0], Step::ContentDeleted, 500).await;
    assert_eq!(expired(Some(201), 9).await, ids[1..2]);
}

async fn content_expires_beyond_a_total_oldest_first(store: Arc<dyn Store>) {
    let (site, ids) = delivered(&store).await;
    let expired = async |before: Option<i64>, bytes_max| {
        let found = store.expired_content(before.map(at), Some(bytes_max), 9).await.unwrap();
        found.iter().map(|transfer| transfer.id).collect::<Vec<_>>()
    };

    assert_eq!(expired(None, u64::MAX).await, []);
    assert_eq!(expired(None, 100).await, []);
    assert_eq!(expired(None, 99).await, ids[..1]);
    assert_eq!(expired(None, 70).await, ids[..2]);
    assert_eq!(expired(None, 0).await, ids);
    assert_eq!(expired(Some(301), 99).await, ids[..3]);
    site.done(ids[3], Step::ContentDeleted, 500).await;
    assert_eq!(expired(None, 59).await, ids[..1]);
}

async fn of_contents_that_ended_together_the_first_expires_first(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    for _ in 0..3 {
        site.create(0).await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(site.deliver(10, 1).await.id);
    }

    let expired = store.expired_content(None, Some(10), 9).await.unwrap();

    let expired: Vec<_> = expired.iter().map(|transfer| transfer.id).collect();
    assert_eq!(expired, ids[..2]);
}

async fn counts_name_every_state(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    for _ in 0..3 {
        site.create(0).await;
    }
    site.deliver(1, 1).await;

    let counts = store.counts().await.unwrap();

    assert_eq!(counts.len(), State::ALL.len());
    for (state, count) in counts {
        let expected = match state {
            State::Queued => 2,
            State::Complete => 1,
            _ => 0,
        };
        assert_eq!(count, expected, "{state:?}");
    }
}

async fn every_change_is_an_event_in_order_without_a_gap(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    assert_eq!(store.last_event().await.unwrap(), 0);
    let created = site.create(0).await;
    let complete = site.deliver(1, 1).await;
    let other = site.create(2).await;
    apply(&*store, other.id, Step::Resumed, 3).await;

    let Events::After(events) = store.events_after(0, 100).await.unwrap() else { panic!("pruned") };
    let Events::After(page) = store.events_after(2, 2).await.unwrap() else { panic!("pruned") };
    let states: Vec<_> = events.iter().map(|event| event.transfer.state).collect();

    assert_eq!(states, [State::ALL[..4].to_vec(), vec![State::Complete, State::Queued]].concat());
    assert_eq!(events[0].transfer, created);
    assert_eq!(events[4].transfer, complete);
    assert_eq!(page, events[2..4]);
    assert_eq!(store.last_event().await.unwrap(), 6);
    assert_eq!(store.events_after(6, 9).await.unwrap(), Events::After(Vec::new()));
    assert_eq!(store.events_after(u64::MAX, 9).await.unwrap(), Events::After(Vec::new()));
    assert_whole(&*store).await;
}

async fn only_events_of_ended_transfers_are_pruned(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let live = site.create(0).await;
    site.done(live.id, Step::Paused { received_bytes: 0 }, 1).await;
    let ended = site.create(2).await;
    site.done(ended.id, Step::Cancelled { received_bytes: 0 }, 3).await;
    let revived = site.create(4).await;
    site.done(revived.id, Step::Cancelled { received_bytes: 0 }, 5).await;
    site.done(revived.id, Step::Retried, 6).await;

    assert_eq!(store.prune_events(at(2), 100).await.unwrap(), 0);
    assert_eq!(store.prune_events(at(3), 100).await.unwrap(), 1);
    assert_eq!(store.prune_events(at(3), 1).await.unwrap(), 0);
    assert_eq!(store.prune_events(at(3), 0).await.unwrap(), 1);
    assert_eq!(store.prune_events(at(1000), 0).await.unwrap(), 0);

    let Events::After(left) = store.events_after(4, 100).await.unwrap() else { panic!("pruned") };
    assert!(left.iter().all(|event| event.transfer.id == revived.id));
    assert_eq!(left.len(), 3);
    // Their records stay.
    assert_eq!(all(&*store).await.len(), 3);
}

async fn a_reader_behind_pruned_events_is_told(store: Arc<dyn Store>) {
    let site = Site::open(&store, 1).await;
    let ended = site.create(0).await;
    site.done(ended.id, Step::Cancelled { received_bytes: 0 }, 1).await;

    store.prune_events(at(1000), 100).await.unwrap();

    assert_eq!(store.events_after(0, 9).await.unwrap(), Events::Pruned);
    assert_eq!(store.events_after(1, 9).await.unwrap(), Events::Pruned);
    assert_eq!(store.events_after(2, 9).await.unwrap(), Events::After(Vec::new()));
    // A number is not used again, though no event is left.
    assert_eq!(store.last_event().await.unwrap(), 2);
    let next = site.create(2).await;
    let Events::After(events) = store.events_after(2, 9).await.unwrap() else { panic!("pruned") };
    assert_eq!((events[0].seq, &events[0].transfer), (3, &next));
}

async fn it_answers_a_ping(store: Arc<dyn Store>) {
    store.ping().await.unwrap();
    store.ping().await.unwrap();
}

async fn the_id_of_the_files_is_kept(store: Arc<dyn Store>) {
    assert_eq!(store.landing_id().await.unwrap(), None);
    store.set_landing_id("one").await.unwrap();
    assert_eq!(store.landing_id().await.unwrap().as_deref(), Some("one"));
    store.set_landing_id("other").await.unwrap();
    assert_eq!(store.landing_id().await.unwrap().as_deref(), Some("other"));
}
