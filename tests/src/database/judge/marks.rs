//! Read your writes, across instances: each key has one writer with rising values, and is read through the
//! sockets of other servers. Called by judge.rs.

use std::collections::BTreeMap;

use super::Violation;
use crate::database::history::{Call, Mark, Outcome};

/// Each call with its value.
#[derive(Default)]
struct OfKey<'a> {
    writes: Vec<(&'a Call<Mark>, u64)>,
    reads: Vec<(&'a Call<Mark>, u64)>,
}

pub fn judge(calls: &[Call<Mark>]) -> Vec<Violation> {
    let mut by_key: BTreeMap<u32, OfKey> = BTreeMap::new();
    for call in calls {
        match call.what {
            Mark::Write { key, value } => by_key.entry(key).or_default().writes.push((call, value)),
            Mark::Read { key, value } => by_key.entry(key).or_default().reads.push((call, value)),
        }
    }
    let mut found = Vec::new();
    for (key, OfKey { writes, reads }) in by_key {
        for (read, value) in &reads {
            let at = read.begun;
            let written = writes.iter().filter(|(write, _)| read.must_see(write));
            let seen = reads.iter().filter(|(earlier, _)| read.must_see(earlier));
            let due = written.chain(seen).map(|(_, value)| *value).max().unwrap_or(0);
            if *value < due {
                found.push(Violation::Stale(format!(
                    "mark {key} is {value} at {at} µs, and was {due} before"
                )));
            }
            let may_be = |(write, its): &&(&Call<Mark>, u64)| {
                its == value && write.outcome != Outcome::Refused && write.begun <= read.ended
            };
            if *value != 0 && !writes.iter().any(|write| may_be(&write)) {
                found.push(Violation::Unasked(format!("mark {key} is {value} at {at} µs")));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::made::{done, refused, unknown};
    use super::*;

    fn write(value: u64) -> Mark {
        Mark::Write { key: 1, value }
    }

    fn read(value: u64) -> Mark {
        Mark::Read { key: 1, value }
    }

    #[test]
    fn what_may_be_is_let_pass() {
        let calls = [
            done(0, 1, read(0)),
            done(0, 5, write(1)),
            done(2, 4, read(0)),
            done(6, 7, read(1)),
            unknown(8, 20, write(2)),
            done(9, 10, read(1)),
            done(11, 12, read(2)),
            done(9, 10, Mark::Read { key: 2, value: 0 }),
        ];
        assert_eq!(judge(&calls), []);
    }

    #[test]
    fn an_old_an_earlier_a_refused_and_a_future_value_are_found() {
        let stale = judge(&[done(0, 1, write(1)), done(2, 3, read(0))]);
        assert!(matches!(stale[..], [Violation::Stale(_)]), "{stale:?}");
        let back = judge(&[unknown(0, 9, write(1)), done(1, 2, read(1)), done(3, 4, read(0))]);
        assert!(matches!(back[..], [Violation::Stale(_)]), "{back:?}");
        let unasked = judge(&[refused(0, 1, write(1)), done(2, 3, read(1))]);
        assert!(matches!(unasked[..], [Violation::Unasked(_)]), "{unasked:?}");
        let future = judge(&[done(0, 1, read(1)), done(2, 3, write(1))]);
        assert!(matches!(future[..], [Violation::Unasked(_)]), "{future:?}");
    }
}
