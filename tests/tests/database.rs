//! The short run of the database's checker: one fault of every kind, in a new order and with new victims each time.
//! `make chaos-db` makes as many as you like.

use std::path::PathBuf;

use kopek_tests::database::chaos::{self, Found};
use kopek_tests::database::schedule::ALL_COUNT;
use kopek_tests::rack::Rack;

/// Every fault of the schedule once (see schedule.rs).
const FAULTS: usize = ALL_COUNT;
/// Repeats the run of this seed.
const SEED: &str = "KOPEK_CHAOS_SEED";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sites_database_keeps_its_word_whatever_fails() {
    let seed = match std::env::var(SEED) {
        Ok(given) => given.parse().unwrap_or_else(|_| panic!("{SEED}={given:?} is not a number")),
        Err(_) => u64::from(rand::random::<u32>()),
    };
    println!("repeat with {SEED}={seed}");
    let rack = Rack::up(3).await.unwrap();
    let out: PathBuf = std::env::temp_dir().join(format!("kopek-database-{seed}"));
    let verdict = chaos::run(rack, seed, FAULTS, &out).await.unwrap();
    assert!(verdict.calls > 1_000, "only {} calls were made", verdict.calls);
    let told: Vec<String> = verdict.violations.iter().map(Found::to_string).collect();
    assert!(told.is_empty(), "repeat with {SEED}={seed}: {told:#?}");
}
