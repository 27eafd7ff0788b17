//! Which controller is active. It holds the key `/leader` under a lease and fences every write with that
//! key's revision. Because of the fence a leader that is known dead may be deposed by anyone at once, without
//! waiting for its lease: a controller that lives on after all can change nothing.
//!
//! ```text
//!            key absent                         key or lease lost, resigned
//!  Waiting ─────────────▶ Standing ──▶ Leading ─────────────────────────────▶ Waiting
//!     │  ▲                    │ another was first
//!     │  └────────────────────┘
//!     └── the leader's controller is dead: depose it, stand at once
//! ```
//! Called by `control`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kopek_core::ServerId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::store::{Change, Commit, Compare, Entry, LeaseId, Op, Revision, Store, StoreError};
use crate::watch::{Watch, read_and_watch};

pub const LEADER_KEY: &str = "/leader";
/// Outlives leaders: the last term.
const TERM_KEY: &str = "/leader-term";

/// The shortest lease that etcd grants.
const TTL: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A leader that could not confirm its lease for so long stops acting as one. Longer than an election among
/// etcd's members takes, which alone must not move control; the fence holds meanwhile.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(4);
/// How often a standby asks whether the leader's controller lives, and how long it waits for the answer.
const ALIVE_EVERY: Duration = Duration::from_millis(100);
const ALIVE_LIMIT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(100);

/// What `/leader` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    pub server: ServerId,
    /// Of its controller's API.
    pub address: SocketAddr,
    /// One more than the leader before.
    pub term: u64,
}

impl Leader {
    fn in_entry(entry: &Entry) -> Option<Leader> {
        serde_json::from_slice(&entry.value).ok()
    }
}

/// Held by the active controller. Dropping it resigns.
pub struct Leadership {
    pub leader: Leader,
    revision: Revision,
    store: Arc<dyn Store>,
    lease: LeaseId,
    keeper: AbortHandle,
    lost: watch::Receiver<bool>,
}

impl Leadership {
    /// Goes into every commit of the active controller.
    pub fn fence(&self) -> Compare {
        Compare::RevisionIs { key: LEADER_KEY.to_owned(), revision: self.revision }
    }

    /// Resolves when it is lost.
    pub async fn lost(&self) {
        // The keeper says so before it ends; if it ended otherwise, nobody keeps the lease.
        let _ = self.lost.clone().wait_for(|lost| *lost).await;
    }

    /// Lets another take over at once.
    pub async fn resign(self) {
        self.keeper.abort();
        // Unheard, the lease runs out.
        let _ = self.store.revoke(self.lease).await;
    }
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.keeper.abort();
        let (store, lease) = (self.store.clone(), self.lease);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { store.revoke(lease).await });
        }
    }
}

/// Waits until this controller is the active one. `is_alive` tells whether the controller of a leader answers;
/// it is given a second. Fails only when the store refuses for good.
pub async fn campaign<A, F>(
    store: Arc<dyn Store>,
    me: &ServerId,
    address: SocketAddr,
    is_alive: A,
) -> Result<Leadership, StoreError>
where
    A: Fn(Leader) -> F,
    F: Future<Output = bool>,
{
    loop {
        let step = async {
            let (range, watch) = read_and_watch(store.as_ref(), LEADER_KEY).await?;
            match leader_entry(range.entries) {
                None => stand(&store, me, address).await,
                Some(entry) => {
                    let mine = Leader::in_entry(&entry)
                        .is_some_and(|leader| leader.server == *me && leader.address == address);
                    // One's own key from an earlier life needs no proof of death.
                    if mine || outlived(&entry, watch, &is_alive).await {
                        depose(store.as_ref(), &entry).await?;
                    }
                    Ok(None)
                }
            }
        };
        match step.await {
            Ok(Some(leadership)) => return Ok(leadership),
            Ok(None) => {}
            Err(error @ (StoreError::Refused { .. } | StoreError::File { .. })) => return Err(error),
            Err(error) => {
                debug!(%error, "the store keeps a campaign waiting");
                sleep(RETRY).await;
            }
        }
    }
}

/// Waits while a leader leads. True: its controller is dead; false: its key has changed.
async fn outlived<A, F>(entry: &Entry, mut watch: Watch, is_alive: &A) -> bool
where
    A: Fn(Leader) -> F,
    F: Future<Output = bool>,
{
    loop {
        tokio::select! {
            _ = watch.next() => return false,
            () = sleep(ALIVE_EVERY) => {}
        }
        // An unreadable entry is left to its lease.
        let Some(leader) = Leader::in_entry(entry) else { continue };
        if !timeout(ALIVE_LIMIT, is_alive(leader)).await.unwrap_or(false) {
            return true;
        }
    }
}

/// Takes the place of a leader that is known dead: deletes exactly the entry that was seen. Harmless if it
/// is not there any more.
pub async fn depose(store: &dyn Store, seen: &Entry) -> Result<(), StoreError> {
    let same = Compare::RevisionIs { key: LEADER_KEY.to_owned(), revision: seen.revision };
    let delete = Op::Delete { key: LEADER_KEY.to_owned() };
    if let Commit::Done { .. } = store.commit(vec![same], vec![delete]).await? {
        let server = Leader::in_entry(seen).map(|leader| leader.server.to_string());
        info!(server, reason = "its controller does not answer", "deposed the leader");
    }
    Ok(())
}

