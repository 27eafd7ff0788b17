//! Asks other servers' agents where the cell's state is, when it does not answer where it was: a server that
//! was off or cut away while the state was moved may find nothing there any more, not even a pointer. Nobody is
//! believed: an answer only says where to look, and the markers found there lead on. Called by following.rs.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hyper::Method;
use kopek_core::config::AGENT_PORT;
use kopek_link::Identity;
use kopek_link::http::Api;
use tracing::debug;

use crate::location::Location;

/// Where an agent answers with a `Location`, to servers of the cell.
pub const PATH: &str = "/store";
/// It is answered from memory.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Addresses of servers that may know, beside those where the state was. Asked for again each time.
pub type Acquaintances = Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>;

pub(crate) struct Whereabouts {
    api: Api,
    acquaintances: Acquaintances,
}

impl Whereabouts {
    pub fn new(identity: &Identity, acquaintances: Acquaintances) -> Whereabouts {
        Whereabouts { api: Api::new(identity.clone()), acquaintances }
    }

    /// What others say, apart from what is known.
    pub async fn told(&self, known: &Location) -> Vec<Location> {
        let mut servers: BTreeSet<IpAddr> = known.servers().into_iter().collect();
        servers.extend((self.acquaintances)());
        let mut told: Vec<Location> = Vec::new();
        for answer in
            join_all(servers.into_iter().map(|server| self.asked(server))).await.into_iter().flatten()
        {
            if answer != *known && !told.contains(&answer) {
                told.push(answer);
            }
        }
        told
    }

    async fn asked(&self, server: IpAddr) -> Option<Location> {
        let agent = SocketAddr::new(server, AGENT_PORT);
        let answer = self.api.call(Method::GET, agent, PATH, None::<&()>, ANSWER_LIMIT).await;
        answer.inspect_err(|error| debug!(%server, %error, "does not say where the cell's state is")).ok()
    }
}
