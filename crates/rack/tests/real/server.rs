//! One server: what it has of its own, its services, and the ways in which it fails and comes back.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use kopek_rack::{Rack, RackError, ServiceOrder, ServicePhase};

use crate::rack::{ECHO, eventually, rack, server, talk};

#[test]
fn servers_of_a_rack_reach_one_another_by_name_and_the_machine_reaches_them() {
    let test = rack(2);
    let (s1, s2) = (server(1), server(2));
    test.start_echo(&s1);
    test.start_echo(&s2);
    assert_eq!(test.echo(&s1).unwrap(), "s1 hi");
    assert_eq!(test.echo(&s2).unwrap(), "s2 hi");
    assert!(test.can_reach(&s1, &s2) && test.can_reach(&s2, &s1));
    let status = test.rack.status().unwrap();
    assert_eq!(status.vips.len(), 2);
    assert!(test.sh(&s1, "cat /etc/hosts").contains(&format!("{} s2", test.address(&s2))));
}

#[test]
fn a_server_has_its_own_name_processes_disk_and_boot_id() {
    let test = rack(2);
    let (s1, s2) = (server(1), server(2));
    assert_eq!(test.sh(&s1, "hostname"), "s1");
    assert_eq!(
        &test.sh(&s1, "tr '\\0' ' ' < /proc/1/cmdline"),
        &format!("{} dev-init", env!("CARGO_BIN_EXE_kopek-rack-test"))
    );
    assert!(test.sh(&s1, "ls -d /proc/[0-9]* | wc -l").parse::<u32>().unwrap() < 10);
    for place in ["/var/lib/kopek", "/etc/kopek", "/var/log/kopek", "/run/kopek", "/tmp", "/dev/shm"] {
        test.sh(&s1, &format!("echo mine > {place}/only-s1"));
        assert_eq!(test.sh(&s2, &format!("ls {place} | grep -c only-s1 || true")), "0", "{place}");
        assert!(!Path::new(place).join("only-s1").exists(), "{place}");
    }
    let boot_id = |server| test.sh(server, "cat /run/kopek/boot_id");
    assert_ne!(boot_id(&s1), boot_id(&s2));
    assert_eq!(boot_id(&s1), boot_id(&s1));
    let cgroup = test.sh(&s1, "echo $KOPEK_CGROUP; cat /proc/self/cgroup");
    assert!(cgroup.starts_with(&format!("/kopek/{}/s1", test.rack.id())), "{cgroup}");
    assert!(cgroup.contains(&format!("0::/kopek/{}/s1/init", test.rack.id())), "{cgroup}");
}

#[test]
fn exec_gives_back_the_exit_code_and_the_output() {
    let test = rack(1);
    let s1 = server(1);
    assert_eq!(test.rack.exec(&s1, &["sh", "-c", "exit 7"]).unwrap(), 7);
    assert_eq!(test.rack.exec(&s1, &["sh", "-c", "kill -KILL $$"]).unwrap(), 128 + 9);
    assert_eq!(test.rack.exec(&s1, &["no-such-program"]).unwrap(), 127);
    assert_eq!(test.sh(&s1, "seq 100000 | tail -1"), "100000");
    let unknown = test.rack.exec(&server(9), &["true"]).unwrap_err().to_string();
    assert_eq!(unknown, "no server s9 in this rack; there are s1");
}

#[test]
fn a_service_is_restarted_when_it_dies_and_stays_stopped_when_stopped() {
    let test = rack(1);
    let s1 = server(1);
    let status = |name: &str| {
        test.rack.services(&s1).unwrap().into_iter().find(|service| service.name == name).unwrap()
    };
    assert_eq!(status("sleep").phase, ServicePhase::Off, "nothing runs before it is asked for");
    let first = test.rack.service(&s1, "sleep", ServiceOrder::Start).unwrap();
    assert_eq!(first.phase, ServicePhase::Up);
    let environment = test.sh(&s1, &format!("tr '\\0' '\\n' < /proc/{}/environ", first.pid.unwrap()));
    assert!(environment.contains("GREETING=hello"), "{environment}");
    test.sh(&s1, &format!("kill -KILL {}", first.pid.unwrap()));
    eventually(|| status("sleep").phase == ServicePhase::Up && status("sleep").pid != first.pid);
    assert_eq!(status("sleep").deaths, 1);
    let restarted = test.rack.service(&s1, "sleep", ServiceOrder::Restart).unwrap();
    assert_eq!((restarted.phase, restarted.deaths), (ServicePhase::Up, 1));
    assert_eq!(test.rack.service(&s1, "sleep", ServiceOrder::Stop).unwrap().phase, ServicePhase::Off);
    assert_eq!(test.sh(&s1, "pgrep -x sleep || true"), "");
    assert!(matches!(
        test.rack.service(&s1, "nothing", ServiceOrder::Start),
        Err(RackError::UnknownService { .. })
    ));
}

