//! What must change so that the cell becomes what people asked for. Pure and total: the same documents give
//! the same plan, whatever was lost, repeated or done in part before. Called by the active controller after
//! every change and every second; it applies the plan to its documents and commits them.
//!
//! One file per concern, in the order in which they decide, each on the outcome of those before:
//! `servers` (dead, returning), `pool` (each pool's members, first start, start after a power loss), `holders` (who keeps
//! a volume), `instances` (dead, missing, surplus), `drain` (leaving), `scale` (load), `writers`, `vips` (which
//! edge holds an address). `found_pool` and `move_writer` answer people. A step is put into effect by `state`, here while planning and later by `apply`, and
//! by nothing else.

mod drain;
mod found_pool;
mod holders;
mod instances;
mod place;
mod pool;
mod scale;
mod servers;
mod state;
mod step;
mod vips;
mod writers;

use std::collections::BTreeMap;

use crate::desired::{Desired, Site};
use crate::id::{PoolName, ServerId, SiteName};
use crate::observed::{Observed, Phase, Report, Seen, SeenMember};
use crate::placement::Placed;
use crate::units::Moment;

pub use found_pool::{FoundError, PoolChoice, found_pool, pool_for_site};
use state::State;
pub use step::{Action, Blocked, Cause, Former, Plan, Step, Subject};
pub use writers::{MoveError, move_writer};

/// What to do now, and what is wanted but cannot be done.
pub fn plan(desired: &Desired, placed: &Placed, observed: &Observed, now: Moment) -> Plan {
    let mut draft = Draft::new(desired, placed, observed, now);
    servers::keep_standings(&mut draft);
    pool::keep_pools(&mut draft);
    holders::keep_holders(&mut draft);
    instances::keep_instances(&mut draft);
    drain::let_go(&mut draft);
    scale::follow_load(&mut draft);
    writers::keep_writers(&mut draft);
    vips::keep_vips(&mut draft);
    Plan { at: now, steps: draft.steps, blocked: draft.blocked }
}

/// Puts a plan into effect. A step that no longer makes sense on these documents (a stale plan, a repetition,
/// a step whose predecessor was lost) changes nothing; the next plan sees what is still to do.
/// Of `desired` only standings change.
pub fn apply(plan: &Plan, desired: &mut Desired, placed: &mut Placed) {
    let mut state = State::new(std::mem::take(&mut desired.servers), std::mem::take(placed));
    for step in &plan.steps {
        state.apply(&step.action, &desired.sites, plan.at);
    }
    desired.servers = state.servers;
    *placed = state.placed;
}

/// Whether there is nothing left to do. What is blocked does not count: it waits for people or for time.
pub fn is_converged(desired: &Desired, placed: &Placed, observed: &Observed, now: Moment) -> bool {
    plan(desired, placed, observed, now).steps.is_empty()
}

/// A plan in the making: the documents as they will be after the steps so far.
struct Draft<'a> {
    desired: &'a Desired,
    /// Not the draft's own: concerns walk over it while they change the draft.
    sites: &'a BTreeMap<SiteName, Site>,
    observed: &'a Observed,
    now: Moment,
    state: State,
    steps: Vec<Step>,
    blocked: Vec<Blocked>,
}

impl<'a> Draft<'a> {
    fn new(desired: &'a Desired, placed: &Placed, observed: &'a Observed, now: Moment) -> Draft<'a> {
        Draft {
            desired,
            sites: &desired.sites,
            observed,
            now,
            state: State::new(desired.servers.clone(), placed.clone()),
            steps: Vec::new(),
            blocked: Vec::new(),
        }
    }

    fn act(&mut self, action: Action, reason: impl Into<String>) {
        if self.state.apply(&action, self.sites, self.now) {
            self.steps.push(Step { action, reason: reason.into() });
        }
    }

    fn block(&mut self, subject: Subject, reason: impl Into<String>) {
        self.blocked.push(Blocked { subject, reason: reason.into() });
    }

    /// Milliseconds since anything was heard of a server. A controller that has just become active, and a
    /// server that has just joined, get the same patience as one that reported then.
    fn silent_for(&self, server: &ServerId) -> u64 {
        let heard = self.observed.servers.get(server).map_or(Moment(0), |seen| seen.at);
        let joined = self.state.servers.get(server).map_or(Moment(0), |s| s.joined);
        self.now.millis_since(heard.max(joined).max(self.observed.since))
    }

    /// The latest report of a server that is alive as far as we know.
    fn report(&self, server: &ServerId) -> Option<&'a Report> {
        let standing = self.state.servers.get(server)?.standing;
        let seen = self.observed.servers.get(server)?;
        (standing != crate::desired::Standing::Dead && self.is_fresh(seen)).then_some(&seen.report)
    }

    /// What a server reports of its member of this pool; nothing while it still has another one's.
    fn member(&self, pool: &PoolName, server: &ServerId) -> Option<&'a SeenMember> {
        self.report(server)?.member.as_ref().filter(|member| member.pool == *pool)
    }

    fn is_fresh(&self, seen: &Seen) -> bool {
        !self.observed.refused.contains_key(&seen.report.server)
            && self.now.millis_since(seen.at) <= self.desired.cell.silence_ms
    }

    /// Whether reports that are still missing may simply be on their way to a new controller.
    fn is_just_started(&self) -> bool {
        self.now.millis_since(self.observed.since) <= self.desired.cell.silence_ms
    }

    fn phase(&self, server: &ServerId, instance: &crate::id::InstanceId) -> Option<&'a Phase> {
        self.report(server)?.instances.get(instance).map(|seen| &seen.phase)
    }
}

/// Milliseconds as people say them: `2.6 s`.
fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}
