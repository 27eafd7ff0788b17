//! The routing table: domain → site → instances. Built whole from the agent's part and swapped whole; what was
//! learnt about a site and its instances moves on into the next table. Called by `serve` and `proxy`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use kopek_core::part::{Backend, EdgePart, Intake, Route};
use kopek_core::{InstanceId, ServerId, SiteName};

use crate::health::Health;
use crate::hold::WaitingRoom;

#[derive(Debug)]
pub struct RoutingTable {
    by_domain: HashMap<String, Arc<SiteRoute>>,
    sites: BTreeMap<SiteName, Arc<SiteRoute>>,
}

#[derive(Debug)]
pub struct SiteRoute {
    pub site: SiteName,
    pub backends: Vec<Arc<BackendRoute>>,
    pub room: Arc<WaitingRoom>,
    pub counters: Arc<Counters>,
}

#[derive(Debug)]
pub struct BackendRoute {
    pub instance: InstanceId,
    pub way: Way,
    pub intake: Intake,
    pub health: Arc<Health>,
}

/// Through which gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// This server's, over its Unix socket.
    Here,
    There(SocketAddr),
}

/// Since the site was first routed.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    /// Answered by the edge itself with 5xx.
    pub errors: AtomicU64,
    pub held: AtomicU64,
    pub retried: AtomicU64,
    pub in_flight: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}

impl RoutingTable {
    pub fn build(part: &EdgePart, before: Option<&RoutingTable>, held_per_site: usize) -> RoutingTable {
        let mut table = RoutingTable { by_domain: HashMap::new(), sites: BTreeMap::new() };
        for route in part.routes.values() {
            let known = before.and_then(|table| table.sites.get(&route.site));
            let site = Arc::new(site_route(&part.server, route, known, held_per_site));
            for domain in &route.domains {
                table.by_domain.entry(domain.as_str().to_owned()).or_insert_with(|| site.clone());
            }
            table.sites.insert(route.site.clone(), site);
        }
        table
    }

    /// `host` in lower case without port.
    pub fn site(&self, host: &str) -> Option<&Arc<SiteRoute>> {
        self.by_domain.get(host)
    }

    pub fn sites(&self) -> impl Iterator<Item = &Arc<SiteRoute>> {
        self.sites.values()
    }

    pub fn backend(&self, instance: &InstanceId) -> Option<&Arc<BackendRoute>> {
        self.sites.get(&instance.site())?.backend(instance)
    }
}

impl SiteRoute {
    fn backend(&self, instance: &InstanceId) -> Option<&Arc<BackendRoute>> {
        self.backends.iter().find(|backend| backend.instance == *instance)
    }
}

fn site_route(me: &ServerId, route: &Route, known: Option<&Arc<SiteRoute>>, seats: usize) -> SiteRoute {
    let backends = route
        .backends
        .iter()
        .map(|(instance, backend)| {
            let before = known.and_then(|site| site.backend(instance));
            Arc::new(backend_route(me, instance, backend, before))
        })
        .collect();
    SiteRoute {
        site: route.site.clone(),
        backends,
        room: known.map_or_else(|| Arc::new(WaitingRoom::new(seats)), |site| site.room.clone()),
        counters: known.map_or_else(Arc::default, |site| site.counters.clone()),
    }
}

fn backend_route(
    me: &ServerId,
    instance: &InstanceId,
    backend: &Backend,
    before: Option<&Arc<BackendRoute>>,
) -> BackendRoute {
    let way = if backend.server == *me { Way::Here } else { Way::There(backend.gate) };
    BackendRoute {
        instance: instance.clone(),
        way,
        intake: backend.intake,
        health: before.filter(|before| before.way == way).map_or_else(Arc::default, |b| b.health.clone()),
    }
}

#[cfg(test)]
mod tests {
    use kopek_core::Domain;

    use super::*;
    use crate::clock::Uptime;

    fn part(backends: &[(&str, &str)]) -> EdgePart {
        let backends = backends
            .iter()
            .map(|(instance, server)| {
                let gate = "10.0.0.2:7402".parse().unwrap();
                let server = ServerId::parse(server).unwrap();
                (InstanceId::parse(instance).unwrap(), Backend { server, gate, intake: Intake::Open })
            })
            .collect();
        let site = SiteName::parse("blog").unwrap();
        let domains = vec![Domain::parse("blog.org").unwrap(), Domain::parse("www.blog.org").unwrap()];
        let route = Route { site: site.clone(), number: 1, domains, backends, writer: None };
        EdgePart { server: ServerId::parse("s1").unwrap(), routes: BTreeMap::from([(site, route)]) }
    }

    #[test]
    fn every_domain_of_a_site_leads_to_it_and_only_its_own_server_uses_the_socket() {
        let table = RoutingTable::build(&part(&[("blog.1", "s1"), ("blog.2", "s2")]), None, 1);
        let site = table.site("www.blog.org").unwrap();
        assert_eq!(site.site.as_str(), "blog");
        assert_eq!(site.backends[0].way, Way::Here);
        assert_eq!(site.backends[1].way, Way::There("10.0.0.2:7402".parse().unwrap()));
        assert!(table.site("blog.net").is_none());
    }

    #[test]
    fn what_was_learnt_moves_on_unless_the_instance_is_elsewhere_now() {
        let first = RoutingTable::build(&part(&[("blog.1", "s1"), ("blog.2", "s1")]), None, 1);
        for backend in &first.site("blog.org").unwrap().backends {
            backend.health.failed(Uptime(1));
        }
        let second = RoutingTable::build(&part(&[("blog.1", "s1"), ("blog.2", "s2")]), Some(&first), 1);
        let [first, second] = [first, second].map(|table| table.site("blog.org").unwrap().clone());
        let failures: Vec<u32> = second.backends.iter().map(|backend| backend.health.failures()).collect();
        assert_eq!(failures, [1, 0]);
        assert!(Arc::ptr_eq(&first.room, &second.room) && Arc::ptr_eq(&first.counters, &second.counters));
    }
}
