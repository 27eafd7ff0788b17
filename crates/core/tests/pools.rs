//! More pools than the first: where they begin, that they are apart, and where a new site goes.

use std::collections::BTreeSet;

use kopek_core::desired::{Pool, Standing};
use kopek_core::observed::{MemberState, Observed};
use kopek_core::plan::{PoolChoice, found_pool, pool_for_site};
use kopek_core::{Bytes, PoolName, ServerId};
use kopek_sim::rack::{pool, server, site};
use kopek_sim::{Cell, rack};

fn cell_of(servers: &[(&str, &str)]) -> Cell {
    let rack = servers.iter().fold(rack(), |all, (rack, name)| all.server_in(rack, name, 4));
    let mut cell = rack.site("shop", 1).start();
    cell.settle(30_000);
    cell
}

/// a, b, c carry the first pool; d to g, of two racks, are free.
fn with_four_free() -> Cell {
    let four = [("r1", "d"), ("r1", "e"), ("r1", "f"), ("r2", "g")];
    cell_of(&[&[("r1", "a"), ("r2", "b"), ("r3", "c")], &four[..]].concat())
}

fn observed(cell: &Cell) -> &Observed {
    &cell.controller.as_ref().expect("a settled cell has a controller").observed
}

/// What `kopek pool create` is answered.
fn asked(cell: &Cell, name: &str, servers: &[&str]) -> Result<Vec<String>, String> {
    let named: BTreeSet<ServerId> = servers.iter().map(|name| server(name)).collect();
    let founded = found_pool(&cell.desired, &cell.placed, observed(cell), cell.now, &pool(name), &named);
    let names = |servers: BTreeSet<ServerId>| servers.iter().map(ServerId::to_string).collect();
    founded.map(names).map_err(|error| error.to_string())
}

fn create(cell: &mut Cell, name: &str, servers: &[&str]) {
    let servers: BTreeSet<ServerId> = asked(cell, name, servers)
        .expect("a pool that may be made")
        .iter()
        .map(|name| server(name))
        .collect();
    let made = Pool { name: pool(name), size: servers.len(), servers, created: cell.now };
    cell.desired.pools.insert(made.name.clone(), made);
}

fn members(cell: &Cell, name: &str) -> Vec<String> {
    cell.placed.pool(&pool(name)).members.iter().map(ServerId::to_string).collect()
}

#[test]
fn a_pool_begins_on_the_servers_that_were_named_or_on_three_free_ones_over_the_racks() {
    let mut cell = with_four_free();
    assert_eq!(members(&cell, "pool1"), ["a", "b", "c"]);
    assert_eq!(asked(&cell, "pool2", &["e"]), Ok(vec!["e".to_owned()]));
    assert_eq!(asked(&cell, "pool2", &[]).unwrap(), ["d", "e", "g"], "not all three on one rack");
    create(&mut cell, "pool2", &["d", "e", "f"]);
    assert_eq!(asked(&cell, "pool3", &[]).unwrap(), ["g"], "three are not free");
    assert_eq!(
        asked(&cell, "pool3", &["d"]).unwrap_err(),
        "server d carries a member of pool2, and a server \
        carries one at most",
        "also before the planner has placed them"
    );
    cell.settle(30_000);
    assert_eq!(
        (members(&cell, "pool1"), members(&cell, "pool2")),
        (["a", "b", "c"].map(str::to_owned).to_vec(), ["d", "e", "f"].map(str::to_owned).to_vec())
    );
    create(&mut cell, "pool3", &[]);
    let nobody = asked(&cell, "pool4", &[]).unwrap_err();
    assert!(nobody.starts_with("no server is free for pool pool4"), "{nobody}");
}

#[test]
fn a_pool_that_cannot_begin_so_is_refused_with_the_reason() {
    let mut cell = with_four_free();
    let says = |cell: &Cell, name: &str, servers: &[&str], words: &str| {
        let said = asked(cell, name, servers).unwrap_err();
        assert!(said.contains(words), "{said}");
    };
    says(&cell, "pool1", &["d"], "there is a pool pool1 already");
    says(&cell, "pool2", &["d", "e"], "1, 3 or 5 members, not 2");
    says(&cell, "pool2", &["x"], "there is no server x");
    says(&cell, "pool2", &["a"], "server a carries a member of pool1");
    cell.drain("d");
    says(&cell, "pool2", &["d"], "server d cannot carry a new member: it drains");
    cell.desired.servers.get_mut(&server("e")).unwrap().standing = Standing::Dead;
    says(&cell, "pool2", &["d", "e", "f"], "it drains");
    says(&cell, "pool2", &["e"], "it is dead");
    cell.controller.as_mut().unwrap().observed.servers.remove(&server("f"));
    says(&cell, "pool2", &["f"], "it does not report");
    assert_eq!(asked(&cell, "pool2", &[]).unwrap(), ["g"]);
    create(&mut cell, "pool2", &["g"]);
    says(&cell, "pool2", &["g"], "there is a pool pool2 already");
}