/// Tries to become the leader. Nothing if another was first.
async fn stand(
    store: &Arc<dyn Store>,
    me: &ServerId,
    address: SocketAddr,
) -> Result<Option<Leadership>, StoreError> {
    let last = store.get(TERM_KEY).await?;
    let text = last.as_ref().and_then(|entry| std::str::from_utf8(&entry.value).ok());
    let term = text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) + 1;
    let same_term = match &last {
        Some(entry) => Compare::RevisionIs { key: TERM_KEY.to_owned(), revision: entry.revision },
        None => Compare::Absent { key: TERM_KEY.to_owned() },
    };
    let leader = Leader { server: me.clone(), address, term };
    let lease = store.grant(TTL).await?;
    let ops = vec![
        Op::Put {
            key: LEADER_KEY.to_owned(),
            value: serde_json::to_vec(&leader).expect("a Leader has only text keys"),
            lease: Some(lease),
        },
        Op::Put { key: TERM_KEY.to_owned(), value: term.to_string().into_bytes(), lease: None },
    ];
    let compares = vec![Compare::Absent { key: LEADER_KEY.to_owned() }, same_term];
    let revision = match store.commit(compares, ops).await {
        Ok(Commit::Done { revision }) => Some(revision),
        Ok(Commit::Conflict) => None,
        // The lease is ours alone: an entry that it holds is our own.
        Err(StoreError::Uncertain { .. }) => {
            let entry = store.get(LEADER_KEY).await?;
            entry.filter(|entry| entry.lease == Some(lease)).map(|entry| entry.revision)
        }
        Err(error) => return Err(error),
    };
    let Some(revision) = revision else {
        // Unheard, it runs out.
        let _ = store.revoke(lease).await;
        return Ok(None);
    };
    let (to_lost, lost) = watch::channel(false);
    let keeper = tokio::spawn(keep(store.clone(), lease, revision, to_lost)).abort_handle();
    Ok(Some(Leadership { leader, revision, store: store.clone(), lease, keeper, lost }))
}

/// Keeps the lease alive until it, or the key, is lost.
async fn keep(store: Arc<dyn Store>, lease: LeaseId, revision: Revision, lost: watch::Sender<bool>) {
    let why = tokio::select! {
        why = keep_lease(store.as_ref(), lease) => why,
        why = watch_key(store.as_ref(), revision) => why,
    };
    warn!(why, "leadership lost");
    lost.send_replace(true);
}

async fn keep_lease(store: &dyn Store, lease: LeaseId) -> &'static str {
    let mut confirmed = Instant::now();
    loop {
        let sent = Instant::now();
        match timeout_at(confirmed + UNCONFIRMED_MAX, store.keep_alive(lease)).await {
            Ok(Ok(())) => confirmed = sent,
            Ok(Err(StoreError::LeaseLost { .. })) => return "the lease has run out",
            Ok(Err(error)) => debug!(%error, "lease not confirmed"),
            Err(_) => return "the store does not confirm the lease",
        }
        sleep_until(sent + KEEP_ALIVE).await;
    }
}

async fn watch_key(store: &dyn Store, revision: Revision) -> &'static str {
    let deposed = "it was deposed";
    loop {
        let Ok((range, mut watch)) = read_and_watch(store, LEADER_KEY).await else {
            sleep(RETRY).await;
            continue;
        };
        if leader_entry(range.entries).is_none_or(|entry| entry.revision != revision) {
            return deposed;
        }
        while let Ok(changes) = watch.next().await {
            if changes.iter().any(|change| change.key() == LEADER_KEY) {
                return deposed;
            }
        }
    }
}

/// The leader, kept up to date for as long as somebody holds the receiver.
pub fn leader(store: Arc<dyn Store>) -> watch::Receiver<Option<Leader>> {
    let (to, receiver) = watch::channel(None);
    tokio::spawn(async move {
        tokio::select! {
            () = to.closed() => {}
            () = tell_leader(store.as_ref(), &to) => {}
        }
    });
    receiver
}

async fn tell_leader(store: &dyn Store, to: &watch::Sender<Option<Leader>>) {
    let tell = |leader: Option<Leader>| {
        to.send_if_modified(|known| std::mem::replace(known, leader.clone()) != leader)
    };
    loop {
        let Ok((range, mut watch)) = read_and_watch(store, LEADER_KEY).await else {
            sleep(RETRY).await;
            continue;
        };
        tell(leader_entry(range.entries).as_ref().and_then(Leader::in_entry));
        while let Ok(changes) = watch.next().await {
            for change in changes.iter().filter(|change| change.key() == LEADER_KEY) {
                tell(match change {
                    Change::Put(entry) => Leader::in_entry(entry),
                    Change::Deleted { .. } => None,
                });
            }
        }
    }
}

/// `/leader` itself: `/leader-term` has the same prefix.
fn leader_entry(entries: Vec<Entry>) -> Option<Entry> {
    entries.into_iter().find(|entry| entry.key == LEADER_KEY)
}
