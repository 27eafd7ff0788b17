//! From placements to documents that servers follow: one assignment for each server, one route for each
//! site. Pure projections; called by the active controller, which writes those that changed with the next
//! generation (`with_generation`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::assignment::{
    AssignedDatabase, AssignedInstance, AssignedMember, AssignedVip, AssignedVolume, Assignment, Start,
    StoredRoute, Tenure,
};
use crate::desired::{Desired, Server, Site, Standing};
use crate::id::{PoolName, ServerId, SiteName};
use crate::observed::{MemberState, Observed, Phase};
use crate::part::{Backend, FormerWriter, Intake, Route, RoutedWriter};
use crate::placement::{Placed, PlacedInstance, SitePlacement, Stage};

/// The assignment of every server, each with generation 0.
pub fn assignments(
    desired: &Desired,
    placed: &Placed,
    observed: &Observed,
) -> BTreeMap<ServerId, Assignment> {
    let vips = vips(desired, placed);
    let mut all: BTreeMap<ServerId, Assignment> = desired
        .servers
        .values()
        .map(|server| {
            let assignment = Assignment {
                generation: 0,
                server: server.name.clone(),
                standing: server.standing,
                instances: BTreeMap::new(),
                // Every server has every image: a new instance must not wait for a pour.
                images: desired.images.values().map(|image| image.digest.clone()).collect(),
                volumes: BTreeMap::new(),
                member: member(desired, placed, observed, server),
                vips: vips.get(&server.name).cloned().unwrap_or_default(),
                peers: desired
                    .servers
                    .values()
                    .filter(|peer| peer.name != server.name && peer.standing != Standing::Dead)
                    .map(|peer| (peer.name.clone(), peer.gate()))
                    .collect(),
            };
            (server.name.clone(), assignment)
        })
        .collect();
    for (name, site) in &desired.sites {
        let Some(placement) = placed.sites.get(name) else { continue };
        for holder in &placement.holders {
            if let Some(assignment) = all.get_mut(holder) {
                assignment
                    .volumes
                    .insert(name.clone(), AssignedVolume { tree: site.tree.clone(), number: site.number });
            }
        }
        if let Some(image) = desired.images.get(&site.image) {
            for (id, instance) in &placement.instances {
                let Some(assignment) = all.get_mut(&instance.server) else { continue };
                if may_serve(assignment.standing) {
                    assignment.instances.insert(
                        id.clone(),
                        AssignedInstance {
                            site: name.clone(),
                            number: site.number,
                            image: image.digest.clone(),
                            limits: site.limits,
                            stage: instance.stage,
                        },
                    );
                }
            }
        }
        if let (Some(database), Some(writer)) = (&site.database, &placement.writer)
            && let Some(member) = all.get_mut(&writer.server).and_then(|a| a.member.as_mut())
        {
            let database = AssignedDatabase { number: site.number, database: database.clone() };
            member.databases.insert(name.clone(), database);
        }
    }
    all
}

/// `next` with the generation to write it under; `None` if it says what `previous` said.
pub fn with_generation(previous: Option<&Assignment>, mut next: Assignment) -> Option<Assignment> {
    let generation = previous.map_or(0, |p| p.generation);
    next.generation = generation;
    if previous == Some(&next) {
        return None;
    }
    next.generation = generation + 1;
    Some(next)
}

/// The route of every site. `previous` are the routes as last written: a server that has not reported to
/// this controller yet keeps the backends that it has there, so that a new controller empties no route.
pub fn routes(
    desired: &Desired,
    placed: &Placed,
    observed: &Observed,
    previous: &BTreeMap<SiteName, Route>,
) -> BTreeMap<SiteName, Route> {
    let nowhere = SitePlacement::default();
    desired
        .sites
        .iter()
        .map(|(name, site)| {
            let placement = placed.sites.get(name).unwrap_or(&nowhere);
            let before = previous.get(name);
            let backends = placement.instances.iter().filter_map(|(id, instance)| {
                let server = desired.servers.get(&instance.server)?;
                let serves = match observed.servers.get(&server.name) {
                    Some(seen) => {
                        let seen = seen.report.instances.get(id);
                        seen.is_some_and(|i| i.phase == Phase::Serving && i.number == Some(site.number))
                    }
                    None => before.is_some_and(|route| route.backends.contains_key(id)),
                };
                (server.is_serving() && serves).then(|| (id.clone(), backend(server, instance)))
            });
            let route = Route {
                site: name.clone(),
                number: site.number,
                domains: site.domains.clone(),
                backends: backends.collect(),
                writer: routed_writer(desired, site, placement),
            };
            (name.clone(), route)
        })
        .collect()
}

/// `route` with the generation to write it under, and the site's account, limits and pool beside it; `None` if `previous`
/// says the same.
pub fn stored_route(previous: Option<&StoredRoute>, route: Route, site: &Site) -> Option<StoredRoute> {
    let generation = previous.map_or(0, |p| p.generation);
    let next = StoredRoute {
        generation,
        route,
        database: site.database.clone(),
        database_limits: site.database_limits,
        pool: site.pool.clone(),
    };
    (previous != Some(&next)).then_some(StoredRoute { generation: generation + 1, ..next })
}

