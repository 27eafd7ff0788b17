//! Sites: creation (with or without an SQL dump), deployment, scaling, deletion, and how they stand.
//!
//! A site with a dump is first known with max 0 and a document under `/preparing`; when the dump is in, both
//! are replaced by the site as asked for. Interrupted anywhere, the same command can be given again.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use hyper::Method;
use kopek_core::api::{CreateSite, DeploySite, DumpFault, InstanceView, ScaleSite, SiteView, VolumeView};
use kopek_core::config::AGENT_PORT;
use kopek_core::desired::{Policy, Site};
use kopek_core::observed::{Phase, SeenInstance};
use kopek_core::placement::{PlacedInstance, Stage};
use kopek_core::{InstanceId, Load, ServerId, SiteName, keys};
use kopek_link::http::ApiError;
use kopek_store::Op;
use tracing::warn;

use super::images::require_tree;
use super::{Acting, Refused, committed};
use crate::active::Active;
use crate::reconcile::View;
use crate::state::put;

/// For a writer to be found and a database to be made.
const DATABASE_LIMIT: Duration = Duration::from_secs(20);
/// For an import whose sender has gone to end: it waits for the database first.
const TURN_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// For an agent to drop a database.
const DROP_LIMIT: Duration = Duration::from_secs(20);
/// Each site has 65,536 user ids from 100,000 on, and ids have 32 bits.
const SITE_NUMBER_MAX: u32 = 65_533;
/// A dump of some gigabytes.
const DUMP_LIMIT: Duration = Duration::from_secs(3600);

pub async fn list(Acting(active): Acting) -> Json<Vec<SiteView>> {
    let view = active.view();
    Json(view.state.desired.sites.values().map(|site| site_view(&view, site)).collect())
}

pub async fn show(Acting(active): Acting, Path(name): Path<SiteName>) -> Result<Json<SiteView>, Refused> {
    let view = active.view();
    let site = view.state.desired.sites.get(&name).ok_or_else(|| Refused::unknown("site", &name))?;
    Ok(Json(site_view(&view, site)))
}

pub async fn instances(Acting(active): Acting) -> Json<Vec<InstanceView>> {
    let view = active.view();
    Json(view.state.placed.sites.keys().flat_map(|name| instance_views(&view, name)).collect())
}

pub async fn create(
    Acting(active): Acting,
    Json(wanted): Json<CreateSite>,
) -> Result<Json<SiteView>, Refused> {
    let _editing = active.editing.lock().await;
    let view = active.view();
    let state = &view.state;
    if wanted.domains.is_empty() {
        return Err(Refused::unusable(format!("site {} needs a --domain", wanted.name)));
    }
    if wanted.min > wanted.max || wanted.max == 0 {
        return Err(Refused::unusable(format!(
            "site {}: --min must not exceed --max, nor --max be 0",
            wanted.name
        )));
    }
    check_policy(&wanted.name, wanted.policy)?;
    if !state.desired.images.contains_key(&wanted.image) {
        return Err(Refused::unknown("image", &wanted.image));
    }
    require_tree(&active, &wanted.tree).await?;
    for other in state.desired.sites.values().filter(|other| other.name != wanted.name) {
        if let Some(domain) = wanted.domains.iter().find(|domain| other.domains.contains(domain)) {
            return Err(Refused::conflict(format!(
                "domain {domain} already belongs to site {}; give another --domain or delete that site",
                other.name
            )));
        }
        let names = (&wanted.database, &other.database);
        if let (Some(wanted), Some(taken)) = names
            && wanted.name == taken.name
        {
            return Err(Refused::conflict(format!(
                "database {} already belongs to site {}; name another one in the site's configuration",
                wanted.name, other.name
            )));
        }
    }
    if let Some(database) = &wanted.database {
        database.check().map_err(Refused::unusable)?;
    }
    let known = state.desired.sites.get(&wanted.name);
    let number = known.map_or(state.site_number + 1, |site| site.number);
    if number > SITE_NUMBER_MAX {
        return Err(Refused::conflict(format!(
            "this cell has given out all its {SITE_NUMBER_MAX} site numbers; make another cell for more sites"
        )));
    }
    let site = Site {
        name: wanted.name.clone(),
        number,
        domains: wanted.domains,
        image: wanted.image,
        tree: wanted.tree,
        database: wanted.database,
        min: wanted.min,
        max: wanted.max,
        policy: wanted.policy,
        limits: wanted.limits,
        created: known.map_or(active.now(), |site| site.created),
    };
    let name = &site.name;
    let is_preparing = state.preparing.contains_key(name);
    if let Some(known) = known.filter(|_| !is_preparing) {
        if *known == site {
            return Ok(Json(site_view(&view, known)));
        }
        return Err(Refused::conflict(format!(
            "site {name} exists already and differs; use `kopek site deploy` or `scale`, or delete it first"
        )));
    }
    let mut ops = Vec::new();
    if known.is_none() {
        ops.push(put(keys::SITE_NUMBER.to_owned(), &number));
    }
    if wanted.has_dump {
        ops.push(put(keys::site(name), &Site { min: 0, max: 0, ..site.clone() }));
        ops.push(put(keys::preparing(name), &site));
    } else {
        ops.push(put(keys::site(name), &site));
        if is_preparing {
            ops.push(Op::Delete { key: keys::preparing(name) });
        }
        let domains: Vec<&str> = site.domains.iter().map(|domain| domain.as_str()).collect();
        ops.push(active.event(name, "site created", domains.join(", ")));
    }
    let compares =
        [&keys::site(name), &keys::preparing(name), keys::SITE_NUMBER].map(|key| state.unchanged(key));
    committed(active.commit(compares.to_vec(), ops).await?)?;
    let mut shown = site_view(&active.view(), &site);
    if wanted.has_dump {
        // The word on which the command line sends the dump.
        "preparing".clone_into(&mut shown.state);
    }
    Ok(Json(shown))
}

