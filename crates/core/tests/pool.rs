//! Who is a member of the pool, who starts it, and which member serves a site.

use std::collections::{BTreeMap, BTreeSet};

use kopek_core::assign::assignments;
use kopek_core::assignment::Start;
use kopek_core::desired::Standing;
use kopek_core::observed::{MemberState, Position, Seen, SeenMember};
use kopek_core::plan::{Plan, apply, move_writer};
use kopek_core::{Moment, PoolName, ServerId};
use kopek_sim::rack::{server, site};
use kopek_sim::{Cell, rack};

fn cell_of(servers: &[&str]) -> Cell {
    let mut cell = servers.iter().fold(rack(), |rack, name| rack.server(name, 4)).site("shop", 1).start();
    cell.settle(30_000);
    cell
}

fn stand(cell: &mut Cell, name: &str, standing: Standing) {
    cell.desired.servers.get_mut(&server(name)).expect("a server of this cell").standing = standing;
}

fn member<'a>(cell: &'a mut Cell, name: &str) -> &'a mut SeenMember {
    cell.heard_of(name).member.as_mut().expect("a member")
}

fn unready() -> MemberState {
    MemberState::Unready { why: "no quorum".to_owned() }
}

/// Three members, none in service since long, each at this position.
fn stopped(states: [MemberState; 3], seqnos: [i64; 3]) -> Cell {
    let mut cell = cell_of(&["a", "b", "c"]);
    cell.run_ms(3_000);
    for ((name, state), seqno) in ["a", "b", "c"].into_iter().zip(states).zip(seqnos) {
        let group = if seqno < 0 { "none" } else { "group-1" }.to_owned();
        let position = Some(Position { group, seqno });
        let seen = member(&mut cell, name);
        *seen = SeenMember { state, group_size: 0, group: BTreeSet::new(), position, ..seen.clone() };
    }
    cell.pool1().stopped = Some(Moment(0));
    cell
}

