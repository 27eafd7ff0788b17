//! What a plan is made of. Every step carries its reason, in words for people.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{InstanceId, PoolName, ServerId, SiteName};
use crate::placement::Chooser;
use crate::units::Moment;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// When it was made.
    pub at: Moment,
    /// In the order in which they must be applied.
    pub steps: Vec<Step>,
    /// What is wanted and cannot be done now. The same trouble has the same words each time, so that whoever
    /// tells people can tell it once.
    pub blocked: Vec<Blocked>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub action: Action,
    /// Why, for people: `load 2.31 ≥ 2.00`.
    pub reason: String,
}

impl Step {
    pub fn subject(&self) -> Subject {
        self.action.subject()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blocked {
    pub subject: Subject,
    pub reason: String,
}

/// What a step or an event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    Cell,
    Pool(PoolName),
    Server(ServerId),
    Site(SiteName),
    Instance(InstanceId),
    Vip(IpAddr),
}

/// One change of the documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    DeclareDead {
        server: ServerId,
    },
    BeginReturn {
        server: ServerId,
    },
    /// Returning → Up.
    Readmit {
        server: ServerId,
    },
    AddInstance {
        instance: InstanceId,
        server: ServerId,
        cause: Cause,
    },
    /// No new requests from now on; gone when idle, at the latest `until`.
    DrainInstance {
        instance: InstanceId,
        until: Moment,
        cause: Cause,
    },
    RemoveInstance {
        instance: InstanceId,
    },
    AddHolder {
        site: SiteName,
        server: ServerId,
    },
    RemoveHolder {
        site: SiteName,
        server: ServerId,
    },
    /// Forgets a deleted site whose last instance is gone.
    ForgetSite {
        site: SiteName,
    },
    SetWriter {
        site: SiteName,
        server: ServerId,
        epoch: u64,
        /// The writer until now is in service and has to let the site go.
        former: Former,
        chosen_by: Chooser,
    },
    /// The writer before cannot serve the site any more.
    ForgetFormer {
        site: SiteName,
    },
    AddMember {
        pool: PoolName,
        server: ServerId,
    },
    RemoveMember {
        pool: PoolName,
        server: ServerId,
    },
    /// Lets one member start a new group with what is on its disk.
    Bootstrap {
        pool: PoolName,
        server: ServerId,
    },
    /// The group is there, or the chosen server died: nobody may start one any more.
    EndBootstrap {
        pool: PoolName,
        server: ServerId,
    },
    /// The pool was in service for the first time; ends the turn of the member that started it.
    PoolFormed {
        pool: PoolName,
    },
    /// No member is in service any more.
    PoolStopped {
        pool: PoolName,
    },
    /// A member is in service again.
    PoolServes {
        pool: PoolName,
    },
    /// Notes who holds an address, or is to hold it first.
    SetVip {
        vip: IpAddr,
        server: ServerId,
    },
    /// The holder is to let its requests end and let the address go there.
    MoveVip {
        vip: IpAddr,
        to: ServerId,
    },
    /// It is not to go anywhere after all.
    KeepVip {
        vip: IpAddr,
    },
    ForgetVip {
        vip: IpAddr,
    },
}

/// Why the number of a site's instances changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Minimum, maximum, death.
    Need,
    /// Load; starts the settle time.
    Policy,
    /// Takes over from this instance, whose server drains; or is drained because it was taken over from.
    Handover { from: InstanceId },
}

/// What becomes of the writer that a site had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Former {
    /// It may still serve: it is to be asked to stop before the new one is used.
    Serves,
    /// There was none, or it is dead, out of the group or not in service.
    Gone,
}

impl Action {
    pub fn subject(&self) -> Subject {
        match self {
            Action::DeclareDead { server } | Action::BeginReturn { server } | Action::Readmit { server } => {
                Subject::Server(server.clone())
            }
            Action::AddInstance { instance, .. }
            | Action::DrainInstance { instance, .. }
            | Action::RemoveInstance { instance } => Subject::Instance(instance.clone()),
            Action::AddHolder { site, .. }
            | Action::RemoveHolder { site, .. }
            | Action::ForgetSite { site }
            | Action::SetWriter { site, .. }
            | Action::ForgetFormer { site } => Subject::Site(site.clone()),
            Action::AddMember { pool, .. }
            | Action::RemoveMember { pool, .. }
            | Action::Bootstrap { pool, .. }
            | Action::EndBootstrap { pool, .. }
            | Action::PoolFormed { pool }
            | Action::PoolStopped { pool }
            | Action::PoolServes { pool } => Subject::Pool(pool.clone()),
            Action::SetVip { vip, .. }
            | Action::MoveVip { vip, .. }
            | Action::KeepVip { vip }
            | Action::ForgetVip { vip } => Subject::Vip(*vip),
        }
    }

