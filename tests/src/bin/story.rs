//! `make demo`: tells the demo story (kopek_tests::story).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kopek_tests::rack::kopek_binary;
use kopek_tests::story::{DEFAULT_DIR, Story, Teller};

/// Three virtual servers host an unmodified WordPress: load, scale-out, a dead server, recovery
#[derive(Parser)]
struct Options {
    /// The kopek binary; the one beside this program unless given
    #[arg(long)]
    kopek: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "full")]
    story: Story,
    /// The rack's folder
    #[arg(long, default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// Where a browser reaches the site; port 0 for nowhere
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    let kopek = match options.kopek.map_or_else(kopek_binary, Ok) {
        Ok(kopek) => kopek,
        Err(error) => return failed(&error),
    };
    let listen = Some(options.listen).filter(|listen| listen.port() != 0);
    let teller = Teller { kopek, dir: options.dir, listen, story: options.story };
    match teller.tell().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("the story failed: {error:#}");
    ExitCode::FAILURE
}
