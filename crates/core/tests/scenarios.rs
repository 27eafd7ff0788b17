//! What Kopek decides, told as stories of simulated cells.

use std::collections::BTreeSet;

use kopek_core::assign::{assignments, routes, with_generation};
use kopek_core::desired::Standing;
use kopek_core::observed::{Observed, Report, SeenVolume};
use kopek_core::placement::Stage;
use kopek_core::{Moment, PoolName};
use kopek_sim::{Cell, rack};

fn three() -> kopek_sim::rack::Rack {
    rack().server("a", 4).server("b", 4).server("c", 4)
}

fn said_since(cell: &Cell, begin: usize) -> Vec<String> {
    cell.log[begin..].iter().map(|line| line.split_once("s  ").expect("a time").1.trim().to_owned()).collect()
}

#[track_caller]
fn assert_said(cell: &Cell, what: &str) {
    assert!(
        cell.log.iter().any(|line| line.contains(what)),
        "{what:?} was not said:\n{}",
        cell.log.join("\n")
    );
}

fn servers_of(cell: &Cell, site: &str) -> BTreeSet<String> {
    cell.serving_on(site).into_iter().map(str::to_owned).collect()
}

#[test]
fn instances_go_to_different_racks_and_to_the_emptiest_servers() {
    let rack = rack().server_in("left", "a", 4).server_in("right", "b", 4).server_in("right", "c", 4);
    let rack = rack.server_in("left", "d", 4);
    let mut cell = rack.site("shop", 2).site("blog", 1).start();
    cell.settle(30_000);
    assert_eq!(servers_of(&cell, "blog"), BTreeSet::from(["a".to_owned()]));
    // Not `a`, which is fuller; and not `c`, which is of the same rack as `b`.
    assert_eq!(servers_of(&cell, "shop"), BTreeSet::from(["b".to_owned(), "d".to_owned()]));
}

#[test]
fn a_site_that_finds_no_slot_says_why_once() {
    let mut cell = rack().server("a", 1).server("b", 1).site("shop", 2).site("wiki", 1).start();
    cell.run_ms(20_000);
    let blocked: Vec<&String> = cell.log.iter().filter(|line| line.contains("blocked")).collect();
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    assert!(blocked[0].ends_with(
        "blocked, wiki: 0 of at least 1 instances: no server fits: a has no free slot, b has no free slot"
    ));
}

#[test]
fn load_adds_an_instance_each_settle_time_and_its_end_takes_the_newest_away() {
    let mut cell = three().site_between("shop", 1, 3).start();
    cell.settle(30_000);
    let begin = cell.log.len();
    cell.demand("shop", 9_000);
    cell.run_ms(14_000);
    assert_eq!(cell.serving_on("shop").len(), 3);
    cell.demand("shop", 0);
    cell.run_ms(40_000);
    let decisions: Vec<String> = said_since(&cell, begin)
        .into_iter()
        .filter(|line| line.starts_with("place") || line.starts_with("drain") || line.starts_with("remove"))
        .map(|line| line.split(": ").next().expect("a first part").to_owned())
        .collect();
    assert_eq!(
        decisions,
        [
            "place shop.2 on b",
            "place shop.3 on c",
            "drain shop.3",
            "remove shop.3",
            "drain shop.2",
            "remove shop.2",
        ]
    );
    assert_said(&cell, "≥ 2.00 at shop.1");
    assert_said(&cell, "< 1.00");
}

#[test]
fn a_site_keeps_serving_while_its_server_drains() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    let begin = cell.log.len();
    cell.drain("a");
    for _ in 0..100 {
        cell.tick();
        assert!(cell.answers("shop"), "{}", cell.log.join("\n"));
    }
    assert_eq!(servers_of(&cell, "shop"), BTreeSet::from(["b".to_owned()]));
    let said = said_since(&cell, begin).join("\n");
    let order = [
        "place shop.2 on b: a drains",
        "shop.2 on b is serving",
        "drain shop.1: a drains and shop.2 serves",
        "remove shop.1: it is idle",
    ];
    let mut rest = said.as_str();
    for line in order {
        rest = rest.split_once(line).unwrap_or_else(|| panic!("{line:?} missing, or too early:\n{said}")).1;
    }
}

