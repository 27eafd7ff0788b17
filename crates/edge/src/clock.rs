//! Time since this process began, as a number that fits an atomic.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uptime(pub u64);

impl Uptime {
    pub fn now() -> Uptime {
        Uptime(BEGAN.elapsed().as_millis() as u64)
    }

    pub fn plus(self, duration: Duration) -> Uptime {
        Uptime(self.0 + duration.as_millis() as u64)
    }

    pub fn until(self, later: Uptime) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}
