//! The short run of the database's checker: one fault of every kind, always the same ones. `make chaos-db` makes as
//! many others as you like.

use std::path::PathBuf;

use kopek_tests::database::chaos::{self, Found};
use kopek_tests::database::schedule::ALL_COUNT;
use kopek_tests::rack::Rack;

/// Every fault of the schedule once (see schedule.rs).
const FAULTS: usize = ALL_COUNT;
const SEED: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sites_database_keeps_its_word_whatever_fails() {
    let rack = Rack::up(3).await.unwrap();
    let out: PathBuf = std::env::temp_dir().join(format!("kopek-database-{SEED}"));
    let verdict = chaos::run(rack, SEED, FAULTS, &out).await.unwrap();
    assert!(verdict.calls > 1_000, "only {} calls were made", verdict.calls);
    let told: Vec<String> = verdict.violations.iter().map(Found::to_string).collect();
    assert!(told.is_empty(), "repeat with `make chaos-db FAULTS={FAULTS} SEED={SEED}`: {told:#?}");
}
