//! What only the machine itself can tell, and the firewall between its instances and everything else.

use std::net::IpAddr;
use std::path::Path;

use kopek_core::Bytes;
use kopek_core::config::{Dirs, ServerConfig};
use kopek_instance::network::NetworkError;
use kopek_instance::{Firewall, firewall};

use crate::resolvers;

/// Sets the rules of this server: the servers' network is closed to its instances, the cell's public addresses
/// are open to them. `closed` are addresses that nobody may connect to anew.
pub fn guard(config: &ServerConfig, public: &[IpAddr], closed: &[IpAddr]) -> Result<(), NetworkError> {
    firewall(&Firewall {
        cell: networks_of(&config.interface, config.address),
        public: public.to_vec(),
        closed: closed.to_vec(),
        resolvers: resolvers::of_this_server(),
    })
}

/// The networks that the server's interface is on; its own address at least.
fn networks_of(interface: &str, own: IpAddr) -> Vec<(IpAddr, u8)> {
    let host = (own, if own.is_ipv4() { 32 } else { 128 });
    let found = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|entry| {
        let (address, mask) = (entry.address?, entry.netmask?);
        let (address, mask) = (address.as_sockaddr_in()?.ip(), mask.as_sockaddr_in()?.ip());
        let prefix = u32::from(mask).count_ones() as u8;
        let network = std::net::Ipv4Addr::from(u32::from(address) & u32::from(mask));
        (entry.interface_name == interface && prefix < 32).then_some((IpAddr::V4(network), prefix))
    });
    let mut networks: Vec<(IpAddr, u8)> = found.collect();
    networks.sort();
    networks.dedup();
    if networks.is_empty() {
        networks.push(host);
    }
    networks
}

/// Tells a reboot from a restart of the agent. A virtual server has one of its own (`<run>/boot_id`), since
/// it shares the kernel's (/proc/sys/kernel/random/boot_id, random(4)).
pub fn boot_id(dirs: &Dirs) -> String {
    let read = |path: &Path| std::fs::read_to_string(path).ok().map(|id| id.trim().to_owned());
    read(&dirs.run.join("boot_id"))
        .or_else(|| read(Path::new("/proc/sys/kernel/random/boot_id")))
        .unwrap_or_default()
}

/// Free for us below `path`; 0 when it cannot be told. In steps of 16 MiB, so that a report does not change
/// with every log line.
pub fn disk_free(path: &Path) -> Bytes {
    const STEP: u64 = 16 << 20;
    match rustix::fs::statvfs(path) {
        Ok(stat) => Bytes(stat.f_bavail * stat.f_frsize / STEP * STEP),
        Err(_) => Bytes(0),
    }
}

/// MemAvailable of /proc/meminfo (proc(5)), in steps of 64 MiB.
pub fn memory_free() -> Bytes {
    const STEP_KIB: u64 = 64 << 10;
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    Bytes(kib / STEP_KIB * STEP_KIB * 1024)
}
