//! Waiting for what the kernel finishes in its own time: a process gone, a loop device let go.

use std::time::{Duration, Instant};

/// 5 ms: far below what a person notices, and a file of /proc or /sys costs microseconds to read.
const STEP: Duration = Duration::from_millis(5);

/// Whether `holds` became true within `limit`. Asks at least once.
pub(crate) fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(STEP);
    }
}
