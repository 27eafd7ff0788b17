//! A rack for one test, taken down with it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kopek_core::ServerId;
use kopek_core::units::Bytes;
use kopek_rack::{Rack, RackOptions, Service, ServiceOrder};

pub const ECHO: u16 = 4000;
const SOON: Duration = Duration::from_secs(10);

/// A rack that is taken down, and looked for, also when its test fails.
pub struct TestRack {
    pub rack: Rack,
    pub dir: PathBuf,
    /// Removed last, with what the test put beside the rack.
    pub _home: tempfile::TempDir,
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

pub fn options(servers: usize) -> RackOptions {
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

pub fn rack(servers: usize) -> TestRack {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("rack");
    let rack = Rack::create(&dir, options(servers)).unwrap();
    TestRack { rack, dir, _home: home }
}

impl TestRack {
    pub fn address(&self, server: &ServerId) -> Ipv4Addr {
        self.rack.status().unwrap().servers.iter().find(|s| s.name == *server).unwrap().address
    }

    pub fn state(&self, server: &ServerId) -> String {
        self.rack.state(server).unwrap().to_string()
    }

    pub fn sh(&self, server: &ServerId, script: &str) -> String {
        let out = self.rack.output(server, &["sh", "-c", script]).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(out.status.success(), "{script}: {} {}", text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    pub fn start_echo(&self, server: &ServerId) {
        self.rack.service(server, "echo", ServiceOrder::Start).unwrap();
        eventually(|| self.echo(server).is_some());
    }

    /// What the echo service of the server answers to the machine.
    pub fn echo(&self, server: &ServerId) -> Option<String> {
        talk((self.address(server), ECHO).into())
    }

    /// Whether `to` answers ARP, as its kernel does as long as its network is up. (Debian installs no ping.)
    pub fn can_reach(&self, from: &ServerId, to: &ServerId) -> bool {
        let script = format!(
            "ip neigh flush dev eth0; (echo > /dev/tcp/{to}/9) 2> /dev/null; ip neigh show {} | grep -q lladdr",
            self.address(to)
        );
        self.rack.output(from, &["timeout", "5", "bash", "-c", &script]).unwrap().status.success()
    }
}

pub fn server(number: usize) -> ServerId {
    ServerId::parse(&format!("s{number}")).unwrap()
}

pub fn talk(to: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(300)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.write_all(b"hi").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

#[track_caller]
pub fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
