//! Changes of big tables, which stop a pool's writes for as long as they take: one at a time in a pool. Known to the
//! `sql` that keeps the pool's line, told to its agent, reported to the controller, shown as events.

use serde::{Deserialize, Serialize};

use crate::id::SiteName;
use crate::units::Moment;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BigChange {
    /// One `sql` gives none twice, also not after its restart.
    pub number: u64,
    pub site: SiteName,
    pub table: String,
    /// When it asked for its turn.
    pub asked: Moment,
    pub phase: Phase,
}

/// ```text
///   Waiting ──► Running ──► Done, Failed or Left
///      └──────────────────► GivenUp
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Waiting {
        behind: SiteName,
    },
    Running {
        since: Moment,
    },
    Done {
        since: Moment,
        until: Moment,
    },
    /// The member answered with this error.
    Failed {
        since: Moment,
        until: Moment,
        code: u16,
    },
    /// Its connection was lost: it may still run, or may never have begun.
    Left {
        since: Moment,
        until: Moment,
    },
    /// Its client's patience ended, or its client left.
    GivenUp {
        until: Moment,
    },
}

impl BigChange {
    /// When it came into its phase.
    pub fn since(&self) -> Moment {
        match self.phase {
            Phase::Waiting { .. } => self.asked,
            Phase::Running { since } => since,
            Phase::Done { until, .. }
            | Phase::Failed { until, .. }
            | Phase::Left { until, .. }
            | Phase::GivenUp { until } => until,
        }
    }
}
