//! What becomes of steps that were planned on documents that have changed since.

use kopek_core::desired::{Desired, Standing};
use kopek_core::placement::{Chooser, Placed, Stage};
use kopek_core::plan::{Action, Cause, Former, Plan, Step, apply};
use kopek_core::{Moment, PoolName};
use kopek_sim::rack::{pool, server, site};
use kopek_sim::{Cell, rack};

/// `shop` runs on `a` and `b` and may run three times; the pool and the addresses are at rest. All servers but `d`,
/// which has just joined, hold its volume.
fn settled() -> Cell {
    let mut cell = rack().server("a", 4).server("b", 4).server("c", 4).site_between("shop", 2, 3).start();
    cell.settle(30_000);
    let mut joined = cell.desired.servers[&server("c")].clone();
    joined.name = server("d");
    cell.desired.servers.insert(server("d"), joined);
    cell
}

/// The documents before and after one late step.
fn applied(change: impl Fn(&mut Cell), action: Action) -> ((Desired, Placed), (Desired, Placed)) {
    let mut cell = settled();
    change(&mut cell);
    let before = (cell.desired.clone(), cell.placed.clone());
    let step = Step { action, reason: "late".to_owned() };
    let plan = Plan { at: cell.now.plus_millis(1_000), steps: vec![step], blocked: vec![] };
    apply(&plan, &mut cell.desired, &mut cell.placed);
    (before, (cell.desired, cell.placed))
}

#[track_caller]
fn changes_nothing(change: impl Fn(&mut Cell), action: Action) {
    let (before, after) = applied(change, action.clone());
    assert_eq!(before, after, "{action:?}");
}

#[track_caller]
fn does_something(action: Action) {
    let (before, after) = applied(|_| {}, action.clone());
    assert_ne!(before, after, "{action:?}");
}

fn add(number: u64, name: &str) -> Action {
    let instance = format!("shop.{number}").parse().expect("an instance id");
    Action::AddInstance { instance, server: server(name), cause: Cause::Need }
}

fn as_is(_: &mut Cell) {}

fn stand(name: &'static str, standing: Standing) -> impl Fn(&mut Cell) {
    move |cell| {
        cell.desired.servers.get_mut(&server(name)).expect("a server of this cell").standing = standing
    }
}

fn delete_site(cell: &mut Cell) {
    cell.desired.sites.clear();
}

#[test]
fn a_late_instance_is_not_added_where_it_would_be_one_too_many_or_could_not_run() {
    does_something(add(3, "c"));
    changes_nothing(as_is, add(2, "c")); // its number was used
    changes_nothing(as_is, add(3, "a")); // runs one already
    changes_nothing(as_is, add(3, "d")); // does not hold the volume
    changes_nothing(|cell| cell.desired.sites.values_mut().for_each(|site| site.max = 2), add(3, "c"));
    changes_nothing(|cell| cell.desired.servers.get_mut(&server("c")).unwrap().slots = 0, add(3, "c"));
    for standing in [Standing::Draining, Standing::Dead, Standing::Returning] {
        changes_nothing(stand("c", standing), add(3, "c"));
    }
    changes_nothing(delete_site, add(3, "c"));
}

#[test]
fn an_instance_that_drains_gets_no_more_time_by_a_late_step() {
    let drain = |until| Action::DrainInstance {
        instance: "shop.1".parse().expect("an instance id"),
        until: Moment(until),
        cause: Cause::Policy,
    };
    does_something(drain(90_000));
    let drains = |cell: &mut Cell| {
        let placement = cell.placed.sites.get_mut(&site("shop")).unwrap();
        placement.instances.values_mut().for_each(|it| it.stage = Stage::Drain { until: Moment(50_000) });
    };
    changes_nothing(drains, drain(90_000));
}

#[test]
fn what_is_late_for_a_site_that_was_deleted_or_made_again_changes_nothing() {
    let shop = || site("shop");
    let holds = |name| Action::AddHolder { site: shop(), server: server(name) };
    does_something(holds("d"));
    changes_nothing(delete_site, holds("d"));
    changes_nothing(as_is, holds("e")); // was removed from the cell
    let writes = |name, epoch| Action::SetWriter {
        site: shop(),
        server: server(name),
        epoch,
        former: Former::Serves,
        chosen_by: Chooser::Planner,
    };
    does_something(writes("b", 2));
    changes_nothing(delete_site, writes("b", 2));
    let forget = || Action::ForgetSite { site: shop() };
    let runs_nothing = |cell: &mut Cell| cell.placed.sites.get_mut(&shop()).unwrap().instances.clear();
    changes_nothing(delete_site, forget()); // its numbers are still in use
    changes_nothing(runs_nothing, forget()); // it was made again
}

#[test]
fn a_late_writer_is_none_without_a_higher_epoch_and_a_formed_pool_of_which_it_is_a_member() {
    let writes = |name, epoch| Action::SetWriter {
        site: site("shop"),
        server: server(name),
        epoch,
        former: Former::Serves,
        chosen_by: Chooser::Planner,
    };
    changes_nothing(as_is, writes("b", 1));
    changes_nothing(as_is, writes("b", 0));
    changes_nothing(as_is, writes("d", 2));
    changes_nothing(|cell| cell.pool1().formed = false, writes("b", 2));
}

#[test]
fn one_member_at_a_time_may_start_the_pool_whatever_comes_late() {
    let turn_of_a = |cell: &mut Cell| cell.pool1().bootstrap = Some(server("a"));
    let bootstrap = |name| Action::Bootstrap { pool: PoolName::first(), server: server(name) };
    does_something(bootstrap("b"));
    changes_nothing(turn_of_a, bootstrap("b"));
    changes_nothing(as_is, bootstrap("d")); // no member
    changes_nothing(turn_of_a, Action::EndBootstrap { pool: PoolName::first(), server: server("b") });
    changes_nothing(as_is, Action::AddMember { pool: PoolName::first(), server: server("e") });
    let of_pool2 = |name| Action::AddMember { pool: pool("pool2"), server: server(name) };
    does_something(of_pool2("d"));
    changes_nothing(as_is, of_pool2("a")); // carries the first pool's
    let (_, (_, left)) =
        applied(turn_of_a, Action::RemoveMember { pool: PoolName::first(), server: server("a") });
    assert_eq!(left.pool(&PoolName::first()).bootstrap, None, "who is no member has no turn");
    let stopped = |cell: &mut Cell| cell.pool1().stopped = Some(Moment(1));
    changes_nothing(stopped, Action::PoolStopped { pool: PoolName::first() }); // it has been since then
}

#[test]
fn a_late_step_moves_no_address_to_its_holder_or_to_a_server_that_does_not_take_it() {
    let vip = "10.0.1.1".parse().expect("an address");
    let moves = |name| Action::MoveVip { vip, to: server(name) };
    does_something(moves("c"));
    changes_nothing(as_is, moves("a"));
    changes_nothing(stand("c", Standing::Draining), moves("c"));
    changes_nothing(stand("c", Standing::Dead), Action::SetVip { vip, server: server("c") });
}

#[test]
fn a_server_comes_back_only_from_where_its_diagram_says() {
    let readmit = || Action::Readmit { server: server("c") };
    for standing in [Standing::Draining, Standing::Dead] {
        changes_nothing(stand("c", standing), readmit());
    }
    let begin = || Action::BeginReturn { server: server("c") };
    for standing in [Standing::Up, Standing::Draining] {
        changes_nothing(stand("c", standing), begin());
    }
}
