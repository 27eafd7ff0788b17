//! A rack as a whole: making it, and booting its servers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use kopek_core::ServerId;
use kopek_core::units::Bytes;

use crate::cgroup::Group;
use crate::error::{Doing, RackError};
use crate::init::BootSpec;
use crate::names::Names;
use crate::network;
use crate::preflight::preflight;
use crate::record::{Lock, Power, Process, Record, ServerRecord, Service};
use crate::{CGROUP_VARIABLE, disk, enter};

/// Two, so that two edges carry visitors.
const VIPS: u8 = 2;
const DISK: Bytes = Bytes::mib(8192);
/// Replaying a journal of a full disk on a slow machine takes seconds, never this long.
const BOOT_WAIT: Duration = Duration::from_secs(60);

/// How to make a rack.
#[derive(Debug, Clone)]
pub struct RackOptions {
    pub servers: usize,
    /// Size of each server's disk; takes space as it fills.
    pub disk: Bytes,
    /// What each server's init can run; none is started before [`Rack::service`] says so.
    pub services: Vec<Service>,
    /// Environment of services and of executed commands, over PATH, HOME and LANG.
    pub env: BTreeMap<String, String>,
    /// The binary with the subcommands `dev-init` and `dev-forward`; unset: the running one.
    pub program: Option<PathBuf>,
}

impl RackOptions {
    pub fn new(servers: usize) -> RackOptions {
        RackOptions { servers, disk: DISK, services: Vec::new(), env: BTreeMap::new(), program: None }
    }
}

/// A rack that exists. Every method that changes it holds the rack's lock while it does.
#[derive(Debug, Clone)]
pub struct Rack {
    pub(crate) names: Names,
}

impl Rack {
    /// Makes a rack in `dir` and boots its servers `s1`, `s2`, … Leaves nothing if it fails.
    pub fn create(dir: &Path, options: RackOptions) -> Result<Rack, RackError> {
        preflight(dir, options.servers, None)?;
        fs::create_dir_all(dir).doing(|| format!("make {}", dir.display()))?;
        let dir = dir.canonicalize().doing(|| format!("look at {}", dir.display()))?;
        let rack = Rack { names: Names::of(&dir) };
        let lock = Lock::take(&dir)?;
        refuse_used(&rack.names)?;
        let made = rack.make(options);
        drop(lock);
        if let Err(error) = made {
            // The first error is the one that helps; what this one could not remove, `down` will.
            let _ = Rack::down(&dir);
            return Err(error);
        }
        Ok(rack)
    }

    pub fn open(dir: &Path) -> Result<Rack, RackError> {
        let not_a_rack = |_| RackError::NotARack { dir: dir.to_owned() };
        let dir = dir.canonicalize().map_err(not_a_rack)?;
        let mut names = Names::of(&dir);
        names.id = Record::read(&names.record())?.id;
        Ok(Rack { names })
    }

    /// The rack's short id, part of every name it has on the machine.
    pub fn id(&self) -> &str {
        &self.names.id
    }

    pub fn dir(&self) -> &Path {
        &self.names.dir
    }

    fn make(&self, options: RackOptions) -> Result<(), RackError> {
        let program = match options.program {
            Some(program) => program,
            None => std::env::current_exe().doing(|| "find the running binary")?,
        };
        let machine_lock = Lock::machine()?;
        let subnet = network::free_subnet()?;
        let server = |index: usize| ServerRecord {
            name: ServerId::parse(&format!("s{}", index + 1)).expect("s and a number is a server name"),
            address: subnet.server(index),
            power: Power::Killed,
            init: None,
        };
        let mut record = Record {
            id: self.names.id.clone(),
            subnet,
            program,
            env: options.env,
            services: options.services,
            servers: (0..options.servers).map(server).collect(),
            vips: (0..VIPS).map(|index| subnet.vip(index)).collect(),
            forwards: Vec::new(),
        };
        record.write(&self.names)?;
        network::raise_bridge(&self.names, subnet)?;
        drop(machine_lock);
        for index in 0..record.servers.len() {
            let name = record.servers[index].name.clone();
            disk::make(&self.names.image(&name), options.disk)?;
            self.boot(&mut record, &name)?;
        }
        Ok(())
    }

    /// Boots a server that is off. The record is written with it.
    pub(crate) fn boot(&self, record: &mut Record, name: &ServerId) -> Result<(), RackError> {
        let server = record.server(name)?.clone();
        let cable = network::cable(&self.names, name);
        disk::wait_released(&self.names.image(name))?;
        network::raise_bridge(&self.names, record.subnet)?;
        network::wire(&self.names, name, server.address, cable)?;
        let group = self.group(name)?;
        group.create()?;
        let init = start_init(record, &self.boot_spec(record, &server), &group);
        let init = init.map_err(|why| RackError::BootFailed { server: name.clone(), why });
        if init.is_err() {
            group.kill()?;
        }
        let server = record.server_mut(name)?;
        server.init = Some(init?);
        server.power = Power::Running;
        record.write(&self.names)
    }

