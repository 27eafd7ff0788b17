//! Cells in trouble. Each test names its seed when it fails; the same seed fails the same way.

use kopek_sim::{Cell, Trouble, rack};
use proptest::prelude::*;

fn three_servers(seed: u64) -> Cell {
    let rack = rack().server("s1", 4).server("s2", 4).server("s3", 4);
    rack.site("shop", 1).site_between("blog", 2, 3).seed(seed).start()
}

fn large_cell(seed: u64) -> Cell {
    let racks = (1..=10).fold(rack().pool(5), |rack, n| {
        rack.server_in(if n % 2 == 0 { "even" } else { "odd" }, &format!("s{n}"), 3)
    });
    racks.site("shop", 2).site("blog", 1).site("wiki", 1).seed(seed).start()
}

/// One server is free to take the place of any that is given up.
fn two_pools(seed: u64) -> Cell {
    let racks = (1..=7).fold(rack(), |rack, n| rack.server_in(&format!("r{}", n % 2), &format!("s{n}"), 3));
    let pools = racks.pool_on("pool2", &["s2", "s3", "s4"]);
    pools.site("shop", 1).site_on("pool2", "blog").site_on("pool2", "wiki").seed(seed).start()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cell_becomes_whole_again_after_any_trouble(seed: u64) {
        let mut cell = three_servers(seed);
        cell.suffer(Trouble::Anything, 25);
        cell.settle(120_000);
    }

    #[test]
    fn a_large_cell_becomes_whole_again_after_any_trouble(seed: u64) {
        let mut cell = large_cell(seed);
        cell.suffer(Trouble::Anything, 25);
        cell.settle(120_000);
    }

    #[test]
    fn a_cell_of_two_pools_becomes_whole_again_after_any_trouble(seed: u64) {
        let mut cell = two_pools(seed);
        cell.suffer(Trouble::Anything, 25);
        cell.settle(120_000);
    }

    #[test]
    fn a_small_cell_becomes_whole_again_after_any_trouble(seed: u64) {
        let mut cell = rack().server("s1", 3).server("s2", 6).site("shop", 1).seed(seed).start();
        cell.suffer(Trouble::Anything, 20);
        for site in cell.desired.sites.values_mut() {
            site.min = 1;
        }
        cell.settle(120_000);
    }

    #[test]
    fn the_same_seed_gives_the_same_log_byte_for_byte(seed: u64) {
        let run = || {
            let mut cell = three_servers(seed);
            cell.suffer(Trouble::Anything, 10);
            cell.log.join("\n")
        };
        prop_assert_eq!(run(), run());
    }
}
