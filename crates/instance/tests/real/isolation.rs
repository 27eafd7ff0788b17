//! What an instance may not do.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use kopek_core::desired::Internet;
use kopek_core::{Bytes, MilliCores};
use kopek_instance::{Firewall, Gauge, Who, firewall, watch};

use crate::support::{Server, run, until};

/// A namespace beside the server's, as the rest of the world: 198.51.100.1 stands for the internet, 192.0.2.9
/// for another server of the cell, 192.0.2.53 for a name server there. All answer on ports 80 and 53.
fn outside() -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let (finish, finished) = std::sync::mpsc::channel::<()>();
    let (joined, is_joined) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        // SAFETY: gettid has no arguments and cannot fail.
        ready.send(unsafe { nix::libc::gettid() }).unwrap();
        is_joined.recv().unwrap();
        run("ip link set lo up; ip addr add 198.51.100.1/24 dev world; ip addr add 192.0.2.9/24 dev world; \
             ip addr add 192.0.2.53/24 dev world; ip link set world up");
        let listeners: Vec<TcpListener> =
            [80, 53].map(|port| TcpListener::bind(("0.0.0.0", port)).unwrap()).into();
        ready.send(0).unwrap();
        let _ = finished.recv();
        drop(listeners);
    });
    let task = is_ready.recv().unwrap();
    run(&format!(
        "ip link add uplink type veth peer name world netns /proc/{}/task/{task}/ns/net; \
         ip addr add 198.51.100.2/24 dev uplink; ip addr add 192.0.2.2/24 dev uplink; ip link set uplink up",
        std::process::id()
    ));
    joined.send(()).unwrap();
    is_ready.recv().unwrap();
    (finish, thread)
}

#[test]
fn an_instance_reaches_the_internet_but_neither_instances_nor_servers() {
    let server = Server::new();
    let (finish, world) = outside();
    let rules = Firewall {
        cell: vec![("192.0.2.0".parse().unwrap(), 24)],
        public: Vec::new(),
        closed: Vec::new(),
        resolvers: vec!["192.0.2.53".parse().unwrap()],
    };
    firewall(&rules).unwrap();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    let blog = server.start(&server.spec("php8.2-apache", "blog", 4));
    let mut closed = server.spec("php8.2-apache", "closed", 5);
    closed.limits.internet = Internet::Closed;
    let closed = server.start(&closed);
    let _on_server = TcpListener::bind("0.0.0.0:7400").unwrap();
    let blog_address = blog.spec.address.to_string();

    assert_eq!(shop.connects("127.0.0.1", 80), "open", "itself");
    assert_eq!(shop.connects("198.51.100.1", 80), "open", "the internet");
    assert_eq!(shop.connects("192.0.2.53", 53), "open", "a name server in the cell");
    for (address, port, who) in [
        (blog_address.as_str(), 80, "another instance"),
        ("169.254.74.1", 7400, "the server"),
        ("198.51.100.2", 7400, "the server by its outer address"),
        ("192.0.2.9", 80, "another server"),
        ("192.0.2.53", 80, "a name server's other ports"),
    ] {
        assert_ne!(shop.connects(address, port), "open", "{who}");
    }
    for address in ["198.51.100.1", "192.0.2.9", "169.254.74.1", &blog_address] {
        assert_ne!(closed.connects(address, 80), "open", "a closed instance to {address}");
    }

    // The cell's public addresses are open, for a site that calls itself.
    firewall(&Firewall { public: vec!["192.0.2.9".parse().unwrap()], ..rules.clone() }).unwrap();
    assert_eq!(shop.connects("192.0.2.9", 80), "open", "a public address on another server");
    firewall(&rules).unwrap();
    assert_ne!(shop.connects("192.0.2.9", 80), "open", "no longer public");

    drop(finish);
    world.join().unwrap();
}

#[test]
fn an_address_that_is_closed_keeps_its_connections_and_takes_no_new_ones() {
    let _server = Server::new();
    run("ip link set lo up");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, soon) = (listener.local_addr().unwrap(), Duration::from_millis(300));
    let mut old = TcpStream::connect(address).unwrap();
    let mut accepted = listener.accept().unwrap().0;
    firewall(&Firewall { closed: vec![address.ip()], ..Firewall::default() }).unwrap();
    let refused = TcpStream::connect_timeout(&address, soon).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut, "it may knock again, it is not turned away");
    accepted.write_all(b"go on").unwrap();
    let mut heard = [0; 5];
    old.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"go on");
    firewall(&Firewall::default()).unwrap();
    TcpStream::connect_timeout(&address, soon).unwrap();
}

