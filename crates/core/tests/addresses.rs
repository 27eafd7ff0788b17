//! Where public addresses are, where they go, and what keepalived is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kopek_core::Moment;
use kopek_core::assign::assignments;
use kopek_core::assignment::AssignedVip;
use kopek_core::desired::Standing;
use kopek_core::observed::Health;
use kopek_core::placement::PlacedVip;
use kopek_sim::rack::server;
use kopek_sim::{Cell, rack};

fn vip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

/// Three servers and these addresses, each where it is said and as long as can matter; all reports agree.
fn cell(holders: &[&str]) -> Cell {
    let mut cell = rack().server("a", 4).server("b", 4).server("c", 4).start();
    cell.settle(30_000);
    cell.desired.cell.vips = (1..=holders.len() as u8).map(vip).collect();
    cell.placed.vips.clear();
    for name in ["a", "b", "c"] {
        cell.heard_of(name).vips.clear();
    }
    for (last, name) in (1..).zip(holders) {
        let holder = PlacedVip { holder: server(name), next: None, since: Moment(0) };
        cell.placed.vips.insert(vip(last), holder);
        cell.heard_of(name).vips.push(vip(last));
    }
    cell
}

fn placed(cell: &mut Cell, last: u8) -> &mut PlacedVip {
    cell.placed.vips.get_mut(&vip(last)).expect("one of the cell's")
}

fn stand(cell: &mut Cell, name: &str, standing: Standing) {
    cell.desired.servers.get_mut(&server(name)).expect("a server of this cell").standing = standing;
}

/// Where the address is seen, and nowhere else.
fn seen_on(cell: &mut Cell, last: u8, names: &[&str]) {
    for name in ["a", "b", "c"] {
        let vips = &mut cell.heard_of(name).vips;
        vips.retain(|held| *held != vip(last));
        if names.contains(&name) {
            vips.push(vip(last));
        }
    }
}

