//! The cell's small, watched, transactional state. No measurements and no heartbeats live here.
//!
//! `store` is the interface, in etcd's terms: range, compare-and-commit, watch from a revision, lease.
//! Three ways hold it, and one conformance suite (`tests/conformance.rs`) passes on all of them:
//! `embedded` (redb, in the one process that opens the file), `served` (that process's store, for other
//! processes and servers) and `etcd`. Everyone but the host of the embedded store uses `FollowingStore`,
//! which finds the state where `<etc>/store.json` says and goes along when `migrate` moves it.

pub mod embedded;
mod moving;
mod store;
mod watch;

pub mod location;

pub use embedded::Embedded;
pub use location::Location;
pub use store::{Change, Commit, Compare, Entry, LeaseId, OPS_MAX, Op, Range, Revision, SIZE_MAX, Store, StoreError};
pub use watch::{Watch, WatchError};
