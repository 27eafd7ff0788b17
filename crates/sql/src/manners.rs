//! How sessions treat what they pass on: as a pool needs it, or, before a database that stands alone, as little
//! as can be. Chosen once for all sessions, by `worker` or by `alone`.

use crate::token::Tokens;
use crate::warm::WARM_MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manners {
    pub texts: Texts,
    pub tokens: Tokens,
    pub deadlocks: Deadlocks,
    /// Connections that are held open for the next clients, for each site and worker.
    pub warm_max: usize,
}

impl Manners {
    pub const OF_A_POOL: Manners = Manners {
        texts: Texts::ForPool,
        tokens: Tokens::Kept,
        deadlocks: Deadlocks::Repeated,
        warm_max: WARM_MAX,
    };
}

/// What becomes of statements that a pool cannot take as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// They are adapted.
    ForPool,
    /// They stay: there is no pool (`alone`).
    AsTheyAre,
}

/// What becomes of a transaction that the member rolled back for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deadlocks {
    /// It is done again, for in a pool they come of nothing that the client could see.
    Repeated,
    /// The client hears of it (`alone`): a suite of tests makes its deadlocks on purpose.
    Told,
}

impl Deadlocks {
    /// How often a transaction is done again.
    pub(crate) fn tries(self) -> u32 {
        match self {
            // Others' transactions of a few milliseconds are over by then.
            Deadlocks::Repeated => 5,
            Deadlocks::Told => 0,
        }
    }
}
