//! One instance more when the load rises, one less when it falls. "Where is it decided that a site gets one
//! more instance" is here, in `follow_load`.

use crate::desired::{Policy, Site, Standing};
use crate::id::InstanceId;
use crate::observed::{Phase, SeenInstance};
use crate::placement::Stage;
use crate::units::{Load, Moment};

use super::Draft;
use super::place::place_instance;
use super::step::{Action, Cause, Subject};

/// A site's instances that stay, as their agents see them.
struct Crowd<'a> {
    serving: Vec<(InstanceId, &'a SeenInstance)>,
    /// Placed, and neither serving nor known to have failed.
    starting: usize,
    /// All of them, also those that failed.
    count: usize,
}

pub(super) fn follow_load(draft: &mut Draft) {
    for site in draft.sites.values() {
        let Policy::Load { up, down } = site.policy;
        let Some(crowd) = crowd(draft, site) else { continue };
        if !has_settled(draft, site) {
            continue;
        }
        let busiest = crowd.serving.iter().max_by_key(|(_, seen)| seen.load);
        match busiest {
            Some((busiest, seen)) if seen.load >= up => {
                let (busiest, load) = (busiest.clone(), seen.load);
                if crowd.starting == 0 && crowd.count < site.max {
                    scale_out(draft, site, &busiest, load, up);
                }
            }
            Some(_) => {
                if let Some((newest, load)) = spare(draft, site, &crowd, up, down) {
                    scale_in(draft, newest, load, down);
                }
            }
            None => {}
        }
    }
}

fn crowd<'a>(draft: &Draft<'a>, site: &Site) -> Option<Crowd<'a>> {
    let placement = draft.state.placed.sites.get(&site.name)?;
    let mut crowd = Crowd { serving: Vec::new(), starting: 0, count: 0 };
    for (id, instance) in &placement.instances {
        let stays = instance.stage == Stage::Run
            && matches!(draft.state.standing(&instance.server), Some(Standing::Up | Standing::Draining));
        if !stays {
            continue;
        }
        crowd.count += 1;
        let seen = draft.report(&instance.server).and_then(|report| report.instances.get(id));
        match seen {
            Some(seen) if seen.phase == Phase::Serving => crowd.serving.push((id.clone(), seen)),
            // One that fails again and again must not keep its site from getting help.
            Some(SeenInstance { phase: Phase::BackOff { .. }, .. }) => {}
            _ => crowd.starting += 1,
        }
    }
    Some(crowd)
}

fn has_settled(draft: &Draft, site: &Site) -> bool {
    let scaled = draft.state.placed.sites.get(&site.name).and_then(|placement| placement.scaled);
    scaled.is_none_or(|at| draft.now.millis_since(at) >= draft.desired.cell.settle_ms)
}

fn scale_out(draft: &mut Draft, site: &Site, busiest: &InstanceId, load: Load, up: Load) {
    let reason = format!("load {load} ≥ {up} at {busiest}");
    if let Err(why) = place_instance(draft, site, Cause::Policy, &reason) {
        // Without the load itself, which is another one each second.
        draft.block(Subject::Site(site.name.clone()), format!("wants one more, load ≥ {up}: {why}"));
    }
}

fn scale_in(draft: &mut Draft, instance: InstanceId, load: Load, down: Load) {
    let until = draft.now.plus_millis(draft.desired.cell.drain_ms);
    let reason = format!("load {load} < {down}");
    draft.act(Action::DrainInstance { instance, until, cause: Cause::Policy }, reason);
}

/// The newest instance if the site can do without it: its load is low, it has served long enough for its
/// load to mean something, and the others can carry its part without calling for help again at once.
fn spare(draft: &Draft, site: &Site, crowd: &Crowd, up: Load, down: Load) -> Option<(InstanceId, Load)> {
    let least = site.min.max(1);
    let (newest, seen) = crowd.serving.iter().max_by_key(|(id, _)| id.number())?;
    let others = crowd.serving.len() - 1;
    let total: u64 = crowd.serving.iter().map(|(_, seen)| u64::from(seen.load.0)).sum();
    let carried = total < u64::from(up.0) * others as u64;
    let told = settled_since(draft, seen.since);
    (others >= least && seen.load < down && carried && told).then(|| (newest.clone(), seen.load))
}

fn settled_since(draft: &Draft, since: Moment) -> bool {
    draft.now.millis_since(since) >= draft.desired.cell.settle_ms
}
