//! The store in one file, for a cell that has no etcd: redb below, everything in memory above.
//!
//! A commit is decided against memory, written durably, then applied to memory; readers never wait for the
//! disk. History for watches is kept in memory only and bounded: a watch from before it hears `Compacted`.
//! One process opens the file (the agent of the host) and serves it to the others by `served`.

mod file;
mod state;

use std::path::Path;
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tracing::warn;

use crate::moving::{self, MOVED_KEY};
use crate::store::{
    Change, Commit, Compare, Entry, LeaseId, Op, Range, Revision, Store, StoreError, check_commit, whole_ttl,
};
use crate::watch::Watch;
use file::File;
pub use state::HistoryLimits;
use state::{History, State};

/// How often lost leases are looked for. etcd looks as often.
const SWEEP: Duration = Duration::from_millis(500);

/// The embedded store. Dropping it stops its task and, once its watches have noticed, closes the file.
pub struct Embedded {
    inner: Arc<Inner>,
    sweeper: AbortHandle,
}

struct Inner {
    /// Held from the decision of a commit until it is applied: commits are done one after the other.
    file: Mutex<File>,
    state: RwLock<State>,
    revision: watch::Sender<Revision>,
}

impl Embedded {
    /// Opens the file, or makes it. It must be called in a tokio runtime.
    pub fn open(path: &Path) -> Result<Embedded, StoreError> {
        Embedded::open_with(path, HistoryLimits::default())
    }

    pub fn open_with(path: &Path, limits: HistoryLimits) -> Result<Embedded, StoreError> {
        let file = File::open(path)?;
        let saved = file.read()?;
        let revision = watch::Sender::new(saved.revision);
        let state = RwLock::new(State::new(saved, limits, Instant::now()));
        let inner = Arc::new(Inner { file: Mutex::new(file), state, revision });
        let sweeper = tokio::spawn(sweep(Arc::downgrade(&inner))).abort_handle();
        Ok(Embedded { inner, sweeper })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.sweeper.abort();
    }
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        let state = self.inner.state();
        Ok(Range { entries: state.under(prefix).cloned().collect(), revision: state.revision })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.inner.state().entries.get(key).cloned())
    }

    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        check_commit(&compares, &ops)?;
        let inner = self.inner.clone();
        blocking(move || inner.commit(&compares, &ops)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let inner = Arc::downgrade(&self.inner);
        let revision = self.inner.revision.subscribe();
        let prefix = prefix.to_owned();
        Ok(Watch::fed_by(|batches| feed(inner, revision, prefix, from, batches)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let inner = self.inner.clone();
        let lease = LeaseId(rand::random_range(1..i64::MAX));
        blocking(move || inner.grant(lease, whole_ttl(ttl))).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let mut state = self.inner.state.write().expect("a commit does not panic");
        state.keep_alive(lease, Instant::now())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        blocking(move || inner.end_lease(lease)).await
    }
}

impl Inner {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("a commit does not panic")
    }

    fn commit(&self, compares: &[Compare], ops: &[Op]) -> Result<Commit, StoreError> {
        let file = self.file.lock().expect("a commit does not panic");
        let (changes, revision) = {
            let state = self.state();
            if let Some(marker) = state.entries.get(MOVED_KEY)
                && !moving::is_about_the_marker(compares)
            {
                return Err(moving::refusal(marker));
            }
            if !compares.iter().all(|compare| compare.holds(state.entries.get(compare.key()))) {
                return Ok(Commit::Conflict);
            }
            (state.changes_by(ops, Instant::now())?, state.revision)
        };
        if changes.is_empty() {
            return Ok(Commit::Done { revision });
        }
        file.write(&changes, None)?;
        self.apply(changes);
        Ok(Commit::Done { revision: revision + 1 })
    }

    fn apply(&self, changes: Vec<Change>) {
        let mut state = self.state.write().expect("a commit does not panic");
        state.apply(changes);
        self.revision.send_replace(state.revision);
    }

    fn grant(&self, lease: LeaseId, ttl: Duration) -> Result<LeaseId, StoreError> {
        let file = self.file.lock().expect("a commit does not panic");
        file.write_lease(lease, ttl)?;
        self.state.write().expect("a commit does not panic").grant(lease, ttl, Instant::now());
        Ok(lease)
    }

    fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let file = self.file.lock().expect("a commit does not panic");
        self.end_lease_in(&file, lease)
    }

    fn end_lease_in(&self, file: &File, lease: LeaseId) -> Result<(), StoreError> {
        let changes = self.state().changes_by_end_of(lease)?;
        file.write(&changes, Some(lease))?;
        self.state.write().expect("a commit does not panic").forget(lease);
        if !changes.is_empty() {
            self.apply(changes);
        }
        Ok(())
    }

    /// The leases are judged with the file locked: one that is kept alive until then stays.
    fn end_lost_leases(&self) -> Result<(), StoreError> {
        let file = self.file.lock().expect("a commit does not panic");
        let lost = self.state().lost_leases(Instant::now());
        lost.into_iter().try_for_each(|lease| self.end_lease_in(&file, lease))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and whoever waits for this with it.
        Err(_) => std::future::pending().await,
    }
}

/// Feeds one watch from the history; see `Watch::fed_by`.
async fn feed(
    inner: Weak<Inner>,
    mut revision: watch::Receiver<Revision>,
    prefix: String,
    from: Revision,
    batches: mpsc::Sender<Vec<Change>>,
) {
    let mut seen = from;
    loop {
        revision.mark_unchanged();
        let (found, upto) = match inner.upgrade() {
            Some(inner) => {
                let state = inner.state();
                (state.history.after(seen, &prefix), state.revision)
            }
            None => return,
        };
        match found {
            History::Compacted => return,
            History::Kept(changes) if changes.is_empty() => {}
            History::Kept(changes) => {
                if batches.send(changes).await.is_err() {
                    return;
                }
            }
        }
        seen = seen.max(upto);
        if revision.changed().await.is_err() {
            return;
        }
    }
}

async fn sweep(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.state().lost_leases(Instant::now()).is_empty() {
            continue;
        }
        if let Err(error) = blocking(move || inner.end_lost_leases()).await {
            warn!(%error, "lost leases not ended; trying again");
        }
    }
}
