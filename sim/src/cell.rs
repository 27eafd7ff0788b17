//! The simulated cell: its store, its active controller, its machines and its pool, moved on in ticks.

use std::collections::{BTreeMap, BTreeSet};

use kopek_core::assign::{assignments, routes, with_generation};
use kopek_core::assignment::{AssignedMember, Assignment};
use kopek_core::check::{Violation, check, check_change};
use kopek_core::desired::{Desired, Standing};
use kopek_core::observed::{Observed, Report, Seen};
use kopek_core::part::Route;
use kopek_core::placement::Placed;
use kopek_core::plan::{Blocked, Plan, apply, plan};
use kopek_core::{Digest, InstanceId, Load, Moment, PoolName, ServerId, SiteName};

use crate::chance::Chance;
use crate::machine::{Machine, Power};
use crate::network;
use crate::pool::Pool;
use crate::rack;

pub const TICK_MS: u64 = 100;
/// Agents report each second, and at once on a change.
const REPORT_MS: u64 = 1_000;
/// The store's lease of a controller that died runs out.
const FAIL_OVER_MS: u64 = 2_000;
/// Servers that run a member of the store; a controller needs a majority of them.
const STORE_SERVERS: usize = 3;
/// An instance's load comes near a new level in some seconds.
const LOAD_DAMPING: i64 = 20;

/// What happens to a plan between its making and its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commits {
    Whole,
    /// Steps are lost, repeated and reordered by chance.
    Mangled,
}

pub struct Cell {
    pub desired: Desired,
    pub placed: Placed,
    pub written: BTreeMap<ServerId, Assignment>,
    pub routes: BTreeMap<SiteName, Route>,
    pub machines: BTreeMap<ServerId, Machine>,
    pub pools: BTreeMap<PoolName, Pool>,
    pub controller: Option<Controller>,
    no_controller_since: Moment,
    /// Work that visitors bring to each site: a load of 1,000 keeps one process busy.
    pub demand: BTreeMap<SiteName, u32>,
    pub commits: Commits,
    pub chance: Chance,
    pub now: Moment,
    /// One line for everything that happened.
    pub log: Vec<String>,
    /// What is blocked now.
    pub told: BTreeSet<Blocked>,
    phases: BTreeMap<InstanceId, &'static str>,
}

#[derive(Debug, Clone)]
pub struct Controller {
    pub host: ServerId,
    pub observed: Observed,
}

impl Cell {
    pub fn new(desired: Desired, seed: u64) -> Cell {
        let machines =
            desired.servers.keys().map(|name| (name.clone(), Machine::new(name.clone()))).collect();
        Cell {
            desired,
            placed: Placed::default(),
            written: BTreeMap::new(),
            routes: BTreeMap::new(),
            machines,
            pools: BTreeMap::new(),
            controller: None,
            no_controller_since: Moment(0),
            demand: BTreeMap::new(),
            commits: Commits::Whole,
            chance: Chance::new(seed),
            // Later than every date in the documents, early enough to read.
            now: Moment(10_000),
            log: Vec::new(),
            told: BTreeSet::new(),
            phases: BTreeMap::new(),
        }
    }

    pub fn tick(&mut self) {
        self.now = self.now.plus_millis(TICK_MS);
        self.elect();
        self.work();
        network::announce(&mut self.machines);
        self.note_phases();
        self.observe();
        self.control();
        self.write();
        let broken: Vec<&str> =
            self.pools.values().flat_map(|pool| &pool.broken).map(String::as_str).collect();
        assert!(broken.is_empty(), "{}\n{}", self.log.join("\n"), broken.join("\n"));
    }

    pub fn run_ms(&mut self, millis: u64) {
        for _ in 0..millis / TICK_MS {
            self.tick();
        }
    }

    /// Runs until `holds`; fails after `limit_ms`. Gives back how long it took.
    pub fn run_until(&mut self, what: &str, limit_ms: u64, holds: impl Fn(&Cell) -> bool) -> u64 {
        let begin = self.now;
        while !holds(self) {
            let waited = self.now.millis_since(begin);
            assert!(waited < limit_ms, "{}\nnot within {limit_ms} ms: {what}", self.log.join("\n"));
            self.tick();
        }
        self.now.millis_since(begin)
    }

    /// Runs until nothing is left to do and all is as it should be.
    pub fn settle(&mut self, limit_ms: u64) -> u64 {
        let begin = self.now;
        while !self.troubles().is_empty() {
            let waited = self.now.millis_since(begin);
            let troubles = self.troubles().join("\n");
            assert!(waited < limit_ms, "{}\nnot whole in {limit_ms} ms:\n{troubles}", self.log.join("\n"));
            self.tick();
        }
        self.now.millis_since(begin)
    }

    // ---- what people and fate do -------------------------------------------------------------------------

