//! Which pool member serves a site's database. A site keeps its writer as long as that one serves; another
//! one gets a higher epoch, so that whoever still follows the old one can be refused. The one before stays
//! noted as long as it may still serve, so that it is asked to stop first.

use std::collections::BTreeMap;

use crate::desired::Standing;
use crate::id::ServerId;
use crate::observed::{MemberState, SeenMember};

use super::Draft;
use super::step::{Action, Former};

pub(super) fn keep_writers(draft: &mut Draft) {
    if !draft.state.placed.pool.formed {
        return;
    }
    let synced = synced_members(draft);
    let mut sites_of = writers_by_server(draft);
    for (name, site) in draft.sites {
        let Some(placement) = draft.state.placed.sites.get(name).filter(|_| site.database.is_some()) else {
            continue;
        };
        let writer = placement.writer.clone();
        let Some(reason) = reason_to_move(draft, writer.as_ref().map(|w| &w.server), &synced) else {
            continue;
        };
        let best = synced
            .iter()
            .filter(|(server, _)| writer.as_ref().is_none_or(|w| w.server != **server))
            .min_by_key(|(server, standing)| {
                let written = sites_of.get(*server).copied().unwrap_or(0);
                let joined = draft.state.servers.get(*server).map(|s| s.joined);
                (**standing != Standing::Up, written, joined, *server)
            });
        let Some((best, standing)) = best else { continue };
        // From one draining server to another nothing is won.
        let drains = writer.as_ref().is_some_and(|w| synced.contains_key(&w.server));
        if drains && *standing != Standing::Up {
            continue;
        }
        if let Some(count) = writer.as_ref().and_then(|w| sites_of.get_mut(&w.server)) {
            *count -= 1;
        }
        *sites_of.entry(best.clone()).or_default() += 1;
        let former = match &writer {
            Some(writer) if in_service(draft, &writer.server) => Former::Serves,
            _ => Former::Gone,
        };
        let epoch = writer.map_or(0, |w| w.epoch) + 1;
        draft.act(Action::SetWriter { site: name.clone(), server: best.clone(), epoch, former }, reason);
    }
    forget_formers(draft);
}

/// A former writer that went out of service has nothing left to close; when it is back it knows the new one.
fn forget_formers(draft: &mut Draft) {
    for name in draft.sites.keys() {
        let placement = draft.state.placed.sites.get(name);
        let Some(former) = placement.and_then(|p| p.former.as_ref()).map(|former| former.server.clone())
        else {
            continue;
        };
        if !in_service(draft, &former) && is_known(draft, &former) {
            let reason = format!("the database on {former} does not serve any more");
            draft.act(Action::ForgetFormer { site: name.clone() }, reason);
        }
    }
}

/// Whether the server's member accepts writes, as far as anybody knows.
fn in_service(draft: &Draft, server: &ServerId) -> bool {
    let serves = draft.state.servers.get(server).is_some_and(|s| s.is_serving());
    let member = draft.report(server).and_then(|report| report.member.as_ref());
    serves
        && member.is_some_and(|member| member.state == MemberState::Synced)
        && outvoted_by(draft, server).is_none()
}

/// Nothing is said of a server that merely has not reported to this controller yet.
fn is_known(draft: &Draft, server: &ServerId) -> bool {
    !draft.state.servers.get(server).is_some_and(|s| s.is_serving())
        || draft.report(server).is_some()
        || outvoted_by(draft, server).is_some()
}

/// Whether members that are in service say that this one is not in their group, and nothing was heard of it
/// since. Their group goes on without it: it commits nothing, long before its server is declared dead.
fn outvoted_by<'d>(draft: &'d Draft, server: &ServerId) -> Option<&'d ServerId> {
    let last_word = draft.observed.servers.get(server).map(|seen| seen.at);
    draft.state.placed.pool.members.iter().find(|member| {
        let group = draft.report(member).and_then(|r| r.member.as_ref()).map(|seen| &seen.group);
        let excludes = group.is_some_and(|group| group.contains(*member) && !group.contains(server));
        let seen = draft.observed.servers.get(*member);
        excludes && seen.is_some_and(|seen| last_word.is_none_or(|last| last < seen.at))
    })
}

/// Members that can be writers, with their server's standing.
fn synced_members(draft: &Draft) -> BTreeMap<ServerId, Standing> {
    let members = draft.state.placed.pool.members.iter();
    members
        .filter_map(|member| {
            let server = draft.state.servers.get(member).filter(|s| s.is_serving())?;
            let seen = draft.report(member)?.member.as_ref()?;
            let serves = seen.state == MemberState::Synced && outvoted_by(draft, member).is_none();
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
    writer: Option<&ServerId>,
    synced: &BTreeMap<ServerId, Standing>,
) -> Option<String> {
    let Some(writer) = writer else { return Some("its first".to_owned()) };
    let outvoted = outvoted_by(draft, writer);
    match (draft.state.standing(writer), synced.get(writer)) {
        (_, Some(Standing::Up)) => None,
        (_, Some(_)) => Some(format!("{writer} drains")),
        (None, _) => Some(format!("{writer} was removed from the cell")),
        (Some(Standing::Dead), _) => Some(format!("{writer} is dead")),
        (Some(Standing::Returning), _) => Some(format!("{writer} catches up")),
        _ if !draft.state.placed.pool.members.contains(writer) => Some(format!("{writer} is no pool member")),
        _ if outvoted.is_some() => {
            outvoted.map(|member| format!("the database on {writer} is out of the group of {member}"))
        }
        _ => match draft.report(writer)?.member.as_ref() {
            Some(SeenMember { state: MemberState::Unready { why }, .. }) => {
                Some(format!("the database on {writer} is not ready: {why}"))
            }
            _ => Some(format!("the database on {writer} does not run")),
        },
    }
}
