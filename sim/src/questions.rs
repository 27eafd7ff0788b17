//! What tests ask a simulated cell.

use kopek_core::desired::Standing;
use kopek_core::observed::{MemberState, Phase, Report, SeenMember};
use kopek_core::placement::{PlacedVip, PoolPlacement, Stage};
use kopek_core::plan::{Blocked, Step, is_converged, plan};
use kopek_core::{InstanceId, PoolName, ServerId};

use crate::cell::Cell;
use crate::pool::Pool;
use crate::rack;

impl Cell {
    /// Where a site's instances serve, as its route tells the edges.
    pub fn serving_on(&self, site: &str) -> Vec<&str> {
        let route = self.routes.get(&rack::site(site));
        route.map_or(Vec::new(), |route| route.backends.values().map(|b| b.server.as_str()).collect())
    }

    /// Backends that a visitor would reach now.
    pub fn answers(&self, site: &str) -> bool {
        self.routes.get(&rack::site(site)).is_some_and(|route| {
            route.backends.iter().any(|(id, backend)| {
                self.machines.get(&backend.server).is_some_and(|machine| {
                    machine.is_reachable()
                        && machine.instances.get(id).is_some_and(|c| c.phase == Phase::Serving)
                })
            })
        })
    }

    pub fn standing(&self, name: &str) -> Option<Standing> {
        self.desired.servers.get(&rack::server(name)).map(|server| server.standing)
    }

    pub fn writer(&self, site: &str) -> Option<&str> {
        let placement = self.placed.sites.get(&rack::site(site))?;
        placement.writer.as_ref().map(|writer| writer.server.as_str())
    }

    /// The server's database as it is.
    pub fn member(&self, server: &ServerId) -> Option<SeenMember> {
        self.pools.values().find_map(|pool| pool.seen(server))
    }

    /// The first pool as it is placed; tests change it and see what is planned then.
    pub fn pool1(&mut self) -> &mut PoolPlacement {
        self.placed.pools.entry(PoolName::first()).or_default()
    }

    pub fn pool_serves(&self, pool: &PoolName) -> bool {
        self.pools.get(pool).is_some_and(Pool::is_in_service)
    }

    pub fn instance_on(&self, site: &str, name: &str) -> Option<InstanceId> {
        let placement = self.placed.sites.get(&rack::site(site))?;
        let found = placement.instances.iter().find(|(_, i)| i.server.as_str() == name);
        found.map(|(id, _)| id.clone())
    }

    /// What the active controller heard of a server last; tests change it and see what is planned then.
    pub fn heard_of(&mut self, name: &str) -> &mut Report {
        let controller = self.controller.as_mut().expect("tests ask when there is a controller");
        let seen = controller.observed.servers.get_mut(&rack::server(name));
        &mut seen.expect("tests ask when it has reported").report
    }

    /// What is planned now, and what is blocked.
    pub fn planned(&self) -> Vec<String> {
        let controller = self.controller.as_ref().expect("tests ask when there is a controller");
        let plan = plan(&self.desired, &self.placed, &controller.observed, self.now);
        let steps = plan.steps.iter().map(Step::to_string);
        steps.chain(plan.blocked.iter().map(Blocked::to_string)).collect()
    }

    /// Why the cell is not whole: what is left to do, blocked, dead or not served.
    pub fn troubles(&self) -> Vec<String> {
        let Some(controller) = &self.controller else { return vec!["no controller".to_owned()] };
        let mut troubles = Vec::new();
        if !is_converged(&self.desired, &self.placed, &controller.observed, self.now) {
            troubles.push("something is planned".to_owned());
        }
        troubles.extend(self.told.iter().map(Blocked::to_string));
        for server in self.desired.servers.values() {
            if !server.is_serving() {
                troubles.push(format!("{} does not serve", server.name));
            }
        }
        for (name, site) in &self.desired.sites {
            let Some(placement) = self.placed.sites.get(name) else {
                troubles.push(format!("{name} is not placed"));
                continue;
            };
            let open = placement.instances.iter().filter(|(_, i)| i.stage == Stage::Run).count();
            let serving = self.routes.get(name).map_or(0, |route| route.backends.len());
            if serving < open || open < site.min || serving != placement.instances.len() {
                troubles.push(format!("{name}: {serving} serve of {open}, at least {}", site.min));
            }
            let writer = placement.writer.as_ref().and_then(|w| self.member(&w.server));
            let synced = writer.is_some_and(|m| m.state == MemberState::Synced);
            if site.database.is_some() && !synced {
                troubles.push(format!("{name}: its writer is not in service"));
            }
        }
        troubles.extend(self.vip_troubles());
        for member in self.placed.pools.values().flat_map(|pool| &pool.members) {
            let seen = self.member(member);
            if seen.is_none_or(|m| m.state != MemberState::Synced) {
                troubles.push(format!("pool member {member} is not synced"));
            }
        }
        troubles
    }

    fn vip_troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        for vip in &self.desired.cell.vips {
            let holders: Vec<&ServerId> =
                self.machines.values().filter(|m| m.vips.contains(vip)).map(|m| &m.name).collect();
            match (self.placed.vips.get(vip), holders.as_slice()) {
                (Some(PlacedVip { holder, next: None, .. }), [one]) if holder == *one => {}
                (placed, holders) => troubles.push(format!("{vip} is {placed:?} and at {holders:?}")),
            }
        }
        let up = self.desired.servers.values().filter(|server| server.is_up());
        let counts: Vec<usize> =
            up.map(|s| self.placed.vips.values().filter(|vip| vip.holder == s.name).count()).collect();
        if let (Some(most), Some(least)) = (counts.iter().max(), counts.iter().min())
            && *most >= least + 2
        {
            troubles.push(format!("the VIPs crowd: {counts:?}"));
        }
        troubles
    }
}
