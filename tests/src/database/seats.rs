//! Where clients sit: the sockets of the instances on each server, as the machine sees them. Looked up for each
//! connection, since instances come and go. Called by crew.rs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use crate::rack::Rack;

#[derive(Default)]
pub struct Seats {
    /// The init of each server that runs.
    inits: Mutex<BTreeMap<String, i32>>,
}

impl Seats {
    /// After servers were started or ended.
    pub async fn look(&self, rack: &Rack) -> Result<()> {
        let servers = rack.status().await?.servers.into_iter();
        let inits = servers.filter_map(|server| Some((server.name, server.pid?))).collect();
        *self.inits.lock().unwrap_or_else(PoisonError::into_inner) = inits;
        Ok(())
    }

    /// The socket of an instance on this server, if one is there.
    pub fn on(&self, server: &str) -> Option<PathBuf> {
        let init = *self.inits.lock().unwrap_or_else(PoisonError::into_inner).get(server)?;
        let instances = fs::read_dir(format!("/proc/{init}/root/run/kopek/sql")).ok()?;
        let sockets = instances.filter_map(|entry| Some(entry.ok()?.path().join("mysqld.sock")));
        sockets.filter(|socket| socket.exists()).min()
    }

    pub fn servers(&self) -> Vec<String> {
        self.inits.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}
