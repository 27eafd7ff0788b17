//! Control moves from one controller to another, also when server and etcd member die together.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kopek_core::ServerId;
use kopek_store::election::{LEADER_KEY, Leader, Leadership, campaign, depose, leader};
use kopek_store::etcd::Pems;
use kopek_store::{Change, Commit, Embedded, EtcdStore, Store};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::cell::{Cell, eventually, free_address};
use crate::conformance::put;
use crate::etcd::Cluster;
use crate::ground::Ground;

fn id(name: &str) -> ServerId {
    ServerId::parse(name).unwrap()
}

fn embedded() -> (tempfile::TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&folder.path().join("store.redb")).unwrap();
    (folder, Arc::new(store))
}

/// Stands for a server whose controller answers.
async fn stand(store: &Arc<dyn Store>, name: &str) -> Leadership {
    let me = id(name);
    let campaigning = campaign(store.clone(), &me, free_address(), |_| async { true });
    timeout(Duration::from_secs(20), campaigning).await.expect("it never leads").unwrap()
}

async fn answers(leader: Leader) -> bool {
    TcpStream::connect(leader.address).await.is_ok()
}

#[tokio::test]
async fn a_standby_leads_as_soon_as_the_leader_resigns() {
    let (_folder, store) = embedded();
    let told = leader(store.clone());
    let first = stand(&store, "s1").await;
    let standby = tokio::spawn({
        let store = store.clone();
        async move { stand(&store, "s2").await }
    });
    assert!(timeout(Duration::from_secs(3), first.lost()).await.is_err(), "the lease is kept");
    assert!(!standby.is_finished());
    let resigned = Instant::now();
    let first_term = first.leader.term;
    first.resign().await;
    let second = standby.await.unwrap();
    assert!(resigned.elapsed() < Duration::from_millis(500), "{:?}", resigned.elapsed());
    assert_eq!((second.leader.server.as_str(), second.leader.term), ("s2", first_term + 1));
    eventually("everybody to know", async || {
        told.borrow().as_ref().is_some_and(|leader| *leader == second.leader).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deposed_leader_knows_it_and_changes_nothing() {
    let (_folder, store) = embedded();
    let first = stand(&store, "s1").await;
    let fenced = async |leadership: &Leadership| {
        store.commit(vec![leadership.fence()], vec![put("/k", "v")]).await.unwrap()
    };
    assert!(matches!(fenced(&first).await, Commit::Done { .. }));
    let seen = store.get(LEADER_KEY).await.unwrap().unwrap();
    depose(store.as_ref(), &seen).await.unwrap();
    assert_eq!(fenced(&first).await, Commit::Conflict);
    timeout(Duration::from_secs(1), first.lost()).await.expect("it hears of it");
    let second = stand(&store, "s2").await;
    depose(store.as_ref(), &seen).await.unwrap();
    assert_eq!(fenced(&first).await, Commit::Conflict);
    assert!(matches!(fenced(&second).await, Commit::Done { .. }), "only the entry that was seen is deleted");
    // Resigning late takes nothing away either.
    first.resign().await;
    assert!(matches!(fenced(&second).await, Commit::Done { .. }));
}

#[tokio::test]
async fn a_leader_whose_controller_is_silent_or_gone_is_deposed() {
    for silent in [true, false] {
        let (_folder, store) = embedded();
        let listener = TcpListener::bind(free_address()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let first = campaign(store.clone(), &id("s1"), address, answers).await.unwrap();
        let is_alive = move |leader: Leader| async move {
            match silent {
                true => std::future::pending().await,
                false => answers(leader).await,
            }
        };
        let started = Instant::now();
        drop(listener);
        let standby = id("s2");
        let campaigning = campaign(store.clone(), &standby, free_address(), is_alive);
        let second = timeout(Duration::from_secs(5), campaigning).await.expect("it is not deposed").unwrap();
        assert!(started.elapsed() < Duration::from_millis(1_800), "{:?}", started.elapsed());
        assert_eq!(second.leader.server, id("s2"));
        timeout(Duration::from_secs(1), first.lost()).await.expect("it hears of it");
    }
}

#[tokio::test]
async fn a_leader_that_stops_keeping_its_lease_is_replaced_without_being_deposed() {
    let (_folder, store) = embedded();
    let lease = store.grant(Duration::from_secs(2)).await.unwrap();
    let stale = Leader { server: id("s1"), address: free_address(), term: 7 };
    let value = serde_json::to_vec(&stale).unwrap();
    let op = kopek_store::Op::Put { key: LEADER_KEY.into(), value, lease: Some(lease) };
    store.commit(vec![], vec![op]).await.unwrap();
    let started = Instant::now();
    stand(&store, "s2").await;
    assert!((1_500..3_500).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_restarted_controller_does_not_wait_for_its_earlier_life() {
    let (_folder, store) = embedded();
    let address = free_address();
    let earlier = campaign(store.clone(), &id("s1"), address, |_| async { true }).await.unwrap();
    let started = Instant::now();
    let me = id("s1");
    let campaigning = campaign(store.clone(), &me, address, |_| async { true });
    let again = timeout(Duration::from_secs(5), campaigning).await.expect("it waits for itself").unwrap();
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(again.leader.term, earlier.leader.term + 1);
}

#[tokio::test]
async fn a_leadership_that_is_dropped_is_free_at_once() {
    let (_folder, store) = embedded();
    drop(stand(&store, "s1").await);
    let standing = timeout(Duration::from_millis(500), stand(&store, "s2"));
    standing.await.expect("it waits for a leader that is gone");
}

#[tokio::test]
async fn a_leader_that_is_cut_off_from_the_store_stops_leading() {
    let ground = Ground::served_by_tls().await;
    let leadership = stand(&ground.store, "s1").await;
    ground.close();
    let losing = timeout(Duration::from_secs(8), leadership.lost());
    losing.await.expect("it goes on as if its lease were confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_leads_at_a_time() {
    let (_folder, store) = embedded();
    let leading = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut controllers = tokio::task::JoinSet::new();
    for n in 0..6 {
        let (store, leading) = (store.clone(), leading.clone());
        controllers.spawn(async move {
            let leadership = stand(&store, &format!("s{n}")).await;
            assert_eq!(leading.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two lead");
            tokio::time::sleep(Duration::from_millis(20)).await;
            leading.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            let term = leadership.leader.term;
            leadership.resign().await;
            term
        });
    }
    let mut terms = Vec::new();
    while let Some(term) = controllers.join_next().await {
        terms.push(term.unwrap());
    }
    terms.sort();
    assert_eq!(terms, [1, 2, 3, 4, 5, 6]);
}

/// A controller as a process of its own: listens on its port, campaigns, and while it leads writes `/tick`
/// under its fence. Run by the test below only.
#[tokio::test]
#[ignore = "a process that `control_moves_in_3_s...` starts and kills"]
async fn controller() {
    let read = |name: &str| std::env::var(name).unwrap();
    let etc = std::path::PathBuf::from(read("ETC"));
    let endpoints: Vec<String> = read("ENDPOINTS").split(',').map(str::to_owned).collect();
    let address: SocketAddr = read("ADDRESS").parse().unwrap();
    let me = id(&read("ME"));
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let store: Arc<dyn Store> =
        Arc::new(EtcdStore::new(&endpoints, &Pems::read(&etc).unwrap()).await.unwrap());
    loop {
        let leadership = campaign(store.clone(), &me, address, answers).await.unwrap();
        let ticking = async {
            for n in 0.. {
                let tick = put("/tick", &format!("{me} {n}"));
                // What comes of it is for the watcher to see.
                let _ = store.commit(vec![leadership.fence()], vec![tick]).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            () = leadership.lost() => {}
            () = ticking => {}
        }
    }
}

struct Controller(Child);

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_controller(etc: &std::path::Path, cluster: &Cluster, n: usize) -> Controller {
    let name = "election::controller";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    command.env("ETC", etc).env("ENDPOINTS", cluster.endpoints(n).join(","));
    command.env("ADDRESS", free_address().to_string()).env("ME", format!("s{n}"));
    Controller(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
}

/// Three controllers, each talking to its own server's etcd member first. The server of the active one is
/// killed with everything on it, and that member leads etcd too: the worst case. Gives the time from the kill
/// to the first write of the next active controller.
async fn moved_after_a_kill() -> Duration {
    let cell = Cell::new();
    let mut cluster = Cluster::start(&cell).await;
    let server = cell.server("s9");
    let leading_member = cluster.leader();
    let mut controllers: Vec<Option<Controller>> = vec![None, None, None];
    controllers[leading_member] = Some(start_controller(&server.dirs.etc, &cluster, leading_member));
    let observer = cluster.store((leading_member + 1) % 3).await;
    eventually("the first controller to tick", async || observer.get("/tick").await.unwrap()).await;
    for n in (0..3).filter(|n| *n != leading_member) {
        controllers[n] = Some(start_controller(&server.dirs.etc, &cluster, n));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.leader(), leading_member, "etcd's leader stayed");
    let (_, mut watch) = kopek_store::read_and_watch(observer.as_ref(), "/tick").await.unwrap();
    let killed = Instant::now();
    cluster.kill(leading_member);
    controllers[leading_member] = None;
    let dead = format!("s{leading_member} ");
    loop {
        for change in watch.next().await.unwrap() {
            let Change::Put(entry) = change else { panic!("{change:?}") };
            if !String::from_utf8(entry.value).unwrap().starts_with(&dead) {
                return killed.elapsed();
            }
        }
        assert!(killed.elapsed() < Duration::from_secs(20), "nobody took over");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_moves_in_3_s_when_the_active_controller_and_etcds_leader_die_together() {
    let took = moved_after_a_kill().await;
    println!("control moved in {took:?}");
    assert!(took <= Duration::from_secs(3), "{took:?}");
}
