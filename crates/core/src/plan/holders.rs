//! Who keeps a site's volume: every server in a small cell, at least three, over the racks, in a large one.

use std::cmp::Reverse;

use crate::desired::{Server, Standing};
use crate::id::{ServerId, SiteName};

use super::Draft;
use super::step::Action;

/// Up to here every server keeps every volume: any may take any instance at once, and a copy more costs
/// less than the choice of where to put it.
const SMALL_CELL: usize = 8;
/// One may die while another is being repaired.
const LEAST_HOLDERS: usize = 3;

pub(super) fn keep_holders(draft: &mut Draft) {
    forget_servers(draft);
    let alive: Vec<Server> =
        draft.state.servers.values().filter(|s| s.standing != Standing::Dead).cloned().collect();
    let small = draft.state.servers.len() <= SMALL_CELL;
    let mut held = held_by_server(draft);
    for name in draft.sites.keys() {
        let wanted = if small { every(draft, name, &alive) } else { spread(draft, name, &alive, &held) };
        for (server, reason) in wanted {
            *held.entry(server.clone()).or_default() += 1;
            draft.act(Action::AddHolder { site: name.clone(), server }, reason);
        }
    }
}

/// Servers that were removed from the cell hold nothing.
fn forget_servers(draft: &mut Draft) {
    let gone: Vec<(SiteName, ServerId)> = draft
        .state
        .placed
        .sites
        .iter()
        .flat_map(|(site, placement)| placement.holders.iter().map(move |holder| (site, holder)))
        .filter(|(_, holder)| !draft.state.servers.contains_key(holder))
        .map(|(site, holder)| (site.clone(), holder.clone()))
        .collect();
    for (site, server) in gone {
        let reason = format!("{server} was removed from the cell");
        draft.act(Action::RemoveHolder { site, server }, reason);
    }
}

fn held_by_server(draft: &Draft) -> std::collections::BTreeMap<ServerId, usize> {
    let mut held = std::collections::BTreeMap::new();
    for placement in draft.state.placed.sites.values() {
        for holder in &placement.holders {
            match held.get_mut(holder) {
                Some(count) => *count += 1,
                None => {
                    held.insert(holder.clone(), 1);
                }
            }
        }
    }
    held
}

fn every(draft: &Draft, site: &SiteName, alive: &[Server]) -> Vec<(ServerId, String)> {
    let holders = draft.state.placed.sites.get(site).map(|p| &p.holders);
    alive
        .iter()
        .filter(|server| holders.is_none_or(|holders| !holders.contains(&server.name)))
        .map(|server| (server.name.clone(), "every server of a small cell holds every volume".to_owned()))
        .collect()
}

/// Adds holders until three are alive, first on racks that have none, then where fewest volumes are.
fn spread(
    draft: &Draft,
    site: &SiteName,
    alive: &[Server],
    held: &std::collections::BTreeMap<ServerId, usize>,
) -> Vec<(ServerId, String)> {
    let mut holding: Vec<&Server> = match draft.state.placed.sites.get(site) {
        Some(placement) => alive.iter().filter(|s| placement.holders.contains(&s.name)).collect(),
        None => Vec::new(),
    };
    let mut added = Vec::new();
    while holding.len() < LEAST_HOLDERS {
        let next = alive
            .iter()
            .filter(|server| server.is_up() && !holding.iter().any(|h| h.name == server.name))
            .min_by_key(|server| {
                let same_rack = holding.iter().filter(|h| h.rack == server.rack).count();
                let load = held.get(&server.name).copied().unwrap_or(0);
                (same_rack, load, Reverse(server.slots), server.joined, &server.name)
            });
        let Some(next) = next else { break };
        added.push((next.name.clone(), format!("{} of {LEAST_HOLDERS} holders are alive", holding.len())));
        holding.push(next);
    }
    added
}