#[test]
fn a_drained_instance_stays_until_its_visitors_have_left() {
    let mut cell = three().site_between("shop", 2, 2).start();
    cell.settle(30_000);
    let site = cell.desired.sites.values_mut().next().unwrap();
    (site.min, site.max) = (1, 1);
    cell.tick();
    let drained = |cell: &Cell| {
        let placement = cell.placed.sites.values().next().unwrap();
        placement.instances.values().filter(|i| matches!(i.stage, Stage::Drain { .. })).count()
    };
    assert_eq!(drained(&cell), 1);
    cell.run_ms(500);
    assert_eq!(drained(&cell), 1, "visitors are inside");
    cell.run_ms(3_000);
    assert_eq!(drained(&cell), 0);
}

#[test]
fn a_new_controller_declares_nobody_dead_before_the_silence_counts_from_its_own_beginning() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    let begun = Observed { since: cell.now, ..Observed::default() };
    for later in [0, 1_000, 2_500] {
        let plan = kopek_core::plan::plan(&cell.desired, &cell.placed, &begun, cell.now.plus_millis(later));
        assert_eq!((plan.steps, plan.blocked), (vec![], vec![]), "after {later} ms");
    }
}

#[test]
fn a_controller_that_hears_of_nobody_declares_nobody_dead_and_says_so() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    let alone = Observed { since: cell.now, ..Observed::default() };
    let plan = kopek_core::plan::plan(&cell.desired, &cell.placed, &alone, cell.now.plus_millis(60_000));
    assert!(!plan.steps.iter().any(|step| step.to_string().contains("dead")), "{:?}", plan.steps);
    assert!(plan.blocked[0].reason.starts_with("a, b, c are silent, more than half"), "{:?}", plan.blocked);
}

#[test]
fn a_server_whose_agent_refuses_is_dead_long_before_one_that_is_only_silent() {
    let dead_after = |blow: fn(&mut Cell, &str)| {
        let mut cell = three().site("shop", 1).start();
        cell.settle(30_000);
        blow(&mut cell, "c");
        cell.run_until("c is dead", 10_000, |cell| cell.standing("c") == Some(Standing::Dead))
    };
    let (killed, off) = (dead_after(Cell::kill), dead_after(Cell::power_off));
    assert!(killed <= 1_000 && (1_500..=3_600).contains(&off), "{killed} ms, {off} ms");
}

#[test]
fn a_server_that_returns_runs_nothing_before_it_has_caught_up() {
    let mut cell = rack().server("a", 4).server("b", 4).server("c", 4).site("shop", 3).start();
    cell.settle(30_000);
    cell.power_off("c");
    cell.run_ms(5_000);
    let site = cell.desired.sites.values_mut().next().unwrap();
    site.tree = kopek_sim::rack::digest("shop", 2);
    cell.run_ms(5_000);
    cell.boot("c");
    let begin = cell.log.len();
    cell.run_until("c is back", 30_000, |cell| cell.standing("c") == Some(Standing::Up));
    let deployed = kopek_sim::rack::digest("shop", 2);
    assert!(cell.machines[&kopek_sim::rack::server("c")].trees().any(|tree| *tree == deployed));
    cell.settle(30_000);
    let said = said_since(&cell, begin);
    let back = said.iter().position(|line| line.starts_with("readmit c")).expect("it is readmitted");
    let runs = said.iter().position(|line| line.contains("on c: ")).expect("it gets its instance back");
    assert!(back < runs, "{said:#?}");
    assert!(said[..back].iter().all(|line| !line.contains("on c is serving")), "{said:#?}");
}