    fn boot_spec(&self, record: &Record, server: &ServerRecord) -> BootSpec {
        BootSpec {
            server: server.name.clone(),
            netns: network::netns_file(&self.names, &server.name),
            image: self.names.image(&server.name),
            hosts: hosts(record),
            env: self.environment(record, &server.name),
            services: record.services.clone(),
        }
    }

    /// What a server's processes find in their environment.
    pub(crate) fn environment(&self, record: &Record, server: &ServerId) -> BTreeMap<String, String> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let cgroup = format!("/{}", self.names.server_cgroup(server));
        let usual = [("PATH", path), ("HOME", "/root"), ("LANG", "C.UTF-8"), (CGROUP_VARIABLE, &cgroup)];
        let usual = usual.map(|(key, value)| (key.to_owned(), value.to_owned()));
        usual.into_iter().chain(record.env.clone()).collect()
    }

    pub(crate) fn group(&self, server: &ServerId) -> Result<Group, RackError> {
        Group::named(&self.names.server_cgroup(server))
    }

    /// The init of a server that is able to act.
    pub(crate) fn running_init(&self, server: &ServerId) -> Result<Process, RackError> {
        let record = self.record()?;
        let found = record.server(server)?;
        let state = self.state_of(found);
        let remedy = if state.frozen { "heal" } else { "power-on" };
        match found.init {
            Some(init) if state.power == Power::Running && !state.frozen => Ok(init),
            _ => Err(RackError::WrongState { server: server.clone(), state, remedy }),
        }
    }

    pub(crate) fn record(&self) -> Result<Record, RackError> {
        Record::read(&self.names.record())
    }
}

/// A folder that is someone else's, or already a rack.
pub(crate) fn refuse_used(names: &Names) -> Result<(), RackError> {
    let dir = names.dir.clone();
    if names.record().exists() {
        return Err(RackError::AlreadyARack { dir });
    }
    let mut entries = fs::read_dir(&dir).doing(|| format!("read {}", dir.display()))?;
    let foreign = |entry: fs::DirEntry| entry.path() != crate::record::unfinished(&dir);
    if entries.any(|entry| entry.is_ok_and(foreign)) { Err(RackError::DirInUse { dir }) } else { Ok(()) }
}

/// Names for every address: rsync's daemon waits ten seconds on one that it cannot look up.
fn hosts(record: &Record) -> String {
    let mut text = format!("127.0.0.1 localhost\n::1 localhost\n{} machine\n", record.subnet.machine());
    for server in &record.servers {
        text += &format!("{} {}\n", server.address, server.name);
    }
    for (index, vip) in record.vips.iter().enumerate() {
        text += &format!("{vip} vip{}\n", index + 1);
    }
    text
}

/// Starts PID 1 and waits for its `ready`.
fn start_init(record: &Record, spec: &BootSpec, group: &Group) -> Result<Process, String> {
    let mut command = Command::new(&record.program);
    command.arg("dev-init").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.env_clear().env("PATH", &spec.env["PATH"]);
    enter::join(&mut command, group).map_err(|e| e.to_string())?;
    let mut child = command.spawn().map_err(|e| format!("cannot start {}: {e}", record.program.display()))?;
    let document = serde_json::to_vec(spec).expect("a BootSpec has only text keys");
    let mut stdin = child.stdin.take().expect("the child was started with a pipe");
    let stdout = child.stdout.take().expect("the child was started with a pipe");
    // Before its end of file, our reader below gets the reason if it refused to read.
    let _ = stdin.write_all(&document);
    drop(stdin);

    let (lines, said) = mpsc::sync_channel(8);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut init = Err("its init ended without a word".to_owned());
    let outcome = loop {
        match said.recv_timeout(BOOT_WAIT) {
            Ok(line) => match line.split_once(' ') {
                Some(("pid", pid)) => {
                    let process = pid.parse().ok().and_then(Process::of);
                    init = process.ok_or_else(|| "its init ended at once".to_owned());
                }
                Some(("failed", why)) => break Err(why.to_owned()),
                _ if line == "ready" => break init,
                _ => break Err(format!("{} does not offer `dev-init`", record.program.display())),
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                break init.and(Err("its init ended early".to_owned()));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                break Err(format!("its init is not ready after {} s", BOOT_WAIT.as_secs()));
            }
        }
    };
    // The first run ends by itself as soon as PID 1 has its document.
    if outcome.is_err() {
        let _ = child.kill();
    }
    let _ = child.wait();
    outcome
}
