//! Moves the cell's state to another store while the cell works: `kopek store migrate`.
//!
//! The target is marked as being filled, then filled while the source goes on changing. For the last changes
//! the source is frozen under a lease, so that it thaws by itself should the mover die. The source's pointer
//! to the target is written last, under the proof that the freeze held; from then on nothing can be committed
//! there, and the target is opened. Nothing that was acknowledged is lost, and at no moment do two stores take
//! commits. What is held by leases stays behind: its owners renew it in the new store.
//!
//! Interrupted at any point it can be run again: before the pointer it starts anew, after it, it only opens
//! the target. So does everybody who follows the pointer (`following`): a mover that dies there holds up nobody.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use crate::location::Location;
use crate::moving::{EPOCH_KEY, MIGRATION_KEY, MOVED_KEY, Moving, epoch_in};
use crate::store::{
    Commit, Compare, Entry, LeaseId, OPS_MAX, Op, Range, Revision, SIZE_MAX, Store, StoreError,
};

/// The source is frozen at most for so long when the mover dies.
const FREEZE: Duration = Duration::from_secs(5);
/// Rounds of copying after which the source is frozen even if it still changes much.
const ROUNDS: usize = 5;
/// So few changes are copied in a few milliseconds.
const FEW: usize = 50;
/// Freezes that ran out before the last change was copied.
const FREEZES_MAX: usize = 3;
/// How long a store that does not answer is asked again, once giving up would leave the cell without one.
const INSIST: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    pub keys: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("the source does not go on")]
    Source(#[source] StoreError),
    #[error("the target at {to} does not go on; nothing was moved")]
    Target { to: Location, source: StoreError },
    #[error("the cell's state was moved to {to} already; migrate from there")]
    SourceMoved { to: Location },
    #[error("another migration is finishing; try again in {} s", FREEZE.as_secs())]
    SourceFrozen,
    #[error(
        "the target at {to} already holds {keys} keys that are in use or were never moved away; \
         empty it first (etcd: `etcdctl del --prefix /kopek`, embedded: remove store.redb)"
    )]
    TargetNotEmpty { to: Location, keys: usize },
    #[error(
        "the target at {to} is being filled by another migration; finish that one by running it again, or \
         empty the target (etcd: `etcdctl del --prefix /kopek`, embedded: remove store.redb)"
    )]
    TargetBusy { to: Location },
    #[error("another migration took over the target at {to}; nothing was moved by this one")]
    Overtaken { to: Location },
    #[error("the target at {to} is not wanted any more; nothing was moved, see `kopek cell show`")]
    Unwanted { to: Location },
    #[error("the source changed too fast to be frozen for {FREEZES_MAX} times; try again when it is quieter")]
    TooBusy,
    #[error(
        "the state was moved to {to}, which does not answer; run the same migration again to open it: {source}"
    )]
    NotOpened { to: Location, source: StoreError },
}

/// Moves everything from one store to another, at `to_location` for those who follow. A target that was left
/// behind by an earlier move, or half-filled from this source, is refilled; any other content is refused. It
/// is moved only if `provided` holds in the source at its last change.
pub async fn migrate(
    from: &dyn Store,
    to: &dyn Store,
    to_location: &Location,
    provided: &[Compare],
) -> Result<Migrated, MigrateError> {
    let target = Target { store: to, location: to_location };
    let source = from.range("").await.map_err(MigrateError::Source)?;
    match marker_in(&source).map_err(MigrateError::Source)? {
        Some((Moving::Moved { to, migration }, _)) if to == *to_location => {
            return target.finish(&migration).await;
        }
        Some((Moving::Moved { to, .. } | Moving::Filling { was: Some(to), .. }, _)) => {
            return Err(MigrateError::SourceMoved { to });
        }
        Some(_) => return Err(MigrateError::SourceFrozen),
        None => {}
    }
    let migration = named_migration(from, &source).await?;
    let epoch = epoch_in(entry_in(&source, EPOCH_KEY)) + 1;
    let mut copy = target.claim(&migration, epoch).await?;
    for _ in 0..ROUNDS {
        let source = from.range("").await.map_err(MigrateError::Source)?;
        if copy.bring_up_to(&source).await? <= FEW {
            break;
        }
    }
    for _ in 0..FREEZES_MAX {
        let Some(frozen) = freeze(from, &target, provided).await? else { continue };
        let last = finish_copy(from, &mut copy, &frozen, &migration).await;
        if let Ok(Pointer::Written) = last {
            target.open(&copy.claimed).await?;
            let keys = copy.content.len();
            info!(keys, to = %to_location, "moved the cell's state");
        }
        // If the pointer was written the lease holds nothing any more; if not, the source thaws at once.
        // Should this not be heard, the lease runs out.
        let _ = from.revoke(frozen.lease).await;
        if let Pointer::Written = last? {
            return Ok(Migrated { keys: copy.content.len() });
        }
    }
    Err(MigrateError::TooBusy)
}

