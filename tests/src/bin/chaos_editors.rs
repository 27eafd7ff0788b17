//! `make chaos-editors`: the long run of the editors (kopek_tests::editors). Ends with 1 if there was an error page, or
//! something was not there as it had been saved.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use kopek_tests::editors::hour::{self, Length};
use kopek_tests::rack::Rack;

/// Of each site.
const EDITORS: usize = 2;
const SERVERS: usize = 3;

/// WordPress and MediaWiki are installed and edited while the writers of their databases are killed
#[derive(Parser)]
struct Options {
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Repeats a run's choices; a new one unless given
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos-editors failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives the number of things that went wrong.
async fn run(options: &Options) -> Result<usize> {
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let rack = Rack::up(SERVERS).await?;
    let told = hour::run(&rack, seed, EDITORS, Length::Minutes(options.minutes)).await;
    if told.is_err() {
        rack.tell_last().await;
    }
    let seen = told?;
    Ok(seen.error_pages.len() + seen.untrue.len())
}
