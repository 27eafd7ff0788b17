//! The store, wherever it is: starts from `<etc>/store.json`, and when the cell's state is moved, goes along,
//! rewrites that file and has every watch answer `Compacted`. Where nothing answers, it looks where other
//! servers say that the state is. What agents and controllers hold.
//!
//! Promise: no revision of one store is mistaken for one of another. The stores number their commits
//! independently, so the number of moves so far (`/epoch`, written by `migrate`) is the upper part of every
//! revision that leaves here: a compare made before a move is a conflict after it, never a chance match. Every
//! commit compares that number too, and so does nothing in a store that is not the home: a server that hears late
//! of a move away from etcd may meet the next, still empty cluster at the same addresses.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kopek_core::ServerId;
use kopek_core::config::Dirs;
use kopek_link::Identity;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::location::{Location, location_file, open};
use crate::moving::{EPOCH_KEY, MOVED_KEY, Moving, epoch_in};
use crate::store::{Change, Commit, Compare, Entry, LeaseId, Op, Range, Revision, Store, StoreError};
use crate::watch::{Watch, read_and_watch};
use crate::whereabouts::{Acquaintances, Whereabouts};

/// Revisions of one store below the epoch: 10^12 commits. With 13 bits of epochs above, a revision is exact
/// in a JSON number of JavaScript too.
const EPOCH_SHIFT: u32 = 40;
/// How long a commit waits out a move. The source is frozen for a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Between attempts to watch the marker while the store does not answer.
const RETRY: Duration = Duration::from_millis(500);
/// A watch on a store that is gone for good waits for ever; so the marker is also read.
const LOOK_EVERY: Duration = Duration::from_secs(5);

pub struct FollowingStore {
    inner: Arc<Inner>,
    follower: AbortHandle,
}

struct Inner {
    identity: Identity,
    me: ServerId,
    dirs: Dirs,
    whereabouts: Whereabouts,
    home: Mutex<Home>,
    location: watch::Sender<Location>,
    /// The number of times that the home was changed or left, for the watches.
    departures: watch::Sender<u64>,
}

struct Home {
    location: Location,
    store: Arc<dyn Store>,
    /// Unknown until the store was found to be the home, and again once it is known to have moved.
    epoch: Option<u64>,
    /// The migration whose pointer led here.
    led_by: Option<String>,
    /// How and when looking for it failed last.
    failed: Option<(Instant, StoreError)>,
}

/// A store that was the home when it was last looked at.
#[derive(Clone)]
struct Settled {
    store: Arc<dyn Store>,
    epoch: u64,
}

impl FollowingStore {
    /// From `<etc>/store.json`. The store need not answer yet.
    pub async fn open(
        dirs: &Dirs,
        identity: &Identity,
        me: &ServerId,
        acquaintances: Acquaintances,
    ) -> Result<Arc<FollowingStore>, StoreError> {
        let location = Location::read(&file(dirs))?;
        let store = open(&location, identity, me, dirs).await?;
        let inner = Arc::new(Inner {
            identity: identity.clone(),
            me: me.clone(),
            dirs: dirs.clone(),
            whereabouts: Whereabouts::new(identity, acquaintances),
            location: watch::Sender::new(location.clone()),
            home: Mutex::new(Home::at(location, store, None)),
            departures: watch::Sender::new(0),
        });
        let follower = tokio::spawn(inner.clone().follow()).abort_handle();
        Ok(Arc::new(FollowingStore { inner, follower }))
    }

    /// Where the state is, as far as this process has seen.
    pub fn location(&self) -> watch::Receiver<Location> {
        self.inner.location.subscribe()
    }
}

