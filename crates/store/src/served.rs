//! The embedded store for other processes and servers: the process that has the file open answers requests
//! on a Unix socket of its server and, to servers of the cell only, by mutual TLS on `STORE_PORT`.
//!
//! One JSON line asks, one answers; a connection that asks for a watch gets lines from then on.

mod client;
mod protocol;
mod server;

use std::path::PathBuf;

use kopek_core::config::Dirs;

pub use client::ServedStore;
pub use server::{Serving, serve};

/// Where processes of the same server find the store.
pub fn store_socket(dirs: &Dirs) -> PathBuf {
    dirs.run.join("store.sock")
}
