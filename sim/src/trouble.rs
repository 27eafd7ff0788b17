//! What can go wrong, by chance: one blow after the other, then everything is repaired.

use kopek_core::desired::Standing;
use kopek_core::{Moment, ServerId, SiteName};

use crate::cell::{Cell, Commits};
use crate::machine::Power;
use crate::rack;

/// Which blows fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// At most one server at a time is away; a cell must serve through it.
    OneAtATime,
    /// Everything, also the loss of all servers at once.
    Anything,
}

impl Cell {
    /// `blows` blows, some seconds apart, then repairs: all servers on and connected, none draining, no visitors, plans
    /// committed whole.
    pub fn suffer(&mut self, trouble: Trouble, blows: usize) {
        if trouble == Trouble::Anything {
            self.commits = Commits::Mangled;
        }
        for _ in 0..blows {
            self.blow(trouble);
            let pause = 200 + 100 * self.chance.below(60) as u64;
            self.run_ms(pause);
        }
        self.commits = Commits::Whole;
        self.repair();
    }

    pub fn repair(&mut self) {
        self.say("** everything is repaired");
        for name in self.names() {
            if self.machines[&rack::server(&name)].power != Power::On {
                self.boot(&name);
            }
            if self.machines[&rack::server(&name)].cut {
                self.heal(&name);
            }
            self.undrain(&name);
        }
        self.demand.clear();
    }

    fn names(&self) -> Vec<String> {
        self.desired.servers.keys().map(ServerId::to_string).collect()
    }

    fn blow(&mut self, trouble: Trouble) {
        let names = self.names();
        let name = self.chance.pick(&names).expect("a cell has servers").clone();
        let others_whole = self.machines.values().all(|m| m.name.as_str() == name || m.is_reachable())
            && self.desired.servers.values().all(|s| s.name.as_str() == name || s.standing == Standing::Up);
        let may_fall = trouble == Trouble::Anything || others_whole;
        let machine = &self.machines[&rack::server(&name)];
        let (on, cut) = (machine.runs(), machine.cut);
        match self.chance.below(14) {
            0 if on && may_fall => self.kill(&name),
            1 if on && may_fall => self.power_off(&name),
            2 if on && !cut && may_fall => self.cut(&name),
            0..=3 if !on => self.boot(&name),
            0..=4 if cut => self.heal(&name),
            5 => self.restart_controller(),
            6 if may_fall => self.drain(&name),
            7 => self.undrain(&name),
            8 => self.crash_one(&name),
            9 => self.change_site(),
            10 if trouble == Trouble::Anything => self.add_or_delete_site(),
            11 if trouble == Trouble::Anything && self.chance.one_in(3) => {
                for name in names {
                    if self.machines[&rack::server(&name)].runs() {
                        self.power_off(&name);
                    }
                }
            }
            _ => self.change_demand(),
        }
    }

    fn crash_one(&mut self, name: &str) {
        let now = self.now;
        let machine = self.machine(name);
        if let Some(id) = machine.instances.keys().next().cloned() {
            machine.crash(&id, now);
            self.say(format!("** {id} crashes"));
        }
    }

    fn site_names(&self) -> Vec<SiteName> {
        self.desired.sites.keys().cloned().collect()
    }

    fn change_demand(&mut self) {
        let sites = self.site_names();
        let Some(site) = self.chance.pick(&sites).cloned() else { return };
        let load = 500 * self.chance.below(16) as u32;
        self.demand(site.as_str(), load);
    }

    fn change_site(&mut self) {
        let sites = self.site_names();
        let Some(name) = self.chance.pick(&sites).cloned() else { return };
        let version = self.now.0;
        let servers = self.desired.servers.len();
        let site = self.desired.sites.get_mut(&name).expect("picked from these");
        let line = if self.chance.one_in(2) {
            site.tree = rack::digest(name.as_str(), version);
            format!("** {name} is deployed")
        } else {
            site.min = 1 + self.chance.below(2.min(servers));
            site.max = site.min + self.chance.below(3);
            format!("** {name} is scaled to {} to {}", site.min, site.max)
        };
        self.say(line);
    }

    fn add_or_delete_site(&mut self) {
        let sites = self.site_names();
        if sites.len() > 2 && self.chance.one_in(2) {
            let name = self.chance.pick(&sites).expect("more than two").clone();
            self.desired.sites.remove(&name);
            self.say(format!("** {name} is deleted"));
        } else if sites.len() < 6 {
            let number = (0..).find(|n| !self.desired.sites.contains_key(&rack::site(&format!("new{n}"))));
            let name = format!("new{}", number.expect("numbers do not end"));
            let document =
                rack::site_document(&name, self.now.0 as u32 % 8_000_000, 1, 3, Moment(self.now.0));
            self.desired.sites.insert(document.name.clone(), document);
            self.say(format!("** {name} is created"));
        }
    }
}