    pub fn say(&mut self, text: impl AsRef<str>) {
        let at = self.now.0 - 10_000;
        self.log.push(format!("{:>4}.{} s  {}", at / 1000, at % 1000 / 100, text.as_ref()));
    }

    pub fn kill(&mut self, name: &str) {
        self.stop(name, Power::Killed, "is killed");
    }

    pub fn power_off(&mut self, name: &str) {
        self.stop(name, Power::Off, "loses its power");
    }

    fn stop(&mut self, name: &str, power: Power, how: &str) {
        self.say(format!("** {name} {how}"));
        self.machine(name).stop(power);
        self.pools.values_mut().for_each(|pool| pool.kill(&rack::server(name)));
    }

    pub fn boot(&mut self, name: &str) {
        self.say(format!("** {name} boots"));
        self.machine(name).boot();
    }

    pub fn cut(&mut self, name: &str) {
        self.say(format!("** {name} is cut off"));
        self.machine(name).cut = true;
    }

    pub fn heal(&mut self, name: &str) {
        self.say(format!("** {name} is connected again"));
        self.machine(name).cut = false;
    }

    pub fn drain(&mut self, name: &str) {
        let server = self.desired.servers.get_mut(&rack::server(name)).expect("a server of this cell");
        if server.standing == Standing::Up {
            server.standing = Standing::Draining;
            self.say(format!("** {name} shall drain"));
        }
    }

    pub fn undrain(&mut self, name: &str) {
        let server = self.desired.servers.get_mut(&rack::server(name)).expect("a server of this cell");
        if server.standing == Standing::Draining {
            server.standing = Standing::Up;
            self.say(format!("** {name} shall not drain"));
        }
    }

    pub fn demand(&mut self, site: &str, load: u32) {
        self.say(format!("** visitors of {site} bring a load of {}", Load(load)));
        self.demand.insert(rack::site(site), load);
    }

    pub fn restart_controller(&mut self) {
        self.say("** the controller dies");
        self.controller = None;
        self.no_controller_since = self.now;
    }

    pub fn machine(&mut self, name: &str) -> &mut Machine {
        self.machines.get_mut(&rack::server(name)).expect("a server of this cell")
    }

    // ---- one tick ----------------------------------------------------------------------------------------

    /// A controller runs on one of the store's servers, as long as a majority of them see one another.
    fn elect(&mut self) {
        let store: Vec<ServerId> = self.machines.keys().take(STORE_SERVERS).cloned().collect();
        let together: Vec<&ServerId> =
            store.iter().filter(|name| self.machines[*name].is_reachable()).collect();
        let majority = together.len() * 2 > store.len();
        if let Some(controller) = &self.controller
            && (!majority || !self.machines[&controller.host].is_reachable())
        {
            self.controller = None;
            self.no_controller_since = self.now;
        }
        let waited = self.now.millis_since(self.no_controller_since) >= FAIL_OVER_MS;
        if self.controller.is_none() && majority && waited {
            let host = together[0].clone();
            self.say(format!("control is on {host}"));
            let generations = self.written.iter().map(|(name, a)| (name.clone(), a.generation)).collect();
            let observed = Observed { since: self.now, generations, ..Observed::default() };
            self.controller = Some(Controller { host, observed });
            for machine in self.machines.values_mut() {
                machine.reported = None; // agents connect anew and report at once
            }
        }
    }

    fn work(&mut self) {
        let store_answers = self.controller.is_some();
        let trees: BTreeSet<Digest> = self.available_trees();
        let now = self.now;
        for (name, machine) in &mut self.machines {
            if machine.is_reachable()
                && store_answers
                && let Some(assignment) = self.written.get(name)
            {
                machine.take(assignment);
            }
            if machine.runs() {
                machine.work(now, &trees);
                if machine.confirmed
                    && let Some(assignment) = machine.assignment.clone()
                {
                    let assigned = assignment.member.as_ref();
                    if let Some(AssignedMember { pool, .. }) = assigned {
                        self.pools.entry(pool.clone()).or_insert_with(|| Pool::new(pool.clone()));
                    }
                    self.pools.values_mut().for_each(|pool| pool.obey(name, assigned, now.0));
                }
            }
        }
        let machines = &self.machines;
        for pool in self.pools.values_mut() {
            pool.pass(now.0, |name| machines.get(name).is_some_and(Machine::is_reachable));
        }
        self.bring_load();
    }

    /// What was uploaded is there until poured; otherwise some server that can be reached must have it.
    fn available_trees(&self) -> BTreeSet<Digest> {
        let there = self.machines.values().filter(|m| m.is_reachable()).flat_map(|m| m.trees().cloned());
        let uploads = self.desired.sites.values().map(|site| site.tree.clone());
        let images = self.desired.images.values().map(|image| image.digest.clone());
        there.chain(uploads).chain(images).collect()
    }

