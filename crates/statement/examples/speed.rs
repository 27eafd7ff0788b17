//! What one `read` of a point select of 120 bytes costs. Goal: 1 µs.
//!
//!     cargo run --release -p kopek-statement --example speed
//!
//! prints nanoseconds. Instructions, which a busy machine does not change, are the difference of two runs:
//!
//!     cargo build --release -p kopek-statement --example speed
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null .../release/examples/speed 1000
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null .../release/examples/speed 11000
//!
//! divided by 10,000.

use std::hint::black_box;
use std::time::Instant;

use kopek_statement::{Dialect, read};

const TEXT: &[u8] =
    b"SELECT option_value, autoload FROM wp_options WHERE option_name = 'theme_mods_twentytwentythree' AND blog_id = 1 LIMIT 1";
const ROUNDS: u32 = 2_000_000;

fn main() {
    assert_eq!(TEXT.len(), 120);
    let rounds = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(ROUNDS);
    let started = Instant::now();
    for _ in 0..rounds {
        black_box(read(black_box(TEXT), Dialect::default()));
    }
    let each = started.elapsed().as_nanos() / u128::from(rounds.max(1));
    println!("{each} ns each, {rounds} times");
}
