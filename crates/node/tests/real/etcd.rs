//! Three real etcd members in three namespaces.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kopek_core::desired::StoreMembers;
use kopek_node::daemon::Supervised;
use kopek_node::etcd::{EtcdMember, Origin, is_healthy};
use kopek_node::store_member;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::rack::{Server, eventually, kill, rack};

const SOON: Duration = Duration::from_secs(20);

fn start(server: &Server, members: &BTreeMap<kopek_core::ServerId, std::net::IpAddr>) -> Supervised {
    let member = EtcdMember {
        name: server.name.clone(),
        cluster: "first".to_owned(),
        address: server.address,
        members: members.clone(),
        origin: Origin::New,
    };
    let dirs = server.dirs.clone();
    server.run(async move { member.keep(&dirs).await.unwrap() })
}

fn etcdctl(server: &Server, args: &[&str]) -> String {
    let etc = server.dirs.etc.display();
    let mut command = server.command("etcdctl");
    command.env("ETCDCTL_API", "3").args(args);
    command.arg(format!("--endpoints=https://{}:2379", server.address)).arg(format!("--cacert={etc}/ca.pem"));
    command.arg(format!("--cert={etc}/server.pem")).arg(format!("--key={etc}/server.key"));
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn three_members_form_a_store_and_a_killed_one_comes_back() {
    let mut rack = rack("e", 1);
    let servers = [rack.server(), rack.server(), rack.server()];
    let members = servers.iter().map(|s| (s.name.clone(), s.address)).collect();
    let mut kept: Vec<Supervised> = servers.iter().map(|server| start(server, &members)).collect();
    let healthy = |server: &Server| server.run(is_healthy()).then_some(());
    for server in &servers {
        eventually("a healthy member", SOON, || healthy(server));
    }
    assert!(etcdctl(&servers[0], &["put", "a", "1"]).contains("OK"));
    assert!(etcdctl(&servers[2], &["get", "a"]).contains('1'));
    // The cell's keys lie in it.
    let folder = std::fs::metadata(servers[0].dirs.state.join("etcd/first")).unwrap();
    assert_eq!(folder.permissions().mode() & 0o777, 0o700);

    let etc = servers[0].dirs.etc.display().to_string();
    let ours = [format!("--cert={etc}/server.pem"), format!("--key={etc}/server.key")];
    let asks = |certificate: &[String]| {
        let mut command = servers[0].command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["get", "a", "--dial-timeout=2s", "--command-timeout=2s"]);
        command.arg(format!("--endpoints=https://{}:2379", servers[1].address));
        command.arg(format!("--cacert={etc}/ca.pem")).args(certificate).output().unwrap().status.success()
    };
    assert!(asks(&ours));
    assert!(!asks(&[]), "a client without a certificate was let in");

    let pid = servers[1].pids()[0];
    kill(pid);
    eventually("another process", SOON, || servers[1].pids().into_iter().find(|now| *now != pid));
    eventually("a healthy member again", SOON, || healthy(&servers[1]));
    let last = kept.pop().unwrap();
    servers[2].run(last.stop(Duration::from_secs(10)));
    assert_eq!(servers[2].pids(), Vec::<i32>::new());
    assert!(etcdctl(&servers[0], &["put", "a", "2"]).contains("OK"), "two of three are enough");
}

/// One server's part of the agent that keeps the member.
struct Keeper {
    members: watch::Sender<Option<StoreMembers>>,
    cluster: watch::Receiver<Option<String>>,
    task: AbortHandle,
}

impl Keeper {
    fn start(server: &Server, wanted: &StoreMembers) -> Keeper {
        let (members, of_members) = watch::channel(Some(wanted.clone()));
        let (to_cluster, cluster) = watch::channel(None);
        let (dirs, me) = (server.dirs.clone(), server.name.clone());
        let keep = store_member::keep(dirs, me, of_members, to_cluster);
        let task = server.run(async move { tokio::spawn(keep).abort_handle() });
        Keeper { members, cluster, task }
    }

    fn want(&self, members: &StoreMembers) {
        self.members.send_replace(Some(members.clone()));
    }

    fn runs(&self, cluster: Option<&str>) {
        eventually("the member of the cluster", SOON, || {
            (self.cluster.borrow().as_deref() == cluster).then_some(())
        });
    }
}

fn ends(server: &Server) {
    eventually("the member's end", SOON, || server.pids().is_empty().then_some(()));
}

#[test]
fn a_member_never_starts_with_the_data_of_an_earlier_cluster() {
    let mut rack = rack("c", 7);
    let servers = [rack.server(), rack.server(), rack.server(), rack.server()];
    let cluster = |name: &str, of: &[&Server]| StoreMembers {
        cluster: name.to_owned(),
        members: of.iter().map(|server| (server.name.clone(), server.address)).collect(),
    };
    let nobody = StoreMembers::default();
    let healthy = |server: &Server| server.run(is_healthy()).then_some(());
    let [s1, s2, s3, s4] = &servers;
    let first = cluster("first", &[s1, s2, s3]);
    let mut keepers: Vec<Keeper> = servers.iter().map(|server| Keeper::start(server, &first)).collect();
    eventually("a store", SOON, || healthy(s1));
    assert!(etcdctl(s1, &["put", "a", "first"]).contains("OK"));

    // Left, and founded again with another server in the place of one.
    keepers.iter().for_each(|keeper| keeper.want(&nobody));
    keepers.iter().for_each(|keeper| keeper.runs(None));
    let second = cluster("second", &[s2, s3, s4]);
    keepers.iter().for_each(|keeper| keeper.want(&second));
    keepers[1..].iter().for_each(|keeper| keeper.runs(Some("second")));
    for server in [s2, s3, s4] {
        eventually("a healthy member of the second", SOON, || healthy(server));
    }
    ends(s1);
    assert_eq!(etcdctl(s2, &["get", "a"]), "", "nothing of the first is left");
    assert!(!s2.dirs.state.join("etcd/first").exists());
    assert!(etcdctl(s2, &["put", "a", "second"]).contains("OK"));

    // Straight from one to the next, as when a half-done move is repeated; on two servers while no agent runs.
    let third = cluster("third", &[s1, s2, s3]);
    for (index, server) in [(1, s2), (3, s4)] {
        keepers[index].task.abort();
        keepers[index] = Keeper::start(server, &third);
    }
    keepers.iter().for_each(|keeper| keeper.want(&third));
    keepers[..3].iter().for_each(|keeper| keeper.runs(Some("third")));
    for server in [s1, s2, s3] {
        eventually("a healthy member of the third", SOON, || healthy(server));
    }
    assert_eq!(etcdctl(s1, &["get", "a"]), "", "nothing of the second is left");
    keepers[3].runs(None);
    ends(s4);

    // The same again, as after a restart of the agent: it keeps its data.
    assert!(etcdctl(s1, &["put", "a", "third"]).contains("OK"));
    let pids = s1.pids();
    keepers[0].task.abort();
    keepers[0] = Keeper::start(s1, &third);
    keepers[0].runs(Some("third"));
    assert_eq!(s1.pids(), pids, "it was adopted");
    assert!(etcdctl(s1, &["get", "a"]).contains("third"));
    servers.iter().for_each(Server::kill_everything);
}
