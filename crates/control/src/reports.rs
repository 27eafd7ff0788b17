//! The latest report of every server, and whether its processes are known to be gone. Filled by the API
//! (agents push) and by lines.rs; read by reconcile.rs.

use std::sync::Mutex;

use kopek_core::observed::{Observed, Report, Seen};
use kopek_core::{Moment, ServerId};
use tokio::sync::Notify;

pub struct Reports {
    observed: Mutex<Observed>,
    /// What this controller knew before it became active; good for the first refusal.
    known: Mutex<Option<Refusal>>,
    changed: Notify,
}

/// All of a server's ports refuse connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub server: ServerId,
    pub since: Moment,
}

impl Reports {
    /// `since` is when this controller became active.
    pub fn new(since: Moment, known: Option<Refusal>) -> Reports {
        Reports {
            observed: Mutex::new(Observed { since, ..Observed::default() }),
            known: Mutex::new(known),
            changed: Notify::new(),
        }
    }

    pub fn record(&self, report: Report, at: Moment) {
        let mut observed = self.lock();
        observed.refused.remove(&report.server);
        observed.servers.insert(report.server.clone(), Seen { at, report });
        drop(observed);
        self.changed.notify_one();
    }

    /// The server's processes are gone: its ports refuse connections, as was seen at `at`.
    pub fn refuse(&self, server: &ServerId, at: Moment) {
        let known = self.known.lock().expect("no code panics while it holds what was known").take();
        let since = known.filter(|known| known.server == *server).map_or(at, |known| known.since);
        self.lock().refused.entry(server.clone()).or_insert(since);
        self.changed.notify_one();
    }

    /// Something runs there after all.
    pub fn answer(&self, server: &ServerId) {
        self.lock().refused.remove(server);
    }

    pub fn observed(&self) -> Observed {
        self.lock().clone()
    }

    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Observed> {
        self.observed.lock().expect("no code panics while it holds the reports")
    }
}
