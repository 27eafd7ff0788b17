//! The documents that a plan changes, and what each step does to them. Every step checks that it still makes
//! sense, so that no subset, order or repetition of steps breaks what `check` demands.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::desired::{Server, Site, Standing};
use crate::id::{InstanceId, PoolName, ServerId, SiteName};
use crate::placement::{Placed, PlacedInstance, PlacedVip, PoolPlacement, SitePlacement, Stage, Writer};
use crate::units::Moment;

use super::step::{Action, Cause, Former};

pub(super) struct State {
    pub servers: BTreeMap<ServerId, Server>,
    pub placed: Placed,
    /// Slots taken, by server; kept because placing thousands of instances asks for it each time.
    taken: BTreeMap<ServerId, usize>,
}

impl State {
    pub fn new(servers: BTreeMap<ServerId, Server>, placed: Placed) -> State {
        let mut taken = BTreeMap::new();
        for instance in placed.sites.values().flat_map(|site| site.instances.values()) {
            match taken.get_mut(&instance.server) {
                Some(count) => *count += 1,
                None => {
                    taken.insert(instance.server.clone(), 1);
                }
            }
        }
        State { servers, placed, taken }
    }

    /// A drained instance keeps its slot until it is gone.
    pub fn slots_taken(&self, server: &ServerId) -> usize {
        self.taken.get(server).copied().unwrap_or(0)
    }

    pub fn standing(&self, server: &ServerId) -> Option<Standing> {
        self.servers.get(server).map(|s| s.standing)
    }

    /// Instances of a site that take requests and stay: not drained, and on servers that are up.
    pub fn staying(&self, placement: &SitePlacement) -> usize {
        placement
            .instances
            .values()
            .filter(|i| i.stage == Stage::Run && self.standing(&i.server) == Some(Standing::Up))
            .count()
    }

    /// Whether it changed anything.
    pub fn apply(&mut self, action: &Action, sites: &BTreeMap<SiteName, Site>, at: Moment) -> bool {
        match action {
            Action::DeclareDead { server } => {
                let alive = [Standing::Up, Standing::Draining, Standing::Returning];
                self.change_standing(server, &alive, Standing::Dead)
            }
            Action::BeginReturn { server } => {
                self.change_standing(server, &[Standing::Dead], Standing::Returning)
            }
            Action::Readmit { server } => self.change_standing(server, &[Standing::Returning], Standing::Up),
            Action::AddInstance { instance, server, cause } => {
                sites.get(&instance.site()).is_some_and(|site| self.add(instance, server, cause, site, at))
            }
            Action::DrainInstance { instance, until, cause } => self.drain(instance, *until, cause, at),
            Action::RemoveInstance { instance } => self.remove(instance),
            Action::AddHolder { site, server } => {
                sites.contains_key(site)
                    && self.servers.contains_key(server)
                    && self.placement(site).holders.insert(server.clone())
            }
            Action::RemoveHolder { site, server } => {
                self.placed.sites.get_mut(site).is_some_and(|placement| placement.holders.remove(server))
            }
            Action::ForgetSite { site } => {
                let empty = self.placed.sites.get(site).is_some_and(|p| p.instances.is_empty());
                empty && !sites.contains_key(site) && self.placed.sites.remove(site).is_some()
            }
            Action::SetWriter { site, server, epoch, former, chosen_by } => {
                let writer =
                    Writer { server: server.clone(), epoch: *epoch, since: at, chosen_by: *chosen_by };
                sites.get(site).is_some_and(|known| self.set_writer(known, writer, *former))
            }
            Action::ForgetFormer { site } => {
                self.placed.sites.get_mut(site).is_some_and(|placement| placement.former.take().is_some())
            }
            Action::AddMember { pool, server } => {
                let may = self.servers.contains_key(server) && self.placed.pool_on(server).is_none();
                may && self.pool(pool).members.insert(server.clone())
            }
            Action::RemoveMember { pool, server } => {
                let pool = self.pool(pool);
                pool.bootstrap.take_if(|chosen| chosen == server);
                pool.members.remove(server)
            }
            Action::Bootstrap { pool, server } => {
                let pool = self.pool(pool);
                let may = pool.bootstrap.is_none() && pool.members.contains(server);
                if may {
                    pool.bootstrap = Some(server.clone());
                }
                may
            }
            Action::EndBootstrap { pool, server } => {
                self.pool(pool).bootstrap.take_if(|chosen| chosen == server).is_some()
            }
            Action::PoolFormed { pool } => {
                let pool = self.pool(pool);
                let new = !pool.formed;
                if new {
                    (pool.formed, pool.bootstrap) = (true, None);
                }
                new
            }
            Action::PoolStopped { pool } => {
                let stopped = &mut self.pool(pool).stopped;
                let new = stopped.is_none();
                stopped.get_or_insert(at);
                new
            }
            Action::PoolServes { pool } => self.pool(pool).stopped.take().is_some(),
            Action::SetVip { vip, server } => self.set_vip(*vip, server, at),
            Action::MoveVip { vip, to } => {
                let is_up = self.standing(to) == Some(Standing::Up);
                let placed = self.placed.vips.get_mut(vip).filter(|placed| is_up && placed.holder != *to);
                placed.is_some_and(|placed| placed.next.replace(to.clone()).as_ref() != Some(to))
            }
            Action::KeepVip { vip } => {
                self.placed.vips.get_mut(vip).is_some_and(|placed| placed.next.take().is_some())
            }
            Action::ForgetVip { vip } => self.placed.vips.remove(vip).is_some(),
        }
    }