#[test]
fn the_sites_of_a_dead_writer_are_spread_over_the_other_members_with_a_higher_epoch() {
    let mut cell = three().site("s", 1).site("t", 1).site("u", 1).start();
    cell.settle(30_000);
    let victim = cell.writer("s").unwrap().to_owned();
    let begin = cell.log.len();
    cell.kill(&victim);
    cell.run_ms(5_000);
    assert_ne!(cell.writer("s"), Some(victim.as_str()));
    assert!(
        said_since(&cell, begin).iter().any(|l| l.starts_with("writer of s is") && l.contains("(epoch 2)"))
    );
    let moved: BTreeSet<_> =
        ["s", "t", "u"].iter().map(|site| cell.writer(site).unwrap().to_owned()).collect();
    assert_eq!(moved.len(), 2, "the two that are left share the sites");
}

#[test]
fn after_a_power_loss_the_pool_waits_for_every_position_and_starts_from_the_newest() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    cell.power_off("c"); // falls behind
    cell.run_ms(6_000);
    cell.power_off("b");
    cell.power_off("a");
    cell.run_ms(2_000);
    cell.boot("c");
    cell.boot("b");
    cell.run_ms(20_000);
    assert!(!cell.pool_serves(&PoolName::first()), "the newest data may be on a");
    assert_said(&cell, "a cannot tell how new its data are: power it on, or give it up");
    cell.boot("a");
    cell.settle(60_000);
    let starts: Vec<&String> = cell.log.iter().filter(|line| line.contains("newest of 3 members")).collect();
    assert!(starts.len() == 1 && !starts[0].contains("on c"), "{starts:?}");
}

#[test]
fn a_server_that_is_given_up_no_longer_keeps_the_pool_from_starting() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    for server in ["a", "b", "c"] {
        cell.power_off(server);
    }
    cell.boot("a");
    cell.boot("b");
    cell.run_ms(10_000);
    assert!(!cell.pool_serves(&PoolName::first()));
    cell.desired.servers.remove(&kopek_sim::rack::server("c"));
    cell.run_until("the pool serves", 30_000, |cell| cell.pool_serves(&PoolName::first()));
}

/// Steps of one plan may be lost one by one: with the turn ended and nobody knowing that the pool was formed,
/// the next controller would have another member start a second group.
#[test]
fn the_first_start_of_the_pool_ends_in_the_step_that_says_it_was() {
    let mut cell = three().site("shop", 1).start();
    cell.run_until("a member starts the pool", 10_000, |cell| {
        cell.placed.pool(&PoolName::first()).bootstrap.is_some()
    });
    cell.run_until("its turn ends", 10_000, |cell| cell.placed.pool(&PoolName::first()).bootstrap.is_none());
    assert!(cell.placed.pool(&PoolName::first()).formed);
    assert_said(&cell, "pool1 formed: a is synced");
    let ends = cell.log.iter().filter(|line| line.contains("no longer starts pool1")).count();
    assert_eq!(ends, 0, "{}", cell.log.join("\n"));
}

#[test]
fn members_of_different_groups_are_left_to_people() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    for server in ["a", "b", "c"] {
        cell.power_off(server);
    }
    cell.pools
        .get_mut(&PoolName::first())
        .unwrap()
        .members
        .get_mut(&kopek_sim::rack::server("b"))
        .unwrap()
        .disk
        .group = "other".to_owned();
    for server in ["a", "b", "c"] {
        cell.boot(server);
    }
    cell.run_ms(30_000);
    assert!(!cell.pool_serves(&PoolName::first()));
    assert_said(
        &cell,
        "members hold data of different groups (a is of pool1-group-1, b is of other, c is of pool1-group-1)",
    );
}

#[test]
fn a_site_that_was_deleted_and_made_again_at_once_gets_new_numbers() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    let site = cell.desired.sites.pop_first().unwrap();
    cell.tick();
    cell.desired.sites.insert(site.0, site.1);
    cell.settle(30_000);
    assert_said(&cell, "remove shop.1: its site was deleted");
    assert!(cell.log.iter().filter(|line| line.contains("place shop.1")).count() == 1);
    assert_said(&cell, "place shop.2");
}

