//! The active controller's loop: what is wanted, placed and observed goes into `plan`; what it decides goes
//! into the store, with the documents that follow from it, each decision with an event. Holds no policy.
//!
//! Every commit carries the leader's fence and the revisions it was decided on. A conflict means that
//! somebody else wrote: the watch brings it, and the next round decides afresh.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kopek_core::event::{self, Event};
use kopek_core::observed::Observed;
use kopek_core::plan::{self, Action, Plan};
use kopek_core::{Moment, assign, keys};
use kopek_store::{Commit, Op, StoreError, WatchError};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::active::Active;
use crate::big_changes::{self, Told};
use crate::lines::Lines;
use crate::state::{CellState, put};
use crate::view::View;

/// Silence and settle times are checked this often when nothing else happens.
const TICK: Duration = Duration::from_millis(250);
/// Far below what the store takes in one commit (`kopek_store::OPS_MAX`, `SIZE_MAX`), so that a large change
/// does not hold up others.
const OPS_MAX: usize = 200;
const PIECE_BYTES: usize = 512 << 10;
/// Rounds without a pause: a decision may make room for the next. More would be a planner that never rests.
const ROUNDS_MAX: usize = 16;

/// Runs until the store fails for good; the caller ends it when leadership is lost.
pub async fn reconcile(active: &Active, view: &watch::Sender<Arc<View>>) -> Result<Infallible, StoreError> {
    let (state, mut changes) = CellState::load(active.store.as_ref()).await?;
    let mut state = Arc::new(state);
    let mut lines = Lines::new(active.api.clone(), Arc::clone(&active.reports));
    let mut blocked = BTreeSet::new();
    let mut told = Told::default();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            batch = changes.next() => match batch {
                Ok(batch) => {
                    let state = Arc::make_mut(&mut state);
                    batch.iter().for_each(|change| state.take(change));
                }
                Err(WatchError::Compacted) => {
                    let (fresh, watch) = CellState::load(active.store.as_ref()).await?;
                    state = Arc::new(fresh);
                    changes = watch;
                }
            },
            () = active.reports.changed() => {}
            _ = tick.tick() => {}
        }
        lines.hold(state.desired.servers.values());
        let converged = settle(active, &mut state, &mut blocked, &mut told).await?;
        view.send_replace(Arc::new(View {
            state: Arc::clone(&state),
            observed: observed(active, &state),
            blocked: blocked.iter().cloned().collect(),
            converged,
        }));
    }
}

/// Plans and writes until nothing is left to decide. Gives back whether that was reached.
async fn settle(
    active: &Active,
    state: &mut Arc<CellState>,
    blocked: &mut BTreeSet<String>,
    told: &mut Told,
) -> Result<bool, StoreError> {
    for _ in 0..ROUNDS_MAX {
        let observed = observed(active, state);
        let now = active.now();
        let plan = plan::plan(&state.desired, &state.placed, &observed, now);
        let mut events = step_events(&plan, now);
        events.extend(newly_blocked(&plan, blocked, now));
        let (news, now_told) = big_changes::news(&observed, told, now);
        events.extend(news);
        let decided = decisions(state, &plan);
        if !decided.is_empty() || !events.is_empty() {
            let mut ops = decided;
            ops.extend(event_ops(active, state, &events));
            if !write(active, state, ops).await? {
                return Ok(false);
            }
        }
        *told = now_told;
        let derived = derivations(state, &observed);
        let has_derived = !derived.is_empty();
        if has_derived && !write(active, state, derived).await? {
            return Ok(false);
        }
        if plan.steps.is_empty() && !has_derived {
            return Ok(plan.blocked.is_empty());
        }
    }
    warn!(rounds = ROUNDS_MAX, "the planner does not come to rest; going on at the next tick");
    Ok(false)
}

fn observed(active: &Active, state: &CellState) -> Observed {
    let mut observed = active.reports.observed();
    observed.generations =
        state.assignments.iter().map(|(id, assignment)| (id.clone(), assignment.generation)).collect();
    observed
}

/// The documents that the plan changes.
fn decisions(state: &CellState, plan: &Plan) -> Vec<Op> {
    if plan.steps.is_empty() {
        return Vec::new();
    }
    let (mut desired, mut placed) = (state.desired.clone(), state.placed.clone());
    plan::apply(plan, &mut desired, &mut placed);
    let mut ops = Vec::new();
    for (id, server) in &desired.servers {
        if state.desired.servers.get(id) != Some(server) {
            ops.push(put(keys::server(id), server));
        }
    }
    for (name, placement) in &placed.sites {
        if state.placed.sites.get(name) != Some(placement) {
            ops.push(put(keys::placement(name), placement));
        }
    }
    for name in state.placed.sites.keys().filter(|name| !placed.sites.contains_key(*name)) {
        ops.push(Op::Delete { key: keys::placement(name) });
    }
    for (name, pool) in &placed.pools {
        if state.placed.pools.get(name) != Some(pool) {
            ops.push(put(keys::placed_pool(name), pool));
        }
    }
    if placed.vips != state.placed.vips {
        ops.push(put(keys::VIPS.to_owned(), &placed.vips));
    }
    ops
}