struct Frozen {
    lease: LeaseId,
    marker: Revision,
}

enum Pointer {
    Written,
    FreezeRanOut,
}

/// Holds all commits to the source. Nothing if it was not confirmed.
async fn freeze(
    from: &dyn Store,
    target: &Target<'_>,
    provided: &[Compare],
) -> Result<Option<Frozen>, MigrateError> {
    let lease = from.grant(FREEZE).await.map_err(MigrateError::Source)?;
    let put = Op::Put { key: MOVED_KEY.to_owned(), value: Moving::Frozen.to_bytes(), lease: Some(lease) };
    let mut compares = provided.to_vec();
    compares.push(Compare::Absent { key: MOVED_KEY.to_owned() });
    match from.commit(compares, vec![put]).await {
        Ok(Commit::Done { revision }) => Ok(Some(Frozen { lease, marker: revision })),
        Ok(Commit::Conflict) => match from.get(MOVED_KEY).await.map_err(MigrateError::Source)? {
            Some(_) => Err(MigrateError::SourceFrozen),
            None => Err(MigrateError::Unwanted { to: target.location.clone() }),
        },
        Err(StoreError::Uncertain { .. } | StoreError::LeaseLost { .. }) => {
            // Should it have been frozen, it thaws; if this is not heard either, when the lease runs out.
            let _ = from.revoke(lease).await;
            Ok(None)
        }
        Err(error) => Err(MigrateError::Source(error)),
    }
}

/// Copies what changed before the freeze, then writes the pointer.
async fn finish_copy(
    from: &dyn Store,
    copy: &mut Copy<'_>,
    frozen: &Frozen,
    migration: &str,
) -> Result<Pointer, MigrateError> {
    let source = from.range("").await.map_err(MigrateError::Source)?;
    if entry_in(&source, MOVED_KEY).is_none_or(|marker| marker.revision != frozen.marker) {
        return Ok(Pointer::FreezeRanOut);
    }
    copy.bring_up_to(&source).await?;
    let pointer = Moving::Moved { to: copy.target.location.clone(), migration: migration.to_owned() };
    let deadline = Instant::now() + INSIST;
    loop {
        // It holds only if the freeze was never interrupted: nothing has changed since it was read.
        let unbroken = Compare::RevisionIs { key: MOVED_KEY.to_owned(), revision: frozen.marker };
        let put = Op::Put { key: MOVED_KEY.to_owned(), value: pointer.to_bytes(), lease: None };
        match from.commit(vec![unbroken], vec![put]).await {
            Ok(Commit::Done { .. }) => return Ok(Pointer::Written),
            Ok(Commit::Conflict) | Err(StoreError::Uncertain { .. } | StoreError::Unavailable { .. }) => {}
            Err(error) => return Err(MigrateError::Source(error)),
        }
        // Not confirmed, or perhaps confirmed earlier and lost on the way: the marker tells.
        match from.get(MOVED_KEY).await {
            Ok(Some(marker)) => match Moving::parse(&marker.value).map_err(MigrateError::Source)? {
                // A following store may show the target's marker already.
                Moving::Moved { migration: found, .. } | Moving::Filling { migration: found, .. }
                    if found == migration =>
                {
                    return Ok(Pointer::Written);
                }
                Moving::Frozen if marker.revision == frozen.marker => {}
                _ => return Ok(Pointer::FreezeRanOut),
            },
            Ok(None) => return Ok(Pointer::FreezeRanOut),
            // Said by a following store only: it has left the source, and waits for the target.
            Err(StoreError::Moving) => return Ok(Pointer::Written),
            Err(error) if Instant::now() > deadline => return Err(MigrateError::Source(error)),
            Err(_) => {}
        }
        sleep(PAUSE).await;
    }
}

