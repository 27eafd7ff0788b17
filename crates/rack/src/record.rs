//! What a rack remembers, in `rack.json`, and the lock that lets one command at a time change it. The record is
//! written before anything else is made, so that `down` always knows a rack when it meets one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kopek_core::ServerId;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, RackError};
use crate::names::{Names, Subnet};
use crate::wait::until;

/// The longest that another command may hold the rack: booting the largest rack takes less.
const LOCK_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub id: String,
    pub subnet: Subnet,
    /// The binary that offers `dev-init` and `dev-forward`.
    pub program: PathBuf,
    pub env: BTreeMap<String, String>,
    pub services: Vec<Service>,
    pub servers: Vec<ServerRecord>,
    pub vips: Vec<Ipv4Addr>,
    #[serde(default)]
    pub forwards: Vec<ForwardRecord>,
}

/// One process that a server's init keeps running, as systemd would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// Program and arguments; the program is looked up in the server's PATH.
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServerRecord {
    pub name: ServerId,
    pub address: Ipv4Addr,
    pub power: Power,
    /// The server's init, as the machine sees it.
    pub init: Option<Process>,
}

/// What was last done to a server's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// Its init runs.
    Running,
    /// Every process of it was killed, its network is up.
    Killed,
    /// Killed with its file system shut down mid-write.
    PoweredOff,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ForwardRecord {
    pub listen: SocketAddr,
    pub to: SocketAddr,
    pub process: Process,
}

/// A process that a reused pid cannot be taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot.
    pub start: u64,
}

impl Process {
    pub fn of(pid: i32) -> Option<Process> {
        let (_, start) = stat(pid)?;
        Some(Process { pid, start })
    }

    /// The letter of field 3 of /proc/PID/stat; none if it is gone or a zombie.
    pub fn state(&self) -> Option<char> {
        stat(self.pid)
            .filter(|(state, start)| *start == self.start && !matches!(state, 'Z' | 'X'))
            .map(|s| s.0)
    }

    pub fn is_alive(&self) -> bool {
        self.state().is_some()
    }
}

/// State and start time; the command name before them may hold spaces and parentheses (proc_pid_stat(5)).
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text[text.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

impl Record {
    pub fn read(path: &Path) -> Result<Record, RackError> {
        let dir = path.parent().unwrap_or(path).to_owned();
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| RackError::DamagedRecord { path: path.to_owned(), why: e.to_string() }),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(RackError::NotARack { dir })
            }
            Err(e) => Err(e).doing(|| format!("read {}", path.display())),
        }
    }

    /// Whole or not at all, also when the power fails.
    pub fn write(&self, names: &Names) -> Result<(), RackError> {
        let (path, new) = (names.record(), unfinished(&names.dir));
        let bytes = serde_json::to_vec_pretty(self).expect("a Record has only text keys");
        let written = File::create(&new)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&new, &path));
        written.doing(|| format!("write {}", path.display()))
    }

    pub fn server(&self, name: &ServerId) -> Result<&ServerRecord, RackError> {
        self.servers.iter().find(|s| s.name == *name).ok_or_else(|| self.unknown(name))
    }

    pub fn server_mut(&mut self, name: &ServerId) -> Result<&mut ServerRecord, RackError> {
        let unknown = self.unknown(name);
        self.servers.iter_mut().find(|s| s.name == *name).ok_or(unknown)
    }

    fn unknown(&self, name: &ServerId) -> RackError {
        let known: Vec<&str> = self.servers.iter().map(|s| s.name.as_str()).collect();
        RackError::UnknownServer { server: name.clone(), known: known.join(", ") }
    }
}

/// A record that was being written when the writer died.
pub(crate) fn unfinished(dir: &Path) -> PathBuf {
    dir.join("rack.json.new")
}

/// Held by a command that changes a rack; lies on the folder itself, so that nothing is left behind.
pub(crate) struct Lock {
    _dir: File,
}

impl Lock {
    pub fn take(dir: &Path) -> Result<Lock, RackError> {
        let not_a_rack = || RackError::NotARack { dir: dir.to_owned() };
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            let file = File::open(dir).map_err(|_| not_a_rack())?;
            let free = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
            if !until(deadline.saturating_duration_since(Instant::now()), free) {
                return Err(RackError::Busy { dir: dir.to_owned() });
            }
            // `down` may have removed the folder, and `up` made another, while we waited.
            let held = file.metadata().doing(|| "look at the rack's folder")?;
            let now = fs::metadata(dir).map_err(|_| not_a_rack())?;
            if (held.dev(), held.ino()) == (now.dev(), now.ino()) {
                return Ok(Lock { _dir: file });
            }
        }
    }

    /// One at a time on the whole machine: choosing a subnet, and tidying what all racks share.
    pub fn machine() -> Result<Lock, RackError> {
        Lock::take(Path::new("/run"))
    }
}
