//! A line to every agent: one request that is never answered. When a server's processes are killed its
//! kernel closes the connection at once, and refused ports prove that nothing runs there any more: much
//! sooner than silence would. A server that merely restarts its agent still answers on other ports.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use kopek_core::ServerId;
use kopek_core::config::{AGENT_PORT, CONTROL_PORT, GATE_PORT, POOL_PORT, SQL_PORT};
use kopek_core::desired::Server;
use kopek_link::clock::now;
use kopek_link::http::Api;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::reports::Reports;

const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// Between two looks at a server that does not hold its line.
const RETRY: Duration = Duration::from_millis(50);

/// The lines of one active controller; they end with it.
pub struct Lines {
    api: Api,
    reports: Arc<Reports>,
    held: BTreeMap<ServerId, (IpAddr, AbortHandle)>,
}

impl Lines {
    pub fn new(api: Api, reports: Arc<Reports>) -> Lines {
        Lines { api, reports, held: BTreeMap::new() }
    }

    /// Holds a line to each of these servers and to no other.
    pub fn hold<'a>(&mut self, servers: impl Iterator<Item = &'a Server>) {
        let wanted: BTreeMap<&ServerId, IpAddr> =
            servers.map(|server| (&server.name, server.address)).collect();
        self.held.retain(|name, (address, task)| {
            let keep = wanted.get(name) == Some(address);
            if !keep {
                task.abort();
            }
            keep
        });
        for (name, address) in wanted {
            if !self.held.contains_key(name) {
                let task = tokio::spawn(hold_line(
                    self.api.clone(),
                    Arc::clone(&self.reports),
                    name.clone(),
                    address,
                ));
                self.held.insert(name.clone(), (address, task.abort_handle()));
            }
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        for (_, task) in self.held.values() {
            task.abort();
        }
    }
}

async fn hold_line(api: Api, reports: Arc<Reports>, server: ServerId, address: IpAddr) {
    loop {
        let agent = SocketAddr::new(address, AGENT_PORT);
        // Returns only when the line broke or could not be made.
        let _: Result<serde_json::Value, _> =
            api.call(Method::GET, agent, "/line", None::<&()>, Duration::from_secs(3600)).await;
        if all_refuse(address).await {
            reports.refuse(&server, now());
        } else {
            reports.answer(&server);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether every process of Kopek on that server is gone while its network answers. The pool's member too: it
/// goes on when all of Kopek's services are restarted at once.
pub async fn all_refuse(address: IpAddr) -> bool {
    for port in [AGENT_PORT, GATE_PORT, SQL_PORT, CONTROL_PORT, POOL_PORT] {
        let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect((address, port))).await;
        match connected {
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            _ => return false,
        }
    }
    true
}