/// The name of this source's migration. A later attempt takes the same, to know its leftovers.
async fn named_migration(from: &dyn Store, source: &Range) -> Result<String, MigrateError> {
    if let Some(entry) = entry_in(source, MIGRATION_KEY)
        && let Ok(name) = String::from_utf8(entry.value.clone())
    {
        return Ok(name);
    }
    let name = format!("{:032x}", rand::random::<u128>());
    let put = Op::Put { key: MIGRATION_KEY.to_owned(), value: name.clone().into_bytes(), lease: None };
    match from.commit(vec![Compare::Absent { key: MIGRATION_KEY.to_owned() }], vec![put]).await {
        Ok(Commit::Done { .. }) => Ok(name),
        Ok(Commit::Conflict) => Err(MigrateError::SourceFrozen),
        Err(error) => Err(MigrateError::Source(error)),
    }
}

struct Target<'a> {
    store: &'a dyn Store,
    location: &'a Location,
}

/// The target while it is filled.
struct Copy<'a> {
    target: &'a Target<'a>,
    /// The mark, as this one made it. Every write compares it: whoever claims the target later stops this one.
    claimed: Compare,
    content: BTreeMap<String, Vec<u8>>,
    epoch: u64,
}

impl<'a> Target<'a> {
    fn failed(&self, source: StoreError) -> MigrateError {
        MigrateError::Target { to: self.location.clone(), source }
    }

