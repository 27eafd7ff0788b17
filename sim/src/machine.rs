//! One simulated server: its agent obeys the last assignment through the real `converge`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kopek_core::assignment::{AssignedVolume, Assignment};
use kopek_core::converge::{HostAction, Local, Running, converge};
use kopek_core::observed::{Health, Phase, Report, SeenInstance, SeenMember, SeenVolume};
use kopek_core::supervise::restart_delay;
use kopek_core::{Bytes, Digest, InstanceId, Load, Moment, ServerId, SiteName};

/// From the decision to the first answer of PHP.
const START_MS: u64 = 150;
/// Fetching and unpacking an image or a volume.
const FETCH_MS: u64 = 800;
/// Visitors that are inside when an instance is drained leave in this time.
const LEAVE_MS: u64 = 700;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    On,
    /// Every process is dead, the network answers: connections are refused.
    Killed,
    Off,
}

#[derive(Debug, Clone)]
pub struct Machine {
    pub name: ServerId,
    pub power: Power,
    /// Off the bridge.
    pub cut: bool,
    pub boots: u64,
    /// Kept on disk.
    pub assignment: Option<Assignment>,
    /// Whether that was confirmed by the store since the machine booted.
    pub confirmed: bool,
    pub instances: BTreeMap<InstanceId, Container>,
    images: BTreeSet<Digest>,
    volumes: BTreeMap<SiteName, AssignedVolume>,
    fetching: BTreeMap<String, u64>,
    /// On its interface now.
    pub vips: BTreeSet<IpAddr>,
    pub reported: Option<Report>,
    pub reported_at: u64,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub phase: Phase,
    pub number: Option<u32>,
    pub since: Moment,
    pub load: Load,
    pub restarts: u32,
    pub drained_at: Option<Moment>,
}

impl Machine {
    pub fn new(name: ServerId) -> Machine {
        Machine {
            name,
            power: Power::On,
            cut: false,
            boots: 1,
            assignment: None,
            confirmed: false,
            instances: BTreeMap::new(),
            images: BTreeSet::new(),
            volumes: BTreeMap::new(),
            fetching: BTreeMap::new(),
            vips: BTreeSet::new(),
            reported: None,
            reported_at: 0,
        }
    }

    pub fn runs(&self) -> bool {
        self.power == Power::On
    }

    pub fn is_reachable(&self) -> bool {
        self.runs() && !self.cut
    }

    pub fn stop(&mut self, power: Power) {
        self.power = power;
        self.instances.clear();
        self.fetching.clear();
    }

    pub fn boot(&mut self) {
        self.power = Power::On;
        self.boots += 1;
        self.confirmed = false;
        self.reported = None;
    }

    /// A stale generation changes nothing.
    pub fn take(&mut self, assignment: &Assignment) {
        if self.assignment.as_ref().is_none_or(|mine| mine.generation < assignment.generation) {
            self.assignment = Some(assignment.clone());
        }
        self.confirmed = true;
    }

    /// One of its instances dies; the agent starts it again after a while.
    pub fn crash(&mut self, instance: &InstanceId, now: Moment) {
        if let Some(container) = self.instances.get_mut(instance) {
            let until = now.plus_millis(restart_delay(container.restarts));
            container.phase = Phase::BackOff { until, why: "killed".to_owned() };
            container.since = now;
            container.restarts += 1;
        }
    }

    /// Does what an agent does, for one tick. `available` are trees that some reachable server has.
    pub fn work(&mut self, now: Moment, available: &BTreeSet<Digest>) {
        let Some(assignment) = self.assignment.clone() else { return };
        self.fetch(&assignment, now, available);
        for action in converge(&assignment, &self.running(), now) {
            self.act(action, now);
        }
        for (id, container) in &mut self.instances {
            if container.phase == Phase::Starting && now.millis_since(container.since) >= START_MS {
                container.phase = Phase::Serving;
                container.since = now;
            }
            let drains =
                assignment.instances.get(id).is_some_and(|i| i.stage != kopek_core::placement::Stage::Run);
            if drains && container.drained_at.is_none() {
                container.drained_at = Some(now);
            }
        }
    }

