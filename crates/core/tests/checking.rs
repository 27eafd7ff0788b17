//! What `check` must see: one settled cell, and each thing that must not be, put in by hand.

use kopek_core::check::{check, check_change};
use kopek_core::desired::Standing;
use kopek_core::placement::{PlacedInstance, PoolPlacement, SitePlacement, Stage};
use kopek_core::{PoolName, ServerId};
use kopek_sim::rack::{pool, server, site};
use kopek_sim::{Cell, rack};

fn shop(cell: &mut Cell) -> &mut SitePlacement {
    cell.placed.sites.get_mut(&site("shop")).expect("the site is placed")
}

fn put(cell: &mut Cell, number: u64, name: &str) {
    let instance =
        PlacedInstance { server: server(name), stage: Stage::Run, since: cell.now, replaces: None };
    shop(cell).instances.insert(format!("shop.{number}").parse().expect("an instance id"), instance);
}

/// What is seen when this was done to a cell in which `shop` runs on `a` and `b`, which write for it.
fn seen(harm: impl Fn(&mut Cell)) -> Vec<String> {
    let mut cell = rack().server("a", 2).server("b", 2).server("c", 2).site_between("shop", 2, 2).start();
    cell.settle(30_000);
    let before = cell.placed.clone();
    harm(&mut cell);
    let observed = &cell.controller.as_ref().expect("a settled cell has a controller").observed;
    let mut violations = check(&cell.desired, &cell.placed, observed);
    violations.extend(check_change(&before, &cell.placed));
    violations.iter().map(ToString::to_string).collect()
}

