//! A rack of virtual servers on one machine: what is behind `kopek dev`, the end-to-end tests and the benchmark.
//!
//! A virtual server is a network namespace on a bridge, with its own mounts, processes, host name, System V
//! objects, cgroup, and a disk of its own (an ext4 image on a loop device, so that power cuts and full disks can
//! be tried). An init inside ([`init_main`]) keeps the services running that the caller names.
//!
//! Promises: two racks in different folders never meet; a server outlives the command that booted it; the data
//! of a killed or powered-off server are what its disk held; [`Rack::down`] leaves nothing behind, whatever
//! happened before.
//!
//! ```no_run
//! # use kopek_rack::*;
//! # fn main() -> Result<(), RackError> {
//! let dir = std::path::Path::new(DEFAULT_DIR);
//! preflight(dir, 3, Some("127.0.0.1:8080".parse().unwrap()))?;     // Rack::create does so too, without a port
//! let mut options = RackOptions::new(3);
//! options.services = ["agent", "edge"].map(|name| Service::of_program(name, &[name])).to_vec();
//! let rack = Rack::create(dir, options)?;                          // boots s1, s2, s3; no service is started yet
//! let s1 = &rack.status()?.servers[0].name;
//! let code = rack.exec(s1, &["kopek", "server", "join", "URL", "TOKEN"])?; // stdio passed through
//! rack.service(s1, "agent", ServiceOrder::Start)?;                 // from now on at every boot, too
//! rack.forward("127.0.0.1:8080".parse().unwrap(), "10.74.0.101:80".parse().unwrap())?;
//! rack.power_off(s1)?;
//! rack.power_on(s1)?;
//! Rack::down(dir)?;
//! # Ok(()) }
//! ```
//!
//! The binary that calls this must offer two hidden subcommands, before it starts any thread:
//! `dev-init` → [`init_main`]`()` and `dev-forward LISTEN TO` → [`forward_main`]`(to)`.
//!
//! In a server, services and executed commands find in their environment `KOPEK_CGROUP` (`/kopek/RACK/SERVER`):
//! instances' cgroups belong below it, in every hierarchy, and [`Rack::kill`] and [`Rack::down`] remove them.

mod cgroup;
mod disk;
mod enter;
mod error;
mod faults;
mod forward;
mod init;
mod names;
mod network;
mod preflight;
mod rack;
mod record;
mod remove;
mod services;
mod status;
mod wait;

pub use error::RackError;
pub use forward::forward_main;
pub use init::{ServiceOrder, ServicePhase, ServiceStatus, init_main};
pub use preflight::preflight;
pub use rack::{Rack, RackOptions};
pub use record::{Power, Service};
pub use remove::Removed;
pub use status::{ForwardStatus, RackStatus, ServerState, ServerStatus};

/// Where `kopek dev` keeps its rack unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/kopek-rack";

/// The environment variable that names a server's cgroup to its services.
pub const CGROUP_VARIABLE: &str = "KOPEK_CGROUP";

// A virtual server's folders are those of a real one: the defaults of `kopek_core::config::Dirs`.
const STATE_DIR: &str = "/var/lib/kopek";
const ETC_DIR: &str = "/etc/kopek";
const LOG_DIR: &str = "/var/log/kopek";
const RUN_DIR: &str = "/run/kopek";
