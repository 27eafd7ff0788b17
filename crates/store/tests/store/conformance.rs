//! What every store must do, whichever way it is held.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kopek_store::{Change, Commit, Compare, LeaseId, Op, Store, StoreError, WatchError};

use crate::cell::eventually;
use crate::ground::Ground;

macro_rules! conforms {
    (everywhere { $($test:ident)* } over_the_network { $($remote:ident)* }) => {
        conforms! { @ground embedded $($test)* }
        conforms! { @ground served_by_socket $($test)* }
        conforms! { @ground served_by_tls $($test)* $($remote)* }
        conforms! { @ground etcd $($test)* $($remote)* }
    };
    (@ground $ground:ident $($test:ident)*) => {
        mod $ground {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test(super::Ground::$ground().await).await;
                }
            )*
        }
    };
}

conforms! {
    everywhere {
        what_is_committed_is_read_back
        a_compare_that_does_not_hold_changes_nothing
        a_commit_is_all_or_nothing_up_to_its_limits
        a_watch_tells_every_change_once_and_in_order
        a_watch_from_before_a_compaction_ends
        a_dropped_wait_loses_no_change
        a_lease_that_is_kept_alive_stays_and_one_that_is_not_takes_its_keys
        concurrent_increments_are_all_counted
    }
    over_the_network {
        a_commit_whose_answer_is_lost_is_uncertain_and_done_once
        a_connection_that_falls_silent_is_given_up
        a_watch_goes_on_where_its_connection_was_cut
        a_watch_cut_off_during_a_compaction_ends
    }
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: None }
}

fn leased(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: b"leased".to_vec(), lease: Some(lease) }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

async fn done(store: &Arc<dyn Store>, ops: Vec<Op>) -> u64 {
    match store.commit(vec![], ops).await.unwrap() {
        Commit::Done { revision } => revision,
        Commit::Conflict => panic!("a commit without compares conflicted"),
    }
}

async fn what_is_committed_is_read_back(ground: Ground) {
    let store = &ground.store;
    let start = store.range("").await.unwrap();
    assert_eq!(start.entries, []);
    let first = done(store, vec![put("/a/2", "two"), put("/a/1", "one"), put("/b", "other")]).await;
    assert!(first > start.revision);
    let range = ground.beside.range("/a/").await.unwrap();
    let found: Vec<_> =
        range.entries.iter().map(|e| (e.key.as_str(), e.value.as_slice(), e.revision)).collect();
    assert_eq!(found, [("/a/1", &b"one"[..], first), ("/a/2", &b"two"[..], first)]);
    assert_eq!(range.revision, first);
    assert_eq!(store.range("").await.unwrap().entries.len(), 3);

    let second = done(store, vec![put("/a/1", "uno"), delete("/a/2"), delete("/a/absent")]).await;
    let entry = store.get("/a/1").await.unwrap().unwrap();
    assert_eq!((entry.value, entry.revision, entry.lease), (b"uno".to_vec(), second, None));
    assert_eq!(store.get("/a/2").await.unwrap(), None);

    // Neither is there: the second is only how others begin.
    let nothing = done(store, vec![delete("/a/absent"), delete("/a")]).await;
    assert_eq!(nothing, second, "nothing changed, no new revision");
    done(store, vec![Op::DeletePrefix { prefix: "/a/".into() }]).await;
    let left: Vec<_> = store.range("").await.unwrap().entries.into_iter().map(|e| e.key).collect();
    assert_eq!(left, ["/b"]);
}

async fn a_compare_that_does_not_hold_changes_nothing(ground: Ground) {
    let store = &ground.store;
    let first = done(store, vec![put("/k", "v")]).await;
    let key = || "/k".to_owned();
    let absent_key = || "/absent".to_owned();
    let holding = [
        Compare::Absent { key: absent_key() },
        Compare::RevisionIs { key: key(), revision: first },
        Compare::ValueIs { key: key(), value: b"v".to_vec() },
    ];
    let failing = [
        Compare::Absent { key: key() },
        Compare::RevisionIs { key: key(), revision: first + 1 },
        Compare::RevisionIs { key: absent_key(), revision: 0 },
        Compare::RevisionIs { key: absent_key(), revision: u64::MAX },
        Compare::ValueIs { key: key(), value: b"w".to_vec() },
        Compare::ValueIs { key: absent_key(), value: vec![] },
    ];
    for compare in failing {
        let mut compares = holding.to_vec();
        compares.push(compare.clone());
        let outcome = store.commit(compares, vec![put("/other", "x"), delete("/k")]).await.unwrap();
        assert_eq!(outcome, Commit::Conflict, "{compare:?}");
    }
    assert_eq!(store.range("").await.unwrap().revision, first);
    let outcome = store.commit(holding.to_vec(), vec![put("/other", "x")]).await.unwrap();
    assert_eq!(outcome, Commit::Done { revision: first + 1 });
}

