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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_network_is_the_interfaces_and_at_least_its_own_address() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(networks_of("lo", address("10.1.2.3")).contains(&(address("127.0.0.0"), 8)));
        assert_eq!(networks_of("absent", address("10.1.2.3")), [(address("10.1.2.3"), 32)]);
        assert_eq!(networks_of("absent", address("fd00::1")), [(address("fd00::1"), 128)]);
    }

    #[test]
    fn a_virtual_servers_boot_id_counts_more_than_the_kernels() {
        let run = tempfile::tempdir().unwrap();
        let dirs = Dirs { run: run.path().into(), ..Dirs::default() };
        let kernels = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(boot_id(&dirs), kernels.trim());
        std::fs::write(run.path().join("boot_id"), "own\n").unwrap();
        assert_eq!(boot_id(&dirs), "own");
    }

    #[test]
    fn free_disk_and_memory_are_told_in_steps_and_as_none_where_nothing_can_be_told() {
        let (disk, memory) = (disk_free(Path::new("/")), memory_free());
        assert!(disk.0 > 0 && disk.0.is_multiple_of(16 << 20), "{disk:?}");
        assert!(memory.0 > 0 && memory.0.is_multiple_of(64 << 20), "{memory:?}");
        assert_eq!(disk_free(Path::new("/absent")), Bytes(0));
    }
}
