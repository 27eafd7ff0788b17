//! How a rack and its servers are, asked of the kernel at this moment; the record only adds what the kernel cannot
//! know.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use kopek_core::ServerId;
use serde::Serialize;

use crate::error::RackError;
use crate::network::{self, Cable};
use crate::rack::Rack;
use crate::record::{Power, Process, ServerRecord};

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RackStatus {
    pub id: String,
    pub dir: PathBuf,
    /// For example 10.74.0.0/24.
    pub subnet: String,
    pub bridge: String,
    /// The machine's own address on the bridge.
    pub machine: Ipv4Addr,
    pub servers: Vec<ServerStatus>,
    pub vips: Vec<Ipv4Addr>,
    pub forwards: Vec<ForwardStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerStatus {
    pub name: ServerId,
    pub address: Ipv4Addr,
    pub state: ServerState,
    /// The server's init, as the machine numbers it; /proc/PID/root is the server's file system.
    pub init: Option<i32>,
}

/// Shown as `running`, `frozen`, `killed+cut` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerState {
    pub power: Power,
    pub frozen: bool,
    pub cut: bool,
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = match self.power {
            Power::Running if self.frozen => "frozen",
            Power::Running if self.cut => return f.write_str("cut"),
            Power::Running => "running",
            Power::Killed => "killed",
            Power::PoweredOff => "powered-off",
        };
        write!(f, "{power}{}", if self.cut { "+cut" } else { "" })
    }
}

impl Serialize for ServerState {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ForwardStatus {
    pub listen: SocketAddr,
    pub to: SocketAddr,
    pub running: bool,
}

impl Rack {
    pub fn status(&self) -> Result<RackStatus, RackError> {
        let record = self.record()?;
        let server = |server: &ServerRecord| ServerStatus {
            name: server.name.clone(),
            address: server.address,
            state: self.state_of(server),
            init: server.init.filter(Process::is_alive).map(|init| init.pid),
        };
        let forwards = record.forwards.iter().map(|forward| ForwardStatus {
            listen: forward.listen,
            to: forward.to,
            running: forward.process.is_alive(),
        });
        Ok(RackStatus {
            id: self.names.id.clone(),
            dir: self.names.dir.clone(),
            subnet: record.subnet.to_string(),
            bridge: self.names.bridge(),
            machine: record.subnet.machine(),
            servers: record.servers.iter().map(server).collect(),
            forwards: forwards.collect(),
            vips: record.vips,
        })
    }

    pub fn state(&self, server: &ServerId) -> Result<ServerState, RackError> {
        Ok(self.state_of(self.record()?.server(server)?))
    }

    pub(crate) fn state_of(&self, server: &ServerRecord) -> ServerState {
        let init = server.init.and_then(|init| init.state());
        ServerState {
            power: match server.power {
                // Its init died without us: somebody's kill -9, or the machine was rebooted.
                Power::Running if init.is_none() => Power::Killed,
                power => power,
            },
            frozen: init == Some('T'),
            cut: network::cable(&self.names, &server.name) == Cable::Pulled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_cut_and_frozen_says_both() {
        let state = |power, frozen, cut| ServerState { power, frozen, cut }.to_string();
        assert_eq!(state(Power::Running, false, false), "running");
        assert_eq!(state(Power::Running, false, true), "cut");
        assert_eq!(state(Power::Running, true, true), "frozen+cut");
        assert_eq!(state(Power::PoweredOff, false, false), "powered-off");
        assert_eq!(state(Power::Killed, false, true), "killed+cut");
    }
}
