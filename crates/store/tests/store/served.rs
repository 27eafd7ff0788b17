//! Who may reach the served store, and what happens when its host restarts.

use std::sync::Arc;
use std::time::Duration;

use kopek_link::Identity;
use kopek_store::served::{serve, store_socket};
use kopek_store::{Embedded, ServedStore, Store, StoreError};
use std::os::unix::fs::PermissionsExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cell::{Cell, free_address};
use crate::conformance::put;

#[tokio::test]
async fn only_servers_of_the_cell_are_let_in() {
    let cell = Cell::new();
    let host = cell.server("s1");
    let store = Arc::new(Embedded::open(&host.dirs.state.join("store.redb")).unwrap());
    let address = free_address();
    let _serving = serve(store, &host.identity, address, &host.dirs).await.unwrap();
    let admin = cell.admin();
    let admin = Identity::from_pem(&admin.ca, &admin.certificate, &admin.key).unwrap();
    for identity in [admin, cell.stranger()] {
        let error = ServedStore::by_tls(address, identity).get("/authority").await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    }
    let mut nobody = cell.anonymous(address).await;
    // Refused at the latest when it is read: in TLS 1.3 the client's handshake is over before that.
    let _ = nobody.write_all(b"{\"get\":{\"key\":\"/authority\"}}\n").await;
    let heard = tokio::time::timeout(Duration::from_secs(5), nobody.read(&mut [0; 1])).await.unwrap();
    assert!(!matches!(heard, Ok(1..)), "{heard:?}");
    let friend = ServedStore::by_tls(address, cell.server("s2").identity.clone());
    assert_eq!(friend.get("/authority").await, Ok(None));
    let mode = std::fs::metadata(store_socket(&host.dirs)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn clients_and_watches_outlive_a_restart_of_the_host() {
    let cell = Cell::new();
    let host = cell.server("s1");
    let file = host.dirs.state.join("store.redb");
    let open = || Arc::new(Embedded::open(&file).unwrap());
    let address = free_address();
    let serving = serve(open(), &host.identity, address, &host.dirs).await.unwrap();
    let client = ServedStore::by_socket(store_socket(&host.dirs));
    client.commit(vec![], vec![put("/a", "1")]).await.unwrap();
    let (range, mut watch) = kopek_store::read_and_watch(&client, "").await.unwrap();
    drop(serving);
    // The first client keeps a connection that is dead now, and must not commit on it.
    let other = ServedStore::by_socket(store_socket(&host.dirs));
    let error = crate::cell::eventually("the host to be gone", async || other.get("/a").await.err()).await;
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");

    let reopened =
        crate::cell::eventually("the file to be closed", async || Embedded::open(&file).ok()).await;
    let _serving = serve(Arc::new(reopened), &host.identity, address, &host.dirs).await.unwrap();
    client.commit(vec![], vec![put("/a", "2")]).await.unwrap();
    let changes = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap();
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].revision(), range.revision + 1);
}
