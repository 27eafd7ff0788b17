//! What the embedded store holds in memory. Pure: time comes in, nothing goes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::store::{Change, Entry, LeaseId, Op, Revision, StoreError};

/// How much history is kept for watches. Whichever limit is reached first counts.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    pub revisions: usize,
    /// Of keys and values.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        // A cell of three servers changes a few keys a minute: days. 8 MiB keeps an idle agent small.
        HistoryLimits { revisions: 10_000, bytes: 8 << 20 }
    }
}

/// What the file holds when it is opened.
pub(super) struct Saved {
    pub revision: Revision,
    pub entries: BTreeMap<String, Entry>,
    pub leases: BTreeMap<LeaseId, Duration>,
}

pub(super) struct State {
    pub revision: Revision,
    pub entries: BTreeMap<String, Entry>,
    pub history: Past,
    leases: BTreeMap<LeaseId, Lease>,
}

struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl State {
    /// Leases begin anew: nobody could keep them alive while the file was closed.
    pub fn new(saved: Saved, limits: HistoryLimits, now: Instant) -> State {
        let leases =
            saved.leases.into_iter().map(|(id, ttl)| (id, Lease { ttl, deadline: now + ttl })).collect();
        let history = Past { limits, forgotten: saved.revision, bytes: 0, commits: VecDeque::new() };
        State { revision: saved.revision, entries: saved.entries, history, leases }
    }

    pub fn under(&self, prefix: &str) -> impl Iterator<Item = &Entry> {
        let prefix = prefix.to_owned();
        self.entries
            .range(prefix.clone()..)
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.key.starts_with(&prefix))
    }

    /// What a commit of `ops` changes, at the next revision.
    pub fn changes_by(&self, ops: &[Op], now: Instant) -> Result<Vec<Change>, StoreError> {
        let revision = self.revision + 1;
        let mut changes = Vec::new();
        let mut deleted = BTreeSet::new();
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    lease.map_or(Ok(()), |lease| self.must_live(lease, now))?;
                    let (key, value, lease) = (key.clone(), value.clone(), *lease);
                    changes.push(Change::Put(Entry { key, value, revision, lease }));
                }
                Op::Delete { key } => deleted.extend(self.entries.get_key_value(key).map(|(key, _)| key)),
                Op::DeletePrefix { prefix } => deleted.extend(self.under(prefix).map(|entry| &entry.key)),
            }
        }
        changes.extend(deleted.into_iter().map(|key| Change::Deleted { key: key.clone(), revision }));
        Ok(changes)
    }

    pub fn apply(&mut self, changes: Vec<Change>) {
        self.revision += 1;
        for change in &changes {
            assert_eq!(change.revision(), self.revision, "a commit has one revision, the next");
            match change {
                Change::Put(entry) => self.entries.insert(entry.key.clone(), entry.clone()),
                Change::Deleted { key, .. } => self.entries.remove(key),
            };
        }
        self.history.push(changes);
    }

    pub fn grant(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.leases.insert(lease, Lease { ttl, deadline: now + ttl });
    }

    pub fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<(), StoreError> {
        self.must_live(lease, now)?;
        if let Some(kept) = self.leases.get_mut(&lease) {
            kept.deadline = now + kept.ttl;
        }
        Ok(())
    }

    fn must_live(&self, lease: LeaseId, now: Instant) -> Result<(), StoreError> {
        match self.leases.get(&lease) {
            Some(found) if now < found.deadline => Ok(()),
            _ => Err(StoreError::LeaseLost { lease }),
        }
    }

    pub fn lost_leases(&self, now: Instant) -> Vec<LeaseId> {
        self.leases.iter().filter(|(_, lease)| lease.deadline <= now).map(|(id, _)| *id).collect()
    }

    pub fn changes_by_end_of(&self, lease: LeaseId) -> Result<Vec<Change>, StoreError> {
        if !self.leases.contains_key(&lease) {
            return Err(StoreError::LeaseLost { lease });
        }
        let held = self.entries.values().filter(|entry| entry.lease == Some(lease));
        let revision = self.revision + 1;
        Ok(held.map(|entry| Change::Deleted { key: entry.key.clone(), revision }).collect())
    }

    pub fn forget(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
    }
}

/// The last commits, newest last.
pub(super) struct Past {
    limits: HistoryLimits,
    /// Changes up to this revision are not kept.
    forgotten: Revision,
    bytes: usize,
    commits: VecDeque<Vec<Change>>,
}

pub(super) enum History {
    Kept(Vec<Change>),
    Compacted,
}

impl Past {
    /// What changed under `prefix` after revision `from`.
    pub fn after(&self, from: Revision, prefix: &str) -> History {
        if from < self.forgotten {
            return History::Compacted;
        }
        let known = usize::try_from(from - self.forgotten).unwrap_or(usize::MAX);
        let newer = self.commits.iter().skip(known).flatten();
        History::Kept(newer.filter(|change| change.key().starts_with(prefix)).cloned().collect())
    }

    fn push(&mut self, commit: Vec<Change>) {
        self.bytes += size(&commit);
        self.commits.push_back(commit);
        while self.commits.len() > self.limits.revisions || self.bytes > self.limits.bytes {
            let Some(oldest) = self.commits.pop_front() else { break };
            self.bytes -= size(&oldest);
            self.forgotten += 1;
        }
    }
}

fn size(commit: &[Change]) -> usize {
    let value = |change: &Change| match change {
        Change::Put(entry) => entry.value.len(),
        Change::Deleted { .. } => 0,
    };
    commit.iter().map(|change| change.key().len() + value(change)).sum()
}
