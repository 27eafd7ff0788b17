//! The controller's copy of the store: every document parsed, with the revision it was read at, so that each
//! write can say "only if nobody changed it since". Kept current by a watch; used by reconcile.rs and the API.

use std::collections::{BTreeMap, BTreeSet};

use kopek_core::assignment::{Assignment, StoredRoute};
use kopek_core::desired::{Desired, Site, StoreMembers};
use kopek_core::placement::Placed;
use kopek_core::{ImageName, PoolName, ServerId, SiteName, keys};
use kopek_store::{Change, Compare, Entry, Op, Revision, Store, StoreError, Watch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::error;

#[derive(Debug, Clone, Default)]
pub struct CellState {
    pub desired: Desired,
    pub placed: Placed,
    pub assignments: BTreeMap<ServerId, Assignment>,
    pub routes: BTreeMap<SiteName, StoredRoute>,
    pub preparing: BTreeMap<SiteName, Site>,
    pub abandoned: BTreeSet<SiteName>,
    /// The number that was given to a site last.
    pub site_number: u32,
    pub store_members: StoreMembers,
    pub event_keys: Vec<String>,
    /// Of the last change that this copy has.
    pub revision: Revision,
    revisions: BTreeMap<String, Revision>,
}

impl CellState {
    /// Reads everything, and watches from there.
    pub async fn load(store: &dyn Store) -> Result<(CellState, Watch), StoreError> {
        let range = store.range("/").await?;
        let mut state = CellState::default();
        for entry in range.entries {
            state.put(&entry);
        }
        state.revision = range.revision;
        let watch = store.watch("/", range.revision).await?;
        Ok((state, watch))
    }

    pub fn take(&mut self, change: &Change) {
        self.revision = self.revision.max(change.revision());
        match change {
            Change::Put(entry) => self.put(entry),
            Change::Deleted { key, revision } => {
                if self.revisions.get(key).is_none_or(|known| known <= revision) {
                    self.delete(key);
                }
            }
        }
    }

    /// Takes over what was just committed, without waiting for the watch.
    pub fn wrote(&mut self, ops: &[Op], revision: Revision) {
        self.revision = self.revision.max(revision);
        for op in ops {
            match op {
                Op::Put { key, value, .. } => {
                    self.put(&Entry { key: key.clone(), value: value.clone(), revision, lease: None })
                }
                Op::Delete { key } => self.delete(key),
                Op::DeletePrefix { .. } => unreachable!("the controller deletes key by key"),
            }
        }
    }

    /// The condition that `key` is as this copy knows it.
    pub fn unchanged(&self, key: &str) -> Compare {
        match self.revisions.get(key) {
            Some(revision) => Compare::RevisionIs { key: key.to_owned(), revision: *revision },
            None => Compare::Absent { key: key.to_owned() },
        }
    }

    fn put(&mut self, entry: &Entry) {
        let key = entry.key.as_str();
        // Our own commits are taken over at once and come once more by the watch.
        if self.revisions.get(key).is_some_and(|known| *known >= entry.revision) {
            return;
        }
        self.revisions.insert(key.to_owned(), entry.revision);
        if key == keys::CELL {
            set(key, &entry.value, |cell| self.desired.cell = cell);
        } else if key == keys::FIRST_POOL {
            set(key, &entry.value, |pool| drop(self.placed.pools.insert(PoolName::first(), pool)));
        } else if key == keys::VIPS {
            set(key, &entry.value, |vips| self.placed.vips = vips);
        } else if key == keys::STORE_MEMBERS {
            set(key, &entry.value, |members| self.store_members = members);
        } else if key == keys::SITE_NUMBER {
            set(key, &entry.value, |number| self.site_number = number);
        } else if let Some(id) = id_in::<ServerId>(key, keys::SERVERS) {
            set(key, &entry.value, |server| drop(self.desired.servers.insert(id, server)));
        } else if let Some(name) = id_in::<PoolName>(key, keys::PLACED_POOLS) {
            set(key, &entry.value, |pool| drop(self.placed.pools.insert(name, pool)));
        } else if let Some(name) = id_in::<PoolName>(key, keys::POOLS) {
            set(key, &entry.value, |pool| drop(self.desired.pools.insert(name, pool)));
        } else if let Some(name) = id_in::<ImageName>(key, keys::IMAGES) {
            set(key, &entry.value, |image| drop(self.desired.images.insert(name, image)));
        } else if let Some(name) = id_in::<SiteName>(key, keys::SITES) {
            set(key, &entry.value, |site| drop(self.desired.sites.insert(name, site)));
        } else if let Some(name) = id_in::<SiteName>(key, keys::PREPARING) {
            set(key, &entry.value, |site| drop(self.preparing.insert(name, site)));
        } else if let Some(name) = id_in::<SiteName>(key, keys::ABANDONED) {
            self.abandoned.insert(name);
        } else if let Some(name) = id_in::<SiteName>(key, keys::PLACEMENTS) {
            set(key, &entry.value, |placement| drop(self.placed.sites.insert(name, placement)));
        } else if let Some(id) = id_in::<ServerId>(key, keys::ASSIGNMENTS) {
            set(key, &entry.value, |assignment| drop(self.assignments.insert(id, assignment)));
        } else if let Some(name) = id_in::<SiteName>(key, keys::ROUTES) {
            set(key, &entry.value, |route| drop(self.routes.insert(name, route)));
        } else if key.starts_with(keys::EVENTS) {
            self.event_keys.push(key.to_owned());
        }
    }

    fn delete(&mut self, key: &str) {
        self.revisions.remove(key);
        if key == keys::STORE_MEMBERS {
            self.store_members = StoreMembers::default();
        } else if let Some(id) = id_in::<ServerId>(key, keys::SERVERS) {
            self.desired.servers.remove(&id);
        } else if let Some(name) = id_in::<ImageName>(key, keys::IMAGES) {
            self.desired.images.remove(&name);
        } else if let Some(name) = id_in::<SiteName>(key, keys::SITES) {
            self.desired.sites.remove(&name);
        } else if let Some(name) = id_in::<SiteName>(key, keys::PREPARING) {
            self.preparing.remove(&name);
        } else if let Some(name) = id_in::<SiteName>(key, keys::ABANDONED) {
            self.abandoned.remove(&name);
        } else if let Some(name) = id_in::<SiteName>(key, keys::PLACEMENTS) {
            self.placed.sites.remove(&name);
        } else if let Some(id) = id_in::<ServerId>(key, keys::ASSIGNMENTS) {
            self.assignments.remove(&id);
        } else if let Some(name) = id_in::<SiteName>(key, keys::ROUTES) {
            self.routes.remove(&name);
        } else if key.starts_with(keys::EVENTS) {
            self.event_keys.retain(|known| known != key);
        }
    }
}

/// A write of a document.
pub fn put<T: Serialize>(key: String, document: &T) -> Op {
    let value = serde_json::to_vec(document).expect("documents have only text keys");
    Op::Put { key, value, lease: None }
}

fn id_in<T: std::str::FromStr>(key: &str, prefix: &str) -> Option<T> {
    key.strip_prefix(prefix)?.parse().ok()
}

/// A document that cannot be read (written by a newer Kopek, say) is passed over, not fatal: the last good
/// one stays in force.
fn set<T: DeserializeOwned>(key: &str, value: &[u8], with: impl FnOnce(T)) {
    match serde_json::from_slice(value) {
        Ok(document) => with(document),
        Err(source) => error!(key, %source, "document in the store cannot be read; it is ignored"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn members_of_the_store_that_were_deleted_are_forgotten() {
        let server = ServerId::parse("s1").expect("a name");
        let members = StoreMembers {
            cluster: "first".to_owned(),
            members: [(server, Ipv4Addr::LOCALHOST.into())].into(),
        };
        let mut state = CellState::default();
        state.wrote(&[put(keys::STORE_MEMBERS.to_owned(), &members)], 1);
        assert_eq!(state.store_members, members);
        state.take(&Change::Deleted { key: keys::STORE_MEMBERS.to_owned(), revision: 2 });
        assert_eq!(state.store_members, StoreMembers::default());
    }

    #[test]
    fn what_the_watch_tells_late_does_not_undo_what_was_written_since() {
        let server = ServerId::parse("s1").expect("a name");
        let members = StoreMembers {
            cluster: "second".to_owned(),
            members: [(server, Ipv4Addr::LOCALHOST.into())].into(),
        };
        let mut state = CellState::default();
        state.wrote(&[put(keys::STORE_MEMBERS.to_owned(), &members)], 5);
        let earlier = Op::Put { key: keys::STORE_MEMBERS.to_owned(), value: b"{}".to_vec(), lease: None };
        assert_ne!(put(keys::STORE_MEMBERS.to_owned(), &members), earlier);
        let key = keys::STORE_MEMBERS.to_owned();
        let value = serde_json::to_vec(&StoreMembers::default()).expect("a document");
        state.take(&Change::Put(Entry { key: key.clone(), value, revision: 3, lease: None }));
        assert_eq!(state.store_members, members);
        state.take(&Change::Deleted { key: key.clone(), revision: 4 });
        assert_eq!((&state.store_members, state.revision), (&members, 5));
        assert_eq!(state.unchanged(&key), Compare::RevisionIs { key, revision: 5 });
    }
}
