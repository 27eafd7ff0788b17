//! What is the embedded store's alone: its file.

use std::time::Duration;

use kopek_store::{Commit, Embedded, Op, Store, StoreError};

use crate::cell::eventually;
use crate::conformance::{ends, put};

#[tokio::test]
async fn a_reopened_file_holds_what_was_committed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    let lease = store.grant(Duration::from_secs(2)).await.unwrap();
    let leased = Op::Put { key: "/leased".into(), value: b"x".to_vec(), lease: Some(lease) };
    store.commit(vec![], vec![put("/a", "1"), put("/b", "2"), leased]).await.unwrap();
    store.commit(vec![], vec![Op::Delete { key: "/a".into() }]).await.unwrap();
    let revoked = store.grant(Duration::from_secs(60)).await.unwrap();
    store.revoke(revoked).await.unwrap();
    let before = store.range("").await.unwrap();
    drop(store);

    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.range("").await.unwrap(), before);
    let mut watch = store.watch("", before.revision - 1).await.unwrap();
    // History is not kept over a restart.
    ends(&mut watch).await;
    assert_eq!(store.keep_alive(revoked).await, Err(StoreError::LeaseLost { lease: revoked }));
    let next = store.commit(vec![], vec![put("/c", "3")]).await.unwrap();
    assert_eq!(next, Commit::Done { revision: before.revision + 1 });
    store.keep_alive(lease).await.unwrap();
    eventually("the lease to run out", async || store.get("/leased").await.unwrap().is_none().then_some(()))
        .await;
}

/// What a killed process leaves: nobody closed the file.
#[tokio::test]
async fn what_was_acknowledged_is_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let store = Embedded::open(&path).unwrap();
    store.commit(vec![], vec![put("/a", "1")]).await.unwrap();
    let left = folder.path().join("left.redb");
    std::fs::copy(&path, &left).unwrap();
    let expected = store.range("").await.unwrap();
    assert_eq!(Embedded::open(&left).unwrap().range("").await.unwrap(), expected);
}

#[tokio::test]
async fn a_file_is_opened_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    let _store = Embedded::open(&path).unwrap();
    let Err(error) = Embedded::open(&path) else { panic!("opened twice") };
    assert!(error.to_string().contains("another process has it open"), "{error}");
}

#[tokio::test]
async fn a_file_of_something_else_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.redb");
    std::fs::write(&path, "not a database, but long enough to be looked at").unwrap();
    let Err(error) = Embedded::open(&path) else { panic!("opened") };
    assert!(error.to_string().contains("store.redb cannot be used"), "{error}");
}
