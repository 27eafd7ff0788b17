//! Multicast between two network namespaces joined by a pair of interfaces.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use kopek_core::Digest;
use kopek_link::{DiscoveryError, answer, find};

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

struct Network {
    name: String,
}

impl Network {
    /// Two namespaces, 10.77.0.1 and 10.77.0.2, without any route but their own network.
    fn new() -> Network {
        let name = format!("kl{}", std::process::id());
        ip(&format!("netns add {name}a"));
        ip(&format!("netns add {name}b"));
        ip(&format!("-n {name}a link add v0 type veth peer name v0 netns {name}b"));
        for (side, address) in [("a", 1), ("b", 2)] {
            ip(&format!("-n {name}{side} addr add 10.77.0.{address}/24 dev v0"));
            ip(&format!("-n {name}{side} link set v0 up"));
        }
        Network { name }
    }

    /// Runs `work` in a thread of its own inside one of the namespaces.
    fn run<T: Send + 'static>(
        &self,
        side: &str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = format!("/run/netns/{}{side}", self.name);
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for side in ["a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}{side}", self.name)]).status();
        }
    }
}

fn fingerprint(digit: &str) -> Digest {
    Digest::parse(&digit.repeat(64)).unwrap()
}

#[test]
fn a_joining_server_finds_its_own_cell_and_no_other() {
    let network = Network::new();
    let control: SocketAddr = "10.77.0.1:7400".parse().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let answering = network.run("a", async move {
        tokio::select! {
            outcome = answer(fingerprint("a"), control, control.ip()) => panic!("{outcome:?}"),
            _ = stopped => {}
        }
    });
    let asking = network.run("b", async {
        let here = "10.77.0.2".parse().unwrap();
        let ours = find(&fingerprint("a"), here, Duration::from_secs(10)).await;
        let other = find(&fingerprint("b"), here, Duration::from_secs(1)).await;
        (ours, other)
    });
    let (ours, other) = asking.join().unwrap();
    stop.send(()).unwrap();
    answering.join().unwrap();
    assert_eq!(ours.unwrap(), control);
    assert!(matches!(other, Err(DiscoveryError::NobodyAnswered { .. })), "{other:?}");
}
