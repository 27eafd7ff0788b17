//! Making a rack, taking it down, and what is left when either was interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kopek_rack::{Rack, RackError, Removed, ServiceOrder};

use crate::rack::{ECHO, TestRack, eventually, options, rack, server};

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
