//! Which member of its pool serves a site's database. A site keeps its writer as long as that one serves; another
//! one gets a higher epoch, so that whoever still follows the old one can be refused. The one before stays
//! noted as long as it may still serve, so that it is asked to stop first. Members share the sites evenly:
//! `spread` evens out what a death or a new member has left uneven, `move_writer` does what a person asks.

use std::collections::BTreeMap;

use crate::desired::{Desired, Site, Standing};
use crate::id::{PoolName, ServerId, SiteName};
use crate::observed::{MemberState, Observed, SeenMember};
use crate::placement::{Chooser, Placed, Writer};
use crate::units::Moment;

use super::Draft;
use super::step::{Action, Former, Step};

/// A member that keeps dying is started again with pauses of up to 30 s; it gets no sites in between.
const SETTLED_MS: u64 = 30_000;
/// Each move holds its site up for some milliseconds and lets caches grow cold; there is no hurry.
const SPREAD_PAUSE_MS: u64 = 2_000;

pub(super) fn keep_writers(draft: &mut Draft) {
    let pools: Vec<PoolName> =
        draft.desired.pool_names().into_iter().filter(|pool| draft.state.placed.pool(pool).formed).collect();
    let synced_of: BTreeMap<&PoolName, _> =
        pools.iter().map(|pool| (pool, synced_members(draft, pool))).collect();
    let mut sites_of = writers_by_server(draft);
    let mut is_settled = true;
    for (name, site) in draft.sites {
        let Some(placement) = draft.state.placed.sites.get(name).filter(|_| site.database.is_some()) else {
            continue;
        };
        let writer = placement.writer.clone();
        let Some(synced) = synced_of.get(&site.pool) else { continue };
        let Some(reason) = reason_to_move(draft, &site.pool, writer.as_ref().map(|w| &w.server), synced)
        else {
            continue;
        };
        let Some(best) = best_other(draft, writer.as_ref(), synced, &sites_of) else { continue };
        // From one draining server to another nothing is won.
        let drains = writer.as_ref().is_some_and(|w| synced.contains_key(&w.server));
        if drains && synced[&best] != Standing::Up {
            continue;
        }
        if let Some(count) = writer.as_ref().and_then(|w| sites_of.get_mut(&w.server)) {
            *count -= 1;
        }
        *sites_of.entry(best.clone()).or_default() += 1;
        let action = set_writer(draft, site, best, Chooser::Planner);
        draft.act(action, reason);
        is_settled = false;
    }
    forget_formers(draft);
    if is_settled {
        pools.iter().for_each(|pool| spread(draft, pool, &sites_of));
    }
}

/// Why a person's wish for a site's writer cannot be fulfilled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoveError {
    #[error("site {site} has no database")]
    NoDatabase { site: SiteName },
    #[error("site {site} has no writer yet; wait until the pool is in service")]
    NoWriter { site: SiteName },
    #[error("{server} already writes for site {site}")]
    WritesAlready { site: SiteName, server: ServerId },
    #[error("{server} cannot write for site {site}: {why}; `kopek pool ls` lists the members")]
    Unfit { site: SiteName, server: ServerId, why: &'static str },
    #[error("there is no other member in service that site {site} could move to")]
    NobodyElse { site: SiteName },
}