/// Assignments and routes that no longer say what follows from the decisions, with the next generation.
fn derivations(state: &CellState, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let assignments = assign::assignments(&state.desired, &state.placed, observed);
    for id in state.assignments.keys().filter(|id| !assignments.contains_key(*id)) {
        ops.push(Op::Delete { key: keys::assignment(id) });
    }
    for (id, assignment) in assignments {
        if let Some(next) = assign::with_generation(state.assignments.get(&id), assignment) {
            ops.push(put(keys::assignment(&id), &next));
        }
    }
    let previous = state.routes.iter().map(|(name, stored)| (name.clone(), stored.route.clone())).collect();
    let routes = assign::routes(&state.desired, &state.placed, observed, &previous);
    for name in state.routes.keys().filter(|name| !routes.contains_key(*name)) {
        ops.push(Op::Delete { key: keys::route(name) });
    }
    for (name, route) in routes {
        let Some(site) = state.desired.sites.get(&name) else { continue };
        if let Some(next) = assign::stored_route(state.routes.get(&name), route, site) {
            ops.push(put(keys::route(&name), &next));
        }
    }
    ops
}

fn step_events(plan: &Plan, now: Moment) -> Vec<Event> {
    plan.steps
        .iter()
        .map(|step| Event {
            at: now,
            subject: step.subject().to_string(),
            what: what(&step.action),
            reason: step.reason.clone(),
        })
        .collect()
}

/// The step in a few words, with the server that it concerns besides its subject.
fn what(action: &Action) -> String {
    let title = action.title();
    match action {
        Action::AddInstance { server, .. } | Action::AddHolder { server, .. } => {
            format!("{title} on {server}")
        }
        Action::SetWriter { server, .. } => format!("{title}: {server}"),
        Action::AddMember { server, .. }
        | Action::RemoveMember { server, .. }
        | Action::Bootstrap { server, .. } => {
            format!("{title}: {server}")
        }
        _ => title.to_owned(),
    }
}

/// An event when something becomes blocked, not each time it is found so again.
fn newly_blocked(plan: &Plan, known: &mut BTreeSet<String>, now: Moment) -> Vec<Event> {
    let found: BTreeSet<String> =
        plan.blocked.iter().map(|blocked| format!("{}: {}", blocked.subject, blocked.reason)).collect();
    let events = plan
        .blocked
        .iter()
        .filter(|blocked| !known.contains(&format!("{}: {}", blocked.subject, blocked.reason)))
        .map(|blocked| Event {
            at: now,
            subject: blocked.subject.to_string(),
            what: "blocked".to_owned(),
            reason: blocked.reason.clone(),
        })
        .collect();
    *known = found;
    events
}

/// Writes of the events, and the removal of the oldest beyond what is kept.
fn event_ops(active: &Active, state: &CellState, events: &[Event]) -> Vec<Op> {
    let mut ops = Vec::new();
    for event in events {
        info!(subject = event.subject, reason = event.reason, "{}", event.what);
        ops.push(active.event_op(event));
    }
    let surplus = (state.event_keys.len() + events.len()).saturating_sub(event::KEPT).min(events.len() * 2);
    ops.extend(state.event_keys.iter().take(surplus).map(|key| Op::Delete { key: key.clone() }));
    ops
}

/// Commits in pieces that the store takes. False on a conflict.
async fn write(active: &Active, state: &mut Arc<CellState>, ops: Vec<Op>) -> Result<bool, StoreError> {
    let mut rest = ops.as_slice();
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(piece_length(rest));
        rest = after;
        let mut compares: Vec<_> = piece.iter().map(|op| state.unchanged(key_of(op))).collect();
        compares.push(active.fence.clone());
        match active.store.commit(compares, piece.to_vec()).await? {
            Commit::Done { revision } => Arc::make_mut(state).wrote(piece, revision),
            Commit::Conflict => return Ok(false),
        }
    }
    Ok(true)
}

/// How many of these operations fit into one commit.
fn piece_length(ops: &[Op]) -> usize {
    let mut bytes = 0;
    let fitting = ops.iter().take(OPS_MAX).take_while(|op| {
        bytes += match op {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } | Op::DeletePrefix { .. } => 0,
        };
        bytes <= PIECE_BYTES
    });
    fitting.count().max(1)
}

fn key_of(op: &Op) -> &str {
    match op {
        Op::Put { key, .. } | Op::Delete { key } => key,
        Op::DeletePrefix { prefix } => prefix,
    }
}
