//! Which edge holds a public address. keepalived moves an address by itself when its holder dies; the planner
//! notes where it went and leaves it there: moving an address that is well would cut the requests that are
//! under way. It is moved on purpose only off a server that drains, and to an idle edge when another holds two
//! more; the holder's agent then lets requests end first.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::desired::Standing;
use crate::id::ServerId;
use crate::observed::Health;
use crate::placement::PlacedVip;

use super::Draft;
use super::step::Action;

/// keepalived needs less to take an address over; until then an earlier holder may still be seen.
const TAKE_OVER_MS: u64 = 3_000;
/// After an address came somewhere, before addresses are spread anew.
const SPREAD_MS: u64 = 10_000;

pub(super) fn keep_vips(draft: &mut Draft) {
    let gone: Vec<IpAddr> = draft
        .state
        .placed
        .vips
        .keys()
        .filter(|vip| !draft.desired.cell.vips.contains(vip))
        .copied()
        .collect();
    for vip in gone {
        draft.act(Action::ForgetVip { vip }, "the cell has it no more");
    }
    for vip in &draft.desired.cell.vips {
        match draft.state.placed.vips.get(vip).cloned() {
            None => {
                if let Some(server) = seen_at(draft, *vip).or_else(|| best(draft, None)) {
                    draft.act(Action::SetVip { vip: *vip, server }, "its first");
                }
            }
            Some(placed) => keep_vip(draft, *vip, placed),
        }
    }
    spread(draft);
}

fn keep_vip(draft: &mut Draft, vip: IpAddr, placed: PlacedVip) {
    let PlacedVip { holder, next, since } = placed;
    let is_new = draft.now.millis_since(since) < TAKE_OVER_MS;
    let standing = draft.state.standing(&holder);
    let lost = lost(&holder, standing);
    if let Some(server) = seen_at(draft, vip).filter(|seen| *seen != holder)
        && (lost.is_some() || !is_new || next.as_ref() == Some(&server))
    {
        let reason = match (lost, next) {
            (Some(lost), _) => lost,
            (None, Some(next)) if next == server => format!("{holder} has let it go"),
            (None, _) => format!("it left {holder} by itself"),
        };
        draft.act(Action::SetVip { vip, server }, reason);
        return;
    }
    // keepalived chooses who takes it; who was guessed here would take it away from there again.
    if lost.is_some() {
        return;
    }
    match next {
        Some(next) if !takes(draft, &next) => {
            draft.act(Action::KeepVip { vip }, format!("{next} cannot take it"));
        }
        None if standing == Some(Standing::Draining) => {
            if let Some(to) = best(draft, Some(&holder)) {
                draft.act(Action::MoveVip { vip, to }, format!("{holder} drains"));
            }
        }
        _ => {}
    }
}

/// Why a holder is none any more.
fn lost(holder: &ServerId, standing: Option<Standing>) -> Option<String> {
    match standing {
        Some(Standing::Up | Standing::Draining) => None,
        Some(Standing::Dead) => Some(format!("{holder} is dead")),
        Some(Standing::Returning) => Some(format!("{holder} catches up")),
        None => Some(format!("{holder} was removed from the cell")),
    }
}

/// The one server that says it has the address. While two do, the next reports will tell.
fn seen_at(draft: &Draft, vip: IpAddr) -> Option<ServerId> {
    let serving = draft.state.servers.values().filter(|server| server.is_serving());
    let mut seen = serving
        .filter(|server| draft.report(&server.name).is_some_and(|report| report.vips.contains(&vip)))
        .map(|server| server.name.clone());
    seen.next().filter(|_| seen.next().is_none())
}

/// Whether an address can go there now.
fn takes(draft: &Draft, server: &ServerId) -> bool {
    draft.state.standing(server) == Some(Standing::Up)
        && draft.report(server).is_some_and(|report| report.edge == Health::Well)
}

/// The server with the fewest addresses; one whose edge is well if there is any.
fn best(draft: &Draft, except: Option<&ServerId>) -> Option<ServerId> {
    let held = held_by(draft);
    let candidates = draft.state.servers.values().filter(|server| Some(&server.name) != except);
    let server = match except {
        // Off a server that serves only to one that can take it now.
        Some(_) => candidates
            .filter(|server| takes(draft, &server.name))
            .min_by_key(|s| (held.get(&s.name).copied().unwrap_or(0), s.joined, &s.name)),
        None => candidates.filter(|server| server.is_serving()).min_by_key(|s| {
            let count = held.get(&s.name).copied().unwrap_or(0);
            (!s.is_up(), !takes(draft, &s.name), count, s.joined, &s.name)
        }),
    };
    server.map(|server| server.name.clone())
}

fn held_by(draft: &Draft) -> BTreeMap<ServerId, usize> {
    let mut held = BTreeMap::new();
    for placed in draft.state.placed.vips.values() {
        *held.entry(placed.next.as_ref().unwrap_or(&placed.holder).clone()).or_default() += 1;
    }
    held
}

/// One address at a time, and only when all have been where they are for a while.
fn spread(draft: &mut Draft) {
    let vips = &draft.state.placed.vips;
    let is_quiet = vips.iter().all(|(vip, placed)| {
        let at_rest = placed.next.is_none() && draft.now.millis_since(placed.since) >= SPREAD_MS;
        at_rest && seen_at(draft, *vip).as_ref() == Some(&placed.holder)
    });
    let held = held_by(draft);
    let Some(most) = held.values().max().copied().filter(|_| is_quiet) else { return };
    let Some(to) = best(draft, None).filter(|to| takes(draft, to)) else { return };
    let least = held.get(&to).copied().unwrap_or(0);
    if most < least + 2 {
        return;
    }
    let crowded = vips.iter().find(|(_, placed)| held.get(&placed.holder) == Some(&most));
    if let Some((vip, placed)) = crowded {
        let reason = format!("{} holds {most}, {to} holds {least}", placed.holder);
        draft.act(Action::MoveVip { vip: *vip, to }, reason);
    }
}
