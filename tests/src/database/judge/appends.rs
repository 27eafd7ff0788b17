//! Transactions that append one number to several lists, and reads of several lists at once: all of it must be
//! explained by one order of transactions that also fits the clock (strict serializability, as one MySQL gives it to
//! these: every writer locks the rows it changes, every read is one statement). Called by judge.rs.
//!
//! The lists tell the order themselves: the final one of a key is the order of its writers, and a read stands between
//! the writer of its last element and the next.

use std::collections::{BTreeMap, BTreeSet};

use super::Violation;
use super::cycle::circle;
use crate::database::history::{Append, Call, Lists, Outcome};

pub fn judge(calls: &[Call<Append>], end: &Lists) -> Vec<Violation> {
    let found = [elements(calls, end), prefixes(calls, end)].concat();
    // An order of broken lists would only say the same in other words.
    if found.is_empty() { order(calls, end).into_iter().collect() } else { found }
}

/// Of each transaction all elements are there, or none; each once.
fn elements(calls: &[Call<Append>], end: &Lists) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut places: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (key, list) in end {
        list.iter().for_each(|id| places.entry(*id).or_default().push(*key));
    }
    for call in calls {
        let Append::Append { id, keys } = &call.what else { continue };
        let its = places.remove(id).unwrap_or_default();
        let said = format!("{id} for {keys:?}, asked for at {} µs, is in {its:?}", call.begun);
        let (asked, there): (BTreeSet<_>, BTreeSet<_>) = (keys.iter().collect(), its.iter().collect());
        if its.len() > there.len() {
            found.push(Violation::Twice(said));
        } else if call.is_acknowledged() && !asked.is_subset(&there) {
            found.push(Violation::Lost(said));
        } else if !there.is_subset(&asked) || (call.outcome == Outcome::Refused && !there.is_empty()) {
            found.push(Violation::Unasked(said));
        } else if !there.is_empty() && there != asked {
            found.push(Violation::Broken(format!("half a transaction: {said}")));
        }
    }
    found.extend(places.into_iter().map(|(id, keys)| Violation::Unasked(format!("{id} in {keys:?}"))));
    found
}

/// Every list that was read is the beginning of the final one.
fn prefixes(calls: &[Call<Append>], end: &Lists) -> Vec<Violation> {
    let mut found = Vec::new();
    for (call, lists) in reads(calls) {
        for (key, list) in lists {
            let last = end.get(key).map(Vec::as_slice).unwrap_or_default();
            if !last.starts_with(list) {
                let same = last.iter().zip(list).take_while(|(a, b)| a == b).count();
                let (read, at) = (&list[same..], call.begun);
                found.push(Violation::Lost(format!(
                    "list {key} went on with {read:?} after {same} elements when it was read at {at} µs, and ends \
                     with {:?}",
                    &last[same..]
                )));
            }
        }
    }
    found
}

fn reads(calls: &[Call<Append>]) -> impl Iterator<Item = (&Call<Append>, &Lists)> {
    calls.iter().filter_map(|call| match &call.what {
        Append::Read(lists) => Some((call, lists)),
        Append::Append { .. } => None,
    })
}

