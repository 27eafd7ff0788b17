//! The cell's state moves while writers on two servers go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kopek_store::location::location_file;
use kopek_store::served::{Serving, serve};
use kopek_store::{
    Commit, Compare, Embedded, Entry, FollowingStore, LeaseId, Location, MigrateError, Op, Range, Revision,
    Store, StoreError, Watch, migrate, open,
};
use tokio::sync::{Notify, Semaphore};

use crate::cell::{Cell, Server, eventually, free_address};
use crate::conformance::{ends, increment, number, put};
use crate::etcd::Cluster;
use crate::relay::Relay;

/// Two servers, the embedded store on the first, and an etcd cluster.
struct Rig {
    cell: Cell,
    servers: [Server; 2],
    cluster: Cluster,
    embedded: Location,
    etcd: Location,
    _serving: Serving,
}

impl Rig {
    async fn new() -> Rig {
        let cell = Cell::new();
        let servers = [cell.server("s1"), cell.server("s2")];
        let (store, address) = (file(&servers[0]), free_address());
        let serving = serve(store, &servers[0].identity, address, &servers[0].dirs).await.unwrap();
        let cluster = Cluster::start(&cell).await;
        let embedded = Location::Embedded { host: servers[0].id.clone(), address };
        let etcd = Location::Etcd { endpoints: cluster.endpoints(0) };
        Rig { cell, servers, cluster, embedded, etcd, _serving: serving }
    }

    async fn raw(&self, location: &Location) -> Arc<dyn Store> {
        let server = &self.servers[0];
        open(location, &server.identity, &server.id, &server.dirs).await.unwrap()
    }

    /// Each server's own handle, beginning at one location.
    async fn following(&self, from: &Location) -> [Arc<FollowingStore>; 2] {
        for server in &self.servers {
            from.write(&location_file(&server.dirs.etc)).unwrap();
        }
        let [first, second] = &self.servers;
        [following(first).await, following(second).await]
    }

    async fn migrate(&self, from: &Location, to: &Location) -> Result<usize, MigrateError> {
        let (source, target) = (self.raw(from).await, self.raw(to).await);
        migrate(source.as_ref(), target.as_ref(), to, &[]).await.map(|migrated| migrated.keys)
    }
}

async fn following(server: &Server) -> Arc<FollowingStore> {
    let nobody = Arc::new(Vec::<std::net::IpAddr>::new);
    FollowingStore::open(&server.dirs, &server.identity, &server.id, nobody).await.unwrap()
}

fn file(server: &Server) -> Arc<Embedded> {
    Arc::new(Embedded::open(&server.dirs.state.join("store.redb")).unwrap())
}

