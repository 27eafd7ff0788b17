//! Unique rows: each at most once, and exactly once if that was acknowledged. Called by judge.rs.

use std::collections::BTreeMap;

use super::Violation;
use crate::database::history::{Call, Outcome};

pub fn judge(calls: &[Call<u64>], rows: &[u64]) -> Vec<Violation> {
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    for row in rows {
        *times.entry(*row).or_default() += 1;
    }
    let mut found = Vec::new();
    for call in calls {
        let row = format!("row {}, asked for at {} µs", call.what, call.begun);
        match (call.outcome, times.remove(&call.what).unwrap_or(0)) {
            (Outcome::Acknowledged, 0) => found.push(Violation::Lost(row)),
            (Outcome::Refused, 1..) => found.push(Violation::Unasked(row)),
            (_, 2..) => found.push(Violation::Twice(row)),
            _ => {}
        }
    }
    found.extend(times.into_keys().map(|row| Violation::Unasked(format!("row {row}"))));
    found
}

#[cfg(test)]
mod tests {
    use super::super::made::{done, refused, unknown};
    use super::*;

    #[test]
    fn what_may_be_is_let_pass() {
        let calls = [done(0, 1, 1), unknown(0, 1, 2), unknown(0, 1, 3), refused(0, 1, 4)];
        assert_eq!(judge(&calls, &[1, 2]), []);
    }

    #[test]
    fn a_lost_a_doubled_a_refused_and_an_invented_row_are_found() {
        let one = |calls: &[Call<u64>], rows: &[u64]| judge(calls, rows).pop();
        assert!(matches!(one(&[done(0, 1, 7)], &[]), Some(Violation::Lost(_))));
        assert!(matches!(one(&[done(0, 1, 7)], &[7, 7]), Some(Violation::Twice(_))));
        assert!(matches!(one(&[unknown(0, 1, 7)], &[7, 7]), Some(Violation::Twice(_))));
        assert!(matches!(one(&[refused(0, 1, 7)], &[7]), Some(Violation::Unasked(_))));
        assert!(matches!(one(&[], &[7]), Some(Violation::Unasked(_))));
    }
}
