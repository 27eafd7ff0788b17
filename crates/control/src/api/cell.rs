//! The cell as a whole: its state, and where its store lies.

use axum::Json;
use kopek_core::api::{CellView, MigrateStore, VipView};
use kopek_store::Location;

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
