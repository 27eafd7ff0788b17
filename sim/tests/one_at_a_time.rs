//! What visitors notice when one server after the other falls.

use kopek_sim::{Trouble, rack};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_pool_comes_back_and_every_site_has_its_writer(seed: u64) {
        let rack = rack().server("s1", 4).server("s2", 4).server("s3", 4);
        let mut cell = rack.site("shop", 2).site("blog", 1).seed(seed).start();
        cell.settle(30_000);
        cell.suffer(Trouble::OneAtATime, 20);
        cell.settle(60_000);
    }
}

#[test]
fn a_site_with_two_instances_never_stops_serving_while_a_server_drains_dies_or_returns() {
    for victim in ["s1", "s2", "s3"] {
        let mut cell = rack().server("s1", 4).server("s2", 4).server("s3", 4).site("shop", 2).start();
        cell.settle(30_000);
        cell.drain(victim);
        serve_throughout(&mut cell, 15_000);
        cell.undrain(victim);
        serve_throughout(&mut cell, 5_000);
        cell.kill(victim);
        serve_throughout(&mut cell, 5_000);
        cell.boot(victim);
        serve_throughout(&mut cell, 10_000);
        cell.settle(30_000);
    }
}

#[test]
fn a_site_with_one_instance_is_held_for_at_most_three_seconds_when_its_server_is_killed() {
    let mut cell = rack().server("s1", 4).server("s2", 4).server("s3", 4).site("shop", 1).start();
    cell.settle(30_000);
    cell.run_ms(3_000);
    let victim = cell.serving_on("shop")[0].to_owned();
    cell.kill(&victim);
    let held = cell.run_until("the site answers", 10_000, |cell| cell.answers("shop"));
    assert!(held <= 3_000, "{held} ms");
}

#[test]
fn a_controller_that_has_just_begun_takes_nobody_out_of_the_routes() {
    let mut cell = rack().server("s1", 4).server("s2", 4).server("s3", 4).site("shop", 2).start();
    cell.settle(30_000);
    let begin = cell.log.len();
    cell.restart_controller();
    serve_throughout(&mut cell, 10_000);
    let said: Vec<&String> = cell.log[begin..].iter().filter(|line| !line.contains("control")).collect();
    assert!(said.is_empty(), "{said:?}");
}

fn serve_throughout(cell: &mut kopek_sim::Cell, millis: u64) {
    for _ in 0..millis / kopek_sim::cell::TICK_MS {
        cell.tick();
        let backends = cell.serving_on("shop");
        assert!(cell.answers("shop"), "{}\nnobody answers; backends {backends:?}", cell.log.join("\n"));
    }
}