#[test]
fn a_route_does_not_lead_to_an_instance_of_an_earlier_site_of_that_name() {
    let mut cell = rack().server("a", 4).site("shop", 1).start();
    cell.settle(30_000);
    let seen = cell.controller.as_ref().unwrap().observed.clone();
    let led_to = |cell: &Cell| {
        let routes = routes(&cell.desired, &cell.placed, &seen, &cell.routes);
        routes.into_values().next().unwrap().backends.len()
    };
    assert_eq!(led_to(&cell), 1);
    cell.desired.sites.values_mut().next().unwrap().number += 1;
    assert_eq!(led_to(&cell), 0);
}

#[test]
fn a_route_keeps_the_backends_of_a_server_that_a_new_controller_has_not_heard_of_and_gets_no_new_ones_there()
{
    let mut cell = three().site("shop", 2).start();
    cell.settle(30_000);
    let nobody = Observed { since: cell.now, ..Observed::default() };
    let after = |previous| routes(&cell.desired, &cell.placed, &nobody, previous);
    assert_eq!(after(&cell.routes), cell.routes);
    let mut empty = cell.routes.clone();
    empty.values_mut().for_each(|route| route.backends.clear());
    assert_eq!(after(&empty), empty);
}

/// Where the VIPs are, as keepalived has put them.
fn held(cell: &Cell) -> Vec<String> {
    let at = |vip| cell.machines.values().find(|machine| machine.vips.contains(vip));
    cell.desired.cell.vips.iter().map(|vip| at(vip).map_or("-", |m| m.name.as_str()).to_owned()).collect()
}

#[test]
fn a_vip_stays_where_it_went_when_its_first_holder_returns() {
    let mut cell = three().start();
    cell.settle(30_000);
    assert_eq!(held(&cell), ["a", "b"], "no edge idles");
    cell.kill("a");
    cell.run_ms(100);
    assert_eq!(held(&cell), ["b", "b"], "keepalived waits for nobody");
    cell.run_ms(20_000);
    assert_said(&cell, "10.0.1.1 is at b: it left a by itself");
    assert_said(&cell, "move 10.0.1.1 to c: b holds 2, c holds 0");
    assert_said(&cell, "10.0.1.1 is at c: b has let it go");
    assert_eq!(held(&cell), ["c", "b"]);
    let begin = cell.log.len();
    cell.boot("a");
    cell.settle(30_000);
    cell.run_ms(20_000);
    assert_eq!(held(&cell), ["c", "b"], "a came back and took nothing away");
    let moves = said_since(&cell, begin).into_iter().filter(|line| line.contains("10.0.1.")).count();
    assert_eq!(moves, 0, "{}", cell.log.join("\n"));
}

#[test]
fn a_server_that_has_just_joined_may_take_its_time_to_start() {
    let mut cell = three().start();
    cell.settle(30_000);
    let mut seen = cell.controller.as_ref().unwrap().observed.clone();
    let new = kopek_sim::rack::server("c");
    seen.servers.remove(&new);
    seen.since = Moment(0); // long before it joined
    seen.refused.insert(new.clone(), Moment(cell.now.0 - 500));
    let deaths = |cell: &Cell| {
        let plan = kopek_core::plan::plan(&cell.desired, &cell.placed, &seen, cell.now);
        plan.steps.iter().filter(|step| step.to_string().starts_with("declare c dead")).count()
    };
    cell.desired.servers.get_mut(&new).unwrap().joined = Moment(cell.now.0 - 1_000);
    assert_eq!(deaths(&cell), 0, "it is still being started");
    cell.desired.servers.get_mut(&new).unwrap().joined = Moment(cell.now.0 - 3_000);
    assert_eq!(deaths(&cell), 1, "it was there when another controller was active");
}

