//! When load adds an instance and when it takes one away: one decision each, on what one round of reports says.

use kopek_core::Moment;
use kopek_core::observed::{Phase, SeenInstance};
use kopek_core::units::Load;
use kopek_sim::{Cell, rack};

/// The site `shop` with `count` instances, one of at least 1 and at most 3, up ≥ 2.00, down < 1.00; all have served
/// for longer than the settle time.
fn shop(count: usize) -> Cell {
    let rack = rack().server("a", 4).server("b", 4).server("c", 4);
    let mut cell = rack.site_between("shop", count, 3).start();
    cell.settle(30_000);
    cell.run_ms(6_000);
    want_at_least(&mut cell, 1);
    cell
}

fn want_at_least(cell: &mut Cell, min: usize) {
    cell.desired.sites.values_mut().for_each(|site| site.min = min);
}

/// What the agent of its server says of `shop.NUMBER`.
fn seen(cell: &mut Cell, number: u64) -> &mut SeenInstance {
    let id = format!("shop.{number}").parse().expect("an instance id");
    let server = cell.placed.sites.values().next().expect("the site is placed").instances[&id].server.clone();
    cell.heard_of(server.as_str()).instances.get_mut(&id).expect("its agent has reported it")
}

/// What is decided when the instances have these loads, in thousandths, in the order of their numbers.
fn decided(cell: &mut Cell, loads: &[u32]) -> Vec<String> {
    for (number, load) in (1..).zip(loads) {
        seen(cell, number).load = Load(*load);
    }
    cell.planned()
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_load_of_the_upper_threshold_adds_one_and_an_extra_one_goes_only_below_the_lower_one() {
    let mut cell = shop(2);
    assert_eq!(decided(&mut cell, &[1_999, 1_000]), NOTHING);
    assert_eq!(decided(&mut cell, &[0, 2_000]), ["place shop.3 on c: load 2.00 ≥ 2.00 at shop.2"]);
    assert_eq!(decided(&mut cell, &[900, 1_000]), NOTHING);
    assert_eq!(decided(&mut cell, &[900, 999]), ["drain shop.2: load 0.99 < 1.00"]);
    want_at_least(&mut cell, 2);
    assert_eq!(decided(&mut cell, &[0, 0]), NOTHING);
}

#[test]
fn an_extra_instance_stays_while_the_others_would_call_for_it_again() {
    let mut cell = shop(2);
    assert_eq!(decided(&mut cell, &[1_500, 500]), NOTHING, "together 2.00");
    assert_eq!(decided(&mut cell, &[1_499, 500]), ["drain shop.2: load 0.50 < 1.00"]);
    seen(&mut cell, 2).since = Moment(cell.now.0 - 4_999);
    assert_eq!(decided(&mut cell, &[0, 0]), NOTHING, "its load says nothing yet");
}

#[test]
fn none_is_added_while_one_starts_nor_above_the_maximum_and_one_that_fails_keeps_no_help_away() {
    let mut cell = shop(2);
    seen(&mut cell, 2).phase = Phase::Starting;
    assert_eq!(decided(&mut cell, &[5_000, 0]), NOTHING);
    seen(&mut cell, 2).phase = Phase::BackOff { until: cell.now, why: "exit 1".to_owned() };
    assert_eq!(decided(&mut cell, &[5_000, 0]), ["place shop.3 on c: load 5.00 ≥ 2.00 at shop.1"]);
    assert_eq!(decided(&mut shop(3), &[5_000, 5_000, 5_000]), NOTHING, "nor is anything blocked");
}