    /// Marks the target as being filled. What a stale one holds is taken into account as already there.
    async fn claim(&'a self, migration: &str, epoch: u64) -> Result<Copy<'a>, MigrateError> {
        let found = self.store.range("").await.map_err(|error| self.failed(error))?;
        let (was, before) = match marker_in(&found).map_err(|error| self.failed(error))? {
            None if found.entries.is_empty() => (None, Compare::Absent { key: MOVED_KEY.to_owned() }),
            None => {
                let keys = found.entries.len();
                return Err(MigrateError::TargetNotEmpty { to: self.location.clone(), keys });
            }
            Some((Moving::Moved { to, .. }, revision)) => (Some(to), marker_is(revision)),
            Some((Moving::Filling { migration: found, was, .. }, revision)) if found == migration => {
                (was, marker_is(revision))
            }
            Some(_) => return Err(MigrateError::TargetBusy { to: self.location.clone() }),
        };
        let claim = format!("{:032x}", rand::random::<u128>());
        let filling = Moving::Filling { migration: migration.to_owned(), claim, was }.to_bytes();
        let put = Op::Put { key: MOVED_KEY.to_owned(), value: filling.clone(), lease: None };
        match self.store.commit(vec![before], vec![put]).await {
            Ok(Commit::Done { .. }) => {}
            Ok(Commit::Conflict) => return Err(MigrateError::Overtaken { to: self.location.clone() }),
            Err(error) => return Err(self.failed(error)),
        }
        let claimed = Compare::ValueIs { key: MOVED_KEY.to_owned(), value: filling };
        let content = found.entries.into_iter().filter(|entry| entry.key != MOVED_KEY);
        let content = content.map(|entry| (entry.key, entry.value)).collect();
        Ok(Copy { target: self, claimed, content, epoch })
    }

    /// Takes the mark away: from here on it is the home. There is no way back, so it is insisted on.
    async fn open(&self, claimed: &Compare) -> Result<(), MigrateError> {
        let deadline = Instant::now() + INSIST;
        loop {
            let delete = Op::Delete { key: MOVED_KEY.to_owned() };
            match self.store.commit(vec![claimed.clone()], vec![delete]).await {
                // A conflict: an earlier attempt has succeeded unheard, or another run has opened it.
                Ok(_) => return Ok(()),
                Err(source) if Instant::now() > deadline => {
                    return Err(MigrateError::NotOpened { to: self.location.clone(), source });
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// The source points here: opens the target if that is still to be done.
    async fn finish(&self, migration: &str) -> Result<Migrated, MigrateError> {
        let found = self.store.range("").await.map_err(|error| self.failed(error))?;
        match marker_in(&found).map_err(|error| self.failed(error))? {
            Some((Moving::Filling { migration: filled, .. }, revision)) if filled == migration => {
                self.open(&marker_is(revision)).await?;
                Ok(Migrated { keys: found.entries.len() - 1 })
            }
            _ => Err(MigrateError::SourceMoved { to: self.location.clone() }),
        }
    }
}

impl Copy<'_> {
    /// Makes the target equal to what the source held. Gives the number of keys that differed.
    async fn bring_up_to(&mut self, source: &Range) -> Result<usize, MigrateError> {
        let mut wanted: BTreeMap<String, Vec<u8>> = source
            .entries
            .iter()
            .filter(|entry| {
                entry.lease.is_none() && ![MOVED_KEY, MIGRATION_KEY].contains(&entry.key.as_str())
            })
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect();
        wanted.insert(EPOCH_KEY.to_owned(), self.epoch.to_string().into_bytes());
        let gone = self.content.keys().filter(|key| !wanted.contains_key(*key));
        let mut ops: Vec<Op> = gone.map(|key| Op::Delete { key: key.clone() }).collect();
        for (key, value) in wanted.iter().filter(|(key, value)| self.content.get(*key) != Some(*value)) {
            ops.push(Op::Put { key: key.clone(), value: value.clone(), lease: None });
        }
        let differed = ops.len();
        for batch in batches(ops) {
            self.write(batch).await?;
        }
        self.content = wanted;
        Ok(differed)
    }

    /// Writing the same twice does no harm, so an unconfirmed batch is written again.
    async fn write(&self, batch: Vec<Op>) -> Result<(), MigrateError> {
        let deadline = Instant::now() + FREEZE;
        loop {
            match self.target.store.commit(vec![self.claimed.clone()], batch.clone()).await {
                Ok(Commit::Done { .. }) => return Ok(()),
                Ok(Commit::Conflict) => {
                    return Err(MigrateError::Overtaken { to: self.target.location.clone() });
                }
                Err(StoreError::Uncertain { .. } | StoreError::Unavailable { .. })
                    if Instant::now() < deadline =>
                {
                    sleep(PAUSE).await;
                }
                Err(error) => return Err(self.target.failed(error)),
            }
        }
    }
}

/// As few commits as the limits of one allow.
fn batches(ops: Vec<Op>) -> Vec<Vec<Op>> {
    let mut batches: Vec<Vec<Op>> = Vec::new();
    let mut room = 0;
    for op in ops {
        let size = match &op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key } | Op::DeletePrefix { prefix: key } => key.len(),
        };
        match batches.last_mut() {
            Some(batch) if batch.len() < OPS_MAX && size <= room => batch.push(op),
            _ => {
                batches.push(vec![op]);
                room = SIZE_MAX;
            }
        }
        room = room.saturating_sub(size);
    }
    batches
}

fn marker_is(revision: Revision) -> Compare {
    Compare::RevisionIs { key: MOVED_KEY.to_owned(), revision }
}

fn entry_in<'a>(range: &'a Range, key: &str) -> Option<&'a Entry> {
    range.entries.iter().find(|entry| entry.key == key)
}

fn marker_in(range: &Range) -> Result<Option<(Moving, Revision)>, StoreError> {
    entry_in(range, MOVED_KEY).map(|entry| Ok((Moving::parse(&entry.value)?, entry.revision))).transpose()
}