/// `PUT /sites/NAME/dump`: the SQL dump of a site that is being prepared. If it has an error the site is
/// removed again.
pub async fn dump(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    body: Body,
) -> Result<Json<SiteView>, Refused> {
    // A second import would empty the database that the first one fills. One whose sender went away ends
    // when it comes to read the rest.
    let _import = Importing::begin(&active, &name).await?;
    active.wait_until(Duration::from_secs(2), |view| view.state.preparing.contains_key(&name)).await;
    let view = active.view();
    let Some(site) = view.state.preparing.get(&name).cloned() else {
        return Err(Refused::conflict(format!("site {name} waits for no dump; create it first")));
    };
    let Some(database) = site.database.clone() else {
        return Err(Refused::unusable(format!("site {name} has a dump but no database; give --db-user")));
    };
    if let Err(refused) = import(&active, &name, body).await {
        // The same command given again has made it anew: then it is that one's.
        let preparing = keys::preparing(&name);
        let is_ours = active.view().state.unchanged(&preparing) == view.state.unchanged(&preparing);
        if is_ours && let Err(source) = forget(&active, &name).await {
            warn!(site = %name, ?source, "what was made for it stays; `kopek site delete` removes it");
        }
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
    committed(active.commit(compares, ops).await?)?;
    Ok(Json(site_view(&active.view(), &site)))
}

/// Ends with its drop, also when the one who sends the dump goes away.
struct Importing<'a> {
    active: &'a Active,
    site: SiteName,
}

