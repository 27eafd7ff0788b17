//! Keeps this server's etcd running while the cell's store names it a member.

use kopek_core::ServerId;
use kopek_core::config::Dirs;
use kopek_core::desired::StoreMembers;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::daemon::{Daemon, Supervised, explained};
use crate::etcd::{EtcdMember, GRACE, Origin};

/// The member that runs here.
struct Running {
    cluster: String,
    supervised: Supervised,
}

/// Runs for ever. Before anything is known of the members, what runs goes on. `to_cluster` tells of which
/// cluster the member is that runs here: never of one while another's may still answer.
pub async fn keep(
    dirs: Dirs,
    me: ServerId,
    mut members: watch::Receiver<Option<StoreMembers>>,
    to_cluster: watch::Sender<Option<String>>,
) {
    let mut running: Option<Running> = None;
    loop {
        let wanted = members.borrow_and_update().clone();
        if let Some(wanted) = wanted {
            let member = wanted.members.get(&me).map(|address| EtcdMember {
                name: me.clone(),
                cluster: wanted.cluster.clone(),
                address: *address,
                members: wanted.members.clone(),
                origin: Origin::New,
            });
            running = converge(&dirs, running.take(), member, &to_cluster).await;
            to_cluster.send_replace(running.as_ref().map(|running| running.cluster.clone()));
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

async fn converge(
    dirs: &Dirs,
    running: Option<Running>,
    wanted: Option<EtcdMember>,
    to_cluster: &watch::Sender<Option<String>>,
) -> Option<Running> {
    if let Some(running) = running {
        if wanted.as_ref().is_some_and(|wanted| wanted.cluster == running.cluster) {
            return Some(running);
        }
        to_cluster.send_replace(None);
        info!(cluster = running.cluster, "the cell's store has left this server");
        running.supervised.stop(GRACE).await;
    }
    let Some(wanted) = wanted else {
        if let Some(left) = Daemon::adopt(dirs, "etcd") {
            info!("the cell's store left this server while no agent ran");
            left.stop(GRACE).await;
        }
        return None;
    };
    match wanted.keep(dirs).await {
        Ok(supervised) => Some(Running { cluster: wanted.cluster, supervised }),
        Err(error) => {
            warn!(error = explained(&error), "this server's store member does not start");
            None
        }
    }
}