impl Drop for FollowingStore {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

#[async_trait]
impl Store for FollowingStore {
    async fn range(&self, prefix: &str) -> Result<Range, StoreError> {
        let home = self.inner.home().await?;
        let range = home.store.range(prefix).await?;
        let entries = range.entries.into_iter().map(|entry| home.entry(entry)).collect();
        Ok(Range { entries, revision: home.outside(range.revision) })
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let home = self.inner.home().await?;
        Ok(home.store.get(key).await?.map(|entry| home.entry(entry)))
    }

    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let home = self.inner.home().await?;
            let compares: Option<Vec<Compare>> =
                compares.iter().map(|compare| home.compare(compare)).collect();
            let Some(mut compares) = compares else {
                return Ok(Commit::Conflict);
            };
            compares.push(home.is_the_home());
            match home.store.commit(compares, ops.clone()).await {
                Ok(Commit::Done { revision }) => {
                    return Ok(Commit::Done { revision: home.outside(revision) });
                }
                Ok(Commit::Conflict) => {
                    if epoch_in(home.store.get(EPOCH_KEY).await?.as_ref()) == home.epoch {
                        return Ok(Commit::Conflict);
                    }
                    if Instant::now() > patience {
                        return Err(StoreError::Moving);
                    }
                    self.inner.leave(&home).await;
                }
                Err(StoreError::Moved(_)) if Instant::now() < patience => self.inner.leave(&home).await,
                Err(StoreError::Moving) if Instant::now() < patience => sleep(PAUSE).await,
                other => return other,
            }
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError> {
        let departures = self.inner.departures.subscribe();
        let home = self.inner.home().await?;
        let from = home.inside(from);
        let watch = match from {
            Some(from) => Some(home.store.watch(prefix, from).await?),
            None => None,
        };
        Ok(Watch::fed_by(|batches| feed(home, watch, departures, batches)))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.home().await?.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.home().await?.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.home().await?.store.revoke(lease).await
    }
}

impl Settled {
    fn outside(&self, revision: Revision) -> Revision {
        assert!(revision >> EPOCH_SHIFT == 0, "a store counts fewer than 2^{EPOCH_SHIFT} commits");
        self.epoch << EPOCH_SHIFT | revision
    }

    /// Nothing for a revision of an earlier home.
    fn inside(&self, revision: Revision) -> Option<Revision> {
        let mask = (1 << EPOCH_SHIFT) - 1;
        // Revision 0 is before everything, in every store.
        (revision == 0 || revision >> EPOCH_SHIFT == self.epoch).then_some(revision & mask)
    }

    fn entry(&self, entry: Entry) -> Entry {
        Entry { revision: self.outside(entry.revision), ..entry }
    }

    fn change(&self, change: Change) -> Change {
        match change {
            Change::Put(entry) => Change::Put(self.entry(entry)),
            Change::Deleted { key, revision } => Change::Deleted { key, revision: self.outside(revision) },
        }
    }

    /// Holds while this is the home, and in no other store.
    fn is_the_home(&self) -> Compare {
        let key = EPOCH_KEY.to_owned();
        match self.epoch {
            0 => Compare::Absent { key },
            epoch => Compare::ValueIs { key, value: epoch.to_string().into_bytes() },
        }
    }

    /// Nothing if it cannot hold any more.
    fn compare(&self, compare: &Compare) -> Option<Compare> {
        match compare {
            Compare::RevisionIs { key, revision } => {
                Some(Compare::RevisionIs { key: key.clone(), revision: self.inside(*revision)? })
            }
            other => Some(other.clone()),
        }
    }
}

impl Home {
    fn at(location: Location, store: Arc<dyn Store>, led_by: Option<String>) -> Home {
        Home { location, store, epoch: None, led_by, failed: None }
    }
}

impl Inner {
    async fn home(&self) -> Result<Settled, StoreError> {
        let asked = Instant::now();
        let mut home = self.home.lock().await;
        let epoch = match (home.epoch, &home.failed) {
            (Some(epoch), _) => epoch,
            // While this one waited for its turn: it would only fail in the same way, after seconds.
            (None, Some((at, error))) if *at >= asked => return Err(error.clone()),
            (None, _) => match self.settle(&mut home).await {
                Ok(epoch) => epoch,
                Err(error) => {
                    home.failed = Some((Instant::now(), error.clone()));
                    return Err(error);
                }
            },
        };
        Ok(Settled { store: home.store.clone(), epoch })
    }

