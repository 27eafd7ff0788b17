//! What the store says to this server: its assignment, every site's route, who keeps the store itself and who
//! leads. The last good copy is on disk, so that a server which boots while the store is away goes on with
//! what it knew. A stale generation changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kopek_core::assignment::{Assignment, StoredRoute};
use kopek_core::desired::StoreMembers;
use kopek_core::part::Route;
use kopek_core::{ServerId, SiteName, keys};
use kopek_store::{Change, Entry, Store, StoreError, WatchError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

/// Before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(300);

pub type Routes = Arc<BTreeMap<SiteName, Route>>;

pub struct Feed {
    pub assignment: watch::Receiver<Option<Assignment>>,
    /// Generation of the assignment that the store has told since this process began: what comes from the
    /// disk may be older than what was already carried out.
    pub confirmed: watch::Receiver<Option<u64>>,
    pub routes: watch::Receiver<Routes>,
}

/// Who kept the store when this server last heard of it.
pub fn remembered_store_members(folder: &Path) -> StoreMembers {
    recall(folder, STORE_MEMBERS_FILE).unwrap_or_default()
}

const STORE_MEMBERS_FILE: &str = "store-members.json";

/// `folder` keeps the copies.
pub fn follow(
    store: Arc<dyn Store>,
    me: &ServerId,
    folder: &Path,
    to_members: watch::Sender<StoreMembers>,
) -> Feed {
    let (to_assignment, assignment) = watch::channel(recall(folder, "assignment.json"));
    let file = folder.join("assignment.json");
    let (to_confirmed, confirmed) = watch::channel(None);
    tokio::spawn(mirror(Arc::clone(&store), keys::assignment(me), move |entries| {
        let Some(next) = entries.values().next().and_then(parse::<Assignment>) else { return };
        to_confirmed.send_replace(Some(next.generation));
        to_assignment.send_if_modified(|current| take_newer(current, next));
        if let Some(assignment) = &*to_assignment.borrow() {
            remember(&file, assignment);
        }
    }));
    let (to_routes, routes) = watch::channel(recall::<Routes>(folder, "routes.json").unwrap_or_default());
    let file = folder.join("routes.json");
    tokio::spawn(mirror(Arc::clone(&store), keys::ROUTES.to_owned(), move |entries| {
        let parsed = entries.values().filter_map(parse::<StoredRoute>);
        let routes: Routes =
            Arc::new(parsed.map(|stored| (stored.route.site.clone(), stored.route)).collect());
        remember(&file, &routes);
        to_routes.send_if_modified(|current| {
            let changed = *current != routes;
            *current = routes;
            changed
        });
    }));
    let file = folder.join(STORE_MEMBERS_FILE);
    tokio::spawn(mirror(store, keys::STORE_MEMBERS.to_owned(), move |entries| {
        let members: StoreMembers = entries.values().next().and_then(parse).unwrap_or_default();
        remember(&file, &members);
        to_members.send_replace(members);
    }));
    Feed { assignment, confirmed, routes }
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

/// Whole or not at all. Not synced: after a power cut the store tells it again.
fn remember(file: &PathBuf, document: &impl Serialize) {
    let beside = file.with_extension("new");
    let text = serde_json::to_vec(document).expect("documents have only text keys");
    let written = std::fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))
        .and_then(|()| std::fs::write(&beside, text))
        .and_then(|()| std::fs::rename(&beside, file));
    if let Err(error) = written {
        warn!(file = %file.display(), %error, "the last good copy was not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kopek_core::desired::Standing;

    fn assignment(generation: u64) -> Assignment {
        Assignment {
            generation,
            server: ServerId::parse("s1").unwrap(),
            standing: Standing::Up,
            instances: BTreeMap::new(),
            images: Default::default(),
            volumes: BTreeMap::new(),
            member: None,
            vips: Vec::new(),
            peers: BTreeMap::new(),
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
