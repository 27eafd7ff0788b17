//! Galera, as far as decisions depend on it: a group keeps serving while more than half of its last members
//! see one another; a member that leaves in order does not count; one that crashed keeps what it had.

use std::collections::{BTreeMap, BTreeSet};

use kopek_core::assignment::{AssignedMember, Start};
use kopek_core::observed::{MemberState, Position, SeenMember};
use kopek_core::{Bytes, Moment, PoolName, ServerId};

/// Recovery, group start: measured 0.3 s.
const START_MS: u64 = 300;
/// A copy of the data from another member; measured 3 to 7 s, less here so that more happens in a run.
const JOIN_MS: u64 = 2_000;
/// Catching up after a short separation.
const REJOIN_MS: u64 = 500;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    Stopped,
    Bootstrapping {
        until: u64,
    },
    Joining {
        until: u64,
    },
    /// In the primary component.
    Synced,
    /// Runs without quorum.
    Unready,
}

impl Process {
    fn state(&self) -> MemberState {
        match self {
            Process::Stopped => MemberState::Stopped,
            Process::Bootstrapping { .. } | Process::Joining { .. } => MemberState::Starting,
            Process::Synced => MemberState::Synced,
            Process::Unready => MemberState::Unready { why: "no quorum".to_owned() },
        }
    }
}

#[derive(Debug, Clone)]
pub struct Member {
    pub process: Process,
    pub disk: Position,
    /// Its order to start the group was good until the group had a second member.
    spent: bool,
    /// The state that was last seen, and since when it is in it.
    told: (MemberState, Moment),
}

/// All databases of a pool and the one truth about the group.
#[derive(Debug, Clone)]
pub struct Pool {
    name: PoolName,
    pub members: BTreeMap<ServerId, Member>,
    /// The last primary component.
    view: BTreeSet<ServerId>,
    groups_made: u64,
    seqno: i64,
    /// What must never happen, if it did.
    pub broken: Vec<String>,
}

impl Pool {
    pub fn new(name: PoolName) -> Pool {
        let (members, view, broken) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Pool { name, members, view, groups_made: 0, seqno: 0, broken }
    }

    /// The server's database process dies; its disk stays.
    pub fn kill(&mut self, server: &ServerId) {
        if let Some(member) = self.members.get_mut(server) {
            member.process = Process::Stopped;
        }
    }

    /// What the agent on a server does about its member. It read `assigned` from the store since it booted: what
    /// it has on disk may be about a start long past. A member of another pool is none of this one.
    pub fn obey(&mut self, server: &ServerId, assigned: Option<&AssignedMember>, now: u64) {
        let Some(assigned) = assigned.filter(|member| member.pool == self.name) else {
            if self.members.remove(server).is_some() {
                self.view.remove(server); // left in order: does not count as lost
            }
            return;
        };
        let serving = self.is_in_service();
        let member = self.members.entry(server.clone()).or_insert_with(|| Member {
            process: Process::Stopped,
            disk: Position { group: "none".to_owned(), seqno: -1 },
            spent: false,
            told: (MemberState::Stopped, Moment(now)),
        });
        member.spent &= assigned.start == Start::Bootstrap;
        let runs = matches!(member.process, Process::Synced | Process::Bootstrapping { .. });
        match assigned.start {
            Start::Bootstrap if !runs && !member.spent => {
                member.process = Process::Bootstrapping { until: now + START_MS }
            }
            Start::Join if member.process == Process::Stopped && serving => {
                member.process = Process::Joining { until: now + JOIN_MS };
            }
            Start::Bootstrap | Start::Join | Start::Hold => {}
        }
    }