impl<'a> Importing<'a> {
    async fn begin(active: &'a Active, site: &SiteName) -> Result<Importing<'a>, Refused> {
        let deadline = tokio::time::Instant::now() + TURN_LIMIT;
        while !active.importing().insert(site.clone()) {
            if tokio::time::Instant::now() > deadline {
                let error = format!("site {site}: its dump is being read already; wait for that");
                return Err(Refused::conflict(error));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Importing { active, site: site.clone() })
    }
}

impl Drop for Importing<'_> {
    fn drop(&mut self) {
        self.active.importing().remove(&self.site);
    }
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
        Ok(Err(source)) => format!("the dump broke off: {source}"),
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

fn writer_agent(view: &View, name: &SiteName) -> Result<std::net::SocketAddr, Refused> {
    let placement = view.state.placed.sites.get(name);
    let writer = placement.and_then(|placement| placement.writer.as_ref());
    writer
        .and_then(|writer| view.state.desired.servers.get(&writer.server))
        .map(|server| std::net::SocketAddr::new(server.address, AGENT_PORT))
        .ok_or_else(|| Refused::unavailable(format!("site {name} has no writer now; see `kopek pool ls`")))
}

pub async fn deploy(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    Json(deploy): Json<DeploySite>,
) -> Result<Json<SiteView>, Refused> {
    require_tree(&active, &deploy.tree).await?;
    edit(&active, &name, "deployed", |site| {
        site.tree = deploy.tree;
        Ok(format!("tree {}", &site.tree.as_str()[..12]))
    })
    .await
}

pub async fn scale(
    Acting(active): Acting,
    Path(name): Path<SiteName>,
    Json(scale): Json<ScaleSite>,
) -> Result<Json<SiteView>, Refused> {
    edit(&active, &name, "limits changed", |site| {
        site.min = scale.min.unwrap_or(site.min);
        site.max = scale.max.unwrap_or(site.max);
        site.policy = scale.policy.unwrap_or(site.policy);
        check_policy(&site.name, site.policy)?;
        if site.min > site.max {
            let error = format!("site {}: min {} exceeds max {}", site.name, site.min, site.max);
            return Err(Refused::unusable(error));
        }
        let Policy::Load { up, down } = site.policy;
        Ok(format!("{} to {} instances, load {down} to {up}", site.min, site.max))
    })
    .await
}

fn check_policy(name: &SiteName, policy: Policy) -> Result<(), Refused> {
    policy.check().map_err(|error| Refused::unusable(format!("site {name}: {error}")))
}

async fn edit(
    active: &Active,
    name: &SiteName,
    what: &str,
    change: impl FnOnce(&mut Site) -> Result<String, Refused>,
) -> Result<Json<SiteView>, Refused> {
    let _editing = active.editing.lock().await;
    let view = active.view();
    let mut site =
        view.state.desired.sites.get(name).cloned().ok_or_else(|| Refused::unknown("site", name))?;
    if view.state.preparing.contains_key(name) {
        let error =
            format!("site {name} is still being created; repeat `kopek site create {name}` or delete it");
        return Err(Refused::conflict(error));
    }
    let reason = change(&mut site)?;
    let ops = vec![put(keys::site(name), &site), active.event(name, what, reason)];
    committed(active.commit(vec![view.state.unchanged(&keys::site(name))], ops).await?)?;
    Ok(Json(site_view(&view, &site)))
}

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
    forget(&active, &name).await?;
    Ok(Json(()))
}

/// Drops the database and removes every document of the site.
async fn forget(active: &Active, name: &SiteName) -> Result<(), Refused> {
    let view = active.view();
    let Some(site) = view.state.desired.sites.get(name) else { return Ok(()) };
    if let Some(database) = &site.database {
        let agent = writer_agent(&view, name)?;
        let path = format!("/databases/{name}");
        let body =
            kopek_core::assignment::AssignedDatabase { number: site.number, database: database.clone() };
        let _: () =
            active.api.call(Method::DELETE, agent, &path, Some(&body), DROP_LIMIT).await.map_err(
                |source| Refused::unavailable(format!("site {name}: its database stays: {source}")),
            )?;
    }
    let _editing = active.editing.lock().await;
    let mut ops = vec![
        Op::Delete { key: keys::site(name) },
        active.event(name, "site deleted", "its instances, volume and database are gone"),
    ];
    if active.view().state.preparing.contains_key(name) {
        ops.push(Op::Delete { key: keys::preparing(name) });
    }
    committed(active.commit(vec![], ops).await?)
}

fn site_view(view: &View, site: &Site) -> SiteView {
    let instances = instance_views(view, &site.name);
    let placement = view.state.placed.sites.get(&site.name);
    let state = if view.state.preparing.contains_key(&site.name) {
        "preparing"
    } else if site.max == 0 {
        "stopped"
    } else if instances.iter().any(|instance| instance.phase == "serving") {
        "running"
    } else {
        "starting"
    };
    SiteView {
        name: site.name.clone(),
        domains: site.domains.clone(),
        image: site.image.clone(),
        state: state.to_owned(),
        min: site.min,
        max: site.max,
        policy: site.policy,
        writer: placement.and_then(|placement| placement.writer.as_ref()).map(|writer| writer.server.clone()),
        instances,
        volume: volume_view(view, site),
    }
}

fn volume_view(view: &View, site: &Site) -> VolumeView {
    let mut volume = VolumeView::default();
    let placement = view.state.placed.sites.get(&site.name);
    for holder in placement.into_iter().flat_map(|placement| &placement.holders) {
        let seen = view.observed.servers.get(holder).and_then(|seen| seen.report.volumes.get(&site.name));
        match seen.filter(|seen| seen.is_of(site)) {
            Some(seen) => {
                volume.holders.push(holder.clone());
                volume.files = volume.files.max(seen.files);
                volume.bytes = volume.bytes.max(seen.bytes);
            }
            None => volume.filling.push(holder.clone()),
        }
    }
    volume
}

fn instance_views(view: &View, site: &SiteName) -> Vec<InstanceView> {
    let placement = view.state.placed.sites.get(site);
    let placed = placement.into_iter().flat_map(|placement| &placement.instances);
    placed.map(|(id, placed)| instance_view(view, id, placed)).collect()
}

fn instance_view(view: &View, id: &InstanceId, placed: &PlacedInstance) -> InstanceView {
    let seen = seen_instance(view, &placed.server, id);
    let phase = match (placed.stage, seen) {
        (Stage::Drain { .. }, _) => "draining",
        (Stage::Run, Some(seen)) => seen.phase.as_str(),
        (Stage::Run, None) => "placed",
    };
    InstanceView {
        id: id.clone(),
        site: id.site(),
        server: placed.server.clone(),
        phase: phase.to_owned(),
        load: seen.map_or(Load(0), |seen| seen.load),
        memory: seen.map(|seen| seen.memory).unwrap_or_default(),
        tasks: seen.map_or(0, |seen| seen.tasks),
        in_flight: seen.map_or(0, |seen| seen.in_flight),
        restarts: seen.map_or(0, |seen| seen.restarts),
        since: seen.map_or(placed.since, |seen| seen.since),
        why: seen.and_then(|seen| match &seen.phase {
            Phase::Waiting { what } => Some(what.clone()),
            Phase::BackOff { why, .. } => Some(why.clone()),
            Phase::Starting | Phase::Serving | Phase::Stopping => None,
        }),
    }
}

fn seen_instance<'a>(view: &'a View, server: &ServerId, id: &InstanceId) -> Option<&'a SeenInstance> {
    let standing = view.state.desired.servers.get(server)?;
    let seen = view.observed.servers.get(server).filter(|_| standing.is_serving())?;
    seen.report.instances.get(id)
}
