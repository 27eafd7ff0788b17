//! Control groups of instances, in whichever of the three arrangements the machine has: v2 alone, v1 alone,
//! or v1 beside an empty v2 (hybrid). libcontainer makes the groups and sets the limits; here they are read,
//! joined, emptied and removed. Called by the agent every second, by `exec` and by `stop`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kopek_core::Bytes;

/// Where control groups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    /// Mount point by controller. A v2 mount beside them controls nothing; what is in there stays where its
    /// parent process was.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("no control groups are mounted under /sys/fs/cgroup; mount cgroup2 there")]
    NotMounted,
    #[error("cannot use the control group {path}")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("tasks of the control group {path} do not end although they were killed")]
    Undying { path: PathBuf },
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    |source| CgroupError::Unusable { path, source }
}

impl Hierarchies {
    pub(crate) fn of_this_machine() -> Result<Hierarchies, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts = std::fs::read_to_string(path).map_err(unusable(path))?;
        Hierarchies::parse(&mounts).ok_or(CgroupError::NotMounted)
    }

    /// `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAGS…] - TYPE SOURCE SUPEROPTIONS` (proc(5)).
    fn parse(mountinfo: &str) -> Option<Hierarchies> {
        let mut v1 = BTreeMap::new();
        let mut v2 = None;
        for line in mountinfo.lines() {
            let (place, kind) = line.split_once(" - ")?;
            let at = PathBuf::from(place.split(' ').nth(4)?);
            let mut kind = kind.split(' ');
            match kind.next()? {
                "cgroup" => {
                    for option in kind.nth(1)?.split(',').filter(|option| !matches!(*option, "rw" | "ro")) {
                        v1.insert(option.to_owned(), at.clone());
                    }
                }
                "cgroup2" => v2 = Some(at),
                _ => {}
            }
        }
        let limits = ["memory", "pids", "cpu", "cpuacct"];
        if limits.iter().all(|controller| v1.contains_key(*controller)) {
            Some(Hierarchies::V1(v1))
        } else {
            v2.map(Hierarchies::V2)
        }
    }

    /// The folders of group `cgroup`, one for each mount, each once.
    fn folders(&self, cgroup: &Path) -> Vec<PathBuf> {
        let mut mounts: Vec<&PathBuf> = match self {
            Hierarchies::V1(mounts) => mounts.values().collect(),
            Hierarchies::V2(mount) => vec![mount],
        };
        mounts.sort();
        mounts.dedup();
        mounts.into_iter().map(|mount| inside(mount, cgroup)).collect()
    }

    fn folder(&self, controller: &str, cgroup: &Path) -> PathBuf {
        match self {
            Hierarchies::V1(mounts) => inside(&mounts[controller], cgroup),
            Hierarchies::V2(mount) => inside(mount, cgroup),
        }
    }

    /// Whether swap can be limited, so that a memory limit cannot be evaded through it.
    pub(crate) fn limits_swap(&self) -> bool {
        match self {
            Hierarchies::V1(mounts) => mounts["memory"].join("memory.memsw.limit_in_bytes").exists(),
            // The file is in every group but the root. A kernel without swap accounting is not known to
            // have cgroup v2 alone.
            Hierarchies::V2(_) => true,
        }
    }
}

fn inside(mount: &Path, cgroup: &Path) -> PathBuf {
    mount.join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

/// Reads one instance's group.
#[derive(Debug, Clone)]
pub struct Gauge {
    tasks: PathBuf,
    memory: PathBuf,
    cpu: PathBuf,
}

/// What an instance uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Processor time since the start, in microseconds.
    pub cpu_us: u64,
    pub memory: Bytes,
    /// Threads of all its processes.
    pub tasks: u32,
    /// Of those, how many run or are ready to (state R) or wait for disk (state D).
    pub running: u32,
}

impl Gauge {
    /// `cgroup` is `InstanceSpec::cgroup`; the instance must have been started.
    pub fn open(cgroup: &Path) -> Result<Gauge, CgroupError> {
        let hierarchies = Hierarchies::of_this_machine()?;
        let (tasks, memory, cpu) = match &hierarchies {
            Hierarchies::V1(_) => ("tasks", "memory.usage_in_bytes", "cpuacct.usage"),
            Hierarchies::V2(_) => ("cgroup.threads", "memory.current", "cpu.stat"),
        };
        let gauge = Gauge {
            tasks: hierarchies.folder("pids", cgroup).join(tasks),
            memory: hierarchies.folder("memory", cgroup).join(memory),
            cpu: hierarchies.folder("cpuacct", cgroup).join(cpu),
        };
        gauge.read()?;
        Ok(gauge)
    }

