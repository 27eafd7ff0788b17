//! Who is a member of the pool, and who may start its group: at the very first start, and after every member
//! stopped. One group is ever started at a time, and after a total loss only by the provably newest member.
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

use crate::desired::{Server, Standing};
use crate::id::ServerId;
use crate::observed::{MemberState, Position, SeenMember};

use super::Draft;
use super::step::{Action, Subject};

/// Galera members that lost sight of one another form their group again within evs.suspect_timeout (5 s by
/// default) of seeing each other, or never.
const REGROUP_MS: u64 = 8_000;

pub(super) fn keep_pool(draft: &mut Draft) {
    add_members(draft);
    start(draft);
    shrink(draft);
}

fn start(draft: &mut Draft) {
    // A turn that ends in this plan is committed and written before another one begins.
    let is_nobodys_turn = draft.state.placed.pool.bootstrap.is_none();
    end_bootstrap(draft);
    let in_service = synced(draft).into_iter().next();
    match in_service {
        Some(member) => {
            let reason = format!("{member} is synced");
            draft.act(Action::PoolFormed, reason.clone());
            draft.act(Action::PoolServes, reason);
        }
        None if draft.state.placed.pool.formed => {
            if !draft.is_just_started() {
                draft.act(Action::PoolStopped, "no member is synced");
            }
            if is_nobodys_turn {
                start_again(draft);
            }
        }
        None if is_nobodys_turn => start_first(draft),
        None => {}
    }
}

/// A member whose server drains leaves when another took its place; one whose server was removed leaves at
/// once. One at a time, and never the last one in service.
fn shrink(draft: &mut Draft) {
    let members = &draft.state.placed.pool.members;
    let standing = |member: &ServerId| draft.state.standing(member);
    let last_joined = |m: &&ServerId| (draft.state.servers.get(*m).map(|s| s.joined), (*m).clone());
    let removed = members.iter().find(|m| standing(m).is_none());
    let surplus = members.len() > size(draft);
    let drains = members.iter().find(|m| surplus && standing(m) == Some(Standing::Draining));
    let late =
        members.iter().filter(|m| surplus && standing(m) == Some(Standing::Up)).max_by_key(last_joined);
    let Some(leaver) = removed.or(drains).or(late).cloned() else { return };
    let reason = match standing(&leaver) {
        None => format!("{leaver} was removed from the cell"),
        Some(Standing::Draining) => format!("{leaver} drains"),
        Some(_) => format!("{} members are enough", size(draft)),
    };
    let synced = synced(draft);
    let others = synced.iter().filter(|m| **m != leaver).count();
    // It stops in good order, so those that stay need not outvote it; but somebody must stay. A server that
    // people removed is given up for good: with nobody in service there is no quorum that it could cost.
    let given_up = standing(&leaver).is_none() && synced.is_empty();
    if others == 0 && !given_up {
        return draft.block(Subject::Pool, format!("{leaver} cannot leave: no other member is in service"));
    }
    // `writers` decides after this: a writer is moved and committed in an earlier plan than its member goes.
    let mut databases = draft.sites.values().filter(|site| site.database.is_some());
    let writes = databases.any(|site| {
        let placement = draft.state.placed.sites.get(&site.name);
        placement.and_then(|p| p.writer.as_ref()).is_some_and(|writer| writer.server == leaver)
    });
    if !writes || given_up {
        draft.act(Action::RemoveMember { server: leaver }, reason);
    }
}

/// Members that the cell can have: an odd number, so that half is never a tie.
fn size(draft: &Draft) -> usize {
    match (draft.desired.cell.pool_size, draft.state.servers.len()) {
        (5.., 5..) => 5,
        (3.., 3..) => 3,
        (_, 0) => 0,
        _ => 1,
    }
}

/// First servers first, over the racks. A dead server keeps its membership: it may return, and its data are
/// part of the proof of who is the newest.
fn add_members(draft: &mut Draft) {
    let size = size(draft);
    if draft.state.placed.pool.formed && synced(draft).is_empty() {
        return; // nobody could give it a copy
    }
    loop {
        let members = &draft.state.placed.pool.members;
        let staying: Vec<&Server> = members
            .iter()
            .filter_map(|member| draft.state.servers.get(member))
            .filter(|server| server.standing != Standing::Draining)
            .collect();
        if staying.len() >= size {
            return;
        }
        let spare = draft.state.servers.values().filter(|server| {
            server.is_up() && !members.contains(&server.name) && draft.report(&server.name).is_some()
        });
        let next = spare.min_by_key(|server| {
            let same_rack = staying.iter().filter(|s| s.rack == server.rack).count();
            (same_rack, server.joined, &server.name)
        });
        let Some(next) = next.map(|server| server.name.clone()) else { return };
        let reason = format!("the pool has {} of {size} members", staying.len());
        draft.act(Action::AddMember { server: next }, reason);
    }
}