/// The step that moves a site's writer because a person asked for it; without `to`, to the member that writes
/// for the fewest sites. Called by the API, which commits it.
pub fn move_writer(
    desired: &Desired,
    placed: &Placed,
    observed: &Observed,
    now: Moment,
    site: &SiteName,
    to: Option<&ServerId>,
) -> Result<Step, MoveError> {
    let draft = Draft::new(desired, placed, observed, now);
    let Some(known) = desired.sites.get(site).filter(|site| site.database.is_some()) else {
        return Err(MoveError::NoDatabase { site: site.clone() });
    };
    let writer = placed.sites.get(site).and_then(|placement| placement.writer.as_ref());
    let Some(writer) = writer else { return Err(MoveError::NoWriter { site: site.clone() }) };
    let mut synced = synced_members(&draft, &known.pool);
    synced.retain(|_, standing| *standing == Standing::Up);
    let server = match to {
        Some(to) if writer.server == *to => {
            return Err(MoveError::WritesAlready { site: site.clone(), server: to.clone() });
        }
        Some(to) if !placed.pool(&known.pool).members.contains(to) => {
            let why = "it carries no member of the site's pool";
            return Err(MoveError::Unfit { site: site.clone(), server: to.clone(), why });
        }
        Some(to) if !synced.contains_key(to) => {
            let why = "its pool member is not in service, or it drains";
            return Err(MoveError::Unfit { site: site.clone(), server: to.clone(), why });
        }
        Some(to) => to.clone(),
        None => best_other(&draft, Some(writer), &synced, &writers_by_server(&draft))
            .ok_or_else(|| MoveError::NobodyElse { site: site.clone() })?,
    };
    let action = set_writer(&draft, known, server, Chooser::Person);
    Ok(Step { action, reason: "asked for by an admin".to_owned() })
}

/// The member to take a site over: up before draining, then the one with the fewest sites.
fn best_other(
    draft: &Draft,
    writer: Option<&Writer>,
    synced: &BTreeMap<ServerId, Standing>,
    sites_of: &BTreeMap<ServerId, usize>,
) -> Option<ServerId> {
    let others = synced.iter().filter(|(server, _)| writer.is_none_or(|w| w.server != **server));
    let best = others.min_by_key(|(server, standing)| {
        let written = sites_of.get(*server).copied().unwrap_or(0);
        let joined = draft.state.servers.get(*server).map(|s| s.joined);
        (**standing != Standing::Up, written, joined, *server)
    });
    best.map(|(server, _)| server.clone())
}

fn set_writer(draft: &Draft, site: &Site, server: ServerId, chosen_by: Chooser) -> Action {
    let writer = draft.state.placed.sites.get(&site.name).and_then(|placement| placement.writer.as_ref());
    let former = match writer {
        Some(writer) if in_service(draft, &site.pool, &writer.server) => Former::Serves,
        _ => Former::Gone,
    };
    let epoch = writer.map_or(0, |writer| writer.epoch) + 1;
    Action::SetWriter { site: site.name.clone(), server, epoch, former, chosen_by }
}

/// One site from the member with the most to the one with the fewest, while every member is up and has been
/// in service for a while: whoever drains or died is handled first.
fn spread(draft: &mut Draft, pool: &PoolName, sites_of: &BTreeMap<ServerId, usize>) {
    let members = &draft.state.placed.pool(pool).members;
    let settled = members.iter().all(|member| {
        let seen = draft.member(pool, member);
        draft.state.standing(member) == Some(Standing::Up)
            && in_service(draft, pool, member)
            && seen.is_some_and(|seen| draft.now.millis_since(seen.since) >= SETTLED_MS)
    });
    let count = |member: &ServerId| sites_of.get(member).copied().unwrap_or(0);
    let most = members.iter().max_by_key(|member| count(member));
    let fewest = members.iter().min_by_key(|member| count(member));
    let (Some(most), Some(fewest)) = (most, fewest) else { return };
    let (from, to) = (count(most), count(fewest));
    if !settled || from < to + 2 {
        return;
    }
    let writers = || {
        let sites = draft.sites.values().filter(|site| site.pool == *pool);
        sites.filter_map(|site| Some((site, draft.state.placed.sites.get(&site.name)?.writer.as_ref()?)))
    };
    if writers().any(|(_, writer)| draft.now.millis_since(writer.since) < SPREAD_PAUSE_MS) {
        return;
    }
    let mut movable = writers().filter(|(_, w)| w.server == *most && w.chosen_by == Chooser::Planner);
    let Some((site, _)) = movable.next() else { return };
    let reason = format!("{most} writes for {from} sites and {fewest} for {to}");
    let action = set_writer(draft, site, fewest.clone(), Chooser::Planner);
    draft.act(action, reason);
}

