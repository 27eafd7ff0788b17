//! How a site and its instances stand: what was decided, with what their servers say.

use kopek_core::api::{InstanceView, SiteView, VolumeView};
use kopek_core::desired::Site;
use kopek_core::observed::{MemberState, Phase, SeenInstance};
use kopek_core::placement::{Chooser, PlacedInstance, Stage};
use kopek_core::{InstanceId, Load, ServerId, SiteName};

use crate::view::View;

pub fn site_view(view: &View, site: &Site) -> SiteView {
    let instances = instance_views(view, &site.name);
    let placement = view.state.placed.sites.get(&site.name);
    let writer = placement.and_then(|placement| placement.writer.as_ref());
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
        database_limits: site.database_limits,
        pool: site.pool.clone(),
        writer: writer.map(|writer| writer.server.clone()),
        writer_ready: writer.is_some_and(|writer| has_database(view, &writer.server, &site.name)),
        writer_chosen: writer.is_some_and(|writer| writer.chosen_by == Chooser::Person),
        instances,
        volume: volume_view(view, site),
    }
}

fn has_database(view: &View, server: &ServerId, site: &SiteName) -> bool {
    let is_serving = view.state.desired.servers.get(server).is_some_and(|server| server.is_serving());
    let seen = view.observed.servers.get(server).filter(|_| is_serving);
    let member = seen.and_then(|seen| seen.report.member.as_ref());
    member.is_some_and(|member| member.state == MemberState::Synced && member.databases.contains(site))
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

pub fn instance_views(view: &View, site: &SiteName) -> Vec<InstanceView> {
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
