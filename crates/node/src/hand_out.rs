//! The parts of this server's edge, files and sql, made from its assignment, the routes and what runs here.
//! Pure; the agent publishes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kopek_core::assignment::{Assignment, StoredRoute};
use kopek_core::desired::Standing;
use kopek_core::part::{EdgePart, FilesPart, SqlListener, SqlPart, SqlSite};
use kopek_core::{Digest, InstanceId, ServerId, SiteName};

pub fn edge_part(me: &ServerId, routes: &BTreeMap<SiteName, StoredRoute>) -> EdgePart {
    let routes = routes.iter().map(|(site, stored)| (site.clone(), stored.route.clone()));
    EdgePart { server: me.clone(), routes: routes.collect() }
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
    routes: &BTreeMap<SiteName, StoredRoute>,
    listeners: BTreeMap<InstanceId, SqlListener>,
    member: Option<SocketAddr>,
) -> SqlPart {
    let sites = routes
        .iter()
        .map(|(site, StoredRoute { route, database, database_limits, pool, .. })| {
            let (number, writer, database) = (route.number, route.writer.clone(), database.clone());
            let (limits, pool) = (*database_limits, pool.clone());
            (site.clone(), SqlSite { number, writer, database, limits, pool })
        })
        .collect();
    let may_serve =
        assignment.is_some_and(|assignment| matches!(assignment.standing, Standing::Up | Standing::Draining));
    let writes_for = routes
        .iter()
        .filter_map(|(site, stored)| Some((site.clone(), stored.route.writer.as_ref()?)))
        .filter(|(_, writer)| may_serve && writer.server == *me)
        .map(|(site, writer)| (site, writer.epoch))
        .collect();
    SqlPart { server: me.clone(), sites, listeners, member, writes_for }
}

#[cfg(test)]
mod tests {
    use kopek_core::PoolName;
    use kopek_core::desired::{Database, DatabaseLimits};
    use kopek_core::part::{Route, RoutedWriter};

    use super::*;
    use crate::feed;

    fn server(name: &str) -> ServerId {
        ServerId::parse(name).unwrap()
    }

    fn assignment(standing: Standing) -> Assignment {
        Assignment { generation: 7, standing, ..feed::nothing_for(&server("s1")) }
    }

    fn route(name: &str, number: u32, writer: Option<RoutedWriter>) -> (SiteName, StoredRoute) {
        let site = SiteName::parse(name).unwrap();
        let route =
            Route { site: site.clone(), number, domains: Vec::new(), backends: BTreeMap::new(), writer };
        let [name, user, password] = ["wp", name, "hidden"].map(str::to_owned);
        let database = Some(Database { name, user, password });
        let database_limits = DatabaseLimits { connections: Some(number), ..DatabaseLimits::default() };
        let pool = PoolName::parse("second").unwrap();
        (site, StoredRoute { generation: 1, route, database, database_limits, pool })
    }

    #[test]
    fn a_server_writes_for_its_own_sites_while_it_is_up_or_draining() {
        let writer = |name: &str, epoch| {
            let relay = "10.0.0.1:7403".parse().unwrap();
            Some(RoutedWriter { server: server(name), relay, epoch, former: None })
        };
        let [blog, shop, wiki] =
            [route("blog", 5, writer("s1", 3)), route("shop", 6, writer("s2", 4)), route("wiki", 7, None)];
        let own = BTreeMap::from([(blog.0.clone(), 3)]);
        let routes = BTreeMap::from([blog, shop, wiki]);
        let part = |assignment: Option<&Assignment>| {
            sql_part(&server("s1"), assignment, &routes, BTreeMap::new(), None)
        };
        for (standing, writes_for) in [
            (Standing::Up, own.clone()),
            (Standing::Draining, own),
            (Standing::Dead, BTreeMap::new()),
            (Standing::Returning, BTreeMap::new()),
        ] {
            let part = part(Some(&assignment(standing)));
            assert_eq!(part.writes_for, writes_for, "{standing:?}");
            let sites = part.sites.values().map(|site| (site.number, site.writer.as_ref().map(|w| w.epoch)));
            assert_eq!(sites.collect::<Vec<_>>(), [(5, Some(3)), (6, Some(4)), (7, None)]);
        }
        assert_eq!(part(None).writes_for, BTreeMap::new());
    }

    #[test]
    fn the_password_of_a_sites_database_reaches_sql_and_not_the_edge() {
        let routes = BTreeMap::from([route("blog", 5, None)]);
        let sql = sql_part(&server("s1"), None, &routes, BTreeMap::new(), None);
        assert_eq!(sql.sites.values().next().unwrap().database, routes.values().next().unwrap().database);
        let edge = serde_json::to_string(&edge_part(&server("s1"), &routes)).unwrap();
        assert!(!edge.contains("hidden"), "{edge}");
    }

    #[test]
    fn the_limits_and_the_pool_of_a_sites_database_reach_sql() {
        let routes = BTreeMap::from([route("blog", 5, None)]);
        let sql = sql_part(&server("s1"), None, &routes, BTreeMap::new(), None);
        let site = sql.sites.values().next().unwrap();
        assert_eq!((site.limits.connections, site.pool.as_str()), (Some(5), "second"));
    }

    #[test]
    fn files_keeps_images_in_use_and_hears_only_a_confirmation_of_what_it_was_told() {
        let [assigned, in_use] = ["a", "b"].map(|digit| Digest::parse(&digit.repeat(64)).unwrap());
        let images = BTreeSet::from([assigned.clone()]);
        let assignment = Assignment { images, ..assignment(Standing::Up) };
        let part = |confirmed| {
            let in_use = BTreeSet::from([in_use.clone()]);
            files_part(&server("s1"), Some(&assignment), confirmed, in_use, BTreeMap::new())
        };
        assert_eq!(part(None).images, [assigned, in_use.clone()]);
        assert_eq!(part(Some(7)).confirmed, Some(7));
        assert_eq!(part(Some(6)).confirmed, None);
        assert_eq!(part(None).confirmed, None);
    }
}
