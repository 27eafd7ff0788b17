//! How instances leave: drained ones, those of a draining server, those that are too many.

use kopek_core::desired::Standing;
use kopek_core::observed::Phase;
use kopek_core::part::Intake;
use kopek_core::placement::Stage;
use kopek_core::{InstanceId, Moment};
use kopek_sim::rack::{server, site};
use kopek_sim::{Cell, rack};

fn three() -> kopek_sim::rack::Rack {
    rack().server("a", 4).server("b", 4).server("c", 4)
}

fn id(text: &str) -> InstanceId {
    text.parse().expect("an instance id")
}

fn want(cell: &mut Cell, min: usize, max: usize) {
    cell.desired.sites.values_mut().for_each(|site| (site.min, site.max) = (min, max));
}

/// What is planned about instances.
fn decided(cell: &Cell) -> Vec<String> {
    cell.planned().into_iter().filter(|line| line.contains("shop.")).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_drained_instance_goes_when_a_report_from_after_its_route_changed_shows_it_idle_or_its_time_is_over() {
    let mut cell = three().site_between("shop", 2, 2).start();
    cell.settle(30_000);
    want(&mut cell, 1, 1);
    cell.tick();
    let drained = cell.placed.sites.values().next().unwrap().instances[&id("shop.2")].clone();
    let Stage::Drain { until } = drained.stage else { panic!("{drained:?}") };
    assert_eq!(until, drained.since.plus_millis(10_000));
    assert_eq!(cell.routes.values().next().unwrap().backends[&id("shop.2")].intake, Intake::Draining);

    let with = |at: Moment, in_flight: u32| {
        let mut seen = cell.controller.as_ref().unwrap().observed.clone();
        seen.servers.values_mut().for_each(|server| server.at = at);
        let report = &mut seen.servers.get_mut(&drained.server).unwrap().report;
        report.instances.get_mut(&id("shop.2")).unwrap().in_flight = in_flight;
        (seen, at)
    };
    let gone = |at: Moment| {
        let (mut seen, at) = with(at, 1);
        seen.servers.get_mut(&drained.server).unwrap().report.instances.remove(&id("shop.2"));
        (seen, at)
    };
    let decided = |(seen, now)| {
        let plan = kopek_core::plan::plan(&cell.desired, &cell.placed, &seen, now);
        plan.steps.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (early, late) = (drained.since.plus_millis(500), drained.since.plus_millis(501));
    assert_eq!(decided(with(early, 0)), NOTHING, "an edge may still send it a request");
    assert_eq!(decided(with(late, 0)), ["remove shop.2: it is idle"]);
    assert_eq!(decided(with(Moment(until.0 - 1), 1)), NOTHING, "a visitor is inside");
    assert_eq!(decided(with(until, 1)), ["remove shop.2: its time to drain is over"]);
    assert_eq!(decided(gone(late)), ["remove shop.2: it is gone"]);
}

#[test]
fn of_too_many_instances_those_that_do_not_serve_go_first_and_then_the_newest() {
    let mut cell = three().site_between("shop", 3, 3).start();
    cell.settle(30_000);
    want(&mut cell, 1, 2);
    assert_eq!(decided(&cell), ["drain shop.3: 3 instances, at most 2 wanted"]);
    let first = cell.placed.sites.values().next().unwrap().instances[&id("shop.1")].server.clone();
    let report = cell.heard_of(first.as_str());
    report.instances.get_mut(&id("shop.1")).unwrap().phase = Phase::Starting;
    assert_eq!(decided(&cell), ["drain shop.1: 3 instances, at most 2 wanted"]);
}

#[test]
fn an_extra_instance_does_not_hold_up_a_drain_and_one_that_is_needed_does() {
    let mut cell = rack().server("a", 4).server("b", 4).site_between("shop", 2, 2).start();
    cell.settle(30_000);
    cell.drain("a");
    let stuck =
        "blocked, shop.1: a drains but shop.1 cannot leave: no server fits: a drains, b runs one already";
    assert_eq!(decided(&cell), [stuck]);
    want(&mut cell, 1, 2);
    assert_eq!(decided(&cell), ["drain shop.1: a drains and 1 others serve"]);
    let other = &mut cell.heard_of("b").instances.get_mut(&id("shop.2")).unwrap().phase;
    *other = Phase::Starting;
    assert_eq!(decided(&cell), [stuck], "the other one does not serve");

    let mut cell = three().site_between("shop", 2, 2).start();
    cell.settle(30_000);
    cell.drain("a");
    want(&mut cell, 1, 1);
    assert_eq!(decided(&cell), ["drain shop.1: a drains and 1 others serve"], "it has its maximum elsewhere");

    let mut cell = three().site_between("shop", 1, 1).start();
    cell.settle(30_000);
    cell.drain("a");
    assert_eq!(decided(&cell), ["place shop.2 on b: a drains"], "what is leaving is not above the maximum");

    let mut cell = rack().server("a", 1).server("b", 0).site("shop", 1).start();
    cell.settle(30_000);
    cell.drain("a");
    want(&mut cell, 0, 1);
    assert!(decided(&cell)[0].starts_with("blocked, shop.1: a drains but"), "{:?}", decided(&cell));
}

#[test]
fn a_successor_on_a_server_that_drains_as_well_is_none() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    cell.drain("a");
    cell.run_until("its successor serves", 5_000, |cell| {
        cell.routes.values().any(|route| route.backends.contains_key(&id("shop.2")))
    });
    cell.placed.sites.values_mut().for_each(|placement| {
        placement.instances.get_mut(&id("shop.1")).unwrap().stage = Stage::Run;
    });
    assert!(
        decided(&cell)[0].starts_with("drain shop.1: a drains and shop.2 serves"),
        "{:?}",
        decided(&cell)
    );
    cell.desired.servers.get_mut(&server("b")).unwrap().standing = Standing::Draining;
    assert!(decided(&cell)[0].starts_with("place shop.3 on c: a drains"), "{:?}", decided(&cell));
    assert!(!decided(&cell).iter().any(|line| line.starts_with("drain")), "{:?}", decided(&cell));
}

#[test]
fn a_deleted_site_is_forgotten_when_nothing_of_it_runs_any_more() {
    let mut cell = three().site("shop", 1).site("web", 1).start();
    cell.settle(30_000);
    let deleted = site("shop");
    cell.desired.sites.remove(&deleted);
    let planned = cell.planned();
    assert_eq!(planned, ["remove shop.1: its site was deleted"], "it still runs");
    cell.run_until("it is forgotten", 5_000, |cell| !cell.placed.sites.contains_key(&deleted));
    assert!(cell.machines.values().all(|machine| !machine.instances.contains_key(&id("shop.1"))));
}

#[test]
fn what_a_dead_server_ran_is_replaced_up_to_the_maximum_and_what_it_was_draining_is_not() {
    let mut cell = rack().server("a", 4).server("b", 4).server("c", 4).server("d", 4).site("shop", 2).start();
    cell.settle(30_000);
    want(&mut cell, 1, 2);
    cell.desired.servers.get_mut(&server("a")).unwrap().standing = Standing::Dead;
    cell.controller.as_mut().unwrap().observed.servers.remove(&server("a"));
    let replaced = ["remove shop.1: a is dead", "place shop.3 on c: replaces one that is lost"];
    assert_eq!(decided(&cell), replaced, "load had asked for it");
    want(&mut cell, 1, 1);
    assert_eq!(decided(&cell), ["remove shop.1: a is dead"]);
    want(&mut cell, 1, 2);
    cell.placed.sites.values_mut().for_each(|placement| {
        let until = cell.now.plus_millis(9_000);
        placement.instances.get_mut(&id("shop.1")).unwrap().stage = Stage::Drain { until };
    });
    assert_eq!(decided(&cell), ["remove shop.1: a is dead"]);
}
