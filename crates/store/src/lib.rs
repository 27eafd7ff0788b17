//! The cell's small, watched, transactional state. No measurements and no heartbeats live here.
//!
//! `store` is the interface, in etcd's terms: range, compare-and-commit, watch from a revision, lease.
//! Three ways hold it, and one conformance suite (`tests/store/conformance.rs`) passes on all of them:
//! `embedded` (redb, in the one process that opens the file), `served` (that process's store, for other
//! processes and servers) and `etcd`. Everyone else holds a `FollowingStore`, which finds the state where
//! `<etc>/store.json` says, goes along when `migrate` moves it, and asks other servers when it is not there
//! any more (`whereabouts`). `election` makes one controller active.

pub mod election;
pub mod embedded;
pub mod etcd;
pub mod following;
pub mod location;
pub mod migrate;
mod moving;
pub mod served;
mod store;
mod watch;
pub mod whereabouts;

pub use embedded::Embedded;
pub use etcd::EtcdStore;
pub use following::FollowingStore;
pub use location::{Location, open};
pub use migrate::{MigrateError, Migrated, migrate};
pub use served::ServedStore;
pub use store::{
    Change, Commit, Compare, Entry, LeaseId, OPS_MAX, Op, Range, Revision, SIZE_MAX, Store, StoreError,
};
pub use watch::{Watch, WatchError, read_and_watch};