fn routed_writer(desired: &Desired, site: &Site, placement: &SitePlacement) -> Option<RoutedWriter> {
    let relay = |server: &ServerId| desired.servers.get(server).map(Server::sql_relay);
    let writer = placement.writer.as_ref().filter(|_| site.database.is_some())?;
    let former = placement.former.as_ref().and_then(|former| {
        let (server, relay) = (former.server.clone(), relay(&former.server)?);
        Some(FormerWriter { server, relay, epoch: former.epoch })
    });
    let (server, relay) = (writer.server.clone(), relay(&writer.server)?);
    Some(RoutedWriter { server, relay, epoch: writer.epoch, former })
}

fn backend(server: &Server, instance: &PlacedInstance) -> Backend {
    let intake = match instance.stage {
        Stage::Run => Intake::Open,
        Stage::Drain { .. } => Intake::Draining,
    };
    Backend { server: server.name.clone(), gate: server.gate(), intake }
}

fn may_serve(standing: Standing) -> bool {
    matches!(standing, Standing::Up | Standing::Draining)
}

fn member(
    desired: &Desired,
    placed: &Placed,
    observed: &Observed,
    server: &Server,
) -> Option<AssignedMember> {
    let pool = placed.pool_on(&server.name)?;
    let members = placed.pool(pool).members.iter();
    Some(AssignedMember {
        pool: pool.clone(),
        group: members.filter_map(|name| Some((name.clone(), desired.servers.get(name)?.address))).collect(),
        start: start(desired, placed, observed, pool, &server.name),
        databases: BTreeMap::new(),
    })
}

/// Joining needs somebody to join. A member holds while a group is about to be started elsewhere, and when
/// every member that could be in service is known not to be; one that has not reported to this controller
/// might be, so the others go on trying.
fn start(
    desired: &Desired,
    placed: &Placed,
    observed: &Observed,
    name: &PoolName,
    server: &ServerId,
) -> Start {
    let pool = placed.pool(name);
    let others = || pool.members.iter().filter(|member| *member != server);
    let state = |member: &ServerId| {
        let alive = desired.servers.get(member).is_some_and(|s| s.standing != Standing::Dead);
        let seen = observed.servers.get(member).filter(|_| alive)?;
        seen.report.member.as_ref().filter(|m| m.pool == *name).map(|m| &m.state)
    };
    let in_service = others().any(|member| state(member) == Some(&MemberState::Synced));
    let unknown = || {
        others().any(|member| {
            let alive = desired.servers.get(member).is_some_and(|s| s.standing != Standing::Dead);
            alive && !observed.servers.contains_key(member)
        })
    };
    match &pool.bootstrap {
        Some(chosen) if chosen == server && !in_service => Start::Bootstrap,
        _ if in_service => Start::Join,
        Some(_) => Start::Hold,
        None if pool.formed && unknown() => Start::Join,
        None => Start::Hold,
    }
}

/// Every VIP on every server that serves: its holder first, then where it is to go, then the others in an order
/// of the VIP's own, so that a death spreads what the dead one held. An address stays where it is also when a
/// server comes back that held it once.
fn vips(desired: &Desired, placed: &Placed) -> BTreeMap<ServerId, Vec<AssignedVip>> {
    let routers = routers(desired);
    let mut servers: Vec<&Server> = desired.servers.values().collect();
    servers.sort_by_key(|server| (server.joined, &server.name));
    let count = servers.len();
    let is_up = |name: &ServerId| desired.servers.get(name).is_some_and(Server::is_up);
    let mut all: BTreeMap<ServerId, Vec<AssignedVip>> = BTreeMap::new();
    for (turn, (address, router)) in routers.into_iter().enumerate() {
        let at = placed.vips.get(&address);
        let next = at.and_then(|at| at.next.as_ref()).filter(|next| is_up(next));
        for (order, server) in servers.iter().enumerate() {
            let rank = (order + count - turn % count) % count;
            let below = u8::try_from(rank).unwrap_or(u8::MAX).min(120);
            let is_holder = at.is_some_and(|at| at.holder == server.name);
            // RFC 5798 leaves 1 to 254; 1 is of those that would rather not.
            let priority = match server.standing {
                Standing::Dead | Standing::Returning => continue,
                Standing::Up | Standing::Draining if is_holder => 254,
                Standing::Up if next == Some(&server.name) => 253,
                Standing::Up => 252 - below,
                Standing::Draining => 125 - below,
            };
            let tenure = if is_holder && next.is_some() { Tenure::Leave } else { Tenure::Stay };
            let vip = AssignedVip { address, router, priority, tenure };
            all.entry(server.name.clone()).or_default().push(vip);
        }
    }
    all
}

/// A VRRP router id for each VIP: the last byte of the address where that is free, so that adding a VIP
/// leaves the others' ids alone.
fn routers(desired: &Desired) -> BTreeMap<IpAddr, u8> {
    let mut taken = [false; 256];
    let mut routers = BTreeMap::new();
    for vip in &desired.cell.vips {
        let last = match vip {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        };
        let first = usize::from(last.wrapping_sub(1));
        let candidates = (0..255).map(|step| 1 + (first + step) % 255);
        if let Some(router) = candidates.into_iter().find(|router| !taken[*router]) {
            taken[router] = true;
            let router = u8::try_from(router).expect("it is at most 255");
            routers.insert(*vip, router);
        }
    }
    routers
}
