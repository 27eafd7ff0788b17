//! Who is a member of each pool, and who may start its group: at the very first start, and after every member
//! stopped. One group of a pool is ever started at a time, and after a total loss only by the provably newest
//! member. A server is a member of one pool at most. Pools decide one after the other, each for itself.
//!
//! ```text
//!             choose one            it is synced
//!   unformed ────────────► starting ────────────► in service ◄───────────────────────────┐
//!                            ▲                        │ no member is synced              │ it is synced
//!       every member told    │                        ▼                                  │
//!       its position,        └──────────────────── stopped                           starting
//!       the newest starts                             └─────────────────────────────────►┘
//! ```

use std::collections::BTreeSet;

use crate::desired::{Pool, Server, Standing};
use crate::id::{PoolName, ServerId};
use crate::observed::{MemberState, Position};

use super::Draft;
use super::step::{Action, Subject};

/// Galera members that lost sight of one another form their group again within evs.suspect_timeout (5 s by
/// default) of seeing each other, or never.
const REGROUP_MS: u64 = 8_000;

pub(super) fn keep_pools(draft: &mut Draft) {
    for pool in draft.desired.pool_names() {
        add_members(draft, &pool);
        start(draft, &pool);
        shrink(draft, &pool);
    }
}

fn start(draft: &mut Draft, pool: &PoolName) {
    // A turn that ends in this plan is committed and written before another one begins.
    let is_nobodys_turn = draft.state.placed.pool(pool).bootstrap.is_none();
    end_bootstrap(draft, pool);
    let in_service = synced(draft, pool).into_iter().next();
    match in_service {
        Some(member) => {
            let reason = format!("{member} is synced");
            draft.act(Action::PoolFormed { pool: pool.clone() }, reason.clone());
            draft.act(Action::PoolServes { pool: pool.clone() }, reason);
        }
        None if draft.state.placed.pool(pool).formed => {
            if !draft.is_just_started() {
                draft.act(Action::PoolStopped { pool: pool.clone() }, "no member is synced");
            }
            if is_nobodys_turn {
                start_again(draft, pool);
            }
        }
        None if is_nobodys_turn => start_first(draft, pool),
        None => {}
    }
}

/// A member whose server drains leaves when another took its place; one whose server was removed leaves at
/// once. One at a time, and never the last one in service.
fn shrink(draft: &mut Draft, pool: &PoolName) {
    let members = &draft.state.placed.pool(pool).members;
    let standing = |member: &ServerId| draft.state.standing(member);
    let last_joined = |m: &&ServerId| (draft.state.servers.get(*m).map(|s| s.joined), (*m).clone());
    let removed = members.iter().find(|m| standing(m).is_none());
    let surplus = members.len() > size(draft, pool);
    let drains = members.iter().find(|m| surplus && standing(m) == Some(Standing::Draining));
    let late =
        members.iter().filter(|m| surplus && standing(m) == Some(Standing::Up)).max_by_key(last_joined);
    let Some(leaver) = removed.or(drains).or(late).cloned() else { return };
    let reason = match standing(&leaver) {
        None => format!("{leaver} was removed from the cell"),
        Some(Standing::Draining) => format!("{leaver} drains"),
        Some(_) => format!("{} members are enough", size(draft, pool)),
    };
    let synced = synced(draft, pool);
    let others = synced.iter().filter(|m| **m != leaver).count();
    // It stops in good order, so those that stay need not outvote it; but somebody must stay. A server that
    // people removed is given up for good: with nobody in service there is no quorum that it could cost.
    let given_up = standing(&leaver).is_none() && synced.is_empty();
    if others == 0 && !given_up {
        return draft.block(
            Subject::Pool(pool.clone()),
            format!("{leaver} cannot leave: no other member is in service"),
        );
    }
    // `writers` decides after this: a writer is moved and committed in an earlier plan than its member goes.
    let mut databases = draft.sites.values().filter(|site| site.database.is_some() && site.pool == *pool);
    let writes = databases.any(|site| {
        let placement = draft.state.placed.sites.get(&site.name);
        placement.and_then(|p| p.writer.as_ref()).is_some_and(|writer| writer.server == leaver)
    });
    if !writes || given_up {
        draft.act(Action::RemoveMember { pool: pool.clone(), server: leaver }, reason);
    }
}

/// Members that the pool can have: an odd number, so that half is never a tie.
fn size(draft: &Draft, pool: &PoolName) -> usize {
    let wanted = draft.desired.pools.get(pool).map_or(draft.desired.cell.pool_size, |pool| pool.size);
    let servers = draft.state.servers.keys().filter(|server| !is_anothers(draft, pool, server)).count();
    match (wanted, servers) {
        (5.., 5..) => 5,
        (3.., 3..) => 3,
        (_, 0) => 0,
        _ => 1,
    }
}

