//! A running watch. Each kind of store feeds it from a task of its own, so that a caller may drop `next`
//! half-way (in a `select!`) and lose nothing.

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::store::{Change, Range, Store, StoreError};

/// Batches that wait for a slow caller. When it is full the feeding task waits; a caller that stays away
/// long enough finds its place compacted.
pub(crate) const BATCHES_MAX: usize = 64;

/// Changes under one prefix, in order, each once.
#[derive(Debug)]
pub struct Watch {
    batches: mpsc::Receiver<Vec<Change>>,
    feeder: AbortHandle,
}

/// The one way in which a watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("changes are missing from here on; list again and watch from that revision")]
    Compacted,
}

impl Watch {
    /// `feed` sends batches until the changes after the last one cannot be had any more, then returns.
    pub(crate) fn fed_by<F>(feed: impl FnOnce(mpsc::Sender<Vec<Change>>) -> F) -> Watch
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, batches) = mpsc::channel(BATCHES_MAX);
        let feeder = tokio::spawn(feed(sender)).abort_handle();
        Watch { batches, feeder }
    }

    /// Awaits the next changes: never empty, and never part of a commit. May be dropped half-way.
    pub async fn next(&mut self) -> Result<Vec<Change>, WatchError> {
        self.batches.recv().await.ok_or(WatchError::Compacted)
    }
}

/// What is under a prefix, and every change after that.
pub async fn read_and_watch(store: &dyn Store, prefix: &str) -> Result<(Range, Watch), StoreError> {
    let range = store.range(prefix).await?;
    let watch = store.watch(prefix, range.revision).await?;
    Ok((range, watch))
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.feeder.abort();
    }
}
