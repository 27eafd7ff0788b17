//! Who counts for dead, and when a server that returns counts again.

use kopek_core::desired::Standing;
use kopek_core::observed::{MemberState, Observed, SeenMember};
use kopek_core::{Moment, ServerId};
use kopek_sim::rack::{digest, server, site};
use kopek_sim::{Cell, rack};

fn cell_of(servers: &[&str]) -> Cell {
    let rack = servers.iter().fold(rack(), |rack, name| rack.server(name, 4));
    let mut cell = rack.site("shop", 1).start();
    cell.settle(30_000);
    cell
}

fn observed(cell: &mut Cell) -> &mut Observed {
    &mut cell.controller.as_mut().expect("a settled cell has a controller").observed
}

fn silence(cell: &mut Cell, name: &str, millis: u64) {
    let at = Moment(cell.now.0 - millis);
    observed(cell).since = Moment(0);
    observed(cell).servers.get_mut(&server(name)).expect("a server of this cell").at = at;
}

fn refuse(cell: &mut Cell, name: &str, millis: u64) {
    let since = Moment(cell.now.0 - millis);
    observed(cell).refused.insert(server(name), since);
}

/// What is decided about who counts.
fn decided(cell: &Cell) -> Vec<String> {
    let about = |line: &String| ["declare", "readmit", "blocked, cell"].iter().any(|it| line.starts_with(it));
    cell.planned().into_iter().filter(about).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn half_of_the_servers_may_die_of_silence_at_once_and_more_may_not() {
    let mut cell = cell_of(&["a", "b"]);
    silence(&mut cell, "b", 2_500);
    assert_eq!(decided(&cell), NOTHING);
    silence(&mut cell, "b", 2_501);
    assert_eq!(decided(&cell), ["declare b dead: no report for 2.5 s"]);

    let mut cell = cell_of(&["a", "b", "c", "d"]);
    cell.desired.servers.get_mut(&server("d")).unwrap().standing = Standing::Dead;
    for name in ["b", "c", "d"] {
        silence(&mut cell, name, 3_000);
    }
    let said = decided(&cell);
    assert!(
        said.len() == 1 && said[0].starts_with("blocked, cell: b, c are silent, more than half"),
        "{said:?}"
    );
}

#[test]
fn a_server_that_refuses_is_dead_whatever_the_others_do() {
    let mut cell = cell_of(&["a", "b", "c", "d"]);
    refuse(&mut cell, "d", 99);
    assert_eq!(decided(&cell), NOTHING);
    refuse(&mut cell, "d", 100);
    let dead = "declare d dead: its ports refuse connections";
    assert_eq!(decided(&cell), [dead]);
    for name in ["a", "b", "c"] {
        silence(&mut cell, name, 3_000);
    }
    let said = decided(&cell);
    assert!(said.len() == 2 && said[0] == dead && said[1].starts_with("blocked, cell: a, b, c"), "{said:?}");

    let mut cell = cell_of(&["a", "b", "c"]);
    refuse(&mut cell, "b", 100);
    silence(&mut cell, "b", 3_000);
    silence(&mut cell, "c", 3_000);
    let dead = ["declare c dead: no report for 3.0 s", "declare b dead: its ports refuse connections"];
    assert_eq!(decided(&cell), dead, "one of three is silent, not two");
}

#[test]
fn a_server_that_joined_just_now_and_has_reported_since_may_be_seen_to_die() {
    let mut cell = cell_of(&["a", "b", "c"]);
    cell.desired.servers.get_mut(&server("c")).unwrap().joined = Moment(cell.now.0 - 1_000);
    refuse(&mut cell, "c", 100);
    assert_eq!(decided(&cell), ["declare c dead: its ports refuse connections"]);
}

/// `c` returns, and lacks something that the others have or have not.
fn returning(lack: fn(&mut Cell, &ServerId), others: fn(&mut Cell, &ServerId)) -> Vec<String> {
    let mut cell = cell_of(&["a", "b", "c"]);
    cell.desired.servers.get_mut(&server("c")).expect("a server of this cell").standing = Standing::Returning;
    lack(&mut cell, &server("c"));
    others(&mut cell, &server("a"));
    others(&mut cell, &server("b"));
    decided(&cell)
}

#[test]
fn a_server_that_returns_waits_for_what_another_one_has_and_not_for_what_nobody_has() {
    let back = ["readmit c: it has all images, volumes and databases"];
    let nothing = |_: &mut Cell, _: &ServerId| {};
    assert_eq!(returning(nothing, nothing), back);
    let not_written = |cell: &mut Cell, name: &ServerId| {
        *observed(cell).generations.get_mut(name).unwrap() += 1;
    };
    assert_eq!(returning(not_written, nothing), NOTHING, "it follows an older assignment");
    let no_images = |cell: &mut Cell, name: &ServerId| cell.heard_of(name.as_str()).images.clear();
    let old_volume = |cell: &mut Cell, name: &ServerId| {
        let volumes = &mut cell.heard_of(name.as_str()).volumes;
        volumes.get_mut(&site("shop")).unwrap().tree = digest("shop", 0);
    };
    let not_synced = |cell: &mut Cell, name: &ServerId| {
        let member: &mut SeenMember = cell.heard_of(name.as_str()).member.as_mut().unwrap();
        member.state = MemberState::Starting;
    };
    for lack in [no_images, old_volume, not_synced] {
        assert_eq!(returning(lack, nothing), NOTHING);
        assert_eq!(returning(lack, lack), back);
    }
    let not_held = |cell: &mut Cell, name: &ServerId| {
        cell.heard_of(name.as_str()).volumes.clear();
        cell.placed.sites.get_mut(&site("shop")).unwrap().holders.remove(name);
    };
    assert_eq!(returning(not_held, nothing), back, "it is not to hold that volume");
}
