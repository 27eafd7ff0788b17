//! Where things go: what `plan` edits, what `assignment` is made from, what `check` tests. Written only by
//! the active controller, by compare-and-commit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{InstanceId, PoolName, ServerId, SiteName};
use crate::units::Moment;

/// The placements of a whole cell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placed {
    pub sites: BTreeMap<SiteName, SitePlacement>,
    pub pools: BTreeMap<PoolName, PoolPlacement>,
    /// Stored at `/vips`, all in one.
    pub vips: BTreeMap<IpAddr, PlacedVip>,
}

/// Of a pool that has no member yet.
static NOWHERE: PoolPlacement =
    PoolPlacement { members: BTreeSet::new(), bootstrap: None, formed: false, stopped: None };

impl Placed {
    pub fn pool(&self, name: &PoolName) -> &PoolPlacement {
        self.pools.get(name).unwrap_or(&NOWHERE)
    }

    /// The pool that has a member on this server: one at most.
    pub fn pool_on(&self, server: &ServerId) -> Option<&PoolName> {
        self.pools.iter().find(|(_, pool)| pool.members.contains(server)).map(|(name, _)| name)
    }
}

/// Stored at `/placements/SITE`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SitePlacement {
    pub instances: BTreeMap<InstanceId, PlacedInstance>,
    /// The number of the next instance; never goes back, so an id is never used twice.
    pub next_number: u64,
    /// Servers that keep the site's volume.
    pub holders: BTreeSet<ServerId>,
    pub writer: Option<Writer>,
    /// The writer before that one, while its member may still serve the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Writer>,
    /// When the number of instances last changed by policy.
    pub scaled: Option<Moment>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedInstance {
    pub server: ServerId,
    pub stage: Stage,
    /// In this stage since.
    pub since: Moment,
    /// The instance on a draining server that this one takes over from, so that a later plan does not
    /// start a second replacement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<InstanceId>,
}

/// `Run ──► Drain ──► gone`. A drained instance gets no new requests and is removed when idle or late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Run,
    Drain { until: Moment },
}

/// Where a VIP is, and where it is to go when its holder has let it go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedVip {
    pub holder: ServerId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<ServerId>,
    /// With this holder since.
    pub since: Moment,
}

/// The one pool member that serves a site. `epoch` grows with every change: a lower one is stale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    pub server: ServerId,
    pub epoch: u64,
    #[serde(default)]
    pub since: Moment,
    #[serde(default)]
    pub chosen_by: Chooser,
}

/// Who chose a site's writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chooser {
    /// It may be moved so that the members share the work.
    #[default]
    Planner,
    /// It stays as long as it can serve.
    Person,
}

/// Stored at `/placed-pools/NAME`, the first pool's at `/pool`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolPlacement {
    pub members: BTreeSet<ServerId>,
    /// The member that may start a new group: set for the first start of a pool and after a total power
    /// loss; cleared when the group is there.
    pub bootstrap: Option<ServerId>,
    /// Whether the pool has ever been seen in service. Before that an empty member may start the group.
    pub formed: bool,
    /// Since when no member has been seen in service, once the pool was.
    #[serde(default)]
    pub stopped: Option<Moment>,
}
