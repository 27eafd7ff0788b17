//! What all sessions of a worker share. Called by `session` and `listen`.

use std::rc::Rc;

use kopek_core::SiteName;
use kopek_core::desired::Database;
use kopek_core::part::RoutedWriter;

use crate::Following;
use crate::backend::Ways;
use crate::barrier::FilesBarrier;
use crate::budget::Budgets;
use crate::manners::Manners;
use crate::meter::Meters;
use crate::opening::Openings;
use crate::place::Places;
use crate::token::Slots;
use crate::warm::Warm;
use crate::writer::{account_of, writer_of};

/// Connections of one site through this server. A web server's default is 150 workers; jobs and a second
/// instance have room beside them.
pub(crate) const EACH_SITE_MAX: usize = 512;
/// As many as a busy web server's workers; more would only wait to be turned away.
const WAITING_MAX: usize = 256;

/// One for each worker.
pub(crate) struct Sites {
    pub(crate) ways: Ways,
    pub(crate) warm: Rc<Warm>,
    pub(super) openings: Openings,
    pub(crate) meters: Rc<Meters>,
    pub(super) bounds: Bounds,
    pub(super) slots: Rc<Slots>,
    pub(super) barrier: FilesBarrier,
    pub(super) manners: Manners,
}

/// What a site may have of this server, whichever worker it comes to. Cheap to clone; clones count together.
#[derive(Clone)]
pub(crate) struct Bounds {
    pub(super) sessions: Places,
    pub(super) waiting: Places,
    budgets: Budgets,
}

impl Default for Bounds {
    fn default() -> Self {
        let (sessions, waiting) = (Places::new(EACH_SITE_MAX), Places::new(WAITING_MAX));
        Bounds { sessions, waiting, budgets: Budgets::default() }
    }
}

impl Sites {
    pub(crate) fn new(ways: Ways, slots: Rc<Slots>, bounds: Bounds, manners: Manners) -> Rc<Sites> {
        let warm = Warm::new(ways.clone(), manners.warm_max);
        let openings = Openings::new(ways.clone(), warm.clone());
        let meters = Meters::new(ways.part.clone(), bounds.budgets.clone());
        Rc::new(Sites { ways, warm, openings, meters, bounds, slots, barrier: FilesBarrier, manners })
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
