//! What an instance is to be, and what is known of one that runs. Both are plain documents: the agent makes
//! the first, `start` gives the second, and both lie in the instance's folder as JSON for whoever comes after
//! a crash.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use kopek_core::InstanceId;
use kopek_core::desired::Limits;
use serde::{Deserialize, Serialize};

/// User ids of one site: its container's root is the first, www-data (33) the 34th.
const IDS_PER_SITE: u32 = 65_536;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSpec {
    pub id: InstanceId,
    /// The site's number: its user ids start at 100,000 + 65,536 × number.
    pub number: u32,
    /// The unpacked image, with its owners as in the archive; shared by all instances and never written.
    pub image_root: PathBuf,
    /// The site's tree, seen as /var/www/html. www-data inside writes as user 33 on disk.
    pub volume: PathBuf,
    /// Where `kopek sql` makes `mysqld.sock` for this instance; must exist. Seen as /run/mysqld.
    pub sql_socket_dir: PathBuf,
    /// The instance's own folder, `<state>/instances/<id>`: made by `start`, thrown away by `clean`.
    pub dir: PathBuf,
    /// The named network namespace, `<run>/netns/<id>`.
    pub netns: PathBuf,
    /// Gets the container's stdout and stderr, appended.
    pub log: PathBuf,
    pub limits: Limits,
    /// The instance's control group from the root of each hierarchy, for example `/kopek/rack/s1/blog.7`.
    /// No other instance may have it or a group below it.
    pub cgroup: PathBuf,
    /// The address in the instance, out of the server's private range; unique on this server.
    pub address: Ipv4Addr,
    /// Name servers for the instance; empty without internet.
    pub resolvers: Vec<IpAddr>,
    pub hostname: String,
}

impl InstanceSpec {
    /// What user 0 inside is outside.
    pub fn first_id(&self) -> u32 {
        100_000 + IDS_PER_SITE * self.number
    }

    pub(crate) fn ids(&self) -> u32 {
        IDS_PER_SITE
    }

    pub fn read(dir: &Path) -> Option<InstanceSpec> {
        serde_json::from_slice(&std::fs::read(dir.join(SPEC_FILE)).ok()?).ok()
    }
}

pub(crate) const SPEC_FILE: &str = "spec.json";
pub(crate) const RUNNING_FILE: &str = "running.json";

/// A container that was started. Process ids are used again; with its start time one is unique.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    pub id: InstanceId,
    /// `InstanceSpec::dir`.
    pub dir: PathBuf,
    /// The container's first process, as this process namespace numbers it.
    pub pid: i32,
    /// Its start in clock ticks since the machine's boot (proc(5), /proc/PID/stat field 22).
    pub started_at: u64,
    /// The signal on which the image's web server ends when its requests are done.
    pub stop_signal: i32,
}
