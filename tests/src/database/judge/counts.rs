//! `UPDATE … SET v = v + 1`, each by itself: the number is that of the increments. Called by judge.rs.

use super::Violation;
use crate::database::history::{Call, Count, Outcome};

pub fn judge(calls: &[Call<Count>], end: u64) -> Vec<Violation> {
    let mut found = Vec::new();
    let adds = || calls.iter().filter(|call| call.what == Count::Add);
    let acknowledged = adds().filter(|call| call.is_acknowledged()).count() as u64;
    let possible = adds().filter(|call| call.outcome != Outcome::Refused).count() as u64;
    if end < acknowledged {
        found
            .push(Violation::Lost(format!("{acknowledged} increments were acknowledged, {end} are counted")));
    }
    if end > possible {
        found.push(Violation::Twice(format!("{possible} increments at most were made, {end} are counted")));
    }
    let mut reads: Vec<(&Call<Count>, u64)> = calls
        .iter()
        .filter_map(|call| if let Count::Read(value) = call.what { Some((call, value)) } else { None })
        .collect();
    reads.sort_by_key(|(call, _)| call.begun);
    let mut ends: Vec<u64> = adds().filter(|call| call.is_acknowledged()).map(|call| call.ended).collect();
    let mut begins: Vec<u64> =
        adds().filter(|call| call.outcome != Outcome::Refused).map(|call| call.begun).collect();
    ends.sort_unstable();
    begins.sort_unstable();
    let mut answered: Vec<(u64, u64)> = reads.iter().map(|(call, value)| (call.ended, *value)).collect();
    answered.sort_unstable();
    let (mut next, mut read_before) = (0, 0);
    for (call, value) in reads {
        while next < answered.len() && answered[next].0 < call.begun {
            read_before = read_before.max(answered[next].1);
            next += 1;
        }
        let due = ends.partition_point(|ended| *ended < call.begun) as u64;
        let most = begins.partition_point(|begun| *begun <= call.ended) as u64;
        let at = call.begun;
        if value < due {
            found.push(Violation::Stale(format!("{value} is read at {at} µs, {due} were acknowledged")));
        }
        if value < read_before {
            found.push(Violation::Stale(format!("{value} is read at {at} µs, after {read_before} was")));
        }
        if value > most {
            found.push(Violation::Unasked(format!("{value} is read at {at} µs, only {most} had begun")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::made::{done, refused, unknown};
    use super::Count::{Add, Read};
    use super::*;

    #[test]
    fn what_may_be_is_let_pass() {
        let calls = [
            done(0, 10, Add),
            done(5, 8, Read(0)),
            done(11, 12, Read(1)),
            unknown(12, 20, Add),
            done(13, 14, Read(2)),
            refused(13, 14, Add),
            done(21, 22, Read(2)),
        ];
        assert_eq!(judge(&calls, 2), []);
        assert_eq!(judge(&calls[..5], 2), []);
        assert_eq!(judge(&[done(0, 1, Add), unknown(0, 1, Add)], 1), []);
    }

    #[test]
    fn a_lost_and_a_doubled_increment_are_found() {
        let calls = [done(0, 1, Add), unknown(2, 3, Add), refused(2, 3, Add)];
        assert!(matches!(judge(&calls, 0)[..], [Violation::Lost(_)]));
        assert!(matches!(judge(&calls, 3)[..], [Violation::Twice(_)]));
    }

    #[test]
    fn old_and_early_reads_are_found() {
        let stale = [done(0, 1, Add), done(2, 3, Read(0))];
        assert!(matches!(judge(&stale, 1)[..], [Violation::Stale(_)]));
        let back = [unknown(0, 9, Add), done(1, 2, Read(1)), done(3, 4, Read(0))];
        assert!(matches!(judge(&back, 1)[..], [Violation::Stale(_)]));
        let early = [done(0, 1, Read(1)), done(2, 3, Add)];
        assert!(matches!(judge(&early, 1)[..], [Violation::Unasked(_)]));
    }
}