    /// Follows the markers to the store that is the home, and remembers it on disk.
    async fn settle(&self, home: &mut Home) -> Result<u64, StoreError> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let Some(marker) = home.store.get(MOVED_KEY).await? else { break };
            match Moving::parse(&marker.value)? {
                Moving::Frozen => break,
                Moving::Filling { migration, .. } if home.led_by.as_ref() == Some(&migration) => {
                    open_filled(home.store.as_ref(), &marker).await?;
                }
                Moving::Moved { to, migration } => self.go(home, to, Some(migration)).await?,
                Moving::Filling { was: Some(to), .. } => self.go(home, to, None).await?,
                // Opened as soon as its source points to it.
                Moving::Filling { was: None, .. } => {}
            }
            if Instant::now() > patience {
                return Err(StoreError::Moving);
            }
            sleep(PAUSE).await;
        }
        let epoch = home.store.get(EPOCH_KEY).await?;
        if epoch.is_none() && matches!(home.location, Location::Etcd { .. }) {
            // The state comes to etcd by a move, which counts. This cluster has only been founded for one.
            let store = home.location.to_string();
            return Err(StoreError::Unavailable { store, why: "nothing was moved there yet".to_owned() });
        }
        let epoch = epoch_in(epoch.as_ref());
        if *self.location.borrow() != home.location {
            home.location.write(&file(&self.dirs))?;
            info!(to = %home.location, "followed the cell's state");
            self.location.send_replace(home.location.clone());
        }
        home.epoch = Some(epoch);
        Ok(epoch)
    }

    async fn go(&self, home: &mut Home, to: Location, led_by: Option<String>) -> Result<(), StoreError> {
        let store = open(&to, &self.identity, &self.me, &self.dirs).await?;
        *home = Home::at(to, store, led_by);
        Ok(())
    }

    /// Ends the watches on a home that has moved; the next request looks for the new one.
    async fn leave(&self, left: &Settled) {
        let mut home = self.home.lock().await;
        if home.epoch == Some(left.epoch) && Arc::ptr_eq(&home.store, &left.store) {
            home.epoch = None;
            self.departures.send_modify(|count| *count += 1);
        }
    }

    /// Notices a move also while nobody commits, and one that it has missed.
    async fn follow(self: Arc<Inner>) {
        loop {
            let looked = match self.home().await {
                Ok(home) => match moved_away(home.store.as_ref()).await {
                    Ok(()) => {
                        self.leave(&home).await;
                        continue;
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match looked {
                // `Moving`: a store is filled where this server looks, and nothing there tells from where.
                error @ (StoreError::Unavailable { .. } | StoreError::Moving) => {
                    debug!(%error, "looking for the cell's state");
                    self.look_elsewhere().await;
                }
                error => warn!(%error, "cannot follow the cell's state"),
            }
            sleep(RETRY).await;
        }
    }

    /// Makes a store the home to which other servers' words lead; or the one that took the home's place at the
    /// same addresses, and became the home.
    async fn look_elsewhere(&self) {
        let known = self.location.borrow().clone();
        let mut places = self.whereabouts.told(&known).await;
        places.push(known);
        for told in places {
            let Ok(store) = open(&told, &self.identity, &self.me, &self.dirs).await else { continue };
            let mut found = Home::at(told, store, None);
            match self.settle(&mut found).await {
                Ok(_) => {
                    *self.home.lock().await = found;
                    self.departures.send_modify(|count| *count += 1);
                    return;
                }
                Err(error) => debug!(at = %found.location, %error, "the cell's state is not there either"),
            }
        }
    }
}

/// Opens the target of a move whose source points to it: from then on it holds everything, and its mover may be
/// dead. Anybody may do it, once; who comes later conflicts.
async fn open_filled(target: &dyn Store, marker: &Entry) -> Result<(), StoreError> {
    let same = Compare::RevisionIs { key: MOVED_KEY.to_owned(), revision: marker.revision };
    match target.commit(vec![same], vec![Op::Delete { key: MOVED_KEY.to_owned() }]).await {
        // The marker will tell.
        Ok(_) | Err(StoreError::Uncertain { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Resolves when the store's marker says that it is not the home any more.
async fn moved_away(store: &dyn Store) -> Result<(), StoreError> {
    loop {
        let (range, mut watch) = read_and_watch(store, MOVED_KEY).await?;
        let marker = range.entries.first().map(|marker| Moving::parse(&marker.value)).transpose()?;
        match marker {
            Some(Moving::Moved { .. } | Moving::Filling { .. }) => return Ok(()),
            Some(Moving::Frozen) | None => {}
        }
        // Whatever it says, also that it was compacted: look again.
        let _ = timeout(LOOK_EVERY, watch.next()).await;
    }
}

async fn feed(
    home: Settled,
    watch: Option<Watch>,
    mut departures: watch::Receiver<u64>,
    batches: mpsc::Sender<Vec<Change>>,
) {
    let Some(mut watch) = watch else { return };
    loop {
        let changes = tokio::select! {
            changes = watch.next() => changes,
            _ = departures.changed() => return,
        };
        let Ok(changes) = changes else { return };
        let changes = changes.into_iter().map(|change| home.change(change)).collect();
        if batches.send(changes).await.is_err() {
            return;
        }
    }
}

fn file(dirs: &Dirs) -> PathBuf {
    location_file(&dirs.etc)
}
