//! Which servers get a site's instances and keep its volume.

use std::collections::{BTreeMap, BTreeSet};

use kopek_core::desired::Standing;
use kopek_core::placement::Stage;
use kopek_core::{Moment, ServerId};
use kopek_sim::rack::{Rack, server, site};
use kopek_sim::{Cell, rack};

/// Twelve servers, `s1` to `s12`, on three racks.
fn large() -> Rack {
    (1..=12).fold(rack(), |rack, n| rack.server_in(&format!("r{}", (n - 1) / 4), &format!("s{n}"), 4))
}

fn holders(cell: &Cell, name: &str) -> BTreeSet<ServerId> {
    cell.placed.sites[&site(name)].holders.clone()
}

fn stand(cell: &mut Cell, name: &ServerId, standing: Standing) {
    cell.desired.servers.get_mut(name).expect("a server of this cell").standing = standing;
}

fn decided(cell: &Cell, about: &str) -> Vec<String> {
    cell.planned().into_iter().filter(|line| line.contains(about)).collect()
}

#[test]
fn a_large_cell_keeps_three_copies_of_a_volume_on_three_racks_and_the_same_number_everywhere() {
    let mut cell = (1..=8).fold(large(), |rack, n| rack.site(&format!("shop{n}"), 1)).start();
    cell.settle(30_000);
    let mut held = BTreeMap::<ServerId, usize>::new();
    for n in 1..=8 {
        let holders = holders(&cell, &format!("shop{n}"));
        let racks: BTreeSet<&String> = holders.iter().map(|it| &cell.desired.servers[it].rack).collect();
        assert_eq!((holders.len(), racks.len()), (3, 3), "{holders:?}");
        holders.into_iter().for_each(|holder| *held.entry(holder).or_default() += 1);
    }
    assert!(held.len() == 12 && held.values().all(|count| *count == 2), "{held:?}");
}

#[test]
fn a_copy_that_is_lost_is_made_anew_on_a_server_that_stays() {
    let mut cell = large().site("shop", 1).start();
    cell.settle(30_000);
    let holders = holders(&cell, "shop");
    let (lost, kept) = (holders.first().unwrap(), holders.last().unwrap());
    stand(&mut cell, kept, Standing::Draining);
    assert_eq!(decided(&cell, "hold shop"), [] as [&str; 0], "its copy is there as long as it is");
    stand(&mut cell, lost, Standing::Dead);
    cell.controller.as_mut().unwrap().observed.servers.remove(lost);
    let rack = cell.desired.servers[lost].rack.clone();
    let others = cell.desired.servers.values().filter(|it| it.rack == rack && !holders.contains(&it.name));
    let spare = others.min_by_key(|it| it.joined).unwrap().name.clone();
    stand(&mut cell, &spare, Standing::Draining);
    let planned = decided(&cell, "hold shop");
    assert!(planned.len() == 1 && planned[0].ends_with("2 of 3 holders are alive"), "{planned:?}");
    let next = planned[0].split([' ', ':']).nth(3).unwrap();
    assert!(next != spare.as_str() && cell.desired.servers[&server(next)].rack == rack, "{planned:?}");
    cell.desired.servers.remove(lost);
    let planned = decided(&cell, "no longer hold");
    assert_eq!(planned, [format!("no longer hold shop on {lost}: {lost} was removed from the cell")]);
}

#[test]
fn an_instance_goes_to_a_holder_and_where_there_is_none_left_its_server_becomes_one() {
    let mut cell = large().site("shop", 2).start();
    cell.settle(30_000);
    let holders = holders(&cell, "shop");
    assert!(cell.serving_on("shop").iter().all(|name| holders.contains(&server(name))));
    holders.iter().for_each(|holder| cell.heard_of(holder.as_str()).volumes.clear()); // still on its way
    cell.desired.sites.values_mut().for_each(|site| site.min = 3);
    let planned = cell.planned();
    let on_a_holder =
        holders.iter().any(|holder| planned[0].starts_with(&format!("place shop.3 on {holder}: ")));
    assert!(planned.len() == 1 && on_a_holder, "{planned:?}");
    cell.desired.sites.values_mut().for_each(|site| site.min = 4);
    let planned = cell.planned();
    assert!(planned.len() == 3 && planned[1].ends_with("an instance is placed there"), "{planned:?}");
    cell.settle(30_000);
    assert_eq!(cell.serving_on("shop").len(), 4);
}

#[test]
fn an_instance_goes_to_no_server_that_gives_no_sign_of_life() {
    let mut cell = rack().server("a", 4).server("b", 4).site("shop", 1).start();
    cell.settle(30_000);
    cell.run_ms(3_000);
    cell.desired.sites.values_mut().for_each(|site| site.min = 2);
    assert!(cell.planned()[0].starts_with("place shop.2 on b"), "{:?}", cell.planned());
    let refused = &mut cell.controller.as_mut().unwrap().observed.refused;
    refused.insert(server("b"), cell.now);
    let no_server = "no server fits: a runs one already, b does not report";
    assert_eq!(cell.planned(), [format!("blocked, shop: 1 of at least 2 instances: {no_server}")]);
}

#[test]
fn an_instance_goes_rather_where_none_of_its_site_drains() {
    let mut cell = rack().server("a", 4).server("b", 4).site("shop", 1).site("web", 1).start();
    cell.settle(30_000);
    let until = Moment(cell.now.0 + 9_000);
    let instances = &mut cell.placed.sites.get_mut(&site("shop")).unwrap().instances;
    instances.values_mut().for_each(|it| it.stage = Stage::Drain { until });
    assert!(cell.planned()[0].starts_with("place shop.2 on b"), "{:?}", cell.planned());
}

#[test]
fn in_a_large_cell_the_servers_that_do_not_fit_are_counted() {
    let mut cell = large().site("shop", 1).start();
    cell.desired.servers.values_mut().for_each(|server| server.slots = 0);
    cell.run_ms(5_000);
    let blocked = decided(&cell, "blocked, shop");
    assert_eq!(
        blocked,
        ["blocked, shop: 0 of at least 1 instances: none of 12 servers fits: 12× has no free slot"]
    );
}