#[test]
fn a_service_that_dies_at_once_is_retried_ever_more_slowly() {
    let test = rack(1);
    let s1 = server(1);
    let begun = Instant::now();
    test.rack.service(&s1, "die", ServiceOrder::Start).unwrap();
    let deaths = || test.rack.services(&s1).unwrap().iter().find(|s| s.name == "die").unwrap().deaths;
    eventually(|| deaths() >= 5);
    // 100, 200, 400, 800 ms lie between them.
    assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert!(test.sh(&s1, "cat /var/log/kopek/init.log").contains("die: ended with exit code 3"));
}

#[test]
fn init_reaps_orphans_and_ends_stubborn_services_with_a_kill() {
    let test = rack(1);
    let s1 = server(1);
    test.sh(&s1, "(sleep 0.01 & sleep 0.01 &) ; exit 0");
    eventually(|| test.sh(&s1, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null || true").is_empty());
    test.rack.service(&s1, "stubborn", ServiceOrder::Start).unwrap();
    eventually(|| !test.sh(&s1, "pgrep -x sleep || true").is_empty());
    let begun = Instant::now();
    test.rack.service(&s1, "stubborn", ServiceOrder::Stop).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(9), "TERM has a grace: {:?}", begun.elapsed());
}

#[test]
fn sigterm_to_init_ends_the_services_one_after_the_other_and_the_server() {
    let test = rack(1);
    let s1 = server(1);
    test.start_echo(&s1);
    for name in ["first", "second"] {
        test.rack.service(&s1, name, ServiceOrder::Start).unwrap();
        // Its shell has set the trap once it sleeps.
        let pid = test.rack.services(&s1).unwrap().into_iter().find(|s| s.name == name).unwrap().pid.unwrap();
        eventually(|| !test.sh(&s1, &format!("pgrep -P {pid} || true")).is_empty());
    }
    let init = test.rack.status().unwrap().servers[0].init.unwrap();
    let asked = Command::new("kill").args(["-TERM", &init.to_string()]).status().unwrap();
    assert!(asked.success());
    eventually(|| test.state(&s1) == "killed");
    test.rack.power_on(&s1).unwrap();
    eventually(|| test.echo(&s1).is_some());
    assert_eq!(test.sh(&s1, "cat /var/lib/kopek/ended"), "first\nsecond");
}

#[test]
fn a_killed_server_keeps_its_network_and_boots_again_with_its_services() {
    let test = rack(2);
    let (s1, s2) = (server(1), server(2));
    test.start_echo(&s1);
    test.sh(
        &s1,
        "echo kept > /var/lib/kopek/file; echo passing > /tmp/file; ip addr add 10.74.255.9/32 dev eth0",
    );
    let boot_id = test.sh(&s1, "cat /run/kopek/boot_id");
    // As an instance does: a group below the server's in a v1 hierarchy, and a process in it.
    let v1 = format!("/sys/fs/cgroup/pids/kopek/{}/s1/shop.1", test.rack.id());
    let mixed = Path::new("/sys/fs/cgroup/pids").exists();
    if mixed {
        test.sh(&s1, &format!("mkdir -p {v1}; sleep 1000 > /dev/null 2>&1 & echo $! > {v1}/cgroup.procs"));
    }

    test.rack.kill(&s1).unwrap();
    assert_eq!(test.state(&s1), "killed");
    assert!(!Path::new(&v1).exists());
    assert!(test.can_reach(&s2, &s1), "its network is up");
    assert_eq!(test.echo(&s1), None);
    let refused = test.rack.exec(&s1, &["true"]).unwrap_err().to_string();
    assert_eq!(refused, "s1 is killed: `kopek dev power-on s1` first");

    test.rack.power_on(&s1).unwrap();
    eventually(|| test.echo(&s1).is_some());
    assert_eq!(test.sh(&s1, "cat /var/lib/kopek/file"), "kept");
    assert_eq!(test.sh(&s1, "ls -A /tmp"), "");
    assert_ne!(test.sh(&s1, "cat /run/kopek/boot_id"), boot_id);
    assert_eq!(test.sh(&s1, "ip -o addr show dev eth0 | grep -c 10.74.255.9 || true"), "0");
    assert!(matches!(test.rack.power_on(&s1), Err(RackError::AlreadyRunning { .. })));
}

#[test]
fn a_frozen_server_goes_on_where_it_was_when_healed() {
    let test = rack(1);
    let s1 = server(1);
    test.start_echo(&s1);
    let before = test.rack.services(&s1).unwrap();
    test.rack.freeze(&s1).unwrap();
    assert_eq!(test.state(&s1), "frozen");
    assert_eq!(test.echo(&s1), None);
    assert!(matches!(test.rack.exec(&s1, &["true"]), Err(RackError::WrongState { remedy: "heal", .. })));
    test.rack.heal(&s1).unwrap();
    assert_eq!(test.state(&s1), "running");
    eventually(|| test.echo(&s1).is_some());
    assert_eq!(test.rack.services(&s1).unwrap(), before, "nothing died of it");
    test.rack.freeze(&s1).unwrap();
    test.rack.kill(&s1).unwrap();
    assert_eq!(test.state(&s1), "killed");
}

#[test]
fn a_cut_server_is_alone_until_healed_and_stays_cut_over_a_boot() {
    let test = rack(2);
    let (s1, s2) = (server(1), server(2));
    test.start_echo(&s1);
    test.rack.cut(&s1).unwrap();
    assert_eq!(test.state(&s1), "cut");
    assert_eq!(test.echo(&s1), None);
    assert!(!test.can_reach(&s2, &s1) && !test.can_reach(&s1, &s2));
    assert_eq!(test.sh(&s1, "hostname"), "s1", "it can still be looked into");
    test.rack.kill(&s1).unwrap();
    assert_eq!(test.state(&s1), "killed+cut");
    test.rack.power_on(&s1).unwrap();
    assert_eq!(test.state(&s1), "cut");
    test.rack.freeze(&s1).unwrap();
    assert_eq!(test.state(&s1), "frozen+cut");
    test.rack.heal(&s1).unwrap();
    assert_eq!(test.state(&s1), "running");
    eventually(|| test.echo(&s1).is_some());
    assert!(test.can_reach(&s2, &s1));
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_loses_what_was_not() {
    let test = rack(2);
    let (s1, s2) = (server(1), server(2));
    test.sh(&s1, "cd /var/lib/kopek; echo flushed > flushed; sync");
    // Which services start at boot is flushed by whoever notes it.
    test.start_echo(&s1);
    test.sh(&s1, "echo lost > /var/lib/kopek/lost");
    test.rack.power_off(&s1).unwrap();
    assert_eq!(test.state(&s1), "powered-off");
    assert!(!test.can_reach(&s2, &s1), "nothing answers");
    test.rack.power_on(&s1).unwrap();
    assert_eq!(test.sh(&s1, "cat /var/lib/kopek/flushed"), "flushed");
    assert_eq!(test.sh(&s1, "cat /var/lib/kopek/lost 2>/dev/null || echo gone"), "gone");
    test.sh(&s1, "echo again > /var/lib/kopek/again; sync");
    eventually(|| test.echo(&s1).is_some());
}

#[test]
fn a_forwarder_leads_from_a_port_of_the_machine_into_the_rack() {
    let test = rack(1);
    let s1 = server(1);
    test.start_echo(&s1);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    test.rack.forward(port, (test.address(&s1), ECHO).into()).unwrap();
    assert_eq!(talk(port).unwrap(), "s1 hi");
    assert!(test.rack.status().unwrap().forwards[0].running);
    let again = test.rack.forward(port, (test.address(&s1), ECHO).into()).unwrap_err().to_string();
    assert_eq!(
        again,
        format!("{port} is in use: end the program that listens there, or choose another port")
    );
    Rack::down(&test.dir).unwrap();
    TcpListener::bind(port).expect("the forwarder has let its port go");
}

#[test]
fn a_server_whose_processes_somebody_killed_can_be_booted() {
    let test = rack(1);
    let s1 = server(1);
    test.start_echo(&s1);
    // As an instance does.
    let v2 = "$(awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts)$KOPEK_CGROUP/shop.1";
    test.sh(&s1, &format!("mkdir {v2}"));
    let init = test.rack.status().unwrap().servers[0].init.unwrap();
    Command::new("kill").args(["-KILL", &init.to_string()]).status().unwrap();
    eventually(|| test.state(&s1) == "killed");
    test.rack.power_on(&s1).unwrap();
    eventually(|| test.echo(&s1).is_some());
    assert_eq!(test.sh(&s1, &format!("ls -d {v2} 2>/dev/null || echo gone")), "gone");
}

#[test]
fn a_server_boots_while_network_namespaces_of_others_go() {
    let test = rack(1);
    let s1 = server(1);
    let ip = |words: &[&str]| assert!(Command::new("ip").args(words).status().unwrap().success());
    for _ in 0..5 {
        test.rack.kill(&s1).unwrap();
        let others: Vec<String> = (0..60).map(|number| format!("{}-{number}", test.rack.id())).collect();
        others.iter().for_each(|netns| ip(&["netns", "add", netns]));
        std::thread::scope(|scope| {
            // Oldest first: the boot meets them from the other end.
            scope.spawn(|| others.iter().for_each(|netns| ip(&["netns", "del", netns])));
            test.rack.power_on(&s1).unwrap();
        });
    }
}
