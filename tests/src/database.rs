//! A checker of a site's database in the style of Jepsen: clients work through the sockets of the site's instances
//! while servers and pool members are killed, frozen, cut off and powered off; a judge reads what they saw.
//!
//! ```text
//!   schedule (seed) ──▶ chaos ──▶ rack          the faults
//!                         │
//!                       crew ──▶ session ──▶ mysqld.sock of an instance
//!                         │
//!                      history ──▶ judge ──▶ violations        stalls ──▶ the table
//! ```
//! The judge is pure and knows nothing of how `sql` works; it is tested with histories made by hand.

pub mod chaos;
pub mod crew;
pub mod history;
pub mod judge;
pub mod schedule;
pub mod seats;
pub mod session;
pub mod stalls;
pub mod tables;
