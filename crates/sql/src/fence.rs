//! Which epochs of a site's writer are over on this server, whatever the agent last said, and how many
//! connections to the member are still open for a site. The server of the next writer asks the one of the
//! former to close before it begins, so that no two members serve a site at once.
//! Held by `member` for each connection; asked by `relay`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kopek_core::SiteName;
use tokio::sync::watch;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Site {
    /// Epochs up to this one are closed.
    closed: u64,
    open: usize,
}

/// Cheap to clone; one for the process.
#[derive(Clone, Default)]
pub(crate) struct Fences {
    sites: Arc<Mutex<BTreeMap<SiteName, watch::Sender<Site>>>>,
    /// Counts what was closed: those who keep idle connections look which.
    closings: watch::Sender<u64>,
}

impl Fences {
    fn of(&self, site: &SiteName) -> watch::Sender<Site> {
        let mut sites = self.sites.lock().expect("nothing panics while it holds the lock");
        sites.entry(site.clone()).or_default().clone()
    }

    pub(crate) fn closings(&self) -> watch::Receiver<u64> {
        self.closings.subscribe()
    }

    /// A place for one connection; `None` if the epoch is closed.
    pub(crate) fn enter(&self, site: &SiteName, epoch: u64) -> Option<Entered> {
        let fence = self.of(site);
        let entered = fence.send_if_modified(|state| {
            let is_open = epoch > state.closed;
            state.open += usize::from(is_open);
            is_open
        });
        entered.then(|| Entered { fence, epoch })
    }

    /// Lets nobody in any more, and returns when everybody has left.
    pub(crate) async fn close(&self, site: &SiteName, epoch: u64) {
        let fence = self.of(site);
        fence.send_modify(|state| state.closed = state.closed.max(epoch));
        self.closings.send_modify(|count| *count += 1);
        // The sender in our hands keeps the channel open.
        let _ = fence.subscribe().wait_for(|state| state.open == 0).await;
    }
}

/// One open connection of a site to this server's member.
pub(crate) struct Entered {
    fence: watch::Sender<Site>,
    epoch: u64,
}

impl Entered {
    pub(crate) fn is_closed(&self) -> bool {
        self.epoch <= self.fence.borrow().closed
    }

    /// Returns when the epoch was closed: the connection has to end.
    pub(crate) async fn closed(&self) {
        let _ = self.fence.subscribe().wait_for(|state| self.epoch <= state.closed).await;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.fence.send_modify(|state| state.open -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_closed_epoch_lets_nobody_in_and_is_closed_when_the_last_has_left() {
        let fences = Fences::default();
        let site = SiteName::parse("blog").unwrap();
        let first = fences.enter(&site, 1).unwrap();
        assert!(timeout(Duration::from_millis(20), first.closed()).await.is_err());
        let closing = tokio::spawn({
            let (fences, site) = (fences.clone(), site.clone());
            async move { fences.close(&site, 1).await }
        });
        timeout(Duration::from_secs(10), first.closed()).await.expect("told to leave");
        assert!(fences.enter(&site, 1).is_none());
        assert!(!closing.is_finished());
        drop(first);
        timeout(Duration::from_secs(10), closing).await.expect("closed").unwrap();
        assert!(fences.enter(&site, 2).is_some());
    }
}
