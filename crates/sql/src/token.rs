//! Commit tokens: what a transaction writes into a row of the site's own beside everything else, so that
//! after the loss of its writer the next one tells whether it was committed. `kopek.site_<number>` has one row
//! for each connection that writes; the agent makes it with the site's database. Called by `session`.

use std::cell::{Cell, RefCell};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use kopek_core::ServerId;
use tokio::time::Instant;

/// A site without the table (of an earlier version, or still being made) is asked again after this.
const ABSENT_FOR: Duration = Duration::from_secs(10);

/// The rows of one worker: each connection that writes has one for itself, and they are used again, so the
/// table does not grow.
pub(crate) struct Slots {
    server: ServerId,
    worker: usize,
    free: RefCell<Vec<u32>>,
    next: Cell<u32>,
}

impl Slots {
    pub(crate) fn new(server: ServerId, worker: usize) -> Rc<Slots> {
        Rc::new(Slots { server, worker, free: RefCell::default(), next: Cell::new(0) })
    }

    pub(crate) fn take(self: &Rc<Self>) -> Slot {
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| self.next.replace(self.next.get() + 1));
        let mut hasher = DefaultHasher::new();
        (&self.server, self.worker, index).hash(&mut hasher);
        Slot { slots: self.clone(), index, row: hasher.finish() }
    }
}

pub(crate) struct Slot {
    slots: Rc<Slots>,
    index: u32,
    row: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.free.borrow_mut().push(self.index);
    }
}

/// One transaction's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    site: u32,
    row: u64,
    value: u64,
}

impl Token {
    pub(crate) fn new(site: u32, slot: &Slot) -> Token {
        Token { site, row: slot.row, value: rand::random() }
    }

    pub(crate) fn write(&self) -> String {
        let Token { site, row, value } = self;
        format!("INSERT INTO kopek.site_{site} VALUES ({row},{value}) ON DUPLICATE KEY UPDATE token={value}")
    }

    /// Gives one row if the transaction was committed.
    pub(crate) fn ask(&self) -> String {
        let Token { site, row, value } = self;
        format!("SELECT 1 FROM kopek.site_{site} WHERE slot={row} AND token={value}")
    }
}

/// Whether writes are marked at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    Kept,
    /// There is no other member that could be asked (`alone`).
    None,
}

impl Tokens {
    pub(crate) fn presence(self) -> Presence {
        match self {
            Tokens::Kept => Presence::default(),
            Tokens::None => Presence::Never,
        }
    }
}

/// Whether a site has its table.
pub(crate) enum Presence {
    Never,
    MissedAt(Cell<Option<Instant>>),
}

impl Default for Presence {
    fn default() -> Presence {
        Presence::MissedAt(Cell::default())
    }
}

impl Presence {
    pub(crate) fn is_there(&self) -> bool {
        match self {
            Presence::Never => false,
            Presence::MissedAt(at) => at.get().is_none_or(|missed| missed.elapsed() > ABSENT_FOR),
        }
    }

    pub(crate) fn was_missed(&self) {
        if let Presence::MissedAt(at) = self {
            at.set(Some(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_connections_share_a_row_and_rows_are_used_again() {
        let server = ServerId::parse("s1").unwrap();
        let (one, other) = (Slots::new(server.clone(), 0), Slots::new(server, 1));
        let (a, b, c) = (one.take(), one.take(), other.take());
        assert!(a.row != b.row && a.row != c.row && b.row != c.row);
        let row = a.row;
        drop(a);
        assert_eq!(one.take().row, row);
        assert_ne!(Token::new(5, &b), Token::new(5, &b), "each transaction has its own");
    }
}
