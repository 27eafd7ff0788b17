//! What people asked for: the cell, its servers, pools, images and sites. Written by the API, never by the planner,
//! except a server's `standing`, which the controller writes when it declares a server dead or back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{Digest, Domain, ImageName, PoolName, ServerId, SiteName};
use crate::units::{Bytes, Load, MilliCores, Moment};

/// Everything that `plan` must bring about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Desired {
    pub cell: Cell,
    pub servers: BTreeMap<ServerId, Server>,
    /// Besides the first one, which every cell has and `Cell::pool_size` describes.
    pub pools: BTreeMap<PoolName, Pool>,
    pub images: BTreeMap<ImageName, Image>,
    pub sites: BTreeMap<SiteName, Site>,
}

impl Desired {
    /// The first one and those that people made.
    pub fn pool_names(&self) -> BTreeSet<PoolName> {
        self.pools.keys().cloned().chain([PoolName::first()]).collect()
    }
}

/// Stored at `/cell`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    pub name: String,
    /// Public addresses that move between edges.
    pub vips: BTreeSet<IpAddr>,
    /// Members that the first pool should have: 1, 3 or 5; fewer while the cell has fewer servers.
    pub pool_size: usize,
    /// A server that has not reported for this long is declared dead.
    pub silence_ms: u64,
    /// At most one change of a site's instance count in this time.
    pub settle_ms: u64,
    /// An instance that is leaving gets this long to finish its requests.
    pub drain_ms: u64,
}

impl Default for Cell {
    fn default() -> Self {
        Cell {
            name: "cell".to_owned(),
            vips: BTreeSet::new(),
            pool_size: 3,
            // Two reports of one second missed, and half a second for one that is late on a loaded machine.
            silence_ms: 2_500,
            settle_ms: 5_000,
            drain_ms: 10_000,
        }
    }
}

/// One machine. Stored at `/servers/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub name: ServerId,
    /// Where the other servers reach it.
    pub address: IpAddr,
    /// Servers of one rack can fail together.
    pub rack: String,
    /// Instances it takes at most.
    pub slots: usize,
    pub standing: Standing,
    /// When it joined; orders servers where everything else is equal.
    pub joined: Moment,
}

impl Server {
    pub fn gate(&self) -> SocketAddr {
        SocketAddr::new(self.address, crate::config::GATE_PORT)
    }

    pub fn sql_relay(&self) -> SocketAddr {
        SocketAddr::new(self.address, crate::config::SQL_PORT)
    }

    pub fn control(&self) -> SocketAddr {
        SocketAddr::new(self.address, crate::config::CONTROL_PORT)
    }

    pub fn is_up(&self) -> bool {
        matches!(self.standing, Standing::Up)
    }

    /// Whether the server may keep the instances that it has.
    pub fn is_serving(&self) -> bool {
        matches!(self.standing, Standing::Up | Standing::Draining)
    }
}

/// ```text
///        silent                 reports again            has all images and volumes, pool member synced
///   Up ─────────► Dead ──────────────────► Returning ─────────────────────────────────► Up
///   │ ▲             ▲                          │ silent
///   ▼ │ undrain     │ silent                   └──────► Dead
///  Draining ────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Takes instances.
    Up,
    /// Keeps what it has until it runs elsewhere, takes nothing new.
    Draining,
    /// Silent. Counts for nothing until it has caught up.
    Dead,
    /// Reports again after death and catches up; runs no instance yet.
    Returning,
}

/// A pool that people made besides the first. Stored at `/pools/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub name: PoolName,
    /// Members that it should have: 1, 3 or 5; fewer while not so many servers are free.
    pub size: usize,
    /// Its first members: theirs are the places until it is in service. Later any free server may replace one.
    pub servers: BTreeSet<ServerId>,
    pub created: Moment,
}

/// Stored at `/images/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub name: ImageName,
    /// BLAKE3 of the packed tree (tar.zst).
    pub digest: Digest,
    pub bytes: Bytes,
}

/// A customer's application. Stored at `/sites/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    pub name: SiteName,
    /// Unique in the cell and small: gives the site its range of user ids and its loopback address.
    pub number: u32,
    /// The first one is the one to show.
    pub domains: Vec<Domain>,
    pub image: ImageName,
    /// BLAKE3 of the tree (tar.zst) that was deployed last.
    pub tree: Digest,
    pub database: Option<Database>,
    /// Carries its database.
    #[serde(default = "PoolName::first")]
    pub pool: PoolName,
    pub min: usize,
    pub max: usize,
    pub policy: Policy,
    pub limits: Limits,
    #[serde(default)]
    pub database_limits: DatabaseLimits,
    pub created: Moment,
}

/// The site's own database as its unmodified configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    pub user: String,
    pub password: String,
}

/// MariaDB's own and ours. A site that owned `mysql` would own the pool.
const DATABASES_RESERVED: [&str; 5] = ["mysql", "information_schema", "performance_schema", "sys", "kopek"];
/// MariaDB's limits, in characters.
const DATABASE_NAME_MAX: usize = 64;
const DATABASE_USER_MAX: usize = 128;

/// Why a site cannot have this database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDatabase {
    #[error(
        "{name:?} cannot be a site's database; use 1 to 64 letters, digits, _, $ and -, not a name of MariaDB's or Kopek's own"
    )]
    Name { name: String },
    #[error("{user:?} cannot be a database user; use 1 to 128 characters")]
    User { user: String },
}

