//! Virtual racks on this machine, as root, with the real kernel. Each test has a rack of its own in a folder of its
//! own, and ends by looking that nothing of it is left.
#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, not in their helpers")]

mod making;
mod rack;
mod server;