    fn bring_load(&mut self) {
        for (site, route) in &self.routes {
            let demand = self.demand.get(site).copied().unwrap_or(0);
            let open = route.backends.len().max(1) as u32;
            for (id, backend) in &route.backends {
                let Some(machine) = self.machines.get_mut(&backend.server) else { continue };
                let Some(container) = machine.instances.get_mut(id) else { continue };
                let (target, load) = (i64::from(demand / open), i64::from(container.load.0));
                let step = (target - load) / LOAD_DAMPING + (target - load).signum();
                container.load = Load((load + step).max(0) as u32);
            }
        }
    }

    fn observe(&mut self) {
        let Some(controller) = &mut self.controller else { return };
        for (name, machine) in &mut self.machines {
            if machine.power == Power::Killed && !machine.cut {
                controller.observed.refused.entry(name.clone()).or_insert(self.now);
            }
            if !machine.is_reachable() || !self.desired.servers.contains_key(name) {
                continue;
            }
            let report = machine.report(self.pools.values().find_map(|pool| pool.seen(name)), self.now);
            let due = self.now.0 - machine.reported_at >= REPORT_MS;
            let changed = machine.reported.as_ref().is_none_or(|last| !says_the_same(last, &report));
            if due || changed {
                machine.reported = Some(report.clone());
                machine.reported_at = self.now.0;
                let seen = Seen { at: self.now, report };
                controller.observed.refused.remove(name);
                controller.observed.servers.insert(name.clone(), seen);
            }
        }
    }

    fn control(&mut self) {
        let Some(controller) = &self.controller else { return };
        let observed = controller.observed.clone();
        let plan = plan(&self.desired, &self.placed, &observed, self.now);
        for blocked in &plan.blocked {
            if !self.told.contains(blocked) {
                self.say(blocked.to_string());
            }
        }
        self.told = plan.blocked.iter().cloned().collect();
        for step in self.commit(plan, &observed).steps {
            self.say(step.to_string());
        }
    }

    /// Applies the plan, or what fate leaves of it, and tests that everything still holds.
    fn commit(&mut self, plan: Plan, observed: &Observed) -> Plan {
        let whole = self.commits == Commits::Whole || self.chance.one_in(3);
        let committed = if whole { plan } else { mangled(plan, &mut self.chance) };
        let before = self.placed.clone();
        apply(&committed, &mut self.desired, &mut self.placed);
        let mut violations = check_change(&before, &self.placed);
        violations.extend(check(&self.desired, &self.placed, observed));
        if !whole {
            violations.retain(|violation| !violation.passes());
        }
        self.demand_none(&violations);
        committed
    }

    fn demand_none(&self, violations: &[Violation]) {
        let lines: Vec<String> = violations.iter().map(Violation::to_string).collect();
        assert!(lines.is_empty(), "{}\nviolated: {}", self.log.join("\n"), lines.join("; "));
    }

    fn write(&mut self) {
        let Some(controller) = &mut self.controller else { return };
        let next = assignments(&self.desired, &self.placed, &controller.observed);
        self.written.retain(|name, _| next.contains_key(name));
        for (name, assignment) in next {
            if let Some(changed) = with_generation(self.written.get(&name), assignment) {
                controller.observed.generations.insert(name.clone(), changed.generation);
                self.written.insert(name, changed);
            }
        }
        self.routes = routes(&self.desired, &self.placed, &controller.observed, &self.routes);
    }

    fn note_phases(&mut self) {
        let mut now = BTreeMap::new();
        for machine in self.machines.values().filter(|m| m.runs()) {
            for (id, container) in &machine.instances {
                now.insert(id.clone(), (container.phase.as_str(), machine.name.clone()));
            }
        }
        let lines: Vec<String> = now
            .iter()
            .filter(|(id, (phase, _))| self.phases.get(*id) != Some(phase))
            .map(|(id, (phase, server))| format!("   {id} on {server} is {phase}"))
            .collect();
        for line in lines {
            self.say(line);
        }
        self.phases = now.into_iter().map(|(id, (phase, _))| (id, phase)).collect();
    }
}

/// Loads move all the time and do not hurry a report.
fn says_the_same(last: &Report, report: &Report) -> bool {
    let calm = |report: &Report| {
        let mut report = report.clone();
        for instance in report.instances.values_mut() {
            instance.load = Load(0);
        }
        if let Some(position) = report.member.as_mut().and_then(|m| m.position.as_mut()) {
            position.seqno = 0;
        }
        report
    };
    calm(last) == calm(report)
}

/// Any order, repetition or loss of steps.
fn mangled(mut plan: Plan, chance: &mut Chance) -> Plan {
    match chance.below(4) {
        0 => plan.steps.truncate(chance.below(plan.steps.len() + 1)),
        1 => plan.steps.retain(|_| chance.one_in(2)),
        2 => chance.shuffle(&mut plan.steps),
        _ => {
            let again = plan.steps.clone();
            plan.steps.extend(again);
            chance.shuffle(&mut plan.steps);
        }
    }
    plan
}