#[test]
fn it_sees_nothing_of_the_server() {
    let server = Server::new();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    let root = |line: &str| {
        let output = shop.exec(Who::Root, &["sh", "-c", line]);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let processes = root("cat /proc/[0-9]*/comm | sort -u");
    assert!(processes.lines().all(|name| ["apache2", "cat", "sh", "sort"].contains(&name)), "{processes}");
    assert!(processes.contains("apache2"), "{processes}");
    let mounts = root("cut -d' ' -f2 /proc/self/mounts");
    let allowed = ["/", "/var/www/html", "/tmp", "/run", "/run/mysqld", "/proc", "/dev"];
    for mount in mounts.lines() {
        let known = allowed.contains(&mount) || mount.starts_with("/proc/") || mount.starts_with("/dev/");
        assert!(known, "{mount} is visible inside");
    }
    assert_eq!(root("ls /sys"), "");
    assert_eq!(root("cat /proc/self/cgroup | cut -d: -f3 | grep -c kopek").trim(), "0");
    assert_eq!(root("hostname").trim(), "shop");
    let keys = root("cat /proc/kcore /proc/keys | wc -c");
    assert!(keys.contains('0'), "{keys}");
}

#[test]
fn even_its_root_may_not_administer_anything() {
    let server = Server::new();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    // By its mode anybody may write there; that it is mounted read-only must do.
    std::fs::set_permissions(&shop.spec.sql_socket_dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    for attempt in [
        "mount -t tmpfs none /mnt",
        "umount /run/mysqld",
        "mknod /tmp/disk b 254 0",
        "unshare --user true",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /proc/sys/kernel/sysrq",
        "hostname other",
        "touch /run/mysqld/x",
        "dmesg",
    ] {
        let output = shop.exec(Who::Root, &["sh", "-c", attempt]);
        assert!(!output.status.success(), "{attempt} worked: {output:?}");
    }
    let status = shop.exec(Who::Root, &["cat", "/proc/self/status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    // Bits by number (linux/capability.h) of the seven that container.rs names.
    for line in ["CapEff:\t00000000000004eb", "CapBnd:\t00000000000004eb"] {
        assert!(status.contains(line), "{status}");
    }
    let limits = shop.exec(Who::WwwData, &["cat", "/proc/self/status"]);
    let limits = String::from_utf8_lossy(&limits.stdout).into_owned();
    for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(limits.contains(line), "{limits}");
    }
}

#[test]
fn memory_beyond_the_limit_is_refused_by_killing_what_asked_for_it() {
    let server = Server::new();
    let mut spec = server.spec("php8.2-apache", "shop", 3);
    spec.limits.memory = Bytes::mib(96);
    let shop = server.start(&spec);
    let output = shop.exec(
        Who::WwwData,
        &["php", "-d", "memory_limit=-1", "-r", "$a = str_repeat('x', 200 << 20); echo strlen($a);"],
    );
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    shop.write("index.php", "<?php echo 'alive';");
    assert!(shop.get("/", "").ends_with("alive"));
}

#[test]
fn a_full_tmp_fails_the_write_and_kills_nobody() {
    let server = Server::new();
    let mut spec = server.spec("php8.2-apache", "shop", 3);
    spec.limits.memory = Bytes::mib(96);
    let shop = server.start(&spec);
    let output = shop.exec(Who::WwwData, &["sh", "-c", "head -c 90M /dev/zero > /tmp/full"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left on device"), "{output:?}");
    shop.write("index.php", "<?php echo 'alive';");
    assert!(shop.get("/", "").ends_with("alive"));
}

#[test]
fn tasks_beyond_the_limit_are_refused() {
    let server = Server::new();
    let mut spec = server.spec("php8.2-apache", "shop", 3);
    spec.limits.tasks = 20;
    let shop = server.start(&spec);
    let output = shop.exec(Who::WwwData, &["sh", "-c", "for i in $(seq 30); do sleep 5 & done; echo all"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Cannot fork") || text.contains("Resource temporarily unavailable"), "{output:?}");
    assert!(Gauge::open(&spec.cgroup).unwrap().read().unwrap().tasks <= 20);
}

#[test]
fn processor_time_beyond_the_share_is_not_given_and_load_is_counted() {
    let server = Server::new();
    let mut spec = server.spec("php8.2-apache", "shop", 3);
    spec.limits.cpu = MilliCores(200);
    let shop = server.start(&spec);
    let gauge = Gauge::open(&spec.cgroup).unwrap();
    until("the web server is complete", || gauge.read().unwrap().tasks >= 3);
    assert!(gauge.read().unwrap().memory > Bytes::mib(1));
    shop.write(
        "spin.php",
        "<?php $end = microtime(true) + 1.5; while (microtime(true) < $end); echo 'spun';",
    );
    let begun = std::time::Instant::now();
    let before = gauge.read().unwrap().cpu_us;
    let spinning: Vec<_> = (0..2).map(|_| shop.request("/spin.php", "")).collect();
    until("two tasks run", || gauge.read().unwrap().running >= 2);
    std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
    let used = Duration::from_micros(gauge.read().unwrap().cpu_us - before);
    assert!(used < begun.elapsed().mul_f64(0.35), "{used:?} of {:?}", begun.elapsed());
    drop(spinning);
}

#[test]
fn an_instance_whose_first_process_is_killed_is_gone_and_seen_to_be() {
    let server = Server::new();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut watched = std::pin::pin!(watch(&shop.running));
        let early = tokio::time::timeout(Duration::from_millis(50), &mut watched).await;
        assert!(early.is_err(), "it was thought to have ended while it runs");
        run(&format!("kill -9 {}", shop.running.pid));
        tokio::time::timeout(Duration::from_secs(5), watched).await.unwrap().unwrap();
    });
}
