//! The parts of this server's edge, files and sql, made from its assignment, the routes and what runs here.
//! Pure; the agent publishes them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kopek_core::assignment::Assignment;
use kopek_core::desired::Standing;
use kopek_core::part::{EdgePart, FilesPart, Route, SqlListener, SqlPart, SqlSite};
use kopek_core::{InstanceId, ServerId, SiteName};

pub fn edge_part(me: &ServerId, routes: &BTreeMap<SiteName, Route>) -> EdgePart {
    EdgePart { server: me.clone(), routes: routes.clone() }
}

pub fn files_part(
    me: &ServerId,
    assignment: Option<&Assignment>,
    gates: BTreeMap<InstanceId, SocketAddr>,
) -> FilesPart {
    FilesPart {
        server: me.clone(),
        images: assignment.map(|a| a.images.iter().cloned().collect()).unwrap_or_default(),
        volumes: assignment
            .map(|a| a.volumes.iter().map(|(site, volume)| (site.clone(), volume.tree.clone())).collect())
            .unwrap_or_default(),
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
