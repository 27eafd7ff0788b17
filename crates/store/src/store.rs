//! The interface that every store keeps, in etcd's terms, and the rules that are the same for all.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::location::Location;
use crate::moving::EPOCH_KEY;
use crate::watch::Watch;

/// Counts the commits of a store that changed something. Rises through all keys; never goes back.
pub type Revision = u64;

/// Compares, or operations, in one commit at most. etcd is started with room for a few more
/// (`--max-txn-ops`, see `etcd::SETTINGS`).
pub const OPS_MAX: usize = 1_000;

/// Keys and values of one commit at most, in bytes. etcd's own limit is 1.5 MiB with its framing.
pub const SIZE_MAX: usize = 1 << 20;

/// A promise to come back: keys put under a lease go when it is not kept alive for its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseId(pub(crate) i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub key: String,
    #[serde(with = "crate::store::base64_bytes")]
    pub value: Vec<u8>,
    /// Of the last change of this key.
    pub revision: Revision,
    pub lease: Option<LeaseId>,
}

/// What must be true for a commit to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    Absent {
        key: String,
    },
    RevisionIs {
        key: String,
        revision: Revision,
    },
    ValueIs {
        key: String,
        #[serde(with = "crate::store::base64_bytes")]
        value: Vec<u8>,
    },
}

impl Compare {
    pub fn key(&self) -> &str {
        match self {
            Compare::Absent { key } | Compare::RevisionIs { key, .. } | Compare::ValueIs { key, .. } => key,
        }
    }

