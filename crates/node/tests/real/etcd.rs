//! Three real etcd members in three namespaces.

use std::collections::BTreeMap;
use std::time::Duration;

use kopek_node::daemon::Supervised;
use kopek_node::etcd::{EtcdMember, Origin, is_healthy};

use crate::rack::{Server, eventually, kill, rack};

const SOON: Duration = Duration::from_secs(20);

fn start(server: &Server, members: &BTreeMap<kopek_core::ServerId, std::net::IpAddr>) -> Supervised {
    let member = EtcdMember {
        name: server.name.clone(),
        address: server.address,
        members: members.clone(),
        origin: Origin::New,
    };
    let dirs = server.dirs.clone();
    server.run(async move { member.keep(&dirs).unwrap() })
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
