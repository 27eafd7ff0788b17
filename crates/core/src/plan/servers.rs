//! Which servers count. The diagram is at `Standing`.

use crate::desired::{Site, Standing};
use crate::id::ServerId;
use crate::observed::{MemberState, Report};
use crate::units::Moment;

use super::step::{Action, Subject};
use super::{Draft, seconds};

/// Refused connections prove that nothing of Kopek runs there, nor a pool member. The pause leaves a server
/// without one on which all of Kopek is being upgraded at once time to come back: a restart takes 50 ms.
const REFUSED_MS: u64 = 100;

pub(super) fn keep_standings(draft: &mut Draft) {
    declare_dead(draft);
    let names: Vec<ServerId> = draft.state.servers.keys().cloned().collect();
    for name in names {
        match draft.state.standing(&name) {
            Some(Standing::Dead) if draft.observed.servers.get(&name).is_some_and(|s| draft.is_fresh(s)) => {
                draft.act(Action::BeginReturn { server: name }, "it reports again");
            }
            Some(Standing::Returning) if has_caught_up(draft, &name) => {
                draft.act(Action::Readmit { server: name }, "it has all images, volumes and databases");
            }
            _ => {}
        }
    }
}

/// A controller that hears nothing of more than half of the servers at once is more likely cut off itself
/// than among the few survivors, and what it started here would run twice: it says so and declares nobody
/// dead. With etcd it could not commit anyway; this is for cells whose store is on one server. A refused
/// connection shows that the network is there, so those count for dead at once.
fn declare_dead(draft: &mut Draft) {
    let counting = || draft.state.servers.values().filter(|server| server.standing != Standing::Dead);
    let refused: Vec<ServerId> =
        counting().map(|s| s.name.clone()).filter(|name| refuses(draft, name)).collect();
    let silent: Vec<ServerId> = counting()
        .map(|s| s.name.clone())
        .filter(|name| !refused.contains(name) && draft.silent_for(name) > draft.desired.cell.silence_ms)
        .collect();
    let cut_off = silent.len() * 2 > counting().count();
    if cut_off {
        let names: Vec<&str> = silent.iter().map(ServerId::as_str).collect();
        draft.block(
            Subject::Cell,
            format!(
                "{} are silent, more than half of the cell: nobody is declared dead; check the network of \
                 this server, or remove the servers that are gone for good with `kopek server remove`",
                names.join(", ")
            ),
        );
    } else {
        for server in silent {
            let reason = format!("no report for {}", seconds(draft.silent_for(&server)));
            draft.act(Action::DeclareDead { server }, reason);
        }
    }
    for server in refused {
        draft.act(Action::DeclareDead { server }, "its ports refuse connections");
    }
}

/// A server that has just joined refuses too: its processes are still to be started.
fn refuses(draft: &Draft, server: &ServerId) -> bool {
    let joined = draft.state.servers.get(server).map_or(Moment(0), |server| server.joined);
    let has_begun = draft.observed.servers.contains_key(server)
        || draft.now.millis_since(joined) > draft.desired.cell.silence_ms;
    let since = draft.observed.refused.get(server).filter(|_| has_begun);
    since.is_some_and(|since| draft.now.millis_since(*since) >= REFUSED_MS)
}

/// A server that returns needs only what somebody else could give it or do without: after a power loss of
/// the whole cell nobody waits for what nobody has.
fn has_caught_up(draft: &Draft, server: &ServerId) -> bool {
    let Some(report) = draft.report(server) else { return false };
    let written = draft.observed.generations.get(server).copied().unwrap_or(0);
    report.generation >= written
        && has_images(draft, report)
        && has_volumes(draft, server, report)
        && is_synced_or_alone(draft, server)
}

fn has_images(draft: &Draft, report: &Report) -> bool {
    draft.desired.images.values().all(|image| {
        report.images.contains(&image.digest)
            || !serving_reports(draft).any(|other| other.images.contains(&image.digest))
    })
}

fn has_volumes(draft: &Draft, server: &ServerId, report: &Report) -> bool {
    let has = |report: &Report, site: &Site| {
        report.volumes.get(&site.name).is_some_and(|volume| volume.is_of(site))
    };
    draft.sites.iter().all(|(name, site)| {
        let holds = draft.state.placed.sites.get(name).is_some_and(|p| p.holders.contains(server));
        !holds || has(report, site) || !serving_reports(draft).any(|other| has(other, site))
    })
}

fn is_synced_or_alone(draft: &Draft, server: &ServerId) -> bool {
    let Some(pool) = draft.state.placed.pool_on(server) else { return true };
    let synced = |server: &ServerId| {
        draft.member(pool, server).is_some_and(|member| member.state == MemberState::Synced)
    };
    synced(server) || !draft.state.placed.pool(pool).members.iter().any(synced)
}

fn serving_reports<'d>(draft: &'d Draft) -> impl Iterator<Item = &'d Report> {
    draft.state.servers.values().filter(|s| s.is_serving()).filter_map(|s| draft.report(&s.name))
}