#[test]
fn who_takes_the_vip_of_a_dead_server_is_not_guessed() {
    let mut cell = three().start();
    cell.settle(30_000);
    let seen = cell.controller.as_ref().unwrap().observed.clone();
    let dead = kopek_sim::rack::server("a");
    cell.desired.servers.get_mut(&dead).unwrap().standing = Standing::Dead;
    let plan = kopek_core::plan::plan(&cell.desired, &cell.placed, &seen, cell.now);
    assert!(!plan.steps.iter().any(|step| step.to_string().starts_with("10.0.1.1")), "{:#?}", plan.steps);
}

#[test]
fn a_vip_leaves_a_draining_server_on_purpose_and_a_last_server_keeps_it() {
    let mut cell = three().start();
    cell.settle(30_000);
    cell.drain("b");
    cell.run_ms(20_000);
    assert_said(&cell, "move 10.0.1.2 to c: b drains");
    assert_eq!(held(&cell), ["a", "c"]);
    for server in ["a", "c"] {
        cell.drain(server);
    }
    cell.run_ms(30_000);
    assert_eq!(held(&cell), ["a", "c"], "there is nowhere to go");
    let routers: BTreeSet<u8> = cell.written.values().next().unwrap().vips.iter().map(|v| v.router).collect();
    assert_eq!(routers.len(), 2);
}

#[test]
fn a_vip_that_was_let_go_to_an_edge_that_dies_goes_to_another_one() {
    let mut cell = three().start();
    cell.settle(30_000);
    cell.drain("b");
    cell.run_until("a move", 1_000, |cell| cell.placed.vips.values().any(|vip| vip.next.is_some()));
    // Before b has seen its assignment.
    cell.placed.vips.values_mut().filter(|vip| vip.next.is_some()).for_each(|vip| {
        vip.next = Some(kopek_sim::rack::server("c"));
    });
    cell.cut("c");
    cell.run_until("another way", 5_000, |cell| held(cell) == ["a", "a"]);
    cell.run_ms(20_000);
    assert_eq!(held(&cell)[1], "a", "{}", cell.log.join("\n"));
}

#[test]
fn an_assignment_gets_a_new_generation_only_when_it_says_something_new() {
    let mut cell = three().site("shop", 1).start();
    cell.settle(30_000);
    let seen = cell.controller.as_ref().unwrap().observed.clone();
    let next = assignments(&cell.desired, &cell.placed, &seen).remove(&kopek_sim::rack::server("a")).unwrap();
    let first = with_generation(None, next.clone()).unwrap();
    assert_eq!(first.generation, 1);
    assert_eq!(with_generation(Some(&first), next.clone()), None);
    let mut other = next;
    other.instances.clear();
    assert_eq!(with_generation(Some(&first), other).unwrap().generation, 2);
}

#[test]
fn an_instance_goes_where_the_image_and_its_own_volume_are_already() {
    let volume = |report: &mut Report| report.volumes.pop_first().expect("it has one").1;
    let lacks: [fn(&mut Report, SeenVolume); 4] = [
        |report, volume| {
            report.images.clear();
            report.volumes.insert(kopek_sim::rack::site("shop"), volume);
        },
        |_, _| {},
        |report, volume| {
            let number = volume.number - 1;
            report.volumes.insert(kopek_sim::rack::site("shop"), SeenVolume { number, ..volume });
        },
        |report, volume| {
            let tree = kopek_sim::rack::digest("shop", 0);
            report.volumes.insert(kopek_sim::rack::site("shop"), SeenVolume { tree, ..volume });
        },
    ];
    for lack in lacks {
        let mut cell = three().site("shop", 1).start();
        cell.settle(30_000);
        cell.desired.sites.values_mut().for_each(|site| site.min = 2);
        assert!(cell.planned()[0].starts_with("place shop.2 on b"), "{:?}", cell.planned());
        let report = cell.heard_of("b");
        let volume = volume(report);
        lack(report, volume);
        assert_eq!(cell.planned().len(), 1);
        assert!(cell.planned()[0].starts_with("place shop.2 on c"), "{:?}", cell.planned());
    }
}
