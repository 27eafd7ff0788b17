//! Starting, stopping, and what is left.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use kopek_instance::{InstanceSpec, Running, Stopped, adopt, clean, connect, leftovers, start, stop};

use crate::support::{self, Server, cgroup_folders, launcher, run, until};

/// Everything that an instance could have left, by name; empty when there is nothing.
fn traces(spec: &InstanceSpec) -> Vec<String> {
    let mut traces = Vec::new();
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    traces.extend(mounts.lines().filter(|line| line.contains(spec.id.as_str())).map(str::to_owned));
    traces.extend(
        [&spec.dir, &spec.netns]
            .into_iter()
            .filter(|path| path.exists())
            .map(|path| path.display().to_string()),
    );
    traces.extend(cgroup_folders(&spec.cgroup).iter().map(|path| path.display().to_string()));
    traces.extend(run("ip -o link").lines().filter(|line| line.contains(": kp")).map(str::to_owned));
    traces
}

#[test]
fn a_running_instance_shows_no_mount_outside_and_nothing_is_left_after_its_stop() {
    let server = Server::new();
    for image in ["php8.2-apache", "php8.2-nginx"] {
        let shop = server.start(&server.spec(image, "shop", 3));
        assert!(
            traces(&shop.spec).len() > 4,
            "the traces that are looked for do not exist: {:?}",
            traces(&shop.spec)
        );
        let upper = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        assert!(!upper.contains("overlay"), "{upper}");
        assert_eq!(stop(&shop.running, Duration::from_secs(5)).unwrap(), Stopped::Gracefully, "{image}");
        assert_eq!(traces(&shop.spec), Vec::<String>::new());
        clean(&shop.spec.dir).unwrap();
    }
}

#[test]
fn a_stop_lets_a_request_finish() {
    let server = Server::new();
    for image in ["php8.2-apache", "php8.2-nginx"] {
        let shop = server.start(&server.spec(image, "shop", 3));
        shop.write("slow.php", "<?php touch('begun'); usleep(700000); echo 'finished';");
        let mut request = shop.request("/slow.php", "");
        until("the request has begun", || shop.spec.volume.join("begun").exists());
        let stopped = std::thread::scope(|scope| {
            let stopping = scope.spawn(|| stop(&shop.running, Duration::from_secs(10)).unwrap());
            let mut answer = String::new();
            request.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with("finished"), "{image}: {answer:?}");
            stopping.join().unwrap()
        });
        assert_eq!(stopped, Stopped::Gracefully, "{image}");
        std::fs::remove_file(shop.spec.volume.join("begun")).unwrap();
    }
}

#[test]
fn a_request_that_takes_longer_than_the_grace_is_cut() {
    let server = Server::new();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    shop.write("slow.php", "<?php touch('begun'); sleep(30);");
    let _request = shop.request("/slow.php", "");
    until("the request has begun", || shop.spec.volume.join("begun").exists());
    let begun = Instant::now();
    assert_eq!(stop(&shop.running, Duration::from_millis(300)).unwrap(), Stopped::Killed);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(traces(&shop.spec), Vec::<String>::new());
}

#[test]
fn a_restarted_agent_finds_what_runs_and_cleans_what_does_not() {
    let server = Server::new();
    let shop = server.start(&server.spec("php8.2-apache", "shop", 3));
    assert_eq!(adopt(&shop.spec), Some(shop.running.clone()));
    // Another process by now has the id.
    let note = shop.spec.dir.join("running.json");
    let stranger = Running { started_at: shop.running.started_at + 1, ..shop.running.clone() };
    std::fs::write(&note, serde_json::to_vec(&stranger).unwrap()).unwrap();
    assert_eq!(adopt(&shop.spec), None);
    std::fs::write(&note, serde_json::to_vec(&shop.running).unwrap()).unwrap();
    assert_eq!(leftovers(shop.spec.dir.parent().unwrap()), vec![shop.spec.id.clone()]);
    run(&format!("kill -9 {}", shop.running.pid));
    until("it has ended", || adopt(&shop.spec).is_none());
    clean(&shop.spec.dir).unwrap();
    assert_eq!(traces(&shop.spec), Vec::<String>::new());
    assert_eq!(adopt(&shop.spec), None);
}

