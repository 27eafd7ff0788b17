//! Two real keepalived in two namespaces.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kopek_core::assignment::{AssignedVip, Tenure};
use kopek_core::observed::Health;
use kopek_node::keepalived::Keepalived;
use tokio::sync::Mutex;

use crate::rack::{Server, eventually, rack};

const SOON: Duration = Duration::from_secs(10);

struct Announcer<'a> {
    server: &'a Server,
    keepalived: Arc<Mutex<Keepalived>>,
}

impl<'a> Announcer<'a> {
    fn on(server: &'a Server) -> Announcer<'a> {
        let keepalived = Keepalived::new(&server.dirs, &server.name, "eth0");
        Announcer { server, keepalived: Arc::new(Mutex::new(keepalived)) }
    }

    fn apply(&self, vips: &[AssignedVip], edge: Health) {
        let (keepalived, vips) = (self.keepalived.clone(), vips.to_vec());
        self.server.run(async move { keepalived.lock().await.apply(&vips, edge).unwrap() });
    }

    fn silence(&self) {
        let keepalived = self.keepalived.clone();
        self.server.run(async move { keepalived.lock().await.silence().await.unwrap() });
    }

    fn held(&self) -> Vec<IpAddr> {
        let keepalived = self.keepalived.clone();
        self.server.run(async move { keepalived.lock().await.held() })
    }

    /// By the kernel, whatever the code under test thinks.
    fn really_held(&self, vip: &IpAddr) -> bool {
        let output = self.server.command("ip").args(["-o", "addr", "show", "dev", "eth0"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains(&format!(" {vip}/"))
    }
}

fn vip(address: &str, priority: u8) -> AssignedVip {
    let address: IpAddr = address.parse().unwrap();
    let IpAddr::V4(v4) = address else { unreachable!() };
    AssignedVip { address, router: v4.octets()[3], priority, tenure: Tenure::Stay }
}

#[test]
fn an_address_moves_from_a_killed_server_and_from_an_ill_edge() {
    const X: &str = "10.93.2.100";
    const Y: &str = "10.93.2.101";
    let (x, y): (IpAddr, IpAddr) = (X.parse().unwrap(), Y.parse().unwrap());
    let mut rack = rack("k", 2);
    let servers = [rack.server(), rack.server()];
    let (one, two) = (Announcer::on(&servers[0]), Announcer::on(&servers[1]));
    one.apply(&[vip(X, 200), vip(Y, 100)], Health::Well);
    two.apply(&[vip(X, 100), vip(Y, 200)], Health::Well);
    eventually("each has its own", SOON, || (one.held() == [x] && two.held() == [y]).then_some(()));
    assert!(one.really_held(&x) && !one.really_held(&y));

    // An ill edge gives its address away, and gets it back when it is well.
    one.apply(&[vip(X, 200), vip(Y, 100)], Health::Ill);
    eventually("both on two", SOON, || (two.held() == [x, y] && one.held().is_empty()).then_some(()));
    // With both ill somebody still answers.
    two.apply(&[vip(X, 100), vip(Y, 200)], Health::Ill);
    eventually("held although ill", SOON, || (one.held().len() + two.held().len() == 2).then_some(()));
    one.apply(&[vip(X, 200), vip(Y, 100)], Health::Well);
    two.apply(&[vip(X, 100), vip(Y, 200)], Health::Well);
    eventually("each its own again", SOON, || (one.held() == [x] && two.held() == [y]).then_some(()));

    // A dead server: its agent does not come back to clean up either.
    let keeper = Arc::try_unwrap(one.keepalived).unwrap().into_inner();
    drop(keeper);
    let start = Instant::now();
    servers[0].kill_everything();
    eventually("two took over", SOON, || two.really_held(&x).then_some(()));
    let took = start.elapsed();
    println!("address moved in {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");

    // The killed one left its address behind. Returning, with nothing to announce, it is taken off.
    let one = Announcer::on(&servers[0]);
    assert!(one.really_held(&x), "a killed keepalived cannot clean up");
    one.silence();
    assert!(!one.really_held(&x) && one.held().is_empty());

    // A new assignment is taken over by a running keepalived.
    two.apply(&[vip(Y, 200)], Health::Well);
    eventually("x is gone from two", SOON, || (two.held() == [y]).then_some(()));
    two.silence();
    assert_eq!(servers[1].pids(), Vec::<i32>::new());
    assert!(two.held().is_empty());
}

#[test]
fn what_a_killed_keepalived_left_is_off_before_the_next_one_announces() {
    const X: &str = "10.93.2.100";
    const Y: &str = "10.93.2.101";
    let (x, y): (IpAddr, IpAddr) = (X.parse().unwrap(), Y.parse().unwrap());
    let mut rack = rack("l", 2);
    let server = rack.server();
    let killed = Announcer::on(&server);
    killed.apply(&[vip(X, 254)], Health::Well);
    eventually("x is held", SOON, || (killed.held() == [x]).then_some(()));
    drop(killed);
    server.kill_everything();
    let next = Announcer::on(&server);
    assert!(next.really_held(&x), "a killed keepalived cannot clean up");
    next.apply(&[vip(Y, 254)], Health::Well);
    eventually("y is held", SOON, || next.really_held(&y).then_some(()));
    assert!(!next.really_held(&x));
}

#[test]
fn an_address_that_is_announced_no_more_goes_at_once_and_others_stay() {
    const X: &str = "10.93.2.100";
    const Y: &str = "10.93.2.101";
    let (x, y): (IpAddr, IpAddr) = (X.parse().unwrap(), Y.parse().unwrap());
    let mut rack = rack("m", 2);
    let servers = [rack.server(), rack.server()];
    let (one, two) = (Announcer::on(&servers[0]), Announcer::on(&servers[1]));
    one.apply(&[vip(X, 254), vip(Y, 254)], Health::Well);
    two.apply(&[vip(X, 253), vip(Y, 253)], Health::Well);
    eventually("one has both", SOON, || (one.held() == [x, y]).then_some(()));
    let start = Instant::now();
    one.apply(&[vip(Y, 254)], Health::Well);
    eventually("two took over", SOON, || two.really_held(&x).then_some(()));
    println!("address moved in {:?}", start.elapsed());
    assert!(!one.really_held(&x) && one.really_held(&y));
    let start = Instant::now();
    one.apply(&[], Health::Well);
    eventually("two took over", SOON, || two.really_held(&y).then_some(()));
    println!("the last address moved in {:?}", start.elapsed());
}
