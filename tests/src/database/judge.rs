//! What a history must keep, whatever failed meanwhile. Pure; called by chaos.rs after each round.
//!
//! - inserts: an acknowledged row is there exactly once, an unknown one at most once, a refused one not at all
//! - counts: no increment is lost or made twice, no read is older than what was acknowledged before it
//! - bank: every read adds up to the same total, the balances are what the ledger's transfers make of them
//! - appends: transactions are atomic and as if one after the other, in an order that fits the clock
//! - marks: what was acknowledged through one instance is seen through every other

mod appends;
mod bank;
mod counts;
mod cycle;
mod inserts;
mod marks;

use std::fmt;

pub use appends::judge as judge_appends;
pub use bank::judge as judge_bank;
pub use counts::judge as judge_counts;
pub use inserts::judge as judge_inserts;
pub use marks::judge as judge_marks;

use crate::database::history::{End, History};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Acknowledged, and not there.
    Lost(String),
    /// There more often than it was asked for.
    Twice(String),
    /// Refused, or never asked for, and there nevertheless.
    Unasked(String),
    /// A read shows an older state than was acknowledged, or read, before it began.
    Stale(String),
    /// What is true of every state is not true of this one.
    Broken(String),
    /// Transactions that each must have come before the next, and the last before the first.
    Cycle(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Lost(what) => write!(f, "lost: {what}"),
            Violation::Twice(what) => write!(f, "done twice: {what}"),
            Violation::Unasked(what) => write!(f, "done though refused or never asked for: {what}"),
            Violation::Stale(what) => write!(f, "stale: {what}"),
            Violation::Broken(what) => write!(f, "broken: {what}"),
            Violation::Cycle(what) => write!(f, "no order explains it: {what}"),
        }
    }
}

/// `opening`: what each account had when the round began.
pub fn judge(history: &History, end: &End, opening: i64) -> Vec<Violation> {
    let mut found = judge_inserts(&history.inserts, &end.rows);
    found.extend(judge_counts(&history.counts, end.count));
    found.extend(judge_bank(&history.bank, opening, &end.balances, &end.ledger));
    found.extend(judge_appends(&history.appends, &end.lists));
    found.extend(judge_marks(&history.marks));
    found
}

/// Short words for histories made by hand.
#[cfg(test)]
mod made {
    use crate::database::history::{Call, Outcome};

    pub fn done<W>(begun: u64, ended: u64, what: W) -> Call<W> {
        Call { begun, ended, outcome: Outcome::Acknowledged, what }
    }

    pub fn refused<W>(begun: u64, ended: u64, what: W) -> Call<W> {
        Call { begun, ended, outcome: Outcome::Refused, what }
    }

    pub fn unknown<W>(begun: u64, ended: u64, what: W) -> Call<W> {
        Call { begun, ended, outcome: Outcome::Unknown, what }
    }
}
