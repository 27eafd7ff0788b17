//! What one server must run. Made from desired and placed documents by `assignments`, written to the store
//! with a generation by the active controller, followed by the server's agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::desired::{Database, DatabaseLimits, Limits, Standing};
use crate::id::{Digest, InstanceId, PoolName, ServerId, SiteName};
use crate::part::Route;
use crate::placement::Stage;

/// Stored at `/assignments/SERVER`. An agent ignores one whose generation is not higher than what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    pub generation: u64,
    pub server: ServerId,
    pub standing: Standing,
    pub instances: BTreeMap<InstanceId, AssignedInstance>,
    /// Image trees to have here.
    pub images: BTreeSet<Digest>,
    /// Volumes to hold here.
    pub volumes: BTreeMap<SiteName, AssignedVolume>,
    pub member: Option<AssignedMember>,
    pub vips: Vec<AssignedVip>,
    /// Where trees can be fetched from: gate addresses of the other servers that are not dead.
    pub peers: BTreeMap<ServerId, SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedInstance {
    pub site: SiteName,
    /// The site's number: user ids from 100,000 + 65,536 × number, loopback address 127.1 + number.
    pub number: u32,
    pub image: Digest,
    pub limits: Limits,
    pub stage: Stage,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedVolume {
    pub tree: Digest,
    /// The site's number: a later site of the same name has another and must not find these files.
    pub number: u32,
}

/// The server's part in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedMember {
    #[serde(default = "PoolName::first")]
    pub pool: PoolName,
    /// Address of every member, this one among them, by server.
    pub group: BTreeMap<ServerId, IpAddr>,
    pub start: Start,
    /// Databases that this member must see exist, with their accounts; only for sites it is the writer of.
    pub databases: BTreeMap<SiteName, AssignedDatabase>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedDatabase {
    pub number: u32,
    pub database: Database,
}

/// How a member that does not run may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Start a new group with what is on disk.
    Bootstrap,
    /// Join the members that run.
    Join,
    /// Report the position on disk and wait.
    Hold,
}

/// A VIP as keepalived on this server must announce it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedVip {
    pub address: IpAddr,
    /// VRRP virtual router id, 1 to 255, unique on the network (RFC 5798 section 5.2.3).
    pub router: u8,
    /// VRRP priority, 1 to 254; the highest that is alive holds the address (RFC 5798 section 5.2.4).
    pub priority: u8,
    pub tenure: Tenure,
}

/// Whether a VIP's holder keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tenure {
    Stay,
    /// Another edge is ready to take it: the holder lets its requests end, then lets it go.
    Leave,
}

/// Every edge and every `sql` needs every site's route; stored at `/routes/SITE` so that one change of one
/// site is one small write.
///
/// The account stands beside the route, not in it: only `sql` gets it, and whoever gets a `Route` cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRoute {
    pub generation: u64,
    pub route: Route,
    #[serde(default)]
    pub database: Option<Database>,
    #[serde(default)]
    pub database_limits: DatabaseLimits,
    /// Carries the database.
    #[serde(default = "PoolName::first")]
    pub pool: PoolName,
}