#[test]
fn a_start_that_broke_off_anywhere_is_cleaned_and_can_be_repeated() {
    let server = Server::new();
    let spec = server.spec("php8.2-apache", "shop", 3);
    // As if the agent had died after the network, and again with a container half made.
    connect(&spec).unwrap();
    std::fs::create_dir_all(spec.dir.join("upper/etc")).unwrap();
    std::fs::write(spec.dir.join("spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
    for folder in ["memory", "pids", ""] {
        let folder = Path::new("/sys/fs/cgroup").join(folder).join(spec.cgroup.strip_prefix("/").unwrap());
        if folder
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .parent()
            .is_some_and(|top| top.join("cgroup.procs").exists())
        {
            std::fs::create_dir_all(folder).unwrap();
        }
    }
    clean(&spec.dir).unwrap();
    assert_eq!(traces(&spec), Vec::<String>::new());
    connect(&spec).unwrap();
    connect(&spec).unwrap();
    let shop = server.start(&spec);
    // The first one does not stand in the way of a second with the same id.
    let again = server.start(&spec);
    assert_ne!(again.running, shop.running);
    assert_eq!(adopt(&spec), Some(again.running));
}

#[test]
fn a_start_that_fails_says_why_and_leaves_nothing() {
    let server = Server::new();
    let mut spec = server.spec("php8.2-apache", "shop", 3);
    spec.image_root = server.work.path().join("volumes");
    let error = start(&spec, &launcher()).unwrap_err().to_string();
    assert!(error.contains("shop.1 cannot start") && error.contains("no Kopek image"), "{error}");
    assert_eq!(traces(&spec), Vec::<String>::new());
    spec.image_root = server.work.path().join("nowhere");
    let error = start(&spec, &launcher()).unwrap_err().to_string();
    assert!(error.ends_with("nowhere is missing; pour it here first"), "{error}");
    spec.image_root = support::unpacked("php8.2-apache");
    let error = start(&spec, Path::new("/bin/false")).unwrap_err().to_string();
    assert!(error.contains("the launcher /bin/false does not run"), "{error}");
    assert_eq!(traces(&spec), Vec::<String>::new());
}

/// As on the virtual rack: process, mount and network namespaces, a disk in a file, and a v2 group that must
/// still hold the container, since killing the group means killing the server.
#[test]
fn it_starts_on_a_virtual_server_and_dies_with_its_group() {
    let image = support::unpacked("php8.2-apache");
    let work = tempfile::tempdir().unwrap();
    let disk = work.path().join("disk");
    run(&format!("truncate -s 512M {0}; mkfs.ext4 -q {0}; mkdir {0}.on", disk.display()));
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .map(Path::new)
        .into_iter()
        .find(|mount| mount.join("cgroup.procs").exists())
        .unwrap();
    let group = unified.join(format!("kopek-test-{}", std::process::id()));
    std::fs::create_dir(&group).unwrap();
    let script = format!(
        "echo 0 > {group}/cgroup.procs; exec unshare --pid --mount --net --fork --mount-proc sh -ec '\
         ip link set lo up; mount -o loop {disk} {disk}.on; {launcher} {image} {disk}.on 2; touch {done}; {launcher} {image} {disk}.on 1 stay'",
        group = group.display(),
        disk = disk.display(),
        launcher = launcher().display(),
        image = image.display(),
        done = work.path().join("done").display(),
    );
    let mut server = std::process::Command::new("sh").args(["-ec", &script]).spawn().unwrap();
    until("two starts were measured", || {
        assert!(server.try_wait().unwrap().is_none(), "the virtual server ended");
        work.path().join("done").exists()
    });
    let apaches = || {
        let tasks = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        let is_apache = |pid: &&str| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "apache2\n")
        };
        tasks.lines().filter(is_apache).count()
    };
    until("the container is in the server's group", || apaches() >= 3);
    std::fs::write(group.join("cgroup.kill"), "1").unwrap();
    server.wait().unwrap();
    until("everything has ended", || std::fs::remove_dir(&group).is_ok());
    for folder in cgroup_folders(Path::new("/kopek-bench")) {
        until("its groups are empty", || {
            run(&format!(
                "find {} -mindepth 1 -depth -type d -exec rmdir {{}} ';' 2>/dev/null || true",
                folder.display()
            ));
            std::fs::remove_dir(&folder).is_ok() || !folder.exists()
        });
    }
}
