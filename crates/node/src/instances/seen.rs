//! What others get to see of this server's instances: `converge`, the report, and the parts of files and sql.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use kopek_core::converge::Local;
use kopek_core::observed::{Phase, SeenInstance};
use kopek_core::part::SqlListener;
use kopek_core::{Digest, InstanceId, Moment};
use kopek_instance::{InstanceSpec, Running};

use super::Instances;
use super::start::HTTP_PORT;

impl Instances {
    /// For `converge`.
    pub fn local(&self) -> BTreeMap<InstanceId, Local> {
        let known = self.known.iter().map(|(id, known)| (id.clone(), known.local()));
        known.chain(self.leftovers.iter().map(|id| (id.clone(), Local::Leftover))).collect()
    }

    /// For the report. `in_flight`: requests at the gate.
    pub fn seen(&self, in_flight: &BTreeMap<InstanceId, u32>) -> BTreeMap<InstanceId, SeenInstance> {
        let known = self.known.iter();
        known.map(|(id, known)| (id.clone(), known.seen(in_flight.get(id).copied().unwrap_or(0)))).collect()
    }

    /// Where the gate reaches them.
    pub fn gates(&self) -> BTreeMap<InstanceId, SocketAddr> {
        let serving = self.known.iter().filter(|(_, known)| known.takes_requests());
        serving
            .filter_map(|(id, known)| {
                let address = known.spec.as_ref()?.address;
                Some((id.clone(), SocketAddr::new(IpAddr::V4(address), HTTP_PORT)))
            })
            .collect()
    }

    /// Images that some instance here has as its root.
    pub fn images(&self) -> BTreeSet<Digest> {
        let specs = self.known.values().filter_map(|known| known.spec.as_ref());
        // `Dirs::image_root` is images/DIGEST/root.
        let digest =
            |spec: &InstanceSpec| Digest::parse(spec.image_root.parent()?.file_name()?.to_str()?).ok();
        specs.filter_map(digest).collect()
    }

    /// Where `sql` listens for them.
    pub fn listeners(&self) -> BTreeMap<InstanceId, SqlListener> {
        let connected = self.known.iter().filter(|(_, known)| known.connected);
        connected
            .filter_map(|(id, known)| {
                let spec = known.spec.as_ref()?;
                let socket = spec.sql_socket_dir.join("mysqld.sock");
                Some((id.clone(), SqlListener { socket, netns: spec.netns.clone() }))
            })
            .collect()
    }

    /// What an `exec` runs in.
    pub fn running(&self, id: &InstanceId) -> Option<Running> {
        self.known.get(id)?.running.clone()
    }

    /// When the next back-off ends.
    pub fn next_start(&self) -> Option<Moment> {
        let ends = self.known.values().filter_map(|known| match known.phase {
            Phase::BackOff { until, .. } => Some(until),
            _ => None,
        });
        ends.min()
    }
}