fn stand(cell: &mut Cell, name: &str, standing: Standing) {
    cell.desired.servers.get_mut(&server(name)).expect("a server of this cell").standing = standing;
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_settled_cell_violates_nothing_nor_does_what_may_be() {
    assert_eq!(seen(|_| {}), NOTHING);
    let full = |cell: &mut Cell| cell.desired.servers.values_mut().for_each(|server| server.slots = 1);
    assert_eq!(seen(full), NOTHING);
    let handed_over = |cell: &mut Cell| {
        stand(cell, "b", Standing::Draining);
        shop(cell).next_number = 4;
        put(cell, 3, "c");
    };
    assert_eq!(seen(handed_over), NOTHING, "what a draining server still runs is not above the maximum");
    let new_on_drained = |cell: &mut Cell| {
        let until = cell.now;
        shop(cell).instances.values_mut().for_each(|it| it.stage = Stage::Drain { until });
        shop(cell).next_number = 4;
        put(cell, 3, "a");
    };
    assert_eq!(seen(new_on_drained), NOTHING);
    let dead_and_full = |cell: &mut Cell| {
        cell.desired.servers.get_mut(&server("a")).unwrap().slots = 0;
        stand(cell, "a", Standing::Dead);
    };
    assert_eq!(seen(dead_and_full), ["shop.1 is on a, which does not count"]);
}

#[test]
fn each_instance_that_must_not_be_is_seen() {
    assert_eq!(seen(|cell| stand(cell, "b", Standing::Returning)), ["shop.2 is on b, which does not count"]);
    assert_eq!(
        seen(|cell| cell.desired.sites.values_mut().for_each(|site| site.max = 1)),
        ["shop runs 2 times, at most 1 wanted"]
    );
    let twice = |cell: &mut Cell| {
        shop(cell).next_number = 4;
        put(cell, 3, "a");
    };
    assert_eq!(seen(twice), ["shop runs twice on a"]);
    let not_held = |cell: &mut Cell| assert!(shop(cell).holders.remove(&server("b")));
    assert_eq!(seen(not_held), ["shop.2 is on b, which does not hold its volume"]);
    let no_slot = |cell: &mut Cell| cell.desired.servers.get_mut(&server("a")).unwrap().slots = 0;
    assert_eq!(seen(no_slot), ["a has 1 instances in 0 slots"]);
    let forgotten = |cell: &mut Cell| shop(cell).next_number = 2;
    assert_eq!(
        seen(forgotten),
        ["the number of shop.2 is still to be given", "the next number of shop went from 3 back to 2"]
    );
    let reused = |cell: &mut Cell| {
        shop(cell).instances.clear();
        put(cell, 0, "a");
    };
    assert_eq!(seen(reused), ["shop.0 was used before"]);
}

#[test]
fn a_writer_must_be_a_member_and_changes_only_with_a_higher_epoch() {
    let write = |cell: &mut Cell, name: &str, epoch| {
        let writer = shop(cell).writer.as_mut().unwrap();
        (writer.server, writer.epoch) = (server(name), epoch);
    };
    assert_eq!(seen(|cell| write(cell, "b", 2)), NOTHING);
    for epoch in [0, 1] {
        let said = format!("the writer of shop changed and its epoch {epoch} is not higher");
        assert_eq!(seen(|cell| write(cell, "b", epoch)), [said]);
    }
    let strike = |cell: &mut Cell| assert!(cell.pool1().members.remove(&server("a")));
    assert_eq!(seen(strike), ["the writer of shop is a, which is no pool member"]);
    let nobody_left = |cell: &mut Cell| cell.pool1().members.clear();
    assert_eq!(seen(nobody_left), ["only 0 of 3 synced databases are pool members"]);
}

#[test]
fn each_threat_to_the_pool_is_seen() {
    let strike = |cell: &mut Cell, names: &[&str]| {
        let members: Vec<ServerId> = names.iter().map(|name| server(name)).collect();
        cell.pool1().members.retain(|member| !members.contains(member));
    };
    assert_eq!(seen(|cell| strike(cell, &["c"])), NOTHING);
    assert_eq!(seen(|cell| strike(cell, &["b", "c"])), ["only 1 of 3 synced databases are pool members"]);
    let half = |cell: &mut Cell| {
        stand(cell, "b", Standing::Dead);
        shop(cell).instances.clear();
        strike(cell, &["c"]);
    };
    assert_eq!(seen(half), NOTHING, "the dead one does not count");
    let one_of_two = |cell: &mut Cell| {
        half(cell);
        strike(cell, &["b"]);
    };
    assert_eq!(seen(one_of_two), NOTHING, "half, after a step in good order");
    let turn = |cell: &mut Cell, name: &str| cell.pool1().bootstrap = Some(server(name));
    assert_eq!(seen(|cell| turn(cell, "b")), ["b may start a pool while a serves"]);
    let of_none = |cell: &mut Cell| {
        strike(cell, &["c"]);
        turn(cell, "c");
    };
    assert_eq!(seen(of_none), ["c may start the pool and is no member", "c may start a pool while a serves"]);

    let mut cell = rack().server("a", 1).start();
    cell.settle(30_000);
    let (mut before, mut after) = (cell.placed.clone(), cell.placed);
    before.pools.get_mut(&PoolName::first()).unwrap().bootstrap = Some(server("a"));
    after.pools.get_mut(&PoolName::first()).unwrap().bootstrap = Some(server("b"));
    let said: Vec<String> = check_change(&before, &after).iter().map(ToString::to_string).collect();
    assert_eq!(said, ["b may start the pool before the turn of a is over"]);
    assert_eq!(check_change(&before, &before), []);
}

#[test]
fn a_server_in_two_pools_is_seen() {
    let again = |cell: &mut Cell| {
        let members = [server("c")].into();
        let second = PoolPlacement { members, ..PoolPlacement::default() };
        cell.placed.pools.insert(pool("pool2"), second);
    };
    assert_eq!(seen(again), ["c is a member of two pools"]);
}

#[test]
fn an_address_that_is_to_go_where_it_is_is_seen() {
    let circular = |cell: &mut Cell| {
        cell.placed.vips.values_mut().for_each(|vip| vip.next = Some(vip.holder.clone()));
    };
    assert_eq!(seen(circular), ["10.0.1.1 is to move to where it is", "10.0.1.2 is to move to where it is"]);
}
