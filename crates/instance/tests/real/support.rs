//! A server for a test: the test's thread gets network and mount namespaces of its own, a folder for state,
//! and built images. What a test starts is removed with its `Server`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use kopek_core::desired::{Internet, Limits};
use kopek_core::{ImageName, InstanceId, SiteName};
use kopek_instance::{InstanceSpec, Running, Who, build_image, clean, exec_command, leftovers, probe, start};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const CACHE: &str = "/var/cache/kopek";

pub struct Server {
    pub work: tempfile::TempDir,
    cgroup: PathBuf,
    next_address: std::cell::Cell<u8>,
}

impl Server {
    pub fn new() -> Server {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("tests of instances need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        run("ip link set lo up");
        let work = tempfile::tempdir().unwrap();
        std::fs::create_dir(work.path().join("sql")).unwrap();
        let cgroup = Path::new("/kopek-test").join(work.path().file_name().unwrap());
        Server { work, cgroup, next_address: 1.into() }
    }

    /// A specification of an instance of `site`; its volume is made.
    pub fn spec(&self, image: &str, site: &str, number: u32) -> InstanceSpec {
        let octet = self.next_address.replace(self.next_address.get() + 1);
        let id = InstanceId::new(&SiteName::parse(site).unwrap(), u64::from(octet));
        let work = self.work.path();
        let volume = work.join("volumes").join(site);
        std::fs::create_dir_all(&volume).unwrap();
        std::os::unix::fs::chown(&volume, Some(33), Some(33)).unwrap();
        InstanceSpec {
            number,
            image_root: unpacked(image),
            volume,
            sql_socket_dir: work.join("sql"),
            dir: work.join("instances").join(id.as_str()),
            netns: work.join("netns").join(id.as_str()),
            log: work.join("log").join(format!("{id}.log")),
            limits: Limits { internet: Internet::Reachable, ..Limits::default() },
            cgroup: self.cgroup.join(id.as_str()),
            address: Ipv4Addr::new(10, 201, 0, octet),
            resolvers: Vec::new(),
            hostname: site.to_owned(),
            id,
        }
    }

    /// Starts it and waits until it answers.
    pub fn start(&self, spec: &InstanceSpec) -> Instance {
        let running = start(spec, &launcher()).unwrap_or_else(|error| panic!("{error}: {error:?}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = SocketAddr::from((spec.address, 80));
        if let Err(error) = runtime.block_on(probe(address, Duration::from_secs(15))) {
            panic!("{error}: {}", std::fs::read_to_string(&spec.log).unwrap_or_default());
        }
        Instance { running, address, spec: spec.clone() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let instances = self.work.path().join("instances");
        for id in leftovers(&instances) {
            let _ = clean(&instances.join(id.as_str()));
        }
        for folder in cgroup_folders(&self.cgroup) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// The folders of a control group, in every hierarchy, that exist.
pub fn cgroup_folders(cgroup: &Path) -> Vec<PathBuf> {
    let cgroup = cgroup.strip_prefix("/").unwrap();
    let mounts = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    mounts
        .chain([PathBuf::from("/sys/fs/cgroup")])
        .map(|mount| mount.join(cgroup))
        .filter(|folder| folder.exists())
        .collect()
}

pub struct Instance {
    pub running: Running,
    pub address: SocketAddr,
    pub spec: InstanceSpec,
}

impl Instance {
    /// The answer to a GET, head and all.
    pub fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = self.request(path, headers);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn request(&self, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: shop.test\r\n{headers}\r\n").unwrap();
        stream
    }

    pub fn write(&self, path: &str, text: &str) {
        std::fs::write(self.spec.volume.join(path), text).unwrap();
    }

    pub fn exec(&self, who: Who, argv: &[&str]) -> Output {
        let argv: Vec<String> = argv.iter().map(|word| word.to_string()).collect();
        exec_command(&self.running, &launcher(), who, &argv).output().unwrap()
    }

    /// What a line of PHP prints, run by www-data.
    pub fn php(&self, code: &str) -> String {
        let output = self.exec(Who::WwwData, &["php", "-r", code]);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// "open", or why a TCP connection from inside was not made.
    pub fn connects(&self, address: &str, port: u16) -> String {
        self.php(&format!("echo @fsockopen('{address}', {port}, $n, $why, 1) ? 'open' : $why;"))
    }
}

/// A binary whose `main` begins with `reexec`, as `kopek` does.
pub fn launcher() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().with_file_name("examples").join("start_times")
}

/// The image's tree, built and unpacked once for all tests of this machine.
pub fn unpacked(image: &str) -> PathBuf {
    let name = ImageName::parse(image).unwrap();
    let built = build_image(&name, Path::new(CACHE), &mut |_| ()).unwrap_or_else(|error| panic!("{error}"));
    let folder = Path::new(CACHE).join("unpacked").join(built.digest.as_str());
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    let _held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let root = folder.join("root");
    if !root.exists() {
        let draft = folder.join("draft");
        let _ = std::fs::remove_dir_all(&draft);
        std::fs::create_dir(&draft).unwrap();
        run(&format!("tar -C {} --zstd --numeric-owner -xpf {}", draft.display(), built.packed.display()));
        std::fs::rename(draft, &root).unwrap();
    }
    root
}

pub fn run(shell: &str) -> String {
    let output = Command::new("sh").args(["-ec", shell]).output().unwrap();
    assert!(output.status.success(), "{shell}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !holds() {
        assert!(Instant::now() < end, "{what}: waited 15 s in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}