fn order(calls: &[Call<Append>], end: &Lists) -> Option<Violation> {
    let mut after: Vec<Vec<usize>> = vec![Vec::new(); calls.len()];
    let mut writers: BTreeMap<u64, usize> = BTreeMap::new();
    for (n, call) in calls.iter().enumerate() {
        if let Append::Append { id, .. } = &call.what {
            writers.insert(*id, n);
        }
    }
    let writer = |list: &[u64], place: usize| writers.get(list.get(place)?).copied();
    for list in end.values() {
        for place in 1..list.len() {
            if let (Some(one), Some(next)) = (writer(list, place - 1), writer(list, place)) {
                after[one].push(next);
            }
        }
    }
    for (n, call) in calls.iter().enumerate() {
        let Append::Read(lists) = &call.what else { continue };
        for (key, list) in lists {
            let last = end.get(key).map(Vec::as_slice).unwrap_or_default();
            if let Some(seen) = list.len().checked_sub(1).and_then(|place| writer(last, place)) {
                after[seen].push(n);
            }
            if let Some(next) = writer(last, list.len()) {
                after[n].push(next);
            }
        }
    }
    the_clock(calls, end, &mut after);
    let circle = circle(&after)?;
    let told = circle.iter().filter_map(|n| calls.get(*n)).map(|call| match &call.what {
        Append::Append { id, keys } => {
            format!("append of {id} to {keys:?} ({}–{} µs)", call.begun, call.ended)
        }
        Append::Read(lists) => {
            let lengths: Vec<_> = lists.iter().map(|(key, list)| (key, list.len())).collect();
            format!("read of (list, length) {lengths:?} ({}–{} µs)", call.begun, call.ended)
        }
    });
    Some(Violation::Cycle(told.collect::<Vec<_>>().join(" → ")))
}

