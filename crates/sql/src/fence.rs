//! Which epochs of a site's writer are over on this server, whatever the agent last said, and how many
//! connections to the member are still open for a site. The server of the next writer asks the one of the
//! former to close before it begins, so that no two members serve a site at once.
//! Held by `member` for each connection; asked by `relay`.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kopek_core::SiteName;
use nix::sys::socket::{Shutdown, shutdown};
use tokio::sync::watch;
use tokio::time::timeout;

/// Sessions leave by themselves within 50 ms. One does not while its client reads nothing or sends half a
/// statement: its connection to the member is cut, or nobody of its site could go on elsewhere.
const LEAVE_LIMIT: Duration = Duration::from_millis(150);

#[derive(Debug, Default)]
struct Site {
    /// Epochs up to this one are closed.
    closed: u64,
    open: BTreeMap<u64, Open>,
    next: u64,
}

#[derive(Debug)]
struct Open {
    epoch: u64,
    /// A second hold of its socket, by which it can be cut.
    line: Option<OwnedFd>,
}

impl Site {
    fn is_left(&self, epoch: u64) -> bool {
        self.open.values().all(|open| open.epoch > epoch)
    }

    /// The member reads no more of it, and whoever waits for the member's answer finds its end.
    fn cut(&mut self, epoch: u64) {
        self.open.retain(|_, open| {
            let line = open.line.as_ref().filter(|_| open.epoch <= epoch);
            // An error says that it has ended already.
            line.map(|line| shutdown(line.as_raw_fd(), Shutdown::Both)).is_none()
        });
    }
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
        let mut number = 0;
        let entered = fence.send_if_modified(|state| {
            let is_open = epoch > state.closed;
            if is_open {
                (number, state.next) = (state.next, state.next + 1);
                state.open.insert(number, Open { epoch, line: None });
            }
            is_open
        });
        entered.then(|| Entered { fence, epoch, number })
    }

    /// Lets nobody in any more, and returns when everybody has left or was cut.
    pub(crate) async fn close(&self, site: &SiteName, epoch: u64) {
        let fence = self.of(site);
        fence.send_modify(|state| state.closed = state.closed.max(epoch));
        self.closings.send_modify(|count| *count += 1);
        let mut state = fence.subscribe();
        // The sender in our hands keeps the channel open.
        if timeout(LEAVE_LIMIT, state.wait_for(|state| state.is_left(epoch))).await.is_err() {
            fence.send_modify(|state| state.cut(epoch));
        }
        let _ = state.wait_for(|state| state.is_left(epoch)).await;
    }
}

/// One open connection of a site to this server's member.
pub(crate) struct Entered {
    fence: watch::Sender<Site>,
    epoch: u64,
    number: u64,
}

impl Entered {
    /// The socket of it, so that it can be cut.
    pub(crate) fn is_by(&self, line: OwnedFd) {
        self.fence.send_if_modified(|state| {
            if let Some(open) = state.open.get_mut(&self.number) {
                open.line = Some(line);
            }
            false
        });
    }

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
        self.fence.send_modify(|state| {
            state.open.remove(&self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;

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

    #[tokio::test]
    async fn a_connection_that_does_not_leave_is_cut_and_one_of_a_later_epoch_is_not() {
        let fences = Fences::default();
        let site = SiteName::parse("blog").unwrap();
        let (old, new) = (fences.enter(&site, 1).unwrap(), fences.enter(&site, 2).unwrap());
        let [(mut one, one_far), (two, _two_far)] = [(); 2].map(|()| UnixStream::pair().unwrap());
        old.is_by(one.try_clone().unwrap().into());
        new.is_by(two.try_clone().unwrap().into());
        timeout(Duration::from_secs(10), fences.close(&site, 1)).await.expect("closed");
        assert_eq!(one.read(&mut [0]).unwrap(), 0, "cut");
        two.set_nonblocking(true).unwrap();
        assert_eq!((&two).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop((old, new, one_far));
        timeout(Duration::from_secs(10), fences.close(&site, 2)).await.expect("nobody is left");
    }
}
