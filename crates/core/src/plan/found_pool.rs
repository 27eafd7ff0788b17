//! What people ask of pools: which servers a new one begins on, and which pool a new site's database goes to.
//! Called by the API, which commits the answer; the planner does the rest.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::desired::{Desired, Server, Standing};
use crate::id::{PoolName, ServerId};
use crate::observed::{MemberState, Observed};
use crate::placement::Placed;
use crate::units::{Bytes, Moment};

use super::Draft;
use super::pool::{best_place, owner};

/// Members of a pool for which no number is asked for; one where fewer servers are free.
const USUAL_SIZE: usize = 3;
/// A member with less free disk stops before long, and a new site brings its data.
const ROOM: Bytes = Bytes::mib(1_024);

/// Why a pool cannot begin so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FoundError {
    #[error("there is a pool {pool} already; `kopek pool ls` lists them")]
    NameTaken { pool: PoolName },
    #[error("a pool has 1, 3 or 5 members, not {count}: half of an even number is no majority")]
    BadSize { count: usize },
    #[error("there is no server {server}; `kopek server ls` lists them")]
    Unknown { server: ServerId },
    #[error("server {server} carries a member of {pool}, and a server carries one at most")]
    Taken { server: ServerId, pool: PoolName },
    #[error("server {server} cannot carry a new member: {why}")]
    Unfit { server: ServerId, why: &'static str },
    #[error(
        "no server is free for pool {pool}: each carries a member of another one or is not up; let another server join (`kopek server token`)"
    )]
    NobodyFree { pool: PoolName },
}

/// The servers that a new pool begins on: those that are `named`, or else three that carry no member, over the
/// racks; one where fewer are free.
pub fn found_pool(
    desired: &Desired,
    placed: &Placed,
    observed: &Observed,
    now: Moment,
    pool: &PoolName,
    named: &BTreeSet<ServerId>,
) -> Result<BTreeSet<ServerId>, FoundError> {
    let draft = Draft::new(desired, placed, observed, now);
    if desired.pool_names().contains(pool) {
        return Err(FoundError::NameTaken { pool: pool.clone() });
    }
    if !named.is_empty() {
        if !matches!(named.len(), 1 | 3 | 5) {
            return Err(FoundError::BadSize { count: named.len() });
        }
        named.iter().try_for_each(|server| may_carry(&draft, server))?;
        return Ok(named.clone());
    }
    let free = || desired.servers.values().filter(|server| may_carry(&draft, &server.name).is_ok());
    let size = if free().count() >= USUAL_SIZE { USUAL_SIZE } else { 1 };
    let mut chosen: Vec<&Server> = Vec::new();
    while chosen.len() < size {
        let spare = free().filter(|server| !chosen.iter().any(|it| it.name == server.name));
        let next = best_place(&chosen, spare);
        chosen.push(next.ok_or_else(|| FoundError::NobodyFree { pool: pool.clone() })?);
    }
    Ok(chosen.into_iter().map(|server| server.name.clone()).collect())
}

fn may_carry(draft: &Draft, server: &ServerId) -> Result<(), FoundError> {
    let Some(standing) = draft.state.standing(server) else {
        return Err(FoundError::Unknown { server: server.clone() });
    };
    if let Some(pool) = owner(draft, server) {
        return Err(FoundError::Taken { server: server.clone(), pool: pool.clone() });
    }
    let why = match standing {
        Standing::Draining => "it drains",
        Standing::Dead => "it is dead",
        Standing::Returning => "it is catching up",
        Standing::Up if draft.report(server).is_none() => "it does not report",
        Standing::Up => return Ok(()),
    };
    Err(FoundError::Unfit { server: server.clone(), why })
}

/// Where a new site's database goes, and why there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolChoice {
    pub pool: PoolName,
    pub reason: String,
}

/// The pool with the fewest sites among those that are in service and have room. Where none is, one that may be
/// later: a site may be made before its pool serves.
pub fn pool_for_site(desired: &Desired, placed: &Placed, observed: &Observed, now: Moment) -> PoolChoice {
    let draft = Draft::new(desired, placed, observed, now);
    let pools = desired.pool_names();
    let sites_of = |pool: &PoolName| {
        desired.sites.values().filter(|site| site.database.is_some() && site.pool == *pool).count()
    };
    let fitness = |pool: &PoolName| (is_in_service(&draft, pool), has_room(&draft, pool));
    let best = pools.iter().min_by_key(|pool| (Reverse(fitness(pool)), sites_of(pool), (*pool).clone()));
    let pool = best.cloned().unwrap_or_else(PoolName::first);
    let reason = match fitness(&pool) {
        _ if pools.len() == 1 => "it is the only one".to_owned(),
        (false, _) => "no pool is in service now".to_owned(),
        (true, false) => "no pool in service has a member with room on its disk to spare".to_owned(),
        (true, true) => format!("it has {} sites, and no pool in service has fewer", sites_of(&pool)),
    };
    PoolChoice { pool, reason }
}

/// Whether most of its members serve: then one more may die.
fn is_in_service(draft: &Draft, pool: &PoolName) -> bool {
    let members = &draft.state.placed.pool(pool).members;
    let serves = |m: &&ServerId| {
        draft.state.servers.get(*m).is_some_and(Server::is_serving)
            && draft.member(pool, m).is_some_and(|seen| seen.state == MemberState::Synced)
    };
    members.iter().filter(serves).count() * 2 > members.len()
}

fn has_room(draft: &Draft, pool: &PoolName) -> bool {
    let members = &draft.state.placed.pool(pool).members;
    members.iter().filter_map(|member| draft.report(member)).all(|report| report.disk_free >= ROOM)
}
