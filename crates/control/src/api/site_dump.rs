//! The SQL dump of a site that is being created: relayed to the writer's agent, which reads it. If that fails the
//! site is removed again (site_removal.rs).

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use hyper::Method;
use kopek_core::api::{DumpFault, SiteView};
use kopek_core::{SiteName, keys};
use kopek_link::http::ApiError;
use kopek_store::Op;

use super::site_removal::{give_up, not_made_anew, writer_agent};
use super::site_turn::Turn;
use super::site_view::site_view;
use super::{Acting, Refused};
use crate::active::Active;
use crate::state::put;
use crate::view::View;

/// For a writer to be found and a database to be made.
const DATABASE_LIMIT: Duration = Duration::from_secs(20);
/// A dump of some gigabytes.
const DUMP_LIMIT: Duration = Duration::from_secs(3600);

/// `PUT /sites/NAME/dump`: the SQL dump of a site that is being prepared. If it has an error the site is
/// removed again.
pub async fn dump(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    body: Body,
) -> Result<Json<SiteView>, Refused> {
    // A second import would empty the database that the first one fills. One whose sender went away ends
    // when it comes to read the rest.
    let _turn = Turn::wait_for(&active, &name).await?;
    active.wait_until(Duration::from_secs(2), |view| view.state.preparing.contains_key(&name)).await;
    let view = active.view();
    let Some(site) = view.state.preparing.get(&name).cloned() else {
        return Err(Refused::conflict(format!("site {name} waits for no dump; create it first")));
    };
    let Some(database) = site.database.clone() else {
        return Err(Refused::unusable(format!("site {name} has a dump but no database; give --db-user")));
    };
    if let Err(refused) = import(&active, &name, body).await {
        give_up(&active, &name, &view).await;
        return Err(refused);
    }
    let _editing = active.editing.lock().await;
    let ops = vec![
        put(keys::site(&name), &site),
        Op::Delete { key: keys::preparing(&name) },
        active.event(&name, "site created", format!("database {} filled from a dump", database.name)),
    ];
    // As it was before the import: a site that was deleted or created anew meanwhile is another one.
    let before = &view.state;
    let compares = vec![before.unchanged(&keys::site(&name)), before.unchanged(&keys::preparing(&name))];
    not_made_anew(&name, active.commit(compares, ops).await?)?;
    Ok(Json(site_view(&active.view(), &site)))
}

async fn import(active: &Active, name: &SiteName, body: Body) -> Result<(), Refused> {
    if !active.wait_until(DATABASE_LIMIT, |view| has_database(view, name)).await {
        return Err(Refused::unavailable(format!(
            "no pool member made the database of site {name} in {} s; see `kopek pool ls`",
            DATABASE_LIMIT.as_secs()
        )));
    }
    let view = active.view();
    let agent = writer_agent(&view, name)?;
    let path = format!("/databases/{name}/dump");
    let import = active.api.send_body(Method::PUT, agent, &path, body);
    let answer = tokio::time::timeout(DUMP_LIMIT, import).await;
    let fault = match answer {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(ApiError::Answered { message, .. })) => match serde_json::from_str::<DumpFault>(&message) {
            Ok(DumpFault { line: Some(line), message }) => {
                format!("the SQL dump has an error in line {line}: {message}")
            }
            Ok(DumpFault { line: None, message }) => format!("the SQL dump cannot be read: {message}"),
            Err(_) => message,
        },
        Ok(Err(_)) => format!("its writer at {agent} was lost while it read the dump; repeat the command"),
        Err(_) => format!("the dump was not read within {} minutes", DUMP_LIMIT.as_secs() / 60),
    };
    Err(Refused::unusable(format!("site {name} was not created: {fault}")))
}

fn has_database(view: &View, name: &SiteName) -> bool {
    let placement = view.state.placed.sites.get(name);
    let writer = placement.and_then(|placement| placement.writer.as_ref());
    writer
        .and_then(|writer| view.observed.servers.get(&writer.server))
        .and_then(|seen| seen.report.member.as_ref())
        .is_some_and(|member| member.databases.contains(name))
}
