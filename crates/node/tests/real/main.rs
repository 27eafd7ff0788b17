//! The daemons of a server, for real: mariadbd, etcd and keepalived in network namespaces. Needs root.
#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, not in their helpers")]

mod daemon;
mod etcd;
mod keepalived;
mod mariadb;
mod rack;
mod whereabouts;