    pub fn trees(&self) -> impl Iterator<Item = &Digest> {
        self.images.iter().chain(self.volumes.values().map(|volume| &volume.tree))
    }

    fn fetch(&mut self, assignment: &Assignment, now: Moment, available: &BTreeSet<Digest>) {
        let missing_images = assignment.images.iter().filter(|image| !self.images.contains(*image));
        let images: Vec<Digest> = missing_images.cloned().collect();
        let missing_volumes = assignment.volumes.iter().filter(|(s, v)| self.volumes.get(*s) != Some(v));
        let volumes: Vec<(SiteName, AssignedVolume)> =
            missing_volumes.map(|(site, volume)| (site.clone(), volume.clone())).collect();
        for image in images {
            if self.has_come(&image, now, available) {
                self.images.insert(image);
            }
        }
        for (site, volume) in volumes {
            if self.has_come(&volume.tree, now, available) {
                self.volumes.insert(site, volume);
            }
        }
        self.volumes.retain(|site, _| assignment.volumes.contains_key(site));
    }

    fn has_come(&mut self, tree: &Digest, now: Moment, available: &BTreeSet<Digest>) -> bool {
        if !available.contains(tree) || self.cut {
            return false;
        }
        let done = *self.fetching.entry(tree.as_str().to_owned()).or_insert(now.0 + FETCH_MS);
        if done <= now.0 {
            self.fetching.remove(tree.as_str());
        }
        done <= now.0
    }

    fn running(&self) -> Running {
        let instances = self.instances.iter();
        Running {
            instances: instances.map(|(id, c)| (id.clone(), c.local())).collect(),
            images: self.images.clone(),
            volumes: self.volumes.clone(),
        }
    }

    fn act(&mut self, action: HostAction, now: Moment) {
        let container = |phase, number, restarts| Container {
            phase,
            number,
            since: now,
            load: Load(0),
            restarts,
            drained_at: None,
        };
        match action {
            HostAction::Create { id, instance } => {
                let restarts = self.instances.get(&id).map_or(0, |c| c.restarts);
                self.instances.insert(id, container(Phase::Starting, Some(instance.number), restarts));
            }
            HostAction::Wait { id, what } => {
                self.instances.insert(id, container(Phase::Waiting { what }, None, 0));
            }
            HostAction::Stop { id, .. } | HostAction::Clean { id } => {
                self.instances.remove(&id);
            }
        }
    }

    pub fn report(&self, member: Option<SeenMember>, now: Moment) -> Report {
        let instances = self.instances.iter().map(|(id, c)| (id.clone(), c.seen(now))).collect();
        let volumes = self.volumes.iter().map(|(site, volume)| {
            let AssignedVolume { tree, number } = volume.clone();
            (site.clone(), SeenVolume { tree, number, files: 1, bytes: Bytes(1) })
        });
        Report {
            server: self.name.clone(),
            boot: format!("{}-{}", self.name, self.boots),
            generation: self.assignment.as_ref().map_or(0, |a| a.generation),
            instances,
            images: self.images.iter().cloned().collect(),
            volumes: volumes.collect(),
            member,
            edge: Health::Well,
            vips: self.vips.iter().copied().collect(),
            disk_free: Bytes::mib(100_000),
            memory_free: Bytes::mib(1_000),
            big_changes: Vec::new(),
        }
    }
}

impl Container {
    fn local(&self) -> Local {
        Local::Known { phase: self.phase.clone(), number: self.number }
    }

    fn seen(&self, now: Moment) -> SeenInstance {
        let busy = self.drained_at.is_none_or(|at| now.millis_since(at) < LEAVE_MS);
        SeenInstance {
            phase: self.phase.clone(),
            number: self.number,
            since: self.since,
            load: self.load,
            memory: Bytes::mib(60),
            tasks: 6,
            cpu_us: 0,
            in_flight: u32::from(busy && self.phase == Phase::Serving),
            restarts: self.restarts,
        }
    }
}
