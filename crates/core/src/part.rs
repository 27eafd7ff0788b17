//! What the agent hands to the other processes of its server over its Unix socket, each a whole document
//! that replaces the one before. They keep the last good copy on disk and go on without the agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::assignment::AssignedVolume;
use crate::big_change::BigChange;
use crate::desired::{Database, DatabaseLimits};
use crate::id::{Digest, Domain, InstanceId, PoolName, ServerId, SiteName};
use crate::observed::SeenVolume;

/// For `kopek edge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgePart {
    pub server: ServerId,
    pub routes: BTreeMap<SiteName, Route>,
}

/// How to reach a site, and its database. The same on every server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub site: SiteName,
    /// The site's number: its sql relays come from loopback address 127.1 + number.
    pub number: u32,
    pub domains: Vec<Domain>,
    /// Instances that serve. Empty while the only one is being restarted or moved: hold requests.
    pub backends: BTreeMap<InstanceId, Backend>,
    pub writer: Option<RoutedWriter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub server: ServerId,
    /// The gate on that server; on the edge's own server the gate's Unix socket is used instead.
    pub gate: SocketAddr,
    pub intake: Intake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Intake {
    /// Takes requests.
    Open,
    /// Finishes those it has; gets new ones only if there is no open one.
    Draining,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedWriter {
    pub server: ServerId,
    /// The sql relay on that server.
    pub relay: SocketAddr,
    /// Grows with each change; a lower one is stale.
    pub epoch: u64,
    /// Who wrote before, while it may still serve: it must have closed the site before this one is used.
    /// None when there was nobody, or when that member is known to be dead or out of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<FormerWriter>,
}

/// The writer of the epoch before. Once its server's `sql` has closed every epoch up to this one for the
/// site, no two members serve the site at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerWriter {
    pub server: ServerId,
    /// The sql relay on that server.
    pub relay: SocketAddr,
    pub epoch: u64,
}

/// For `kopek files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesPart {
    pub server: ServerId,
    /// Generation of the assignment that this was made from, if the store has confirmed it to the agent that
    /// runs now. Without it the lists may be old or empty: nothing may be removed because they lack it.
    #[serde(default)]
    pub confirmed: Option<u64>,
    /// Images to have, unpacked at `<state>/images/<digest>/root`.
    pub images: Vec<Digest>,
    /// Volumes to have, the deployed tree applied at `<state>/volumes/<site>/tree`.
    pub volumes: BTreeMap<SiteName, AssignedVolume>,
    /// Gates of the other servers; any may have a wanted tree.
    pub peers: BTreeMap<ServerId, SocketAddr>,
    /// Instances that run here and may be reached through this server's gate: where they listen.
    pub gates: BTreeMap<InstanceId, SocketAddr>,
}

/// What `kopek files` tells the agent, at once on a change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FilesReport {
    /// Images that are complete.
    pub images: Vec<Digest>,
    /// Volumes with the tree that is wholly applied.
    pub volumes: BTreeMap<SiteName, SeenVolume>,
    /// What cannot be had and why; one line for people, by digest.
    pub troubles: BTreeMap<Digest, String>,
    /// Connections open at the gate, by instance.
    pub in_flight: BTreeMap<InstanceId, u32>,
}

/// For `kopek sql`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlPart {
    pub server: ServerId,
    /// Where each site's writer is.
    pub sites: BTreeMap<SiteName, SqlSite>,
    /// Where to listen for the instances that run here.
    pub listeners: BTreeMap<InstanceId, SqlListener>,
    /// The pool member of this server, if it has one that serves: the relay's end point.
    pub member: Option<SocketAddr>,
    /// Sites that this server's member may serve now, with the epoch: relays for others are refused.
    pub writes_for: BTreeMap<SiteName, u64>,
}

/// What `kopek sql` tells the agent, at once on a change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SqlReport {
    /// Of the pool's line, if this server keeps it: those that run, wait, or have ended lately.
    pub big_changes: Vec<BigChange>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlSite {
    pub number: u32,
    pub writer: Option<RoutedWriter>,
    /// The site's account, by which `sql` knows the site's own connections. In no other process's part.
    #[serde(default)]
    pub database: Option<Database>,
    #[serde(default)]
    pub limits: DatabaseLimits,
    /// Its changes of big tables take turns with those of the same pool.
    #[serde(default = "PoolName::first")]
    pub pool: PoolName,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqlListener {
    /// Unix socket to make; bind-mounted into the instance as /run/mysqld/mysqld.sock's folder.
    pub socket: PathBuf,
    /// The instance's network namespace, in which to listen on 127.0.0.1:3306.
    pub netns: PathBuf,
}

/// The loopback address from which a site's relayed connections reach a member: each site has its own, and
/// its account is bound to it, so no site can use another's account. 127.1.0.0 plus the number.
pub fn site_loopback(number: u32) -> IpAddr {
    assert!(number < 1 << 23, "site number {number} is beyond the loopback range");
    IpAddr::from((0x7f01_0000 + number).to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_site_has_a_loopback_address_of_its_own_and_none_is_the_servers() {
        let address = |number| site_loopback(number).to_string();
        assert_eq!(
            [1, 255, 256, 65_536].map(address),
            ["127.1.0.1", "127.1.0.255", "127.1.1.0", "127.2.0.0"]
        );
        assert_eq!(address((1 << 23) - 1), "127.128.255.255");
        assert!(std::panic::catch_unwind(|| site_loopback(1 << 23)).is_err());
    }
}