/// What was acknowledged before another began comes before it. A chain of moments, one for each answer, says so
/// with one edge per call instead of one per pair.
fn the_clock(calls: &[Call<Append>], end: &Lists, after: &mut Vec<Vec<usize>>) {
    let there: BTreeSet<u64> = end.values().flatten().copied().collect();
    let counts = |call: &Call<Append>| match &call.what {
        Append::Append { id, .. } => there.contains(id),
        Append::Read(_) => true,
    };
    let mut answers: Vec<(u64, usize)> = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| call.is_acknowledged() && counts(call))
        .map(|(n, call)| (call.ended, n))
        .collect();
    answers.sort_unstable();
    let first = after.len();
    for (place, (_, n)) in answers.iter().enumerate() {
        after.push(Vec::new());
        after[*n].push(first + place);
        if place > 0 {
            after[first + place - 1].push(first + place);
        }
    }
    for (n, call) in calls.iter().enumerate().filter(|(_, call)| counts(call)) {
        let before = answers.partition_point(|(ended, _)| *ended < call.begun);
        if before > 0 {
            after[first + before - 1].push(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::{done, refused, unknown};
    use super::*;

    fn append(id: u64, keys: &[u32]) -> Append {
        Append::Append { id, keys: keys.to_vec() }
    }

    fn lists(of: &[(u32, &[u64])]) -> Lists {
        of.iter().map(|(key, list)| (*key, list.to_vec())).collect()
    }

    fn read(of: &[(u32, &[u64])]) -> Append {
        Append::Read(lists(of))
    }

    #[test]
    fn what_may_be_is_let_pass() {
        let calls = [
            done(0, 1, append(1, &[1, 2])),
            done(2, 3, read(&[(1, &[1]), (2, &[1])])),
            unknown(4, 20, append(2, &[1, 2])),
            unknown(4, 20, append(3, &[1, 2])),
            refused(4, 5, append(4, &[1, 2])),
            done(5, 9, append(5, &[2, 3])),
            done(5, 9, read(&[(1, &[1]), (2, &[1]), (3, &[])])),
            done(10, 11, read(&[(1, &[1]), (2, &[1, 5]), (3, &[5])])),
        ];
        assert_eq!(judge(&calls, &lists(&[(1, &[1, 2]), (2, &[1, 5, 2]), (3, &[5])])), []);
        assert_eq!(judge(&calls, &lists(&[(1, &[1]), (2, &[1, 5]), (3, &[5])])), []);
    }

    #[test]
    fn a_lost_a_doubled_a_refused_and_an_invented_element_are_found() {
        let lost = judge(&[done(0, 1, append(1, &[1, 2]))], &lists(&[(1, &[]), (2, &[])]));
        assert!(matches!(lost[..], [Violation::Lost(_)]), "{lost:?}");
        let twice = judge(&[unknown(0, 1, append(1, &[1, 2]))], &lists(&[(1, &[1, 1]), (2, &[1])]));
        assert!(matches!(twice[..], [Violation::Twice(_)]), "{twice:?}");
        let refused = judge(&[refused(0, 1, append(1, &[1, 2]))], &lists(&[(1, &[1]), (2, &[1])]));
        assert!(matches!(refused[..], [Violation::Unasked(_)]), "{refused:?}");
        let invented = judge(&[], &lists(&[(1, &[1])]));
        assert!(matches!(invented[..], [Violation::Unasked(_)]), "{invented:?}");
        let elsewhere = judge(&[done(0, 1, append(1, &[1]))], &lists(&[(1, &[1]), (2, &[1])]));
        assert!(matches!(elsewhere[..], [Violation::Unasked(_)]), "{elsewhere:?}");
    }

    #[test]
    fn half_a_transaction_is_found() {
        let half = judge(&[unknown(0, 1, append(1, &[1, 2]))], &lists(&[(1, &[1]), (2, &[])]));
        assert!(matches!(half[..], [Violation::Broken(_)]), "{half:?}");
        // Whole at the end, but half when it was read.
        let calls = [done(0, 9, append(1, &[1, 2])), done(1, 2, read(&[(1, &[1]), (2, &[])]))];
        let found = judge(&calls, &lists(&[(1, &[1]), (2, &[1])]));
        assert!(matches!(found[..], [Violation::Cycle(_)]), "{found:?}");
    }

    #[test]
    fn a_list_that_was_read_and_went_on_otherwise_is_found() {
        let calls =
            [unknown(0, 9, append(1, &[1])), unknown(0, 9, append(2, &[1])), done(1, 2, read(&[(1, &[1])]))];
        let gone = judge(&calls, &lists(&[(1, &[2])]));
        assert!(matches!(gone[..], [Violation::Lost(_)]), "{gone:?}");
        let swapped = judge(&calls, &lists(&[(1, &[2, 1])]));
        assert!(matches!(swapped[..], [Violation::Lost(_)]), "{swapped:?}");
    }

    #[test]
    fn a_stale_read_is_found() {
        let calls = [done(0, 1, append(1, &[1])), done(2, 3, read(&[(1, &[])]))];
        let found = judge(&calls, &lists(&[(1, &[1])]));
        assert!(matches!(found[..], [Violation::Cycle(_)]), "{found:?}");
        let back =
            [unknown(0, 9, append(1, &[1])), done(1, 2, read(&[(1, &[1])])), done(3, 4, read(&[(1, &[])]))];
        let found = judge(&back, &lists(&[(1, &[1])]));
        assert!(matches!(found[..], [Violation::Cycle(_)]), "{found:?}");
    }

    #[test]
    fn a_read_of_the_future_and_an_append_before_an_earlier_one_are_found() {
        let future = [done(0, 1, read(&[(1, &[1])])), done(2, 3, append(1, &[1]))];
        let found = judge(&future, &lists(&[(1, &[1])]));
        assert!(matches!(found[..], [Violation::Cycle(_)]), "{found:?}");
        let swapped = [done(0, 1, append(1, &[1])), done(2, 3, append(2, &[1]))];
        let found = judge(&swapped, &lists(&[(1, &[2, 1])]));
        assert!(matches!(found[..], [Violation::Cycle(_)]), "{found:?}");
    }

    #[test]
    fn two_orders_of_the_same_transactions_and_a_long_fork_are_found() {
        let both = [done(0, 9, append(1, &[1, 2])), done(0, 9, append(2, &[1, 2]))];
        let found = judge(&both, &lists(&[(1, &[1, 2]), (2, &[2, 1])]));
        assert!(matches!(found[..], [Violation::Cycle(_)]), "{found:?}");
        let fork = [
            done(0, 9, append(1, &[1])),
            done(0, 9, append(2, &[2])),
            done(0, 9, read(&[(1, &[1]), (2, &[])])),
            done(0, 9, read(&[(1, &[]), (2, &[2])])),
        ];
        let found = judge(&fork, &lists(&[(1, &[1]), (2, &[2])]));
        assert!(matches!(found[..], [Violation::Cycle(_)]), "{found:?}");
    }
}
