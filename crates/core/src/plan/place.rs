//! Where an instance goes: on a server that is up, reports, has a free slot and does not run the site yet;
//! of these, one that has the volume and the image, on the rack with fewest of the site, the emptiest.

use std::cmp::Reverse;

use crate::desired::{Server, Site, Standing};
use crate::id::{InstanceId, ServerId};
use crate::placement::{SitePlacement, Stage};

use super::Draft;
use super::step::{Action, Cause};

/// Servers that an explanation names one by one; above it they are counted.
const NAMED_MAX: usize = 6;

/// Adds one instance of `site`; gives back why not if no server fits.
pub(super) fn place_instance(
    draft: &mut Draft,
    site: &Site,
    cause: Cause,
    reason: &str,
) -> Result<(), String> {
    let empty = SitePlacement::default();
    let placement = draft.state.placed.sites.get(&site.name).unwrap_or(&empty);
    let server = best_server(draft, site, placement).ok_or_else(|| explain(draft, placement))?;
    let number = placement.next_number.max(1);
    if !placement.holders.contains(&server) {
        let holder = Action::AddHolder { site: site.name.clone(), server: server.clone() };
        draft.act(holder, "an instance is placed there");
    }
    let instance = InstanceId::new(&site.name, number);
    draft.act(Action::AddInstance { instance, server, cause }, reason);
    Ok(())
}

fn best_server(draft: &Draft, site: &Site, placement: &SitePlacement) -> Option<ServerId> {
    let image = draft.desired.images.get(&site.image).map(|image| &image.digest);
    let fitting = draft.state.servers.values().filter(|server| obstacle(draft, placement, server).is_none());
    let best = fitting.min_by_key(|server| {
        let report = draft.report(&server.name);
        let holds = placement.holders.contains(&server.name);
        let filled = holds
            && report.is_some_and(|report| {
                report.volumes.get(&site.name).is_some_and(|volume| volume.is_of(site))
                    && image.is_some_and(|image| report.images.contains(image))
            });
        let same_rack = placement
            .instances
            .values()
            .filter(|i| i.stage == Stage::Run && i.server != server.name)
            .filter(|i| draft.state.servers.get(&i.server).is_some_and(|s| s.rack == server.rack))
            .count();
        let drains_here = placement.instances.values().any(|i| i.server == server.name);
        let taken = draft.state.slots_taken(&server.name);
        let fullness = taken * 1000 / server.slots.max(1);
        (
            (Reverse(filled), Reverse(holds), same_rack, drains_here),
            (fullness, taken, server.joined, &server.name),
        )
    });
    best.map(|server| server.name.clone())
}

fn obstacle(draft: &Draft, placement: &SitePlacement, server: &Server) -> Option<&'static str> {
    let runs_one = |i: &crate::placement::PlacedInstance| i.server == server.name && i.stage == Stage::Run;
    match server.standing {
        Standing::Dead => Some("is dead"),
        Standing::Returning => Some("is catching up"),
        Standing::Draining => Some("drains"),
        Standing::Up if placement.instances.values().any(runs_one) => Some("runs one already"),
        Standing::Up if draft.state.slots_taken(&server.name) >= server.slots => Some("has no free slot"),
        Standing::Up if draft.report(&server.name).is_none() => Some("does not report"),
        Standing::Up => None,
    }
}

/// `s1 runs one already, s2 is dead`; in a large cell `of 40 servers, 38 have no free slot, …`.
fn explain(draft: &Draft, placement: &SitePlacement) -> String {
    let obstacles: Vec<(&ServerId, &str)> = draft
        .state
        .servers
        .values()
        .filter_map(|server| Some((&server.name, obstacle(draft, placement, server)?)))
        .collect();
    if obstacles.is_empty() {
        return "the cell has no servers; add one with `kopek server token`".to_owned();
    }
    if obstacles.len() <= NAMED_MAX {
        let each: Vec<String> = obstacles.iter().map(|(server, what)| format!("{server} {what}")).collect();
        return format!("no server fits: {}", each.join(", "));
    }
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for (_, what) in &obstacles {
        *counts.entry(what).or_default() += 1;
    }
    let each: Vec<String> = counts.iter().map(|(what, count)| format!("{count}× {what}")).collect();
    format!("none of {} servers fits: {}", obstacles.len(), each.join(", "))
}