/// The choice stands until the group is there; at the first start `PoolFormed` ends it, for a controller that
/// knew of neither would start another group. One that died may have started it unseen. At the first start
/// its turn waits for it: then there is one group, whoever saw it. Later its turn ends, and when it is back
/// all positions are compared again: its disk may have been replaced.
fn end_bootstrap(draft: &mut Draft) {
    let Some(chosen) = draft.state.placed.pool.bootstrap.clone() else { return };
    let reason = match (synced(draft).into_iter().next(), draft.state.standing(&chosen)) {
        (Some(_), Some(_)) if !draft.state.placed.pool.formed => return,
        (Some(member), _) => format!("{member} is synced"),
        (None, None) => format!("{chosen} was removed from the cell"),
        (None, Some(Standing::Dead)) if draft.state.placed.pool.formed => format!("{chosen} is dead"),
        (None, Some(Standing::Dead)) => {
            let why = format!(
                "{chosen} died while it started the pool for the first time: power it on, or give it up with \
                 `kopek server remove`"
            );
            return draft.block(Subject::Pool, why);
        }
        (None, Some(_)) => return,
    };
    draft.act(Action::EndBootstrap { server: chosen }, reason);
}

/// Nothing was ever written, so any member will do; the first that joined, for want of a better rule. One
/// that has data, from a start that nobody saw succeed, goes before those that have none.
fn start_first(draft: &mut Draft) {
    let members = draft.state.placed.pool.members.iter();
    let alive = members.filter(|member| draft.report(member).is_some());
    let chosen = alive
        .filter_map(|member| draft.state.servers.get(member))
        .filter(|s| s.is_serving())
        .min_by_key(|server| {
            let position = seen(draft, &server.name).and_then(|m| m.position.as_ref());
            let seqno = position.map_or(-1, |position| position.seqno);
            (std::cmp::Reverse(seqno.max(-1)), server.joined, server.name.clone())
        });
    if let Some(server) = chosen.map(|server| server.name.clone()) {
        draft.act(Action::Bootstrap { server }, "the pool starts for the first time");
    }
}

/// After every member stopped: the one with the highest position, and only when all have told theirs.
fn start_again(draft: &mut Draft) {
    match newest(draft) {
        Ok((server, reason)) => draft.act(Action::Bootstrap { server }, reason),
        Err(Wait::Moment) => {}
        Err(Wait::People(why)) if !draft.is_just_started() => draft.block(Subject::Pool, why),
        Err(Wait::People(_)) => {}
    }
}

enum Wait {
    /// Something is under way that ends by itself.
    Moment,
    /// Somebody has to do something.
    People(String),
}

fn newest(draft: &Draft) -> Result<(ServerId, String), Wait> {
    let members = &draft.state.placed.pool.members;
    let missing: Vec<&str> =
        members.iter().filter(|m| seen(draft, m).is_none()).map(ServerId::as_str).collect();
    if !missing.is_empty() {
        return Err(Wait::People(format!(
            "no member is in service, and {} cannot tell how new its data are: power it on, or give it up \
             with `kopek server remove`",
            missing.join(", ")
        )));
    }
    // One that reads its position says that it starts; one that is stopped and has none could not read it.
    let is_unreadable = |m: &&ServerId| {
        seen(draft, m).is_some_and(|m| m.state == MemberState::Stopped && m.position.is_none())
    };
    let unreadable: Vec<&str> = members.iter().filter(is_unreadable).map(ServerId::as_str).collect();
    if !unreadable.is_empty() {
        return Err(Wait::People(format!(
            "no member is in service, and the data of {} cannot be read (the agent's log there says why): mend \
             them, or give the server up with `kopek server remove`",
            unreadable.join(", ")
        )));
    }
    let state = |member: &ServerId| seen(draft, member).map(|m| &m.state);
    let unready = members.iter().filter(|m| matches!(state(m), Some(MemberState::Unready { .. }))).count();
    let starting = members.iter().any(|m| state(m) == Some(&MemberState::Starting));
    // One that is unready may be giving a starting one its copy.
    if unready > 0 && starting {
        return Err(Wait::Moment);
    }
    // Running members that are a majority may find one another again; not if other ones, that stopped, were
    // with them when they last were in service.
    let stopped_for = draft.state.placed.pool.stopped.map_or(0, |since| draft.now.millis_since(since));
    if unready * 2 > members.len() && stopped_for < REGROUP_MS {
        return Err(Wait::Moment);
    }
    let positions: Vec<(&ServerId, &Position)> =
        members.iter().filter_map(|member| Some((member, seen(draft, member)?.position.as_ref()?))).collect();
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

fn synced(draft: &Draft) -> BTreeSet<ServerId> {
    let members = draft.state.placed.pool.members.iter();
    members.filter(|m| seen(draft, m).is_some_and(|m| m.state == MemberState::Synced)).cloned().collect()
}

fn seen<'a>(draft: &Draft<'a>, member: &ServerId) -> Option<&'a SeenMember> {
    draft.report(member)?.member.as_ref()
}
