//! This server's member of the pool: one MariaDB with Galera, initialised, started, watched and restarted as
//! the assignment says. Never starts a group of its own unless told, and never a second one. The agent calls
//! it; it survives the agent and is adopted again.
//!
//! ```text
//! belonging.rs: whose data are here
//! setup.rs ──► position.rs ──► keep.rs ──► databases.rs
//! folders,     how new the     start,      accounts of the sites
//! first data   data on disk is watch       whose writer this is      dump.rs: a site's SQL dump
//!                                └─ pulse.rs: does it hang?
//! ```

mod belonging;
mod client;
mod databases;
mod dump;
mod home;
mod keep;
mod position;
mod pulse;
mod setup;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kopek_core::assignment::{AssignedDatabase, AssignedMember};
use kopek_core::config::Dirs;
use kopek_core::observed::SeenMember;
use kopek_core::{Bytes, ServerId};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Notify, watch};

pub use client::{ClientError, EvictError, Evicted, NodeId};
pub use databases::DatabaseError;
pub use dump::DumpError;
use home::Home;
use keep::Wanted;

/// Where a member listens for clients: on loopback only, so every connection comes through the sql relay,
/// from the site's own loopback address.
pub const CLIENT_PORT: u16 = 3306;

/// What only this server knows about its member.
#[derive(Debug, Clone)]
pub struct MemberConfig {
    pub server: ServerId,
    /// Where the other members reach it.
    pub address: IpAddr,
    /// InnoDB's cache; by far most of mariadbd's memory.
    pub buffer_pool: Bytes,
}

impl MemberConfig {
    pub fn new(server: &ServerId, address: IpAddr) -> MemberConfig {
        MemberConfig { server: server.clone(), address, buffer_pool: Bytes::mib(128) }
    }
}

/// A member that ended, or hangs and is being killed, without having left its group: the others wait for it
/// until somebody puts it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub node: NodeId,
    pub why: String,
}

/// The handle of the task that keeps the member. Dropping it ends the task and leaves mariadbd running.
pub struct Member {
    home: Home,
    wanted: watch::Sender<Wanted>,
    seen: watch::Receiver<Option<SeenMember>>,
    lost: watch::Receiver<Option<Lost>>,
    look: Arc<Notify>,
    /// To ask who is in the group and to put somebody out: kept open, since everybody's writes wait for that.
    group: Mutex<Option<client::Client>>,
}

impl Member {
    /// Adopts a member that runs already; otherwise does nothing before the first `apply`.
    pub fn start(dirs: &Dirs, config: MemberConfig) -> Member {
        let home = Home::new(dirs, config);
        let (wanted, wanted_in) = watch::channel(Wanted::Unknown);
        let (seen_out, seen) = watch::channel(None);
        let (lost_out, lost) = watch::channel(None);
        let look = Arc::new(Notify::new());
        let voice = keep::Voice { seen: seen_out, lost: lost_out };
        tokio::spawn(keep::keep(home.clone(), wanted_in, voice, Arc::clone(&look)));
        Member { home, wanted, seen, lost, look, group: Mutex::new(None) }
    }

    /// What the assignment says. None: this server carries no member; a running one is stopped, its data stays.
    pub fn apply(&self, assigned: Option<AssignedMember>) {
        let wanted = assigned.map_or(Wanted::Nothing, Wanted::Member);
        self.wanted.send_if_modified(|old| {
            let changed = *old != wanted;
            *old = wanted;
            changed
        });
    }

    /// What to report. Notifies of a new state, group size or database, not of each new position.
    pub fn seen(&self) -> watch::Receiver<Option<SeenMember>> {
        self.seen.clone()
    }

    /// This server's own member each time it is lost to its group.
    pub fn lost(&self) -> watch::Receiver<Option<Lost>> {
        self.lost.clone()
    }

    /// mariadbd's socket; root and mysql need no password there.
    pub fn socket(&self) -> PathBuf {
        self.home.socket()
    }

    /// Executes a site's SQL dump with the site's own rights, in an empty database: what was in it is gone. The
    /// member must be synced and have the site's database and account. Statements before one that failed stay
    /// done until the dump is read again.
    pub async fn import_dump(&self, database: &AssignedDatabase, file: &Path) -> Result<(), DumpError> {
        let mut client = client::Client::connect(&self.home.socket()).await.map_err(DatabaseError::from)?;
        databases::empty(&mut client, database).await?;
        // A removal that was broken off may have dropped the account.
        databases::ensure(&mut client, database).await?;
        dump::import_dump(&self.home, database, file).await
    }

    /// Drops a deleted site's database and account from the pool. May be repeated.
    pub async fn drop_database(&self, database: &AssignedDatabase) -> Result<(), DatabaseError> {
        let mut client = client::Client::connect(&self.home.socket()).await?;
        databases::drop(&mut client, database).await
    }

    /// Puts a member that is known to be dead or frozen out of the group at once, instead of after the
    /// group's own time limit. Refuses where the rest would have no quorum. With `node`, only that start of it.
    pub async fn evict(&self, dead: &ServerId, node: Option<&NodeId>) -> Result<Evicted, EvictError> {
        let mut kept = self.group.lock().await;
        let mut client = self.group_client(&mut kept).await?;
        let evicted = client.evict(dead, node).await;
        *kept = Some(client);
        if matches!(evicted, Ok(Evicted::Now)) {
            self.look.notify_one();
        }
        evicted
    }

    /// Who is in the group, by this server's own member.
    pub async fn group(&self) -> Result<BTreeMap<ServerId, NodeId>, ClientError> {
        let mut kept = self.group.lock().await;
        let mut client = self.group_client(&mut kept).await?;
        let group = client.group().await?;
        *kept = Some(client);
        Ok(group)
    }

    /// The connection that is kept, if it still is one.
    async fn group_client(&self, kept: &mut Option<client::Client>) -> Result<client::Client, ClientError> {
        if let Some(mut client) = kept.take()
            && client.ping().await.is_ok()
        {
            return Ok(client);
        }
        client::Client::connect(&self.home.socket()).await
    }
}