    /// What happened, in a few words; the facts are in the fields.
    pub fn title(&self) -> &'static str {
        match self {
            Action::DeclareDead { .. } => "server declared dead",
            Action::BeginReturn { .. } => "server returns and catches up",
            Action::Readmit { .. } => "server is back",
            Action::AddInstance { cause: Cause::Policy, .. } => "scaled out",
            Action::AddInstance { .. } => "instance placed",
            Action::DrainInstance { cause: Cause::Policy, .. } => "scaled in",
            Action::DrainInstance { .. } => "instance drains",
            Action::RemoveInstance { .. } => "instance removed",
            Action::AddHolder { .. } => "volume gets a holder",
            Action::RemoveHolder { .. } => "volume loses a holder",
            Action::ForgetSite { .. } => "site is gone",
            Action::SetWriter { .. } => "writer set",
            Action::ForgetFormer { .. } => "former writer is out of service",
            Action::AddMember { .. } => "pool gets a member",
            Action::RemoveMember { .. } => "pool loses a member",
            Action::Bootstrap { .. } => "pool is started by one member",
            Action::EndBootstrap { .. } => "pool start ended",
            Action::PoolFormed { .. } => "pool formed",
            Action::PoolStopped { .. } => "pool is out of service",
            Action::PoolServes { .. } => "pool serves again",
            Action::SetVip { .. } => "address is held",
            Action::MoveVip { .. } => "address is to move",
            Action::KeepVip { .. } => "address stays",
            Action::ForgetVip { .. } => "address is gone",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Cell => f.write_str("cell"),
            Subject::Pool(pool) => pool.fmt(f),
            Subject::Server(server) => server.fmt(f),
            Subject::Site(site) => site.fmt(f),
            Subject::Instance(instance) => instance.fmt(f),
            Subject::Vip(vip) => vip.fmt(f),
        }
    }
}

/// One line for a log or a golden file: `place shop.2 on s3: load 2.31 ≥ 2.00`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Action::DeclareDead { server } => write!(f, "declare {server} dead"),
            Action::BeginReturn { server } => write!(f, "let {server} catch up"),
            Action::Readmit { server } => write!(f, "readmit {server}"),
            Action::AddInstance { instance, server, .. } => write!(f, "place {instance} on {server}"),
            Action::DrainInstance { instance, .. } => write!(f, "drain {instance}"),
            Action::RemoveInstance { instance } => write!(f, "remove {instance}"),
            Action::AddHolder { site, server } => write!(f, "hold {site} on {server}"),
            Action::RemoveHolder { site, server } => write!(f, "no longer hold {site} on {server}"),
            Action::ForgetSite { site } => write!(f, "forget {site}"),
            Action::SetWriter { site, server, epoch, .. } => {
                write!(f, "writer of {site} is {server} (epoch {epoch})")
            }
            Action::ForgetFormer { site } => write!(f, "forget the former writer of {site}"),
            Action::AddMember { pool, server } => write!(f, "{pool} member {server}"),
            Action::RemoveMember { pool, server } => write!(f, "no {pool} member {server}"),
            Action::Bootstrap { pool, server } => write!(f, "start {pool} on {server}"),
            Action::EndBootstrap { pool, server } => write!(f, "{server} no longer starts {pool}"),
            Action::PoolFormed { pool } => write!(f, "{pool} formed"),
            Action::PoolStopped { pool } => write!(f, "{pool} is out of service"),
            Action::PoolServes { pool } => write!(f, "{pool} serves again"),
            Action::SetVip { vip, server } => write!(f, "{vip} is at {server}"),
            Action::MoveVip { vip, to } => write!(f, "move {vip} to {to}"),
            Action::KeepVip { vip } => write!(f, "leave {vip} where it is"),
            Action::ForgetVip { vip } => write!(f, "forget {vip}"),
        }?;
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocked, {}: {}", self.subject, self.reason)
    }
}
