//! This server's public addresses: keepalived in step with the assignment and the edge's health, the firewall
//! open to them, and handovers of those that are to go elsewhere. Called by the agent.

use std::net::IpAddr;
use std::time::Duration;

use kopek_core::assignment::AssignedVip;
use kopek_core::config::ServerConfig;
use kopek_core::observed::Health;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;

use crate::handover::Handovers;
use crate::keepalived::Keepalived;
use crate::machine;

/// VIPs move by keepalived's own doing; this is only how soon it shows.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Keeps them, and tells which are here.
pub fn keep(
    config: ServerConfig,
    vips: watch::Receiver<Option<Vec<AssignedVip>>>,
    edge: watch::Receiver<Option<Health>>,
) -> watch::Receiver<Vec<IpAddr>> {
    let (to_held, held) = watch::channel(Vec::new());
    let keeper = Keeper {
        keepalived: Keepalived::new(&config.dirs, &config.name, &config.interface),
        handovers: Handovers::new(config.dirs.edge_socket()),
        config,
        guarded: None,
    };
    tokio::spawn(keeper.work(vips, edge, to_held));
    held
}

struct Keeper {
    config: ServerConfig,
    keepalived: Keepalived,
    handovers: Handovers,
    /// Addresses that the firewall knows: those of the cell, and those that are closed to new visitors.
    guarded: Option<(Vec<IpAddr>, Vec<IpAddr>)>,
}

impl Keeper {
    async fn work(
        mut self,
        mut vips: watch::Receiver<Option<Vec<AssignedVip>>>,
        mut edge: watch::Receiver<Option<Health>>,
        to_held: watch::Sender<Vec<IpAddr>>,
    ) {
        loop {
            let (wanted, health) = (vips.borrow_and_update().clone(), *edge.borrow_and_update());
            if let (Some(wanted), Some(health)) = (wanted, health) {
                self.apply(&wanted, health).await;
            }
            let now = self.keepalived.held();
            to_held.send_if_modified(|held| {
                let changed = *held != now;
                *held = now;
                changed
            });
            tokio::select! {
                changed = vips.changed() => if changed.is_err() { return },
                changed = edge.changed() => if changed.is_err() { return },
                () = sleep(self.handovers.look_within(LOOK_EVERY)) => {}
            }
        }
    }

    async fn apply(&mut self, wanted: &[AssignedVip], health: Health) {
        self.handovers.follow(wanted, &self.keepalived.held()).await;
        self.guard(wanted);
        self.handovers.advance().await;
        let applied = match wanted {
            [] => self.keepalived.silence().await,
            wanted => self.keepalived.apply(&self.handovers.announced(wanted), health),
        };
        if let Err(error) = applied {
            warn!(%error, "this server announces no addresses");
        }
    }

    fn guard(&mut self, wanted: &[AssignedVip]) {
        let next = (wanted.iter().map(|vip| vip.address).collect(), self.handovers.closed());
        if self.guarded.as_ref() == Some(&next) {
            return;
        }
        match machine::guard(&self.config, &next.0, &next.1) {
            Ok(()) => self.guarded = Some(next),
            Err(error) => warn!(%error, "the firewall does not know the cell's public addresses"),
        }
    }
}