/// Writers on both servers increment a shared number and their own, through a move.
async fn nothing_is_lost(rig: &Rig, from: &Location, to: &Location) {
    let stores = rig.following(from).await;
    let stop = Arc::new(AtomicBool::new(false));
    let already = number(stores[0].as_ref(), "/shared").await.unwrap();
    let mut writers = Vec::new();
    for n in 0..4 {
        let (store, stop) = (stores[n % 2].clone(), stop.clone());
        writers.push(tokio::spawn(async move {
            let mut shared = 0;
            let mut own = number(store.as_ref(), &format!("/own/{n}")).await.unwrap();
            while !stop.load(Ordering::SeqCst) {
                shared += usize::from(increment(store.as_ref(), "/shared").await.unwrap());
                own += usize::from(increment(store.as_ref(), &format!("/own/{n}")).await.unwrap());
            }
            (shared, own)
        }));
    }
    let source = rig.raw(from).await;
    let enough = async |more: usize| {
        let start = number(stores[1].as_ref(), "/shared").await.unwrap();
        eventually("the writers to write", async || {
            let now = number(stores[1].as_ref(), "/shared").await.unwrap();
            (now > start + more).then_some(())
        })
        .await;
    };
    enough(50).await;
    let lease = source.grant(Duration::from_secs(60)).await.unwrap();
    let leased = Op::Put { key: "/leased".into(), value: vec![], lease: Some(lease) };
    source.commit(vec![], vec![leased]).await.unwrap();
    let before = stores[0].range("").await.unwrap();
    let mut watch = stores[0].watch("/none", before.revision).await.unwrap();

    rig.migrate(from, to).await.unwrap();
    enough(50).await;
    stop.store(true, Ordering::SeqCst);
    let mut shared = already;
    for (n, writer) in writers.into_iter().enumerate() {
        let (of_shared, own) = writer.await.unwrap();
        shared += of_shared;
        assert_eq!(number(stores[0].as_ref(), &format!("/own/{n}")).await.unwrap(), own, "writer {n}");
    }
    assert_eq!(number(stores[1].as_ref(), "/shared").await.unwrap(), shared);
    assert_eq!(number(rig.raw(to).await.as_ref(), "/shared").await.unwrap(), shared, "it is in the target");

    ends(&mut watch).await;
    let after = stores[0].range("").await.unwrap();
    assert!(after.revision > before.revision, "revisions rise through a move");
    assert!(after.entries.iter().all(|entry| entry.key != "/leased"), "what a lease holds stays behind");
    for (server, store) in rig.servers.iter().zip(&stores) {
        assert_eq!(Location::read(&location_file(&server.dirs.etc)).unwrap(), *to);
        assert_eq!(*store.location().borrow(), *to);
    }
    let refused = source.commit(vec![], vec![put("/late", "x")]).await;
    assert_eq!(refused, Err(StoreError::Moved(to.clone())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_on_the_way_to_etcd_and_back() {
    let rig = Rig::new().await;
    nothing_is_lost(&rig, &rig.embedded, &rig.etcd).await;
    // The embedded store still holds what it held: a stale leftover, refilled.
    nothing_is_lost(&rig, &rig.etcd, &rig.embedded).await;
    nothing_is_lost(&rig, &rig.embedded, &rig.etcd).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compare_from_before_a_move_is_a_conflict_after_it() {
    let rig = Rig::new().await;
    let [store, _] = rig.following(&rig.embedded).await;
    store.commit(vec![], vec![put("/k", "v")]).await.unwrap();
    let seen = store.get("/k").await.unwrap().unwrap();
    rig.migrate(&rig.embedded, &rig.etcd).await.unwrap();
    let after = eventually("the move to be noticed", async || {
        let entry = store.get("/k").await.unwrap().unwrap();
        (entry.revision != seen.revision).then_some(entry)
    })
    .await;
    // Whatever the new store's own numbers are, none is mistaken for the old one's.
    for revision in [seen.revision, after.revision & 0xff_ffff_ffff] {
        let same = Compare::RevisionIs { key: "/k".into(), revision };
        assert_eq!(store.commit(vec![same], vec![put("/k", "w")]).await, Ok(Commit::Conflict));
    }
    let same = Compare::RevisionIs { key: "/k".into(), revision: after.revision };
    assert!(matches!(store.commit(vec![same], vec![put("/k", "w")]).await, Ok(Commit::Done { .. })));
    let mut old = store.watch("/k", seen.revision).await.unwrap();
    ends(&mut old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_off_during_two_moves_finds_the_state() {
    let rig = Rig::new().await;
    let [first, _] = rig.following(&rig.embedded).await;
    first.commit(vec![], vec![put("/k", "v")]).await.unwrap();
    rig.migrate(&rig.embedded, &rig.etcd).await.unwrap();
    let late = following(&rig.servers[1]).await;
    assert_eq!(late.get("/k").await.unwrap().unwrap().value, b"v");
    assert_eq!(*late.location().borrow(), rig.etcd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_in_use_is_refused_and_left_as_it_was() {
    let rig = Rig::new().await;
    let (source, target) = (rig.raw(&rig.embedded).await, rig.raw(&rig.etcd).await);
    source.commit(vec![], vec![put("/k", "source")]).await.unwrap();
    target.commit(vec![], vec![put("/k", "target")]).await.unwrap();
    let error = rig.migrate(&rig.embedded, &rig.etcd).await.unwrap_err();
    assert!(matches!(error, MigrateError::TargetNotEmpty { keys: 1, .. }), "{error}");
    assert!(error.to_string().contains("empty it first"), "{error}");
    assert_eq!(target.range("").await.unwrap().entries.len(), 1);
    source.commit(vec![], vec![put("/k", "goes on")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_from_where_the_state_is_not_is_refused_with_where_it_is() {
    let rig = Rig::new().await;
    rig.raw(&rig.embedded).await.commit(vec![], vec![put("/k", "v")]).await.unwrap();
    rig.migrate(&rig.embedded, &rig.etcd).await.unwrap();
    let elsewhere = Location::Etcd { endpoints: vec!["https://127.0.0.1:1".into()] };
    for to in [&rig.etcd, &elsewhere] {
        let target = rig.raw(&rig.etcd).await;
        let error =
            migrate(rig.raw(&rig.embedded).await.as_ref(), target.as_ref(), to, &[]).await.unwrap_err();
        assert!(matches!(&error, MigrateError::SourceMoved { to } if *to == rig.etcd), "{error}");
    }
}

/// Stops a migration at one of its commits to a store, as if the mover were killed there, or frozen until it
/// is let go on.
struct StopsAt<F> {
    store: Arc<dyn Store>,
    here: F,
    reached: Notify,
    going_on: Semaphore,
}

impl<F: Fn(&[Op]) -> bool> StopsAt<F> {
    fn new(store: &Arc<dyn Store>, here: F) -> StopsAt<F> {
        StopsAt { store: store.clone(), here, reached: Notify::new(), going_on: Semaphore::new(0) }
    }

    /// Drops the migration where it stops.
    async fn kills(&self, moving: impl Future) {
        let stopped = async {
            tokio::select! {
                _ = moving => panic!("it was not interrupted"),
                () = self.reached.notified() => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(30), stopped).await.expect("it does not get there");
    }

    fn go_on(&self) {
        self.going_on.add_permits(1);
    }
}

#[async_trait]
impl<F: Fn(&[Op]) -> bool + Send + Sync> Store for StopsAt<F> {
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        self.store.range(prefix).await
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }
    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        if (self.here)(&ops) {
            self.reached.notify_one();
            let _ = self.going_on.acquire().await;
        }
        self.store.commit(compares, ops).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, from).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// The first store up to its first commit, the second afterwards.
struct Swapped {
    stores: [Arc<dyn Store>; 2],
    second: AtomicBool,
}

impl Swapped {
    fn now(&self) -> &dyn Store {
        self.stores[usize::from(self.second.load(Ordering::SeqCst))].as_ref()
    }
}

#[async_trait]
impl Store for Swapped {
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        self.now().range(prefix).await
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.now().get(key).await
    }
    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        let store = self.now();
        self.second.store(true, Ordering::SeqCst);
        store.commit(compares, ops).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        self.now().watch(prefix, from).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.now().grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.now().keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.now().revoke(lease).await
    }
}

fn writes(ops: &[Op], wanted: &str, text: &str) -> bool {
    ops.iter().any(|op| match op {
        Op::Put { key, value, .. } => key == wanted && String::from_utf8_lossy(value).contains(text),
        _ => false,
    })
}

fn opens(ops: &[Op]) -> bool {
    matches!(ops, [Op::Delete { key }] if key == "/moved")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_interrupted_anywhere_can_be_run_again() {
    let rig = Rig::new().await;
    let stores = rig.following(&rig.embedded).await;
    let (source, target) = (rig.raw(&rig.embedded).await, rig.raw(&rig.etcd).await);
    source.commit(vec![], vec![put("/k", "1"), put("/gone", "x")]).await.unwrap();
    // While copying.
    let dying = StopsAt::new(&target, |ops: &[Op]| writes(ops, "/k", ""));
    dying.kills(migrate(source.as_ref(), &dying, &rig.etcd, &[])).await;
    let other: Arc<dyn Store> = file(&rig.servers[1]);
    let error = migrate(other.as_ref(), target.as_ref(), &rig.etcd, &[]).await.unwrap_err();
    assert!(matches!(error, MigrateError::TargetBusy { .. }), "{error}");
    stores[1].commit(vec![], vec![put("/k", "2"), Op::Delete { key: "/gone".into() }]).await.unwrap();
    // Between the freeze and the pointer: the source thaws by itself, and the writer only waited.
    let dying = StopsAt::new(&source, |ops: &[Op]| writes(ops, "/moved", "moved"));
    dying.kills(migrate(&dying, target.as_ref(), &rig.etcd, &[])).await;
    stores[1].commit(vec![], vec![put("/k", "3")]).await.unwrap();
    assert_eq!(*stores[1].location().borrow(), rig.embedded);
    // Between the pointer and the opening of the target, while nobody follows.
    drop(stores);
    let dying = StopsAt::new(&target, opens);
    dying.kills(migrate(source.as_ref(), &dying, &rig.etcd, &[])).await;
    assert!(matches!(source.commit(vec![], vec![put("/k", "lost?")]).await, Err(StoreError::Moved(_))));
    assert!(matches!(target.commit(vec![], vec![put("/k", "lost?")]).await, Err(StoreError::Moving)));
    // Run again, it only opens.
    rig.migrate(&rig.embedded, &rig.etcd).await.unwrap();
    assert_eq!(target.get("/moved").await, Ok(None));
    following(&rig.servers[1]).await.commit(vec![], vec![put("/after", "4")]).await.unwrap();
    let range = target.range("").await.unwrap();
    let found: Vec<_> = range.entries.iter().map(|e| (e.key.as_str(), e.value.as_slice())).collect();
    assert_eq!(found, [("/after", &b"4"[..]), ("/epoch", b"1"), ("/k", b"3")]);
}

/// The mover's power is cut between the pointer and the opening of the target.
async fn moved_but_not_opened(rig: &Rig, from: &Location, to: &Location) {
    let (source, target) = (rig.raw(from).await, rig.raw(to).await);
    let dying = StopsAt::new(&target, opens);
    dying.kills(migrate(source.as_ref(), &dying, to, &[])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_follow_finish_a_move_whose_mover_died() {
    let rig = Rig::new().await;
    let [store, _] = rig.following(&rig.embedded).await;
    // The first target is new, the others were left behind by an earlier move.
    for (n, (from, to)) in
        [(&rig.embedded, &rig.etcd), (&rig.etcd, &rig.embedded), (&rig.embedded, &rig.etcd)]
            .into_iter()
            .enumerate()
    {
        store.commit(vec![], vec![put("/before", &n.to_string())]).await.unwrap();
        moved_but_not_opened(&rig, from, to).await;
        store.commit(vec![], vec![put("/after", &n.to_string())]).await.unwrap();
        assert_eq!(*store.location().borrow(), *to);
        let moved = rig.raw(to).await.range("").await.unwrap();
        let value = |key: &str| moved.entries.iter().find(|e| e.key == key).map(|e| e.value.clone());
        assert_eq!(value("/before"), Some(n.to_string().into_bytes()));
        assert_eq!(value("/after"), Some(n.to_string().into_bytes()));
        // Also for one that comes later and begins at the source.
        from.write(&location_file(&rig.servers[1].dirs.etc)).unwrap();
        let late = following(&rig.servers[1]).await;
        assert_eq!(number(late.as_ref(), "/after").await.unwrap(), n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_its_source_does_not_point_to_is_opened_by_nobody() {
    let rig = Rig::new().await;
    let (source, target) = (rig.raw(&rig.embedded).await, rig.raw(&rig.etcd).await);
    source.commit(vec![], vec![put("/k", "v")]).await.unwrap();
    let dying = StopsAt::new(&source, |ops: &[Op]| writes(ops, "/moved", "moved"));
    dying.kills(migrate(&dying, target.as_ref(), &rig.etcd, &[])).await;
    let [misled, _] = rig.following(&rig.etcd).await;
    assert_eq!(misled.get("/k").await, Err(StoreError::Moving));
    assert!(target.get("/moved").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_goes_on_when_a_target_member_dies_under_it() {
    let mut rig = Rig::new().await;
    let source = rig.raw(&rig.embedded).await;
    for n in 0..40 {
        let value = vec![b'x'; 400_000];
        source.commit(vec![], vec![Op::Put { key: format!("/{n}"), value, lease: None }]).await.unwrap();
    }
    let leader = rig.cluster.leader();
    let etcd = rig.etcd.clone();
    let target = rig.cluster.store(leader).await;
    let moving = tokio::spawn(async move { migrate(source.as_ref(), target.as_ref(), &etcd, &[]).await });
    rig.cluster.kill(leader);
    assert_eq!(moving.await.unwrap().unwrap().keys, 41);
    assert_eq!(rig.raw(&rig.etcd).await.range("").await.unwrap().entries.len(), 41);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_whose_target_is_not_wanted_any_more_is_not_made() {
    let rig = Rig::new().await;
    let (source, target) = (rig.raw(&rig.embedded).await, rig.raw(&rig.etcd).await);
    source.commit(vec![], vec![put("/members", "ours")]).await.unwrap();
    let ours = [Compare::ValueIs { key: "/members".into(), value: b"ours".to_vec() }];
    // Another controller decides otherwise while this one copies.
    let slow = StopsAt::new(&target, |ops: &[Op]| writes(ops, "/members", ""));
    slow.kills(migrate(source.as_ref(), &slow, &rig.etcd, &ours)).await;
    source.commit(vec![], vec![put("/members", "theirs")]).await.unwrap();
    let error = migrate(source.as_ref(), target.as_ref(), &rig.etcd, &ours).await.unwrap_err();
    assert!(matches!(error, MigrateError::Unwanted { .. }), "{error}");
    source.commit(vec![], vec![put("/k", "goes on")]).await.unwrap();
    assert!(target.get("/moved").await.unwrap().is_some(), "it is not opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mover_whose_freeze_ran_out_copies_what_was_written_since() {
    let rig = Rig::new().await;
    let (source, target) = (rig.raw(&rig.embedded).await, rig.raw(&rig.etcd).await);
    source.commit(vec![], vec![put("/k", "before")]).await.unwrap();
    let slow = StopsAt::new(&source, |ops: &[Op]| writes(ops, "/moved", "moved"));
    let moving = migrate(&slow, target.as_ref(), &rig.etcd, &[]);
    let writing = async {
        eventually("the freeze", async || source.get("/moved").await.unwrap()).await;
        eventually("the thaw", async || source.commit(vec![], vec![put("/k", "since")]).await.ok()).await;
        slow.go_on();
    };
    let (moved, ()) = tokio::join!(moving, writing);
    moved.unwrap();
    assert_eq!(target.get("/k").await.unwrap().unwrap().value, b"since");
}

/// A mover that was frozen goes on when the servers of its target have formed another cluster, for a later
/// attempt, at the same address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mover_that_comes_too_late_writes_nothing_into_another_store_at_the_same_address() {
    let rig = Rig::new().await;
    let source = rig.raw(&rig.embedded).await;
    source.commit(vec![], vec![put("/k", "v")]).await.unwrap();
    let empty = |name: &str| {
        let path = rig.servers[1].dirs.state.join(name);
        Arc::new(Embedded::open(&path).unwrap()) as Arc<dyn Store>
    };
    let to = Location::Embedded { host: rig.servers[1].id.clone(), address: free_address() };
    // Both stores count the same commits.
    let (first, second) = (empty("first"), empty("second"));
    let swapped = Swapped { stores: [first, second.clone()], second: AtomicBool::new(false) };
    let late = migrate(source.as_ref(), &swapped, &to, &[]);
    let again = StopsAt::new(&second, |ops: &[Op]| writes(ops, "/k", ""));
    again.kills(migrate(source.as_ref(), &again, &to, &[])).await;
    let error = late.await.unwrap_err();
    assert!(matches!(error, MigrateError::Overtaken { .. }), "{error}");
    assert_eq!(second.range("").await.unwrap().entries.len(), 1, "only the mark");
}

/// One that hears of no move while its relays are closed.
struct Late {
    relays: Vec<Relay>,
    store: Arc<FollowingStore>,
}

impl Late {
    async fn at_etcd(rig: &Rig) -> Late {
        let mut relays = Vec::new();
        for address in rig.cluster.addresses() {
            relays.push(Relay::to(address).await);
        }
        let endpoints = relays.iter().map(|relay| format!("https://{}", relay.address)).collect();
        let server = &rig.servers[1];
        Location::Etcd { endpoints }.write(&location_file(&server.dirs.etc)).unwrap();
        Late { relays, store: following(server).await }
    }

    fn cut(&self) {
        self.relays.iter().for_each(Relay::close);
    }

    fn heal(&self) {
        self.relays.iter().for_each(Relay::reopen);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_empty_cluster_at_the_same_addresses_is_not_taken_for_the_cells_state() {
    let mut rig = Rig::new().await;
    rig.raw(&rig.embedded).await.commit(vec![], vec![put("/k", "first")]).await.unwrap();
    rig.migrate(&rig.embedded, &rig.etcd).await.unwrap();
    let late = Late::at_etcd(&rig).await;
    assert_eq!(late.store.get("/k").await.unwrap().unwrap().value, b"first");

    late.cut();
    rig.migrate(&rig.etcd, &rig.embedded).await.unwrap();
    rig.cluster = rig.cluster.replaced(&rig.cell).await;
    late.heal();
    let again = following(&rig.servers[1]).await;
    for store in [&late.store, &again] {
        let read = store.range("").await;
        assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
        let written = store.commit(vec![], vec![put("/k", "astray")]).await;
        assert!(matches!(written, Err(StoreError::Unavailable { .. })), "{written:?}");
    }
    assert_eq!(rig.raw(&rig.etcd).await.range("").await.unwrap().entries, [], "nothing went astray");

    // Once the state is there again, so is who waited there.
    rig.raw(&rig.embedded).await.commit(vec![], vec![put("/k", "second")]).await.unwrap();
    rig.migrate(&rig.embedded, &rig.etcd).await.unwrap();
    for store in [&late.store, &again] {
        let value = eventually("the state", async || store.get("/k").await.ok().flatten()).await.value;
        assert_eq!(value, b"second");
        store.commit(vec![], vec![put("/k", "second")]).await.unwrap();
    }
}

/// As `control` does it: the source is the store that follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_following_store_can_be_the_source_of_its_own_move() {
    let rig = Rig::new().await;
    let [store, _] = rig.following(&rig.embedded).await;
    store.commit(vec![], vec![put("/k", "v")]).await.unwrap();
    let target = rig.raw(&rig.etcd).await;
    let moving = migrate(store.as_ref(), target.as_ref(), &rig.etcd, &[]);
    tokio::time::timeout(Duration::from_secs(5), moving).await.expect("it does not wait for itself").unwrap();
    store.commit(vec![], vec![put("/k", "w")]).await.unwrap();
    assert_eq!(target.get("/k").await.unwrap().unwrap().value, b"w");
    let address: SocketAddr = free_address();
    let unreachable = Location::Embedded { host: rig.servers[1].id.clone(), address };
    let nowhere = rig.raw(&unreachable).await;
    let error = migrate(store.as_ref(), nowhere.as_ref(), &unreachable, &[]).await.unwrap_err();
    assert!(matches!(error, MigrateError::Target { .. }), "{error}");
    store.commit(vec![], vec![put("/k", "goes on")]).await.unwrap();
}