async fn a_commit_is_all_or_nothing_up_to_its_limits(ground: Ground) {
    let store = &ground.store;
    let many: Vec<Op> = (0..kopek_store::OPS_MAX).map(|n| put(&format!("/many/{n:04}"), "x")).collect();
    let absent: Vec<Compare> =
        (0..kopek_store::OPS_MAX).map(|n| Compare::Absent { key: format!("/many/{n:04}") }).collect();
    let Ok(Commit::Done { revision }) = store.commit(absent.clone(), many.clone()).await else {
        panic!("not done");
    };
    assert_eq!(store.commit(absent, many.clone()).await, Ok(Commit::Conflict));
    let unchanged: Vec<Compare> = (0..kopek_store::OPS_MAX)
        .map(|n| Compare::RevisionIs { key: format!("/many/{n:04}"), revision })
        .collect();
    let again = store.commit(unchanged, many).await;
    assert_eq!(again, Ok(Commit::Done { revision: revision + 1 }));
    assert_eq!(store.range("/many/").await.unwrap().entries.len(), kopek_store::OPS_MAX);
    let large = vec![b'x'; kopek_store::SIZE_MAX - 6];
    done(store, vec![Op::Put { key: "/large".into(), value: large.clone(), lease: None }]).await;
    assert_eq!(store.get("/large").await.unwrap().unwrap().value, large);
    let twice = store.commit(vec![], vec![put("/a", "1"), put("/a", "2")]).await;
    assert!(matches!(twice, Err(StoreError::Refused { .. })), "{twice:?}");
    let lost = store.grant(Duration::from_secs(60)).await.unwrap();
    store.revoke(lost).await.unwrap();
    let failed = store.commit(vec![], vec![put("/a", "1"), leased("/b", lost)]).await;
    assert_eq!(failed, Err(StoreError::LeaseLost { lease: lost }));
    assert_eq!(store.get("/a").await.unwrap(), None);
}

/// Writes commits of several operations; gives what a watch of `/w/` must tell.
async fn write_some(store: &Arc<dyn Store>, commits: u64) -> Vec<Change> {
    let mut expected = Vec::new();
    let mut present: BTreeSet<String> =
        store.range("/w/").await.unwrap().entries.into_iter().map(|entry| entry.key).collect();
    for n in 0..commits {
        let (keep, drop) = (format!("/w/{}", n % 7), format!("/w/{}", (n + 3) % 7));
        let elsewhere = ["/before", "/w", "/x"].map(|key| put(key, "x"));
        let ops = [&elsewhere[..], &[put(&keep, &n.to_string()), delete(&drop)]].concat();
        let revision = done(store, ops).await;
        let entry = store.get(&keep).await.unwrap().unwrap();
        assert_eq!(entry.revision, revision);
        present.insert(keep);
        expected.push(Change::Put(entry));
        if present.remove(&drop) {
            expected.push(Change::Deleted { key: drop, revision });
        }
    }
    expected
}

/// Reads a watch until it has told as much as is expected, and compares.
async fn expect(watch: &mut kopek_store::Watch, expected: &[Change]) {
    let mut told = Vec::new();
    while told.len() < expected.len() {
        let batch = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        let batch = batch.unwrap_or_else(|_| panic!("{} of {} changes came", told.len(), expected.len()));
        let batch = batch.unwrap();
        assert!(!batch.is_empty());
        told.extend(batch);
        let last = told.len() - 1;
        let cut_off = expected.get(last + 1).is_some_and(|c| c.revision() == told[last].revision());
        assert!(!cut_off, "a batch ended within revision {}", told[last].revision());
    }
    assert_eq!(told, expected);
}

/// A watch that cannot go on says so, and stays ended.
pub async fn ends(watch: &mut kopek_store::Watch) {
    for _ in 0..2 {
        let next = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
        assert_eq!(next.expect("it waits for changes that it cannot tell"), Err(WatchError::Compacted));
    }
}

