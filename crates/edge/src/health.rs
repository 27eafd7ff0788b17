//! What the workers have seen of one instance: requests in flight and failures. Shared by all workers and
//! carried from one routing table to the next. Nothing is asked of an instance: only real requests count.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::clock::Uptime;

/// How long a backend is avoided after its first failure; doubled with each further one.
const AVOID_FIRST: Duration = Duration::from_millis(100);
/// A restarted instance is noticed at the latest after this, also when the agent has not reported it.
const AVOID_LONGEST: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Health {
    in_flight: AtomicU32,
    failures: AtomicU32,
    /// An [`Uptime`].
    avoid_until: AtomicU64,
    /// Connections to close, so that requests that wait on others get a turn.
    turns_wanted: AtomicU32,
}

impl Health {
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    pub fn begin_request(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub fn end_request(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// A request waits long on a connection that has not answered yet: perhaps nobody has accepted it.
    pub fn want_turn(&self) {
        self.turns_wanted.fetch_add(1, Relaxed);
    }

    /// True once for each turn that is wanted: the caller closes a connection that could be used again.
    pub fn yield_turn(&self) -> bool {
        self.turns_wanted.fetch_update(Relaxed, Relaxed, |wanted| wanted.checked_sub(1)).is_ok()
    }

    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    pub fn is_usable(&self, now: Uptime) -> bool {
        self.usable_at() <= now
    }

    pub fn usable_at(&self) -> Uptime {
        Uptime(self.avoid_until.load(Relaxed))
    }

    /// It could not be reached or broke. Gives the time for which it is avoided now, or None while it is
    /// avoided already: a hundred requests that break together are one failure.
    pub fn failed(&self, now: Uptime) -> Option<Duration> {
        let until = self.avoid_until.load(Relaxed);
        if Uptime(until) > now {
            return None;
        }
        let failures = self.failures.load(Relaxed);
        let avoid = AVOID_FIRST.saturating_mul(1 << failures.min(10)).min(AVOID_LONGEST);
        self.avoid_until.compare_exchange(until, now.plus(avoid).0, Relaxed, Relaxed).ok()?;
        self.failures.store(failures.saturating_add(1), Relaxed);
        Some(avoid)
    }

    /// It answered. True when it had failed before.
    pub fn worked(&self) -> bool {
        if self.failures.load(Relaxed) == 0 {
            return false;
        }
        self.avoid_until.store(0, Relaxed);
        self.failures.swap(0, Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_double_the_time_of_avoidance_up_to_a_second() {
        let health = Health::default();
        let mut now = Uptime(5_000);
        let mut times = Vec::new();
        for _ in 0..6 {
            assert!(health.is_usable(now));
            let avoid = health.failed(now).unwrap();
            times.push(avoid.as_millis());
            assert!(!health.is_usable(now));
            now = now.plus(avoid);
        }
        assert_eq!(times, [100, 200, 400, 800, 1_000, 1_000]);
    }

    #[test]
    fn each_wanted_turn_is_yielded_once() {
        let health = Health::default();
        assert!(!health.yield_turn());
        health.want_turn();
        health.want_turn();
        assert!(health.yield_turn());
        assert!(health.yield_turn());
        assert!(!health.yield_turn());
    }

    #[test]
    fn requests_that_break_together_are_one_failure_and_an_answer_clears_it() {
        let health = Health::default();
        assert!(health.failed(Uptime(1)).is_some());
        assert!(health.failed(Uptime(2)).is_none());
        assert_eq!(health.failures(), 1);
        assert!(health.worked());
        assert!(health.is_usable(Uptime(3)));
        assert!(!health.worked());
    }
}
