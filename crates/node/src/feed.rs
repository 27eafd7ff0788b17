//! What the store says to this server: its assignment, every site's route, who keeps the store itself and who
//! leads. The last good copy is on disk, so that a server which boots while the store is away goes on with
//! what it knew. A stale generation changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kopek_core::assignment::{Assignment, StoredRoute};
use kopek_core::desired::{Standing, StoreMembers};
use kopek_core::{ServerId, SiteName, keys};
use kopek_link::root_only;
use kopek_store::{Change, Entry, Store, StoreError, WatchError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::last_good::LastGood;

/// Before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(300);

pub type Routes = Arc<BTreeMap<SiteName, StoredRoute>>;

/// Every site of the cell with its number, where that is known.
pub type Sites = BTreeMap<SiteName, Option<u32>>;

pub struct Feed {
    pub assignment: watch::Receiver<Option<Assignment>>,
    /// Generation of the assignment that the store has told since this process began: what comes from the
    /// disk may be older than what was already carried out.
    pub confirmed: watch::Receiver<Option<u64>>,
    /// Nothing before the first word, of the store or of the disk.
    pub routes: watch::Receiver<Option<Routes>>,
    /// By the store's own word: nothing before that.
    pub sites: watch::Receiver<Option<Sites>>,
}

/// Who kept the store when this server last heard of it.
pub fn remembered_store_members(folder: &Path) -> Option<StoreMembers> {
    recall(folder, STORE_MEMBERS_FILE)
}

/// The servers that were alive when this one last heard of them.
pub fn remembered_peers(folder: &Path) -> Vec<IpAddr> {
    let assignment: Option<Assignment> = recall(folder, ASSIGNMENT_FILE);
    assignment.iter().flat_map(|assignment| assignment.peers.values()).map(|gate| gate.ip()).collect()
}

/// The sites that there were when this server last heard of them.
pub fn remembered_sites(folder: &Path) -> Sites {
    let routes: BTreeMap<SiteName, StoredRoute> = recall(folder, ROUTES_FILE).unwrap_or_default();
    routes.into_iter().map(|(site, route)| (site, Some(route.route.number))).collect()
}

const ASSIGNMENT_FILE: &str = "assignment.json";
const STORE_MEMBERS_FILE: &str = "store-members.json";
const ROUTES_FILE: &str = "routes.json";

/// `folder` keeps the copies.
pub fn follow(
    store: Arc<dyn Store>,
    me: &ServerId,
    folder: &Path,
    to_members: watch::Sender<Option<StoreMembers>>,
) -> Feed {
    let (to_assignment, assignment) = watch::channel(recall(folder, ASSIGNMENT_FILE));
    let file = folder.join(ASSIGNMENT_FILE);
    let (to_confirmed, confirmed) = watch::channel(None);
    let nothing = nothing_for(me);
    let mut heard = false;
    tokio::spawn(mirror(Arc::clone(&store), keys::assignment(me), move |entries| {
        let next = match entries.values().next() {
            Some(entry) => parse::<Assignment>(entry),
            // A server that was removed, or has only just joined.
            None => Some(nothing.clone()),
        };
        let Some(next) = next else { return };
        // The store's first word counts more than the disk's, whatever its number.
        let first = !std::mem::replace(&mut heard, true);
        to_assignment.send_if_modified(|current| {
            if first || next.generation == 0 {
                let changed = current.as_ref() != Some(&next);
                *current = Some(next.clone());
                return changed;
            }
            take_newer(current, next.clone())
        });
        to_confirmed.send_replace(Some(next.generation));
        remember(&file, &next);
    }));
    let remembered = recall::<Routes>(folder, ROUTES_FILE);
    let mut last_good = LastGood::new(remembered.as_deref().cloned().unwrap_or_default());
    let (to_routes, routes) = watch::channel(remembered);
    let (to_sites, sites) = watch::channel(None);
    let file = folder.join(ROUTES_FILE);
    tokio::spawn(mirror(Arc::clone(&store), keys::ROUTES.to_owned(), move |entries| {
        let routes: Routes = Arc::new(last_good.take(entries).clone());
        remember(&file, &routes);
        to_sites.send_if_modified(|current| {
            let sites = Some(last_good.sites());
            let changed = *current != sites;
            *current = sites;
            changed
        });
        to_routes.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&routes);
            *current = Some(routes);
            changed
        });
    }));
    let file = folder.join(STORE_MEMBERS_FILE);
    tokio::spawn(mirror(store, keys::STORE_MEMBERS.to_owned(), move |entries| {
        let Some(members) = members_told(entries) else { return };
        to_members.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&members);
            if changed {
                remember(&file, &members);
                // This one starts the store after a power cut: it must be on the disk.
                synced(&file);
                *current = Some(members);
            }
            changed
        });
    }));
    Feed { assignment, confirmed, routes, sites }
}

/// The assignment of a server that the cell does not know.
pub(crate) fn nothing_for(me: &ServerId) -> Assignment {
    Assignment {
        generation: 0,
        server: me.clone(),
        standing: Standing::Dead,
        instances: BTreeMap::new(),
        images: BTreeSet::new(),
        volumes: BTreeMap::new(),
        member: None,
        vips: Vec::new(),
        peers: BTreeMap::new(),
    }
}

/// Nothing if it is not understood, which is not the same as nobody: the members go on.
fn members_told(entries: &BTreeMap<String, Entry>) -> Option<StoreMembers> {
    entries.values().next().map_or(Some(StoreMembers::default()), parse)
}

