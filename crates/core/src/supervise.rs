//! When an instance that died may start again. Pure; used by the agent.

/// A start costs a tenth of a second: one that comes after a long life keeps visitors waiting for no longer.
const SECOND_DELAY_MS: u64 = 100;
/// Half a minute keeps a site that is broken for good from eating a core, and picks up a repair soon.
const LONGEST_DELAY_MS: u64 = 30_000;
/// One that served this long has lasted. Dying that often costs a tenth of a core in starts, which its own
/// limit bounds. With 10 s, one that died every 6 s kept its visitors waiting for up to 30 s.
const LASTED_MS: u64 = 2_000;

/// Milliseconds to wait before the next start, after `restarts` restarts in a row that did not last:
/// 0, 100 ms, 200 ms, 400 ms … 30 s.
pub fn restart_delay(restarts: u32) -> u64 {
    match restarts.checked_sub(1) {
        None => 0,
        // 100 ms × 2^16 is far beyond the longest delay
        Some(doublings) => (SECOND_DELAY_MS << doublings.min(16)).min(LONGEST_DELAY_MS),
    }
}

/// Whether an instance that served so long has outlived its restarts: the next one is the first again.
pub fn has_lasted(served_ms: u64) -> bool {
    served_ms >= LASTED_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_at_once_and_the_delay_then_doubles_up_to_half_a_minute() {
        let delays: Vec<u64> = (0..12).map(restart_delay).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(restart_delay(u32::MAX), 30_000);
    }

    #[test]
    fn one_that_serves_for_less_than_two_seconds_has_not_lasted() {
        assert!(!has_lasted(1_999));
        assert!(has_lasted(2_000));
    }
}