/// Whether the server carries a member of another pool, or is to be one of its first.
fn is_anothers(draft: &Draft, pool: &PoolName, server: &ServerId) -> bool {
    owner(draft, server).is_some_and(|owner| owner != pool)
}

/// The pool that has a member on this server, or is about to have its first ones there.
pub(super) fn owner<'d>(draft: &'d Draft, server: &ServerId) -> Option<&'d PoolName> {
    let placed = &draft.state.placed;
    let begins = |pool: &&Pool| pool.servers.contains(server) && !placed.pool(&pool.name).formed;
    placed.pool_on(server).or_else(|| draft.desired.pools.values().find(begins).map(|pool| &pool.name))
}

/// First servers first, over the racks. A dead server keeps its membership: it may return, and its data are
/// part of the proof of who is the newest.
fn add_members(draft: &mut Draft, pool: &PoolName) {
    let size = size(draft, pool);
    let formed = draft.state.placed.pool(pool).formed;
    if formed && synced(draft, pool).is_empty() {
        return; // nobody could give it a copy
    }
    loop {
        let members = &draft.state.placed.pool(pool).members;
        let staying: Vec<&Server> = members
            .iter()
            .filter_map(|member| draft.state.servers.get(member))
            .filter(|server| server.standing != Standing::Draining)
            .collect();
        if staying.len() >= size {
            return;
        }
        let absent =
            |server: &&Server| !members.contains(&server.name) && !is_anothers(draft, pool, &server.name);
        let awaited: BTreeSet<&ServerId> = match draft.desired.pools.get(pool) {
            Some(made) if !formed => {
                let there = draft.state.servers.values().filter(absent);
                let stays = there.filter(|server| server.standing != Standing::Draining);
                stays.map(|server| &server.name).filter(|name| made.servers.contains(*name)).collect()
            }
            _ => BTreeSet::new(),
        };
        let spare = draft.state.servers.values().filter(absent).filter(|server| {
            let is_its = awaited.is_empty() || awaited.contains(&server.name);
            is_its && server.is_up() && draft.report(&server.name).is_some()
        });
        let Some(next) = best_place(&staying, spare).map(|server| server.name.clone()) else { return };
        let reason = format!("the pool has {} of {size} members", staying.len());
        draft.act(Action::AddMember { pool: pool.clone(), server: next }, reason);
    }
}

/// Over the racks, the first that joined first.
pub(super) fn best_place<'s>(
    members: &[&Server],
    spare: impl Iterator<Item = &'s Server>,
) -> Option<&'s Server> {
    spare.min_by_key(|server| {
        let same_rack = members.iter().filter(|member| member.rack == server.rack).count();
        (same_rack, server.joined, &server.name)
    })
}

/// The choice stands until the group is there; at the first start `PoolFormed` ends it, for a controller that
/// knew of neither would start another group. One that died may have started it unseen. At the first start
/// its turn waits for it: then there is one group, whoever saw it. Later its turn ends, and when it is back
/// all positions are compared again: its disk may have been replaced.
fn end_bootstrap(draft: &mut Draft, pool: &PoolName) {
    let Some(chosen) = draft.state.placed.pool(pool).bootstrap.clone() else { return };
    let reason = match (synced(draft, pool).into_iter().next(), draft.state.standing(&chosen)) {
        (Some(_), Some(_)) if !draft.state.placed.pool(pool).formed => return,
        (Some(member), _) => format!("{member} is synced"),
        (None, None) => format!("{chosen} was removed from the cell"),
        (None, Some(Standing::Dead)) if draft.state.placed.pool(pool).formed => format!("{chosen} is dead"),
        (None, Some(Standing::Dead)) => {
            let why = format!(
                "{chosen} died while it started the pool for the first time: power it on, or give it up with \
                 `kopek server remove`"
            );
            return draft.block(Subject::Pool(pool.clone()), why);
        }
        (None, Some(_)) => return,
    };
    draft.act(Action::EndBootstrap { pool: pool.clone(), server: chosen }, reason);
}