#[test]
fn each_pool_has_its_own_sites_writers_and_members() {
    let mut cell = with_four_free();
    create(&mut cell, "pool2", &["d", "e", "f"]);
    let mut blog = cell.desired.sites[&site("shop")].clone();
    (blog.name, blog.number, blog.pool) = (site("blog"), 2, pool("pool2"));
    blog.domains.clear();
    cell.desired.sites.insert(blog.name.clone(), blog);
    cell.settle(60_000);
    assert_eq!((cell.writer("shop"), cell.writer("blog")), (Some("a"), Some("d")));
    // The whole of the first pool goes: the second does not notice, and nobody takes its place.
    ["a", "b", "c"].into_iter().for_each(|name| cell.kill(name));
    cell.run_ms(20_000);
    assert!(!cell.pool_serves(&PoolName::first()) && cell.pool_serves(&pool("pool2")));
    ["a", "b", "c"].into_iter().for_each(|name| cell.boot(name));
    cell.kill("d");
    cell.run_until("another member of its pool writes", 30_000, |cell| cell.writer("blog") == Some("e"));
    cell.boot("d");
    cell.settle(120_000);
    assert_eq!(members(&cell, "pool2"), ["d", "e", "f"]);
}

#[test]
fn a_member_of_any_pool_whose_server_is_lost_for_good_is_replaced_by_a_free_one() {
    let mut cell = with_four_free();
    create(&mut cell, "pool2", &["d", "e", "f"]);
    cell.settle(60_000);
    cell.kill("e");
    cell.run_until("e is dead", 10_000, |cell| cell.standing("e") == Some(Standing::Dead));
    cell.desired.servers.remove(&server("e"));
    cell.machines.remove(&server("e"));
    cell.run_until("g took its place", 30_000, |cell| members(cell, "pool2") == ["d", "f", "g"]);
    cell.settle(60_000);
    assert_eq!(members(&cell, "pool1"), ["a", "b", "c"]);
}

#[test]
fn what_a_server_reports_of_the_pool_that_it_left_says_nothing_of_the_one_it_is_given_to() {
    let mut cell = with_four_free();
    create(&mut cell, "pool2", &["d"]);
    let seen = cell.heard_of("a").member.clone();
    cell.heard_of("d").member = seen;
    let about = |line: &String| line.contains("pool2");
    let planned: Vec<String> = cell.planned().into_iter().filter(about).collect();
    assert_eq!(
        planned,
        [
            "pool2 member d: the pool has 0 of 1 members",
            "start pool2 on d: the pool starts for the first time"
        ],
        "d still has data of the first pool: the second is not in service"
    );
}

#[test]
fn a_new_site_goes_to_the_pool_with_the_fewest_sites_that_serves_and_has_room() {
    let mut cell = with_four_free();
    let chosen = |cell: &Cell| {
        let PoolChoice { pool, reason } =
            pool_for_site(&cell.desired, &cell.placed, observed(cell), cell.now);
        (pool.to_string(), reason)
    };
    let says = |pool: &str, reason: &str| (pool.to_owned(), reason.to_owned());
    assert_eq!(chosen(&cell), says("pool1", "it is the only one"));
    create(&mut cell, "pool2", &["d", "e", "f"]);
    assert_eq!(chosen(&cell).0, "pool1", "the other does not serve yet");
    cell.settle(60_000);
    assert_eq!(chosen(&cell), says("pool2", "it has 0 sites, and no pool in service has fewer"));
    cell.heard_of("f").disk_free = Bytes::mib(1_023);
    assert_eq!(chosen(&cell).0, "pool1", "a member has no room");
    cell.heard_of("f").disk_free = Bytes::mib(1_024);
    for name in ["d", "e"] {
        cell.heard_of(name).member.as_mut().unwrap().state = MemberState::Starting;
    }
    assert_eq!(chosen(&cell).0, "pool1", "most of its members do not serve");
    for name in ["a", "b", "c", "f"] {
        cell.heard_of(name).member.as_mut().unwrap().state = MemberState::Starting;
    }
    assert_eq!(chosen(&cell), says("pool2", "no pool is in service now"));
}
