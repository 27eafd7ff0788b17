//! `kopek`: one binary for everything. Without a service's name it is the command line.
//!
//! Before any thread starts it looks whether it was re-executed as a launcher of instances, as the init of a
//! virtual server or as a rack's forwarder: those must be single-threaded.

// These macros panic when nobody reads any more; `cli/output.rs` writes instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod cli;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = kopek_instance::reexec() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().take(4).collect();
    match arguments.get(1).map(String::as_str) {
        Some("dev-init") => kopek_rack::init_main(),
        Some("dev-forward") => match arguments.get(3).and_then(|to| to.parse().ok()) {
            Some(to) => kopek_rack::forward_main(to),
            None => ExitCode::from(2),
        },
        _ => cli::main(),
    }
}
