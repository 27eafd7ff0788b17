//! What the active controller has while it is active; the API's handlers and the reconcile loop share it.
//! Every write goes through the leader's fence, so that a controller which was deposed changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kopek_core::config::Dirs;
use kopek_core::event::Event;
use kopek_core::{Moment, ServerId, SiteName};
use kopek_link::clock::now;
use kopek_link::http::Api;
use kopek_link::identity::Identity;
use kopek_store::{Commit, Compare, Location, Op, Store, StoreError};
use tokio::sync::{Mutex, watch};

use crate::reports::Reports;
use crate::state::put;
use crate::view::View;

/// The reconcile loop takes a commit over in milliseconds, unless the store has just failed.
const VIEW_LIMIT: Duration = Duration::from_secs(2);

pub struct Active {
    pub me: ServerId,
    pub dirs: Dirs,
    pub identity: Identity,
    pub store: Arc<dyn Store>,
    pub fence: Compare,
    /// Where the cell's state lies now.
    pub location: watch::Receiver<Location>,
    pub reports: Arc<Reports>,
    /// To the agents.
    pub api: Api,
    pub view: watch::Receiver<Arc<View>>,
    /// Held by handlers that check something over all sites or servers and then write.
    pub editing: Mutex<()>,
    pub events: AtomicU64,
    /// Sites whose database is being filled or dropped.
    pub turns: std::sync::Mutex<BTreeSet<SiteName>>,
}

impl Active {
    pub fn now(&self) -> Moment {
        now()
    }

    pub fn turns_taken(&self) -> std::sync::MutexGuard<'_, BTreeSet<SiteName>> {
        self.turns.lock().expect("no code panics while it holds the turns")
    }

    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Commits under the fence. Returns when the view shows it, so that who asks next sees it too.
    pub async fn commit(&self, mut compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        compares.push(self.fence.clone());
        let commit = self.store.commit(compares, ops).await?;
        if let Commit::Done { revision } = commit {
            self.wait_until(VIEW_LIMIT, |view| view.state.revision >= revision).await;
        }
        Ok(commit)
    }

    pub fn event(&self, subject: impl ToString, what: &str, reason: impl ToString) -> Op {
        self.event_op(&Event {
            at: self.now(),
            subject: subject.to_string(),
            what: what.to_owned(),
            reason: reason.to_string(),
        })
    }

    pub fn event_op(&self, event: &Event) -> Op {
        put(event.key(self.events.fetch_add(1, Ordering::Relaxed)), event)
    }

    /// Waits until the view fulfils a condition; false when `limit` passed first.
    pub async fn wait_until(&self, limit: Duration, mut holds: impl FnMut(&View) -> bool) -> bool {
        let mut view = self.view.clone();
        let reached = view.wait_for(|view| holds(view));
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }
}
