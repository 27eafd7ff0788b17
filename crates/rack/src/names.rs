//! Every name that a rack leaves in the kernel or the file system, all derived from its id, so that two racks
//! never meet and that `down` finds everything also when the rack's record is lost.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use kopek_core::ServerId;

/// Servers are .11 to .90, VIPs .101 and up, the machine itself .254.
pub(crate) const SERVERS_MAX: usize = 80;
const FIRST_SERVER: u8 = 11;
const FIRST_VIP: u8 = 101;
const MACHINE: u8 = 254;

pub(crate) const NETNS_DIR: &str = "/run/netns";

/// The names of one rack. Interface names may have 15 characters (IFNAMSIZ), which is why the id has six.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    pub id: String,
    pub dir: PathBuf,
}

impl Names {
    /// The id is a hash of the folder: the same folder always gives the same names.
    pub fn of(dir: &Path) -> Names {
        let hash = blake3::hash(dir.as_os_str().as_encoded_bytes());
        Names { id: hash.to_hex()[..6].to_owned(), dir: dir.to_owned() }
    }

    pub fn record(&self) -> PathBuf {
        self.dir.join("rack.json")
    }

    pub fn image(&self, server: &ServerId) -> PathBuf {
        self.dir.join(format!("{server}.img"))
    }

    pub fn bridge(&self) -> String {
        format!("kopek{}", self.id)
    }

    /// The bridge's end of a server's cable; the other end is `eth0` in the server.
    pub fn cable(&self, server: &ServerId) -> String {
        format!("{}{server}", self.cable_prefix())
    }

    pub fn cable_prefix(&self) -> String {
        format!("k{}-", self.id)
    }

    pub fn netns(&self, server: &ServerId) -> String {
        format!("{}{server}", self.netns_prefix())
    }

    pub fn netns_prefix(&self) -> String {
        format!("kopek-{}-", self.id)
    }

    /// Below the root of every cgroup hierarchy, v1 and v2 alike, without a leading slash.
    pub fn cgroup(&self) -> String {
        format!("kopek/{}", self.id)
    }

    pub fn server_cgroup(&self, server: &ServerId) -> String {
        format!("kopek/{}/{server}", self.id)
    }

    /// Locally administered; the same after every boot, so that neighbours' ARP entries stay right.
    pub fn mac(&self, last: u8) -> String {
        let id = &self.id;
        format!("02:6b:{}:{}:{}:{last:02x}", &id[0..2], &id[2..4], &id[4..6])
    }
}

/// 10.74.N.0/24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub(crate) struct Subnet(pub u8);

impl Subnet {
    pub fn server(self, index: usize) -> Ipv4Addr {
        let offset = u8::try_from(index).expect("Rack::create allows at most SERVERS_MAX servers");
        self.host(FIRST_SERVER + offset)
    }

    pub fn vip(self, index: u8) -> Ipv4Addr {
        self.host(FIRST_VIP + index)
    }

    pub fn machine(self) -> Ipv4Addr {
        self.host(MACHINE)
    }

    fn host(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 74, self.0, last)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "10.74.{}.0/24", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_fit_the_kernel_and_differ_between_folders() {
        let (a, b) = (Names::of(Path::new("/a")), Names::of(Path::new("/b")));
        let last = ServerId::parse(&format!("s{SERVERS_MAX}")).unwrap();
        assert!(a.bridge().len() <= 15 && a.cable(&last).len() <= 15);
        assert_ne!(a.bridge(), b.bridge());
        assert_ne!(a.cable(&last), b.cable(&last));
        assert_eq!(a, Names::of(Path::new("/a")));
    }

    #[test]
    fn a_subnet_gives_servers_vips_and_the_machine_their_addresses() {
        let subnet = Subnet(7);
        assert_eq!(subnet.server(2).to_string(), "10.74.7.13");
        assert_eq!(subnet.vip(0).to_string(), "10.74.7.101");
        assert_eq!(subnet.machine().to_string(), "10.74.7.254");
    }
}
