//! Three real etcd members on loopback, started as the product starts them, and what happens when one fails.

use std::fs::{DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use kopek_link::{Api, Identity};
use kopek_store::{EtcdStore, Store, StoreError};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::cell::{Cell, Server, eventually, free_address};
use crate::conformance::{increment, number, put};

pub struct Cluster {
    members: Vec<Member>,
    server: Server,
    _folder: TempDir,
}

struct Member {
    process: Child,
    address: SocketAddr,
    peer: SocketAddr,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}

impl Cluster {
    /// Started, and with a leader.
    pub async fn start(cell: &Cell) -> Cluster {
        Cluster::start_at(cell, &[(); 3].map(|()| (free_address(), free_address()))).await
    }

    /// An empty one in its place, as a later move of the cell's state founds it.
    pub async fn replaced(self, cell: &Cell) -> Cluster {
        let places: Vec<_> = self.members.iter().map(|member| (member.address, member.peer)).collect();
        drop(self);
        Cluster::start_at(cell, &places).await
    }

    async fn start_at(cell: &Cell, places: &[(SocketAddr, SocketAddr)]) -> Cluster {
        let server = cell.server("s1");
        let folder = tempfile::tempdir().unwrap();
        let peers: Vec<String> = (0..3).map(|n| format!("m{n}=https://{}", places[n].1)).collect();
        let mut members = Vec::new();
        for (n, (client, peer)) in places.iter().enumerate() {
            let data = folder.path().join(format!("m{n}"));
            DirBuilder::new().mode(0o700).create(&data).unwrap();
            let log = File::create(folder.path().join(format!("m{n}.log"))).unwrap();
            let etc = &server.dirs.etc;
            let mut command = Command::new("etcd");
            command.arg(format!("--name=m{n}")).arg(format!("--data-dir={}", data.display()));
            for (side, address) in [("client", client), ("peer", peer)] {
                command.arg(format!("--listen-{side}-urls=https://{address}"));
            }
            command.arg(format!("--advertise-client-urls=https://{client}"));
            command.arg(format!("--initial-advertise-peer-urls=https://{peer}"));
            command.arg(format!("--initial-cluster={}", peers.join(",")));
            command.arg(format!("--initial-cluster-token={}", folder.path().display()));
            for side in ["", "peer-"] {
                command.arg(format!("--{side}cert-file={}", etc.join("server.pem").display()));
                command.arg(format!("--{side}key-file={}", etc.join("server.key").display()));
                command.arg(format!("--{side}trusted-ca-file={}", etc.join("ca.pem").display()));
            }
            command.args(kopek_store::etcd::SETTINGS);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            members.push(Member { process: command.spawn().unwrap(), address: *client, peer: *peer });
        }
        let cluster = Cluster { members, server, _folder: folder };
        let all = ["endpoint", "health"];
        eventually("every member to answer", async || cluster.etcdctl(&all).status.success().then_some(()))
            .await;
        cluster
    }

    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.members.iter().map(|member| member.address)
    }

    /// `https://` addresses, beginning with one member's.
    pub fn endpoints(&self, first: usize) -> Vec<String> {
        let mut endpoints: Vec<String> =
            self.addresses().map(|address| format!("https://{address}")).collect();
        endpoints.rotate_left(first);
        endpoints
    }

    /// Talks to one member first.
    pub async fn store(&self, first: usize) -> Arc<dyn Store> {
        Arc::new(EtcdStore::new(&self.endpoints(first), &self.server.pems()).await.unwrap())
    }

    pub fn kill(&mut self, member: usize) {
        self.members[member].process.kill().unwrap();
    }

    pub fn signal(&self, member: usize, signal: &str) {
        let pid = self.members[member].process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub async fn compact(&self, revision: u64) {
        let output = self.etcdctl(&["compact", &revision.to_string()]);
        assert!(output.status.success(), "{output:?}");
    }

    /// The member that leads etcd's own election.
    pub fn leader(&self) -> usize {
        let output = self.etcdctl(&["endpoint", "status", "--write-out=simple"]);
        assert!(output.status.success(), "{output:?}");
        let status = String::from_utf8(output.stdout).unwrap();
        let line = status.lines().position(|line| line.split(", ").nth(4) == Some("true"));
        line.unwrap_or_else(|| panic!("no member leads: {status}"))
    }

    fn etcdctl(&self, arguments: &[&str]) -> Output {
        let etc = &self.server.dirs.etc;
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoints(0).join(",")))
            .arg(format!("--cacert={}", etc.join("ca.pem").display()))
            .arg(format!("--cert={}", etc.join("server.pem").display()))
            .arg(format!("--key={}", etc.join("server.key").display()))
            .args(arguments)
            .output()
            .unwrap()
    }
}

