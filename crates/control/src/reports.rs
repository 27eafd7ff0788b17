//! The latest report of every server, and whether its processes are known to be gone. Filled by the API
//! (agents push) and by lines.rs; read by reconcile.rs.

use std::sync::Mutex;

use kopek_core::observed::{Observed, Report, Seen};
use kopek_core::{Moment, ServerId};
use tokio::sync::Notify;

pub struct Reports {
    observed: Mutex<Observed>,
    changed: Notify,
}

impl Reports {
    /// `since` is when this controller became active.
    pub fn new(since: Moment) -> Reports {
        Reports { observed: Mutex::new(Observed { since, ..Observed::default() }), changed: Notify::new() }
    }

    pub fn record(&self, report: Report, at: Moment) {
        let mut observed = self.lock();
        observed.refused.remove(&report.server);
        observed.servers.insert(report.server.clone(), Seen { at, refused: false, report });
        drop(observed);
        self.changed.notify_one();
    }

    /// The server's processes are gone: its ports refuse connections.
    pub fn mark_refused(&self, server: &ServerId) {
        let mut observed = self.lock();
        match observed.servers.get_mut(server) {
            Some(seen) => seen.refused = true,
            None => drop(observed.refused.insert(server.clone())),
        }
        drop(observed);
        self.changed.notify_one();
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
