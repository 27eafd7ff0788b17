//! One process of this server, told apart from a later one with the same id by its start time.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Start time in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)); None if there is no such
/// process or it has ended and only waits to be reaped.
pub(crate) fn started_at(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything, so the fields are counted from the last bracket on.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// A descriptor that means this very process; None if it has ended.
pub(crate) fn open(pid: i32, started: u64) -> Option<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: `fd` was just returned to us and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // Checked after opening: from here on the id cannot be used again for the descriptor.
    (started_at(pid) == Some(started)).then_some(fd)
}

pub(crate) fn signal(process: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal reads no memory of ours when the information pointer is null.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the process has ended within `limit`.
pub(crate) fn has_ended(process: &OwnedFd, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // One millisecond more than is left, so that poll does not spin at the very end.
        let millis = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        // SAFETY: `poll` is one valid pollfd for the time of the call.
        match unsafe { libc::poll(&mut poll, 1, millis) } {
            1 => return true,
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}
