//! Events of changes of big tables, from what agents report of the pool's line. Pure; called by `reconcile`.

use std::collections::BTreeMap;

use kopek_core::big_change::{BigChange, Phase};
use kopek_core::event::Event;
use kopek_core::observed::Observed;
use kopek_core::{Moment, ServerId};

/// In which phase each change was when its last event was made; bounded by what the keepers of lines tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<(ServerId, u64), Phase>);

/// What has happened since `told`, and what is to be remembered once that is written. What came about before
/// this controller was active was its predecessor's to tell.
pub fn news(observed: &Observed, told: &Told, now: Moment) -> (Vec<Event>, Told) {
    let mut next = Told::default();
    let mut events = Vec::new();
    let changes = observed
        .servers
        .iter()
        .flat_map(|(server, seen)| seen.report.big_changes.iter().map(move |change| (server, change)));
    for (server, change) in changes {
        let key = (server.clone(), change.number);
        let is_known = told.0.get(&key) == Some(&change.phase);
        if !is_known && change.since() >= observed.since {
            events.push(event(change, now));
        }
        next.0.insert(key, change.phase.clone());
    }
    (events, next)
}

fn event(change: &BigChange, now: Moment) -> Event {
    let BigChange { site, table, asked, phase, .. } = change;
    let (what, reason) = match phase {
        Phase::Waiting { behind } => (
            "waits to change a big table",
            format!("{table}: site {behind} is before it, and one is changed at a time"),
        ),
        Phase::Running { since } => {
            let waited = match since.millis_since(*asked) {
                0..100 => String::new(),
                millis => format!("; it waited {}", seconds(millis)),
            };
            ("changes a big table", format!("{table}: the pool takes no writes until it is done{waited}"))
        }
        Phase::Done { since, until } => {
            ("changed a big table", format!("{table} in {}", seconds(until.millis_since(*since))))
        }
        Phase::Failed { since, until, code } => {
            let after = seconds(until.millis_since(*since));
            ("failed to change a big table", format!("{table}: error {code} after {after}"))
        }
        Phase::Left { since, until } => {
            let after = seconds(until.millis_since(*since));
            ("was lost changing a big table", format!("{table}: its connection ended after {after}"))
        }
        Phase::GivenUp { until } => {
            let after = seconds(until.millis_since(*asked));
            ("gave up waiting to change a big table", format!("{table}: its client waited {after}"))
        }
    };
    Event { at: now, subject: site.to_string(), what: what.to_owned(), reason }
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1_000, millis % 1_000 / 100)
}

#[cfg(test)]
mod tests {
    use kopek_core::observed::{Health, Report, Seen};
    use kopek_core::{Bytes, SiteName};

    use super::*;

    fn observed(phases: &[(u64, Phase)]) -> Observed {
        let server = ServerId::parse("s1").unwrap();
        let change = |(number, phase): &(u64, Phase)| BigChange {
            number: *number,
            site: SiteName::parse("blog").unwrap(),
            table: "posts".to_owned(),
            asked: Moment(1_000),
            phase: phase.clone(),
        };
        let report = Report {
            server: server.clone(),
            boot: "1".to_owned(),
            generation: 1,
            instances: BTreeMap::new(),
            images: Vec::new(),
            volumes: BTreeMap::new(),
            member: None,
            edge: Health::Well,
            vips: Vec::new(),
            disk_free: Bytes(0),
            memory_free: Bytes(0),
            big_changes: phases.iter().map(change).collect(),
        };
        let servers = [(server, Seen { at: Moment(0), report })].into();
        Observed { servers, since: Moment(900), ..Observed::default() }
    }

    fn said(observed: &Observed, told: &mut Told) -> Vec<String> {
        let (events, next) = news(observed, told, Moment(9_000));
        *told = next;
        events
            .into_iter()
            .map(|event| format!("{} {} ({})", event.subject, event.what, event.reason))
            .collect()
    }

    #[test]
    fn each_phase_of_a_change_is_one_event() {
        let mut told = Told::default();
        let shop = SiteName::parse("shop").unwrap();
        let waiting = observed(&[(1, Phase::Waiting { behind: shop })]);
        assert_eq!(
            said(&waiting, &mut told),
            [
                "blog waits to change a big table (posts: site shop is before it, and one is changed at a time)"
            ]
        );
        assert_eq!(said(&waiting, &mut told), Vec::<String>::new(), "not again");
        assert_eq!(
            said(&observed(&[(1, Phase::Running { since: Moment(3_250) })]), &mut told),
            ["blog changes a big table (posts: the pool takes no writes until it is done; it waited 2.2 s)"]
        );
        let done = Phase::Done { since: Moment(3_250), until: Moment(7_500) };
        assert_eq!(
            said(&observed(&[(1, done.clone()), (2, Phase::Running { since: Moment(1_000) })]), &mut told),
            [
                "blog changed a big table (posts in 4.2 s)",
                "blog changes a big table (posts: the pool takes no writes until it is done)"
            ]
        );
        let failed = Phase::Failed { since: Moment(1_000), until: Moment(2_000), code: 1062 };
        assert_eq!(
            said(&observed(&[(1, done), (2, failed)]), &mut told),
            ["blog failed to change a big table (posts: error 1062 after 1.0 s)"]
        );
    }

    #[test]
    fn what_came_about_before_this_controller_was_active_was_told_by_the_one_before() {
        let early = observed(&[(1, Phase::Running { since: Moment(899) })]);
        assert_eq!(said(&early, &mut Told::default()), Vec::<String>::new());
        let late = observed(&[(1, Phase::Running { since: Moment(900) })]);
        assert_eq!(said(&late, &mut Told::default()).len(), 1);
    }
}
