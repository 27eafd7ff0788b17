//! Keeps a Unix socket and a TCP listener for each instance of the part. One whose socket file or network
//! namespace was replaced under it (an instance that was made anew) is made anew too; what cannot be made yet
//! is tried again. Called by `worker`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use kopek_core::{InstanceId, SiteName};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::Following;
use crate::netns::{self, Inode};
use crate::session::{Sites, serve};
use crate::wire::Wire;

/// The agent makes namespace and folder about when it publishes the part: what fails is soon tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long a replaced socket or namespace may go unnoticed; a look costs two stat calls an instance.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Accepting fails when descriptors run out; trying again at once would only burn the processor.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Which instances are a worker's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) number: usize,
    pub(crate) of: usize,
}

impl Share {
    fn has(self, instance: &InstanceId) -> bool {
        let mut hasher = DefaultHasher::new();
        instance.hash(&mut hasher);
        hasher.finish() as usize % self.of == self.number
    }
}

/// Where an instance finds its MySQL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    Socket(PathBuf),
    /// 127.0.0.1:3306 in the namespace.
    Netns(PathBuf),
}

/// A listener that is being served.
struct Ear {
    /// Of the socket file, or of the namespace.
    inode: Inode,
    serving: AbortHandle,
}

type Ears = BTreeMap<(InstanceId, Spot), Ear>;

/// For ever. Cuts the sessions of a listener that leaves.
pub(crate) async fn keep_listeners(sites: Rc<Sites>, share: Share) {
    let mut part = sites.ways.part.clone();
    let mut ears = Ears::new();
    let mut serving = JoinSet::new();
    let mut complained = BTreeSet::new();
    loop {
        let wanted = wanted_spots(&part, share);
        remove_others(&mut ears, &wanted);
        let mut missing = BTreeSet::new();
        for (instance, spot) in wanted.into_iter().filter(|key| !ears.contains_key(key)).collect::<Vec<_>>() {
            match listen(&spot).await {
                Ok((inode, listener)) => {
                    info!(%instance, ?spot, "listening");
                    let task = serving.spawn_local(accept(listener, instance.site(), sites.clone()));
                    ears.insert((instance, spot), Ear { inode, serving: task });
                }
                Err(error) => {
                    if !complained.contains(&(instance.clone(), spot.clone())) {
                        warn!(%instance, ?spot, %error, "cannot listen; trying on");
                    }
                    missing.insert((instance, spot));
                }
            }
        }
        let pause = if missing.is_empty() { LOOK_AFTER } else { TRY_AGAIN_AFTER };
        complained = missing;
        while serving.try_join_next().is_some() {}
        match timeout(pause, part.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // The follower lives as long as the runtime: this is the end of both.
            Ok(Err(_)) => return,
        }
    }
}

fn wanted_spots(part: &Following, share: Share) -> BTreeSet<(InstanceId, Spot)> {
    let part = part.borrow();
    let listeners = part.iter().flat_map(|part| &part.listeners).filter(|(id, _)| share.has(id));
    listeners
        .flat_map(|(instance, listener)| {
            [Spot::Socket(listener.socket.clone()), Spot::Netns(listener.netns.clone())]
                .map(|spot| (instance.clone(), spot))
        })
        .collect()
}

/// Also those whose file was replaced or is gone.
fn remove_others(ears: &mut Ears, wanted: &BTreeSet<(InstanceId, Spot)>) {
    ears.retain(|(instance, spot), ear| {
        let there = match spot {
            Spot::Socket(path) => netns::inode_of_socket(path),
            Spot::Netns(path) => netns::inode_of(path),
        };
        let is_same = there.is_ok_and(|inode| inode == ear.inode);
        let is_wanted = wanted.contains(&(instance.clone(), spot.clone()));
        if is_same && is_wanted {
            return true;
        }
        info!(%instance, ?spot, reason = if is_wanted { "replaced" } else { "left the part" }, "listening no more");
        ear.serving.abort();
        if let (Spot::Socket(path), true) = (spot, is_same)
            && let Err(error) = std::fs::remove_file(path)
        {
            warn!(path = %path.display(), %error, "cannot remove the socket");
        }
        false
    });
}

pub(crate) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

async fn listen(spot: &Spot) -> io::Result<(Inode, Listener)> {
    match spot {
        Spot::Socket(path) => {
            let (inode, listener) = netns::bind_socket(path.clone()).await?;
            Ok((inode, Listener::Unix(UnixListener::from_std(listener)?)))
        }
        Spot::Netns(path) => {
            let (inode, listener) = netns::bind_mysql_port(path.clone()).await?;
            Ok((inode, Listener::Tcp(TcpListener::from_std(listener)?)))
        }
    }
}

/// Serves until aborted, which cuts its sessions.
pub(crate) async fn accept(listener: Listener, site: SiteName, sites: Rc<Sites>) {
    let mut sessions = JoinSet::new();
    loop {
        let client: io::Result<Wire> = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Wire::new(stream)),
            Listener::Tcp(listener) => listener.accept().await.and_then(|(stream, _)| {
                stream.set_nodelay(true)?;
                Ok(Wire::new(stream))
            }),
        };
        match client {
            Ok(client) => {
                sessions.spawn_local(serve(sites.clone(), client, site.clone()));
            }
            Err(error) => {
                warn!(%site, %error, "cannot accept a connection");
                sleep(ACCEPT_AGAIN_AFTER).await;
            }
        }
        while sessions.try_join_next().is_some() {}
    }
}
