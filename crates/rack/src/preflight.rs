//! What a rack needs of the machine, checked before anything is made, so that `up` fails early and in one line.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use kopek_core::units::Bytes;

use crate::cgroup;
use crate::error::{Doing, RackError};
use crate::names::{Names, SERVERS_MAX};
use crate::rack::refuse_used;

/// Image, packed image, a pool member's data and a site: about 1.2 GiB in use on a fresh server.
const DISK_PER_SERVER: Bytes = Bytes::mib(2048);
/// etcd 40 MB, MariaDB 135 MB, Kopek 120 MB, a few instances, and page cache to breathe.
const MEMORY_PER_SERVER: Bytes = Bytes::mib(700);

/// Program and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mount", "mount"),
    ("losetup", "mount"),
    ("nsenter", "util-linux"),
];

/// Checks root, that `dir` is free, programs, kernel, disk below `dir`, memory, and that `listen` is free.
pub fn preflight(dir: &Path, servers: usize, listen: Option<SocketAddr>) -> Result<(), RackError> {
    if !(1..=SERVERS_MAX).contains(&servers) {
        return Err(RackError::ServerCount { wanted: servers, max: SERVERS_MAX });
    }
    if !rustix::process::geteuid().is_root() {
        return Err(RackError::NotRoot);
    }
    check_unused(dir)?;
    check_programs()?;
    check_kernel()?;
    check_disk(dir, servers)?;
    check_memory(servers)?;
    listen.map_or(Ok(()), check_port)
}

/// Looked at again under the rack's lock when it is made.
fn check_unused(dir: &Path) -> Result<(), RackError> {
    match dir.canonicalize() {
        Ok(dir) => refuse_used(&Names::of(&dir)),
        Err(_) => Ok(()),
    }
}

fn check_programs() -> Result<(), RackError> {
    let places: Vec<_> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    for (program, package) in PROGRAMS {
        if !places.iter().any(|place: &std::path::PathBuf| place.join(program).is_file()) {
            return Err(RackError::ProgramMissing { program, package });
        }
    }
    Ok(())
}

fn check_kernel() -> Result<(), RackError> {
    let missing = |path: &str| !Path::new(path).exists();
    let lacks = if cgroup::v2_root().is_none() {
        Some("a mounted cgroup v2 hierarchy")
    } else if missing("/dev/loop-control") {
        Some("loop devices (modprobe loop)")
    } else if missing("/proc/self/ns/net") {
        Some("network namespaces")
    } else if missing("/proc/self/ns/pid") {
        Some("pid namespaces")
    } else {
        None
    };
    lacks.map_or(Ok(()), |what| Err(RackError::KernelLacks { what }))
}

fn check_disk(dir: &Path, servers: usize) -> Result<(), RackError> {
    let existing = dir.ancestors().find(|place| place.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(existing).doing(|| format!("look at {}", existing.display()))?;
    let (free, needs) = (Bytes(stat.f_bavail * stat.f_frsize), Bytes(DISK_PER_SERVER.0 * servers as u64));
    if free < needs {
        return Err(RackError::DiskTooSmall { dir: dir.to_owned(), servers, needs, free });
    }
    Ok(())
}

fn check_memory(servers: usize) -> Result<(), RackError> {
    let meminfo = fs::read_to_string("/proc/meminfo").doing(|| "read /proc/meminfo")?;
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let (free, needs) =
        (Bytes(kib.unwrap_or(u64::MAX >> 10) << 10), Bytes(MEMORY_PER_SERVER.0 * servers as u64));
    if free < needs {
        return Err(RackError::MemoryTooSmall { servers, needs, free });
    }
    Ok(())
}

pub(crate) fn check_port(address: SocketAddr) -> Result<(), RackError> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Err(RackError::PortInUse { address }),
        Err(source) => Err(RackError::CannotListen { address, source }),
    }
}
