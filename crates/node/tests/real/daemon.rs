//! Daemons that outlive the agent, with real processes.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use kopek_core::config::Dirs;
use kopek_node::daemon::{Account, Backoff, Daemon, DaemonError, Life, Program, Supervised, log_file};

fn dirs() -> (tempfile::TempDir, Dirs) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let dirs = Dirs { etc: at("etc"), state: at("state"), run: at("run"), log: at("log") };
    (folder, dirs)
}

fn shell(script: &str) -> Program {
    Program {
        name: "try",
        executable: "sh",
        package: "dash",
        args: vec!["-c".into(), script.into()],
        environment: Vec::new(),
        account: None,
    }
}

async fn running(supervised: &Supervised) -> i32 {
    let mut life = supervised.life();
    let running = life.wait_for(|life| matches!(life, Life::Running { .. })).await.unwrap().clone();
    let Life::Running { pid } = running else { unreachable!() };
    pid
}

#[tokio::test]
async fn a_daemon_outlives_its_supervisor_and_is_adopted() {
    let (_folder, dirs) = dirs();
    let first = Supervised::keep(&dirs, shell("exec sleep 600"), || ());
    let pid = running(&first).await;
    drop(first);
    tokio::task::yield_now().await;
    let second =
        Supervised::keep(&dirs, shell("exec sleep 600"), || panic!("an adopted daemon is not prepared"));
    assert_eq!(running(&second).await, pid);
    second.stop(Duration::from_secs(5)).await;
    assert!(Daemon::adopt(&dirs, "try").is_none());
    assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
}

#[tokio::test]
async fn a_stranger_with_the_same_pid_is_not_adopted() {
    let (_folder, dirs) = dirs();
    let daemon = Daemon::start(&dirs, &shell("exec sleep 600")).unwrap();
    let file = dirs.run.join("try.pid");
    let honest = std::fs::read_to_string(&file).unwrap();
    assert!(Daemon::adopt(&dirs, "try").is_some());
    let mut fields: Vec<&str> = honest.split(' ').collect();
    let start_time = fields.len() - 52 + 21;
    fields[start_time] = "1";
    std::fs::write(&file, fields.join(" ")).unwrap();
    assert!(Daemon::adopt(&dirs, "try").is_none());
    daemon.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_killed_daemon_starts_again() {
    let (_folder, dirs) = dirs();
    let supervised = Supervised::keep(&dirs, shell("exec sleep 600"), || ());
    let pid = running(&supervised).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    let mut life = supervised.life();
    let dead = life.wait_for(|life| matches!(life, Life::BackOff { .. })).await.unwrap().clone();
    assert!(matches!(&dead, Life::BackOff { why } if why.contains("signal: 9")), "{dead:?}");
    assert_ne!(running(&supervised).await, pid);
    supervised.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn one_that_does_not_heed_sigterm_is_killed_after_its_grace() {
    let (_folder, dirs) = dirs();
    let mut program = shell("trap '' TERM; echo deaf; while :; do sleep 1; done");
    program.account = Some(Account { uid: 65_534, gid: 65_534 });
    let daemon = Daemon::start(&dirs, &program).unwrap();
    let pid = daemon.pid();
    while !std::fs::read_to_string(log_file(&dirs, "try")).unwrap().contains("deaf") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 65_534);
    assert_eq!(nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap().as_raw(), pid);
    daemon.stop(Duration::from_millis(200)).await;
    assert!(!std::path::Path::new(&format!("/proc/{pid}/exe")).exists());
}

#[tokio::test]
async fn a_log_beyond_its_bound_is_cut_and_kept_once() {
    let (_folder, dirs) = dirs();
    std::fs::create_dir_all(&dirs.log).unwrap();
    let log = log_file(&dirs, "try");
    std::fs::write(&log, vec![b'x'; 11 << 20]).unwrap();
    let mut daemon = Daemon::start(&dirs, &shell("exec sleep 600")).unwrap();
    let cut = async {
        while std::fs::metadata(&log).unwrap().len() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = daemon.ended() => panic!("it runs"),
        () = cut => (),
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the log was not cut"),
    }
    assert_eq!(std::fs::metadata(log.with_extension("log.1")).unwrap().len(), 11 << 20);
    daemon.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_daemon_inherits_nothing_and_takes_along_what_it_started() {
    let (_folder, dirs) = dirs();
    let mut program = shell("env; sleep 600 & echo started=$!; exec sleep 600");
    program.environment = vec![("GIVEN", "1".into())];
    let daemon = Daemon::start(&dirs, &program).unwrap();
    let log = log_file(&dirs, "try");
    let started = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if let Some((variables, started)) = text.split_once("started=")
            && let Some(started) = started.strip_suffix('\n')
        {
            let mut names: Vec<&str> =
                variables.lines().map(|line| line.split_once('=').unwrap().0).collect();
            names.sort_unstable();
            // The shell adds PWD.
            assert_eq!(names, ["GIVEN", "LC_ALL", "PATH", "PWD"]);
            break started.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let runs = || std::path::Path::new(&format!("/proc/{started}/exe")).exists();
    assert!(runs());
    daemon.stop(Duration::from_secs(5)).await;
    let ended = async {
        while runs() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the end of what it started");
}

#[tokio::test]
async fn a_missing_program_names_its_package() {
    let (_folder, dirs) = dirs();
    let program = Program { executable: "kopek-no-such", package: "some-package", ..shell("") };
    let error = Daemon::start(&dirs, &program).unwrap_err();
    assert!(matches!(error, DaemonError::Missing { .. }));
    assert_eq!(error.to_string(), "kopek-no-such is not installed; run: apt-get install some-package");
}

#[test]
fn restarts_slow_down_and_forgive() {
    let mut backoff = Backoff::default();
    let waits: Vec<u128> = (0..11).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
    assert_eq!(waits, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
    assert_eq!(backoff.after(Duration::from_secs(10)).as_millis(), 100);
}
