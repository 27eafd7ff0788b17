//! The number of a site's instances that must run, whatever the load: what is lost is replaced, what is
//! missing added, what is too much drained, what belongs to no site removed.

use crate::desired::{Site, Standing};
use crate::id::{InstanceId, SiteName};
use crate::observed::Phase;
use crate::placement::Stage;

use super::Draft;
use super::place::place_instance;
use super::step::{Action, Cause, Subject};

pub(super) fn keep_instances(draft: &mut Draft) {
    remove_deleted_sites(draft);
    for site in draft.sites.values() {
        let lost = remove_lost(draft, site);
        drain_surplus(draft, site);
        add_missing(draft, site, lost);
    }
}

fn remove_deleted_sites(draft: &mut Draft) {
    let deleted: Vec<SiteName> =
        draft.state.placed.sites.keys().filter(|name| !draft.sites.contains_key(*name)).cloned().collect();
    for site in deleted {
        let instances: Vec<InstanceId> = draft.state.placed.sites[&site].instances.keys().cloned().collect();
        for instance in instances {
            draft.act(Action::RemoveInstance { instance }, "its site was deleted");
        }
        // Ids are unique as long as the placement remembers the next number: keep it while any is about.
        let servers = draft.state.servers.keys();
        let about = servers.filter_map(|s| draft.report(s)).any(|report| {
            let first = InstanceId::new(&site, 0);
            let mut later = report.instances.range(first..);
            later.next().is_some_and(|(id, _)| id.site() == site)
        });
        if !about {
            draft.act(Action::ForgetSite { site }, "it was deleted and nothing of it runs");
        }
    }
}

/// Removes instances whose server does not count, and says how many of them ran.
fn remove_lost(draft: &mut Draft, site: &Site) -> usize {
    let Some(placement) = draft.state.placed.sites.get(&site.name) else { return 0 };
    let lost: Vec<(InstanceId, Stage, String)> = placement
        .instances
        .iter()
        .filter_map(|(id, instance)| {
            let why = match draft.state.standing(&instance.server) {
                Some(Standing::Up | Standing::Draining) => return None,
                Some(Standing::Dead) => format!("{} is dead", instance.server),
                Some(Standing::Returning) => format!("{} was dead", instance.server),
                None => format!("{} was removed from the cell", instance.server),
            };
            Some((id.clone(), instance.stage, why))
        })
        .collect();
    let ran = lost.iter().filter(|(_, stage, _)| *stage == Stage::Run).count();
    for (instance, _, why) in lost {
        draft.act(Action::RemoveInstance { instance }, why);
    }
    ran
}

/// The maximum was lowered, or a server whose instances had been taken over from stays after all.
fn drain_surplus(draft: &mut Draft, site: &Site) {
    let Some(placement) = draft.state.placed.sites.get(&site.name) else { return };
    let staying = draft.state.staying(placement);
    if staying <= site.max {
        return;
    }
    let mut leaving: Vec<(bool, u64, InstanceId)> = placement
        .instances
        .iter()
        .filter(|(_, i)| i.stage == Stage::Run && draft.state.standing(&i.server) == Some(Standing::Up))
        .map(|(id, i)| {
            (draft.phase(&i.server, id) == Some(&Phase::Serving), u64::MAX - id.number(), id.clone())
        })
        .collect();
    leaving.sort(); // those that do not serve first, then the newest
    for (_, _, instance) in leaving.into_iter().take(staying - site.max) {
        let until = draft.now.plus_millis(draft.desired.cell.drain_ms);
        let reason = format!("{staying} instances, at most {} wanted", site.max);
        draft.act(Action::DrainInstance { instance, until, cause: Cause::Need }, reason);
    }
}

fn add_missing(draft: &mut Draft, site: &Site, lost: usize) {
    let placed = |draft: &Draft| {
        draft.state.placed.sites.get(&site.name).map_or((0, 0), |placement| {
            let runs = placement.instances.values().filter(|i| i.stage == Stage::Run).count();
            (runs, draft.state.staying(placement))
        })
    };
    let (runs, staying) = placed(draft);
    // Instances on draining servers run on until `drain` has replaced them.
    let missing = site.min.saturating_sub(runs).max(lost).min(site.max.saturating_sub(staying));
    for nth in 0..missing {
        let (runs, _) = placed(draft);
        let reason = match (lost.checked_sub(nth), runs < site.min) {
            (Some(1..), _) => "replaces one that is lost".to_owned(),
            _ => format!("{runs} of at least {} run", site.min),
        };
        if let Err(why) = place_instance(draft, site, Cause::Need, &reason) {
            if runs < site.min && !draft.is_just_started() {
                draft.block(
                    Subject::Site(site.name.clone()),
                    format!("{runs} of at least {} instances: {why}", site.min),
                );
            }
            return;
        }
    }
}