    pub fn read(&self) -> Result<Reading, CgroupError> {
        // The task list is opened anew each time: a v1 list that stays open is not read again for a second.
        let tasks = read(&self.tasks)?;
        let running = tasks.lines().filter(|task| is_running(task)).count();
        Ok(Reading {
            cpu_us: cpu_micros(&read(&self.cpu)?),
            memory: Bytes(read(&self.memory)?.trim().parse().unwrap_or_default()),
            tasks: tasks.lines().count() as u32,
            running: running as u32,
        })
    }
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(unusable(path))
}

/// v1's cpuacct.usage is one number of nanoseconds; v2's cpu.stat begins with `usage_usec N`.
fn cpu_micros(text: &str) -> u64 {
    match text.strip_prefix("usage_usec ") {
        Some(rest) => rest.lines().next().and_then(|micros| micros.parse().ok()).unwrap_or_default(),
        None => text.trim().parse::<u64>().unwrap_or_default() / 1000,
    }
}

/// A thread's own state, which /proc/TID/stat gives also for a thread that is not its process's first. One
/// that ended meanwhile does not run.
fn is_running(thread: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{thread}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with(['R', 'D'])))
        .unwrap_or(false)
}

/// Puts this process into the group, in every hierarchy.
pub(crate) fn join(cgroup: &Path) -> Result<(), CgroupError> {
    for folder in Hierarchies::of_this_machine()?.folders(cgroup) {
        let file = folder.join("cgroup.procs");
        match std::fs::write(&file, "0") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(unusable(&file))?,
        }
    }
    Ok(())
}

/// A killed task ends when it next returns from the kernel; on a dying disk that can take long.
const DEATH_LIMIT: Duration = Duration::from_secs(5);
const DEATH_POLL: Duration = Duration::from_millis(2);

/// Kills what is in the group and removes it from every hierarchy. Nothing to do is fine.
pub(crate) fn remove(cgroup: &Path) -> Result<(), CgroupError> {
    let until = Instant::now() + DEATH_LIMIT;
    for folder in Hierarchies::of_this_machine()?.folders(cgroup) {
        // A killed task that forked may have left a child, and a group stays busy for a moment after its
        // last task: so both are tried until the group is gone.
        while folder.exists() {
            kill_all(&folder);
            if std::fs::remove_dir(&folder).is_err() {
                if Instant::now() > until {
                    return Err(CgroupError::Undying { path: folder });
                }
                std::thread::sleep(DEATH_POLL);
            }
        }
    }
    Ok(())
}

fn kill_all(folder: &Path) {
    let tasks = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in tasks.lines().filter_map(|pid| pid.parse::<i32>().ok()) {
        // 0 stands for a process that this namespace cannot see, and would mean our own group to kill().
        if pid > 1 {
            // SAFETY: kill takes two integers.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "\
        30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        33 30 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
        34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn folders(mountinfo: &str) -> Vec<String> {
        let hierarchies = Hierarchies::parse(mountinfo).unwrap();
        hierarchies.folders(Path::new("/k/a.1")).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn with_v2_alone_there_is_one_folder() {
        assert_eq!(folders(UNIFIED), ["/sys/fs/cgroup/k/a.1"]);
    }

    #[test]
    fn mixed_machines_have_one_folder_for_each_v1_mount_and_none_in_v2() {
        let expected = ["cpu,cpuacct", "memory", "pids"].map(|name| format!("/sys/fs/cgroup/{name}/k/a.1"));
        assert_eq!(folders(HYBRID), expected);
    }

    #[test]
    fn processor_time_is_read_in_both_notations() {
        assert_eq!(cpu_micros("usage_usec 1234\nuser_usec 1000\n"), 1234);
        assert_eq!(cpu_micros("1234999\n"), 1234);
    }

    #[test]
    fn a_spinning_thread_is_counted_and_a_sleeping_one_is_not() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let stop = &stop;
            scope.spawn(move || {
                // SAFETY: gettid has no arguments and cannot fail.
                tell.send(unsafe { libc::gettid() }).unwrap();
                while !stop.load(Ordering::Relaxed) {}
            });
            assert!(is_running(&told.recv().unwrap().to_string()));
            stop.store(true, Ordering::Relaxed);
        });
        assert!(!is_running("1") || !is_running("2"), "neither init nor kthreadd is ever idle");
    }
}
