//! What all sessions of a worker share. Called by `session` and `listen`.

use std::rc::Rc;

use kopek_core::SiteName;
use kopek_core::desired::Database;
use kopek_core::part::RoutedWriter;

use crate::Following;
use crate::backend::Ways;
use crate::barrier::FilesBarrier;
use crate::opening::Openings;
use crate::place::Places;
use crate::token::{Slots, Tokens};
use crate::warm::{WARM_MAX, Warm};
use crate::writer::{account_of, writer_of};

/// One for each worker.
pub(crate) struct Sites {
    pub(crate) ways: Ways,
    pub(crate) warm: Rc<Warm>,
    pub(super) openings: Openings,
    pub(super) sessions: Places,
    pub(super) waiting: Places,
    pub(super) slots: Rc<Slots>,
    pub(super) barrier: FilesBarrier,
    pub(super) texts: Texts,
    pub(super) tokens: Tokens,
}

/// What becomes of statements that a pool cannot take as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// They are adapted.
    ForPool,
    /// They stay: there is no pool (`alone`).
    AsTheyAre,
}

impl Sites {
    pub(crate) fn new(ways: Ways, slots: Rc<Slots>, sessions: Places, waiting: Places) -> Rc<Sites> {
        Sites::with(ways, slots, sessions, waiting, Texts::ForPool, Tokens::Kept, WARM_MAX)
    }

    pub(crate) fn with(
        ways: Ways,
        slots: Rc<Slots>,
        sessions: Places,
        waiting: Places,
        texts: Texts,
        tokens: Tokens,
        warm_max: usize,
    ) -> Rc<Sites> {
        let warm = Warm::new(ways.clone(), warm_max);
        let openings = Openings::new(ways.clone(), warm.clone());
        Rc::new(Sites {
            ways,
            warm,
            openings,
            sessions,
            waiting,
            slots,
            barrier: FilesBarrier,
            texts,
            tokens,
        })
    }

    pub(super) fn part(&self) -> Following {
        self.ways.part.clone()
    }

    pub(super) fn writer(&self, site: &SiteName) -> Option<RoutedWriter> {
        writer_of(&self.ways.part.borrow(), site).cloned()
    }

    pub(super) fn account(&self, site: &SiteName) -> Option<(u32, Database)> {
        let part = self.ways.part.borrow();
        let number = part.as_ref()?.sites.get(site)?.number;
        Some((number, account_of(&part, site)?.clone()))
    }
}
