//! Servers that miss a move of the cell's state away from etcd, because they are off or cut away, find it again.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kopek_core::config::{AGENT_PORT, STORE_PORT};
use kopek_core::desired::StoreMembers;
use kopek_link::Identity;
use kopek_link::serve::{Clients, serve_https};
use kopek_node::daemon::Supervised;
use kopek_node::etcd::{EtcdMember, GRACE, Origin, is_healthy};
use kopek_node::whereabouts;
use kopek_store::location::location_file;
use kopek_store::served::{Serving, serve};
use kopek_store::{Embedded, FollowingStore, Location, Op, Store, migrate, open};
use tokio::net::TcpListener;

use crate::rack::{Server, eventually, rack};

const SOON: Duration = Duration::from_secs(20);
/// A watch on the old place is looked at after 5 s, and etcd's members are tried for 4 s, perhaps twice.
const FOUND: Duration = Duration::from_secs(20);

fn member(server: &Server, members: &StoreMembers) -> Supervised {
    let member = EtcdMember {
        name: server.name.clone(),
        cluster: members.cluster.clone(),
        address: server.address,
        members: members.members.clone(),
        origin: Origin::New,
    };
    let dirs = server.dirs.clone();
    server.run(async move { member.keep(&dirs).await.unwrap() })
}

/// The part of the agent that follows the store and tells others where it is.
fn agent(server: &Server, location: &Location) -> Arc<FollowingStore> {
    location.write(&location_file(&server.dirs.etc)).unwrap();
    let (dirs, name, address) = (server.dirs.clone(), server.name.clone(), server.address);
    server.run(async move {
        let identity = Identity::load(&dirs.etc).unwrap();
        let store =
            FollowingStore::open(&dirs, &identity, &name, Arc::new(Vec::<IpAddr>::new)).await.unwrap();
        let listener = TcpListener::bind(SocketAddr::new(address, AGENT_PORT)).await.unwrap();
        let router = whereabouts::router(store.location());
        tokio::spawn(async move { serve_https(&identity, listener, Clients::Members, router).await });
        store
    })
}

fn reads(server: &Server, store: &Arc<FollowingStore>) -> Option<Vec<u8>> {
    let store = Arc::clone(store);
    server.run(async move { store.get("/k").await.ok().flatten().map(|entry| entry.value) })
}

fn writes(server: &Server, store: &Arc<FollowingStore>, value: &str) {
    let (store, value) = (Arc::clone(store), value.as_bytes().to_vec());
    let put = Op::Put { key: "/k".to_owned(), value, lease: None };
    server.run(async move { store.commit(vec![], vec![put]).await.unwrap() });
}

fn link(server: &Server, state: &str) {
    assert!(server.command("ip").args(["link", "set", "eth0", state]).status().unwrap().success());
}

/// As if the state had been moved to etcd: else nobody takes a cluster of etcd for its home.
fn moved_to(server: &Server, etcd: &Location) {
    let (dirs, name, etcd) = (server.dirs.clone(), server.name.clone(), etcd.clone());
    server.run(async move {
        let identity = Identity::load(&dirs.etc).unwrap();
        let store = open(&etcd, &identity, &name, &dirs).await.unwrap();
        let put = Op::Put { key: "/epoch".to_owned(), value: b"1".to_vec(), lease: None };
        store.commit(vec![], vec![put]).await.unwrap();
    });
}

/// From etcd into a file of this server.
fn moves_to(server: &Server, from: &Location) -> (Serving, Location) {
    let address = SocketAddr::new(server.address, STORE_PORT);
    let to = Location::Embedded { host: server.name.clone(), address };
    let (dirs, name, from) = (server.dirs.clone(), server.name.clone(), from.clone());
    server.run(async move {
        let identity = Identity::load(&dirs.etc).unwrap();
        let file = Arc::new(Embedded::open(&dirs.state.join("store.redb")).unwrap());
        let serving = serve(file, &identity, address, &dirs).await.unwrap();
        let source = open(&from, &identity, &name, &dirs).await.unwrap();
        let target = open(&to, &identity, &name, &dirs).await.unwrap();
        migrate(source.as_ref(), target.as_ref(), &to, &[]).await.unwrap();
        (serving, to)
    })
}

#[test]
fn servers_that_were_off_or_cut_away_during_a_move_away_from_etcd_find_the_state() {
    let mut rack = rack("w", 8);
    let servers = [rack.server(), rack.server(), rack.server(), rack.server()];
    let [s1, s2, off, cut] = &servers;
    let members = StoreMembers {
        cluster: "first".to_owned(),
        members: [s1, s2, off].map(|server| (server.name.clone(), server.address)).into(),
    };
    let etcd = Location::Etcd { endpoints: members.endpoints() };
    let kept = [s1, s2, off].map(|server| member(server, &members));
    eventually("a store", SOON, || s1.run(is_healthy()).then_some(()));
    moved_to(s1, &etcd);
    let [of_s1, of_s2, of_cut] = [s1, s2, cut].map(|server| agent(server, &etcd));
    writes(s1, &of_s1, "before");
    assert_eq!(reads(cut, &of_cut), Some(b"before".to_vec()));

    let [first, second, third] = kept;
    off.run(third.stop(GRACE));
    link(cut, "down");
    let (_serving, embedded) = moves_to(s1, &etcd);
    writes(s2, &of_s2, "after");
    s1.run(first.stop(GRACE));
    s2.run(second.stop(GRACE));

    link(cut, "up");
    let third = member(off, &members);
    let of_off = agent(off, &etcd);
    // As in an agent, several ask at once and go on asking.
    for _ in 0..8 {
        let store = Arc::clone(&of_off);
        off.run(async move {
            tokio::spawn(async move { while store.get("/k").await.is_err() {} });
        });
    }
    for (server, store) in [(off, &of_off), (cut, &of_cut)] {
        eventually("the state", FOUND, || (reads(server, store)? == b"after").then_some(()));
        assert_eq!(*store.location().borrow(), embedded);
        assert_eq!(Location::read(&location_file(&server.dirs.etc)).unwrap(), embedded);
    }
    writes(off, &of_off, "by the one that was off");
    eventually("the write", SOON, || (reads(s1, &of_s1)? == b"by the one that was off").then_some(()));
    off.run(third.stop(GRACE));
}
