//! The cell as a whole: its state, its pool, and where its store lies.

use std::collections::BTreeMap;

use axum::Json;
use kopek_core::api::{CellView, MemberView, MigrateStore, PoolView, VipView};
use kopek_core::observed::MemberState;
use kopek_store::Location;

use super::servers::member_name;
use super::{Acting, Refused};
use crate::store_move::{self, MoveError};

pub async fn show(Acting(active): Acting) -> Json<CellView> {
    let view = active.view();
    let vips = view.state.desired.cell.vips.iter().map(|address| VipView {
        address: *address,
        holder: view
            .observed
            .servers
            .iter()
            .filter(|(id, _)| view.state.desired.servers.get(*id).is_some_and(|server| server.is_serving()))
            .find(|(_, seen)| seen.report.vips.contains(address))
            .map(|(id, _)| id.clone()),
        wanted: view
            .state
            .placed
            .vips
            .get(address)
            .map(|placed| placed.next.as_ref().unwrap_or(&placed.holder).clone()),
    });
    let store = match &*active.location.borrow() {
        Location::Embedded { .. } => "embedded",
        Location::Etcd { .. } => "etcd",
    };
    Json(CellView {
        name: view.state.desired.cell.name.clone(),
        active: active.me.clone(),
        store: store.to_owned(),
        vips: vips.collect(),
        blocked: view.blocked.clone(),
        converged: view.converged,
    })
}

pub async fn pools(Acting(active): Acting) -> Json<Vec<PoolView>> {
    let view = active.view();
    let pool = &view.state.placed.pool;
    let members: Vec<MemberView> = pool
        .members
        .iter()
        .map(|server| {
            let serving = view.state.desired.servers.get(server).is_some_and(|server| server.is_serving());
            let seen = view
                .observed
                .servers
                .get(server)
                .filter(|_| serving)
                .and_then(|seen| seen.report.member.as_ref());
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
        })
        .collect();
    let state = match members.iter().filter(|member| member.state == "synced").count() {
        0 if !pool.formed => "forming".to_owned(),
        0 => view
            .blocked
            .iter()
            .find(|blocked| blocked.starts_with("pool"))
            .cloned()
            .unwrap_or_else(|| "down".to_owned()),
        _ => "serving".to_owned(),
    };
    let mut writers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (name, placement) in &view.state.placed.sites {
        if let Some(writer) = &placement.writer {
            writers.entry(writer.server.clone()).or_default().push(name.clone());
        }
    }
    Json(vec![PoolView { name: "pool1".to_owned(), state, members, writers }])
}

/// Moves the cell's state to the other kind of store. Answers when it is there.
pub async fn migrate(Acting(active): Acting, Json(wanted): Json<MigrateStore>) -> Result<Json<()>, Refused> {
    // A task of its own: a move that has begun is finished, also when the one who asked has gone.
    let moving = tokio::spawn(async move {
        let _editing = active.editing.lock().await;
        match wanted.to.as_str() {
            "etcd" => store_move::to_etcd(&active).await.map_err(not_moved),
            "embedded" => store_move::to_embedded(&active).await.map_err(not_moved),
            other => {
                let error = format!("there is no store {other:?}; use `--to etcd` or `--to embedded`");
                Err(Refused::unusable(error))
            }
        }
    });
    moving.await.map_err(Refused::unavailable)??;
    Ok(Json(()))
}

fn not_moved(error: MoveError) -> Refused {
    match error {
        MoveError::Deposed => Refused::overtaken(error),
        other => Refused::conflict(other),
    }
}
