//! What an assigned instance is to be on this server: its places, its limits and its address.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use kopek_core::assignment::AssignedInstance;
use kopek_core::config::Dirs;
use kopek_core::desired::Internet;
use kopek_core::{InstanceId, SiteName};
use kopek_instance::InstanceSpec;

use super::Instances;

/// The private range of instances, the same on every server: they are reached only through its gate.
const RANGE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);
const RANGE_SIZE: u32 = 1 << 16;

impl Instances {
    pub(super) fn spec(&self, id: &InstanceId, instance: &AssignedInstance) -> InstanceSpec {
        let Dirs { run, log, .. } = &self.config.dirs;
        let site: &SiteName = &instance.site;
        InstanceSpec {
            id: id.clone(),
            number: instance.number,
            image_root: self.config.dirs.image_root(&instance.image),
            volume: self.config.dirs.volume_tree(site),
            sql_socket_dir: run.join("sql").join(id.as_str()),
            dir: self.dir(id),
            netns: run.join("netns").join(id.as_str()),
            log: log.join("instances").join(format!("{site}.log")),
            limits: instance.limits,
            cgroup: self.config.cgroup.join(id.as_str()),
            address: self.free_address(),
            resolvers: match instance.limits.internet {
                Internet::Reachable => crate::resolvers::of_this_server(),
                Internet::Closed => Vec::new(),
            },
            hostname: site.to_string(),
        }
    }

    fn free_address(&self) -> Ipv4Addr {
        let taken: BTreeSet<Ipv4Addr> =
            self.known.values().filter_map(|known| Some(known.spec.as_ref()?.address)).collect();
        (2..RANGE_SIZE - 1)
            .map(|n| Ipv4Addr::from(u32::from(RANGE) + n))
            .find(|address| !taken.contains(address))
            .expect("a server has far fewer than 65,000 instances")
    }
}