/// Increments until told to stop. Gives how many were acknowledged, how many are uncertain, and the longest
/// time between two acknowledgements.
async fn count(store: Arc<dyn Store>, until: Instant) -> (usize, usize, Duration) {
    let (mut acknowledged, mut uncertain) = (0, 0);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    while Instant::now() < until {
        match increment(store.as_ref(), "/sum").await {
            Ok(true) => {
                acknowledged += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Ok(false) => {}
            Err(StoreError::Uncertain { .. }) => uncertain += 1,
            Err(error) => panic!("{error}"),
        }
    }
    (acknowledged, uncertain, longest.max(last.elapsed()))
}

/// One member fails under load, by what `fail` does to it.
async fn a_member_fails(
    fail: impl FnOnce(&mut Cluster, usize),
    which: impl FnOnce(&Cluster) -> usize,
) -> Duration {
    let mut cluster = Cluster::start(&Cell::new()).await;
    let failing = which(&cluster);
    // All are connected to the member that fails.
    let store = cluster.store(failing).await;
    store.commit(vec![], vec![put("/sum", "0")]).await.unwrap();
    let mut watch = store.watch("/sum", 0).await.unwrap();
    let until = Instant::now() + Duration::from_secs(7);
    let counting: Vec<_> = (0..3).map(|_| tokio::spawn(count(store.clone(), until))).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    fail(&mut cluster, failing);
    let (mut acknowledged, mut uncertain, mut longest) = (0, 0, Duration::ZERO);
    for task in counting {
        let counted = task.await.unwrap();
        acknowledged += counted.0;
        uncertain += counted.1;
        longest = longest.max(counted.2);
    }
    let sum = number(store.as_ref(), "/sum").await.unwrap();
    assert!(
        (acknowledged..=acknowledged + uncertain).contains(&sum),
        "{acknowledged} acknowledged, {uncertain} uncertain, but {sum} counted"
    );
    let mut told = 0;
    while told < sum {
        for change in watch.next().await.unwrap() {
            let kopek_store::Change::Put(entry) = change else { panic!("{change:?}") };
            let number: usize = String::from_utf8(entry.value).unwrap().parse().unwrap();
            assert!(number == told + 1 || number == 0, "{number} was told after {told}");
            told = number;
        }
    }
    println!("{acknowledged} acknowledged, {uncertain} uncertain, longest wait {longest:?}");
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_and_watches_go_on_when_a_follower_is_killed_under_load() {
    let longest = a_member_fails(Cluster::kill, |cluster| (cluster.leader() + 1) % 3).await;
    assert!(longest < Duration::from_millis(1_500), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_and_watches_go_on_when_the_leader_is_killed_under_load() {
    let longest = a_member_fails(Cluster::kill, Cluster::leader).await;
    assert!(longest < Duration::from_secs(4), "{longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_and_watches_go_on_when_the_leader_freezes_under_load() {
    let longest = a_member_fails(|cluster, member| cluster.signal(member, "-STOP"), Cluster::leader).await;
    assert!(longest < Duration::from_secs(5), "{longest:?}");
}

/// A follower passes the commit on to the dead leader and waits for an answer that never comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_dying_leader_took_along_is_settled_as_soon_as_another_leads() {
    let mut cluster = Cluster::start(&Cell::new()).await;
    let leader = cluster.leader();
    let store = cluster.store((leader + 1) % 3).await;
    store.commit(vec![], vec![put("/k", "before")]).await.unwrap();
    cluster.kill(leader);
    let error = store.commit(vec![], vec![put("/k", "after")]).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Uncertain { why, .. } if why.contains("changed their leader")),
        "{error}"
    );
    store.commit(vec![], vec![put("/k", "again")]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_store_says_so() {
    let mut cluster = Cluster::start(&Cell::new()).await;
    let store = cluster.store(0).await;
    cluster.kill(1);
    cluster.kill(2);
    let limit = Duration::from_secs(10);
    let error = eventually("the majority to be missed", async || {
        let committing = store.commit(vec![], vec![put("/k", "v")]);
        timeout(limit, committing).await.expect("it waits for a majority").err()
    })
    .await;
    assert!(matches!(error, StoreError::Unavailable { .. } | StoreError::Uncertain { .. }), "{error}");
    let read = timeout(limit, store.get("/k")).await.expect("it waits for a majority");
    assert!(matches!(read, Err(StoreError::Unavailable { .. })), "{read:?}");
}

/// The store holds the cell's CA key; whoever speaks to a member's peer port writes what he likes into it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_servers_of_the_cell_reach_etcd() {
    let cell = Cell::new();
    let cluster = Cluster::start(&cell).await;
    let admin = cell.admin();
    let store = EtcdStore::new(&cluster.endpoints(0), &admin).await.unwrap();
    let error = store.get("/authority").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let admin = Identity::from_pem(&admin.ca, &admin.certificate, &admin.key).unwrap();
    let member = &cluster.members[0];
    for (port, path) in [(member.address, "/version"), (member.peer, "/members")] {
        let ask = async |api: Api| {
            api.call::<(), serde_json::Value>(Method::GET, port, path, None, Duration::from_secs(5)).await
        };
        ask(Api::new(cluster.server.identity.clone())).await.unwrap();
        ask(Api::new(admin.clone())).await.unwrap_err();
        ask(Api::new(cell.stranger())).await.unwrap_err();
        ask(Api::anonymous(cell.ca_pem()).unwrap()).await.unwrap_err();
    }
}