impl Database {
    /// Whether a site may call its database and its user so.
    pub fn check(&self) -> Result<(), BadDatabase> {
        let Database { name, user, .. } = self;
        let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-' || c == '$';
        let reserved = DATABASES_RESERVED.iter().any(|own| own.eq_ignore_ascii_case(name));
        let length = name.chars().count();
        if reserved || !(1..=DATABASE_NAME_MAX).contains(&length) || !name.chars().all(plain) {
            return Err(BadDatabase::Name { name: name.clone() });
        }
        if !(1..=DATABASE_USER_MAX).contains(&user.chars().count()) || user.contains(char::is_control) {
            return Err(BadDatabase::User { user: user.clone() });
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// An instance's load at or above `up` adds one; an extra instance's load below `down` removes it.
    Load { up: Load, down: Load },
}

impl Default for Policy {
    /// The thresholds of the first platform of this kind: 2 and 1.
    fn default() -> Self {
        Policy::Load { up: Load(2_000), down: Load(1_000) }
    }
}

/// Why a site cannot be scaled so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPolicy {
    #[error("a load of 0 is always reached; let --up be more than 0")]
    AlwaysUp,
    #[error("instances would come and go for ever; let --down ({down}) be less than --up ({up})")]
    NeverSettles { up: Load, down: Load },
}

impl Policy {
    /// Whether a site can come to rest under it.
    pub fn check(&self) -> Result<(), BadPolicy> {
        match *self {
            Policy::Load { up: Load(0), .. } => Err(BadPolicy::AlwaysUp),
            Policy::Load { up, down } if down >= up => Err(BadPolicy::NeverSettles { up, down }),
            Policy::Load { .. } => Ok(()),
        }
    }
}

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub cpu: MilliCores,
    pub memory: Bytes,
    pub tasks: u32,
    pub internet: Internet,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { cpu: MilliCores(1_000), memory: Bytes::mib(512), tasks: 256, internet: Internet::Reachable }
    }
}

/// What a site may ask of its database through each server on which it runs. `sql` holds it to that with MySQL's
/// own errors. Nothing is limited that is not given, but for the connections: a server takes 512 of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DatabaseLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// On the average of ten seconds: a page asks for much at once, and then there is a pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queries_per_second: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_query_ms: Option<u64>,
}

/// A limit under which a site cannot work at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a limit of 0 {what} leaves the site without its database; use at least 1, or `none`")]
pub struct BadDatabaseLimit {
    what: &'static str,
}

impl DatabaseLimits {
    pub fn check(&self) -> Result<(), BadDatabaseLimit> {
        let zero = |is_zero: bool, what| if is_zero { Err(BadDatabaseLimit { what }) } else { Ok(()) };
        zero(self.connections == Some(0), "connections")?;
        zero(self.queries_per_second == Some(0), "queries a second")?;
        zero(self.longest_query_ms == Some(0), "seconds for a query")
    }
}

/// For people, in one line.
impl fmt::Display for DatabaseLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = [
            self.connections.map(|most| format!("{most} connections")),
            self.queries_per_second.map(|most| format!("{most} queries a second")),
            self.longest_query_ms.map(|most| format!("{} s for a query", most as f64 / 1e3)),
        ];
        let told: Vec<String> = told.into_iter().flatten().collect();
        match told.is_empty() {
            true => f.write_str("none"),
            false => write!(f, "{} on each server", told.join(", ")),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Internet {
    Reachable,
    Closed,
}

/// The servers that run a member of the cell's etcd. Stored at `/store-members`; each agent also keeps it on
/// disk, since it must start its member before the store can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StoreMembers {
    /// Tells one move's etcd cluster from any other, on the same servers too: hexadecimal digits, made up anew
    /// for each move.
    pub cluster: String,
    pub members: BTreeMap<ServerId, IpAddr>,
}

impl StoreMembers {
    /// Client addresses, as etcd announces them.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.values().map(|address| format!("https://{}", SocketAddr::new(*address, 2379))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_one_line_and_old_documents_have_none() {
        let none: DatabaseLimits = serde_json::from_str("{}").unwrap();
        assert_eq!((none, none.to_string()), (DatabaseLimits::default(), "none".to_owned()));
        let limits = DatabaseLimits { connections: Some(40), longest_query_ms: Some(2_500), ..none };
        assert_eq!(limits.to_string(), "40 connections, 2.5 s for a query on each server");
        assert_eq!(limits.check(), Ok(()));
        let nothing = DatabaseLimits { queries_per_second: Some(0), ..none };
        assert!(nothing.check().unwrap_err().to_string().contains("0 queries a second"));
    }

    #[test]
    fn a_policy_under_which_no_site_comes_to_rest_is_refused() {
        let check = |up, down| Policy::Load { up: Load(up), down: Load(down) }.check();
        assert_eq!(Policy::default().check(), Ok(()));
        assert_eq!(check(1, 0), Ok(()));
        assert_eq!(check(0, 0), Err(BadPolicy::AlwaysUp));
        for down in [2_000, 2_001] {
            assert_eq!(
                check(2_000, down),
                Err(BadPolicy::NeverSettles { up: Load(2_000), down: Load(down) })
            );
        }
    }

    #[test]
    fn a_site_cannot_have_a_database_of_mariadbs_own_or_one_outside_its_folder() {
        let check = |name: &str, user: &str| {
            Database { name: name.to_owned(), user: user.to_owned(), password: String::new() }.check()
        };
        for name in
            ["", "mysql", "MySQL", "information_schema", "../mysql", "a/b", "#mysql50#mysql", "a.b", "a b"]
        {
            assert_eq!(check(name, "u"), Err(BadDatabase::Name { name: name.to_owned() }));
        }
        assert_eq!(check(&"a".repeat(65), "u"), Err(BadDatabase::Name { name: "a".repeat(65) }));
        for user in ["", "a\0b", &"u".repeat(129)] {
            assert_eq!(check("wp", user), Err(BadDatabase::User { user: user.to_owned() }));
        }
        assert_eq!(check("wp_shop-2", "it's me"), Ok(()));
    }
}
