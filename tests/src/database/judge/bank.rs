//! Transfers between accounts, each in a transaction that reads both balances with locks, writes both and adds a
//! line to the ledger. Called by judge.rs.

use std::collections::BTreeMap;

use super::Violation;
use crate::database::history::{Balances, Bank, Call, Outcome, Transfer};

pub fn judge(calls: &[Call<Bank>], opening: i64, end: &Balances, ledger: &[Transfer]) -> Vec<Violation> {
    let mut found = Vec::new();
    let total = opening * end.len() as i64;
    let ends = Call { begun: u64::MAX, ended: u64::MAX, outcome: Outcome::Acknowledged, what: () };
    let reads = calls.iter().filter_map(|call| match &call.what {
        Bank::Read(balances) => Some((call.begun, balances)),
        Bank::Transfer(_) => None,
    });
    for (at, balances) in reads.chain([(ends.begun, end)]) {
        let sum: i64 = balances.values().sum();
        if sum != total || balances.len() != end.len() {
            found.push(Violation::Broken(format!(
                "the accounts hold {sum}, not {total}: {balances:?} at {at} µs"
            )));
        }
        if let Some((account, balance)) = balances.iter().find(|(_, balance)| **balance < 0) {
            found.push(Violation::Broken(format!("account {account} holds {balance} at {at} µs")));
        }
    }
    let mut lines: BTreeMap<u64, Vec<&Transfer>> = BTreeMap::new();
    for line in ledger {
        lines.entry(line.id).or_default().push(line);
    }
    for call in calls {
        let Bank::Transfer(transfer) = &call.what else { continue };
        let its = lines.remove(&transfer.id).unwrap_or_default();
        let said = format!("{transfer:?}, asked for at {} µs", call.begun);
        match (call.outcome, its.len()) {
            (Outcome::Acknowledged, 0) => found.push(Violation::Lost(said)),
            (Outcome::Refused, 1..) => found.push(Violation::Unasked(said)),
            (_, 2..) => found.push(Violation::Twice(said)),
            (_, 1) if its[0] != transfer => {
                found.push(Violation::Broken(format!("{said}, stands in the ledger as {:?}", its[0])));
            }
            _ => {}
        }
    }
    found.extend(lines.into_values().map(|its| Violation::Unasked(format!("{:?}", its[0]))));
    let mut due: Balances = end.keys().map(|account| (*account, opening)).collect();
    for line in ledger {
        *due.entry(line.from).or_default() -= line.amount;
        *due.entry(line.to).or_default() += line.amount;
    }
    if due != *end {
        found.push(Violation::Lost(format!("the ledger makes it {due:?}, the accounts hold {end:?}")));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::made::{done, refused, unknown};
    use super::*;

    const MOVED: Transfer = Transfer { id: 1, from: 0, to: 1, amount: 3 };

    fn balances(of: [i64; 2]) -> Balances {
        of.into_iter().enumerate().map(|(n, balance)| (n as u32, balance)).collect()
    }

    fn read(of: [i64; 2]) -> Call<Bank> {
        done(5, 6, Bank::Read(balances(of)))
    }

    #[test]
    fn what_may_be_is_let_pass() {
        let moved = Bank::Transfer(MOVED);
        assert_eq!(judge(&[done(0, 1, moved.clone()), read([7, 13])], 10, &balances([7, 13]), &[MOVED]), []);
        assert_eq!(judge(&[unknown(0, 1, moved.clone())], 10, &balances([7, 13]), &[MOVED]), []);
        assert_eq!(judge(&[unknown(0, 1, moved.clone())], 10, &balances([10, 10]), &[]), []);
        assert_eq!(judge(&[refused(0, 1, moved)], 10, &balances([10, 10]), &[]), []);
    }

    #[test]
    fn a_read_in_the_middle_of_a_transfer_is_found() {
        let found =
            judge(&[done(0, 1, Bank::Transfer(MOVED)), read([7, 10])], 10, &balances([7, 13]), &[MOVED]);
        assert!(matches!(&found[..], [Violation::Broken(why)] if why.contains("17, not 20")), "{found:?}");
    }

    #[test]
    fn an_overdrawn_account_is_found() {
        let found = judge(&[read([-1, 21])], 10, &balances([10, 10]), &[]);
        assert!(matches!(&found[..], [Violation::Broken(why)] if why.contains("holds -1")), "{found:?}");
    }

    #[test]
    fn a_missing_account_is_found() {
        let one: Balances = [(0, 20)].into();
        let found = judge(&[done(0, 1, Bank::Read(one))], 10, &balances([10, 10]), &[]);
        assert!(matches!(found[..], [Violation::Broken(_)]), "{found:?}");
    }

    #[test]
    fn a_lost_a_doubled_a_refused_an_invented_and_a_changed_transfer_are_found() {
        let moved = Bank::Transfer(MOVED);
        let lost = judge(&[done(0, 1, moved.clone())], 10, &balances([10, 10]), &[]);
        assert!(matches!(lost[..], [Violation::Lost(_)]), "{lost:?}");
        let twice = judge(&[unknown(0, 1, moved.clone())], 10, &balances([4, 16]), &[MOVED, MOVED]);
        assert!(matches!(twice[..], [Violation::Twice(_)]), "{twice:?}");
        let unasked = judge(&[refused(0, 1, moved.clone())], 10, &balances([7, 13]), &[MOVED]);
        assert!(matches!(unasked[..], [Violation::Unasked(_)]), "{unasked:?}");
        let invented = judge(&[], 10, &balances([7, 13]), &[MOVED]);
        assert!(matches!(invented[..], [Violation::Unasked(_)]), "{invented:?}");
        let changed = Transfer { amount: 4, ..MOVED };
        let changed = judge(&[done(0, 1, moved)], 10, &balances([6, 14]), &[changed]);
        assert!(matches!(changed[..], [Violation::Broken(_)]), "{changed:?}");
    }

    /// Two transactions read 10 and each writes what it made of it.
    #[test]
    fn a_lost_update_is_found() {
        let again = Transfer { id: 2, ..MOVED };
        let calls = [done(0, 9, Bank::Transfer(MOVED)), done(0, 9, Bank::Transfer(again))];
        let found = judge(&calls, 10, &balances([7, 13]), &[MOVED, again]);
        assert!(matches!(&found[..], [Violation::Lost(why)] if why.contains("ledger")), "{found:?}");
    }
}
