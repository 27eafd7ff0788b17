//! `kopek site move-writer`: a person's choice of the pool member that serves a site.

use axum::Json;
use axum::extract::Path;
use kopek_core::api::{MoveWriter, WriterMove};
use kopek_core::plan::{self, Action, Plan};
use kopek_core::{SiteName, keys};

use super::{Acting, Refused, committed};
use crate::state::put;

/// Answers when the new writer is recorded; it serves when its member has the site's database.
pub async fn move_writer(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    Json(wanted): Json<MoveWriter>,
) -> Result<Json<WriterMove>, Refused> {
    let _editing = active.editing.lock().await;
    let view = active.view();
    let state = &view.state;
    if !state.desired.sites.contains_key(&name) {
        return Err(Refused::unknown("site", name));
    }
    let now = active.now();
    let to = wanted.to.as_ref();
    let step = plan::move_writer(&state.desired, &state.placed, &view.observed, now, &name, to)
        .map_err(Refused::conflict)?;
    let Action::SetWriter { server, epoch, .. } = &step.action else {
        return Err(Refused::unavailable("a move of a writer sets a writer"));
    };
    let from = state.placed.sites.get(&name).and_then(|placement| placement.writer.as_ref());
    let answer = WriterMove {
        site: name.clone(),
        from: from.map(|writer| writer.server.clone()),
        to: server.clone(),
        epoch: *epoch,
    };
    if wanted.dry_run {
        return Ok(Json(answer));
    }
    let event = active.event(&name, &format!("{}: {server}", step.action.title()), &step.reason);
    let (mut desired, mut placed) = (state.desired.clone(), state.placed.clone());
    plan::apply(&Plan { at: now, steps: vec![step], blocked: Vec::new() }, &mut desired, &mut placed);
    let key = keys::placement(&name);
    let ops = vec![put(key.clone(), &placed.sites[&name]), event];
    committed(active.commit(vec![state.unchanged(&key)], ops).await?)?;
    Ok(Json(answer))
}
