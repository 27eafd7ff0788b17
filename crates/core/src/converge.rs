//! What an agent must do about the instances of its server, so that what runs becomes what is assigned.
//! Total and repeatable: called again after every change, on what is there then. Called by the agent.
//!
//! ```text
//!  assigned, not here ──► Wait ──(image and volume came)──► Create ──► Starting ──► Serving
//!  not assigned, has a process ──► Stop ──► (process ended) ──► Clean ──► gone
//!  BackOff, its time has come ──► Create
//! ```
//! Ids begin again at `.1` when a site is deleted and another gets its name: what is here is the assigned
//! instance only if its site's number is the same too.

use std::collections::{BTreeMap, BTreeSet};

use crate::assignment::{AssignedInstance, AssignedVolume, Assignment};
use crate::desired::Standing;
use crate::id::{Digest, InstanceId, SiteName};
use crate::observed::Phase;
use crate::placement::Stage;
use crate::units::Moment;

/// How long an instance that is stopped in good order may take to finish its requests. The controller has
/// drained it before, so this covers stragglers only.
pub const STOP_GRACE_MS: u64 = 5_000;

/// What an agent finds on its server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Running {
    /// Instances known here, also those found on disk after a crash of the agent.
    pub instances: BTreeMap<InstanceId, Local>,
    /// Images that are complete.
    pub images: BTreeSet<Digest>,
    /// Volumes with the tree that is wholly applied.
    pub volumes: BTreeMap<SiteName, AssignedVolume>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Local {
    /// Has this phase. `number` is its site's; none while nothing of it was made.
    Known { phase: Phase, number: Option<u32> },
    /// Mounts, a cgroup or a folder that no process uses: left by a crash, or by an instance that ended
    /// after it was told to stop.
    Leftover,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAction {
    /// Make and start it. After a back-off too.
    Create { id: InstanceId, instance: AssignedInstance },
    /// Show it as waiting for `what`.
    Wait { id: InstanceId, what: String },
    /// End its processes: those that are left after `grace_ms` by force.
    Stop { id: InstanceId, grace_ms: u64 },
    /// Remove what it left: mounts, cgroup, network namespace, folder.
    Clean { id: InstanceId },
}

/// The agent does these in order; each is safe to repeat.
pub fn converge(assignment: &Assignment, running: &Running, now: Moment) -> Vec<HostAction> {
    let mut actions = Vec::new();
    for (id, local) in &running.instances {
        if !is_wanted(assignment, id, local) {
            actions.extend(end(assignment, id, local));
        }
    }
    for (id, instance) in &assignment.instances {
        let local = running.instances.get(id);
        if may_serve(assignment) && local.is_none_or(|local| is_wanted(assignment, id, local)) {
            actions.extend(bring_up(assignment, running, id, instance, now));
        }
    }
    actions
}

/// A server that counts for dead or is catching up runs nothing, whatever else its assignment says.
fn is_wanted(assignment: &Assignment, id: &InstanceId, local: &Local) -> bool {
    let assigned = assignment.instances.get(id).filter(|_| may_serve(assignment));
    assigned.is_some_and(|instance| !is_of_another_site(local, instance))
}

/// Of a site that was deleted and whose name another one has now.
fn is_of_another_site(local: &Local, instance: &AssignedInstance) -> bool {
    match local {
        Local::Known { number, .. } => number.is_some_and(|number| number != instance.number),
        Local::Leftover => false,
    }
}

fn may_serve(assignment: &Assignment) -> bool {
    matches!(assignment.standing, Standing::Up | Standing::Draining)
}

fn end(assignment: &Assignment, id: &InstanceId, local: &Local) -> Option<HostAction> {
    let id = id.clone();
    let Local::Known { phase, .. } = local else { return Some(HostAction::Clean { id }) };
    match phase {
        Phase::Starting | Phase::Serving => {
            // Its successor may run elsewhere already, or waits for its place: no grace for what was given up.
            let is_leaving = may_serve(assignment) && !assignment.instances.contains_key(&id);
            Some(HostAction::Stop { id, grace_ms: if is_leaving { STOP_GRACE_MS } else { 0 } })
        }
        Phase::Stopping => None,
        Phase::Waiting { .. } | Phase::BackOff { .. } => Some(HostAction::Clean { id }),
    }
}

fn bring_up(
    assignment: &Assignment,
    running: &Running,
    id: &InstanceId,
    instance: &AssignedInstance,
    now: Moment,
) -> Option<HostAction> {
    let phase = match running.instances.get(id) {
        Some(Local::Leftover) => return Some(HostAction::Clean { id: id.clone() }),
        Some(Local::Known { phase, .. }) => Some(phase),
        None => None,
    };
    let create = || Some(HostAction::Create { id: id.clone(), instance: instance.clone() });
    match phase {
        Some(Phase::Starting | Phase::Serving | Phase::Stopping) => None,
        // One that is leaving anyway is not started again.
        Some(Phase::BackOff { .. }) if instance.stage != Stage::Run => None,
        Some(Phase::BackOff { until, .. }) => {
            if *until <= now {
                create()
            } else {
                None
            }
        }
        None | Some(Phase::Waiting { .. }) => match missing(assignment, running, instance) {
            None => create(),
            Some(what) if phase == Some(&Phase::Waiting { what: what.clone() }) => None,
            Some(what) => Some(HostAction::Wait { id: id.clone(), what }),
        },
    }
}

/// What an instance lacks for its first start. A restart asks for nothing: it goes on with what it had.
fn missing(assignment: &Assignment, running: &Running, instance: &AssignedInstance) -> Option<String> {
    if !running.images.contains(&instance.image) {
        return Some(format!("image {}", short(&instance.image)));
    }
    let wanted = assignment.volumes.get(&instance.site)?;
    match running.volumes.get(&instance.site) {
        Some(here) if here == wanted => None,
        _ => Some(format!("volume {} at tree {}", instance.site, short(&wanted.tree))),
    }
}

/// Enough of a digest for people to tell two apart.
fn short(digest: &Digest) -> &str {
    &digest.as_str()[..12]
}
