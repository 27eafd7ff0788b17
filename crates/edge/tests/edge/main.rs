//! The edge as a whole, over real sockets: HTTP origins behind a gate that speaks the preamble, on its Unix
//! socket and over mutual TLS, and routes handed out as the agent does.

mod bodies;
mod failing;
mod gate;
mod holding;
mod limits;
mod logging;
mod origin;
mod rig;
mod routing;