/// A former writer that went out of service has nothing left to close; when it is back it knows the new one.
fn forget_formers(draft: &mut Draft) {
    for (name, site) in draft.sites {
        let placement = draft.state.placed.sites.get(name);
        let Some(former) = placement.and_then(|p| p.former.as_ref()).map(|former| former.server.clone())
        else {
            continue;
        };
        if !in_service(draft, &site.pool, &former) && is_known(draft, &site.pool, &former) {
            let reason = format!("the database on {former} does not serve any more");
            draft.act(Action::ForgetFormer { site: name.clone() }, reason);
        }
    }
}

/// Whether the server's member accepts writes, as far as anybody knows.
fn in_service(draft: &Draft, pool: &PoolName, server: &ServerId) -> bool {
    let serves = draft.state.servers.get(server).is_some_and(|s| s.is_serving());
    serves
        && draft.member(pool, server).is_some_and(|member| member.state == MemberState::Synced)
        && outvoted_by(draft, pool, server).is_none()
}

/// Nothing is said of a server that merely has not reported to this controller yet.
fn is_known(draft: &Draft, pool: &PoolName, server: &ServerId) -> bool {
    !draft.state.servers.get(server).is_some_and(|s| s.is_serving())
        || draft.report(server).is_some()
        || outvoted_by(draft, pool, server).is_some()
}

/// Whether members that are in service say that this one is not in their group, and nothing was heard of it
/// since. Their group goes on without it: it commits nothing, long before its server is declared dead.
fn outvoted_by<'d>(draft: &'d Draft, pool: &PoolName, server: &ServerId) -> Option<&'d ServerId> {
    let last_word = draft.observed.servers.get(server).map(|seen| seen.at);
    draft.state.placed.pool(pool).members.iter().find(|member| {
        let group = draft.member(pool, member).map(|seen| &seen.group);
        let excludes = group.is_some_and(|group| group.contains(*member) && !group.contains(server));
        let seen = draft.observed.servers.get(*member);
        excludes && seen.is_some_and(|seen| last_word.is_none_or(|last| last < seen.at))
    })
}

/// Members that can be writers, with their server's standing.
fn synced_members(draft: &Draft, pool: &PoolName) -> BTreeMap<ServerId, Standing> {
    let members = draft.state.placed.pool(pool).members.iter();
    members
        .filter_map(|member| {
            let server = draft.state.servers.get(member).filter(|s| s.is_serving())?;
            let seen = draft.member(pool, member)?;
            let serves = seen.state == MemberState::Synced && outvoted_by(draft, pool, member).is_none();
            serves.then(|| (member.clone(), server.standing))
        })
        .collect()
}

fn writers_by_server(draft: &Draft) -> BTreeMap<ServerId, usize> {
    let mut sites_of = BTreeMap::new();
    for name in draft.sites.keys() {
        let writer = draft.state.placed.sites.get(name).and_then(|placement| placement.writer.as_ref());
        if let Some(writer) = writer {
            *sites_of.entry(writer.server.clone()).or_default() += 1;
        }
    }
    sites_of
}

/// `None` for a writer that serves, and for one of which nothing is known yet.
fn reason_to_move(
    draft: &Draft,
    pool: &PoolName,
    writer: Option<&ServerId>,
    synced: &BTreeMap<ServerId, Standing>,
) -> Option<String> {
    let Some(writer) = writer else { return Some("its first".to_owned()) };
    let outvoted = outvoted_by(draft, pool, writer);
    match (draft.state.standing(writer), synced.get(writer)) {
        (_, Some(Standing::Up)) => None,
        (_, Some(_)) => Some(format!("{writer} drains")),
        (None, _) => Some(format!("{writer} was removed from the cell")),
        (Some(Standing::Dead), _) => Some(format!("{writer} is dead")),
        (Some(Standing::Returning), _) => Some(format!("{writer} catches up")),
        _ if !draft.state.placed.pool(pool).members.contains(writer) => {
            Some(format!("{writer} is no member of {pool}"))
        }
        _ if outvoted.is_some() => {
            outvoted.map(|member| format!("the database on {writer} is out of the group of {member}"))
        }
        _ => match draft.report(writer).map(|_| draft.member(pool, writer))? {
            Some(SeenMember { state: MemberState::Unready { why }, .. }) => {
                Some(format!("the database on {writer} is not ready: {why}"))
            }
            _ => Some(format!("the database on {writer} does not run")),
        },
    }
}
