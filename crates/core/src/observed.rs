//! What agents report. Never stored: agents push it every second, and at once on a change, to the active
//! controller, which keeps the latest of each server.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::assignment::AssignedVolume;
use crate::big_change::BigChange;
use crate::desired::Site;
use crate::id::{Digest, InstanceId, PoolName, ServerId, SiteName};
use crate::units::{Bytes, Load, Moment};

/// The controller's view: the latest report of each server, and when it came.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observed {
    pub servers: BTreeMap<ServerId, Seen>,
    /// When this controller became active: silence counts from here at the earliest.
    pub since: Moment,
    /// Generation of the assignment that was last written for each server: an agent whose report shows a
    /// lower one has not seen it yet.
    #[serde(default)]
    pub generations: BTreeMap<ServerId, u64>,
    /// Servers all of whose ports refuse connections, and since when: nobody need wait out their silence.
    #[serde(default)]
    pub refused: BTreeMap<ServerId, Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub at: Moment,
    pub report: Report,
}

/// One agent's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub server: ServerId,
    /// Of /proc/sys/kernel/random/boot_id, or the virtual server's own: tells a reboot from a restart.
    pub boot: String,
    /// The generation of the assignment that the agent works on; 0 before it has one.
    pub generation: u64,
    pub instances: BTreeMap<InstanceId, SeenInstance>,
    /// Trees of images that are complete here.
    pub images: Vec<Digest>,
    pub volumes: BTreeMap<SiteName, SeenVolume>,
    pub member: Option<SeenMember>,
    pub edge: Health,
    /// VIPs that are on this server's interfaces now.
    pub vips: Vec<std::net::IpAddr>,
    pub disk_free: Bytes,
    pub memory_free: Bytes,
    /// Of the pool's line, if this server keeps it.
    #[serde(default)]
    pub big_changes: Vec<BigChange>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Well,
    Ill,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenInstance {
    pub phase: Phase,
    /// Its site's, which tells it from the same id of a deleted site of that name; none while nothing of it
    /// was made.
    pub number: Option<u32>,
    /// In which phase since.
    pub since: Moment,
    pub load: Load,
    pub memory: Bytes,
    pub tasks: u32,
    /// Processor time used since it started, in microseconds.
    pub cpu_us: u64,
    /// Requests in flight at the gate.
    pub in_flight: u32,
    /// How often this instance was restarted after it died or failed its probe.
    pub restarts: u32,
}

/// ```text
///  Waiting ──► Starting ──► Serving ──► Stopping ──► (gone)
///     ▲            │            │
///     └── BackOff ◄┴────────────┘  died, or probe failed
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Its image or volume is not here yet.
    Waiting {
        what: String,
    },
    /// Created; the probe has not succeeded yet.
    Starting,
    Serving,
    /// It died; starts again at `until`.
    BackOff {
        until: Moment,
        why: String,
    },
    Stopping,
}

impl Phase {
    pub fn as_str(&self) -> &'static str {
        match self {
            Phase::Waiting { .. } => "waiting",
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::BackOff { .. } => "back-off",
            Phase::Stopping => "stopping",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenVolume {
    /// The tree that is wholly applied.
    pub tree: Digest,
    /// The number of the site whose files these are.
    pub number: u32,
    pub files: u64,
    pub bytes: Bytes,
}

impl SeenVolume {
    pub fn volume(&self) -> AssignedVolume {
        AssignedVolume { tree: self.tree.clone(), number: self.number }
    }

    /// Whether it is this site's own, as it was deployed last.
    pub fn is_of(&self, site: &Site) -> bool {
        self.number == site.number && self.tree == site.tree
    }
}

/// A pool member as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenMember {
    /// Whose data it has: for a moment after a change another one's than the assignment says.
    #[serde(default = "PoolName::first")]
    pub pool: PoolName,
    pub state: MemberState,
    /// In this state since.
    #[serde(default)]
    pub since: Moment,
    /// `wsrep_cluster_size` while it runs.
    pub group_size: usize,
    /// Who is in the group, itself among them, by its own word while it is synced; empty otherwise.
    #[serde(default)]
    pub group: BTreeSet<ServerId>,
    /// The position on disk, known while it is stopped (`--wsrep-recover`) and while it runs.
    pub position: Option<Position>,
    /// Sites whose database and user exist there now.
    pub databases: Vec<SiteName>,
    /// What its data take on the disk, counted now and then.
    #[serde(default)]
    pub disk: Bytes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberState {
    /// Not running, and not being started: waits to be told to join or to bootstrap.
    Stopped,
    /// Joining, donating to itself, recovering.
    Starting,
    /// Synced, in the primary component, accepts writes.
    Synced,
    /// Runs but refuses work: no quorum, desynced, hung.
    Unready { why: String },
}

/// A Galera position: the group's UUID and the last committed sequence number (-1: nothing).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub group: String,
    pub seqno: i64,
}
