//! Keeps this server's etcd running while the cell's store names it a member.

use kopek_core::ServerId;
use kopek_core::config::Dirs;
use kopek_core::desired::StoreMembers;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::daemon::{Daemon, Supervised};
use crate::etcd::{EtcdMember, GRACE, Origin};

/// Runs for ever. Before anything is known of the members, what runs goes on.
pub async fn keep(dirs: Dirs, me: ServerId, mut members: watch::Receiver<Option<StoreMembers>>) {
    let mut running: Option<Supervised> = None;
    loop {
        let Some(wanted) = members.borrow_and_update().clone() else {
            if members.changed().await.is_err() {
                return;
            }
            continue;
        };
        let address = wanted.members.get(&me).copied();
        match (address, &running) {
            (Some(_), Some(_)) => {}
            (Some(address), None) => {
                let member =
                    EtcdMember { name: me.clone(), address, members: wanted.members, origin: Origin::New };
                match member.keep(&dirs) {
                    Ok(supervised) => running = Some(supervised),
                    Err(error) => warn!(%error, "this server's store member does not start"),
                }
            }
            (None, _) => {
                if let Some(supervised) = running.take() {
                    info!("the cell's store has left this server");
                    supervised.stop(GRACE).await;
                } else if let Some(left) = Daemon::adopt(&dirs, "etcd") {
                    info!("the cell's store left this server while no agent ran");
                    left.stop(GRACE).await;
                }
            }
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}
