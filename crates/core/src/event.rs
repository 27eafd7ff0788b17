//! Decisions and happenings with their reason, as `kopek events` shows them. Stored at `/events/KEY`, the
//! newest `KEPT`.

use serde::{Deserialize, Serialize};

use crate::units::Moment;

/// Events kept in the store: some days of a busy cell in about a megabyte.
pub const KEPT: usize = 2_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub at: Moment,
    /// The server, site, instance or pool it is about.
    pub subject: String,
    /// What was done, in a few words: `scaled out`.
    pub what: String,
    /// Why: `load 2.31 ≥ 2.00`.
    pub reason: String,
}

impl Event {
    /// Keys sort by the clocks of the controllers that wrote them, which may differ: only the store's revision
    /// tells what came after what. `nth` (a counter, taken modulo 10,000) tells events of one millisecond apart.
    pub fn key(&self, nth: u64) -> String {
        format!("{}{:015}-{:04}", crate::keys::EVENTS, self.at.0, nth % 10_000)
    }
}
