//! When an instance or a process that died may start again. Pure; used by the agent for instances, members
//! and its own children.

/// 100 ms is less than a visitor notices while the edge holds the request.
const FIRST_DELAY_MS: u64 = 100;
/// Half a minute keeps a site that is broken for good from eating a core, and picks up a repair soon.
const LONGEST_DELAY_MS: u64 = 30_000;

/// Milliseconds to wait before the next start, after `restarts` restarts in a row that did not last:
/// 100 ms, 200 ms, 400 ms … 30 s.
pub fn restart_delay(restarts: u32) -> u64 {
    let doublings = restarts.min(16); // 100 ms × 2^16 is far beyond the longest delay
    (FIRST_DELAY_MS << doublings).min(LONGEST_DELAY_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_from_a_tenth_of_a_second_to_half_a_minute() {
        let delays: Vec<u64> = (0..11).map(restart_delay).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        assert_eq!(restart_delay(u32::MAX), 30_000);
    }
}
