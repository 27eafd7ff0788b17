//! A few servers for tests: network namespaces on a bridge, each with its folders, certificates of one cell,
//! and a thread that lives in it. Everything goes when the rack is dropped.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kopek_core::ServerId;
use kopek_core::config::Dirs;
use kopek_link::{CellAuthority, Csr, Identity};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

pub struct Rack {
    tag: String,
    folder: tempfile::TempDir,
    authority: CellAuthority,
    subnet: u8,
    servers: usize,
}

pub struct Server {
    pub name: ServerId,
    pub address: IpAddr,
    pub dirs: Dirs,
    netns: String,
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

/// `tag` keeps racks of tests that run at the same time apart.
pub fn rack(tag: &str, subnet: u8) -> Rack {
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let folder = tempfile::Builder::new().prefix(&format!("kt-{tag}-")).tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let rack = Rack {
        tag: tag.to_owned(),
        folder,
        authority: CellAuthority::create("test").unwrap(),
        subnet,
        servers: 0,
    };
    rack.clear();
    ip(&["link", "add", &rack.bridge(), "type", "bridge"]);
    ip(&["link", "set", &rack.bridge(), "up"]);
    rack
}

impl Rack {
    pub fn server(&mut self) -> Server {
        self.servers += 1;
        let number = self.servers;
        let name = ServerId::parse(&format!("s{number}")).unwrap();
        let address: IpAddr = format!("10.93.{}.{number}", self.subnet).parse().unwrap();
        let netns = self.netns(number);
        let link = self.link(number);
        ip(&["netns", "add", &netns]);
        ip(&["-n", &netns, "link", "set", "lo", "up"]);
        ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &netns]);
        ip(&["link", "set", &link, "master", &self.bridge(), "up"]);
        ip(&["-n", &netns, "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        ip(&["-n", &netns, "link", "set", "eth0", "up"]);
        let at = |what: &str| self.folder.path().join(name.as_str()).join(what);
        let dirs = Dirs { etc: at("etc"), state: at("state"), run: at("run"), log: at("log") };
        for folder in [&dirs.etc, &dirs.state, &dirs.run, &dirs.log] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let csr = Csr::new().unwrap();
        let certificate = self.authority.issue_server(&csr.csr_pem, &name, &[address]).unwrap();
        Identity::write(&dirs.etc, self.authority.ca_pem(), &certificate, &csr.key_pem).unwrap();
        let (handle, stop) = living_in(&netns);
        Server { name, address, dirs, netns, handle, _stop: stop }
    }

    fn bridge(&self) -> String {
        format!("kt-{}-br", self.tag)
    }

    fn netns(&self, number: usize) -> String {
        format!("kt-{}-s{number}", self.tag)
    }

    fn link(&self, number: usize) -> String {
        format!("kt-{}{number}", self.tag)
    }

    /// Also what an earlier run left that was killed.
    fn clear(&self) {
        for number in 1..=5 {
            let netns = self.netns(number);
            if Path::new("/run/netns").join(&netns).exists() {
                for pid in pids_in(&netns) {
                    kill(pid);
                }
                ip(&["netns", "del", &netns]);
            }
            // A namespace lives on for a minute where a connection was cut, and its link with it.
            quietly(&["link", "del", &self.link(number)]);
        }
        quietly(&["link", "del", &self.bridge()]);
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Server {
    /// Does it on this server and gives back the result. Tasks that it spawns go on afterwards.
    pub fn run<T: Send + 'static>(&self, job: impl Future<Output = T> + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        self.handle.spawn(async move {
            let _ = done.send(job.await);
        });
        result.recv_timeout(Duration::from_secs(60)).expect("a job ends within a minute, without panic")
    }

    pub fn pids(&self) -> Vec<i32> {
        pids_in(&self.netns)
    }

    /// At once: none sees another die and cleans up.
    pub fn kill_everything(&self) {
        let pids = self.pids();
        for pid in &pids {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGSTOP);
        }
        pids.into_iter().for_each(kill);
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns, program]);
        command
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.dirs.log.join(format!("{name}.log"))
    }
}

/// A thread inside the namespace, running tasks. What they start is inside too.
fn living_in(netns: &str) -> (Handle, oneshot::Sender<()>) {
    let path = Path::new("/run/netns").join(netns);
    let (give, take) = std::sync::mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let namespace = std::fs::File::open(path).unwrap();
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        give.send(runtime.handle().clone()).unwrap();
        let _ = runtime.block_on(stopped);
    });
    (take.recv().unwrap(), stop)
}

/// Waits for a condition, asking every 20 ms.
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

/// Fails when there is nothing to do.
fn quietly(args: &[&str]) {
    let _ = Command::new("ip").args(args).stderr(std::process::Stdio::null()).status();
}

fn pids_in(netns: &str) -> Vec<i32> {
    let output = Command::new("ip").args(["netns", "pids", netns]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().filter_map(|line| line.trim().parse().ok()).collect()
}

pub fn kill(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
}
