//! The parts of this server's edge, files and sql, made from its assignment, the routes and what runs here.
//! Pure; the agent publishes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kopek_core::assignment::Assignment;
use kopek_core::desired::Standing;
use kopek_core::part::{EdgePart, FilesPart, Route, SqlListener, SqlPart, SqlSite};
use kopek_core::{Digest, InstanceId, ServerId, SiteName};

pub fn edge_part(me: &ServerId, routes: &BTreeMap<SiteName, Route>) -> EdgePart {
    EdgePart { server: me.clone(), routes: routes.clone() }
}

/// `confirmed` is the generation that the store has confirmed. `in_use` are images of instances that run:
/// they outlive a newer image of the same name.
pub fn files_part(
    me: &ServerId,
    assignment: Option<&Assignment>,
    confirmed: Option<u64>,
    in_use: BTreeSet<Digest>,
    gates: BTreeMap<InstanceId, SocketAddr>,
) -> FilesPart {
    let assigned = assignment.map(|assignment| assignment.images.clone()).unwrap_or_default();
    FilesPart {
        server: me.clone(),
        confirmed: confirmed.filter(|confirmed| assignment.is_some_and(|a| a.generation == *confirmed)),
        images: assigned.union(&in_use).cloned().collect(),
        volumes: assignment.map(|a| a.volumes.clone()).unwrap_or_default(),
        peers: assignment.map(|a| a.peers.clone()).unwrap_or_default(),
        gates,
    }
}

/// `member` is the address of this server's pool member while that is synced.
pub fn sql_part(
    me: &ServerId,
    assignment: Option<&Assignment>,
    routes: &BTreeMap<SiteName, Route>,
    listeners: BTreeMap<InstanceId, SqlListener>,
    member: Option<SocketAddr>,
) -> SqlPart {
    let sites = routes
        .values()
        .map(|route| (route.site.clone(), SqlSite { number: route.number, writer: route.writer.clone() }))
        .collect();
    let may_serve =
        assignment.is_some_and(|assignment| matches!(assignment.standing, Standing::Up | Standing::Draining));
    let writes_for = routes
        .values()
        .filter_map(|route| Some((route.site.clone(), route.writer.as_ref()?)))
        .filter(|(_, writer)| may_serve && writer.server == *me)
        .map(|(site, writer)| (site, writer.epoch))
        .collect();
    SqlPart { server: me.clone(), sites, listeners, member, writes_for }
}
