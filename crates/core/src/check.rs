//! What must hold in the documents, whatever happened: the pure part of the design's "What must hold,
//! always". `plan` never makes a violation; the simulator and the controller test that after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::desired::{Desired, Standing};
use crate::id::{InstanceId, PoolName, ServerId, SiteName};
use crate::observed::{MemberState, Observed, SeenMember};
use crate::placement::{Placed, Stage};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// Passes with the next plan: a server has just been declared dead.
    InstanceOnDeadServer {
        instance: InstanceId,
        server: ServerId,
    },
    /// Passes with the next plan: somebody lowered the maximum, or stopped a drain.
    AboveMax {
        site: SiteName,
        run: usize,
        max: usize,
    },
    VipGoesWhereItIs {
        vip: IpAddr,
    },
    TwoOnOneServer {
        site: SiteName,
        server: ServerId,
    },
    InstanceWithoutVolume {
        instance: InstanceId,
        server: ServerId,
    },
    SlotsExceeded {
        server: ServerId,
        taken: usize,
        slots: usize,
    },
    /// Its number may be given to another one.
    NumberNotUsedUp {
        instance: InstanceId,
    },
    NumberReused {
        instance: InstanceId,
    },
    NumberWentBack {
        site: SiteName,
        from: u64,
        to: u64,
    },
    WriterNotMember {
        site: SiteName,
        server: ServerId,
    },
    WriterChangedWithoutEpoch {
        site: SiteName,
        epoch: u64,
    },
    /// It would be asked to close what it must serve.
    FormerNotBefore {
        site: SiteName,
        former: ServerId,
    },
    InTwoPools {
        server: ServerId,
    },
    BootstrapNotMember {
        server: ServerId,
    },
    /// Passes with the next plan: the group is there.
    BootstrapInService {
        server: ServerId,
        synced: ServerId,
    },
    TwoBootstraps {
        first: ServerId,
        second: ServerId,
    },
    /// Members of the running group were struck off until those left are less than half of it.
    PoolQuorumLost {
        members: usize,
        synced: usize,
    },
}

impl Violation {
    /// Whether it may appear when people change what they want or a server dies, until the next plan.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Violation::InstanceOnDeadServer { .. }
                | Violation::AboveMax { .. }
                | Violation::BootstrapInService { .. }
        )
    }
}

/// What does not hold in these documents now.
pub fn check(desired: &Desired, placed: &Placed, observed: &Observed) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut taken: BTreeMap<&ServerId, usize> = BTreeMap::new();
    for (site, placement) in &placed.sites {
        let mut run_on: BTreeSet<&ServerId> = BTreeSet::new();
        for (id, instance) in &placement.instances {
            let server = &instance.server;
            *taken.entry(server).or_default() += 1;
            let standing = desired.servers.get(server).map(|s| s.standing);
            if !matches!(standing, Some(Standing::Up | Standing::Draining)) {
                let (instance, server) = (id.clone(), server.clone());
                violations.push(Violation::InstanceOnDeadServer { instance, server });
            } else if !placement.holders.contains(server) {
                let (instance, server) = (id.clone(), server.clone());
                violations.push(Violation::InstanceWithoutVolume { instance, server });
            }
            if id.number() >= placement.next_number {
                violations.push(Violation::NumberNotUsedUp { instance: id.clone() });
            }
            if instance.stage == Stage::Run && !run_on.insert(server) {
                let (site, server) = (site.clone(), server.clone());
                violations.push(Violation::TwoOnOneServer { site, server });
            }
        }
        let up = |server: &&&ServerId| desired.servers.get(**server).is_some_and(|s| s.is_up());
        let run = run_on.iter().filter(up).count();
        if let Some(max) = desired.sites.get(site).map(|s| s.max).filter(|max| run > *max) {
            violations.push(Violation::AboveMax { site: site.clone(), run, max });
        }
    }
    for (name, server) in &desired.servers {
        let taken = taken.get(name).copied().unwrap_or(0);
        if taken > server.slots && server.is_serving() {
            violations.push(Violation::SlotsExceeded { server: name.clone(), taken, slots: server.slots });
        }
    }
    let mut carried = BTreeSet::new();
    for (name, pool) in &placed.pools {
        let twice = pool.members.iter().filter(|server| !carried.insert(*server));
        violations.extend(twice.map(|server| Violation::InTwoPools { server: server.clone() }));
        violations.extend(check_pool(desired, placed, observed, name));
    }
    let circular = placed.vips.iter().filter(|(_, at)| at.next.as_ref() == Some(&at.holder));
    violations.extend(circular.map(|(vip, _)| Violation::VipGoesWhereItIs { vip: *vip }));
    violations
}