    /// Whether it is true of what the key holds now.
    pub fn holds(&self, entry: Option<&Entry>) -> bool {
        match self {
            Compare::Absent { .. } => entry.is_none(),
            Compare::RevisionIs { revision, .. } => entry.is_some_and(|e| e.revision == *revision),
            Compare::ValueIs { value, .. } => entry.is_some_and(|e| e.value == *value),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    Put {
        key: String,
        #[serde(with = "crate::store::base64_bytes")]
        value: Vec<u8>,
        /// Replaces the lease that the key had.
        lease: Option<LeaseId>,
    },
    /// Deleting what is absent changes nothing.
    Delete {
        key: String,
    },
    DeletePrefix {
        prefix: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// Of the whole store at reading: watch from here.
    pub revision: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    Put(Entry),
    Deleted { key: String, revision: Revision },
}

impl Change {
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Deleted { key, .. } => key,
        }
    }

    pub fn revision(&self) -> Revision {
        match self {
            Change::Put(entry) => entry.revision,
            Change::Deleted { revision, .. } => *revision,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Commit {
    /// Durable. `revision` is that of its changes, or of the store if it changed nothing.
    Done { revision: Revision },
    /// A compare did not hold; nothing was changed.
    Conflict,
}

/// Why a store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoreError {
    #[error("the store at {store} does not answer ({why}); nothing was changed, try again")]
    Unavailable { store: String, why: String },
    /// The answer to a commit was lost.
    #[error("the store at {store} did not confirm a commit ({why}); read before trying again")]
    Uncertain { store: String, why: String },
    #[error("lease {lease} has expired or was revoked; ask for a new one")]
    LeaseLost { lease: LeaseId },
    #[error("the cell's state was moved to {0}; open it there")]
    Moved(Location),
    #[error("the cell's state is being moved; try again in a second")]
    Moving,
    #[error("the store refuses this: {why}")]
    Refused { why: String },
    #[error("{path} cannot be used: {why}")]
    File { path: String, why: String },
}

/// The cell's state. Values are at most a few hundred KiB; one commit holds at most `OPS_MAX` operations and
/// `SIZE_MAX` bytes, and names no key twice. After any error but `Uncertain` nothing was changed.
#[async_trait]
pub trait Store: Send + Sync {
    /// Every entry whose key starts with `prefix`, as of one moment not before the call.
    async fn range(&self, prefix: &str) -> Result<Range, StoreError>;

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// All or nothing: if every compare holds, all operations are done at one revision.
    async fn commit(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<Commit, StoreError>;

    /// The changes after revision `from` under `prefix`, each once and in order. Cut connections are mended
    /// inside.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, StoreError>;

    /// `ttl` is rounded up to whole seconds, at least 2 (etcd's least with its election timeout of 1 s).
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Its keys go at once. Revoking a lost lease is an error that can be ignored.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// The time that a lease really gets; see `Store::grant`.
pub(crate) fn whole_ttl(ttl: Duration) -> Duration {
    Duration::from_secs((ttl.as_millis().div_ceil(1_000) as u64).max(2))
}

/// Refuses what etcd would refuse, so that a caller tested on one store is right on all.
pub(crate) fn check_commit(compares: &[Compare], ops: &[Op]) -> Result<(), StoreError> {
    let refuse = |why: String| Err(StoreError::Refused { why });
    // The one that `FollowingStore` adds is not the caller's.
    let compared = compares.iter().filter(|compare| compare.key() != EPOCH_KEY).count();
    if compared > OPS_MAX || ops.len() > OPS_MAX {
        let most = compared.max(ops.len());
        return refuse(format!("{most} operations in one commit; split it, at most {OPS_MAX}"));
    }
    let mut size = 0;
    let mut puts = BTreeSet::new();
    for op in ops {
        if let Op::Put { key, value, .. } = op {
            size += key.len() + value.len();
            if !puts.insert(key.as_str()) {
                return refuse(format!("one commit puts {key} twice"));
            }
        }
    }
    if size > SIZE_MAX {
        return refuse(format!("{size} bytes in one commit; split it, at most {SIZE_MAX}"));
    }
    for op in ops {
        let both = match op {
            Op::Put { .. } => None,
            Op::Delete { key } => puts.get(key.as_str()),
            Op::DeletePrefix { prefix } => {
                puts.range(prefix.as_str()..).next().filter(|key| key.starts_with(prefix.as_str()))
            }
        };
        if let Some(key) = both {
            return refuse(format!("one commit both puts and deletes {key}"));
        }
    }
    Ok(())
}

/// Values travel as base64 in JSON.
pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Op {
        Op::Put { key: key.into(), value: vec![0; 8], lease: None }
    }

    #[test]
    fn a_commit_that_names_a_key_twice_is_refused() {
        let delete = |key: &str| Op::Delete { key: key.into() };
        let delete_prefix = |prefix: &str| Op::DeletePrefix { prefix: prefix.into() };
        assert!(check_commit(&[], &[put("/a"), put("/b"), delete("/c"), delete_prefix("/d")]).is_ok());
        for ops in
            [vec![put("/a"), put("/a")], vec![put("/a"), delete("/a")], vec![delete_prefix("/a"), put("/ab")]]
        {
            assert!(matches!(check_commit(&[], &ops), Err(StoreError::Refused { .. })), "{ops:?}");
        }
    }

    #[test]
    fn a_commit_over_the_limits_is_refused() {
        let many: Vec<Op> = (0..=OPS_MAX).map(|n| put(&format!("/{n}"))).collect();
        assert!(check_commit(&[], &many).is_err());
        assert!(check_commit(&[], &many[1..]).is_ok());
        let compares: Vec<Compare> =
            (0..=OPS_MAX).map(|n| Compare::Absent { key: format!("/{n}") }).collect();
        assert!(check_commit(&compares, &[]).is_err());
        assert!(check_commit(&compares[1..], &[]).is_ok());
        let fence = Compare::Absent { key: EPOCH_KEY.to_owned() };
        assert!(check_commit(&[&compares[1..], &[fence]].concat(), &[]).is_ok(), "it is not the caller's");
        let large = Op::Put { key: "/k".into(), value: vec![0; SIZE_MAX], lease: None };
        assert!(check_commit(&[], &[large]).is_err());
    }

    #[test]
    fn lease_times_are_whole_seconds_and_at_least_two() {
        let whole = |ms| whole_ttl(Duration::from_millis(ms)).as_secs();
        assert_eq!([whole(1), whole(2_000), whole(2_001)], [2, 2, 3]);
    }
}
