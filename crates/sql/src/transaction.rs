//! What a client did in the transaction that is open, so that it can be done again elsewhere: each command,
//! and a hash of the answer that the client saw. Called by `session`.

use std::time::{SystemTime, UNIX_EPOCH};

use blake3::Hash;
use bytes::Bytes;

use crate::effect::Stays;

/// Longer ones are not repeated when their writer is lost: the client gets the error that MySQL would give.
const COMMANDS_MAX: usize = 1_000;
const BYTES_MAX: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Transaction {
    done: Vec<Done>,
    bytes: usize,
    /// The member says that one is open.
    pub(crate) is_open: bool,
    pub(crate) has_written: bool,
    spoiled: Option<&'static str>,
}

/// One command of it and the answer that the client has seen.
#[derive(Clone)]
pub(crate) struct Done {
    pub(crate) packet: Bytes,
    pub(crate) stays: Stays,
    pub(crate) seen: Seen,
    /// When it was first sent, since 1970: what NOW() meant.
    pub(crate) micros: u64,
    /// The first id that it was given; 0: none.
    pub(crate) insert_id: u64,
}

/// How much of an answer went to the client, and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) bytes: u64,
    pub(crate) hash: Hash,
}

impl Transaction {
    pub(crate) fn done(&self) -> &[Done] {
        assert!(self.spoiled.is_none(), "a spoiled transaction is not repeated");
        &self.done
    }

    /// Why it cannot be repeated.
    pub(crate) fn spoiled(&self) -> Option<&'static str> {
        self.spoiled
    }

    /// What was set in it outlives it all the same.
    pub(crate) fn spoil(&mut self, why: &'static str) {
        self.spoiled.get_or_insert(why);
        self.done.retain(|done| done.stays != Stays::Nothing);
        self.bytes = self.done.iter().map(|done| done.packet.len()).sum();
    }

    /// False: so much was set in it that the session cannot be carried any more.
    pub(crate) fn push(&mut self, done: Done) -> bool {
        if self.done.len() == COMMANDS_MAX || self.bytes + done.packet.len() > BYTES_MAX {
            self.spoil("a transaction that is longer than what is kept");
        }
        if self.spoiled.is_some() && done.stays == Stays::Nothing {
            return true;
        }
        self.bytes += done.packet.len();
        self.done.push(done);
        self.done.len() < COMMANDS_MAX && self.bytes <= BYTES_MAX
    }

    /// It is over. Gives what was set in it: settings outlive it, also when it was rolled back.
    pub(crate) fn end(&mut self) -> Vec<Done> {
        let mut done = std::mem::take(self).done;
        done.retain(|done| done.stays != Stays::Nothing);
        done
    }
}

pub(crate) fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Makes the next statement think that it is then, and have the id that it had.
pub(crate) fn pinned(done: &Done) -> String {
    let (seconds, micros) = (done.micros / 1_000_000, done.micros % 1_000_000);
    match done.insert_id {
        0 => format!("SET timestamp={seconds}.{micros:06}"),
        id => format!("SET timestamp={seconds}.{micros:06}, insert_id={id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(stays: Stays, length: usize) -> Done {
        let seen = Seen { bytes: 0, hash: blake3::hash(b"") };
        Done { packet: vec![0; length].into(), stays, seen, micros: 1_500_000, insert_id: 0 }
    }

    #[test]
    fn what_was_set_in_a_transaction_outlives_it() {
        let mut transaction = Transaction { is_open: true, ..Transaction::default() };
        transaction.push(done(Stays::Nothing, 10));
        transaction.push(done(Stays::Setting, 11));
        let kept = transaction.end();
        assert_eq!(kept.iter().map(|done| done.packet.len()).collect::<Vec<_>>(), [11]);
        assert!(!transaction.is_open && transaction.done().is_empty());
    }

    #[test]
    fn a_transaction_that_grows_too_long_is_not_kept() {
        let mut transaction = Transaction::default();
        for _ in 0..3 {
            assert!(transaction.push(done(Stays::Nothing, BYTES_MAX / 3 + 1)));
        }
        assert!(transaction.spoiled().is_some());
        assert!(transaction.end().is_empty());
    }

    #[test]
    fn time_and_ids_are_pinned() {
        assert_eq!(pinned(&done(Stays::Nothing, 1)), "SET timestamp=1.500000");
        let inserted = Done { insert_id: 9, ..done(Stays::Nothing, 1) };
        assert_eq!(pinned(&inserted), "SET timestamp=1.500000, insert_id=9");
    }
}
