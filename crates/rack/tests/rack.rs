//! A virtual rack on this machine, as root, with the real kernel. Each test has a rack of its own in a folder of its
//! own, and ends by looking that nothing of it is left.

// Helpers of tests may unwrap as the tests themselves do.
#![cfg(test)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kopek_core::ServerId;
use kopek_core::units::Bytes;
use kopek_rack::{Rack, RackError, RackOptions, Removed, Service, ServiceOrder, ServicePhase};

const ECHO: u16 = 4000;
const SOON: Duration = Duration::from_secs(10);

/// A rack that is taken down, and looked for, also when its test fails.
struct TestRack {
    rack: Rack,
    dir: PathBuf,
    /// Removed last, with what the test put beside the rack.
    _home: tempfile::TempDir,
}

impl Drop for TestRack {
    fn drop(&mut self) {
        let down = Rack::down(&self.dir);
        let left = Rack::leftovers(&self.dir);
        if !std::thread::panicking() {
            down.unwrap();
            assert_eq!(left, [""; 0], "left behind");
        }
    }
}

fn options(servers: usize) -> RackOptions {
    let service = |name: &str, words: &[&str]| Service {
        name: name.to_owned(),
        argv: words.iter().map(|&word| word.to_owned()).collect(),
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
    };
    let program = env!("CARGO_BIN_EXE_kopek-rack-test");
    let mut options = RackOptions::new(servers);
    options.disk = Bytes::mib(128);
    options.program = Some(program.into());
    options.services = vec![
        service("echo", &[program, "echo", "4000"]),
        service("sleep", &["sleep", "1000"]),
        service("die", &[program, "die"]),
        // The first takes longer to end than the second.
        service(
            "first",
            &[
                "sh",
                "-c",
                "trap 'sleep 0.5; echo first >> /var/lib/kopek/ended; exit' TERM; while :; do sleep 0.1; done",
            ],
        ),
        service(
            "second",
            &[
                "sh",
                "-c",
                "trap 'echo second >> /var/lib/kopek/ended; exit' TERM; while :; do sleep 0.1; done",
            ],
        ),
        service("stubborn", &["sh", "-c", "trap '' TERM; sleep 1000 & while :; do wait; done"]),
    ];
    options
}

fn rack(servers: usize) -> TestRack {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("rack");
    let rack = Rack::create(&dir, options(servers)).unwrap();
    TestRack { rack, dir, _home: home }
}

impl TestRack {
    fn address(&self, server: &ServerId) -> Ipv4Addr {
        self.rack.status().unwrap().servers.iter().find(|s| s.name == *server).unwrap().address
    }

    fn state(&self, server: &ServerId) -> String {
        self.rack.state(server).unwrap().to_string()
    }

