//! A server's disk: a sparse file with ext4 in it, mounted over a loop device that goes away with the last mount.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kopek_core::units::Bytes;

use crate::error::{Doing, RackError};
use crate::network::run;
use crate::wait::until;

/// Unmounting writes back what is dirty; on a slow disk that takes a while.
const RELEASE_WAIT: Duration = Duration::from_secs(30);

/// `EXT4_GOING_FLAGS_NOLOGFLUSH` (linux/fs/ext4/ext4.h): not even the journal is flushed.
const NO_LOG_FLUSH: u32 = 2;

nix::ioctl_read!(ext4_shutdown, b'X', 125, u32);

/// Makes the image; takes no space before something is written to it.
pub(crate) fn make(image: &Path, size: Bytes) -> Result<(), RackError> {
    let made = File::create_new(image).and_then(|file| file.set_len(size.0));
    made.doing(|| format!("make {}", image.display()))?;
    // Lazy: the inode tables are zeroed in the background after the first mount, not now.
    let lazy = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"];
    run(Command::new("mkfs.ext4").args(lazy).arg(image)).map(|_| ())
}

/// Shuts the file system that holds `path` down mid-write, as a power cut does: what was not on the disk is lost.
pub(crate) fn cut_power(path: &Path) -> Result<(), RackError> {
    let file = File::open(path).doing(|| format!("open {}", path.display()))?;
    let mut flags = NO_LOG_FLUSH;
    // SAFETY: the descriptor is open, and the request reads one u32 behind a pointer that is valid for the call.
    let done = unsafe { ext4_shutdown(file.as_raw_fd(), &mut flags) };
    done.doing(|| format!("shut the file system at {} down", path.display())).map(|_| ())
}

/// Waits until no loop device holds the image. Mounting it a second time beside the old mount would destroy it.
pub(crate) fn wait_released(image: &Path) -> Result<(), RackError> {
    if until(RELEASE_WAIT, || loops_on(image).is_empty()) {
        return Ok(());
    }
    Err(RackError::StillInUse {
        what: image.display().to_string(),
        holders: loops_on(image).iter().map(|device| holders(device)).collect::<Vec<_>>().join(", "),
        seconds: RELEASE_WAIT.as_secs(),
    })
}

/// Detaches a loop device that no mount uses: a boot that died between attaching and mounting leaves one.
pub(crate) fn detach_idle(image: &Path) {
    for device in loops_on(image) {
        // Busy ones are left to `wait_released`, which names their holders.
        let _ = run(Command::new("losetup").arg("--detach").arg(&device));
    }
}

/// The loop devices (`/dev/loop3`) whose file is `place` or lies below it, also if it was deleted since.
pub(crate) fn loops_on(place: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let backing = devices.filter_map(|device| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let file = file.trim_end_matches('\n').trim_end_matches(" (deleted)").to_owned();
        Path::new(&file).starts_with(place).then(|| Path::new("/dev").join(device.file_name()))
    });
    backing.collect()
}

/// Which processes see a mount of the device.
fn holders(device: &Path) -> String {
    let needle = format!(" {} ", device.display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let seeing = processes.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).ok()?;
        mounts.contains(&needle).then_some(pid)
    });
    let pids: Vec<i32> = seeing.collect();
    if pids.is_empty() { device.display().to_string() } else { crate::cgroup::describe(&pids) }
}
