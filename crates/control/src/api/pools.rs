//! Pools: how they stand, and making one more.

use std::collections::BTreeMap;

use axum::Json;
use kopek_core::api::{CreatePool, MemberView, PoolFounding, PoolView};
use kopek_core::desired::Pool;
use kopek_core::observed::MemberState;
use kopek_core::plan::{FoundError, found_pool};
use kopek_core::{PoolName, ServerId, keys};

use super::servers::member_name;
use super::{Acting, Refused, committed};
use crate::state::put;
use crate::view::View;

pub async fn list(Acting(active): Acting) -> Json<Vec<PoolView>> {
    let view = active.view();
    Json(view.state.desired.pool_names().iter().map(|name| pool_view(&view, name)).collect())
}

fn pool_view(view: &View, name: &PoolName) -> PoolView {
    let pool = view.state.placed.pool(name);
    let members: Vec<MemberView> =
        pool.members.iter().map(|server| member_view(view, name, server)).collect();
    let state = match members.iter().filter(|member| member.state == "synced").count() {
        0 if !pool.formed => "forming".to_owned(),
        0 => {
            let its_own = format!("{name}: ");
            let blocked = view.blocked.iter().find(|blocked| blocked.starts_with(&its_own));
            blocked.cloned().unwrap_or_else(|| "down".to_owned())
        }
        _ => "serving".to_owned(),
    };
    let mut writers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for site in view.state.desired.sites.values().filter(|site| site.pool == *name) {
        let placement = view.state.placed.sites.get(&site.name);
        if let Some(writer) = placement.and_then(|placement| placement.writer.as_ref()) {
            writers.entry(writer.server.clone()).or_default().push(site.name.clone());
        }
    }
    PoolView { name: name.to_string(), state, members, writers }
}

fn member_view(view: &View, pool: &PoolName, server: &ServerId) -> MemberView {
    let serving = view.state.desired.servers.get(server).is_some_and(|server| server.is_serving());
    let seen = view.observed.servers.get(server).filter(|_| serving);
    let seen = seen.and_then(|seen| seen.report.member.as_ref()).filter(|member| member.pool == *pool);
    MemberView {
        server: server.clone(),
        state: seen.map_or("away", |member| member_name(&member.state)).to_owned(),
        since: seen.map(|member| member.since),
        group_size: seen.map_or(0, |member| member.group_size),
        disk: seen.map(|member| member.disk).unwrap_or_default(),
        seqno: seen.and_then(|member| member.position.as_ref()).map(|position| position.seqno),
        why: seen.and_then(|member| match &member.state {
            MemberState::Unready { why } => Some(why.clone()),
            _ => None,
        }),
    }
}

/// Says which servers it begins on; the planner makes them its members.
pub async fn create(
    Acting(active): Acting,
    Json(wanted): Json<CreatePool>,
) -> Result<Json<PoolFounding>, Refused> {
    let _editing = active.editing.lock().await;
    let view = active.view();
    let state = &view.state;
    let CreatePool { name, servers, dry_run } = wanted;
    let now = active.now();
    let servers =
        found_pool(&state.desired, &state.placed, &view.observed, now, &name, &servers).map_err(|error| {
            match error {
                FoundError::BadSize { .. } => Refused::unusable(error),
                error => Refused::conflict(error),
            }
        })?;
    let founding = PoolFounding { name: name.clone(), servers: servers.clone() };
    if dry_run {
        return Ok(Json(founding));
    }
    // Nobody may have taken or drained one of them meanwhile.
    let placed = state.desired.pool_names().into_iter().map(|pool| keys::placed_pool(&pool));
    let mut compares: Vec<_> = placed.chain([keys::pool(&name), keys::placed_pool(&name)]).collect();
    compares.extend(state.desired.pools.keys().map(keys::pool));
    compares.extend(servers.iter().map(keys::server));
    let compares = compares.iter().map(|key| state.unchanged(key)).collect();
    let names: Vec<&str> = servers.iter().map(ServerId::as_str).collect();
    let event =
        active.event(&name, "pool created", format!("asked for by an admin, on {}", names.join(", ")));
    let pool = Pool { name: name.clone(), size: servers.len(), servers, created: now };
    committed(active.commit(compares, vec![put(keys::pool(&name), &pool), event]).await?)?;
    Ok(Json(founding))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::desk::Desk;

    async fn ask(desk: &Desk, name: &str, servers: &[&str]) -> Result<PoolFounding, Refused> {
        let servers = servers.iter().map(|name| ServerId::parse(name).unwrap()).collect();
        let wanted = CreatePool { name: PoolName::parse(name).unwrap(), servers, dry_run: false };
        create(desk.acting(), Json(wanted)).await.map(|founding| founding.0)
    }

    #[tokio::test]
    async fn a_pool_that_cannot_begin_leaves_nothing() {
        let desk = Desk::new().await;
        for (name, servers, words) in [
            ("pool1", vec!["s1"], "there is a pool pool1 already"),
            ("pool2", vec!["s1", "s2"], "1, 3 or 5 members"),
            ("pool2", vec!["s2"], "there is no server s2"),
            ("pool2", vec![], "no server is free for pool pool2"),
        ] {
            let refused = ask(&desk, name, &servers).await.unwrap_err();
            assert!(refused.says(words), "{refused:?}");
        }
        let shown = list(desk.acting()).await.0;
        assert_eq!(shown.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["pool1"]);
    }
}