/// What is decided about the pool and its writers.
fn decided(cell: &Cell) -> Vec<String> {
    let about = |line: &String| line.contains("pool") || line.contains("writer");
    cell.planned().into_iter().filter(about).collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn the_pool_has_an_odd_number_of_members_over_the_racks() {
    let members = |servers: usize, size| {
        let rack = (0..servers)
            .fold(rack(), |rack, n| rack.server_in(&format!("r{}", n / 3), &format!("s{}", n + 1), 4));
        let mut cell = rack.pool(size).site("shop", 1).start();
        cell.settle(60_000);
        cell.placed.pool(&PoolName::first()).members.iter().map(ServerId::to_string).collect::<Vec<_>>()
    };
    assert_eq!(members(2, 3), ["s1"]);
    assert_eq!(members(4, 3), ["s1", "s2", "s4"]);
    assert_eq!(members(4, 5), ["s1", "s2", "s4"]);
    assert_eq!(members(6, 5), ["s1", "s2", "s3", "s4", "s5"]);
}

#[test]
fn a_member_of_a_draining_server_is_replaced_then_moved_off_then_struck_off() {
    let mut cell = cell_of(&["a", "b", "c", "d"]);
    let begin = cell.log.len();
    cell.drain("a");
    cell.run_until("a is no member", 30_000, |cell| {
        !cell.placed.pool(&PoolName::first()).members.contains(&server("a"))
    });
    let said: Vec<&str> = cell.log[begin..]
        .iter()
        .filter_map(|line| line.split_once("s  ")?.1.trim().split(':').next())
        .filter(|line| line.contains("pool") || line.contains("writer"))
        .collect();
    assert_eq!(said, ["pool1 member d", "writer of shop is b (epoch 2)", "no pool1 member a"]);

    let mut cell = cell_of(&["a", "b", "c", "d"]);
    cell.drain("c");
    assert_eq!(
        decided(&cell),
        ["pool1 member d: the pool has 2 of 3 members", "no pool1 member c: c drains"]
    );
    let observed = &mut cell.controller.as_mut().unwrap().observed;
    let unheard = observed.servers.remove(&server("d"));
    assert_eq!(decided(&cell), NOTHING, "d has not reported, and three are wanted");
    cell.controller.as_mut().unwrap().observed.servers.extend(unheard.map(|seen| (server("d"), seen)));
    cell.drain("d");
    assert_eq!(decided(&cell), NOTHING, "d drains too");
}

#[test]
fn no_member_leaves_while_it_writes_or_alone_is_in_service() {
    let mut cell = cell_of(&["a", "b", "c"]);
    cell.desired.cell.pool_size = 1;
    assert_eq!(decided(&cell), ["no pool1 member c: 1 members are enough"]);
    cell.placed.sites.get_mut(&site("shop")).unwrap().writer.as_mut().unwrap().server = server("c");
    assert_eq!(decided(&cell), NOTHING, "c writes");
    for name in ["a", "b"] {
        member(&mut cell, name).state = MemberState::Starting;
    }
    assert_eq!(decided(&cell), ["blocked, pool1: c cannot leave: no other member is in service"]);
}

#[test]
fn that_the_pool_serves_again_is_noted() {
    let mut cell = cell_of(&["a", "b", "c"]);
    cell.pool1().stopped = Some(Moment(0));
    assert_eq!(decided(&cell), ["pool1 serves again: a is synced"]);
}

#[test]
fn the_member_that_writes_for_a_site_makes_its_database_and_no_other() {
    let cell = cell_of(&["a", "b", "c"]);
    let seen = &cell.controller.as_ref().unwrap().observed;
    let all = assignments(&cell.desired, &cell.placed, seen);
    let makes = ["a", "b", "c"].map(|name| all[&server(name)].member.as_ref().unwrap().databases.len());
    assert_eq!(makes, [1, 0, 0]);
}

#[test]
fn nobody_becomes_a_member_of_a_pool_that_could_give_it_no_copy() {
    let mut cell = stopped([unready(), unready(), unready()], [5, 5, 5]);
    cell.desired.servers.remove(&server("c"));
    let mut new = cell.desired.servers[&server("b")].clone();
    new.name = server("d");
    let mut seen = cell.controller.as_ref().unwrap().observed.servers[&server("b")].clone();
    (seen.report.server, seen.report.member) = (server("d"), None);
    cell.desired.servers.insert(server("d"), new);
    cell.controller.as_mut().unwrap().observed.servers.insert(server("d"), seen);
    assert!(!decided(&cell).iter().any(|line| line.starts_with("pool member")), "{:?}", decided(&cell));
}

#[test]
fn after_a_stop_the_newest_starts_when_nothing_else_can_bring_the_pool_back() {
    use MemberState::{Starting, Stopped};
    let start = |name, seqno| [format!("start pool1 on {name}: newest of 3 members, at {seqno}")];
    assert_eq!(decided(&stopped([Stopped, Stopped, Stopped], [5, 7, 6])), start("b", 7));
    assert_eq!(
        decided(&stopped([Stopped, Stopped, Stopped], [-1, 6, 6])),
        start("b", 6),
        "a never had a copy"
    );
    assert_eq!(
        decided(&stopped([unready(), Starting, Stopped], [5, 7, 6])),
        NOTHING,
        "a may give b its copy"
    );
    let mut cell = stopped([unready(), unready(), Stopped], [7, 6, 5]);
    assert_eq!(decided(&cell), start("a", 7), "they had the time to find one another");
    cell.pool1().stopped = Some(Moment(cell.now.0 - 7_999));
    assert_eq!(decided(&cell), NOTHING, "a and b may find one another again");
    *member(&mut cell, "b") = SeenMember { state: Stopped, ..member(&mut cell, "b").clone() };
    assert_eq!(decided(&cell), start("a", 7), "a alone waits for nobody");
    *member(&mut cell, "c") =
        SeenMember { state: Starting, position: None, ..member(&mut cell, "c").clone() };
    *member(&mut cell, "a") = SeenMember { state: Stopped, ..member(&mut cell, "a").clone() };
    assert_eq!(decided(&cell), NOTHING, "being read from disk");
    cell.pool1().stopped = None;
    assert_eq!(decided(&cell), ["pool1 is out of service: no member is synced"]);
    let none = decided(&stopped([Stopped, Stopped, Stopped], [-1, -1, -1]));
    assert_eq!(none, ["blocked, pool1: no member has any data: restore a backup"]);
}

#[test]
fn a_member_whose_data_cannot_be_read_is_named_instead_of_being_waited_for_in_silence() {
    let mut cell = stopped([MemberState::Stopped, MemberState::Stopped, MemberState::Stopped], [5, 7, 6]);
    member(&mut cell, "a").position = None;
    assert_eq!(
        decided(&cell),
        [
            "blocked, pool1: no member is in service, and the data of a cannot be read (the agent's log there says \
          why): mend them, or give the server up with `kopek server remove`"
        ]
    );
}

#[test]
fn at_the_first_start_one_that_has_data_begins_and_one_that_died_at_it_keeps_its_turn() {
    use MemberState::Stopped;
    let mut cell = stopped([Stopped, Stopped, Stopped], [-1, 0, -1]);
    cell.pool1().formed = false;
    assert_eq!(decided(&cell), ["start pool1 on b: the pool starts for the first time"]);
    cell.pool1().bootstrap = Some(server("b"));
    assert_eq!(decided(&cell), NOTHING);
    stand(&mut cell, "b", Standing::Dead);
    cell.controller.as_mut().unwrap().observed.servers.remove(&server("b"));
    let planned = decided(&cell);
    assert!(planned.len() == 1 && planned[0].starts_with("blocked, pool1: b died while it"), "{planned:?}");
    cell.pool1().formed = true;
    let planned = decided(&cell);
    assert_eq!(planned[0], "b no longer starts pool1: b is dead");
    assert!(!planned.iter().any(|line| line.starts_with("start")), "{planned:?}");
}

#[test]
fn a_member_whose_server_is_lost_for_good_is_replaced() {
    let mut cell = cell_of(&["a", "b", "c", "d"]);
    cell.kill("c");
    cell.run_until("c is dead", 10_000, |cell| cell.standing("c") == Some(Standing::Dead));
    cell.run_ms(30_000);
    let members = |cell: &Cell| {
        cell.placed.pool(&PoolName::first()).members.iter().map(ServerId::to_string).collect::<Vec<_>>()
    };
    assert_eq!(members(&cell), ["a", "b", "c"], "it may come back with what only it has");
    cell.desired.servers.remove(&server("c"));
    cell.machines.remove(&server("c"));
    cell.run_until("d took its place", 30_000, |cell| members(cell) == ["a", "b", "d"]);
    cell.settle(30_000);
    assert!(cell.pools[&PoolName::first()].members[&server("d")].process == kopek_sim::pool::Process::Synced);
}

/// How each member may start.
fn starts(cell: &Cell) -> [Start; 3] {
    let seen = &cell.controller.as_ref().expect("a settled cell has a controller").observed;
    let all = assignments(&cell.desired, &cell.placed, seen);
    ["a", "b", "c"].map(|name| all[&server(name)].member.as_ref().expect("a member").start)
}

#[test]
fn members_join_one_that_serves_or_may_serve_and_hold_while_another_starts_the_pool() {
    use MemberState::{Stopped, Synced};
    use Start::{Bootstrap, Hold, Join};
    let mut cell = stopped([Stopped, Stopped, Stopped], [5, 5, 5]);
    assert_eq!(starts(&cell), [Hold, Hold, Hold]);
    cell.pool1().bootstrap = Some(server("a"));
    assert_eq!(starts(&cell), [Bootstrap, Hold, Hold]);
    member(&mut cell, "b").state = Synced;
    assert_eq!(starts(&cell), [Join, Hold, Join], "b itself is in service");
    cell.pool1().bootstrap = None;
    member(&mut cell, "b").state = Stopped;
    cell.controller.as_mut().unwrap().observed.servers.remove(&server("c"));
    assert_eq!(starts(&cell), [Join, Join, Hold], "c has not reported to this controller yet");
    stand(&mut cell, "c", Standing::Dead);
    assert_eq!(starts(&cell), [Hold, Hold, Hold]);
    member(&mut cell, "b").state = Synced;
    stand(&mut cell, "b", Standing::Dead);
    assert_eq!(starts(&cell)[0], Hold, "what was heard of b is from before its death");
}

/// The database of `shop`, whose writer is `a`.
#[test]
fn a_writer_stays_until_it_is_known_not_to_serve() {
    let to_b = |why: &str| vec![format!("writer of shop is b (epoch 2): {why}")];
    let with = |change: fn(&mut Cell)| {
        let mut cell = cell_of(&["a", "b", "c"]);
        change(&mut cell);
        let about = |line: &String| line.starts_with("writer");
        cell.planned().into_iter().filter(about).collect::<Vec<_>>()
    };
    assert_eq!(with(|_| {}), NOTHING);
    assert_eq!(with(|cell| stand(cell, "a", Standing::Draining)), to_b("a drains"));
    let all_drain =
        |cell: &mut Cell| ["a", "b", "c"].into_iter().for_each(|it| stand(cell, it, Standing::Draining));
    assert_eq!(with(all_drain), NOTHING, "nothing would be won");
    let two_drain =
        |cell: &mut Cell| ["a", "b"].into_iter().for_each(|it| stand(cell, it, Standing::Draining));
    assert_eq!(with(two_drain), ["writer of shop is c (epoch 2): a drains"]);
    assert_eq!(
        with(|cell| member(cell, "a").state = unready()),
        to_b("the database on a is not ready: no quorum")
    );
    assert_eq!(with(|cell| cell.heard_of("a").member = None), to_b("the database on a does not run"));
    let nobody =
        |cell: &mut Cell| ["a", "b", "c"].into_iter().for_each(|it| member(cell, it).state = unready());
    assert_eq!(with(nobody), NOTHING, "there is no other");
    let unknown = |cell: &mut Cell| {
        cell.controller.as_mut().unwrap().observed.servers.remove(&server("a"));
    };
    assert_eq!(with(unknown), NOTHING, "it has not reported to this controller yet");
    let returning = |cell: &mut Cell| {
        let observed = &mut cell.controller.as_mut().unwrap().observed;
        observed.servers.remove(&server("a"));
        *observed.generations.get_mut(&server("b")).unwrap() += 1; // which it has still to read
        stand(cell, "a", Standing::Dead);
        stand(cell, "b", Standing::Returning);
        member(cell, "c").state = unready();
    };
    assert_eq!(with(returning), NOTHING, "b may lack what was written while it was away");
}

fn former(cell: &Cell) -> Option<(String, u64)> {
    let former = cell.placed.sites[&site("shop")].former.as_ref();
    let routed = cell.routes[&site("shop")].writer.as_ref().and_then(|writer| writer.former.as_ref());
    assert_eq!(former.map(|f| (&f.server, f.epoch)), routed.map(|f| (&f.server, f.epoch)));
    former.map(|former| (former.server.to_string(), former.epoch))
}

#[test]
fn a_writer_that_is_moved_while_it_serves_is_named_as_the_former_one_until_it_serves_no_more() {
    let mut cell = cell_of(&["a", "b", "c"]);
    assert_eq!((cell.writer("shop"), former(&cell)), (Some("a"), None));
    cell.drain("a");
    cell.run_until("b writes", 30_000, |cell| cell.writer("shop") == Some("b"));
    assert_eq!(former(&cell), Some(("a".to_owned(), 1)));
    cell.undrain("a");
    cell.run_ms(5_000);
    assert_eq!(former(&cell), Some(("a".to_owned(), 1)), "it might still serve an old connection");
    cell.kill("a");
    cell.run_until("a is dead", 10_000, |cell| former(cell).is_none());
    cell.boot("a");
    cell.settle(60_000);
    assert_eq!(former(&cell), None);
}

#[test]
fn a_writer_that_died_is_no_former_one() {
    let mut cell = cell_of(&["a", "b", "c"]);
    cell.kill("a");
    cell.run_until("b writes", 10_000, |cell| cell.writer("shop") == Some("b"));
    assert_eq!(former(&cell), None);
}

fn heard(cell: &mut Cell) -> &mut BTreeMap<ServerId, Seen> {
    &mut cell.controller.as_mut().expect("a settled cell has a controller").observed.servers
}

#[test]
fn a_writer_that_the_others_put_out_of_the_group_is_replaced_before_its_server_is_dead() {
    let mut cell = cell_of(&["a", "b", "c"]);
    for name in ["b", "c"] {
        member(&mut cell, name).group.remove(&server("a"));
    }
    let moves = ["writer of shop is b (epoch 2): the database on a is out of the group of b"];
    heard(&mut cell).get_mut(&server("a")).unwrap().at = Moment(0);
    assert_eq!(decided(&cell), moves, "nothing was heard of it since");
    heard(&mut cell).remove(&server("a"));
    assert_eq!(decided(&cell), moves, "a new controller has never heard of it");

    let mut cell = cell_of(&["a", "b", "c"]);
    member(&mut cell, "b").group.remove(&server("a"));
    let at = cell.now;
    heard(&mut cell).values_mut().for_each(|seen| seen.at = at);
    assert_eq!(decided(&cell), NOTHING, "its own word is as new");
}

/// How many sites each member writes for.
fn shares(cell: &Cell) -> Vec<usize> {
    let writes =
        |name: &&str| cell.desired.sites.keys().filter(|s| cell.writer(s.as_str()) == Some(*name)).count();
    ["a", "b", "c"].iter().map(writes).collect()
}

fn six_sites() -> Cell {
    let servers = ["a", "b", "c"].iter().fold(rack(), |rack, name| rack.server(name, 8));
    let mut cell = (1..=6).fold(servers, |rack, n| rack.site(&format!("s{n}"), 1)).start();
    cell.settle(60_000);
    assert_eq!(shares(&cell), [6, 0, 0], "who is first gets all");
    cell.run_ms(60_000);
    assert_eq!(shares(&cell), [2, 2, 2], "the others joined");
    cell
}

#[test]
fn a_member_that_returned_gets_its_share_of_the_sites_one_by_one_and_then_all_rest() {
    let mut cell = six_sites();
    cell.kill("a");
    cell.run_until("a writes for nobody", 10_000, |cell| shares(cell) == [0, 3, 3]);
    cell.run_ms(60_000);
    assert_eq!(shares(&cell), [0, 3, 3], "not while a member is missing");
    cell.boot("a");
    cell.run_until("a is back", 30_000, |cell| cell.standing("a") == Some(Standing::Up));
    let begin = cell.log.len();
    let first = cell.run_until("a writes again", 60_000, |cell| shares(cell)[0] == 1);
    assert!(first >= 25_000, "it may die again: {first} ms");
    let second = cell.run_until("all have their share", 60_000, |cell| shares(cell) == [2, 2, 2]);
    assert!(second >= 2_000, "one at a time: {second} ms");
    cell.run_ms(120_000);
    let moves: Vec<&String> = cell.log[begin..].iter().filter(|line| line.contains("writer of")).collect();
    assert_eq!(moves.len(), 2, "{moves:#?}");
    assert!(moves[0].contains("writes for 3 sites and a for 0"), "{moves:#?}");
}

#[test]
fn a_drain_moves_writers_and_nobody_spreads_them_meanwhile() {
    let mut cell = six_sites();
    cell.drain("a");
    cell.run_ms(120_000);
    assert_eq!(shares(&cell), [0, 3, 3]);
}

#[test]
fn a_writer_that_a_person_chose_stays_until_it_cannot_serve() {
    let mut cell = six_sites();
    let mut asked = |site_name: &str, to: Option<&str>| {
        let seen = cell.controller.as_ref().unwrap().observed.clone();
        let (site, to) = (site(site_name), to.map(server));
        let step = move_writer(&cell.desired, &cell.placed, &seen, cell.now, &site, to.as_ref());
        step.map(|step| {
            let plan = Plan { at: cell.now, steps: vec![step], blocked: Vec::new() };
            apply(&plan, &mut cell.desired, &mut cell.placed);
        })
        .map_err(|error| error.to_string())
    };
    // a has s5 and s6, b has s1 and s3, c has s2 and s4.
    assert_eq!(asked("s5", Some("b")), Ok(()));
    assert_eq!(asked("s6", Some("b")), Ok(()));
    assert_eq!(asked("s5", Some("b")), Err("b already writes for site s5".to_owned()));
    assert!(asked("s1", Some("d")).unwrap_err().starts_with("d cannot write for site s1: it carries no"));
    assert_eq!(asked("s1", None), Ok(()));
    assert_eq!(asked("s3", Some("c")), Ok(()));
    assert_eq!(asked("s4", Some("b")), Ok(()));
    assert_eq!((cell.writer("s1"), shares(&cell)), (Some("a"), vec![1, 3, 2]));
    cell.run_ms(90_000);
    assert_eq!(shares(&cell), [1, 3, 2], "all that could be moved was chosen");
    cell.drain("c");
    assert!(asked_to(&cell, "s1", "c").contains("or it drains"));
    cell.kill("b");
    cell.run_until("a writes for all", 10_000, |cell| shares(cell)[1] == 0);
}

fn asked_to(cell: &Cell, name: &str, to: &str) -> String {
    let seen = &cell.controller.as_ref().expect("a settled cell has a controller").observed;
    let asked = move_writer(&cell.desired, &cell.placed, seen, cell.now, &site(name), Some(&server(to)));
    asked.err().map(|error| error.to_string()).unwrap_or_default()
}