    fn change_standing(&mut self, server: &ServerId, from: &[Standing], to: Standing) -> bool {
        match self.servers.get_mut(server) {
            Some(server) if from.contains(&server.standing) => {
                server.standing = to;
                true
            }
            _ => false,
        }
    }

    fn add(&mut self, id: &InstanceId, server: &ServerId, cause: &Cause, site: &Site, at: Moment) -> bool {
        let slots = self.servers.get(server).filter(|s| s.is_up()).map_or(0, |s| s.slots);
        let room = self.slots_taken(server) < slots;
        let fits = self.placed.sites.get(&site.name).is_some_and(|placement| {
            id.number() >= placement.next_number
                && placement.holders.contains(server)
                && self.staying(placement) < site.max
                && !placement.instances.values().any(|i| i.server == *server && i.stage == Stage::Run)
        });
        if !(room && fits) {
            return false;
        }
        let replaces = match cause {
            Cause::Handover { from } => Some(from.clone()),
            Cause::Need | Cause::Policy => None,
        };
        let placement = self.placement(&site.name);
        placement.next_number = id.number() + 1;
        if *cause == Cause::Policy {
            placement.scaled = Some(at);
        }
        let instance = PlacedInstance { server: server.clone(), stage: Stage::Run, since: at, replaces };
        placement.instances.insert(id.clone(), instance);
        *self.taken.entry(server.clone()).or_default() += 1;
        true
    }

    fn drain(&mut self, id: &InstanceId, until: Moment, cause: &Cause, at: Moment) -> bool {
        let Some(placement) = self.placed.sites.get_mut(&id.site()) else { return false };
        let Some(instance) = placement.instances.get_mut(id) else { return false };
        if instance.stage != Stage::Run {
            return false;
        }
        instance.stage = Stage::Drain { until };
        instance.since = at;
        if *cause == Cause::Policy {
            placement.scaled = Some(at);
        }
        true
    }

    fn remove(&mut self, id: &InstanceId) -> bool {
        let placement = self.placed.sites.get_mut(&id.site());
        let Some(instance) = placement.and_then(|p| p.instances.remove(id)) else { return false };
        if let Some(count) = self.taken.get_mut(&instance.server) {
            *count -= 1;
        }
        true
    }

    fn set_writer(&mut self, site: &Site, writer: Writer, former: Former) -> bool {
        let pool = self.placed.pool(&site.pool);
        let may = pool.formed && pool.members.contains(&writer.server);
        let placement = self.placement(&site.name);
        let newer = placement.writer.as_ref().is_none_or(|before| before.epoch < writer.epoch);
        if may && newer {
            let server = writer.server.clone();
            let before = placement.writer.replace(writer);
            placement.former = before.filter(|before| former == Former::Serves && before.server != server);
        }
        may && newer
    }

    fn set_vip(&mut self, vip: IpAddr, server: &ServerId, at: Moment) -> bool {
        let may = self.servers.get(server).is_some_and(Server::is_serving);
        let is_new = self.placed.vips.get(&vip).is_none_or(|placed| placed.holder != *server);
        if may && is_new {
            self.placed.vips.insert(vip, PlacedVip { holder: server.clone(), next: None, since: at });
        }
        may && is_new
    }

    fn pool(&mut self, name: &PoolName) -> &mut PoolPlacement {
        self.placed.pools.entry(name.clone()).or_default()
    }

    fn placement(&mut self, site: &SiteName) -> &mut SitePlacement {
        if !self.placed.sites.contains_key(site) {
            self.placed.sites.insert(site.clone(), SitePlacement { next_number: 1, ..Default::default() });
        }
        self.placed.sites.get_mut(site).expect("inserted above")
    }
}