async fn a_watch_tells_every_change_once_and_in_order(ground: Ground) {
    let store = &ground.store;
    let from = done(store, vec![put("/w/before", "x")]).await;
    let mut early = store.watch("/w/", from).await.unwrap();
    let expected = write_some(&ground.beside, 60).await;
    expect(&mut early, &expected).await;
    // The past comes first, also for a watch that is opened late, then what follows.
    let middle = expected[40].revision();
    let mut late = store.watch("/w/", middle).await.unwrap();
    let more = write_some(&ground.beside, 20).await;
    let after: Vec<Change> = expected.iter().filter(|c| c.revision() > middle).cloned().collect();
    expect(&mut late, &[after, more.clone()].concat()).await;
    expect(&mut early, &more).await;
}

async fn a_commit_whose_answer_is_lost_is_uncertain_and_done_once(ground: Ground) {
    let before = done(&ground.store, vec![put("/a", "1")]).await;
    let mut watch = ground.beside.watch("/a", before).await.unwrap();
    ground.hold_answers();
    let cutting = async {
        watch.next().await.unwrap();
        ground.cut();
    };
    let (outcome, ()) = tokio::join!(ground.store.commit(vec![], vec![put("/a", "2")]), cutting);
    assert!(matches!(outcome, Err(StoreError::Uncertain { .. })), "{outcome:?}");
    assert_eq!(ground.beside.range("").await.unwrap().revision, before + 1);
    assert_eq!(ground.store.get("/a").await.unwrap().unwrap().value, b"2", "reading tells");
}

async fn a_connection_that_falls_silent_is_given_up(ground: Ground) {
    let from = done(&ground.store, vec![put("/w/before", "x")]).await;
    let mut watch = ground.store.watch("/w/", from).await.unwrap();
    let expected = write_some(&ground.beside, 1).await;
    expect(&mut watch, &expected).await;
    // Nobody closes them: so it is when a server loses its power or is cut off.
    ground.hold_answers();
    let expected = write_some(&ground.beside, 5).await;
    let reading = tokio::time::timeout(Duration::from_secs(10), ground.store.get("/w/before"));
    assert_eq!(reading.await.expect("it waits on").unwrap().unwrap().value, b"x");
    expect(&mut watch, &expected).await;
}

async fn a_watch_goes_on_where_its_connection_was_cut(ground: Ground) {
    let from = done(&ground.beside, vec![put("/w/before", "x")]).await;
    let mut watch = ground.store.watch("/w/", from).await.unwrap();
    let cutting = async {
        loop {
            tokio::time::sleep(Duration::from_millis(150)).await;
            ground.cut();
        }
    };
    let reading = async {
        let expected = write_some(&ground.beside, 400).await;
        expect(&mut watch, &expected).await;
        // A watch that sleeps while it is cut wakes up with the next change.
        ground.cut();
        let expected = write_some(&ground.beside, 5).await;
        expect(&mut watch, &expected).await;
    };
    tokio::select! {
        () = reading => {}
        () = cutting => {}
    }
}

async fn a_watch_from_before_a_compaction_ends(ground: Ground) {
    let from = done(&ground.beside, vec![put("/w/a", "x")]).await;
    done(&ground.beside, vec![put("/w/b", "x")]).await;
    ground.compact().await;
    let mut watch = ground.store.watch("/w/", from - 1).await.unwrap();
    ends(&mut watch).await;
    // The remedy that the error names.
    let (range, mut watch) = kopek_store::read_and_watch(ground.store.as_ref(), "/w/").await.unwrap();
    assert_eq!(range.entries.len(), 2);
    let expected = write_some(&ground.beside, 3).await;
    expect(&mut watch, &expected).await;
}

async fn a_watch_cut_off_during_a_compaction_ends(ground: Ground) {
    let from = done(&ground.beside, vec![put("/w/a", "x")]).await;
    let mut watch = ground.store.watch("/w/", from).await.unwrap();
    let expected = write_some(&ground.beside, 1).await;
    expect(&mut watch, &expected).await;
    ground.close();
    write_some(&ground.beside, 5).await;
    ground.compact().await;
    ground.reopen();
    ends(&mut watch).await;
}

