//! What a virtual server sees as its machine: its own disk at the places where Kopek keeps things, its own /run,
//! /tmp, /dev/shm, /proc, /etc/hosts and host name; the machine's programs below everything else.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::BootSpec;
use crate::error::{Doing, RackError};
use crate::network::run;
use crate::{ETC_DIR, LOG_DIR, RUN_DIR, STATE_DIR};

/// On the server's disk, what is not Kopek's state: what lies elsewhere on a real server.
pub(super) const SERVER_DIR: &str = ".server";

pub(super) fn build(spec: &BootSpec) -> Result<(), RackError> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).doing(|| "make mounts private")?;
    mount_disk(spec)?;
    mount_runtime()?;
    nix::unistd::sethostname(spec.server.as_str()).doing(|| "set the host name")?;
    // The kernel makes a new one at each read; as on a real machine, another after every boot.
    let boot_id = fs::read("/proc/sys/kernel/random/uuid").doing(|| "make a boot id")?;
    fs::write(Path::new(RUN_DIR).join("boot_id"), boot_id).doing(|| "write the boot id")
}

/// The disk with its binds. Comes first: the image may lie where a fresh /run or /tmp hides it afterwards.
fn mount_disk(spec: &BootSpec) -> Result<(), RackError> {
    // Mount points stay on the machine after `down`: removing one would unmount it in another rack too.
    for dir in [STATE_DIR, ETC_DIR, LOG_DIR] {
        fs::create_dir_all(dir).doing(|| format!("make {dir}"))?;
    }
    // The image was made of holes, which read as zeros: no need to zero inode tables in the background.
    run(Command::new("mount")
        .args(["-t", "ext4", "-o", "loop,noinit_itable"])
        .arg(&spec.image)
        .arg(STATE_DIR))?;
    let own = Path::new(STATE_DIR).join(SERVER_DIR);
    for (name, mode, place) in [("etc", 0o755, ETC_DIR), ("log", 0o755, LOG_DIR), ("tmp", 0o1777, "/tmp")] {
        let dir = own.join(name);
        if name == "tmp" {
            empty(&dir).doing(|| "empty /tmp")?;
        }
        fs::create_dir_all(&dir)
            .and_then(|()| fs::set_permissions(&dir, Permissions::from_mode(mode)))
            .doing(|| format!("make {}", dir.display()))?;
        bind(&dir, place)?;
    }
    let hosts = own.join("hosts");
    fs::write(&hosts, &spec.hosts).doing(|| "write /etc/hosts")?;
    bind(&hosts, "/etc/hosts")
}

/// What does not survive a boot.
fn mount_runtime() -> Result<(), RackError> {
    // Else this namespace would keep other servers' network namespaces, mounted in /run/netns, alive.
    for place in mounts_below("/run/").into_iter().rev() {
        match umount2(place.as_str(), MntFlags::MNT_DETACH) {
            // Its server is being taken down at this moment: removing the file unmounts it everywhere.
            Err(Errno::ENOENT | Errno::EINVAL) => {}
            other => other.doing(|| format!("unmount {place}"))?,
        }
    }
    fresh("tmpfs", "/run", "mode=755")?;
    fresh("tmpfs", "/dev/shm", "mode=1777")?;
    fresh("proc", "/proc", "")?;
    let make = |dir: &str, mode| DirBuilder::new().mode(mode).create(dir).doing(|| format!("make {dir}"));
    make(RUN_DIR, 0o755)?;
    make("/run/lock", 0o755)
}

fn fresh(kind: &str, place: &str, options: &str) -> Result<(), RackError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some(kind), place, Some(kind), flags, Some(options)).doing(|| format!("mount {place}"))
}

fn bind(from: &Path, place: &str) -> Result<(), RackError> {
    let none = None::<&str>;
    mount(Some(from), place, none, MsFlags::MS_BIND, none).doing(|| format!("bind {place}"))
}

fn empty(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn mounts_below(prefix: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    places.filter(|place| place.starts_with(prefix)).map(str::to_owned).collect()
}
