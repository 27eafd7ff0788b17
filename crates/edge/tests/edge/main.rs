//! The edge as a whole, over real sockets: HTTP origins behind a gate that speaks the preamble, on its Unix
//! socket and over mutual TLS, and routes handed out as the agent does.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in test functions, not in their helpers")]

mod bodies;
mod failing;
mod gate;
mod holding;
mod limits;
mod logging;
mod origin;
mod rig;
mod routing;