async fn a_dropped_wait_loses_no_change(ground: Ground) {
    let from = done(&ground.beside, vec![put("/w/before", "x")]).await;
    let mut watch = ground.store.watch("/w/", from).await.unwrap();
    let writing = tokio::spawn({
        let beside = ground.beside.clone();
        async move { write_some(&beside, 100).await }
    });
    let mut told = Vec::new();
    let mut waits = 0;
    while !writing.is_finished() {
        waits += 1;
        if let Ok(batch) = tokio::time::timeout(Duration::from_micros(waits % 5 * 100), watch.next()).await {
            told.extend(batch.unwrap());
        }
    }
    let expected = writing.await.unwrap();
    let rest = async {
        while told.len() < expected.len() {
            told.extend(watch.next().await.unwrap());
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), rest).await;
    assert!(in_time.is_ok(), "{} of {} changes came", told.len(), expected.len());
    assert_eq!(told, expected);
}

async fn a_lease_that_is_kept_alive_stays_and_one_that_is_not_takes_its_keys(ground: Ground) {
    let store = &ground.store;
    let ttl = Duration::from_secs(2);
    let (kept, lost, revoked) =
        (store.grant(ttl).await.unwrap(), store.grant(ttl).await.unwrap(), store.grant(ttl).await.unwrap());
    let ops = vec![leased("/l/kept", kept), leased("/l/lost", lost), leased("/l/left", lost)];
    let from = done(store, ops).await;
    done(store, vec![leased("/l/revoked", revoked), put("/l/left", "without its lease now")]).await;
    assert_eq!(store.get("/l/kept").await.unwrap().unwrap().lease, Some(kept));
    store.revoke(revoked).await.unwrap();
    assert_eq!(store.get("/l/revoked").await.unwrap(), None);
    assert_eq!(store.revoke(revoked).await, Err(StoreError::LeaseLost { lease: revoked }));

    let granted = Instant::now();
    let mut watch = store.watch("/l/lost", from).await.unwrap();
    let keeping = async {
        loop {
            store.keep_alive(kept).await.unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    };
    let gone = tokio::select! {
        gone = tokio::time::timeout(Duration::from_secs(10), watch.next()) => gone,
        () = keeping => unreachable!(),
    };
    let gone = gone.expect("a lease that is not kept alive never runs out").unwrap();
    assert!(matches!(&gone[..], [Change::Deleted { key, .. }] if key == "/l/lost"), "{gone:?}");
    let after = granted.elapsed();
    assert!((Duration::from_millis(1_400)..Duration::from_secs(6)).contains(&after), "gone after {after:?}");
    assert_eq!(store.keep_alive(lost).await, Err(StoreError::LeaseLost { lease: lost }));
    let late = store.commit(vec![], vec![leased("/l/again", lost)]).await;
    assert_eq!(late, Err(StoreError::LeaseLost { lease: lost }));
    let left: Vec<_> = store.range("/l/").await.unwrap().entries.into_iter().map(|e| e.key).collect();
    assert_eq!(left, ["/l/kept", "/l/left"]);
    eventually("the lease that is kept no more to run out", async || {
        store.get("/l/kept").await.unwrap().is_none().then_some(())
    })
    .await;
}

async fn concurrent_increments_are_all_counted(ground: Ground) {
    const TASKS: usize = 8;
    const EACH: usize = 15;
    done(&ground.store, vec![put("/sum", "0")]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..TASKS {
        let store = if n % 2 == 0 { ground.store.clone() } else { ground.beside.clone() };
        tasks.spawn(async move {
            for _ in 0..EACH {
                while !increment(store.as_ref(), "/sum").await.unwrap() {}
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(number(ground.store.as_ref(), "/sum").await.unwrap(), TASKS * EACH);
}

pub async fn number(store: &dyn Store, key: &str) -> Result<usize, StoreError> {
    let entry = store.get(key).await?;
    Ok(entry.map_or(0, |entry| String::from_utf8(entry.value).unwrap().parse().unwrap()))
}

/// Reads a number and writes the next, unless it was changed meanwhile.
pub async fn increment(store: &dyn Store, key: &str) -> Result<bool, StoreError> {
    let entry = store.get(key).await?;
    let (number, same) = match entry {
        Some(entry) => (
            String::from_utf8(entry.value).unwrap().parse::<usize>().unwrap(),
            Compare::RevisionIs { key: key.into(), revision: entry.revision },
        ),
        None => (0, Compare::Absent { key: key.into() }),
    };
    let outcome = store.commit(vec![same], vec![put(key, &(number + 1).to_string())]).await?;
    Ok(outcome != Commit::Conflict)
}
