//! `make chaos-db`: the long run of the database's checker (kopek_tests::database). Ends with 1 if anything that
//! was acknowledged is lost, done twice or read stale.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use kopek_tests::database::chaos;
use kopek_tests::rack::Rack;

const SERVERS: usize = 3;

/// Clients work through a site's instances while its database's servers are killed, frozen, cut and powered off
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 200)]
    faults: usize,
    /// Repeats a run's faults; a new one unless given
    #[arg(long)]
    seed: Option<u64>,
    /// Where the table is written, and histories in which something is wrong
    #[arg(long, default_value = "chaos-db")]
    out: PathBuf,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos-db failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the number of violations.
async fn run(options: Options) -> Result<usize> {
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let rack = Rack::up(SERVERS).await?;
    let verdict = chaos::run(rack, seed, options.faults, &options.out).await?;
    std::fs::create_dir_all(&options.out)?;
    let text = format!(
        "seed {seed}, {} faults, {} calls, {} violations\n\n{}",
        options.faults,
        verdict.calls,
        verdict.violations.len(),
        verdict.table
    );
    let path = options.out.join("table.md");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("the table is in {}", path.display());
    Ok(verdict.violations.len())
}