    pub fn pass(&mut self, now: u64, connected: impl Fn(&ServerId) -> bool) {
        self.lose_and_regain_quorum(now, &connected);
        let names: Vec<ServerId> = self.members.keys().cloned().collect();
        for name in names {
            match self.members[&name].process {
                Process::Bootstrapping { until } if until <= now => self.make_group(&name),
                Process::Joining { until } if until <= now => self.join(&name, &connected),
                _ => {}
            }
        }
        for member in self.members.values_mut() {
            let state = member.process.state();
            if member.told.0 != state {
                member.told = (state, Moment(now));
            }
        }
        if self.is_in_service() {
            self.seqno += 1;
            let company = self.view.len() > 1;
            for member in self.members.values_mut().filter(|m| m.process == Process::Synced) {
                member.disk.seqno = self.seqno;
                member.spent |= company;
            }
        }
    }

    pub fn is_in_service(&self) -> bool {
        self.members.values().any(|member| member.process == Process::Synced)
    }

    fn lose_and_regain_quorum(&mut self, now: u64, connected: &impl Fn(&ServerId) -> bool) {
        let runs = |pool: &Pool, name: &ServerId| {
            pool.members.get(name).is_some_and(|m| matches!(m.process, Process::Synced | Process::Unready))
        };
        let together: BTreeSet<ServerId> =
            self.view.iter().filter(|name| runs(self, name) && connected(name)).cloned().collect();
        // One alone that is cut off still is the whole group.
        let alone = self.view.len() == 1 && self.view.iter().all(|name| runs(self, name));
        let primary = alone || together.len() * 2 > self.view.len();
        for name in self.view.clone() {
            let stays = alone || (primary && together.contains(&name));
            if let Some(member) = self.members.get_mut(&name)
                && matches!(member.process, Process::Synced | Process::Unready)
            {
                member.process = if stays { Process::Synced } else { Process::Unready };
            }
        }
        if primary && !alone {
            self.view = together;
        }
        // Those that lost sight of a group that lives on come back to it.
        if self.is_in_service() {
            for (name, member) in &mut self.members {
                if member.process == Process::Unready && connected(name) && !self.view.contains(name) {
                    member.process = Process::Joining { until: now + REJOIN_MS };
                }
            }
        }
    }

    fn make_group(&mut self, server: &ServerId) {
        if self.is_in_service() {
            self.broken.push(format!("{server} starts a second group"));
        }
        let newest = self.members.values().map(|member| member.disk.seqno).max().unwrap_or(-1);
        let member = self.members.get_mut(server).expect("called for a member");
        if member.disk.seqno < newest {
            self.broken.push(format!("{server} starts at {} and {newest} was committed", member.disk.seqno));
        }
        if member.disk.seqno < 0 {
            self.groups_made += 1;
            member.disk = Position { group: format!("{}-group-{}", self.name, self.groups_made), seqno: 0 };
        }
        member.process = Process::Synced;
        self.seqno = member.disk.seqno;
        self.view = BTreeSet::from([server.clone()]);
    }

    fn join(&mut self, server: &ServerId, connected: &impl Fn(&ServerId) -> bool) {
        let mut donors =
            self.members.iter().filter(|(name, m)| m.process == Process::Synced && connected(name));
        let donor = donors.next().map(|(_, member)| member.disk.clone());
        let member = self.members.get_mut(server).expect("called for a member");
        match donor {
            Some(disk) if connected(server) => {
                member.disk = disk;
                member.process = Process::Synced;
                self.view.insert(server.clone());
            }
            _ => member.process = Process::Stopped,
        }
    }

    pub fn seen(&self, server: &ServerId) -> Option<SeenMember> {
        let member = self.members.get(server)?;
        let (state, since) = (member.process.state(), member.told.1);
        let group_size = if member.process == Process::Synced { self.view.len() } else { 0 };
        let position = Some(member.disk.clone());
        let group = if member.process == Process::Synced { self.view.clone() } else { BTreeSet::new() };
        let (databases, disk) = (Vec::new(), Bytes(0));
        Some(SeenMember {
            pool: self.name.clone(),
            state,
            since,
            group_size,
            group,
            position,
            databases,
            disk,
        })
    }
}
