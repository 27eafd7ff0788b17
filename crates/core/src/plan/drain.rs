//! Instances that leave. Those of a draining server first get a successor elsewhere; once it serves they are
//! drained. A drained instance is removed when it is idle, at the latest when its time is over.
//!
//! ```text
//!  Run, server drains ──► successor placed ──► successor serves ──► Drain ──► idle, gone or late ──► removed
//! ```

use crate::desired::{Site, Standing};
use crate::id::InstanceId;
use crate::observed::Phase;
use crate::placement::{PlacedInstance, SitePlacement, Stage};

use super::Draft;
use super::place::place_instance;
use super::step::{Action, Cause, Subject};

/// Edges follow a changed route within some ten milliseconds; until then a drained instance may still get
/// requests, so being idle means nothing yet.
const ROUTES_SETTLE_MS: u64 = 500;

pub(super) fn let_go(draft: &mut Draft) {
    let any_drains = draft.state.servers.values().any(|s| s.standing == Standing::Draining);
    for site in draft.sites.values() {
        if any_drains {
            hand_over(draft, site);
        }
        remove_drained(draft, site);
    }
}

fn hand_over(draft: &mut Draft, site: &Site) {
    let Some(placement) = draft.state.placed.sites.get(&site.name) else { return };
    let leaving: Vec<(InstanceId, PlacedInstance)> = placement
        .instances
        .iter()
        .filter(|(_, i)| i.stage == Stage::Run)
        .filter(|(_, i)| draft.state.standing(&i.server) == Some(Standing::Draining))
        .map(|(id, instance)| (id.clone(), instance.clone()))
        .collect();
    for (id, instance) in leaving {
        let Some(placement) = draft.state.placed.sites.get(&site.name) else { return };
        let others = serving_elsewhere(draft, placement);
        match successor(draft, placement, &id) {
            Some((successor, Some(Phase::Serving))) => {
                let reason = format!("{} drains and {successor} serves", instance.server);
                drain(draft, &id, reason);
            }
            Some(_) => {} // it is on its way
            None => {
                let cause = Cause::Handover { from: id.clone() };
                let reason = format!("{} drains", instance.server);
                let room = draft.state.staying(placement) < site.max;
                let placed = if room {
                    place_instance(draft, site, cause, &reason)
                } else {
                    Err(format!("the site has its {} instances elsewhere", site.max))
                };
                match placed {
                    Ok(()) => {}
                    // An extra one is not worth holding up a drain.
                    Err(_) if others >= site.min.max(1) => {
                        drain(draft, &id, format!("{} drains and {others} others serve", instance.server));
                    }
                    Err(why) => draft.block(
                        Subject::Instance(id.clone()),
                        format!("{} drains but {id} cannot leave: {why}", instance.server),
                    ),
                }
            }
        }
    }
}

fn drain(draft: &mut Draft, instance: &InstanceId, reason: String) {
    let cause = Cause::Handover { from: instance.clone() };
    let until = draft.now.plus_millis(draft.desired.cell.drain_ms);
    draft.act(Action::DrainInstance { instance: instance.clone(), until, cause }, reason);
}

fn successor<'d>(
    draft: &'d Draft,
    placement: &SitePlacement,
    from: &InstanceId,
) -> Option<(InstanceId, Option<&'d Phase>)> {
    let (id, instance) = placement.instances.iter().find(|(_, instance)| {
        instance.replaces.as_ref() == Some(from)
            && instance.stage == Stage::Run
            && draft.state.standing(&instance.server) == Some(Standing::Up)
    })?;
    Some((id.clone(), draft.phase(&instance.server, id)))
}

fn serving_elsewhere(draft: &Draft, placement: &SitePlacement) -> usize {
    let staying = placement
        .instances
        .iter()
        .filter(|(_, i)| i.stage == Stage::Run && draft.state.standing(&i.server) == Some(Standing::Up));
    staying.filter(|(id, i)| draft.phase(&i.server, id) == Some(&Phase::Serving)).count()
}

fn remove_drained(draft: &mut Draft, site: &Site) {
    let Some(placement) = draft.state.placed.sites.get(&site.name) else { return };
    let done: Vec<(InstanceId, String)> = placement
        .instances
        .iter()
        .filter_map(|(id, instance)| {
            let Stage::Drain { until } = instance.stage else { return None };
            let why = if draft.now >= until { Some("its time to drain is over") } else { None };
            let why = why.or_else(|| idle(draft, id, instance));
            why.map(|why| (id.clone(), why.to_owned()))
        })
        .collect();
    for (instance, why) in done {
        draft.act(Action::RemoveInstance { instance }, why);
    }
}

/// Only a report from after the routes changed can say that nothing is in flight any more.
fn idle(draft: &Draft, id: &InstanceId, instance: &PlacedInstance) -> Option<&'static str> {
    let report = draft.report(&instance.server)?;
    let seen_at = draft.observed.servers.get(&instance.server)?.at;
    if seen_at <= instance.since.plus_millis(ROUTES_SETTLE_MS) {
        return None;
    }
    match report.instances.get(id) {
        None => Some("it is gone"),
        Some(seen) if seen.in_flight == 0 => Some("it is idle"),
        Some(_) => None,
    }
}
