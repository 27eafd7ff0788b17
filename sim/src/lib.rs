//! A cell that exists only in memory: servers that boot, crash, are cut off and return; instances that take
//! time to start; a database pool that keeps and loses quorum; controllers that come and go. The real
//! decisions of `kopek-core` run in it, and every invariant is tested after every tenth of a second.
//!
//! The same seed gives the same log, byte for byte: `Cell::log`.

pub mod cell;
pub mod chance;
pub mod machine;
mod network;
pub mod pool;
mod questions;
pub mod rack;
pub mod trouble;

pub use cell::Cell;
pub use rack::rack;
pub use trouble::Trouble;
