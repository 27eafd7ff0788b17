//! An instance as the OCI runtime specification words it: the document that libcontainer runs. Everything
//! that is mounted from outside is in place under the root folder before (`mount.rs`).

use std::path::Path;

use serde_json::{Value, json};

use crate::InstanceSpec;
use crate::cgroup::Hierarchies;
use crate::image::Launch;
use crate::seccomp;

/// What Apache and nginx need to bind, to become www-data and to rule their own processes. All of it holds
/// only inside the container's user namespace.
pub(crate) const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// `user_namespace` is the path of the one whose ids the root folder is shifted to.
pub(crate) fn config(
    spec: &InstanceSpec,
    launch: &Launch,
    root: &Path,
    user_namespace: &Path,
    hierarchies: &Hierarchies,
) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": { "path": root, "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": launch.init,
            "env": environment(launch),
            "cwd": "/",
            "capabilities": capabilities(),
            "noNewPrivileges": true,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "noexec", "mode=755", "size=64k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "user", "path": user_namespace },
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
                // No network namespace: the launcher is in the instance's already, and libcontainer could not
                // enter it from inside the user namespace, which does not own it.
            ],
            "cgroupsPath": spec.cgroup,
            "resources": resources(spec, hierarchies),
            "seccomp": seccomp::profile(),
            "rootfsPropagation": "private",
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
                "/proc/timer_stats",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

pub(crate) fn capabilities() -> Value {
    json!({ "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            "inheritable": [], "ambient": [] })
}

fn environment(launch: &Launch) -> Vec<String> {
    launch.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The scheduler's period in microseconds, its own default: a container over its share waits at most so long.
const CPU_PERIOD: u64 = 100_000;

fn resources(spec: &InstanceSpec, hierarchies: &Hierarchies) -> Value {
    let limits = &spec.limits;
    let mut memory = json!({ "limit": limits.memory.0 });
    if hierarchies.limits_swap() {
        // Memory and swap together, so none of it.
        memory["swap"] = json!(limits.memory.0);
    }
    json!({
        "cpu": { "quota": u64::from(limits.cpu.0) * CPU_PERIOD / 1000, "period": CPU_PERIOD },
        "memory": memory,
        "pids": { "limit": limits.tasks },
    })
}
