//! The store against the real thing: redb files, three etcd members with TLS on loopback, cut connections,
//! killed members and killed controllers.

// clippy.toml allows it in tests; the functions that tests share are not seen as such.
#![allow(clippy::unwrap_used)]

mod cell;
mod conformance;
mod election;
mod embedded;
mod etcd;
mod ground;
mod migration;
mod relay;
mod served;
