//! The documents of the HTTP API between the command line, the controller and the agents. JSON; the same
//! that `--json` prints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::desired::{Database, DatabaseLimits, Limits, Policy};
use crate::event::Event;
use crate::id::{Digest, Domain, ImageName, InstanceId, PoolName, ServerId, SiteName};
use crate::units::{Bytes, Load, Moment};

/// With a log: the number of bytes at the answer's beginning that were written before it was asked for.
pub const LOG_TAIL_HEADER: &str = "kopek-log-tail";

/// The body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// One line: what is wrong, with which site or server, and what to do.
    pub error: String,
    /// The active controller, when the one that was asked is on standby (status 421).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<std::net::SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSite {
    pub name: SiteName,
    pub domains: Vec<Domain>,
    pub image: ImageName,
    /// A tree that was uploaded before.
    pub tree: Digest,
    pub database: Option<Database>,
    /// Where its database goes; without it, to the pool with the fewest sites that is in service and has room.
    #[serde(default)]
    pub pool: Option<PoolName>,
    pub min: usize,
    pub max: usize,
    pub policy: Policy,
    pub limits: Limits,
    /// An SQL dump follows (`PUT /sites/NAME/dump`); the site starts when it is in.
    pub has_dump: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploySite {
    pub tree: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MoveWriter {
    /// Without it, to the member that writes for the fewest sites.
    #[serde(default)]
    pub to: Option<ServerId>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a move of a writer does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterMove {
    pub site: SiteName,
    pub from: Option<ServerId>,
    pub to: ServerId,
    pub epoch: u64,
}

/// Only what is given changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScaleSite {
    pub min: Option<usize>,
    pub max: Option<usize>,
    pub policy: Option<Policy>,
}

/// Limits of the site's database. Only what is given changes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitSite {
    #[serde(default)]
    pub connections: Option<Bound<u32>>,
    #[serde(default)]
    pub queries_per_second: Option<Bound<u32>>,
    #[serde(default)]
    pub longest_query_ms: Option<Bound<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound<T> {
    None,
    AtMost(T),
}

impl<T> Bound<T> {
    pub fn limit(self) -> Option<T> {
        match self {
            Bound::None => None,
            Bound::AtMost(limit) => Some(limit),
        }
    }
}

impl LimitSite {
    /// The limits after this change.
    pub fn applied_to(&self, before: DatabaseLimits) -> DatabaseLimits {
        DatabaseLimits {
            connections: self.connections.map_or(before.connections, Bound::limit),
            queries_per_second: self.queries_per_second.map_or(before.queries_per_second, Bound::limit),
            longest_query_ms: self.longest_query_ms.map_or(before.longest_query_ms, Bound::limit),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadedTree {
    pub digest: Digest,
    pub bytes: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterImage {
    pub name: ImageName,
    pub digest: Digest,
    pub bytes: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    pub name: ServerId,
    pub address: IpAddr,
    pub rack: String,
    pub slots: usize,
    /// `up`, `draining`, `dead`, `returning`.
    pub state: String,
    pub instances: usize,
    /// Sum of its instances' loads.
    pub load: Load,
    /// Of its pool member: `synced`, `starting`, `stopped`, `unready`; `none` without one.
    pub pool: String,
    pub vips: Vec<IpAddr>,
    pub active_controller: bool,
    pub disk_free: Bytes,
    pub memory_free: Bytes,
    /// Images complete there.
    pub images: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    pub id: InstanceId,
    pub site: SiteName,
    pub server: ServerId,
    /// `placed` before its agent has said anything of it, `draining`, or the agent's phase.
    pub phase: String,
    pub load: Load,
    pub memory: Bytes,
    pub tasks: u32,
    pub in_flight: u32,
    pub restarts: u32,
    pub since: Moment,
    /// What it waits for, or why it backs off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteView {
    pub name: SiteName,
    pub domains: Vec<Domain>,
    pub image: ImageName,
    /// `running`, `starting`, `preparing` (its dump is being read) or `stopped` (max 0).
    pub state: String,
    pub min: usize,
    pub max: usize,
    pub policy: Policy,
    #[serde(default)]
    pub database_limits: DatabaseLimits,
    #[serde(default = "PoolName::first")]
    pub pool: PoolName,
    pub writer: Option<ServerId>,
    /// The writer's member is in service and has the site's database and account.
    #[serde(default)]
    pub writer_ready: bool,
    /// A person chose the writer: it stays there as long as it can serve.
    #[serde(default)]
    pub writer_chosen: bool,
    pub instances: Vec<InstanceView>,
    pub volume: VolumeView,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeView {
    /// Holders that have the deployed tree wholly.
    pub holders: Vec<ServerId>,
    /// Holders that are still being filled.
    pub filling: Vec<ServerId>,
    pub files: u64,
    pub bytes: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    pub name: ImageName,
    pub digest: Digest,
    pub bytes: Bytes,
    /// Servers that have it.
    pub servers: Vec<ServerId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatePool {
    pub name: PoolName,
    /// 1, 3 or 5 servers; empty: to be chosen.
    #[serde(default)]
    pub servers: BTreeSet<ServerId>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a new pool begins on, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolFounding {
    pub name: PoolName,
    pub servers: BTreeSet<ServerId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    pub name: String,
    /// `serving`, `forming`, or `down` with the reason.
    pub state: String,
    pub members: Vec<MemberView>,
    /// Sites by writer.
    pub writers: BTreeMap<ServerId, Vec<SiteName>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub server: ServerId,
    pub state: String,
    pub since: Option<Moment>,
    pub seqno: Option<i64>,
    /// Members that it sees in its group, itself among them.
    pub group_size: usize,
    /// What its data take on the disk.
    pub disk: Bytes,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipView {
    pub address: IpAddr,
    pub holder: Option<ServerId>,
    /// Where it is to be: another than the holder while it moves.
    pub wanted: Option<ServerId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellView {
    pub name: String,
    pub active: ServerId,
    /// `embedded` or `etcd`.
    pub store: String,
    pub vips: Vec<VipView>,
    /// What the planner wants and cannot do, and why.
    pub blocked: Vec<String>,
    /// Nothing is left to do.
    pub converged: bool,
}

/// Answer of `GET /events?after=REVISION`: in the order in which they were written, each with its key. After a
/// move of the store all of them come once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsAfter {
    pub events: Vec<(String, Event)>,
    /// To go on from.
    pub after: u64,
}

/// What a joining server sends; the token is spent by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub token: String,
    pub name: ServerId,
    pub address: IpAddr,
    pub rack: String,
    pub slots: usize,
    /// Certificate signing request, PEM.
    pub csr: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub ca: String,
    pub certificate: String,
    /// The store's location, to be written to `<etc>/store.json`.
    pub store: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    pub token: String,
    pub expires: Moment,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    pub argv: Vec<String>,
    /// What the command reads on standard input, base64.
    #[serde(default)]
    pub stdin: String,
}

/// One line of an exec answer: output as it comes, base64, then the exit code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecLine {
    Out(String),
    Err(String),
    Exit(i32),
}

/// Why an SQL dump was not imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpFault {
    pub line: Option<u64>,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateStore {
    /// `embedded` or `etcd`.
    pub to: String,
}
