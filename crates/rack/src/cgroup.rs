//! The cgroup of a virtual server. All its processes live in the v2 group `/kopek/RACK/SERVER` by inheritance,
//! which lets us find, stop and kill them to the last. Instances make groups of the same path in the v1
//! hierarchies of a mixed machine; those are removed here too. No other group is ever touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Doing, RackError};
use crate::record::Process;
use crate::wait::until;

/// A killed process that waits for the disk leaves only when the disk answers.
const EMPTY_WAIT: Duration = Duration::from_secs(15);
const FREEZE_WAIT: Duration = Duration::from_secs(5);
const REMOVE_WAIT: Duration = Duration::from_secs(5);

/// Where the v2 hierarchy is mounted: /sys/fs/cgroup, or beside v1 at /sys/fs/cgroup/unified.
pub(crate) fn v2_root() -> Option<PathBuf> {
    mounted("cgroup2").into_iter().next()
}

/// Where the v1 hierarchies are mounted; none on a machine with v2 only.
pub(crate) fn v1_roots() -> Vec<PathBuf> {
    mounted("cgroup")
}

fn mounted(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f.len() > 2 && f[2] == kind).map(|f| PathBuf::from(f[1])).collect()
}

/// A v2 group and those below it.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    path: PathBuf,
}

impl Group {
    /// `name` is below the root of the hierarchy, for example `kopek/3f9a01/s1`.
    pub fn named(name: &str) -> Result<Group, RackError> {
        let root = v2_root().ok_or(RackError::KernelLacks { what: "a mounted cgroup v2 hierarchy" })?;
        Ok(Group { path: root.join(name) })
    }

    /// The leaf in which the processes themselves live: on a machine with v2 only, a group that has members
    /// may not hand controllers to the groups of instances beside them ("no internal processes").
    pub fn leaf(&self) -> PathBuf {
        self.path.join("init")
    }

    pub fn create(&self) -> Result<(), RackError> {
        fs::create_dir_all(self.leaf()).doing(|| format!("make cgroup {}", self.path.display()))
    }

    /// Every process in the group and below, by the machine's pids.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        let mut groups = vec![self.path.clone()];
        while let Some(group) = groups.pop() {
            let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()).filter(|pid| *pid > 0));
            groups.extend(folders(&group));
        }
        found
    }

    /// Kills to the last process (`cgroup.kill`, Linux 5.14) and waits until none is left.
    pub fn kill(&self) -> Result<(), RackError> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).doing(|| format!("kill cgroup {}", self.path.display()));
            }
            _ => {}
        }
        if until(EMPTY_WAIT, || self.processes().is_empty()) {
            return Ok(());
        }
        Err(RackError::StillInUse {
            what: format!("cgroup {}", self.path.display()),
            holders: describe(&self.processes()),
            seconds: EMPTY_WAIT.as_secs(),
        })
    }

    /// SIGSTOP to every process at one moment: the freezer holds them still meanwhile, so that none can fork
    /// a child that we would miss; they wake from it into the stop.
    pub fn stop(&self) -> Result<(), RackError> {
        let freezer = self.path.join("cgroup.freeze");
        fs::write(&freezer, "1").doing(|| format!("write {}", freezer.display()))?;
        until(FREEZE_WAIT, || self.event("frozen") == Some(1));
        self.signal(Signal::SIGSTOP);
        fs::write(&freezer, "0").doing(|| format!("write {}", freezer.display()))?;
        let is_stopped = |pid| Process::of(pid).and_then(|process| process.state()).is_none_or(|s| s == 'T');
        // One that waits for the disk stops when it is served; it does nothing before that.
        until(FREEZE_WAIT, || self.processes().into_iter().all(is_stopped));
        Ok(())
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // One that has just ended needs no signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    fn event(&self, name: &str) -> Option<u64> {
        let events = fs::read_to_string(self.path.join("cgroup.events")).ok()?;
        events.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }
}

/// Removes the group `name` and those below it from every hierarchy, v1 and v2.
pub(crate) fn remove_everywhere(name: &str) -> Result<(), RackError> {
    for root in v1_roots().into_iter().chain(v2_root()) {
        remove_tree(&root.join(name))?;
    }
    Ok(())
}

/// Takes away `/kopek` from every hierarchy once no rack and no server uses it.
pub(crate) fn remove_empty_top() {
    for root in v1_roots().into_iter().chain(v2_root()) {
        // Fails, as it should, while another rack has groups in it.
        let _ = fs::remove_dir(root.join("kopek"));
    }
}

/// The groups named `name` in all hierarchies.
pub(crate) fn found(name: &str) -> Vec<PathBuf> {
    v1_roots().into_iter().chain(v2_root()).map(|root| root.join(name)).filter(|path| path.exists()).collect()
}

fn remove_tree(group: &Path) -> Result<(), RackError> {
    for child in folders(group) {
        remove_tree(&child)?;
    }
    // A group stays busy for a moment after its last process.
    let mut last = Ok(());
    until(REMOVE_WAIT, || {
        last = match fs::remove_dir(group) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        last.is_ok()
    });
    last.doing(|| format!("remove cgroup {}", group.display()))
}

fn folders(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// `1234 (mariadbd), 1240 (etcd)`.
pub(crate) fn describe(pids: &[i32]) -> String {
    let named = pids.iter().map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{pid} ({})", name.trim())
    });
    named.collect::<Vec<_>>().join(", ")
}