/// What is decided about addresses.
fn decided(cell: &Cell) -> Vec<String> {
    cell.planned().into_iter().filter(|line| line.contains("10.0.1.")).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn an_address_is_noted_where_one_server_alone_has_it_once_a_take_over_is_over() {
    let mut cell = cell(&["a", "b"]);
    assert_eq!(decided(&cell), NOTHING);
    seen_on(&mut cell, 1, &["b", "c"]);
    assert_eq!(decided(&cell), NOTHING, "two say that they have it");
    seen_on(&mut cell, 1, &["c"]);
    assert_eq!(decided(&cell), ["10.0.1.1 is at c: it left a by itself"]);
    placed(&mut cell, 1).since = Moment(cell.now.0 - 2_999);
    assert_eq!(decided(&cell), NOTHING, "an earlier holder may still be seen");
    placed(&mut cell, 1).next = Some(server("c"));
    assert_eq!(decided(&cell), ["10.0.1.1 is at c: a has let it go"], "that one was expected there");
    placed(&mut cell, 1).next = None;
    stand(&mut cell, "a", Standing::Dead);
    let observed = &mut cell.controller.as_mut().unwrap().observed;
    observed.servers.remove(&server("a"));
    *observed.generations.get_mut(&server("c")).unwrap() += 1; // which it has still to read
    assert_eq!(decided(&cell), ["10.0.1.1 is at c: a is dead"]);
    stand(&mut cell, "c", Standing::Returning);
    assert_eq!(decided(&cell), NOTHING, "what is not back yet holds nothing");
}

#[test]
fn a_new_address_is_where_it_is_seen_or_else_on_the_first_edge_that_is_well_and_stays() {
    let mut cell = cell(&[]);
    cell.desired.cell.vips = BTreeSet::from([vip(1)]);
    seen_on(&mut cell, 1, &["c"]);
    assert_eq!(decided(&cell), ["10.0.1.1 is at c: its first"]);
    seen_on(&mut cell, 1, &[]);
    assert_eq!(decided(&cell), ["10.0.1.1 is at a: its first"]);
    stand(&mut cell, "a", Standing::Draining);
    cell.heard_of("b").edge = Health::Ill;
    assert_eq!(decided(&cell), ["10.0.1.1 is at c: its first"]);
}

#[test]
fn an_address_that_the_cell_has_no_more_is_forgotten() {
    let mut cell = cell(&["a", "b"]);
    cell.desired.cell.vips.remove(&vip(2));
    assert_eq!(decided(&cell), ["forget 10.0.1.2: the cell has it no more"]);
}

#[test]
fn an_address_that_was_to_move_stays_when_its_next_holder_cannot_take_it_any_more() {
    let mut cell = cell(&["a", "b"]);
    stand(&mut cell, "b", Standing::Draining);
    placed(&mut cell, 2).next = Some(server("c"));
    assert_eq!(decided(&cell), NOTHING);
    cell.heard_of("c").edge = Health::Ill;
    assert_eq!(decided(&cell), ["leave 10.0.1.2 where it is: c cannot take it"]);
    cell.heard_of("c").edge = Health::Well;
    stand(&mut cell, "c", Standing::Draining);
    assert_eq!(decided(&cell), ["leave 10.0.1.2 where it is: c cannot take it"]);
}

#[test]
fn the_addresses_of_a_draining_server_go_to_different_edges() {
    let mut cell = cell(&["a", "b", "b"]);
    stand(&mut cell, "b", Standing::Draining);
    assert_eq!(decided(&cell), ["move 10.0.1.2 to c: b drains", "move 10.0.1.3 to a: b drains"]);
}

#[test]
fn an_idle_edge_gets_one_address_of_the_most_crowded_when_all_have_been_at_rest() {
    let mut cell = cell(&["a", "b", "b"]);
    let spread = ["move 10.0.1.2 to c: b holds 2, c holds 0"];
    assert_eq!(decided(&cell), spread);
    placed(&mut cell, 3).since = Moment(cell.now.0 - 9_999);
    assert_eq!(decided(&cell), NOTHING, "one came only just now");
    placed(&mut cell, 3).since = Moment(0);
    seen_on(&mut cell, 3, &[]);
    assert_eq!(decided(&cell), NOTHING, "one is nowhere to be seen");
    seen_on(&mut cell, 3, &["b"]);
    assert_eq!(decided(&cell), spread);
    cell.heard_of("c").edge = Health::Ill;
    assert_eq!(decided(&cell), NOTHING, "a has one already and c cannot take it");
    let mut moving = self::cell(&["b", "b", "b"]);
    placed(&mut moving, 3).next = Some(server("c"));
    assert_eq!(decided(&moving), NOTHING, "one is still on its way");
    let mut ill = self::cell(&["b", "b"]);
    for name in ["a", "b", "c"] {
        ill.heard_of(name).edge = Health::Ill;
    }
    assert_eq!(decided(&ill), NOTHING);
}

/// What keepalived of each server is told of one address: `254 Stay`.
fn told(cell: &Cell, last: u8) -> Vec<String> {
    let seen = &cell.controller.as_ref().expect("a settled cell has a controller").observed;
    let told = |(name, assignment): (kopek_core::ServerId, kopek_core::assignment::Assignment)| {
        let of = assignment.vips.into_iter().find(|it| it.address == vip(last));
        of.map(|AssignedVip { priority, tenure, .. }| format!("{name} {priority} {tenure:?}"))
    };
    assignments(&cell.desired, &cell.placed, seen).into_iter().filter_map(told).collect()
}

#[test]
fn keepalived_prefers_the_holder_then_where_it_goes_then_each_address_another_server_and_draining_ones_last()
{
    let mut cell = cell(&["a", "b"]);
    assert_eq!(told(&cell, 1), ["a 254 Stay", "b 251 Stay", "c 250 Stay"]);
    assert_eq!(told(&cell, 2), ["a 250 Stay", "b 254 Stay", "c 251 Stay"]);
    placed(&mut cell, 1).next = Some(server("c"));
    assert_eq!(told(&cell, 1), ["a 254 Leave", "b 251 Stay", "c 253 Stay"]);
    stand(&mut cell, "c", Standing::Draining);
    assert_eq!(told(&cell, 1), ["a 254 Stay", "b 251 Stay", "c 123 Stay"], "it cannot go there");
    stand(&mut cell, "a", Standing::Dead);
    stand(&mut cell, "b", Standing::Returning);
    assert_eq!(told(&cell, 1), ["c 123 Stay"]);
}

#[test]
fn every_address_has_a_router_id_of_its_own_that_another_one_does_not_change() {
    let cell = cell(&["a"]);
    let routers = |cell: &Cell, vips: &[[u8; 4]]| -> BTreeMap<IpAddr, u8> {
        let mut desired = cell.desired.clone();
        desired.cell.vips = vips.iter().map(|vip| IpAddr::from(*vip)).collect();
        let seen = &cell.controller.as_ref().unwrap().observed;
        let assigned = assignments(&desired, &cell.placed, seen).remove(&server("a")).unwrap();
        assigned.vips.into_iter().map(|vip| (vip.address, vip.router)).collect()
    };
    let vips = [[10, 0, 1, 7], [10, 0, 2, 7], [10, 0, 3, 0], [10, 0, 3, 255], [10, 0, 4, 1]];
    let all = routers(&cell, &vips);
    assert_eq!(all.values().collect::<BTreeSet<_>>().len(), vips.len(), "{all:?}");
    assert!(all.values().all(|router| *router >= 1), "{all:?}");
    assert_eq!((all[&vip(7)], routers(&cell, &vips[..1])[&vip(7)]), (7, 7));
    let mut more = vips.to_vec();
    more.push([10, 0, 9, 9]);
    let with_more = routers(&cell, &more);
    assert!(all.iter().all(|(vip, router)| with_more[vip] == *router), "{all:?}, {with_more:?}");
    // As many as there are ids (RFC 5798 section 5.2.3), however their last bytes collide.
    let mut many: Vec<[u8; 4]> = (1..=255).filter(|n| *n != 10).map(|n| [10, 1, 0, n]).collect();
    many.push([10, 2, 0, 11]);
    let ids: BTreeSet<u8> = routers(&cell, &many).into_values().collect();
    assert_eq!(ids, (1..=255).collect());
}