fn check_pool(desired: &Desired, placed: &Placed, observed: &Observed, name: &PoolName) -> Vec<Violation> {
    let mut violations = Vec::new();
    let pool = placed.pool(name);
    let is_synced = |m: &SeenMember| m.pool == *name && m.state == MemberState::Synced;
    let synced: BTreeSet<&ServerId> = observed
        .servers
        .iter()
        .filter(|(_, seen)| seen.report.member.as_ref().is_some_and(is_synced))
        .map(|(server, _)| server)
        .filter(|server| desired.servers.get(*server).is_some_and(|s| s.standing != Standing::Dead))
        .collect();
    let kept = synced.iter().filter(|server| pool.members.contains(**server)).count();
    if kept * 2 < synced.len() {
        violations.push(Violation::PoolQuorumLost { members: kept, synced: synced.len() });
    }
    if let Some(server) = &pool.bootstrap {
        if !pool.members.contains(server) {
            violations.push(Violation::BootstrapNotMember { server: server.clone() });
        }
        if let Some(first) = synced.first() {
            let (server, synced) = (server.clone(), (*first).clone());
            violations.push(Violation::BootstrapInService { server, synced });
        }
    }
    for (site, placement) in &placed.sites {
        let has_database = desired.sites.get(site).is_some_and(|s| s.database.is_some() && s.pool == *name);
        if let Some(writer) = placement.writer.as_ref().filter(|_| has_database)
            && !pool.members.contains(&writer.server)
            && kept > 0
        {
            let (site, server) = (site.clone(), writer.server.clone());
            violations.push(Violation::WriterNotMember { site, server });
        }
    }
    violations
}

/// What must not happen from one version of the placements to the next.
pub fn check_change(before: &Placed, after: &Placed) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (site, new) in &after.sites {
        let Some(old) = before.sites.get(site) else { continue };
        if new.next_number < old.next_number {
            let (from, to) = (old.next_number, new.next_number);
            violations.push(Violation::NumberWentBack { site: site.clone(), from, to });
        }
        for id in new.instances.keys().filter(|id| !old.instances.contains_key(*id)) {
            if id.number() < old.next_number {
                violations.push(Violation::NumberReused { instance: id.clone() });
            }
        }
        let epoch = |writer: &Option<crate::placement::Writer>| writer.as_ref().map_or(0, |w| w.epoch);
        if new.writer != old.writer && epoch(&new.writer) <= epoch(&old.writer) {
            let epoch = epoch(&new.writer);
            violations.push(Violation::WriterChangedWithoutEpoch { site: site.clone(), epoch });
        }
        let former = new.former.as_ref().filter(|former| {
            former.epoch >= epoch(&new.writer)
                || new.writer.as_ref().is_some_and(|w| w.server == former.server)
        });
        if let Some(former) = former.map(|former| former.server.clone()) {
            violations.push(Violation::FormerNotBefore { site: site.clone(), former });
        }
    }
    for (name, pool) in &before.pools {
        if let (Some(first), Some(second)) = (&pool.bootstrap, &after.pool(name).bootstrap)
            && first != second
        {
            let (first, second) = (first.clone(), second.clone());
            violations.push(Violation::TwoBootstraps { first, second });
        }
    }
    violations
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::InstanceOnDeadServer { instance, server } => {
                write!(f, "{instance} is on {server}, which does not count")
            }
            Violation::AboveMax { site, run, max } => {
                write!(f, "{site} runs {run} times, at most {max} wanted")
            }
            Violation::VipGoesWhereItIs { vip } => write!(f, "{vip} is to move to where it is"),
            Violation::TwoOnOneServer { site, server } => write!(f, "{site} runs twice on {server}"),
            Violation::InstanceWithoutVolume { instance, server } => {
                write!(f, "{instance} is on {server}, which does not hold its volume")
            }
            Violation::SlotsExceeded { server, taken, slots } => {
                write!(f, "{server} has {taken} instances in {slots} slots")
            }
            Violation::NumberNotUsedUp { instance } => {
                write!(f, "the number of {instance} is still to be given")
            }
            Violation::NumberReused { instance } => write!(f, "{instance} was used before"),
            Violation::NumberWentBack { site, from, to } => {
                write!(f, "the next number of {site} went from {from} back to {to}")
            }
            Violation::WriterNotMember { site, server } => {
                write!(f, "the writer of {site} is {server}, which is no pool member")
            }
            Violation::WriterChangedWithoutEpoch { site, epoch } => {
                write!(f, "the writer of {site} changed and its epoch {epoch} is not higher")
            }
            Violation::FormerNotBefore { site, former } => {
                write!(f, "{former} wrote {site} before itself")
            }
            Violation::InTwoPools { server } => write!(f, "{server} is a member of two pools"),
            Violation::BootstrapNotMember { server } => {
                write!(f, "{server} may start the pool and is no member")
            }
            Violation::BootstrapInService { server, synced } => {
                write!(f, "{server} may start a pool while {synced} serves")
            }
            Violation::TwoBootstraps { first, second } => {
                write!(f, "{second} may start the pool before the turn of {first} is over")
            }
            Violation::PoolQuorumLost { members, synced } => {
                write!(f, "only {members} of {synced} synced databases are pool members")
            }
        }
    }
}