fn take_newer(current: &mut Option<Assignment>, next: Assignment) -> bool {
    let newer = current.as_ref().is_none_or(|current| next.generation > current.generation);
    if newer {
        *current = Some(next);
    }
    newer
}

/// Keeps a copy of everything under a prefix and shows it whole after each change. Runs for ever.
pub async fn mirror(
    store: Arc<dyn Store>,
    prefix: String,
    mut show: impl FnMut(&BTreeMap<String, Entry>) + Send,
) {
    loop {
        if let Err(error) = mirror_once(store.as_ref(), &prefix, &mut show).await {
            debug!(prefix, %error, "the store does not answer; going on with what is known");
            sleep(RETRY).await;
        }
    }
}

async fn mirror_once(
    store: &dyn Store,
    prefix: &str,
    show: &mut (impl FnMut(&BTreeMap<String, Entry>) + Send),
) -> Result<(), StoreError> {
    let range = store.range(prefix).await?;
    let mut entries: BTreeMap<String, Entry> =
        range.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    show(&entries);
    let mut watch = store.watch(prefix, range.revision).await?;
    loop {
        let changes = match watch.next().await {
            Ok(changes) => changes,
            Err(WatchError::Compacted) => return Ok(()),
        };
        for change in changes {
            match change {
                Change::Put(entry) => drop(entries.insert(entry.key.clone(), entry)),
                Change::Deleted { key, .. } => drop(entries.remove(&key)),
            }
        }
        show(&entries);
    }
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    serde_json::from_slice(&entry.value)
        .inspect_err(|error| warn!(key = entry.key, %error, "document in the store cannot be read"))
        .ok()
}

fn recall<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&std::fs::read(folder.join(name)).ok()?).ok()
}

/// Whole or not at all. Not synced: after a power cut the store tells it again. For root alone: assignments and
/// routes carry the passwords of sites' databases.
fn remember(file: &PathBuf, document: &impl Serialize) {
    let beside = file.with_extension("new");
    let text = serde_json::to_vec(document).expect("documents have only text keys");
    let folder = file.parent().unwrap_or(Path::new("/"));
    let written = root_only::folder(folder)
        .and_then(|()| root_only::write(&beside, &text))
        .and_then(|_| std::fs::rename(&beside, file));
    if let Err(error) = written {
        warn!(file = %file.display(), %error, "the last good copy was not written");
    }
}

fn synced(file: &Path) {
    let folder = file.parent().unwrap_or(Path::new("/"));
    for path in [file, folder] {
        if let Err(error) = std::fs::File::open(path).and_then(|open| open.sync_all()) {
            warn!(path = %path.display(), %error, "not synced");
        }
    }
}

#[cfg(test)]
mod tests {
    use kopek_store::{Embedded, Op};

    use super::*;

    fn me() -> ServerId {
        ServerId::parse("s1").unwrap()
    }

    fn assignment(generation: u64) -> Assignment {
        Assignment { generation, ..nothing_for(&me()) }
    }

    #[tokio::test]
    async fn the_stores_first_word_counts_more_than_the_disks_and_no_word_means_nothing_to_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(ASSIGNMENT_FILE);
        remember(&file, &assignment(9));
        let store = Arc::new(Embedded::open(&folder.path().join("store.redb")).unwrap());
        let key = keys::assignment(&me());
        let value = serde_json::to_vec(&assignment(7)).unwrap();
        let put = Op::Put { key: key.clone(), value, lease: None };
        store.commit(Vec::new(), vec![put]).await.unwrap();
        let mut feed = follow(store.clone(), &me(), folder.path(), watch::Sender::new(None));
        let generation = |feed: &Feed| feed.assignment.borrow().as_ref().map(|known| known.generation);
        assert_eq!((generation(&feed), *feed.confirmed.borrow()), (Some(9), None), "from the disk");
        for expected in [7, 0] {
            let confirmed = feed.confirmed.wait_for(|confirmed| *confirmed == Some(expected));
            tokio::time::timeout(Duration::from_secs(10), confirmed)
                .await
                .expect("the store's word")
                .unwrap();
            assert_eq!(generation(&feed), Some(expected));
            assert_eq!(recall(folder.path(), ASSIGNMENT_FILE), Some(assignment(expected)));
            store.commit(Vec::new(), vec![Op::Delete { key: key.clone() }]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn store_members_that_cannot_be_read_are_not_the_same_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store.redb")).unwrap();
        let told = async || {
            let entries = store.range(keys::STORE_MEMBERS).await.unwrap().entries;
            members_told(&entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect())
        };
        assert_eq!(told().await, Some(StoreMembers::default()));
        let one =
            StoreMembers { cluster: "c1".to_owned(), members: [(me(), "10.0.0.1".parse().unwrap())].into() };
        for (value, expected) in [(serde_json::to_vec(&one).unwrap(), Some(one)), (b"{".to_vec(), None)] {
            let put = Op::Put { key: keys::STORE_MEMBERS.to_owned(), value, lease: None };
            store.commit(Vec::new(), vec![put]).await.unwrap();
            assert_eq!(told().await, expected);
        }
    }

    #[test]
    fn a_stale_generation_changes_nothing() {
        let mut current = Some(assignment(7));
        assert!(!take_newer(&mut current, assignment(6)));
        assert!(!take_newer(&mut current, assignment(7)));
        assert_eq!(current, Some(assignment(7)));
        assert!(take_newer(&mut current, assignment(8)));
        assert_eq!(current, Some(assignment(8)));
    }
}