/// Nothing was ever written, so any member will do; the first that joined, for want of a better rule. One
/// that has data, from a start that nobody saw succeed, goes before those that have none.
fn start_first(draft: &mut Draft, pool: &PoolName) {
    let members = draft.state.placed.pool(pool).members.iter();
    let alive = members.filter(|member| draft.report(member).is_some());
    let chosen = alive
        .filter_map(|member| draft.state.servers.get(member))
        .filter(|s| s.is_serving())
        .min_by_key(|server| {
            let position = draft.member(pool, &server.name).and_then(|m| m.position.as_ref());
            let seqno = position.map_or(-1, |position| position.seqno);
            (std::cmp::Reverse(seqno.max(-1)), server.joined, server.name.clone())
        });
    if let Some(server) = chosen.map(|server| server.name.clone()) {
        draft.act(Action::Bootstrap { pool: pool.clone(), server }, "the pool starts for the first time");
    }
}

/// After every member stopped: the one with the highest position, and only when all have told theirs.
fn start_again(draft: &mut Draft, pool: &PoolName) {
    match newest(draft, pool) {
        Ok((server, reason)) => draft.act(Action::Bootstrap { pool: pool.clone(), server }, reason),
        Err(Wait::Moment) => {}
        Err(Wait::People(why)) if !draft.is_just_started() => draft.block(Subject::Pool(pool.clone()), why),
        Err(Wait::People(_)) => {}
    }
}

enum Wait {
    /// Something is under way that ends by itself.
    Moment,
    /// Somebody has to do something.
    People(String),
}

fn newest(draft: &Draft, pool: &PoolName) -> Result<(ServerId, String), Wait> {
    let members = &draft.state.placed.pool(pool).members;
    let missing: Vec<&str> =
        members.iter().filter(|m| draft.member(pool, m).is_none()).map(ServerId::as_str).collect();
    if !missing.is_empty() {
        return Err(Wait::People(format!(
            "no member is in service, and {} cannot tell how new its data are: power it on, or give it up \
             with `kopek server remove`",
            missing.join(", ")
        )));
    }
    // One that reads its position says that it starts; one that is stopped and has none could not read it.
    let is_unreadable = |m: &&ServerId| {
        draft.member(pool, m).is_some_and(|m| m.state == MemberState::Stopped && m.position.is_none())
    };
    let unreadable: Vec<&str> = members.iter().filter(is_unreadable).map(ServerId::as_str).collect();
    if !unreadable.is_empty() {
        return Err(Wait::People(format!(
            "no member is in service, and the data of {} cannot be read (the agent's log there says why): mend \
             them, or give the server up with `kopek server remove`",
            unreadable.join(", ")
        )));
    }
    let state = |member: &ServerId| draft.member(pool, member).map(|m| &m.state);
    let unready = members.iter().filter(|m| matches!(state(m), Some(MemberState::Unready { .. }))).count();
    let starting = members.iter().any(|m| state(m) == Some(&MemberState::Starting));
    // One that is unready may be giving a starting one its copy.
    if unready > 0 && starting {
        return Err(Wait::Moment);
    }
    // Running members that are a majority may find one another again; not if other ones, that stopped, were
    // with them when they last were in service.
    let stopped_for = draft.state.placed.pool(pool).stopped.map_or(0, |since| draft.now.millis_since(since));
    if unready * 2 > members.len() && stopped_for < REGROUP_MS {
        return Err(Wait::Moment);
    }
    let positions: Vec<(&ServerId, &Position)> = members
        .iter()
        .filter_map(|member| Some((member, draft.member(pool, member)?.position.as_ref()?)))
        .collect();
    if positions.len() < members.len() {
        return Err(Wait::Moment); // being read from disk
    }
    // -1: nothing there, a member that never got a copy. It proves nothing and can start nothing.
    let full: Vec<&(&ServerId, &Position)> = positions.iter().filter(|(_, p)| p.seqno >= 0).collect();
    let groups: BTreeSet<&str> = full.iter().map(|(_, position)| position.group.as_str()).collect();
    if groups.len() > 1 {
        let each: Vec<String> = full.iter().map(|(m, p)| format!("{m} is of {}", p.group)).collect();
        return Err(Wait::People(format!(
            "members hold data of different groups ({}): decide which is right, and remove the other servers \
             with `kopek server remove`",
            each.join(", ")
        )));
    }
    let best = full.iter().min_by_key(|(member, position)| (std::cmp::Reverse(position.seqno), *member));
    let Some((member, position)) = best else {
        return Err(Wait::People("no member has any data: restore a backup".to_owned()));
    };
    let reason = format!("newest of {} members, at {}", members.len(), position.seqno);
    Ok(((*member).clone(), reason))
}

fn synced(draft: &Draft, pool: &PoolName) -> BTreeSet<ServerId> {
    let members = draft.state.placed.pool(pool).members.iter();
    let is_synced =
        |m: &&ServerId| draft.member(pool, m).is_some_and(|seen| seen.state == MemberState::Synced);
    members.filter(is_synced).cloned().collect()
}
