//! The end of a site: deleted by somebody, or because its dump could not be read. The database goes first, then
//! the documents.
//!
//! What a failed creation leaves while the pool does not answer is marked under `/abandoned`, and removed by
//! whichever controller is active when the pool answers again.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::extract::Path;
use hyper::Method;
use kopek_core::assignment::AssignedDatabase;
use kopek_core::config::AGENT_PORT;
use kopek_core::desired::Site;
use kopek_core::{SiteName, keys};
use kopek_store::{Commit, Op};
use tracing::warn;

use super::site_turn::Turn;
use super::{Acting, Refused, committed};
use crate::active::Active;
use crate::state::put;
use crate::view::View;

/// For an agent to drop a database.
const DROP_LIMIT: Duration = Duration::from_secs(20);
/// Between two tries to remove what was abandoned.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Stops the instances, drops the database, then forgets the site; can be repeated at any point.
pub async fn delete(Acting(active): Acting, Path(name): Path<SiteName>) -> Result<Json<()>, Refused> {
    if !active.view().state.desired.sites.contains_key(&name) {
        return Err(Refused::unknown("site", &name));
    }
    {
        let _editing = active.editing.lock().await;
        let view = active.view();
        if let Some(site) = view.state.desired.sites.get(&name) {
            let stopped = Site { min: 0, max: 0, ..site.clone() };
            let ops = vec![put(keys::site(&name), &stopped)];
            committed(active.commit(vec![view.state.unchanged(&keys::site(&name))], ops).await?)?;
        }
    }
    let drained = Duration::from_millis(active.view().state.desired.cell.drain_ms) + Duration::from_secs(5);
    let stopped = |view: &View| {
        view.state.placed.sites.get(&name).is_none_or(|placement| placement.instances.is_empty())
    };
    if !active.wait_until(drained, stopped).await {
        return Err(Refused::unavailable(format!(
            "the instances of site {name} do not stop; repeat the command"
        )));
    }
    let _turn = Turn::wait_for(&active, &name).await?;
    forget(&active, &name).await?;
    Ok(Json(()))
}

/// Removes a site whose dump could not be read, now or when the pool answers again. Not if the same command,
/// given again, has made it anew since `before`.
pub async fn give_up(active: &Active, name: &SiteName, before: &View) {
    let compares = [keys::site(name), keys::preparing(name)].map(|key| before.state.unchanged(&key));
    let given_up = active.commit(compares.to_vec(), vec![put(keys::abandoned(name), &())]).await;
    match given_up {
        Ok(Commit::Conflict) => {}
        Ok(Commit::Done { .. }) => {
            if let Err(refused) = forget(active, name).await {
                warn!(site = %name, ?refused, "what was made for it will be removed later");
            }
        }
        Err(error) => {
            warn!(site = %name, %error, "what was made for it stays; `kopek site delete` removes it");
        }
    }
}

/// Removes what was abandoned, as long as this controller is active.
pub async fn sweep(active: &Active) -> Infallible {
    let mut view = active.view.clone();
    loop {
        let abandoned = match view.wait_for(|view| !view.state.abandoned.is_empty()).await {
            Ok(view) => view.state.abandoned.clone(),
            // The reconcile loop has ended, and this controller with it.
            Err(_) => std::future::pending().await,
        };
        for name in abandoned {
            let removed = async {
                let _turn = Turn::wait_for(active, &name).await?;
                // It may have been created anew meanwhile.
                match active.view().state.abandoned.contains(&name) {
                    true => forget(active, &name).await,
                    false => Ok(()),
                }
            };
            if let Err(refused) = removed.await {
                warn!(site = %name, ?refused, "abandoned and cannot be removed yet");
            }
        }
        tokio::time::sleep(SWEEP_EVERY).await;
    }
}

/// Drops the database and removes every document of the site. Whoever calls has the site's turn.
async fn forget(active: &Active, name: &SiteName) -> Result<(), Refused> {
    let view = active.view();
    let site = view.state.desired.sites.get(name);
    if let Some((site, database)) = site.and_then(|site| Some((site, site.database.clone()?))) {
        let agent = writer_agent(&view, name)?;
        let path = format!("/databases/{name}");
        let body = AssignedDatabase { number: site.number, database };
        let _: () =
            active.api.call(Method::DELETE, agent, &path, Some(&body), DROP_LIMIT).await.map_err(
                |source| Refused::unavailable(format!("site {name}: its database stays: {source}")),
            )?;
    }
    let _editing = active.editing.lock().await;
    let mut ops = Vec::new();
    if site.is_some() {
        ops.push(Op::Delete { key: keys::site(name) });
        ops.push(active.event(name, "site deleted", "its instances, volume and database are gone"));
    }
    if view.state.preparing.contains_key(name) {
        ops.push(Op::Delete { key: keys::preparing(name) });
    }
    if view.state.abandoned.contains(name) {
        ops.push(Op::Delete { key: keys::abandoned(name) });
    }
    // Created anew meanwhile, it is another site.
    let compares = [keys::site(name), keys::preparing(name)].map(|key| view.state.unchanged(&key));
    not_made_anew(name, active.commit(compares.to_vec(), ops).await?)
}

/// Nobody may take the same decision about the new site unasked.
pub fn not_made_anew(name: &SiteName, commit: Commit) -> Result<(), Refused> {
    match commit {
        Commit::Done { .. } => Ok(()),
        Commit::Conflict => Err(Refused::conflict(format!(
            "site {name} changed in between; look at it, then repeat the command"
        ))),
    }
}

/// Where the site's database is filled and dropped.
pub fn writer_agent(view: &View, name: &SiteName) -> Result<SocketAddr, Refused> {
    let placement = view.state.placed.sites.get(name);
    let writer = placement.and_then(|placement| placement.writer.as_ref());
    writer
        .and_then(|writer| view.state.desired.servers.get(&writer.server))
        .map(|server| SocketAddr::new(server.address, AGENT_PORT))
        .ok_or_else(|| Refused::unavailable(format!("site {name} has no writer now; see `kopek pool ls`")))
}