    fn sh(&self, server: &ServerId, script: &str) -> String {
        let out = self.rack.output(server, &["sh", "-c", script]).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(out.status.success(), "{script}: {} {}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    fn start_echo(&self, server: &ServerId) {
        self.rack.service(server, "echo", ServiceOrder::Start).unwrap();
        eventually(|| self.echo(server).is_some());
    }

    /// What the echo service of the server answers to the machine.
    fn echo(&self, server: &ServerId) -> Option<String> {
        talk((self.address(server), ECHO).into())
    }

    /// Whether `to` answers ARP, as its kernel does as long as its network is up. (Debian installs no ping.)
    fn can_reach(&self, from: &ServerId, to: &ServerId) -> bool {
        let script = format!(
            "ip neigh flush dev eth0; (echo > /dev/tcp/{to}/9) 2> /dev/null; ip neigh show {} | grep -q lladdr",
            self.address(to)
        );
        self.rack.output(from, &["timeout", "5", "bash", "-c", &script]).unwrap().status.success()
    }
}

fn server(number: usize) -> ServerId {
    ServerId::parse(&format!("s{number}")).unwrap()
}

fn talk(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(300)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.write_all(b"hi").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

#[track_caller]
fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Mounts, namespaces, interfaces, loop devices in use, and cgroups of the machine. Tests run beside one another, so
/// only what names `id` or `dir` counts, and mounts of other racks' disks are theirs.
fn machine(id: &str, dir: &Path) -> BTreeSet<String> {
    let text = |command: &str| {
        let out = Command::new("sh").args(["-c", command]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let everything = [
        fs::read_to_string("/proc/self/mounts").unwrap(),
        text(
            "ip -o link; ip -o addr; ls /run/netns; losetup -a; find /sys/fs/cgroup -type d; ls -d /var/lib/*",
        ),
        text("ps -eo pid,args | grep -v 'ps -eo' | grep -v rack-"),
    ];
    let dir = dir.display().to_string();
    let ours = |line: &&str| line.contains(id) || line.contains(&dir);
    everything.iter().flat_map(|text| text.lines()).filter(ours).map(str::to_owned).collect()
}

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
fn two_racks_stand_side_by_side_and_one_goes_without_the_other() {
    let (first, second) = (rack(1), rack(1));
    let s1 = server(1);
    first.start_echo(&s1);
    second.start_echo(&s1);
    assert_ne!(first.rack.id(), second.rack.id());
    assert_ne!(first.address(&s1), second.address(&s1));
    drop(first);
    assert_eq!(second.echo(&s1).unwrap(), "s1 hi");
    second.rack.kill(&s1).unwrap();
    second.rack.power_on(&s1).unwrap();
    eventually(|| second.echo(&s1).is_some());
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
fn down_leaves_nothing_behind_and_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("rack");
    let test = Rack::create(&dir, options(2)).unwrap();
    test.service(&server(1), "echo", ServiceOrder::Start).unwrap();
    assert!(machine(test.id(), &dir).len() > 6, "the look sees a rack: {:#?}", machine(test.id(), &dir));
    assert!(Rack::leftovers(&dir).len() > 6);
    assert_eq!(Rack::down(&dir).unwrap(), Removed::Rack);
    assert_eq!(machine(test.id(), &dir), BTreeSet::new());
    assert_eq!(Rack::leftovers(&dir), [""; 0]);
    assert!(!dir.exists());
    assert_eq!(Rack::down(&dir).unwrap(), Removed::Nothing);
}

#[test]
fn down_removes_what_is_left_after_a_kill_of_everything() {
    let test = rack(2);
    test.start_echo(&server(1));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    test.rack.forward(port, (test.address(&server(1)), ECHO).into()).unwrap();
    let processes: Vec<String> = Rack::leftovers(&test.dir)
        .iter()
        .filter_map(|line| Some(line.strip_prefix("process ")?.split(' ').next()?.to_owned()))
        .collect();
    assert!(processes.len() >= 4, "{processes:?}");
    Command::new("kill").arg("-KILL").args(&processes).status().unwrap();
    eventually(|| test.state(&server(1)) == "killed");
    assert_eq!(Rack::down(&test.dir).unwrap(), Removed::Rack);
    assert_eq!(Rack::leftovers(&test.dir), [""; 0]);
}

#[test]
fn servers_outlive_the_command_that_booted_them() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("rack");
    let up = Command::new(env!("CARGO_BIN_EXE_kopek-rack-test")).arg("up").arg(&dir).status().unwrap();
    assert!(up.success());
    let test = TestRack { rack: Rack::open(&dir).unwrap(), dir, _home: home };
    assert_eq!(test.state(&server(1)), "running");
    let init = test.rack.status().unwrap().servers[0].init.unwrap();
    // What a terminal hangs up is its session.
    let session = |process: &str| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        stat[stat.rfind(')').unwrap() + 2..].split(' ').nth(3).unwrap().to_owned()
    };
    assert_ne!(session(&init.to_string()), session("self"));
}

#[test]
fn down_removes_what_an_up_had_made_when_it_was_killed() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("rack");
    // Spread over the second that a whole `up` takes.
    for step in 0..25 {
        let mut up = Command::new(env!("CARGO_BIN_EXE_kopek-rack-test")).arg("up").arg(&dir).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(step * 20));
        up.kill().unwrap();
        up.wait().unwrap();
        Rack::down(&dir).unwrap();
        assert_eq!(Rack::leftovers(&dir), [""; 0], "killed after {} ms", step * 20);
    }
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

#[test]
fn a_rack_that_cannot_boot_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("rack");
    let mut options = options(1);
    options.program = Some("/bin/true".into());
    let error = Rack::create(&dir, options).unwrap_err().to_string();
    assert!(error.starts_with("s1 did not boot: "), "{error}");
    assert_eq!(Rack::leftovers(&dir), [""; 0]);
    assert!(!dir.exists());
}

#[test]
fn a_half_made_rack_and_a_damaged_record_are_taken_down() {
    let test = rack(1);
    fs::write(test.dir.join("rack.json"), "{").unwrap();
    fs::write(test.dir.join("rack.json.new"), "{").unwrap();
    let damaged = Rack::open(&test.dir).unwrap_err().to_string();
    assert!(damaged.contains("is damaged"), "{damaged}");
    assert_eq!(Rack::down(&test.dir).unwrap(), Removed::Rack);
    assert_eq!(Rack::leftovers(&test.dir), [""; 0]);
    fs::create_dir(&test.dir).unwrap();
    fs::write(test.dir.join("rack.json.new"), "{").unwrap();
    assert_eq!(Rack::down(&test.dir).unwrap(), Removed::Nothing);
}

#[test]
fn a_folder_that_is_no_rack_is_refused_and_kept() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("letter"), "dear").unwrap();
    assert!(matches!(Rack::down(home.path()), Err(RackError::NotARack { .. })));
    assert!(matches!(Rack::open(home.path()), Err(RackError::NotARack { .. })));
    assert!(matches!(Rack::create(home.path(), options(1)), Err(RackError::DirInUse { .. })));
    assert_eq!(fs::read_to_string(home.path().join("letter")).unwrap(), "dear");
}

#[test]
fn a_second_rack_in_the_same_folder_is_refused() {
    let test = rack(1);
    assert!(matches!(Rack::create(&test.dir, options(1)), Err(RackError::AlreadyARack { .. })));
    assert_eq!(test.state(&server(1)), "running");
}

#[test]
fn what_the_machine_lacks_is_said_before_anything_is_made() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("rack");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    assert!(matches!(kopek_rack::preflight(&dir, 1, Some(address)), Err(RackError::PortInUse { .. })));
    assert!(matches!(
        kopek_rack::preflight(&dir, 80, None),
        Err(RackError::DiskTooSmall { .. } | RackError::MemoryTooSmall { .. })
    ));
    assert!(matches!(Rack::create(&dir, options(0)), Err(RackError::ServerCount { .. })));
    assert!(!dir.exists());
}
